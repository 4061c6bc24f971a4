//! One PCI function: a model behind its configuration space, as the regions and interrupts that VFIO knows.
//!
//! A function that was told not to run answers reads and configuration accesses, which change nothing outside it, and
//! does nothing else: that is how it is saved and loaded.

use std::{os::fd::BorrowedFd, time::Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use vfio_bindings::bindings::vfio as bindings;
use vfio_user::{IrqInfo, IrqKind, Lent, Region};

use crate::{
    Device, LoadError, Saved, UpdateError,
    bus::{Bus, Clock, Dma, ERROR, INTX, MSI},
    config::{CONFIG_BYTES, Capability, ConfigSpace},
    rom::Rom,
    saved::{self, Bytes},
    stats::Sink,
};

const BAR_COUNT: usize = 6;
/// The region of the expansion ROM.
const ROM: u32 = bindings::VFIO_PCI_ROM_REGION_INDEX;
/// The version of [`State`].
const FORMAT: u32 = 1;
/// A saved state that is longer is not looked at. Models keep well below it: what they hold is at most a few frames.
const MAX_STATE_BYTES: usize = 4 << 20;

/// The saved state of a function.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    format: u32,
    config: Bytes,
    device: Saved,
}

/// Accesses by message; what a client maps it reaches unseen.
#[derive(Clone, Copy, Debug, Default)]
struct Accesses {
    /// Of BARs and the expansion ROM.
    reads: u64,
    writes: u64,
    config_reads: u64,
    config_writes: u64,
}

/// The client can't be asked to let go of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client has not connected the interrupt by which it is asked to release the device")]
pub struct NoRequest;

/// A model with its configuration space: what a vfio-user session serves.
#[derive(Debug)]
pub struct Function<D> {
    device: D,
    config: ConfigSpace,
    rom: Option<Rom>,
    running: bool,
    /// The interrupt that is asserted was told by a message.
    message_sent: bool,
    /// Why the last state was not loaded, until somebody asks.
    refused: Option<LoadError>,
    /// The client was told of memory that is gone.
    error_told: bool,
    software_resets: u64,
    accesses: Accesses,
    dma: Dma,
    clock: Clock,
    regions: [Region; bindings::VFIO_PCI_NUM_REGIONS as usize],
    irqs: [IrqInfo; bindings::VFIO_PCI_NUM_IRQS as usize],
}

impl<D: Device> Function<D> {
    /// The function in its power-on state.
    #[must_use]
    pub fn new(device: D) -> Self {
        let identity = device.identity();
        let mut regions: [Region; _] = std::array::from_fn(|_| Region::new(0));
        for (region, bar) in regions.iter_mut().zip(identity.bars) {
            region.size_bytes = bar.map_or(0, |bar| u64::from(bar.size_bytes()));
        }
        regions[bindings::VFIO_PCI_CONFIG_REGION_INDEX as usize].size_bytes = CONFIG_BYTES as u64;
        if let Some(rom) = &identity.rom {
            let region = &mut regions[ROM as usize];
            region.size_bytes = rom.size_bytes().into();
            region.access.write = false;
        }
        let mut irqs = [IrqInfo::default(); _];
        irqs[INTX as usize] = IrqInfo {
            count: identity.interrupt_pin.into(),
            kind: IrqKind::Level,
        };
        irqs[MSI as usize].count = identity
            .capabilities
            .iter()
            .filter(|(_, capability)| *capability == Capability::Msi)
            .count() as u32;
        // The error interrupt, and the one that asks the client to let go of the device.
        for index in [ERROR, bindings::VFIO_PCI_REQ_IRQ_INDEX] {
            irqs[index as usize] = IrqInfo {
                count: 1,
                kind: IrqKind::Notice,
            };
        }
        Self {
            config: ConfigSpace::new(&identity),
            device,
            rom: identity.rom,
            running: true,
            message_sent: false,
            refused: None,
            error_told: false,
            software_resets: 0,
            accesses: Accesses::default(),
            dma: Dma::default(),
            clock: Clock::default(),
            regions,
            irqs,
        }
    }

