//! The agent's side of a device process's control socket: one JSON object per packet.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::fd;

const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// What a device process says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Message {
    Status(Status),
    Failed(Refusal),
    Reply {
        id: u64,
        ok: bool,
        #[serde(default)]
        message: String,
        /// The field of the configuration that it is about, as a path with dots.
        #[serde(default)]
        field: Option<String>,
    },
    Error {
        #[serde(default)]
        message: String,
    },
    /// From a newer program; nothing to go by.
    #[serde(other)]
    Unknown,
}

/// How a device is. The first one means that its socket is served.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Status {
    pub(crate) pid: i32,
    pub(crate) state: Service,
    pub(crate) client: Option<Client>,
    #[serde(default)]
    pub(crate) resets: Resets,
}

/// Whether a client is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Service {
    Listening,
    Connected,
}

/// Who is connected.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Client {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    #[serde(default)]
    pub(crate) executable: Option<String>,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.executable.as_deref() {
            None | Some("") => write!(f, "process {}", self.pid),
            Some(executable) => write!(f, "process {} ({executable})", self.pid),
        }
    }
}

/// Resets by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Resets {
    pub(crate) device_reset: u64,
    pub(crate) function_level: u64,
    pub(crate) software: u64,
    pub(crate) lost_connection: u64,
    pub(crate) api: u64,
}

/// Why a device process can't serve the device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Refusal {
    /// Path in the configuration, such as `net.tap.ifname`.
    pub(crate) field: Option<String>,
    pub(crate) kind: RefusalKind,
    pub(crate) message: String,
}

/// What kind of reason it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum RefusalKind {
    Invalid,
    InUse,
    NotFound,
    Permission,
    Unavailable,
    #[serde(other)]
    Internal,
}

/// What the agent asks for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Request<'a> {
    /// Back to the power-on state; answered with a reply.
    Reset { id: u64 },
    /// The living device is to be that of this configuration; answered with a reply.
    Update {
        id: u64,
        config: &'a serde_json::Value,
    },
    /// Answered with the status as it is at that moment.
    Status,
}

/// A connection to a control socket.
#[derive(Debug)]
pub(crate) struct Control {
    fd: AsyncFd<OwnedFd>,
}

impl Control {
    /// Connects. That works as soon as the socket listens, before a process accepts.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        let fd = fd::watch(fd)?;
        Ok(Self { fd })
    }

    /// The next message; an error of kind `UnexpectedEof` when there is none to come. Cancel safe.
    pub(crate) async fn receive(&self) -> io::Result<Message> {
        loop {
            let mut ready = self.fd.readable().await?;
            // The buffer is made when there is something to read, so that idle devices have none.
            let received = ready.try_io(|fd| {
                let mut buffer = vec![0; MAX_MESSAGE_BYTES];
                let received = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
                buffer.truncate(received);
                Ok(buffer)
            });
            if let Ok(message) = received {
                return parse(&message?);
            }
        }
    }

    /// The next message if it is there already.
    pub(crate) fn try_receive(&self) -> Option<Message> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        let fd = self.fd.get_ref().as_raw_fd();
        let received = recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
        parse(&buffer[..received]).ok()
    }

    /// Sends a request, or fails when the process does not read.
    pub(crate) fn send(&self, request: &Request<'_>) -> io::Result<()> {
        let bytes = serde_json::to_vec(request)?;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.fd.get_ref().as_raw_fd(), &bytes, flags)?;
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> io::Result<Message> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_process_are_understood() {
        let status = br#"{"type":"status","pid":123,"state":"connected","later":[1],
            "client":{"pid":1,"uid":0,"gid":0,"executable":"/usr/bin/qemu-system-x86_64"},
            "resets":{"device_reset":1,"software":2,"lost_connection":3,"api":4}}"#;
        let Message::Status(status) = parse(status).unwrap() else {
            panic!("not a status");
        };
        assert_eq!(status.state, Service::Connected);
        assert_eq!(status.resets.lost_connection, 3);
        assert_eq!(
            status.client.unwrap().to_string(),
            "process 1 (/usr/bin/qemu-system-x86_64)"
        );

        let failed = br#"{"type":"failed","field":null,"kind":"NEW_KIND","message":"m"}"#;
        let refusal = Refusal {
            field: None,
            kind: RefusalKind::Internal,
            message: "m".to_owned(),
        };
        assert_eq!(parse(failed).unwrap(), Message::Failed(refusal));

        let reply = br#"{"type":"reply","id":7,"ok":true}"#;
        assert!(matches!(
            parse(reply).unwrap(),
            Message::Reply {
                id: 7,
                ok: true,
                ..
            }
        ));
        assert_eq!(
            parse(br#"{"type":"news","x":1}"#).unwrap(),
            Message::Unknown
        );
        assert!(parse(b"nonsense").is_err());
        assert_eq!(parse(b"").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn requests_are_what_the_process_expects() {
        let text = serde_json::to_string(&Request::Reset { id: 7 }).unwrap();
        assert_eq!(text, r#"{"type":"reset","id":7}"#);
        let config = &serde_json::json!({"link": "down"});
        let text = serde_json::to_string(&Request::Update { id: 8, config }).unwrap();
        assert_eq!(text, r#"{"type":"update","id":8,"config":{"link":"down"}}"#);
    }
}
