//! What an operator chooses for an e1000. The documentation of these types is the help text of `vfuctl create e1000`.

use std::{borrow::Cow, fmt, path::PathBuf, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Chip;

/// Configuration of a network card with Intel's 82540EM, or a chip near to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// MAC address of the card, for example 52:54:00:12:34:56. Without it, a locally administered one is made up,
    /// the same one whenever this host serves a device on the same socket path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "MacAddress")]
    pub mac: Option<MacAddress>,
    /// Which controller of the family the card has, for drivers that know only one of them.
    #[serde(default)]
    pub chip: Chip,
    /// PCI Subsystem Vendor ID: who made the card. By default Intel, 0x8086.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16")]
    pub subsystem_vendor_id: Option<u16>,
    /// PCI Subsystem ID: which card of that maker it is. By default Intel's own with that chip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16")]
    pub subsystem_id: Option<u16>,
    /// PCI Revision ID: the stepping of the chip. By default one that was sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u8")]
    pub revision_id: Option<u8>,
    /// Path of an expansion ROM, which lets a guest boot from the network: iPXE's for this card is pxe-e1000.rom (BIOS) or
    /// efi-e1000.rom (BIOS and UEFI) in Debian's package ipxe-qemu. It is read when the device starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PathBuf")]
    pub rom_file: Option<PathBuf>,
    /// Whether the card's cable is plugged in. The guest sees a cable that is pulled as it would on a card: it has no
    /// link, and what is sent to it meanwhile is lost.
    #[serde(default)]
    #[schemars(extend("x-vfu-mutable" = true))]
    pub link: Link,
    /// Where the card's frames go; by default nowhere.
    #[serde(default)]
    pub net: net::Config,
}

/// Whether a cable is plugged in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// It is.
    #[default]
    Up,
    /// It is not.
    Down,
}

/// The MAC address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

/// Why a text is not a [`MacAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacAddressError {
    /// It is no address at all.
    #[error("not a MAC address: write six bytes in hexadecimal, as in 52:54:00:12:34:56")]
    Form,
    /// All bits are zero.
    #[error("the MAC address of a card can't be all zeros")]
    Zero,
    /// The address is that of a group.
    #[error(
        "the MAC address of a card can't be a multicast or broadcast address: make its first byte even"
    )]
    Group,
}

impl MacAddress {
    const PATTERN: &str = "^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$";

    /// A locally administered address.
    pub(super) fn made_up(crate::Seed(seed): crate::Seed) -> Self {
        let [first, b, c, d, e, f, ..] = seed;
        // IEEE 802: bit 0 of the first byte is for groups, bit 1 for addresses nobody was assigned.
        Self([first & !1 | 2, b, c, d, e, f])
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacAddressError::Form)?;
            let is_hexadecimal = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            if !is_hexadecimal {
                return Err(MacAddressError::Form);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddressError::Form)?;
        }
        match (parts.next(), bytes) {
            (Some(_), _) => Err(MacAddressError::Form),
            (None, [0, 0, 0, 0, 0, 0]) => Err(MacAddressError::Zero),
            (None, [first, ..]) if first & 1 == 1 => Err(MacAddressError::Group),
            (None, bytes) => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for MacAddress {
    fn schema_name() -> Cow<'static, str> {
        "MacAddress".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": Self::PATTERN})
    }
}