    /// The model's descriptor to wait for.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    /// When the model wants to run at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.device.deadline().filter(|_| self.running)
    }

    /// Whether the model may do anything: while it may not, its descriptor need not be waited for.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Lets the model do what has become possible.
    pub fn run(&mut self, lent: &mut Lent, now: Instant) {
        if self.running {
            let (device, mut bus) = self.split(lent);
            device.run(&mut bus, now);
        }
    }

    /// Sets what time it is for the model.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn set_clock(&mut self, now: Instant) {
        self.clock = Clock::At(now);
    }

    /// What time it is for the model.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Why a saved state was refused since the last call: the client is told an errno only.
    pub fn take_refusal(&mut self) -> Option<LoadError> {
        self.refused.take()
    }

    /// Asks the client to let go of the device, by the interrupt that is there for it: QEMU unplugs the device then.
    ///
    /// # Errors
    /// [`NoRequest`]: it would not hear of that.
    pub fn request_release(&self, lent: &mut Lent) -> Result<(), NoRequest> {
        let index = bindings::VFIO_PCI_REQ_IRQ_INDEX;
        if !lent.irqs.is_connected(index, 0) {
            return Err(NoRequest);
        }
        lent.irqs.trigger(index, 0);
        Ok(())
    }

    /// Brings the living device to this configuration; whether it runs makes no difference.
    ///
    /// # Errors
    /// [`UpdateError`], and nothing has changed.
    pub fn update(
        &mut self,
        lent: &mut Lent,
        config: &serde_json::Value,
    ) -> Result<(), UpdateError> {
        let (device, mut bus) = self.split(lent);
        device.update(&mut bus, config)
    }

    /// What the function has counted, and its model.
    pub fn stats(&self, sink: &mut dyn Sink) {
        sink.count("region.reads", "{access}", self.accesses.reads);
        sink.count("region.writes", "{access}", self.accesses.writes);
        sink.count("config.reads", "{access}", self.accesses.config_reads);
        sink.count("config.writes", "{access}", self.accesses.config_writes);
        sink.count("dma.read_bytes", "By", self.dma.read_bytes);
        sink.count("dma.written_bytes", "By", self.dma.written_bytes);
        self.device.stats(sink);
    }

    /// Everything by which a driver could tell this function from one in its power-on state.
    fn state(&self) -> State {
        let Self {
            device,
            config,
            // Whoever loads the state says when it runs, and a message is sent again then.
            running: _,
            message_sent: _,
            // What this process has seen, and told.
            refused: _,
            error_told: _,
            software_resets: _,
            accesses: _,
            dma: _,
            clock,
            // What follows from the model's identity.
            rom: _,
            regions: _,
            irqs: _,
        } = self;
        State {
            format: FORMAT,
            config: config.save(),
            device: device.save(clock.now()),
        }
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), LoadError> {
        if state.len() > MAX_STATE_BYTES {
            let problem = format!("{} bytes are more than {MAX_STATE_BYTES}", state.len());
            return Err(LoadError::new("", problem));
        }
        let State {
            format,
            config,
            device,
        } = saved::parse(state)?;
        if format != FORMAT {
            let problem = format!("is {format}; {FORMAT} is known");
            return Err(LoadError::new("format", problem));
        }
        let config = self.config.check(&config)?;
        let loaded = self.device.load(&device, self.clock.now());
        loaded.map_err(|error| error.within("device"))?;
        self.config.load(config);
        Ok(())
    }

    /// How often the guest's driver reset the device through its registers.
    #[must_use]
    pub fn software_resets(&self) -> u64 {
        self.software_resets
    }

    pub(crate) fn split<'a>(&'a mut self, lent: &'a mut Lent) -> (&'a mut D, Bus<'a>) {
        let Self {
            device,
            config,
            software_resets,
            dma,
            running,
            message_sent,
            error_told,
            clock,
            ..
        } = self;
        (
            device,
            Bus {
                lent,
                config,
                software_resets,
                dma,
                running: *running,
                message_sent,
                error_told,
                clock: *clock,
            },
        )
    }

    fn write_config(&mut self, lent: &mut Lent, offset: usize, data: &[u8]) {
        let was_on = self.config.is_on();
        self.config.write(offset, data);
        let is_on = self.config.is_on();
        let (device, mut bus) = self.split(lent);
        if is_on && !was_on {
            // PCI Power Management 1.1, 5.4.1: a function leaves D3hot through a reset of what it does inside.
            bus.forget_interrupt();
            device.reset(&mut bus);
        }
        bus.update_interrupt();
    }

    /// The BAR that a region is, if it answers now: in D0 with its kind of access enabled in Command or not, since a
    /// client decodes addresses itself and asks only for what its guest mapped.
    fn bar(&self, region: u32) -> Option<usize> {
        usize::try_from(region)
            .ok()
            .filter(|bar| *bar < BAR_COUNT && self.config.is_on())
    }
}

