//! VERSION, from the client's side.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Error, MAX_TRANSFER_BYTES, Memory, Options,
    connection::{Connection, Request},
    error::name,
    granted,
};
use crate::message::{Command, Header, Version};

/// More JSON than a server has to say.
const MAX_DATA_BYTES: usize = 64 << 10;

/// The capabilities of one side; what is absent has the specification's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Descriptors that this side takes in one message; 1 unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u64>,
    /// Data that this side takes in one message; 1 MiB unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// DMA maps at once; 65535 unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of DMA maps, or'ed together; 4096 unless said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// Whether the server may ask on a socket of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// Whether REGION_WRITE_MULTI is understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
    /// How dirty pages are reported; QEMU's and libvfio-user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationCapability>,
}

/// The twin socket as a capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TwinSocket {
    /// The sender understands it.
    pub supported: bool,
    /// In a reply: which of the descriptors that came along it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u64>,
}

/// Reporting of dirty pages as a capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationCapability {
    /// The page size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsize: Option<u64>,
    /// The longest bitmap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bitmap_size: Option<u64>,
}

impl Capabilities {
    /// Everything that this client can do.
    #[must_use]
    pub fn all() -> Self {
        Self {
            max_msg_fds: Some(16),
            max_data_xfer_size: Some(MAX_TRANSFER_BYTES as u64),
            max_dma_maps: Some(65535),
            pgsizes: Some(4096),
            twin_socket: Some(TwinSocket {
                supported: true,
                fd_index: None,
            }),
            write_multiple: Some(true),
            migration: Some(MigrationCapability {
                pgsize: Some(4096),
                max_bitmap_size: Some(MAX_TRANSFER_BYTES as u64),
            }),
        }
    }
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Negotiated {
    /// The major version.
    pub major: u16,
    /// The minor version, at most what was proposed.
    pub minor: u16,
    /// What the server said of itself.
    pub capabilities: Capabilities,
    /// Whether the server asks on a socket of its own.
    pub twin_socket: bool,
}

impl Negotiated {
    /// How much data one message to or from the server may have.
    #[must_use]
    pub fn max_transfer_bytes(&self) -> usize {
        let theirs = self.capabilities.max_data_xfer_size;
        let theirs = theirs.and_then(|it| usize::try_from(it).ok());
        theirs.map_or(MAX_TRANSFER_BYTES, |it| it.min(MAX_TRANSFER_BYTES))
    }

