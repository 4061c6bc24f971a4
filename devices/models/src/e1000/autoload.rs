//! What the controller reads from its EEPROM by itself after a reset, and what it makes of it (sections 5.4 and 5.6).
//!
//! An EEPROM without a valid signature is not read any further: registers keep what a reset left in them, and no receive
//! address is valid. The identity in configuration space comes from the EEPROM as well, once, when the card gets power: a
//! VMM has looked at it by the time that a guest could change it.

use pci::{Bar, Capability, Identity, PowerCapabilities, regs::Regs};

use super::{
    Controller,
    eeprom::Eeprom,
    spec::{
        self,
        bits::{Ctrl, CtrlExt, Ledctl, Rah, Wuc},
        eeprom::{self as words, InitControl1, InitControl2, InitControl3},
        eeprom::{Leds, ManagementControl, Pins},
    },
};

/// Which reset it is that reads the EEPROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    PowerOn,
    /// CTRL.RST, which drivers of this controller know to read the EEPROM, or CTRL_EXT.EE_RST.
    Reset,
}

/// The word from which the controller learns whether there is anything in the EEPROM.
fn signed(eeprom: &Eeprom) -> Option<InitControl1> {
    let word = InitControl1::from_bits(eeprom.word(words::INIT_CONTROL_1));
    (word.signature() == 0b01).then_some(word)
}

/// Reads the EEPROM into the registers.
pub(super) fn load(regs: &mut Regs, eeprom: &Eeprom, occasion: Occasion) {
    let Some(init1) = signed(eeprom) else {
        return;
    };
    let init2 = InitControl2::from_bits(eeprom.word(words::INIT_CONTROL_2));
    let init3 = InitControl3::from_bits(eeprom.word(words::INIT_CONTROL_3));
    let management = ManagementControl::from_bits(eeprom.word(words::MANAGEMENT_CONTROL));
    let pins = Pins::from_bits(eeprom.word(words::PINS));
    let leds = Leds::from_bits(eeprom.word(words::LEDS));

    let [a, b, c, d, e, f] = eeprom.mac();
    let high = Rah::new()
        .with_address(u16::from_le_bytes([e, f]))
        .with_valid(true);
    regs.set(spec::RAL, u32::from_le_bytes([a, b, c, d]));
    regs.set(spec::RAH, high.into_bits());

    let mut ctrl = Ctrl::from_bits(regs.get(spec::CTRL))
        .with_full_duplex(init1.full_duplex())
        .with_force_speed(init1.force_speed())
        .with_detect_speed(init2.detect_speed())
        .with_advertise_d3cold(pins.advertise_d3cold())
        .with_manage_phy_power(pins.manage_phy_power());
    // Who wakes or manages a host that has not booted needs the link (section 13.4.1, SLU).
    if init3.apm() || management.smbus() {
        ctrl.set_set_link_up(true);
    }
    let mut extended = CtrlExt::from_bits(regs.get(spec::CTRL_EXT))
        .with_invert_power_state_0(init1.invert_power_state_0())
        .with_invert_power_state_1(init1.invert_power_state_1());
    if occasion == Occasion::PowerOn {
        ctrl.set_pin_outputs(pins.low_outputs());
        extended.set_pin_outputs(pins.high_outputs());
    }
    // What is not an output reads the pin, to which nothing is connected.
    ctrl.set_pins(pins.low() & ctrl.pin_outputs());
    extended.set_pins(pins.high() & extended.pin_outputs());
    regs.set(spec::CTRL, ctrl.into_bits());
    regs.set(spec::CTRL_EXT, extended.into_bits());

    let ledctl = Ledctl::from_bits(regs.get(spec::LEDCTL))
        .with_led0(leds.led0())
        .with_led2(leds.led2());
    regs.set(spec::LEDCTL, ledctl.into_bits() & spec::LEDCTL_USED);
    let manc = u32::from(management.into_bits()) & spec::MANC_IN_EEPROM;
    regs.set(spec::MANC, manc);
    let wuc = Wuc::from_bits(regs.get(spec::WUC))
        .with_apm_enable(init3.apm())
        .with_assert_pme_on_apm(init2.apm_pme());
    regs.set(spec::WUC, wuc.into_bits());
    load_addresses(regs, eeprom, management);
}

