//! VERSION: which protocol the two sides speak, and within which limits.
//!
//! The reply holds only what the client proposed; what it left out has the specification's default on both sides. A limit
//! that is larger than ours is no mistake: ours holds then. A number may be written in any way that JSON has, as long as
//! it is whole and not negative.
//!
//! What clients say: QEMU proposes 0.0 and everything but `twin_socket`, cloud-hypervisor 0.1 with three of the numbers,
//! SPDK 0.1 with no data at all.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    memory::{MAX_BITMAP_BYTES, Memory},
    message::Version,
    socket::FDS_PER_PACKET,
};

/// The version that this server implements: 0.1.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;
/// A real client's JSON has a few hundred bytes.
const MAX_JSON_BYTES: usize = 4096;
/// Data in one message, both ways; the specification's default.
pub(crate) const MAX_TRANSFER_BYTES: usize = 1 << 20;
/// Descriptors that are taken in one message.
pub(crate) const MAX_MESSAGE_FDS: usize = 16;
/// The default, and the smallest page that can be mapped.
const PAGE_BYTES: u64 = 4096;

/// What the two sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Negotiated {
    /// The minor version that both speak.
    pub(crate) minor: u16,
    /// Descriptors that the client takes in one message.
    pub(crate) max_message_fds: usize,
    /// Data that the client takes or gives in one DMA_WRITE or DMA_READ.
    pub(crate) max_transfer_bytes: usize,
    /// Sizes of pages in DMA maps, or'ed together. Real clients' maps keep to none.
    pub(crate) page_sizes: u64,
    /// DMA maps at a time.
    pub(crate) max_dma_maps: usize,
    /// What a bit of a dirty bitmap stands for when the client does not say.
    pub(crate) migration_page_bytes: u64,
    /// Bytes of a dirty bitmap in one reply.
    pub(crate) max_bitmap_bytes: u64,
    /// Whether the client may send REGION_WRITE_MULTI.
    pub(crate) write_multiple: bool,
    /// Whether the client is asked for its memory on a socket of its own.
    pub(crate) twin_socket: bool,
    /// Whether the client is one of QEMU's, whose DMA_READ and DMA_WRITE are of a protocol before this.
    pub(crate) is_qemu: bool,
}

impl Default for Negotiated {
    /// What holds where neither side says anything.
    fn default() -> Self {
        Self {
            minor: MINOR,
            max_message_fds: 1,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            page_sizes: PAGE_BYTES,
            max_dma_maps: Memory::MAX_MAPS,
            migration_page_bytes: PAGE_BYTES,
            max_bitmap_bytes: MAX_BITMAP_BYTES,
            write_multiple: false,
            twin_socket: false,
            is_qemu: false,
        }
    }
}

