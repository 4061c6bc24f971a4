//! The connection to the client: what it sends, what it is sent, and memory that it serves by messages.

use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use crate::{
    memory::Remote,
    message::{Header, RegionAccess},
    negotiate::MAX_TRANSFER_BYTES,
    socket::{Closed, Inbox, Outbox},
};

const MAX_MESSAGE_BYTES: usize =
    size_of::<Header>() + size_of::<RegionAccess>() + MAX_TRANSFER_BYTES;

/// A connected client's socket, with what has arrived on it and what is to leave.
pub(crate) struct Link {
    pub(crate) stream: UnixStream,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
}

impl Link {
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Inbox::new(MAX_MESSAGE_BYTES),
            outbox: Outbox::default(),
        })
    }

    /// Takes what has arrived, if anything has.
    pub(crate) fn receive(&mut self) -> Result<(), Closed> {
        self.inbox.receive(&self.stream)
    }

    /// Sends as much as the client takes now.
    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        self.outbox.flush(&self.stream)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// A client that may be there: without one there is nobody to ask.
impl Remote for Option<Link> {
    fn read(&mut self, _iova: u64, _data: &mut [u8]) -> Result<(), Errno> {
        Err(self.as_ref().map_or(Errno::ENOTCONN, |_| Errno::ENOTSUP))
    }

    fn write(&mut self, _iova: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(self.as_ref().map_or(Errno::ENOTCONN, |_| Errno::ENOTSUP))
    }
}
