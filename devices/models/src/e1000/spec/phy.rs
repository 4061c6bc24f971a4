//! The PHY's registers: IEEE 802.3 clause 22, and what the manual's chapter 11 and table 13-10 add to it.

use bitfield_struct::bitfield;

/// The address at which the PHY answers.
pub(in crate::e1000) const ADDRESS: u8 = 1;

pub(in crate::e1000) const CONTROL: u8 = 0;
pub(in crate::e1000) const STATUS: u8 = 1;
/// The first of two identifier registers.
pub(in crate::e1000) const ID1: u8 = 2;
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
pub(in crate::e1000) const LED_CONTROL: u8 = 24;
pub(in crate::e1000) const PAGE: u8 = 29;
pub(in crate::e1000) const PAGE_DATA: u8 = 30;

/// The identifier by which drivers know the 82540EM's PHY: Marvell's OUI, model 2.
pub(in crate::e1000) const ID: [u16; 2] = [0x0141, 0x0c20];

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

/// PHY Specific Status, register 17.
#[bitfield(u16)]
pub(in crate::e1000) struct SpecificStatus {
    #[bits(10)]
    __: u16,
    pub link: bool,
    pub resolved: bool,
    __: bool,
    pub full_duplex: bool,
    /// As CTRL.SPEED.
    #[bits(2)]
    pub speed: u8,
}
