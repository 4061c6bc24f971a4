//! Configuration space of a type 0 function (PCI Local Bus Specification 3.0, chapter 6).
//!
//! Every byte has its value, the bits that software may write, and the bits that writing a one clears. Sizing a BAR
//! follows from that: its low bits can't be written.

use bitfield_struct::bitfield;

use crate::{
    rom::Rom,
    saved::{Bytes, LoadError},
};

/// Bytes of conventional configuration space, all that this function has.
pub(crate) const CONFIG_BYTES: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const EXPANSION_ROM: usize = 0x30;
const CAPABILITIES_POINTER: usize = 0x34;
const CACHE_LINE_SIZE: usize = 0x0c;
const INTERRUPT_LINE: usize = 0x3c;

/// The Command register, section 6.2.2.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Command {
    /// The function answers I/O accesses.
    pub io_space: bool,
    /// The function answers memory accesses.
    pub memory_space: bool,
    /// The function may start DMA.
    pub bus_master: bool,
    /// The function watches special cycles.
    pub special_cycles: bool,
    /// The function may use Memory Write and Invalidate.
    pub memory_write_and_invalidate: bool,
    /// VGA palette snooping.
    pub vga_palette_snoop: bool,
    /// The function reacts to parity errors.
    pub parity_error_response: bool,
    __: bool,
    /// The function may drive SERR#.
    pub serr: bool,
    /// The function may start fast back-to-back transactions.
    pub fast_back_to_back: bool,
    /// The function may not assert INTx.
    pub interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

/// The Status register, section 6.2.3.
#[bitfield(u16)]
struct Status {
    #[bits(3)]
    __: u8,
    interrupt: bool,
    capabilities: bool,
    mhz66: bool,
    __: bool,
    fast_back_to_back: bool,
    master_parity_error: bool,
    /// 1: medium.
    #[bits(2)]
    devsel: u8,
    signaled_target_abort: bool,
    received_target_abort: bool,
    received_master_abort: bool,
    signaled_system_error: bool,
    detected_parity_error: bool,
}

/// Power Management Capabilities (PCI Power Management 1.1, section 3.2.3), as far as functions differ. There is neither D1
/// nor D2.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PowerCapabilities {
    /// Of the specification: 2 for 1.1.
    #[bits(3, default = 2)]
    version: u8,
    #[bits(2)]
    __: u8,
    /// DSI: its own driver has to initialize the function after it left D3.
    pub needs_initialization: bool,
    #[bits(5)]
    __: u8,
    /// PME# can come from D0.
    pub pme_from_d0: bool,
    #[bits(2)]
    __: u8,
    /// PME# can come from D3hot.
    pub pme_from_d3hot: bool,
    __: bool,
}

/// Power Management Control/Status (PCI Power Management 1.1, section 3.2.4).
#[bitfield(u16)]
struct PowerControl {
    #[bits(2)]
    state: u8,
    #[bits(6)]
    __: u8,
    pme_enable: bool,
    #[bits(6)]
    __: u8,
    pme_status: bool,
}

/// MSI Message Control, section 6.8.1.3.
#[bitfield(u16)]
struct MsiControl {
    enable: bool,
    #[bits(3)]
    messages_log2: u8,
    #[bits(3)]
    messages_enabled_log2: u8,
    address_64: bool,
    __: u8,
}

/// What a function says of itself: the read-only part of its header.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor_id: u16,
    /// Device ID.
    pub device_id: u16,
    /// Subsystem Vendor ID.
    pub subsystem_vendor_id: u16,
    /// Subsystem ID.
    pub subsystem_id: u16,
    /// Revision ID.
    pub revision_id: u8,
    /// Base class, subclass and programming interface, 24 bits.
    pub class_code: u32,
    /// Burst length that the function needs, in 250 ns.
    pub min_gnt: u8,
    /// How often the function needs the bus, in 250 ns.
    pub max_lat: u8,
    /// Whether the function has an INTA# pin.
    pub interrupt_pin: bool,
    /// Base Address Registers 0 to 5.
    pub bars: [Option<Bar>; 6],
    /// The expansion ROM.
    pub rom: Option<Rom>,
    /// Capabilities in the order of the list, each with its offset.
    pub capabilities: Vec<(u8, Capability)>,
}

