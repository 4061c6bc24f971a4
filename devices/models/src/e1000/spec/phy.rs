//! The PHY's registers, section 13.4.7.1: IEEE 802.3 clause 22 and 40, and what Marvell adds. Data only.

use bitfield_struct::bitfield;

/// The address at which the PHY answers.
pub(in crate::e1000) const ADDRESS: u8 = 1;

pub(in crate::e1000) const CONTROL: u8 = 0;
pub(in crate::e1000) const STATUS: u8 = 1;
/// The first of two identifier registers: the maker's OUI.
pub(in crate::e1000) const ID1: u8 = 2;
/// The second: the rest of the OUI, the model, and the revision.
pub(in crate::e1000) const ID2: u8 = 3;
pub(in crate::e1000) const ADVERTISEMENT: u8 = 4;
pub(in crate::e1000) const PARTNER_ABILITY: u8 = 5;
pub(in crate::e1000) const EXPANSION: u8 = 6;
pub(in crate::e1000) const NEXT_PAGE: u8 = 7;
pub(in crate::e1000) const GIGABIT_CONTROL: u8 = 9;
pub(in crate::e1000) const GIGABIT_STATUS: u8 = 10;
pub(in crate::e1000) const EXTENDED_STATUS: u8 = 15;
pub(in crate::e1000) const SPECIFIC_CONTROL: u8 = 16;
pub(in crate::e1000) const SPECIFIC_STATUS: u8 = 17;
pub(in crate::e1000) const INTERRUPT_ENABLE: u8 = 18;
pub(in crate::e1000) const INTERRUPT_STATUS: u8 = 19;
pub(in crate::e1000) const EXTENDED_SPECIFIC_CONTROL: u8 = 20;
/// Selects what is behind the next one.
pub(in crate::e1000) const WINDOW_SELECT: u8 = 29;
pub(in crate::e1000) const WINDOW: u8 = 30;

/// A register's declaration.
pub(in crate::e1000) struct Register {
    pub number: u8,
    /// After power-on, and a reset by its pin.
    pub power_on: u16,
    /// What software can change.
    pub writable: u16,
    /// What a reset by software (Control, bit 15) sets to its value after power-on; the rest stays.
    pub reset: u16,
}

const fn register(number: u8, power_on: u16, writable: u16, reset: u16) -> Register {
    Register {
        number,
        power_on,
        writable,
        reset,
    }
}

/// Every register that keeps a value; the others are made up when they are read, or not there.
pub(in crate::e1000) const REGISTERS: [Register; 11] = [
    register(CONTROL, 0x1140, 0x7dc0, 0x4c80),
    register(ID1, 0x0141, 0, 0),
    register(ADVERTISEMENT, 0x01e1, 0xbde0, 0),
    register(NEXT_PAGE, 0x2001, 0xb7ff, 0xffff),
    register(GIGABIT_CONTROL, 0x1e00, 0xff00, 0xe000),
    register(EXTENDED_STATUS, 0x3000, 0, 0),
    register(SPECIFIC_CONTROL, 0x0068, 0xffff, 0),
    register(INTERRUPT_ENABLE, 0, 0xffff, 0),
    register(INTERRUPT_STATUS, 0, 0, 0xffff),
    register(EXTENDED_SPECIFIC_CONTROL, 0x0d60, 0xffff, 0xf008),
    register(WINDOW_SELECT, 0, 0xffff, 0xffff),
];

/// The bits of Control that take effect only when the PHY begins anew, section 11.1.3.
pub(in crate::e1000) const CONTROL_LATCHED: u16 = 0x3140;
/// The bits of Extended PHY Specific Control about downshift, which the 88E1000 lacks, section 11.2.2.
pub(in crate::e1000) const DOWNSHIFT: u16 = 0x0f00;
/// What the PHY itself sets in Interrupt Status.
pub(in crate::e1000) const INTERRUPTS_USED: u16 = 0xfc00;

/// Control, register 0.
#[bitfield(u16)]
pub(in crate::e1000) struct Control {
    #[bits(6)]
    __: u8,
    pub speed_msb: bool,
    __: bool,
    pub full_duplex: bool,
    pub restart_autonegotiation: bool,
    pub isolate: bool,
    pub power_down: bool,
    pub autonegotiation: bool,
    pub speed_lsb: bool,
    pub loopback: bool,
    pub reset: bool,
}

impl Control {
    /// The speed that is selected, as in CTRL.SPEED.
    pub(in crate::e1000) fn speed(self) -> u8 {
        u8::from(self.speed_msb()) << 1 | u8::from(self.speed_lsb())
    }
}

/// Status, register 1.
#[bitfield(u16)]
pub(in crate::e1000) struct Status {
    /// 1: there are registers from 2 on.
    pub extended_capability: bool,
    __: bool,
    /// Latches low until read.
    pub link: bool,
    pub autonegotiation_able: bool,
    __: bool,
    pub autonegotiation_complete: bool,
    pub preamble_suppression: bool,
    __: bool,
    pub extended_status: bool,
    #[bits(2)]
    __: u8,
    pub half_duplex_10: bool,
    pub full_duplex_10: bool,
    pub half_duplex_100: bool,
    pub full_duplex_100: bool,
    __: bool,
}

/// What one side offers to the other, registers 4 and 5.
#[bitfield(u16)]
pub(in crate::e1000) struct Ability {
    /// 1: IEEE 802.3.
    #[bits(5)]
    pub selector: u8,
    pub half_duplex_10: bool,
    pub full_duplex_10: bool,
    pub half_duplex_100: bool,
    pub full_duplex_100: bool,
    __: bool,
    pub pause: bool,
    pub asymmetric_pause: bool,
    #[bits(2)]
    __: u8,
    pub acknowledge: bool,
    pub next_page: bool,
}

/// 1000BASE-T Control, register 9.
#[bitfield(u16)]
pub(in crate::e1000) struct GigabitControl {
    #[bits(8)]
    __: u8,
    pub half_duplex: bool,
    pub full_duplex: bool,
    pub multi_port: bool,
    pub master: bool,
    /// The bit before says which: otherwise it is negotiated.
    pub manual_master: bool,
    #[bits(3)]
    __: u8,
}

/// 1000BASE-T Status, register 10.
#[bitfield(u16)]
pub(in crate::e1000) struct GigabitStatus {
    #[bits(10)]
    __: u16,
    pub partner_half_duplex: bool,
    pub partner_full_duplex: bool,
    pub remote_receiver: bool,
    pub local_receiver: bool,
    pub master: bool,
    __: bool,
}

/// PHY Specific Status, register 17.
#[bitfield(u16)]
pub(in crate::e1000) struct SpecificStatus {
    #[bits(2)]
    __: u8,
    pub receive_pause: bool,
    pub transmit_pause: bool,
    #[bits(6)]
    __: u8,
    pub link: bool,
    pub resolved: bool,
    /// Latches high until read.
    pub page_received: bool,
    pub full_duplex: bool,
    /// As CTRL.SPEED.
    #[bits(2)]
    pub speed: u8,
}

/// Interrupt Enable and Interrupt Status, registers 18 and 19: what can happen here.
#[bitfield(u16)]
pub(in crate::e1000) struct Interrupts {
    #[bits(10)]
    __: u16,
    pub link_changed: bool,
    pub autonegotiation_completed: bool,
    pub page_received: bool,
    pub duplex_changed: bool,
    pub speed_changed: bool,
    pub autonegotiation_error: bool,
}
