//! What the API answers: of each object that what is looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::super::said;
use super::http::Answer;

/// `vmm.ping`.
#[derive(Debug, Deserialize)]
pub(super) struct Ping {
    /// Such as `v51.1.0`, with more behind it in a build of one's own.
    pub(super) version: String,
    /// The VMM's own pid, as its namespace has it. Old ones do not tell.
    pub(super) pid: Option<i64>,
}

/// `vm.info`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Info {
    pub(super) state: String,
    pub(super) config: Config,
    /// Only while the machine is on.
    pub(super) device_tree: Option<BTreeMap<String, Node>>,
}

/// What the machine is made of when it is turned on.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    pub(super) memory: Memory,
    pub(super) platform: Option<Platform>,
    pub(super) user_devices: Option<Vec<UserDevice>>,
    /// The host's devices, passed through.
    pub(super) devices: Option<Vec<Passed>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Memory {
    pub(super) size: u64,
    #[serde(default)]
    pub(super) shared: bool,
    #[serde(default)]
    pub(super) hugepages: bool,
    pub(super) zones: Option<Vec<Zone>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Zone {
    pub(super) id: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) shared: bool,
    #[serde(default)]
    pub(super) hugepages: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Platform {
    pub(super) num_pci_segments: Option<u16>,
    /// Those behind the virtual IOMMU.
    pub(super) iommu_segments: Option<Vec<u16>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct UserDevice {
    pub(super) id: Option<String>,
    pub(super) socket: PathBuf,
    #[serde(default)]
    pub(super) pci_segment: u16,
}

#[derive(Debug, Deserialize)]
pub(super) struct Passed {
    pub(super) id: Option<String>,
}

/// A device of a machine that is on.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Node {
    #[serde(default)]
    pub(super) children: Vec<String>,
    pub(super) pci_bdf: Option<String>,
}

/// A PCI address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) segment: u16,
    bus: u8,
    pub(super) device: u8,
    function: u8,
}

impl Address {
    /// Of `0000:00:05.0`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (segment, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let number = |text: &str| u8::from_str_radix(text, 16).ok();
        Some(Self {
            segment: u16::from_str_radix(segment, 16).ok()?,
            bus: number(bus)?,
            device: number(device).filter(|it| *it < 32)?,
            function: number(function).filter(|it| *it < 8)?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            segment,
            bus,
            device,
            function,
        } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

/// A version's first two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Version {
    /// Of `v51.1.0-12-gabcdef`; nothing of a build that has no number.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut numbers = text.split(|it: char| !it.is_ascii_digit());
        let mut number = || numbers.next()?.parse().ok();
        Some(Self {
            major: number()?,
            minor: number()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why it does not do what it was asked for, in its own words: a list from the outermost cause to the innermost, or text.
pub(super) fn refusal(answer: &Answer) -> String {
    if let Ok(causes) = serde_json::from_slice::<Vec<String>>(&answer.body) {
        return said::text(&causes.join(": "));
    }
    match String::from_utf8_lossy(&answer.body).trim() {
        "" => format!("HTTP status {}", answer.status),
        text => said::text(text),
    }
}

/// Whether it says that there is no machine yet.
pub(super) fn is_without_machine(answer: &Answer) -> bool {
    let said = refusal(answer).to_lowercase();
    said.contains("not created") || said.contains("notcreated")
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    fn refused(body: &str) -> Answer {
        Answer {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: body.to_owned().into(),
        }
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let address = Address::parse("0001:00:1f.7").unwrap();
        assert_eq!((address.segment, address.device), (1, 31));
        assert_eq!(address.to_string(), "0001:00:1f.7");
        for text in [
            "",
            "0000:00:05",
            "0:0:20.0",
            "0:0:0.8",
            "x:0:0.0",
            "00:05.0",
        ] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("v9.1") < version("51.1.0"));
        assert_eq!(version("v51.1-3-gabc-dirty"), version("51.1.0"));
        for text in ["", "v", "main", "7"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_refusal_is_told_from_the_outermost_cause_to_the_innermost() {
        let told = refusal(&refused(r#"["Error from API", "no such device"]"#));
        assert_eq!(told, "Error from API: no such device");
        assert_eq!(refusal(&refused("plain\ntext")), "plain text");
        let empty = refusal(&refused(" "));
        assert_eq!(empty, "HTTP status 500 Internal Server Error");
        assert!(is_without_machine(&refused(r#"["VM is not created"]"#)));
        assert!(!is_without_machine(&refused("no")));
    }
}