/// A Base Address Register, section 6.2.5. Sizes are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// Memory below 4 GiB, not prefetchable; at least 16 bytes.
    Memory {
        /// Bytes.
        size_bytes: u32,
    },
    /// Memory anywhere, not prefetchable; at least 16 bytes. It takes the next register too, which must be left empty.
    Memory64 {
        /// Bytes.
        size_bytes: u32,
    },
    /// I/O ports; 4 to 256 bytes.
    Io {
        /// Bytes.
        size_bytes: u32,
    },
}

impl Bar {
    /// How many bytes the BAR decodes.
    #[must_use]
    pub fn size_bytes(self) -> u32 {
        match self {
            Self::Memory { size_bytes }
            | Self::Memory64 { size_bytes }
            | Self::Io { size_bytes } => size_bytes,
        }
    }
}

/// A capability of the list, section 6.7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// PCI Power Management 1.1: D0 and D3hot. Leaving D3hot resets the function. PME# is never asserted.
    PowerManagement(PowerCapabilities),
    /// Message Signaled Interrupts, section 6.8.1: one message, to an address of 64 bits, that can't be masked.
    Msi,
}

impl Capability {
    const POWER_MANAGEMENT_ID: u8 = 0x01;
    const POWER_MANAGEMENT_CONTROL: usize = 4;
    const MSI_ID: u8 = 0x05;
    const MSI_CONTROL: usize = 2;

    fn id(&self) -> u8 {
        match self {
            Self::PowerManagement(_) => Self::POWER_MANAGEMENT_ID,
            Self::Msi => Self::MSI_ID,
        }
    }
}

/// Configuration space: what region 7 reads and writes.
#[derive(Debug)]
pub struct ConfigSpace {
    power_on: [u8; CONFIG_BYTES],
    value: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    write_one_to_clear: [u8; CONFIG_BYTES],
    /// Bits that the function itself sets and clears.
    driven: [u8; CONFIG_BYTES],
    /// Where Power Management Control/Status is, if the function has it.
    power_control: Option<usize>,
    /// Where MSI's Message Control is, if the function has it.
    msi_control: Option<usize>,
}

