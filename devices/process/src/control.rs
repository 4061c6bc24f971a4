//! The control socket: an agent learns the device's status, and asks for resets, for another configuration, and for the
//! device's release.
//!
//! A listening AF_UNIX seqpacket socket whose path belongs to the agent, so that an agent that was restarted can connect
//! again. One packet is one JSON object. Status is sent to every connection when it is made and whenever it changes.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use nix::sys::socket::UnixCredentials;
use pci::UpdateError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::{debug, warn};

use crate::{failure::Failure, inherit};

/// Connections at once: an agent, its successor, and someone who looks.
pub(crate) const MAX_PEERS: usize = 8;
/// A configuration, of which agents take 64 KiB, and what is around it.
const MAX_PACKET_BYTES: usize = 128 << 10;

/// The listening socket, if there is one, and the connections.
pub(crate) struct Control {
    // A std listener serves any AF_UNIX socket; packets keep their boundaries through read and write.
    listener: Option<UnixListener>,
    peers: [Option<UnixStream>; MAX_PEERS],
}

/// What the device is doing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) state: State,
    pub(crate) client: Option<Client>,
    pub(crate) resets: Resets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// No client.
    Listening,
    /// A VMM is using the device.
    Connected,
}

/// The VMM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Client {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) executable: Option<String>,
}

impl From<UnixCredentials> for Client {
    fn from(credentials: UnixCredentials) -> Self {
        let executable = std::fs::read_link(format!("/proc/{}/exe", credentials.pid()));
        Self {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
            executable: executable
                .ok()
                .map(|path| path.to_string_lossy().into_owned()),
        }
    }
}

/// How often the device went back to its power-on state, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Resets {
    /// The client's DEVICE_RESET.
    pub(crate) device_reset: u64,
    /// The guest's driver, through a register.
    pub(crate) software: u64,
    /// The client went away.
    pub(crate) lost_connection: u64,
    /// The control socket.
    pub(crate) api: u64,
}

/// What an agent asks for.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Back to the power-on state; answered with a reply.
    Reset { id: u64 },
    /// The living device is to be that of this configuration, the whole of it; answered with a reply. One that it has
    /// already changes nothing.
    Update { id: u64, config: Value },
    /// The client is to let go of the device; answered with a reply, which says whether the client was asked. More it can't
    /// say: a client that lets go disconnects, and one that does not keeps the device.
    #[serde(rename = "request-release")]
    Release { id: u64 },
    /// Answered with the status as it is at this moment.
    Status,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Message<'a> {
    Status(&'a Status),
    Failed(&'a Failure),
    Reply {
        id: u64,
        ok: bool,
        #[serde(flatten)]
        refusal: Option<Refusal>,
    },
    Error {
        message: String,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Serialize)]
pub(crate) struct Refusal {
    /// The field of the configuration that stands in the way, as a path with dots.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// For programs, where they go on by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    message: String,
}

/// Why the client was not asked to let go of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Reason {
    /// There is none.
    NoClient,
    /// It has no ear for that.
    TakesNoRequest,
}

impl From<(Reason, String)> for Refusal {
    fn from((reason, message): (Reason, String)) -> Self {
        Self {
            field: None,
            reason: Some(reason),
            message,
        }
    }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self {
            field: None,
            reason: None,
            message,
        }
    }
}

impl From<UpdateError> for Refusal {
    fn from(error: UpdateError) -> Self {
        let UpdateError { field, message } = error;
        Self {
            field,
            reason: None,
            message,
        }
    }
}

impl Control {
    /// Takes over the socket that `--control-fd` names.
    pub(crate) fn new(fd: Option<RawFd>) -> Result<Self, Failure> {
        let peers = [const { None }; MAX_PEERS];
        let Some(fd) = fd else {
            return Ok(Self {
                listener: None,
                peers,
            });
        };
        let listener = UnixListener::from(inherit::take("control-fd", fd)?);
        listener.set_nonblocking(true).map_err(|error| {
            Failure::invalid(format!(
                "--control-fd {fd}: {error}; pass a listening socket"
            ))
        })?;
        Ok(Self {
            listener: Some(listener),
            peers,
        })
    }

    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn peer(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.peers.get(index)?.as_ref().map(AsFd::as_fd)
    }

