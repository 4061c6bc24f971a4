//! The agent's side of a device process's control socket: one JSON object per packet.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials,
    connect, recv, recvmsg, send, setsockopt, socket, sockopt::PassCred,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::fd;

const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// The longest text of a message that is kept.
const MAX_TEXT_BYTES: usize = 4096;
/// Messages of a process that has ended.
const MAX_LEFT: usize = 1000;
/// What a process may say at once, and how often from then on. What comes faster waits in the socket, and the process
/// with it: each message costs the agent work, and what it says may become lines of logs, events and changes.
const BURST: u32 = 256;
const PERIOD: Duration = Duration::from_millis(10);

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
        /// What of it matters to who has asked.
        #[serde(default)]
        reason: Option<Reason>,
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

/// Why a request was not met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Reason {
    /// There is no client to ask.
    NoClient,
    /// The client has no ear for requests.
    TakesNoRequest,
    #[serde(other)]
    Unknown,
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
    /// The client is to let go of the device; answered with a reply when it has been asked.
    #[serde(rename = "request-release")]
    Release { id: u64 },
    /// Answered with the status as it is at that moment.
    Status,
}

/// A connection to a control socket.
#[derive(Debug)]
pub(crate) struct Control {
    fd: AsyncFd<OwnedFd>,
    pace: Pace,
}

/// How fast messages are taken.
#[derive(Debug)]
struct Pace {
    /// When the messages until now would have been taken, one in each period.
    until: Mutex<Instant>,
}

impl Pace {
    fn new() -> Self {
        let until = Mutex::new(Instant::now());
        Self { until }
    }

    /// Waits until there may be a message. Cancel safe.
    async fn wait(&self) {
        let until = *self.until();
        let ahead = until.saturating_duration_since(Instant::now());
        if let Some(pause) = ahead.checked_sub(PERIOD * BURST) {
            tokio::time::sleep(pause).await;
        }
    }

    fn count(&self) {
        let mut until = self.until();
        *until = (*until).max(Instant::now()) + PERIOD;
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Connects. That works as soon as the socket listens, before a process accepts.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // Before there is anybody to send: a message has its sender from when it was sent.
        setsockopt(&fd, PassCred, &true)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self::new(fd::watch(fd)?))
    }

    fn new(fd: AsyncFd<OwnedFd>) -> Self {
        let pace = Pace::new();
        Self { fd, pace }
    }

    /// The next message; an error of kind `UnexpectedEof` when there is none to come. Cancel safe.
    pub(crate) async fn receive(&self) -> io::Result<Message> {
        let read = |fd, buffer: &mut [u8]| Ok((recv(fd, buffer, MsgFlags::empty())?, ()));
        Ok(self.read(read).await?.0)
    }

    /// The same, and the pid of the process that has sent it. The kernel says so, and not the process; who is connected is
    /// of no use for that, which is the agent that has made the socket. Cancel safe.
    pub(crate) async fn receive_from(&self) -> io::Result<(Message, Option<i32>)> {
        self.read(read_from).await
    }

    async fn read<T>(
        &self,
        read: impl Fn(RawFd, &mut [u8]) -> io::Result<(usize, T)>,
    ) -> io::Result<(Message, T)> {
        self.pace.wait().await;
        loop {
            let mut ready = self.fd.readable().await?;
            // The buffer is made when there is something to read, so that idle devices have none.
            let received = ready.try_io(|fd| {
                let mut buffer = vec![0; MAX_MESSAGE_BYTES];
                let (received, rest) = read(fd.as_raw_fd(), &mut buffer)?;
                buffer.truncate(received);
                Ok((buffer, rest))
            });
            if let Ok(message) = received {
                self.pace.count();
                let (message, rest) = message?;
                return Ok((parse(&message)?, rest));
            }
        }
    }

    /// Why the process, which has ended, could not serve, if that is among what it has left. Others may have its end of
    /// the connection and go on talking: they are not heard out.
    pub(crate) fn last_refusal(&self) -> Option<Refusal> {
        let left = (0..MAX_LEFT).map_while(|_| self.try_receive());
        left.filter_map(|message| match message {
            Message::Failed(refusal) => Some(refusal),
            _ => None,
        })
        .last()
    }

    fn try_receive(&self) -> Option<Message> {
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

/// One packet, and the pid of its sender. There is room for nothing else that may come with it, such as fds.
fn read_from(fd: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut space = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::empty())?;
    let sender = received.cmsgs().ok().and_then(|mut messages| {
        messages.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(sender) => Some(sender.pid()),
            _ => None,
        })
    });
    Ok((received.bytes, sender))
}

