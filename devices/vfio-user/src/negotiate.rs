//! VERSION: which protocol the two sides speak, and within which limits.
//!
//! The reply holds only what the client proposed; what it left out has the specification's default on both sides.

use nix::errno::Errno;
use serde_json::{Map, Value};
use zerocopy::{FromBytes, IntoBytes};

use crate::{memory::Memory, message::Version};

/// The version that this server implements: 0.1.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;
/// A real client's JSON has a few hundred bytes.
const MAX_JSON_BYTES: usize = 4096;
/// Data in one message, both ways; the specification's default.
pub(crate) const MAX_TRANSFER_BYTES: usize = 1 << 20;
/// Descriptors that the server takes in one message.
pub(crate) const MAX_MESSAGE_FDS: usize = 16;
const PAGE_BYTES: u64 = 4096;

/// Answers a VERSION request's payload with the reply's payload.
///
/// # Errors
/// `EPROTO` for another major version; `EINVAL` for data that is not what the specification says.
pub(crate) fn answer(request: &[u8]) -> Result<Vec<u8>, Errno> {
    let (version, json) = Version::read_from_prefix(request).map_err(|_| Errno::EINVAL)?;
    if version.major != MAJOR {
        return Err(Errno::EPROTO);
    }
    let version = Version {
        major: MAJOR,
        minor: version.minor.min(MINOR),
    };
    let mut reply = version.as_bytes().to_vec();
    if let Some(proposed) = parse(json)? {
        let ours = capabilities(&proposed)?;
        reply.extend(
            serde_json::json!({ "capabilities": ours })
                .to_string()
                .into_bytes(),
        );
        reply.push(0);
    }
    Ok(reply)
}

/// The capabilities object of the version data: `None` when there is no data.
fn parse(json: &[u8]) -> Result<Option<Map<String, Value>>, Errno> {
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

/// Ours, of those that the client proposed. Unknown ones are not ours.
fn capabilities(proposed: &Map<String, Value>) -> Result<Map<String, Value>, Errno> {
    let ours = [
        ("max_msg_fds", MAX_MESSAGE_FDS as u64),
        ("max_data_xfer_size", MAX_TRANSFER_BYTES as u64),
        ("max_dma_maps", Memory::MAX_MAPS as u64),
        ("pgsizes", PAGE_BYTES),
    ];
    let mut reply = Map::new();
    for (name, value) in ours {
        match proposed.get(name) {
            Some(theirs) if !theirs.is_u64() => return Err(Errno::EINVAL),
            Some(_) => {
                reply.insert(name.to_owned(), value.into());
            }
            None => {}
        }
    }
    Ok(reply)
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

    #[test]
    fn the_reply_is_a_subset_of_the_proposal() {
        let json =
            r#"{"capabilities":{"max_msg_fds":8,"max_dma_maps":1,"write_multiple":true,"x":[]}}"#;
        let reply = answer(&request(0, 0, &format!("{json}\0"))).unwrap();
        assert_eq!(reply[..4], [0, 0, 0, 0]);
        assert_eq!(reply.last(), Some(&0));
        let value: Value = serde_json::from_slice(&reply[4..reply.len() - 1]).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"capabilities": {"max_msg_fds": 16, "max_dma_maps": 65535}})
        );
    }

    #[test]
    fn the_minor_version_is_the_smaller_one() {
        assert_eq!(answer(&request(0, 9, "")).unwrap(), [0, 0, 1, 0]);
        assert_eq!(answer(&request(0, 0, "")).unwrap(), [0, 0, 0, 0]);
        assert_eq!(answer(&request(1, 0, "")), Err(Errno::EPROTO));
    }

    #[test]
    fn the_terminator_is_optional() {
        assert!(
            answer(&request(0, 1, "{}"))
                .unwrap()
                .ends_with(b"{\"capabilities\":{}}\0")
        );
    }

    #[test]
    fn bad_data_is_refused() {
        let deep = "[".repeat(4000);
        let long = format!("{{\"x\":\"{}\"}}", "y".repeat(5000));
        let mistyped = r#"{"capabilities":{"max_msg_fds":"many"}}"#;
        for json in [
            "{",
            "[]",
            r#"{"capabilities":7}"#,
            mistyped,
            &deep,
            &long,
            "\u{fffd}",
        ] {
            assert_eq!(
                answer(&request(0, 1, json)),
                Err(Errno::EINVAL),
                "{json:.40}"
            );
        }
        assert_eq!(answer(&[0, 0]), Err(Errno::EINVAL));
    }
}
