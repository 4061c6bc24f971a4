//! The EEPROM's words that the controller reads by itself, section 5.6.

use bitfield_struct::bitfield;

/// The first of three with the address.
pub(in crate::e1000) const ADDRESS: usize = 0x00;
pub(in crate::e1000) const COMPATIBILITY: usize = 0x03;
/// The first of three.
pub(in crate::e1000) const COMPATIBILITY_2: usize = 0x05;
pub(in crate::e1000) const INIT_CONTROL_1: usize = 0x0a;
pub(in crate::e1000) const SUBSYSTEM_ID: usize = 0x0b;
pub(in crate::e1000) const SUBSYSTEM_VENDOR_ID: usize = 0x0c;
pub(in crate::e1000) const DEVICE_ID: usize = 0x0d;
pub(in crate::e1000) const VENDOR_ID: usize = 0x0e;
pub(in crate::e1000) const INIT_CONTROL_2: usize = 0x0f;
pub(in crate::e1000) const PINS: usize = 0x20;
pub(in crate::e1000) const CIRCUIT_CONTROL: usize = 0x21;
pub(in crate::e1000) const POWER: usize = 0x22;
pub(in crate::e1000) const MANAGEMENT_CONTROL: usize = 0x23;
pub(in crate::e1000) const INIT_CONTROL_3: usize = 0x24;
/// The first of two.
pub(in crate::e1000) const IPV4_ADDRESS: usize = 0x25;
/// The first of eight.
pub(in crate::e1000) const IPV6_ADDRESS: usize = 0x27;
pub(in crate::e1000) const LEDS: usize = 0x2f;
pub(in crate::e1000) const CHECKSUM: usize = 0x3f;

/// Subsystem ID of a card whose EEPROM has none, section 4.1.
pub(in crate::e1000) const SUBSYSTEM_ID_DEFAULT: u16 = 0x1008;

/// Initialization Control Word 1, section 5.6.7.
#[bitfield(u16)]
pub(in crate::e1000) struct InitControl1 {
    /// The vendor and the device id are in the EEPROM too.
    pub load_ids: bool,
    pub load_subsystem_ids: bool,
    __: bool,
    pub power_management: bool,
    #[bits(4)]
    __: u8,
    /// IPS1, CTRL_EXT bit 16.
    pub invert_power_state_1: bool,
    __: bool,
    pub full_duplex: bool,
    pub force_speed: bool,
    /// IPS0, CTRL_EXT bit 14.
    pub invert_power_state_0: bool,
    /// Base addresses have 32 bits; 0: 64.
    pub bars_32: bool,
    /// 1: what is in the EEPROM is valid.
    #[bits(2)]
    pub signature: u8,
}

/// Initialization Control Word 2, section 5.6.12.
#[bitfield(u16)]
pub(in crate::e1000) struct InitControl2 {
    #[bits(7)]
    __: u8,
    pub msi_disable: bool,
    #[bits(6)]
    __: u8,
    /// ASDE.
    pub detect_speed: bool,
    /// APM PME# Enable.
    pub apm_pme: bool,
}

/// Software Defined Pins Control, section 5.6.17.
#[bitfield(u16)]
pub(in crate::e1000) struct Pins {
    /// What SDP0 and SDP1 put out.
    #[bits(2)]
    pub low: u8,
    pub advertise_d3cold: bool,
    pub manage_phy_power: bool,
    #[bits(2)]
    __: u8,
    /// What SDP6 and SDP7 put out.
    #[bits(2)]
    pub high: u8,
    /// Which of SDP0 and SDP1 are outputs.
    #[bits(2)]
    pub low_outputs: u8,
    #[bits(4)]
    __: u8,
    /// Which of SDP6 and SDP7 are outputs.
    #[bits(2)]
    pub high_outputs: u8,
}

/// Management Control, section 5.6.24.
#[bitfield(u16)]
pub(in crate::e1000) struct ManagementControl {
    pub smbus: bool,
    #[bits(5)]
    __: u8,
    pub ipv4_valid: bool,
    pub ipv6_valid: bool,
    #[bits(8)]
    __: u8,
}

/// Initialization Control 3, section 5.6.26, with the SMBus address of section 5.6.25 in its low byte.
#[bitfield(u16)]
pub(in crate::e1000) struct InitControl3 {
    pub smbus_address: u8,
    #[bits(2)]
    __: u8,
    /// APM Enable.
    pub apm: bool,
    pub flash_disable: bool,
    #[bits(4)]
    __: u8,
}

/// LED Configuration Defaults, section 5.6.29: what LEDCTL has for LED0 and LED2.
#[bitfield(u16)]
pub(in crate::e1000) struct Leds {
    pub led0: u8,
    pub led2: u8,
}