impl ConfigSpace {
    /// The space of a function in its power-on state.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            power_on: [0; CONFIG_BYTES],
            value: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            write_one_to_clear: [0; CONFIG_BYTES],
            driven: [0; CONFIG_BYTES],
            power_control: None,
            msi_control: None,
        };
        space.lay_out_header(identity);
        space.lay_out_capabilities(&identity.capabilities);
        space.value = space.power_on;
        space
    }

    fn lay_out_header(&mut self, identity: &Identity) {
        let status = Status::new()
            .with_capabilities(!identity.capabilities.is_empty())
            .with_mhz66(true)
            .with_devsel(1);
        let clearable = Status::new()
            .with_master_parity_error(true)
            .with_signaled_target_abort(true)
            .with_received_target_abort(true)
            .with_received_master_abort(true)
            .with_signaled_system_error(true)
            .with_detected_parity_error(true);
        let command = Command::new()
            .with_io_space(true)
            .with_memory_space(true)
            .with_bus_master(true)
            .with_memory_write_and_invalidate(true)
            .with_parity_error_response(true)
            .with_serr(true)
            .with_interrupt_disable(identity.interrupt_pin);
        put(&mut self.power_on, 0x00, &identity.vendor_id.to_le_bytes());
        put(&mut self.power_on, 0x02, &identity.device_id.to_le_bytes());
        put(
            &mut self.power_on,
            STATUS,
            &status.into_bits().to_le_bytes(),
        );
        put(&mut self.power_on, 0x08, &[identity.revision_id]);
        put(
            &mut self.power_on,
            0x09,
            &identity.class_code.to_le_bytes()[..3],
        );
        put(
            &mut self.power_on,
            0x2c,
            &identity.subsystem_vendor_id.to_le_bytes(),
        );
        put(
            &mut self.power_on,
            0x2e,
            &identity.subsystem_id.to_le_bytes(),
        );
        let pin = u8::from(identity.interrupt_pin);
        put(
            &mut self.power_on,
            INTERRUPT_LINE,
            &[0, pin, identity.min_gnt, identity.max_lat],
        );
        put(
            &mut self.writable,
            COMMAND,
            &command.into_bits().to_le_bytes(),
        );
        put(
            &mut self.write_one_to_clear,
            STATUS,
            &clearable.into_bits().to_le_bytes(),
        );
        let pending = Status::new().with_interrupt(true);
        put(&mut self.driven, STATUS, &pending.into_bits().to_le_bytes());
        // Cache Line Size and Latency Timer (section 6.2.4: in steps), and Interrupt Line, are the software's own notes.
        put(&mut self.writable, CACHE_LINE_SIZE, &[0xff, 0xfc]);
        put(&mut self.writable, INTERRUPT_LINE, &[0xff]);
        for (index, bar) in identity.bars.iter().enumerate() {
            let (kind, size_bytes) = match bar {
                Some(Bar::Memory { size_bytes }) => (0, *size_bytes),
                Some(Bar::Memory64 { size_bytes }) => (4, *size_bytes),
                Some(Bar::Io { size_bytes }) => (1, *size_bytes),
                None => continue,
            };
            assert!(
                size_bytes.is_power_of_two() && size_bytes >= 4,
                "a BAR decodes a power of two"
            );
            put(&mut self.power_on, BAR0 + 4 * index, &[kind]);
            put(
                &mut self.writable,
                BAR0 + 4 * index,
                &(!(size_bytes - 1)).to_le_bytes(),
            );
            if let Some(Bar::Memory64 { .. }) = bar {
                let upper = identity.bars.get(index + 1);
                assert_eq!(upper, Some(&None), "the next register is the upper half");
                put(&mut self.writable, BAR0 + 4 * (index + 1), &[0xff; 4]);
            }
        }
        if let Some(rom) = &identity.rom {
            // Section 6.2.5.2: an address, and in bit 0 whether the function decodes it. The client decodes, and knows.
            let writable = !(rom.size_bytes() - 1) | 1;
            put(&mut self.writable, EXPANSION_ROM, &writable.to_le_bytes());
        }
    }

    fn lay_out_capabilities(&mut self, capabilities: &[(u8, Capability)]) {
        let mut link = CAPABILITIES_POINTER;
        for (offset, capability) in capabilities {
            let at = usize::from(*offset);
            put(&mut self.power_on, link, &[*offset]);
            put(&mut self.power_on, at, &[capability.id()]);
            link = at + 1;
            match capability {
                Capability::PowerManagement(says) => {
                    let bits = says.into_bits().to_le_bytes();
                    put(&mut self.power_on, at + 2, &bits);
                    let has_pme = says.pme_from_d0() || says.pme_from_d3hot();
                    let control = PowerControl::new().with_state(3).with_pme_enable(has_pme);
                    let power_control = at + Capability::POWER_MANAGEMENT_CONTROL;
                    let writable = control.into_bits().to_le_bytes();
                    put(&mut self.writable, power_control, &writable);
                    self.power_control = Some(power_control);
                }
                Capability::Msi => {
                    let control = MsiControl::new().with_address_64(true);
                    let writable = MsiControl::new()
                        .with_enable(true)
                        .with_messages_enabled_log2(7);
                    let msi_control = at + Capability::MSI_CONTROL;
                    put(
                        &mut self.power_on,
                        msi_control,
                        &control.into_bits().to_le_bytes(),
                    );
                    put(
                        &mut self.writable,
                        msi_control,
                        &writable.into_bits().to_le_bytes(),
                    );
                    // Message Address, Message Upper Address and Message Data.
                    put(&mut self.writable, at + 4, &[0xfc, 0xff, 0xff, 0xff]);
                    put(&mut self.writable, at + 8, &[0xff; 6]);
                    self.msi_control = Some(msi_control);
                }
            }
        }
    }

    /// Copies `data.len()` bytes from `offset` on.
    ///
    /// # Panics
    /// When the range is not inside the space: the server has checked it.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.value[offset..offset + data.len()]);
    }

    /// Writes what is writable of `data` at `offset`.
    ///
    /// # Panics
    /// When the range is not inside the space: the server has checked it.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let state_before = self.power_control.map(|at| self.value[at]);
        for (at, new) in (offset..).zip(data) {
            let kept = self.value[at] & !self.writable[at] & !(new & self.write_one_to_clear[at]);
            self.value[at] = kept | (new & self.writable[at]);
        }
        if let (Some(at), Some(before)) = (self.power_control, state_before)
            && matches!(PowerControl::from_bits(self.word(at)).state(), 1 | 2)
        {
            // Section 3.2.4: a state that is not there is discarded. The byte holds nothing else that can be written.
            self.value[at] = before;
        }
    }

    /// Back to the power-on state.
    pub fn reset(&mut self) {
        self.value = self.power_on;
    }

    /// What software finds in the space.
    pub(crate) fn save(&self) -> Bytes {
        let Self {
            value,
            // What follows from the function's identity.
            power_on: _,
            writable: _,
            write_one_to_clear: _,
            driven: _,
            power_control: _,
            msi_control: _,
        } = self;
        Bytes(value.to_vec())
    }

    /// What [`ConfigSpace::save`] gave, if this function could have it.
    pub(crate) fn check(&self, saved: &Bytes) -> Result<[u8; CONFIG_BYTES], LoadError> {
        let value: [u8; CONFIG_BYTES] = saved.0.as_slice().try_into().map_err(|_| {
            LoadError::new("config", format!("has {} bytes, not 256", saved.0.len()))
        })?;
        for (at, byte) in value.iter().enumerate() {
            let fixed = !(self.writable[at] | self.driven[at]);
            if (byte ^ self.power_on[at]) & fixed != 0 {
                let problem = format!("{byte:#04x} at {at:#04x} can't be in this function");
                return Err(LoadError::new("config", problem));
            }
        }
        Ok(value)
    }

    /// Takes over what [`ConfigSpace::check`] gave.
    pub(crate) fn load(&mut self, value: [u8; CONFIG_BYTES]) {
        self.value = value;
    }

    /// The Command register.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits(self.word(COMMAND))
    }

    /// Cache Line Size, which counts words of four bytes.
    pub(crate) fn cache_line_bytes(&self) -> u32 {
        4 * u32::from(self.value[CACHE_LINE_SIZE])
    }

    /// Whether the function is in D0, where it answers and may start DMA and interrupts.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.power_control
            .is_none_or(|at| PowerControl::from_bits(self.word(at)).state() == 0)
    }

    /// PME_En of Power Management Control/Status.
    pub(crate) fn is_pme_enabled(&self) -> bool {
        self.power_control
            .is_some_and(|at| PowerControl::from_bits(self.word(at)).pme_enable())
    }

    /// Sets PME_En, if the function has it.
    pub(crate) fn enable_pme(&mut self, enable: bool) {
        if let Some(at) = self.power_control {
            let control = PowerControl::from_bits(self.word(at)).with_pme_enable(enable);
            self.write(at, &control.into_bits().to_le_bytes());
        }
    }

    /// Says whether the function has an interrupt pending (Status, Interrupt Status).
    pub(crate) fn set_interrupt_status(&mut self, pending: bool) {
        let status = Status::from_bits(self.word(STATUS)).with_interrupt(pending);
        put(&mut self.value, STATUS, &status.into_bits().to_le_bytes());
    }

    /// What was said last.
    pub(crate) fn interrupt_status(&self) -> bool {
        Status::from_bits(self.word(STATUS)).interrupt()
    }

    /// Whether the guest has messages sent for interrupts.
    pub(crate) fn is_msi_enabled(&self) -> bool {
        self.msi_control
            .is_some_and(|at| MsiControl::from_bits(self.word(at)).enable())
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.value[at], self.value[at + 1]])
    }
}

