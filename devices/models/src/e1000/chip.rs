//! The members of the family that a card can have: what drivers know them by, and what is on their boards.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Config, MacAddress, spec::eeprom::InitControl1};

/// The controller on the card, which decides what drivers take it for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Chip {
    /// Intel 82540EM, of the PRO/1000 MT Desktop Adapter (8086:100e).
    #[default]
    #[serde(rename = "82540em")]
    I82540em,
    /// Intel 82545EM, of the PRO/1000 MT Server Adapter (8086:100f).
    #[serde(rename = "82545em")]
    I82545em,
    /// Intel 82543GC, of the PRO/1000 T Server Adapter (8086:1004).
    #[serde(rename = "82543gc")]
    I82543gc,
}

impl Chip {
    pub(super) fn device_id(self) -> u16 {
        match self {
            Self::I82540em => crate::E1000.device_id,
            Self::I82545em => 0x100f,
            Self::I82543gc => 0x1004,
        }
    }

    /// The PHY is reached by pins of CTRL, and reset by one of CTRL_EXT.
    pub(super) fn has_mdio_pins(self) -> bool {
        self == Self::I82543gc
    }

    /// The EEPROM's pins are software's, who need not ask for them.
    pub(super) fn has_eeprom_pins(self) -> bool {
        self == Self::I82543gc
    }

    fn revision_id(self) -> u8 {
        match self {
            Self::I82540em | Self::I82543gc => 2,
            Self::I82545em => 1,
        }
    }

    /// Of Intel's own card.
    fn subsystem_id(self) -> u16 {
        match self {
            Self::I82540em => 0x001e,
            Self::I82545em => 0x1001,
            Self::I82543gc => 0x1004,
        }
    }

    /// What its EEPROM has in the word from which the controller learns what else to read (section 5.6.7).
    pub(super) fn init_control_1(self) -> InitControl1 {
        // Only the 82540EM needs FRCSPD, and is on a bus of 32 bits for certain.
        let desktop = self == Self::I82540em;
        InitControl1::new()
            .with_signature(0b01)
            .with_bars_32(self != Self::I82545em)
            .with_force_speed(desktop)
            .with_full_duplex(true)
            .with_power_management(true)
            .with_load_subsystem_ids(true)
    }
}

/// A card: a chip, and what was written into its EEPROM when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Board {
    pub(super) chip: Chip,
    pub(super) mac: MacAddress,
    pub(super) subsystem_vendor_id: u16,
    pub(super) subsystem_id: u16,
    pub(super) revision_id: u8,
}

impl Board {
    /// The card of a configuration.
    pub(super) fn new(config: &Config, seed: crate::Seed) -> Self {
        let mac = config.mac.unwrap_or_else(|| MacAddress::made_up(seed));
        let usual = Self::usual(config.chip, mac);
        Self {
            subsystem_vendor_id: config
                .subsystem_vendor_id
                .unwrap_or(usual.subsystem_vendor_id),
            subsystem_id: config.subsystem_id.unwrap_or(usual.subsystem_id),
            revision_id: config.revision_id.unwrap_or(usual.revision_id),
            ..usual
        }
    }

    fn usual(chip: Chip, mac: MacAddress) -> Self {
        Self {
            chip,
            mac,
            subsystem_vendor_id: crate::E1000.vendor_id,
            subsystem_id: chip.subsystem_id(),
            revision_id: chip.revision_id(),
        }
    }
}

/// Intel's own card with an 82540EM.
impl From<MacAddress> for Board {
    fn from(mac: MacAddress) -> Self {
        Self::usual(Chip::default(), mac)
    }
}