impl<D: Device> vfio_user::Device for Function<D> {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }

    fn read(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        if region == bindings::VFIO_PCI_CONFIG_REGION_INDEX {
            self.accesses.config_reads += 1;
            self.config
                .read(usize::try_from(offset).map_err(|_| Errno::EINVAL)?, data);
            return Ok(());
        }
        self.accesses.reads += 1;
        if let Some(bar) = self.bar(region) {
            let (device, mut bus) = self.split(lent);
            device.read(&mut bus, bar, offset, data);
        } else if let Some(rom) = self
            .rom
            .as_ref()
            .filter(|_| region == ROM && self.config.is_on())
        {
            rom.read(offset, data);
        } else {
            // Nobody answers: master abort.
            data.fill(0xff);
        }
        Ok(())
    }

    fn write(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        if region == bindings::VFIO_PCI_CONFIG_REGION_INDEX {
            self.accesses.config_writes += 1;
            self.write_config(
                lent,
                usize::try_from(offset).map_err(|_| Errno::EINVAL)?,
                data,
            );
            return Ok(());
        }
        self.accesses.writes += 1;
        if !self.running {
            return Err(Errno::EBUSY);
        } else if let Some(bar) = self.bar(region) {
            let (device, mut bus) = self.split(lent);
            device.write(&mut bus, bar, offset, data);
        }
        Ok(())
    }

    fn end_batch(&mut self, lent: &mut Lent) {
        let (device, mut bus) = self.split(lent);
        device.end_batch(&mut bus);
    }

    fn reset(&mut self, lent: &mut Lent) {
        self.running = true;
        self.error_told = false;
        self.config.reset();
        let (device, mut bus) = self.split(lent);
        bus.forget_interrupt();
        device.reset(&mut bus);
    }

    fn migration(&mut self) -> Option<&mut dyn vfio_user::Migration> {
        Some(self)
    }
}

impl<D: Device> vfio_user::Migration for Function<D> {
    fn set_running(&mut self, lent: &mut Lent, running: bool) {
        self.running = running;
        // An interrupt that is pending is signalled again where the function goes on.
        let (_, mut bus) = self.split(lent);
        bus.update_interrupt();
    }

    fn save(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(serde_json::to_vec(&self.state()).expect("plain structures are JSON"))
    }