    /// Takes the next waiting connection, tells it `status`, and returns its index. `Ok(None)`: none is left, or it was
    /// one too many.
    pub(crate) fn accept(&mut self, status: &Status) -> io::Result<Option<usize>> {
        let Some(listener) = &self.listener else {
            return Ok(None);
        };
        let (peer, _) = match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            accepted => accepted?,
        };
        peer.set_nonblocking(true)?;
        let Some(index) = self.peers.iter().position(Option::is_none) else {
            warn!("a control connection above {MAX_PEERS} was closed");
            return Ok(None);
        };
        self.peers[index] = Some(peer);
        self.send(index, &Message::Status(status));
        Ok(Some(index))
    }

    /// The next request of a connection, if one has arrived. What is no request is answered with an error.
    pub(crate) fn receive(&mut self, index: usize) -> Option<Request> {
        let peer = self.peers.get_mut(index)?.as_mut()?;
        let mut packet = vec![0; MAX_PACKET_BYTES];
        match peer.read(&mut packet) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                None
            }
            Ok(0) | Err(_) => {
                self.peers[index] = None;
                None
            }
            Ok(len) => match serde_json::from_slice(&packet[..len]) {
                Ok(request) => Some(request),
                Err(error) => {
                    self.send(
                        index,
                        &Message::Error {
                            message: format!("not a request: {error}"),
                        },
                    );
                    None
                }
            },
        }
    }

    /// Says that a request was carried out, or why it was not.
    pub(crate) fn reply(&mut self, index: usize, id: u64, result: Result<(), Refusal>) {
        let ok = result.is_ok();
        let refusal = result.err();
        self.send(index, &Message::Reply { id, ok, refusal });
    }

    /// Tells one connection.
    pub(crate) fn send_status_to(&mut self, index: usize, status: &Status) {
        self.send(index, &Message::Status(status));
    }

    /// Tells every connection.
    pub(crate) fn send_status(&mut self, status: &Status) {
        for index in 0..MAX_PEERS {
            self.send_status_to(index, status);
        }
    }

    /// Tells everybody who has connected by now that the device will not be served.
    pub(crate) fn send_failure(&mut self, failure: &Failure) {
        let Some(listener) = &self.listener else {
            return;
        };
        for (mut peer, _) in std::iter::from_fn(|| listener.accept().ok()).take(MAX_PEERS) {
            let packet = serde_json::to_vec(&Message::Failed(failure)).unwrap_or_default();
            if let Err(error) = peer.write(&packet) {
                debug!(%error, "the failure was not told");
            }
        }
    }

    /// Ends one connection.
    pub(crate) fn close(&mut self, index: usize) {
        if let Some(peer) = self.peers.get_mut(index) {
            *peer = None;
        }
    }

    /// Sends a packet, or closes a connection that does not take it.
    fn send(&mut self, index: usize, message: &Message<'_>) {
        let Some(peer) = self.peers.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let packet = serde_json::to_vec(message).unwrap_or_default();
        if let Err(error) = peer.write(&packet) {
            debug!(%error, "control connection closed");
            self.peers[index] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_documented_form() {
        let status = Status {
            pid: 7,
            state: State::Connected,
            client: Some(Client {
                pid: 1,
                uid: 2,
                gid: 3,
                executable: Some("/usr/bin/vmm".into()),
            }),
            resets: Resets {
                software: 4,
                ..Resets::default()
            },
        };
        assert_eq!(
            serde_json::to_value(Message::Status(&status)).unwrap(),
            serde_json::json!({
                "type": "status", "pid": 7, "state": "connected",
                "client": {"pid": 1, "uid": 2, "gid": 3, "executable": "/usr/bin/vmm"},
                "resets": {"device_reset": 0, "software": 4, "lost_connection": 0, "api": 0},
            })
        );
        let failure = Failure::invalid("no".into());
        assert_eq!(
            serde_json::to_value(Message::Failed(&failure)).unwrap(),
            serde_json::json!({"type": "failed", "field": null, "kind": "INVALID", "message": "no"})
        );
        let request: Request =
            serde_json::from_str(r#"{"type":"reset","id":7,"later":true}"#).unwrap();
        assert_eq!(request, Request::Reset { id: 7 });
        let request: Request =
            serde_json::from_str(r#"{"type":"request-release","id":8}"#).unwrap();
        assert_eq!(request, Request::Release { id: 8 });
        let request: Request =
            serde_json::from_str(r#"{"type":"update","id":9,"config":{"a":1}}"#).unwrap();
        let config = serde_json::json!({"a": 1});
        assert_eq!(request, Request::Update { id: 9, config });
        let reply = |refusal: Option<Refusal>| {
            let (id, ok) = (7, refusal.is_none());
            serde_json::to_value(Message::Reply { id, ok, refusal }).unwrap()
        };
        let field = Some("a.b".to_owned());
        let immutable = UpdateError {
            field,
            message: "no".into(),
        };
        assert_eq!(
            [
                None,
                Some((Reason::NoClient, "no".to_owned()).into()),
                Some(immutable.into())
            ]
            .map(reply),
            [
                serde_json::json!({"type": "reply", "id": 7, "ok": true}),
                serde_json::json!({
                    "type": "reply", "id": 7, "ok": false, "reason": "NO_CLIENT", "message": "no"
                }),
                serde_json::json!({
                    "type": "reply", "id": 7, "ok": false, "field": "a.b", "message": "no"
                }),
            ]
        );
    }
}