    /// How many descriptors one message to the server may have.
    #[must_use]
    pub fn max_message_fds(&self) -> u64 {
        self.capabilities.max_msg_fds.unwrap_or(1)
    }
}

/// The version data, as it travels.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

/// Proposes, and takes what comes back.
pub(super) fn negotiate<M: Memory>(
    connection: &mut Connection<M>,
    options: &Options,
) -> Result<Negotiated, Error> {
    let (major, minor) = options.version;
    let version = Version { major, minor };
    let data = options.capabilities.as_ref().map(proposal);
    let request = Request {
        parts: [version.as_bytes(), data.as_deref().unwrap_or_default(), &[]],
        max_reply_bytes: size_of::<Version>() + MAX_DATA_BYTES,
        ..Request::new(Command::VERSION)
    };
    let number = connection
        .queue(&request)?
        .ok_or(Error::Argument("VERSION is answered"))?;
    let start = Instant::now();
    let first = connection.first_bytes(size_of::<Header>());
    let left = options.timeout.saturating_sub(start.elapsed());
    let late = || Error::Late {
        what: name(request.command),
        within: options.timeout,
    };
    if first.is_empty() && left.is_zero() {
        return Err(late());
    }
    let reply = match connection.wait(number, request.command, left) {
        // It said something, and it was no answer.
        Err(Error::Protocol(_) | Error::Closed | Error::Late { .. })
            if !first.is_empty() && !is_answer(&first) =>
        {
            return Err(Error::NotVfioUser { first });
        }
        Err(Error::Late { .. }) => return Err(late()),
        reply => granted(request.command, reply?)?,
    };
    let (negotiated, fd_index) = parse(&reply.payload, (major, minor))?;
    if let Some(index) = fd_index {
        let fd = usize::try_from(index)
            .ok()
            .filter(|index| *index < reply.fds.len())
            .and_then(|index| reply.fds.into_iter().nth(index))
            .ok_or(Error::Protocol(
                "the twin socket is not among the descriptors",
            ))?;
        connection.set_twin(socket(fd)?)?;
    }
    Ok(negotiated)
}

/// Whether bytes begin with the header of a reply to VERSION.
fn is_answer(bytes: &[u8]) -> bool {
    Header::read_from_prefix(bytes).is_ok_and(|(header, _)| {
        header.command == Command::VERSION
            && header.flags & Header::TYPE_MASK == Header::TYPE_REPLY
            && header.size_bytes as usize >= size_of::<Header>()
    })
}

fn proposal(capabilities: &Capabilities) -> Vec<u8> {
    let data = VersionData {
        capabilities: capabilities.clone(),
    };
    let mut bytes = serde_json::to_vec(&data).expect("numbers and names are JSON");
    bytes.push(0);
    bytes
}

/// What the reply says, and which descriptor is the twin socket.
fn parse(payload: &[u8], proposed: (u16, u16)) -> Result<(Negotiated, Option<u64>), Error> {
    let (Version { major, minor }, data) = Version::read_from_prefix(payload)
        .map_err(|_| Error::Protocol("the reply to VERSION has no version"))?;
    if major != proposed.0 || minor > proposed.1 {
        return Err(Error::Version { major, minor });
    }
    let text = data.split(|byte| *byte == 0).next().unwrap_or_default();
    let VersionData { capabilities } = if text.is_empty() {
        VersionData::default()
    } else {
        serde_json::from_slice(text)
            .map_err(|_| Error::Protocol("the server's capabilities are not as specified"))?
    };
    let twin = capabilities.twin_socket.filter(|twin| twin.supported);
    let fd_index = match twin {
        None => None,
        Some(twin) => Some(twin.fd_index.ok_or(Error::Protocol(
            "the server has a twin socket and does not say which",
        ))?),
    };
    let negotiated = Negotiated {
        major,
        minor,
        capabilities,
        twin_socket: twin.is_some(),
    };
    Ok((negotiated, fd_index))
}

/// The descriptor as the socket that it is said to be.
fn socket(fd: OwnedFd) -> Result<UnixStream, Error> {
    let stream = UnixStream::from(fd);
    match stream.peer_addr() {
        Ok(_) => Ok(stream),
        Err(_) => Err(Error::Protocol("the twin socket is no connected socket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(json: &str) -> Vec<u8> {
        [b"\0\0\x01\0", json.as_bytes(), b"\0"].concat()
    }

    #[test]
    fn what_is_absent_has_the_specification_s_default() {
        for payload in [b"\0\0\x01\0".to_vec(), reply("{}")] {
            let (negotiated, twin) = parse(&payload, (0, 1)).unwrap();
            assert_eq!(
                (
                    negotiated.max_transfer_bytes(),
                    negotiated.max_message_fds(),
                    twin
                ),
                (1 << 20, 1, None)
            );
        }
    }

    #[test]
    fn what_came_back_is_known() {
        let json = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4096,"write_multiple":true,"x":[],
            "migration":{"pgsize":4096},"twin_socket":{"supported":true,"fd_index":3}}}"#;
        let (negotiated, twin) = parse(&reply(json), (0, 1)).unwrap();
        assert_eq!((negotiated.max_transfer_bytes(), twin), (4096, Some(3)));
        assert_eq!(negotiated.max_message_fds(), 8);
        assert_eq!(negotiated.capabilities.write_multiple, Some(true));
        assert!(negotiated.twin_socket);
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_refused() {
        for payload in [
            vec![0],
            reply("{"),
            reply("7"),
            reply(r#"{"capabilities":{"max_msg_fds":"many"}}"#),
            reply(r#"{"capabilities":{"twin_socket":{"supported":true}}}"#),
            reply(&"[".repeat(4000)),
        ] {
            assert!(matches!(parse(&payload, (0, 1)), Err(Error::Protocol(_))));
        }
        for version in [b"\x01\0\0\0", b"\0\0\x02\0"] {
            assert!(matches!(parse(version, (0, 1)), Err(Error::Version { .. })));
        }
    }
}