fn parse(bytes: &[u8]) -> io::Result<Message> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut message = serde_json::from_slice(bytes)?;
    let texts = match &mut message {
        Message::Status(Status { client, .. }) => {
            let executable = client.as_mut().map(|it| &mut it.executable);
            [executable.and_then(Option::as_mut), None]
        }
        Message::Failed(Refusal { field, message, .. }) | Message::Reply { field, message, .. } => {
            [field.as_mut(), Some(message)]
        }
        Message::Error { message } => [Some(message), None],
        Message::Unknown => [None, None],
    };
    texts.into_iter().flatten().for_each(tame);
    Ok(message)
}

/// Makes of what a process says one line that is not too long: it becomes part of logs and of what people are shown.
fn tame(text: &mut String) {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, " ");
    }
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
        let reason = |text: &str| {
            let reply = format!(r#"{{"type":"reply","id":7,"ok":false,"reason":"{text}"}}"#);
            match parse(reply.as_bytes()).unwrap() {
                Message::Reply { reason, .. } => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(reason("NO_CLIENT"), Some(Reason::NoClient));
        assert_eq!(reason("TAKES_NO_REQUEST"), Some(Reason::TakesNoRequest));
        assert_eq!(reason("NEW_REASON"), Some(Reason::Unknown));
        assert_eq!(
            parse(br#"{"type":"news","x":1}"#).unwrap(),
            Message::Unknown
        );
        assert!(parse(b"nonsense").is_err());
        assert_eq!(parse(b"").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_a_process_says_is_one_line_that_is_not_too_long() {
        let long = "\\u00e9".repeat(MAX_TEXT_BYTES);
        let text = format!(r#"{{"type":"error","message":"a\nb\u001b[2J{long}"}}"#);
        let Message::Error { message } = parse(text.as_bytes()).unwrap() else {
            panic!("not an error");
        };
        assert!(message.starts_with("a b [2J\u{e9}"), "{message}");
        assert!(message.len() <= MAX_TEXT_BYTES);
        let client = r#"{"pid":1,"uid":0,"gid":0,"executable":"/a\nb"}"#;
        let text = format!(r#"{{"type":"status","pid":1,"state":"connected","client":{client}}}"#);
        let Message::Status(status) = parse(text.as_bytes()).unwrap() else {
            panic!("not a status");
        };
        assert_eq!(status.client.unwrap().executable.unwrap(), "/a b");
    }

    /// A connection, and a thread that talks without an end on its other end until it is told to stop.
    fn flooded() -> (Control, std::thread::JoinHandle<()>) {
        use nix::sys::socket::socketpair;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (own, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let begin = std::time::Instant::now();
        let talks = std::thread::spawn(move || {
            let text = br#"{"type":"news"}"#;
            // The end is for an agent that would listen for ever.
            while begin.elapsed() < Duration::from_secs(20)
                && send(other.as_raw_fd(), text, MsgFlags::MSG_NOSIGNAL).is_ok()
            {}
        });
        (Control::new(fd::watch(own).unwrap()), talks)
    }

    #[tokio::test]
    async fn who_talks_without_an_end_keeps_nobody_else_from_the_thread() {
        let (control, talks) = flooded();
        let mut count = 0;
        let hears = async {
            while control.receive().await.is_ok() {
                count += 1;
            }
        };
        let late = tokio::time::timeout(Duration::from_millis(500), hears).await;
        assert!(late.is_err(), "it was heard out");
        assert!((BURST..BURST * 2).contains(&count), "{count}");
        assert_eq!(control.last_refusal(), None);
        drop(control);
        talks.join().unwrap();
    }

    #[test]
    fn requests_are_what_the_process_expects() {
        let text = serde_json::to_string(&Request::Reset { id: 7 }).unwrap();
        assert_eq!(text, r#"{"type":"reset","id":7}"#);
        let config = &serde_json::json!({"link": "down"});
        let text = serde_json::to_string(&Request::Update { id: 8, config }).unwrap();
        assert_eq!(text, r#"{"type":"update","id":8,"config":{"link":"down"}}"#);
        let text = serde_json::to_string(&Request::Release { id: 9 }).unwrap();
        assert_eq!(text, r#"{"type":"request-release","id":9}"#);
    }
}
