//! A socket of the client's, with what has arrived on it and what is to leave.

use std::os::{
    fd::{AsRawFd, OwnedFd},
    unix::net::UnixStream,
};

use nix::{
    errno::Errno,
    poll::PollFlags,
    sys::socket::{
        AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    message::{Header, RegionAccess},
    negotiate::MAX_TRANSFER_BYTES,
    socket::{Closed, Inbox, Outbox, SavedInbox, SavedOutbox},
};

const MAX_MESSAGE_BYTES: usize =
    size_of::<Header>() + size_of::<RegionAccess>() + MAX_TRANSFER_BYTES;

/// A socket, with what has arrived on it and what is to leave.
pub(crate) struct Channel {
    pub(crate) stream: UnixStream,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedChannel {
    inbox: SavedInbox,
    outbox: SavedOutbox,
}

impl Channel {
    pub(super) fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedChannel> {
        fds.push(self.stream.try_clone()?.into());
        Ok(SavedChannel {
            inbox: self.inbox.save(fds)?,
            outbox: self.outbox.save(fds)?,
        })
    }

    pub(super) fn restore(
        saved: SavedChannel,
        fds: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<Self, Errno> {
        let stream = stream(fds.next().ok_or(Errno::EINVAL)?)?;
        let mut channel = Self::new(stream).map_err(|_| Errno::EINVAL)?;
        channel.inbox.restore(saved.inbox, fds)?;
        channel.outbox = Outbox::restore(&saved.outbox, fds)?;
        Ok(channel)
    }

    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        // Each call says whether it waits.
        stream.set_nonblocking(false)?;
        Ok(Self {
            stream,
            inbox: Inbox::new(MAX_MESSAGE_BYTES),
            outbox: Outbox::default(),
        })
    }

    /// Takes what has arrived, and says whether anything had.
    pub(crate) fn receive(&mut self) -> Result<bool, Closed> {
        self.inbox.receive(&self.stream)
    }

    /// Waits until something arrives, and takes it.
    pub(crate) fn wait(&mut self) -> Result<bool, Closed> {
        self.inbox.wait(&self.stream)
    }

    /// Sends as much as the client takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        self.outbox.flush(&self.stream)
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> PollFlags {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, !self.inbox.is_full());
        wanted.set(PollFlags::POLLOUT, self.outbox.len() > 0);
        wanted
    }

    /// Acts on what poll said.
    pub(super) fn advance(&mut self, ready: PollFlags) -> Result<(), Closed> {
        if ready.contains(PollFlags::POLLOUT) {
            self.flush()?;
        }
        if ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            if self.inbox.is_full() {
                return Err(Closed::ByClient);
            }
            self.receive()?;
        }
        Ok(())
    }
}

/// A connection, of all that a descriptor can be.
///
/// # Errors
/// `ENOTSOCK` or `EINVAL` for something else.
fn stream(fd: OwnedFd) -> Result<UnixStream, Errno> {
    let is_stream = getsockopt(&fd, sockopt::SockType)? == SockType::Stream;
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    let is_unix = address.family() == Some(AddressFamily::Unix);
    if is_stream && is_unix && !getsockopt(&fd, sockopt::AcceptConn)? {
        Ok(fd.into())
    } else {
        Err(Errno::EINVAL)
    }
}
