//! Frames over a UNIX stream socket, framed as QEMU's `-netdev stream` does it: four bytes of length, most significant
//! first, then the frame.
//!
//! ```text
//!              connected                               peer gone, or a length that no frame has
//!   waiting ---------------> connected ------------------------------------------------------> waiting
//! ```
//!
//! Waiting, the one end tries to connect every second and the other listens; frames to send are dropped. Connected, the
//! listening end accepts further peers only to close them. Frames that arrived whole before the peer went are still
//! received, frames that were queued for it are not kept for the next one.
//!
//! A batch of frames is one `send` or one `recv`. The peer's descriptor is armed for reading only while the model wants
//! frames, and for writing only while some are queued, so that neither a busy peer nor a busy model makes the loop spin.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::EpollFlags,
        socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, recv, send, socket},
    },
};
use tracing::{debug, info, warn};

use crate::{
    Backend, Error, Full, Interest, MAX_FRAME_BYTES, Offload, Received,
    config::{self, Mode},
    pace::Pace,
    poller::{Poller, Watch},
    queue::Queue,
};

const RETRY: Duration = Duration::from_secs(1);
const PATH_BYTES: usize = 107;
const ACCEPTS_PER_RUN: usize = 16;

const PEER: usize = 0;
const LISTENER: usize = 1;

/// One end of a stream.
pub(crate) struct Stream {
    path: PathBuf,
    listener: Option<Listener>,
    peer: Option<UnixStream>,
    peer_watch: Watch,
    poller: Poller,
    interest: Interest,
    incoming: Queue,
    outgoing: Queue,
    /// When to connect, or to accept, again.
    retry_at: Option<Instant>,
    arrivals: Pace,
    departures: Pace,
    refusals: Pace,
    drops: Pace,
}

/// A socket that we made, and remove again.
struct Listener {
    socket: UnixListener,
    watch: Watch,
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
}

impl Stream {
    pub(crate) fn open(config: &config::Stream) -> Result<Self, Error> {
        let path = config.path.clone();
        let name = path.as_os_str().as_bytes();
        if !(1..=PATH_BYTES).contains(&name.len()) || name.contains(&0) {
            return Err(Error::SocketPath { path });
        }
        let listener = match config.mode {
            Mode::Listen => Some(Listener::bind(&path)?),
            Mode::Connect => None,
        };
        let mut stream = Self {
            path,
            listener,
            peer: None,
            peer_watch: Watch::default(),
            poller: Poller::new()?,
            interest: Interest::default(),
            incoming: Queue::new(),
            outgoing: Queue::new(),
            retry_at: None,
            arrivals: Pace::default(),
            departures: Pace::default(),
            refusals: Pace::default(),
            drops: Pace::default(),
        };
        if stream.listener.is_none() {
            stream.connect(Instant::now());
        }
        stream.update();
        Ok(stream)
    }