    fn load(&mut self, _lent: &mut Lent, state: &[u8]) -> Result<(), Errno> {
        self.load_state(state).map_err(|error| {
            self.refused = Some(error);
            Errno::EINVAL
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::eventfd::{EfdFlags, EventFd};
    use vfio_user::{Device as _, IrqAction, Irqs};

    use super::*;
    use crate::{Bar, Capability, Identity, PowerCapabilities, testing::Guest};

    /// Four bytes that keep what is written. A one in the first raises the line; bit 7 of it copies the second to guest
    /// memory at 0x100.
    struct Scratch([u8; 4]);

    impl Device for Scratch {
        fn identity(&self) -> Identity {
            let mut bars = [None; 6];
            bars[0] = Some(Bar::Memory { size_bytes: 16 });
            Identity {
                interrupt_pin: true,
                bars,
                rom: Some(Rom::of(&[0x55, 0xaa, 1])),
                capabilities: vec![
                    (0x40, Capability::PowerManagement(PowerCapabilities::new())),
                    (0x50, Capability::Msi),
                ],
                ..Identity::default()
            }
        }
        fn read(&mut self, _: &mut Bus<'_>, _: usize, offset: u64, data: &mut [u8]) {
            data.fill(self.0[offset as usize % 4]);
        }
        fn write(&mut self, bus: &mut Bus<'_>, _: usize, offset: u64, data: &[u8]) {
            self.0[offset as usize % 4] = data[0];
            bus.set_interrupt(self.0[0] & 1 == 1);
            if self.0[0] & 0x80 != 0 && bus.write(0x100, &self.0[1..2]).is_err() {
                self.0[3] = 0xee;
            }
        }
        fn reset(&mut self, _: &mut Bus<'_>) {
            self.0 = [0; 4];
        }
        fn save(&self, _: Instant) -> Saved {
            Saved::new("scratch", 1, &self.0)
        }
        fn load(&mut self, saved: &Saved, _: Instant) -> Result<(), LoadError> {
            self.0 = saved.state("scratch", 1)?;
            Ok(())
        }
        fn deadline(&self) -> Option<Instant> {
            Some(Instant::now())
        }
        fn run(&mut self, _: &mut Bus<'_>, _: Instant) {
            self.0[3] = 0xdd;
        }
    }

    fn byte(guest: &mut Guest<Scratch>, offset: u64) -> u8 {
        let mut data = [0];
        guest.read(0, offset, &mut data);
        data[0]
    }

    #[test]
    fn a_function_in_d3hot_is_silent_and_leaves_it_through_a_reset() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 0, &[1]);
        assert!(guest.interrupted());
        guest.config_write(0x44, &[3]);
        assert!(guest.interrupted(), "the one from before");
        assert!(!guest.interrupted());
        assert_eq!(byte(&mut guest, 0), 0xff);
        guest.write(0, 2, &[7]);
        guest.config_write(0x44, &[0]);
        assert!(!guest.interrupted());
        assert_eq!((byte(&mut guest, 0), byte(&mut guest, 2)), (0, 0));
    }

    #[test]
    fn the_expansion_rom_is_a_region_that_is_only_read() {
        let function = Function::new(Scratch([0; 4]));
        // VFIO_PCI_ROM_REGION_INDEX.
        let region = &function.regions()[6];
        assert_eq!(region.size_bytes, 2048);
        assert!(region.access.read && !region.access.write);
        let mut guest = Guest::new(Scratch([0; 4]));
        let mut bytes = [0; 4];
        guest.read(6, 0, &mut bytes);
        assert_eq!(bytes, [0x55, 0xaa, 1, 0xff]);
        guest.try_write(6, 0, &[0]).unwrap();
        guest.read(6, 2044, &mut bytes);
        assert_eq!(bytes, [0xff; 4]);
        guest.read(6, 0, &mut bytes);
        assert_eq!(bytes[0], 0x55);
        guest.config_write(0x44, &[3]);
        guest.read(6, 0, &mut bytes);
        assert_eq!(bytes, [0xff; 4], "in D3hot nobody answers");
    }

    #[test]
    fn accesses_dma_and_interrupts_are_counted_where_they_happen() {
        let mut guest = Guest::new(Scratch([0; 4]));
        let before = guest.stats();
        assert_eq!((before["config.reads"], before["config.writes"]), (0, 1));
        byte(&mut guest, 0);
        byte(&mut guest, 1);
        guest.config_read(0, &mut [0; 4]);
        // The line, and a byte of DMA.
        guest.write(0, 0, &[0x81]);
        // No DMA without Bus Master Enable.
        guest.config_write(4, &[3]);
        guest.write(0, 0, &[0x80]);
        let mut counted = guest.stats();
        counted.retain(|_, value| *value != 0);
        let expected = [
            ("config.reads", 1),
            ("config.writes", 2),
            ("dma.written_bytes", 1),
            ("interrupts.intx", 1),
            ("region.reads", 2),
            ("region.writes", 2),
        ];
        assert_eq!(counted, expected.into());
        guest.reset();
        assert_eq!(guest.stats()["region.writes"], 2, "a reset is no beginning");
    }

    #[test]
    fn dma_needs_bus_master_enable() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 1, &[42]);
        guest.config_write(4, &[3]);
        guest.write(0, 0, &[0x80]);
        assert_eq!((guest.load(0x100, 1), byte(&mut guest, 3)), (vec![0], 0xee));
        guest.config_write(4, &[7]);
        guest.write(0, 0, &[0x80]);
        assert_eq!(guest.load(0x100, 1), [42]);
    }

    #[test]
    fn interrupt_disable_takes_effect_at_once_both_ways() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.config_write(5, &[4]);
        guest.write(0, 0, &[1]);
        assert!(!guest.interrupted());
        guest.config_write(5, &[0]);
        assert!(guest.interrupted());
        assert!(
            guest.interrupted(),
            "still asserted at the end of the interrupt"
        );
        guest.reset();
        assert!(guest.interrupted(), "the one from before");
        assert!(!guest.interrupted());
    }

    /// Writes of Message Control at 0x52.
    const MSI_OFF: [u8; 1] = [0x80];
    const MSI_ON: [u8; 1] = [0x81];

    #[test]
    fn with_msi_an_interrupt_is_one_message_and_no_line() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 0, &[1]);
        assert_eq!((guest.interrupted(), guest.messages()), (true, 0));
        guest.config_write(0x52, &MSI_ON);
        guest.interrupted();
        assert!(!guest.interrupted(), "the line is low");
        assert_eq!(guest.messages(), 1, "of the interrupt that was asserted");
        guest.write(0, 0, &[1]);
        assert_eq!(guest.messages(), 0, "it still is");
        guest.write(0, 0, &[0]);
        assert_eq!(guest.messages(), 0);
        guest.write(0, 0, &[1]);
        assert_eq!((guest.messages(), guest.interrupted()), (1, false));
        guest.config_write(0x52, &MSI_OFF);
        assert!(guest.interrupted(), "the line is up again");
    }

    #[test]
    fn interrupt_disable_is_of_the_line_only() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.config_write(5, &[4]);
        guest.config_write(0x52, &MSI_ON);
        guest.write(0, 0, &[1]);
        assert_eq!((guest.messages(), guest.interrupted()), (1, false));
        let mut status = [0];
        guest.config_read(6, &mut status);
        assert_eq!(status, [0x38], "Interrupt Status");
    }

    #[test]
    fn a_message_waits_for_bus_mastering() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.config_write(0x52, &MSI_ON);
        guest.config_write(4, &[3]);
        guest.write(0, 0, &[1]);
        assert_eq!(guest.messages(), 0);
        guest.config_write(4, &[7]);
        assert_eq!(guest.messages(), 1);
        guest.config_write(4, &[3]);
        guest.config_write(4, &[7]);
        assert_eq!(guest.messages(), 0, "sent once");
    }

    #[test]
    fn a_reset_forgets_the_message_that_nobody_could_be_sent() {
        for by_power in [false, true] {
            let mut guest = Guest::new(Scratch([0; 4]));
            guest.mask_messages(true);
            guest.config_write(0x52, &MSI_ON);
            guest.write(0, 0, &[1]);
            if by_power {
                guest.config_write(0x44, &[3]);
                guest.config_write(0x44, &[0]);
            } else {
                guest.reset();
            }
            guest.mask_messages(false);
            assert_eq!(guest.messages(), 0, "by power: {by_power}");
            guest.config_write(0x52, &MSI_ON);
            guest.write(0, 0, &[1]);
            assert_eq!(guest.messages(), 1);
        }
    }

    #[test]
    fn a_message_that_was_pending_is_sent_where_the_function_goes_on() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.config_write(0x52, &MSI_ON);
        guest.write(0, 0, &[1]);
        assert_eq!(guest.messages(), 1);
        let mut again = guest.moved_to(Scratch([0; 4])).unwrap();
        assert_eq!((again.messages(), again.interrupted()), (1, false));
        again.write(0, 0, &[0]);
        again.write(0, 0, &[1]);
        assert_eq!(again.messages(), 1);
    }

    #[test]
    fn a_function_has_the_interrupts_that_it_says() {
        let counts = |irqs: &[IrqInfo]| irqs.iter().map(|irq| irq.count).collect::<Vec<_>>();
        // INTx, MSI, MSI-X, the error, and the request to release the device.
        let function = Function::new(Scratch([0; 4]));
        assert_eq!(counts(function.irqs()), [1, 1, 0, 1, 1]);
        assert_eq!(function.irqs()[1].kind, IrqKind::Message);
    }

    #[test]
    fn memory_that_is_gone_is_told_once_until_a_reset() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.config_write(4, &[3]);
        guest.write(0, 0, &[0x80]);
        assert_eq!(guest.errors(), 0, "the driver's mistake");
        guest.config_write(4, &[7]);
        guest.lose_memory();
        for _ in 0..3 {
            guest.write(0, 3, &[0]);
            guest.write(0, 0, &[0x80]);
            assert_eq!(byte(&mut guest, 3), 0xee, "and the model has an error");
        }
        assert_eq!(guest.errors(), 1);
        guest.reset();
        guest.write(0, 0, &[0x80]);
        assert_eq!(guest.errors(), 1);
    }

    #[test]
    fn a_client_that_listens_is_asked_for_the_device() {
        let function = Function::new(Scratch([0; 4]));
        let mut lent = Lent::default();
        lent.irqs = Irqs::new(function.irqs());
        assert_eq!(function.request_release(&mut lent), Err(NoRequest));
        let asked = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let theirs = [Some(asked.as_fd().try_clone_to_owned().unwrap())];
        // VFIO_PCI_REQ_IRQ_INDEX.
        lent.irqs
            .connect(4, IrqAction::Trigger, 0, theirs.into_iter())
            .unwrap();
        assert_eq!(function.request_release(&mut lent), Ok(()));
        assert_eq!(asked.read(), Ok(1));
        let nobody = &mut Lent::default();
        assert_eq!(function.request_release(nobody), Err(NoRequest));
    }

    #[test]
    fn a_function_that_does_not_run_answers_reads_and_does_nothing() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 0, &[1]);
        guest.write(0, 1, &[42]);
        assert!(guest.interrupted());
        guest.set_running(false);
        assert!(guest.interrupted(), "the one from before");
        assert!(!guest.interrupted(), "the line is low");
        assert_eq!(guest.try_write(0, 1, &[0]), Err(Errno::EBUSY));
        assert_eq!(byte(&mut guest, 1), 42);
        guest.config_write(0x3c, &[9]);
        let mut line = [0];
        guest.config_read(0x3c, &mut line);
        assert_eq!(line, [9]);
        guest.run();
        assert_eq!((byte(&mut guest, 3), guest.deadline()), (0, None));
        guest.set_running(true);
        assert!(guest.interrupted(), "still asserted");
        assert!(guest.deadline().is_some());
        guest.run();
        assert_eq!(byte(&mut guest, 3), 0xdd);
        guest.set_running(false);
        guest.reset();
        guest.write(0, 1, &[1]);
    }

    #[test]
    fn a_model_that_says_nothing_of_it_can_change_nothing() {
        let mut guest = Guest::new(Scratch([0; 4]));
        let error = guest.update(&serde_json::json!({"a": 1})).unwrap_err();
        assert_eq!(error.field, None);
        assert!(error.message.contains("create it anew"), "{error}");
    }

    #[test]
    fn a_saved_function_goes_on_where_it_was() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 1, &[42]);
        guest.write(0, 0, &[1]);
        guest.config_write(0x3c, &[9]);
        let mut again = guest.moved_to(Scratch([0; 4])).unwrap();
        let mut line = [0];
        again.config_read(0x3c, &mut line);
        assert_eq!((byte(&mut again, 1), line), (42, [9]));
        assert!(again.interrupted(), "pending when it was saved");
        again.write(0, 0, &[0x80]);
        assert_eq!(again.load(0x100, 1), [42], "bus master is still enabled");
    }

    #[test]
    fn a_state_that_is_refused_changes_nothing() {
        let good = Guest::new(Scratch([1, 2, 3, 4])).save();
        let good: serde_json::Value = serde_json::from_slice(&good).unwrap();
        let mut guest = Guest::new(Scratch([5; 4]));
        let before = guest.save();
        let config = Bytes(vec![0; 256]);
        for (field, at, value) in [
            ("format", "/format", serde_json::json!(2)),
            ("config", "/config", serde_json::json!("AAAA")),
            ("config", "/config", serde_json::to_value(config).unwrap()),
            ("device.model", "/device/model", serde_json::json!("e1000")),
            ("device.version", "/device/version", serde_json::json!(2)),
            ("device.state[3]", "/device/state/3", serde_json::json!(256)),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(at).unwrap() = value;
            let error = guest.load_state(&serde_json::to_vec(&bad).unwrap());
            assert_eq!(error.unwrap_err().field(), field);
            assert_eq!(guest.save(), before);
        }
        for garbage in [&b""[..], b"{", b"[]", &[0xff; 64], &vec![b' '; 5 << 20]] {
            guest.load_state(garbage).unwrap_err();
        }
        guest
            .load_state(&serde_json::to_vec(&good).unwrap())
            .unwrap();
        assert_eq!(byte(&mut guest, 2), 3);
    }
}
