//! What is at a path when it is not a vfio-user server, and what to do about it.
//!
//! A server of vfio-user waits for the client to speak. Who speaks first (QMP, gRPC) is known by that; who answers to
//! VERSION with something else, by the answer; who closes the connection or says nothing, by what it answers to others'
//! first words, each on a connection of its own.
//!
//! A socket that somebody uses is not even connected to, where the kernel tells: servers that take no second client leave
//! its connection waiting, and some of them end when they come to it and find it closed.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::FileTypeExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use models::Kind;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};
use vfio_user::{MAX_PATH_BYTES, client::Error};

use super::{failure, left, unavailable};
use crate::failure::Failure;

/// How long a server may take that speaks first, or that closes a second client's connection.
const GREETING: Duration = Duration::from_millis(100);
/// How long to wait for the answer to another protocol's first words.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// A server may notice a moment later that its client has left.
const LEAVING: Duration = Duration::from_millis(100);
const LEAVING_LOOKS: u32 = 5;

/// The path that was named.
pub(super) struct Socket {
    path: PathBuf,
}

impl Socket {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Refuses a socket that somebody is connected to.
    pub(super) fn check_free(&self) -> Result<(), Failure> {
        for _ in 0..LEAVING_LOOKS {
            if !self.has_client() {
                return Ok(());
            }
            std::thread::sleep(LEAVING);
        }
        // What it is has not been asked: it may be a monitor as well.
        let path = self.path.display();
        Err(failure(
            Kind::InUse,
            format!(
                "{path}: somebody is connected to it, and a device serves one client at a time; unplug it there first, or \
                 name the vfio-user socket of a device if this is none"
            ),
        ))
    }

    /// Whether the kernel knows of a connection that the server has accepted. It does not tell of other network
    /// namespaces, nor of sockets that were bound by a relative path.
    fn has_client(&self) -> bool {
        let Ok(own) = std::fs::canonicalize(&self.path) else {
            return false;
        };
        let sockets = std::fs::read("/proc/net/unix").unwrap_or_default();
        let sockets = String::from_utf8_lossy(&sockets);
        // Only paths that end alike are looked up: others may lie in file systems that hang, and anybody can have them.
        let alike = |path: &&Path| path.file_name() == own.file_name();
        let mut paths = sockets.lines().filter_map(accepted).filter(alike);
        paths.any(|path| std::fs::canonicalize(path).is_ok_and(|path| path == own))
    }

    /// A connection, or why there is none.
    pub(super) fn connect(&self, deadline: Instant) -> Result<UnixStream, Failure> {
        match self.connect_as(SockType::Stream, deadline) {
            Ok(stream) => Ok(stream.into()),
            Err(errno) => Err(self.unreachable(errno, deadline)),
        }
    }

    fn connect_as(&self, kind: SockType, deadline: Instant) -> Result<OwnedFd, Errno> {
        let address = UnixAddr::new(&self.path)?;
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // A full backlog must not keep the probe for ever.
        setsockopt(&fd, sockopt::SendTimeout, &time_value(left(deadline)))?;
        connect(fd.as_raw_fd(), &address)?;
        Ok(fd)
    }

