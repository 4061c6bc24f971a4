#![expect(
    unsafe_code,
    reason = "a file descriptor that the parent process left comes as a number"
)]
//! The socket that systemd listens on for the agent. Callers that come while the agent is started again wait in it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage};
use nix::sys::socket::{getsockname, getsockopt, sockopt};

/// The name that vfu-agent.socket gives it.
const NAME: &str = "api";

/// A socket that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variables are not those of systemd's protocol.
    #[error("read LISTEN_FDS and LISTEN_FDNAMES")]
    Variables(#[source] io::Error),
    /// More than the API's.
    #[error(
        "LISTEN_FDNAMES has {names}: expected one socket, for the API; name it with FileDescriptorName=api and give the \
         agent no other"
    )]
    Number {
        /// All names.
        names: String,
    },
    /// It is something else.
    #[error(
        "file descriptor {fd} is not {expected}: vfu-agent.socket needs ListenStream= with a path"
    )]
    Kind {
        /// Its number.
        fd: RawFd,
        /// What it should be.
        expected: &'static str,
    },
}

/// The API's socket, if systemd has one for this process. To be called before anything is opened: the number of a file
/// descriptor is all there is to go by.
pub fn api_listener() -> Result<Option<UnixListener>, Error> {
    let passed = sd_notify::listen_fds_with_names().map_err(Error::Variables)?;
    let passed: Vec<_> = passed.collect();
    let fd = match &*passed {
        [] => return Ok(None),
        // Whoever names nothing names it so.
        [(fd, name)] if [NAME, "unknown", "vfu-agent.socket"].contains(&&**name) => *fd,
        passed => {
            let names: Vec<_> = passed.iter().map(|it| &*it.1).collect();
            let names = names.join(":");
            return Err(Error::Number { names });
        }
    };
    // SAFETY: it is open, because `listen_fds_with_names` set a flag of it; it is not used beyond these checks.
    check(unsafe { BorrowedFd::borrow_raw(fd) })?;
    // SAFETY: it is open, and this process's to own: LISTEN_PID says so, and nothing else here has been opened yet.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(Some(listener))
}

fn check(fd: BorrowedFd<'_>) -> Result<(), Error> {
    let checks = [
        (
            "a socket of UNIX addresses",
            family(fd) == Some(AddressFamily::Unix),
        ),
        (
            "a stream",
            getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream),
        ),
        (
            "listening",
            getsockopt(&fd, sockopt::AcceptConn) == Ok(true),
        ),
    ];
    match checks.into_iter().find(|(_, holds)| !holds) {
        Some((expected, _)) => {
            let fd = fd.as_raw_fd();
            Err(Error::Kind { fd, expected })
        }
        None => Ok(()),
    }
}

fn family(fd: BorrowedFd<'_>) -> Option<AddressFamily> {
    getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .ok()?
        .family()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn only_a_listening_unix_stream_socket_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("s")).unwrap();
        check(unix.as_fd()).unwrap();
        let refused = |fd: BorrowedFd<'_>| check(fd).unwrap_err().to_string();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refused(tcp.as_fd()).contains("UNIX addresses"));
        let file = tempfile::tempfile().unwrap();
        assert!(refused(file.as_fd()).contains("UNIX addresses"));
        let (stream, _) = UnixStream::pair().unwrap();
        assert!(refused(stream.as_fd()).contains("listening"));
        let (datagram, _) = UnixDatagram::pair().unwrap();
        assert!(refused(datagram.as_fd()).contains("a stream"));
    }
}