    fn connect(&mut self, now: Instant) {
        match connect(&self.path) {
            Ok(peer) => self.welcome(peer),
            Err(errno) => {
                debug!(path = %self.path.display(), %errno, "no stream to connect to yet");
                self.retry_at = Some(now + RETRY);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_RUN {
            let Some(listener) = &self.listener else {
                return;
            };
            let accepted = listener
                .socket
                .accept()
                .and_then(|(peer, _)| peer.set_nonblocking(true).map(|()| peer));
            match accepted {
                Ok(peer) if self.peer.is_none() => self.welcome(peer),
                Ok(_) => {
                    if let Some(count) = self.refusals.occurred() {
                        info!(path = %self.path.display(), count, "stream closed further peers: one at a time");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    // Out of descriptors, most likely. The peer stays in the backlog, so watching would spin.
                    warn!(path = %self.path.display(), %error, "stream can't accept");
                    self.retry_at = Some(now + RETRY);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, peer: UnixStream) {
        if let Some(count) = self.arrivals.occurred() {
            info!(path = %self.path.display(), count, "stream connected");
        }
        self.peer = Some(peer);
        self.retry_at = None;
    }

    fn disconnect(&mut self, why: &str) {
        let Some(peer) = self.peer.take() else { return };
        if let Some(count) = self.departures.occurred() {
            info!(path = %self.path.display(), count, why, "stream disconnected");
        }
        self.poller
            .arm(&mut self.peer_watch, PEER as u64, peer.as_fd(), None);
        self.incoming.keep_complete();
        self.outgoing.clear();
        if self.listener.is_none() {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Disconnects from a peer that went, but first takes what it left behind, as far as there is place for it.
    fn hang_up(&mut self, why: &str) {
        while self.read() {}
        self.disconnect(why);
    }

    /// Reads ahead once. Returns whether there was something.
    fn read(&mut self) -> bool {
        let Some(peer) = &self.peer else { return false };
        let place = self.incoming.unfilled();
        if place.is_empty() {
            return false;
        }
        loop {
            match recv(peer.as_raw_fd(), place, MsgFlags::empty()) {
                Ok(0) => self.disconnect("end of stream"),
                Ok(count) => {
                    self.incoming.fill(count);
                    return true;
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {}
                Err(errno) => self.disconnect(errno.desc()),
            }
            return false;
        }
    }

    /// Writes what is queued until the peer takes no more.
    fn write(&mut self) {
        while !self.outgoing.is_empty() {
            let Some(peer) = &self.peer else { return };
            match send(
                peer.as_raw_fd(),
                self.outgoing.filled(),
                MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(count) => self.outgoing.consume(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(errno) => self.hang_up(errno.desc()),
            }
        }
    }

    /// Arms what is waited for. Only what changed costs a system call.
    fn update(&mut self) {
        if let Some(peer) = &self.peer {
            let mut wanted = EpollFlags::empty();
            wanted.set(EpollFlags::EPOLLIN, self.interest.receive);
            wanted.set(EpollFlags::EPOLLOUT, !self.outgoing.is_empty());
            self.poller.arm(
                &mut self.peer_watch,
                PEER as u64,
                peer.as_fd(),
                Some(wanted),
            );
        }
        if let Some(Listener { socket, watch, .. }) = &mut self.listener {
            let wanted = self.retry_at.is_none().then_some(EpollFlags::EPOLLIN);
            self.poller
                .arm(watch, LISTENER as u64, socket.as_fd(), wanted);
        }
        let can_receive = self.interest.receive && self.incoming.front() != Ok(None);
        let can_send = self.interest.send && self.outgoing.has_room();
        self.poller.raise(can_receive || can_send);
    }

    fn dropped(&mut self, frame_bytes: usize) {
        if let Some(count) = self.drops.occurred() {
            debug!(path = %self.path.display(), count, frame_bytes, "stream dropped frames of a length that can't be taken");
        }
    }
}

impl Backend for Stream {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.poller.fd())
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    fn run(&mut self, now: Instant) {
        // Where nobody can knock and the model will read anyway, there is nothing to ask for.
        let [peer, listener] = if self.listener.is_none() && self.interest.receive {
            [EpollFlags::EPOLLOUT, EpollFlags::empty()]
        } else {
            self.poller.events()
        };
        if peer.contains(EpollFlags::EPOLLOUT) {
            self.write();
        }
        // A model that wants frames reads up to the end itself, unless the next peer waits already.
        let hung_up = peer.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if hung_up && (!self.interest.receive || !listener.is_empty()) {
            self.hang_up("hung up");
        }
        if self.retry_at.is_some_and(|retry_at| retry_at <= now) {
            self.retry_at = None;
            if self.listener.is_none() {
                self.connect(now);
            }
        }
        if !listener.is_empty() {
            self.accept(now);
        }
        self.update();
    }

    fn wait_for(&mut self, interest: Interest) {
        self.interest = interest;
        self.update();
    }

    fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Full> {
        debug_assert_eq!(offload, Offload::None, "none is advertised");
        if self.peer.is_none() {
            return Ok(());
        }
        if frame.is_empty() || frame.len() > MAX_FRAME_BYTES {
            self.dropped(frame.len());
            return Ok(());
        }
        if self.outgoing.push(frame).is_ok() {
            return Ok(());
        }
        self.flush();
        if self.peer.is_none() {
            return Ok(());
        }
        self.outgoing.push(frame)
    }

    fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            self.write();
            self.update();
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<Received> {
        // One read, so that a peer that never stops can't hold the loop here with frames that are dropped.
        let mut may_read = true;
        loop {
            match self.incoming.front() {
                Ok(Some(frame)) => {
                    let frame_bytes = frame.len();
                    let place = buffer
                        .get_mut(..frame_bytes)
                        .map(|place| place.copy_from_slice(frame));
                    self.incoming.pop(frame_bytes);
                    if place.is_some() {
                        return Some(Received::unverified(frame_bytes));
                    }
                    self.dropped(frame_bytes);
                }
                Ok(None) => {
                    if !(may_read && self.read()) {
                        break;
                    }
                    may_read = false;
                }
                Err(bad) => {
                    debug!(path = %self.path.display(), length = bad.0, "a length that no frame has");
                    self.disconnect("protocol error");
                }
            }
        }
        self.update();
        None
    }
}

impl Listener {
    /// Makes the socket, in place of one that nobody listens on.
    fn bind(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        let failed = |error: io::Error| {
            let path = path.clone();
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => Error::SocketDirectory { path },
                ErrorKind::PermissionDenied => Error::SocketPermission { path },
                ErrorKind::AddrInUse => Error::SocketBusy { path },
                _ => Error::Listen {
                    path,
                    source: Errno::try_from(error).unwrap_or(Errno::UnknownErrno),
                },
            }
        };
        match fs::symlink_metadata(&path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(Error::NotASocket { path });
            }
            Ok(_) => match connect(&path) {
                Err(Errno::ECONNREFUSED) => fs::remove_file(&path).map_err(failed)?,
                Err(errno @ Errno::EACCES) => return Err(failed(errno.into())),
                // A full backlog, or another type of socket, has an owner as well.
                Ok(_) | Err(_) => return Err(Error::SocketBusy { path }),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let socket = UnixListener::bind(&path).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        Ok(Self {
            socket,
            watch: Watch::default(),
            path,
            file: (metadata.dev(), metadata.ino()),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody may have replaced it meanwhile.
        let is_ours = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| is_ours(&metadata))
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "can't remove the stream's socket");
        }
    }
}

/// Connects, or fails at once where the peer's backlog is full.
fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