    fn unreachable(&self, errno: Errno, deadline: Instant) -> Failure {
        let path = self.path.display();
        if self.path.as_os_str().len() > MAX_PATH_BYTES {
            return failure(
                Kind::Invalid,
                format!(
                    "{path}: the path of a socket has at most {MAX_PATH_BYTES} bytes; use a shorter one, or a link"
                ),
            );
        }
        let metadata = std::fs::metadata(&self.path);
        if metadata
            .as_ref()
            .is_ok_and(|it| !it.file_type().is_socket())
        {
            return failure(
                Kind::Invalid,
                format!("{path} is no socket; name the vfio-user socket of a device"),
            );
        }
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => failure(
                Kind::NotFound,
                format!("{path}: there is no such socket; start the device, or correct the path"),
            ),
            Errno::ECONNREFUSED => unavailable(
                errno,
                format!(
                    "{path}: nobody listens on this socket; its device has ended: start it again"
                ),
            ),
            Errno::EACCES | Errno::EPERM => unavailable(
                errno,
                format!(
                    "{path}: this user may not connect; run as root, or as a user whom the mode of the socket and of its folders allows"
                ),
            ),
            Errno::EAGAIN => unavailable(
                errno,
                format!(
                    "{path}: the server accepts no connection: it hangs, or others wait for it already"
                ),
            ),
            Errno::EPROTOTYPE => self.other_type(deadline),
            _ => unavailable(errno, format!("{path}: connect: {}", errno.desc())),
        }
    }

    /// A socket that has no stream of bytes.
    fn other_type(&self, deadline: Instant) -> Failure {
        let path = self.path.display();
        let wrong = |what: &str| failure(Kind::Invalid, format!("{path} is {what}"));
        if let Ok(fd) = self.connect_as(SockType::SeqPacket, deadline) {
            let told = wait(&fd, GREETING).then(|| peek(&fd));
            let ours = told.is_some_and(|packet| packet.starts_with(b"{\"type\":\"status\""));
            return if ours {
                wrong("the control socket of a vfu-device; its vfio-user socket lies beside it")
            } else {
                wrong("a SOCK_SEQPACKET socket; vfio-user is spoken on SOCK_STREAM")
            };
        }
        wrong("a datagram socket; vfio-user is spoken on SOCK_STREAM")
    }

    /// Looks whether the server speaks first, which none of vfio-user does, or hangs up.
    pub(super) fn greeting(&self, stream: &UnixStream) -> Result<(), Failure> {
        if !wait(stream, GREETING) {
            return Ok(());
        }
        match &peek(stream)[..] {
            [] => Err(self.in_use()),
            first => Err(self.speaks(first)),
        }
    }

    /// Why there was no further answer of a server that has answered to VERSION: it is one of vfio-user, and free.
    pub(super) fn explain_end(&self, error: Error, deadline: Instant) -> Failure {
        let what = match error {
            Error::Closed | Error::Failed(Errno::EPIPE | Errno::ECONNRESET) => {
                "the server closed the connection in the middle".into()
            }
            Error::Late { what, .. } => {
                format!("no answer to {what} in time (--timeout waits longer)")
            }
            error => return self.explain(error, deadline),
        };
        let path = self.path.display();
        failure(
            Kind::Unavailable,
            format!("{path}: {what}; the server hangs or has ended: look into its log"),
        )
    }

    /// Why there was no answer to be printed.
    pub(super) fn explain(&self, error: Error, deadline: Instant) -> Failure {
        let path = self.path.display();
        match error {
            Error::NotVfioUser { first } => self.speaks(&first),
            Error::Closed | Error::Failed(Errno::EPIPE | Errno::ECONNRESET) => {
                self.second_look(deadline).unwrap_or_else(|| self.in_use())
            }
            Error::Late { what, within } => {
                let seconds = within.as_secs_f64();
                let silent = format!(
                    "{path}: no answer to {what} within {seconds:.1} s; the server hangs or is stopped, or it lets a \
                     second client wait while a VMM uses the device (--timeout waits longer)"
                );
                self.second_look(deadline)
                    .unwrap_or_else(|| failure(Kind::Unavailable, silent))
            }
            Error::Version { major, minor } => failure(
                Kind::Unavailable,
                format!(
                    "{path}: the server speaks vfio-user {major}.{minor}, this program 0.0 and 0.1; update one of them"
                ),
            ),
            Error::Refused { command, errno } => failure(
                Kind::Unavailable,
                format!(
                    "{path}: the server refused {command}: {}; look into its log",
                    errno.desc()
                ),
            ),
            error => failure(
                Kind::Unavailable,
                format!("{path}: {error}; the server is broken: look into its log"),
            ),
        }
    }

    fn in_use(&self) -> Failure {
        failure(
            Kind::InUse,
            format!(
                "{}: the server closed the connection: another client uses the device (it serves one at a time); unplug it \
                 there first",
                self.path.display()
            ),
        )
    }

    /// Names the protocol of what began with `first`.
    fn speaks(&self, first: &[u8]) -> Failure {
        let what = name(first).map_or_else(
            || {
                format!(
                    "something else than vfio-user (it began with {})",
                    quote(first)
                )
            },
            str::to_owned,
        );
        failure(
            Kind::Invalid,
            format!(
                "{} speaks {what}; name the vfio-user socket of a device",
                self.path.display()
            ),
        )
    }

    /// Tries the first words of protocols in which the server waits for them.
    fn second_look(&self, deadline: Instant) -> Option<Failure> {
        // GET_FEATURES of vhost-user: request 1, version 1, no payload.
        let vhost_user = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        let http = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        [&vhost_user[..], http].into_iter().find_map(|words| {
            let first = self.ask(words, deadline).ok()?;
            name(&first).map(|_| self.speaks(&first))
        })
    }

    /// What is answered to `words`.
    fn ask(&self, words: &[u8], deadline: Instant) -> std::io::Result<Vec<u8>> {
        let soon = deadline.max(Instant::now() + SECOND_LOOK);
        let mut stream = UnixStream::from(self.connect_as(SockType::Stream, soon)?);
        stream.set_read_timeout(Some(SECOND_LOOK))?;
        stream.write_all(words)?;
        let mut first = vec![0; 64];
        let count = loop {
            match stream.read(&mut first) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        first.truncate(count);
        Ok(first)
    }
}

