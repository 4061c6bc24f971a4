//! Making UNIX sockets that have their owner and mode before anybody can see them, and that replace
//! what a dead process left but never what a living one serves.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_socket, connect, listen,
    socket,
};

use crate::store::SocketSpec;

/// The longest path `sockaddr_un` takes, without the terminating zero.
pub(crate) const MAX_PATH_BYTES: usize = 107;

pub(crate) const DEFAULT_MODE: u32 = 0o600;

/// What can go wrong when a socket is made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path does not fit into an address.
    #[error(
        "socket path {} has {} bytes and {MAX_PATH_BYTES} is the most that UNIX sockets take; \
         choose a shorter one",
        path.display(), path.as_os_str().len()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Somebody serves it.
    #[error("{} is served by another process: stop it, or choose another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// It is not a socket.
    #[error("{} exists and is no socket: remove it, or choose another path", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Whether the path fits into an address.
pub(crate) fn check_path(path: &Path) -> Result<(), Error> {
    if path.as_os_str().len() > MAX_PATH_BYTES {
        let path = path.to_owned();
        return Err(Error::TooLong { path });
    }
    Ok(())
}

/// A listening socket at `path`. It is made under another name in that directory and renamed, which
/// also replaces what is there.
pub(crate) fn bind(path: &Path, kind: SockType, spec: &SocketSpec) -> Result<OwnedFd, Error> {
    check_path(path)?;
    let hidden = path.with_file_name(".new");
    let at = |operation, source| Error::Io {
        operation,
        path: path.to_owned(),
        source,
    };
    let make = || {
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| at("make socket", errno.into()))?;
        let address = UnixAddr::new(&hidden).map_err(|errno| at("bind", errno.into()))?;
        remove_file(&hidden).map_err(|source| at("bind", source))?;
        bind_socket(fd.as_raw_fd(), &address).map_err(|errno| at("bind", errno.into()))?;
        let mode = Permissions::from_mode(spec.mode.unwrap_or(DEFAULT_MODE));
        fs::set_permissions(&hidden, mode).map_err(|source| at("set the mode of", source))?;
        if spec.uid.is_some() || spec.gid.is_some() {
            std::os::unix::fs::chown(&hidden, spec.uid, spec.gid)
                .map_err(|source| at("set the owner of", source))?;
        }
        listen(&fd, Backlog::MAXCONN).map_err(|errno| at("listen on", errno.into()))?;
        crate::steps::reached("socket.hidden");
        fs::rename(&hidden, path).map_err(|source| at("bind", source))?;
        Ok(fd)
    };
    make().inspect_err(|_| {
        // Best effort: the error that is being reported matters more.
        let _ = remove_file(&hidden);
    })
}

/// Whether somebody listens at `path`. Nobody does only if the kernel says so: whoever is too busy to accept is alive.
/// Never waits.
pub(crate) fn is_served(path: &Path, kind: SockType) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, kind, flags, None)?;
    // Nobody can listen where no address leads.
    let Ok(address) = UnixAddr::new(path) else {
        return Ok(false);
    };
    match connect(fd.as_raw_fd(), &address) {
        // With a full queue, and with sockets of another kind, somebody listens, too.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes a file; one that is not there is as good.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn sockets_have_the_mode_they_are_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let spec = SocketSpec {
            mode: Some(0o626),
            ..SocketSpec::default()
        };
        let _listener = bind(&path, SockType::Stream, &spec).unwrap();
        assert_eq!(mode(&path), 0o626);
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn nobody_ever_sees_a_socket_with_another_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let spec = SocketSpec {
            mode: Some(0o626),
            ..SocketSpec::default()
        };
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = 0;
                while !is_over.load(Ordering::Relaxed) || seen == 0 {
                    if let Ok(metadata) = path.metadata() {
                        assert_eq!(metadata.permissions().mode() & 0o7777, 0o626);
                        seen += 1;
                    }
                }
            });
            for round in 0..500 {
                if round % 2 == 0 {
                    remove_file(&path).unwrap();
                }
                bind(&path, SockType::Stream, &spec).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
            watcher.join().unwrap();
        });
    }

    #[test]
    fn who_is_too_busy_to_accept_is_alive() {
        let directory = tempfile::tempdir().unwrap();
        for kind in [SockType::Stream, SockType::SeqPacket] {
            let path = directory.path().join(format!("{kind:?}"));
            assert!(!is_served(&path, kind).unwrap());
            let listener = bind(&path, kind, &SocketSpec::default()).unwrap();
            listen(&listener, Backlog::new(1).unwrap()).unwrap();
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let address = UnixAddr::new(&path).unwrap();
            let mut waiting = Vec::new();
            loop {
                let fd = socket(AddressFamily::Unix, kind, flags, None).unwrap();
                match connect(fd.as_raw_fd(), &address) {
                    Ok(()) => waiting.push(fd),
                    Err(errno) => {
                        assert_eq!(errno, Errno::EAGAIN);
                        break;
                    }
                }
            }
            assert!(is_served(&path, kind).unwrap());
            drop(listener);
            assert!(!is_served(&path, kind).unwrap());
        }
    }

    #[test]
    fn a_path_of_107_bytes_works_and_of_108_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let room = MAX_PATH_BYTES - directory.path().as_os_str().len() - 1;
        let path = directory.path().join("x".repeat(room));
        bind(&path, SockType::SeqPacket, &SocketSpec::default()).unwrap();
        let path = directory.path().join("x".repeat(room + 1));
        let error = bind(&path, SockType::SeqPacket, &SocketSpec::default()).unwrap_err();
        assert!(error.to_string().contains("has 108 bytes and 107"));
    }
}
