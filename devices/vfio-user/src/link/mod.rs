//! The connection to the client: what it sends, what it is sent, and memory that it serves by messages.
//!
//! Memory without a descriptor is reached by DMA_READ and DMA_WRITE, in the middle of a request of the client's or outside
//! of one. They go to the twin socket, if there is one. Otherwise they go in band, behind the replies that already wait;
//! requests that come before the answer are passed over, and served in order afterwards. A client that sends more of
//! those than are held, and does not answer, ends its session, and so does one that takes too long.
//!
//! QEMU's client does take too long, unless nothing is asked of the device meanwhile: it holds a lock while it waits for a
//! reply of ours, and serves memory under the same lock. Its guest's memory is to be shared.

mod channel;
mod transfer;

pub(crate) use channel::Channel;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::{
    memory::Remote,
    negotiate::{MAX_TRANSFER_BYTES, Negotiated},
    socket::{Closed, drain},
};
use channel::SavedChannel;
use transfer::{Layout, Transfer};

/// How long a client may take for all that it is asked in one turn of the loop.
const BUDGET: Duration = Duration::from_secs(5);

/// A connected client.
pub(crate) struct Link {
    pub(crate) main: Channel,
    /// Where the client is asked, if not on `main`.
    twin: Option<Channel>,
    /// Data that the client takes or gives at a time.
    max_transfer_bytes: usize,
    layout: Layout,
    next_id: u16,
    /// What is left of the time for this turn of the loop.
    budget: Duration,
    /// Why nothing can be asked any more.
    broken: Option<Closed>,
}

/// A connection's values; its descriptors are beside it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedLink {
    main: SavedChannel,
    twin: Option<SavedChannel>,
    layout: Layout,
    next_id: u16,
}

impl Link {
    pub(crate) fn new(stream: UnixStream) -> std::io::Result<Self> {
        Ok(Self {
            main: Channel::new(stream)?,
            twin: None,
            max_transfer_bytes: MAX_TRANSFER_BYTES,
            layout: Layout::Wide,
            next_id: 0,
            budget: BUDGET,
            broken: None,
        })
    }

    /// From now on the client is asked as was agreed, on the twin socket if there is one.
    ///
    /// # Errors
    /// When the twin socket can't be used.
    pub(crate) fn negotiated(
        &mut self,
        negotiated: &Negotiated,
        twin: Option<UnixStream>,
    ) -> std::io::Result<()> {
        self.twin = twin.map(Channel::new).transpose()?;
        self.max_transfer_bytes = negotiated.max_transfer_bytes;
        if negotiated.is_qemu {
            self.layout = Layout::Unsure;
        }
        Ok(())
    }

    /// Appends to `fds` what [`Link::restore`] wants. Between turns of the loop nothing is asked of the client.
    pub(crate) fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedLink> {
        Ok(SavedLink {
            main: self.main.save(fds)?,
            twin: match &self.twin {
                Some(twin) => Some(twin.save(fds)?),
                None => None,
            },
            layout: self.layout,
            next_id: self.next_id,
        })
    }

    /// Puts together what [`Link::save`] took apart, for a client with whom this was agreed on.
    ///
    /// # Errors
    /// `EINVAL` for what can't be, or what getsockopt says of a descriptor.
    pub(crate) fn restore(
        saved: SavedLink,
        negotiated: Option<&Negotiated>,
        fds: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<Self, Errno> {
        let main = Channel::restore(saved.main, fds)?;
        let twin = saved.twin.map(|twin| Channel::restore(twin, fds));
        let twin = twin.transpose()?;
        if twin.is_some() != negotiated.is_some_and(|negotiated| negotiated.twin_socket) {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            main,
            twin,
            max_transfer_bytes: negotiated.map_or(MAX_TRANSFER_BYTES, |negotiated| {
                negotiated.max_transfer_bytes
            }),
            layout: saved.layout,
            next_id: saved.next_id,
            budget: BUDGET,
            broken: None,
        })
    }

    /// Takes what still lies in the sockets: they are to be closed.
    pub(crate) fn drain(&self) {
        drain(&self.main.stream);
        if let Some(twin) = &self.twin {
            drain(&twin.stream);
        }
    }

    /// A turn of the loop begins: the client has its time again.
    pub(crate) fn begin_turn(&mut self) {
        self.budget = BUDGET;
    }

    /// Whether the client was asked for memory in this turn.
    pub(crate) fn has_waited(&self) -> bool {
        self.budget < BUDGET
    }

    /// # Errors
    /// Why the connection is over, when something that was asked of the client ended it.
    pub(crate) fn check(&self) -> Result<(), Closed> {
        self.broken.map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("stream", &self.main.stream)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// A client that may be there: without one there is nobody to ask.
impl Remote for Option<Link> {
    fn read(&mut self, iova: u64, data: &mut [u8]) -> Result<(), Errno> {
        let (link, chunk) = link_and_chunk(self)?;
        for (index, data) in data.chunks_mut(chunk).enumerate() {
            let at = iova.wrapping_add((index * chunk) as u64);
            link.transfer(at, &mut Transfer::Read(data))?;
        }
        Ok(())
    }

    fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        let (link, chunk) = link_and_chunk(self)?;
        for (index, data) in data.chunks(chunk).enumerate() {
            let at = iova.wrapping_add((index * chunk) as u64);
            link.transfer(at, &mut Transfer::Write(data))?;
        }
        Ok(())
    }
}

/// Whom to ask, and for how much at a time.
fn link_and_chunk(link: &mut Option<Link>) -> Result<(&mut Link, usize), Errno> {
    let link = link.as_mut().ok_or(Errno::ENOTCONN)?;
    match link.max_transfer_bytes {
        0 => Err(Errno::EMSGSIZE),
        chunk => Ok((link, chunk)),
    }
}