impl Negotiated {
    /// # Errors
    /// `EINVAL` for what VERSION can't have led to.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        let can_be = self.minor <= MINOR
            && self.max_message_fds <= FDS_PER_PACKET
            && self.max_transfer_bytes <= MAX_TRANSFER_BYTES
            && self.max_dma_maps <= Memory::MAX_MAPS
            && self.page_sizes & (PAGE_BYTES - 1) == 0
            && self.page_sizes != 0
            && self.migration_page_bytes >= PAGE_BYTES
            && self.migration_page_bytes.is_power_of_two()
            && self.max_bitmap_bytes <= MAX_BITMAP_BYTES;
        if can_be { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

/// What a client proposes.
pub(crate) struct Proposal {
    negotiated: Negotiated,
    /// Our answer to each capability that we know and the client named.
    reply: Option<Map<String, Value>>,
    wants_migration: bool,
    /// Whether the client supports a twin socket and can be sent one.
    pub(crate) wants_twin_socket: bool,
}

impl Proposal {
    /// Reads a VERSION request's payload.
    ///
    /// # Errors
    /// `EPROTO` for another major version; `EINVAL` for data that is not what the specification says.
    pub(crate) fn parse(request: &[u8]) -> Result<Self, Errno> {
        let (version, json) = Version::read_from_prefix(request).map_err(|_| Errno::EINVAL)?;
        if version.major != MAJOR {
            return Err(Errno::EPROTO);
        }
        let mut proposal = Self {
            negotiated: Negotiated {
                minor: version.minor.min(MINOR),
                ..Negotiated::default()
            },
            reply: None,
            wants_migration: false,
            wants_twin_socket: false,
        };
        if let Some(capabilities) = parse_json(json)? {
            proposal.read(&capabilities)?;
        }
        Ok(proposal)
    }

    fn read(&mut self, proposed: &Map<String, Value>) -> Result<(), Errno> {
        let negotiated = &mut self.negotiated;
        let mut reply = Map::new();
        if let Some(theirs) = number(proposed, "max_msg_fds")? {
            negotiated.max_message_fds = to_usize(theirs).min(FDS_PER_PACKET);
            reply.insert("max_msg_fds".into(), MAX_MESSAGE_FDS.into());
        }
        if let Some(theirs) = number(proposed, "max_data_xfer_size")? {
            negotiated.max_transfer_bytes = to_usize(theirs).min(MAX_TRANSFER_BYTES);
            reply.insert("max_data_xfer_size".into(), MAX_TRANSFER_BYTES.into());
        }
        if let Some(theirs) = number(proposed, "max_dma_maps")? {
            negotiated.max_dma_maps = to_usize(theirs).min(Memory::MAX_MAPS);
            reply.insert("max_dma_maps".into(), negotiated.max_dma_maps.into());
        }
        if let Some(theirs) = number(proposed, "pgsizes")? {
            negotiated.page_sizes = theirs & !(PAGE_BYTES - 1);
            if negotiated.page_sizes == 0 {
                return Err(Errno::EINVAL);
            }
            reply.insert("pgsizes".into(), negotiated.page_sizes.into());
        }
        if let Some(theirs) = boolean(proposed, "write_multiple")? {
            negotiated.write_multiple = theirs;
            reply.insert("write_multiple".into(), theirs.into());
        }
        if let Some(theirs) = object(proposed, "migration")? {
            let mut ours = Map::new();
            if let Some(bytes) = number(theirs, "pgsize")? {
                if !bytes.is_power_of_two() {
                    return Err(Errno::EINVAL);
                }
                negotiated.migration_page_bytes = bytes.max(PAGE_BYTES);
                ours.insert("pgsize".into(), negotiated.migration_page_bytes.into());
            }
            if let Some(bytes) = number(theirs, "max_bitmap_size")? {
                negotiated.is_qemu = negotiated.minor == 0;
                negotiated.max_bitmap_bytes = bytes.min(MAX_BITMAP_BYTES);
                ours.insert("max_bitmap_size".into(), negotiated.max_bitmap_bytes.into());
            }
            self.wants_migration = true;
            reply.insert("migration".into(), ours.into());
        }
        if let Some(theirs) = object(proposed, "twin_socket")? {
            let supported = boolean(theirs, "supported")?.unwrap_or(false);
            self.wants_twin_socket = supported && negotiated.max_message_fds > 0;
            reply.insert("twin_socket".into(), json!({ "supported": false }));
        }
        self.reply = Some(reply);
        Ok(())
    }

    /// What is agreed on with a device that can be migrated or not, and the reply's payload. With `twin_socket`, that is the
    /// first descriptor which goes with the reply.
    pub(crate) fn agree(mut self, can_migrate: bool, twin_socket: bool) -> (Negotiated, Vec<u8>) {
        self.negotiated.twin_socket = twin_socket;
        let version = Version {
            major: MAJOR,
            minor: self.negotiated.minor,
        };
        let mut bytes = version.as_bytes().to_vec();
        if let Some(mut reply) = self.reply {
            if twin_socket {
                let twin = json!({ "supported": true, "fd_index": 0 });
                reply.insert("twin_socket".into(), twin);
            }
            if self.wants_migration && !can_migrate {
                reply.remove("migration");
            }
            let data = json!({ "capabilities": reply });
            bytes.extend_from_slice(data.to_string().as_bytes());
            bytes.push(0);
        }
        (self.negotiated, bytes)
    }
}

/// The capabilities object of the version data: `None` when there is no data.
fn parse_json(json: &[u8]) -> Result<Option<Map<String, Value>>, Errno> {
    let text = json.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > MAX_JSON_BYTES {
        return Err(Errno::EINVAL);
    }
    match serde_json::from_slice(text) {
        Ok(Value::Object(mut data)) => match data.remove("capabilities") {
            Some(Value::Object(capabilities)) => Ok(Some(capabilities)),
            None => Ok(Some(Map::new())),
            Some(_) => Err(Errno::EINVAL),
        },
        _ => Err(Errno::EINVAL),
    }
}

/// A whole number that is not negative; one that is larger than 64 bits is the largest.
fn number(object: &Map<String, Value>, name: &str) -> Result<Option<u64>, Errno> {
    let Some(value) = object.get(name) else {
        return Ok(None);
    };
    let whole = |float: &f64| *float >= 0.0 && float.fract() == 0.0;
    let number = value.as_u64();
    let number = number.or_else(|| value.as_f64().filter(whole).map(|float| float as u64));
    number.map(Some).ok_or(Errno::EINVAL)
}

fn boolean(object: &Map<String, Value>, name: &str) -> Result<Option<bool>, Errno> {
    let Some(value) = object.get(name) else {
        return Ok(None);
    };
    value.as_bool().map(Some).ok_or(Errno::EINVAL)
}

fn object<'a>(
    object: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Map<String, Value>>, Errno> {
    let Some(value) = object.get(name) else {
        return Ok(None);
    };
    value.as_object().map(Some).ok_or(Errno::EINVAL)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(major: u16, minor: u16, json: &str) -> Vec<u8> {
        [
            &major.to_le_bytes()[..],
            &minor.to_le_bytes(),
            json.as_bytes(),
        ]
        .concat()
    }

    /// What is agreed on, and our capabilities.
    fn agree(minor: u16, capabilities: &Value) -> (Negotiated, Value) {
        let text = json!({ "capabilities": capabilities }).to_string();
        let proposal = Proposal::parse(&request(0, minor, &text)).unwrap();
        let (negotiated, reply) = proposal.agree(true, false);
        let json = reply[4..].strip_suffix(&[0]).unwrap();
        let mut value: Value = serde_json::from_slice(json).unwrap();
        (negotiated, value["capabilities"].take())
    }

    fn errno(minor: u16, json: &str) -> Option<Errno> {
        Proposal::parse(&request(0, minor, json)).err()
    }

    #[test]
    fn qemu_is_answered_what_it_proposes_within_our_limits() {
        let (negotiated, reply) = agree(
            0,
            &json!({
                "migration": {"pgsize": 4096, "max_bitmap_size": 268_435_456},
                "max_msg_fds": 16, "max_data_xfer_size": 1_048_576, "pgsizes": 4096,
                "max_dma_maps": 65535, "write_multiple": true,
            }),
        );
        assert_eq!(
            reply,
            json!({
                "migration": {"pgsize": 4096, "max_bitmap_size": 8_388_608},
                "max_msg_fds": 16, "max_data_xfer_size": 1_048_576, "pgsizes": 4096,
                "max_dma_maps": 65535, "write_multiple": true,
            })
        );
        assert!(negotiated.is_qemu && negotiated.write_multiple);
        assert_eq!((negotiated.minor, negotiated.max_message_fds), (0, 16));
    }

    #[test]
    fn the_reply_is_a_subset_of_the_proposal() {
        let proposed = json!({"max_msg_fds": 8, "max_dma_maps": 1, "x": []});
        let (negotiated, reply) = agree(1, &proposed);
        assert_eq!(reply, json!({"max_msg_fds": 16, "max_dma_maps": 1}));
        let expected = Negotiated {
            max_message_fds: 8,
            max_dma_maps: 1,
            ..Negotiated::default()
        };
        assert_eq!(negotiated, expected);
        assert_eq!(agree(1, &json!({})), (Negotiated::default(), json!({})));
        let text = r#"{"capabilities":{"migration":{"pgsize":4096}}}"#;
        let proposal = Proposal::parse(&request(0, 1, text)).unwrap();
        let (_, reply) = proposal.agree(false, false);
        assert!(
            reply.ends_with(b"{\"capabilities\":{}}\0"),
            "a device that can't migrate"
        );
    }

    #[test]
    fn each_limit_is_the_smaller_one() {
        let (negotiated, reply) = agree(
            1,
            &json!({
                "max_data_xfer_size": 512, "max_msg_fds": 0, "max_dma_maps": 1e30,
                "pgsizes": 0x1_0000_1200_u64, "migration": {"pgsize": 1024, "max_bitmap_size": 8.0},
            }),
        );
        assert_eq!(
            reply,
            json!({
                "max_data_xfer_size": 1_048_576, "max_msg_fds": 16, "max_dma_maps": 65535,
                "pgsizes": 0x1_0000_1000_u64, "migration": {"pgsize": 4096, "max_bitmap_size": 8},
            })
        );
        assert_eq!(negotiated.max_transfer_bytes, 512);
        assert_eq!(negotiated.max_message_fds, 0);
        assert_eq!(negotiated.max_dma_maps, 65535);
        let (negotiated, _) = agree(1, &json!({"max_data_xfer_size": u64::MAX}));
        assert_eq!(negotiated.max_transfer_bytes, 1 << 20);
    }

    #[test]
    fn the_minor_version_is_the_smaller_one() {
        for (theirs, agreed) in [(0, 0), (1, 1), (9, 1), (u16::MAX, 1)] {
            let proposal = Proposal::parse(&request(0, theirs, "")).unwrap();
            let (negotiated, reply) = proposal.agree(true, false);
            assert_eq!(
                (negotiated.minor, &reply[..]),
                (agreed, &[0, 0, agreed as u8, 0][..])
            );
        }
        for major in [1, 2, u16::MAX] {
            let refused = Proposal::parse(&request(major, 0, "")).err();
            assert_eq!(refused, Some(Errno::EPROTO));
        }
    }

    #[test]
    fn the_terminator_is_optional() {
        for text in [
            "{}",
            "{}\0",
            "{}\0\0\0",
            "{\"capabilities\":{}}",
            " {} \0rest",
        ] {
            let proposal = Proposal::parse(&request(0, 1, text)).unwrap();
            let (_, reply) = proposal.agree(true, false);
            assert!(reply.ends_with(b"{\"capabilities\":{}}\0"), "{text:?}");
        }
        let proposal = Proposal::parse(&request(0, 1, "\0")).unwrap();
        assert_eq!(proposal.agree(true, false).1, [0, 0, 1, 0], "no data");
    }

    #[test]
    fn a_twin_socket_is_for_who_supports_it_and_takes_a_descriptor() {
        let wants = |capabilities: Value| {
            let text = json!({ "capabilities": capabilities }).to_string();
            Proposal::parse(&request(0, 1, &text))
                .unwrap()
                .wants_twin_socket
        };
        assert!(wants(json!({"twin_socket": {"supported": true}})));
        assert!(!wants(
            json!({"twin_socket": {"supported": true}, "max_msg_fds": 0})
        ));
        assert!(!wants(json!({"twin_socket": {"supported": false}})));
        assert!(!wants(json!({"twin_socket": {}})));
        assert!(!wants(json!({})));
        let (_, reply) = agree(1, &json!({"twin_socket": {"supported": true}}));
        assert_eq!(
            reply,
            json!({"twin_socket": {"supported": false}}),
            "there was none"
        );
    }

    #[test]
    fn bad_data_is_refused() {
        let deep = "[".repeat(4000);
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(5000));
        for json in [
            "{",
            "[]",
            "1",
            r#"{"capabilities":7}"#,
            &deep,
            &long,
            "\u{fffd}",
        ] {
            assert_eq!(errno(1, json), Some(Errno::EINVAL), "{json:.40}");
        }
        assert_eq!(Proposal::parse(&[0, 0]).err(), Some(Errno::EINVAL));
        assert_eq!(Proposal::parse(&[]).err(), Some(Errno::EINVAL));
    }

    #[test]
    fn mistyped_capabilities_are_refused() {
        let numbers = [
            "max_msg_fds",
            "max_data_xfer_size",
            "max_dma_maps",
            "pgsizes",
        ];
        let values = [
            json!("8"),
            json!(-1),
            json!(1.5),
            json!(null),
            json!(true),
            json!({}),
            json!([]),
        ];
        for (name, value) in numbers
            .iter()
            .flat_map(|name| values.iter().map(move |value| (name, value)))
        {
            let text = json!({"capabilities": {*name: value}}).to_string();
            assert_eq!(errno(1, &text), Some(Errno::EINVAL), "{text}");
        }
        for text in [
            r#"{"write_multiple":1}"#,
            r#"{"migration":4096}"#,
            r#"{"migration":{"pgsize":"4096"}}"#,
            r#"{"migration":{"pgsize":4095}}"#,
            r#"{"migration":{"pgsize":0}}"#,
            r#"{"migration":{"max_bitmap_size":-1}}"#,
            r#"{"twin_socket":true}"#,
            r#"{"twin_socket":{"supported":"yes"}}"#,
            r#"{"pgsizes":0}"#,
            r#"{"pgsizes":2048}"#,
        ] {
            let json = format!("{{\"capabilities\":{text}}}");
            assert_eq!(errno(1, &json), Some(Errno::EINVAL), "{text}");
        }
    }
}