fn put(space: &mut [u8; CONFIG_BYTES], at: usize, bytes: &[u8]) {
    space[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut bars = [None; 6];
        bars[0] = Some(Bar::Memory {
            size_bytes: 0x20000,
        });
        bars[1] = Some(Bar::Io { size_bytes: 64 });
        let pm = PowerCapabilities::new()
            .with_needs_initialization(true)
            .with_pme_from_d0(true)
            .with_pme_from_d3hot(true);
        ConfigSpace::new(&Identity {
            vendor_id: 0x8086,
            device_id: 0x100e,
            class_code: 0x02_0000,
            interrupt_pin: true,
            bars,
            capabilities: vec![
                (0xdc, Capability::PowerManagement(pm)),
                (0xf0, Capability::Msi),
            ],
            ..Identity::default()
        })
    }

    fn read32(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn header_tells_identity() {
        let space = space();
        assert_eq!(read32(&space, 0x00), 0x100e_8086);
        assert_eq!(read32(&space, 0x04), 0x0230_0000);
        assert_eq!(read32(&space, 0x08), 0x0200_0000);
        assert_eq!(read32(&space, 0x3c), 0x0000_0100);
    }

    #[test]
    fn bars_are_sized_by_writing_ones() {
        let mut space = space();
        for at in (0x10..0x34).step_by(4) {
            space.write(at, &[0xff; 4]);
        }
        assert_eq!(read32(&space, 0x10), 0xfffe_0000);
        assert_eq!(read32(&space, 0x14), 0xffff_ffc1);
        assert_eq!(read32(&space, 0x18), 0);
        assert_eq!(read32(&space, 0x30), 0, "no expansion ROM");
    }

    #[test]
    fn the_expansion_rom_is_sized_and_enabled_in_one_register() {
        let mut space = space();
        assert_eq!(read32(&space, 0x30), 0);
        space.write(0x30, &0xffff_f800u32.to_le_bytes());
        assert_eq!(read32(&space, 0x30), 0);
        let rom = Rom::of(&[0x55, 0xaa]).in_at_least(0x4_0000);
        let mut space = ConfigSpace::new(&Identity {
            rom: Some(rom),
            ..Identity::default()
        });
        space.write(0x30, &0xffff_f800u32.to_le_bytes());
        assert_eq!(read32(&space, 0x30), 0xfffc_0000);
        space.write(0x30, &0xffff_ffffu32.to_le_bytes());
        assert_eq!(read32(&space, 0x30), 0xfffc_0001);
        space.reset();
        assert_eq!(read32(&space, 0x30), 0);
    }

    #[test]
    fn read_only_bits_stay() {
        let mut space = space();
        for at in 0..CONFIG_BYTES {
            space.write(at, &[0xff]);
        }
        assert_eq!(read32(&space, 0x00), 0x100e_8086);
        assert_eq!(read32(&space, 0x04), 0x0230_0557);
        assert_eq!(read32(&space, 0x3c), 0x0000_01ff);
        space.reset();
        assert_eq!(read32(&space, 0x04), 0x0230_0000);
    }

    #[test]
    fn the_capability_list_has_power_management() {
        let mut space = space();
        assert_eq!(read32(&space, 0x34), 0xdc);
        assert_eq!(read32(&space, 0xdc), 0x4822_f001);
        assert!(space.is_on());
        space.write(0xe0, &[3]);
        assert!(!space.is_on());
    }

    #[test]
    fn a_power_state_that_is_not_there_is_discarded() {
        let mut space = space();
        for (written, state) in [(1, 0), (3, 3), (2, 3), (1, 3), (0, 0), (2, 0)] {
            space.write(0xe0, &[written, 1]);
            assert_eq!(read32(&space, 0xe0), 0x100 | state, "after {written}");
        }
    }

    #[test]
    fn msi_has_one_message_that_goes_anywhere() {
        let mut space = space();
        assert_eq!(read32(&space, 0xf0), 0x0080_0005);
        assert!(!space.is_msi_enabled());
        for at in 0xf0..0x100 {
            space.write(at, &[0xff]);
        }
        assert_eq!(read32(&space, 0xf0), 0x00f1_0005);
        assert_eq!(read32(&space, 0xf4), 0xffff_fffc);
        assert_eq!(read32(&space, 0xf8), 0xffff_ffff);
        assert_eq!(read32(&space, 0xfc), 0x0000_ffff);
        assert!(space.is_msi_enabled());
    }
}