/// The path of a line of /proc/net/unix that is a stream socket with a peer, and has a path: the server's end of a
/// connection. Columns: number, references, protocol, flags, type, state, inode, path.
fn accepted(line: &str) -> Option<&Path> {
    let mut columns = line.split_ascii_whitespace();
    let (kind, state) = (columns.nth(4)?, columns.next()?);
    let (_inode, path) = (columns.next()?, columns.next()?);
    // The path may have blanks, and is absolute.
    let path = &line[line.find(path).filter(|_| path.starts_with('/'))?..];
    ((kind, state) == ("0001", "03")).then_some(Path::new(path))
}

/// The protocol whose server's first words these are.
fn name(first: &[u8]) -> Option<&'static str> {
    if first.starts_with(b"{\"QMP\"") {
        return Some("QMP: it is the monitor of a QEMU");
    }
    if first.starts_with(b"{\"return\"") || first.starts_with(b"{\"error\"") {
        return Some("JSON, as QEMU's guest agent does");
    }
    if first.starts_with(b"HTTP/") {
        return Some("HTTP: it may be the API of a cloud-hypervisor");
    }
    // The first frame of an HTTP/2 server is SETTINGS (type 4), of entries of six bytes, on stream 0.
    if let [0, 0, length, 4, 0, 0, 0, 0, 0, ..] = first
        && length % 6 == 0
    {
        return Some("HTTP/2, as gRPC does: it may be the API of a vfu-agent");
    }
    // Flags of vhost-user: version 1, and a reply.
    if let [_, _, _, _, 5, 0, 0, 0, ..] = first {
        return Some("vhost-user, which is not vfio-user");
    }
    None
}

/// The beginning of what was sent, for people.
fn quote(first: &[u8]) -> String {
    let first = first.get(..16).unwrap_or(first);
    format!("\"{}\"", first.escape_ascii())
}

/// Whether there is something to read, or the end, before `limit`.
fn wait(fd: &impl std::os::fd::AsFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

/// What has arrived, and stays; nothing at the end.
fn peek(fd: &impl std::os::fd::AsFd) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let count = recv(fd.as_fd().as_raw_fd(), &mut bytes, flags).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

fn time_value(duration: Duration) -> TimeVal {
    let micros = duration.subsec_micros().into();
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    TimeVal::new(seconds, micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_known_among_the_kernel_s_sockets() {
        let path = |line| accepted(line).map(|path| path.to_str().unwrap());
        let line = "0000000000000000: 00000003 00000000 00000000 0001 03 96862 /run/a b.sock";
        assert_eq!(path(line), Some("/run/a b.sock"));
        for line in [
            "Num       RefCount Protocol Flags    Type St Inode Path",
            "0000000000000000: 00000002 00000000 00010000 0001 01 96861 /run/a.sock",
            "0000000000000000: 00000002 00000000 00000000 0001 02     0 /run/a.sock",
            "0000000000000000: 00000003 00000000 00000000 0005 03 96862 /run/a.sock",
            "0000000000000000: 00000003 00000000 00000000 0001 03 96862 @abstract",
            "0000000000000000: 00000003 00000000 00000000 0001 03 96863",
            "",
        ] {
            assert_eq!(path(line), None, "{line}");
        }
    }

    #[test]
    fn protocols_are_known_by_their_first_words() {
        for (first, word) in [
            (&b"{\"QMP\": {\"version\""[..], "QMP"),
            (b"HTTP/1.1 400 ", "HTTP"),
            (b"\0\0\x12\x04\0\0\0\0\0\0\x03", "gRPC"),
            (b"\0\0\0\x04\0\0\0\0\0", "gRPC"),
            (b"\x01\0\0\0\x05\0\0\0\x08\0\0\0", "vhost-user"),
            (b"\x01\0\x01\0\x05\0\0\0\x08\0\0\0", "vhost-user"),
        ] {
            assert!(name(first).unwrap().contains(word), "{first:?}");
        }
        for first in [&b""[..], b"SSH-2.0", b"\x01\0\x01\0\x10\0\0\0\x01\0\0\0"] {
            assert_eq!(name(first), None);
        }
        assert_eq!(quote(b"\x1b[2J\"x\""), r#""\x1b[2J\"x\"""#);
    }
}
