//! Where clients connect.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
        getsockname, getsockopt, socket, sockopt,
    },
};

use crate::socket::drain;

/// The longest path of a UNIX socket: `sun_path` less the terminating NUL.
pub const MAX_PATH_BYTES: usize = 107;

/// Why there is nothing to listen on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit into a socket address.
    #[error("socket path {} has {} bytes: a UNIX socket's path may have {MAX_PATH_BYTES}; choose a shorter one", .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    /// Another server listens there.
    #[error("socket path {}: another server listens there; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// There is a file that is not a socket.
    #[error("socket path {}: a file that is not a socket is in the way; remove it or choose another path", .0.display())]
    InTheWay(PathBuf),
    /// The system said no.
    #[error("listen on {}", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptor that was passed is something else.
    #[error("file descriptor is not a listening AF_UNIX stream socket")]
    NotAListener,
    /// The descriptor that was passed can't be used.
    #[error("use the listening socket")]
    Prepare(#[source] io::Error),
}

/// A listening socket; [`Listener::accept`] never blocks.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// The path and inode to remove, when this process made the socket.
    made: Option<(PathBuf, u64)>,
}

impl Listener {
    /// Makes the socket at `path`, in place of one that nobody listens on. It is removed with the listener.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let error = |source| ListenError::Bind {
            path: path.to_owned(),
            source,
        };
        if path.as_os_str().len() > MAX_PATH_BYTES {
            return Err(ListenError::PathTooLong(path.to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::InTheWay(path.to_owned()));
            }
            Ok(_) if is_stale(path) => fs::remove_file(path).map_err(error)?,
            Ok(_) => return Err(ListenError::InUse(path.to_owned())),
            Err(_) => {}
        }
        let socket = UnixListener::bind(path).map_err(error)?;
        socket.set_nonblocking(true).map_err(error)?;
        let inode = fs::symlink_metadata(path).map_err(error)?.ino();
        Ok(Self {
            socket,
            made: Some((path.to_owned(), inode)),
        })
    }

    /// Takes a socket that somebody else has bound and will remove.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ListenError> {
        let is_unix = getsockname::<SockaddrStorage>(fd.as_raw_fd())
            .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
        let is_listening = getsockopt(&fd, sockopt::AcceptConn) == Ok(true);
        if !is_unix || !is_listening || getsockopt(&fd, sockopt::SockType) != Ok(SockType::Stream) {
            return Err(ListenError::NotAListener);
        }
        let socket = UnixListener::from(fd);
        socket.set_nonblocking(true).map_err(ListenError::Prepare)?;
        Ok(Self { socket, made: None })
    }

    /// The path that the socket was bound to, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        let address = self.socket.local_addr().ok()?;
        address.as_pathname().map(Path::to_owned)
    }

    /// Closes a client that can't be served. It finds the end of the connection, whatever it has sent meanwhile.
    pub fn turn_away(&self, client: UnixStream) {
        drain(&client);
    }

    /// The next client, if one is waiting.
    ///
    /// # Errors
    /// What accept says; the listener stays usable.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            // ECONNABORTED: the client has gone again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether nobody listens on this socket any more. A full backlog, or a socket of another type, has an owner.
fn is_stale(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .and_then(|socket| connect(socket.as_raw_fd(), &UnixAddr::new(path)?));
    connected == Err(Errno::ECONNREFUSED)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.made
            && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.ino() == *inode)
        {
            // What can't be removed is replaced by the next server that binds there.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        drop(first);
        assert!(!path.exists());
        let flags = SockFlag::empty();
        let packets = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        bind(packets.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&packets, Backlog::new(1).unwrap()).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse(_))));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&path),
            Err(ListenError::InTheWay(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_path_of_108_bytes_is_refused_with_its_length() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(103)));
        let error = Listener::bind(&path).unwrap_err().to_string();
        assert!(
            error.contains("108 bytes") && error.contains("107"),
            "{error}"
        );
    }

    #[test]
    fn only_a_listening_stream_socket_is_taken() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(matches!(
            Listener::from_fd(one.into()),
            Err(ListenError::NotAListener)
        ));
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            Listener::from_fd(file.into()),
            Err(ListenError::NotAListener)
        ));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(
            Listener::from_fd(tcp.into()),
            Err(ListenError::NotAListener)
        ));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::from_fd(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert!(listener.accept().unwrap().is_none());
        drop(listener);
        assert!(path.exists(), "its maker removes it");
    }
}