/// The addresses of sections 5.6.27 and 5.6.28, where they are valid.
fn load_addresses(regs: &mut Regs, eeprom: &Eeprom, management: ManagementControl) {
    let pair = |first| u32::from(eeprom.word(first + 1)) << 16 | u32::from(eeprom.word(first));
    let mut valid = regs.get(spec::IPAV) & !(spec::IPAV_V40 | spec::IPAV_V60);
    if management.ipv4_valid() {
        valid |= spec::IPAV_V40;
        regs.set(spec::IP4AT, pair(words::IPV4_ADDRESS));
    }
    if management.ipv6_valid() {
        valid |= spec::IPAV_V60;
        for index in 0..4 {
            let word = pair(words::IPV6_ADDRESS + 2 * index as usize);
            regs.set(spec::IP6AT + 4 * index, word);
        }
    }
    regs.set(spec::IPAV, valid);
}

const MEMORY: u32 = spec::MEMORY_BAR_BYTES;
const IO: Bar = Bar::Io {
    size_bytes: spec::IO_BAR_BYTES,
};
/// The registers of a card on a bus of 32 bits. The Flash, which there is none of, would lie between the two (table 4-2).
pub(crate) const BARS: [Option<Bar>; 6] = [
    Some(Bar::Memory { size_bytes: MEMORY }),
    None,
    Some(IO),
    None,
    None,
    None,
];
const BARS_64: [Option<Bar>; 6] = [
    Some(Bar::Memory64 { size_bytes: MEMORY }),
    None,
    None,
    None,
    Some(IO),
    None,
];

/// Section 6.3.3.3, for a card without auxiliary power.
fn power() -> PowerCapabilities {
    PowerCapabilities::new()
        .with_needs_initialization(true)
        .with_pme_from_d0(true)
        .with_pme_from_d3hot(true)
}

impl Controller {
    /// Reads the EEPROM again, as after a reset.
    pub(super) fn load_eeprom(&mut self, occasion: Occasion) {
        load(&mut self.regs, &self.eeprom, occasion);
    }

    /// What configuration space says of the card, sections 4.1 and 5.6.8 to 5.6.11.
    pub(super) fn identify(&self) -> Identity {
        let mut identity = Identity {
            vendor_id: crate::E1000.vendor_id,
            device_id: self.board.chip.device_id(),
            subsystem_vendor_id: crate::E1000.vendor_id,
            subsystem_id: words::SUBSYSTEM_ID_DEFAULT,
            revision_id: self.board.revision_id,
            class_code: crate::E1000.class_code,
            min_gnt: 0xff,
            max_lat: 0,
            interrupt_pin: true,
            bars: [None; 6],
            rom: self.rom.clone(),
            capabilities: vec![(0xdc, Capability::PowerManagement(power()))],
        };
        let init1 = signed(&self.eeprom).unwrap_or_default();
        if init1.load_ids() {
            identity.vendor_id = self.eeprom.word(words::VENDOR_ID);
            identity.device_id = self.eeprom.word(words::DEVICE_ID);
        }
        if init1.load_subsystem_ids() {
            identity.subsystem_vendor_id = self.eeprom.word(words::SUBSYSTEM_VENDOR_ID);
            identity.subsystem_id = self.eeprom.word(words::SUBSYSTEM_ID);
        }
        let init2 = InitControl2::from_bits(self.eeprom.word(words::INIT_CONTROL_2));
        if !init2.msi_disable() {
            identity.capabilities.push((0xf0, Capability::Msi));
        }
        identity.bars = if init1.bars_32() { BARS } else { BARS_64 };
        identity
    }
}
