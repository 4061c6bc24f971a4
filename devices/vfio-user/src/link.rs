//! The connection to the client: what it sends, what it is sent, and memory that it serves by messages.
//!
//! Memory without a descriptor is reached by DMA_READ and DMA_WRITE, in the middle of a request of the client's or outside
//! of one. They go to the twin socket, if there is one. Otherwise they go in band, behind the replies that already wait;
//! requests that come before the answer are passed over, and served in order afterwards. A client that sends more of
//! those than are held, and does not answer, ends its session, and so does one that takes too long.
//!
//! QEMU's client does take too long, unless nothing is asked of the device meanwhile: it holds a lock while it waits for a
//! reply of ours, and serves memory under the same lock. Its guest's memory is to be shared.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use tracing::debug;
use zerocopy::IntoBytes;

use crate::{
    memory::Remote,
    message::{Command, DmaAccess, Header, RegionAccess},
    negotiate::{MAX_TRANSFER_BYTES, Negotiated},
    saved,
    socket::{Closed, Frame, Inbox, Outbox, SavedInbox, SavedOutbox, drain},
};

const MAX_MESSAGE_BYTES: usize =
    size_of::<Header>() + size_of::<RegionAccess>() + MAX_TRANSFER_BYTES;
/// How long a client may take for all that it is asked in one turn of the loop.
const BUDGET: Duration = Duration::from_secs(5);

/// A socket, with what has arrived on it and what is to leave.
pub(crate) struct Channel {
    pub(crate) stream: UnixStream,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedChannel {
    inbox: SavedInbox,
    outbox: SavedOutbox,
}

impl Channel {
    fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedChannel> {
        fds.push(self.stream.try_clone()?.into());
        Ok(SavedChannel {
            inbox: self.inbox.save(fds)?,
            outbox: self.outbox.save(fds)?,
        })
    }

    fn restore(saved: SavedChannel, fds: &mut dyn Iterator<Item = OwnedFd>) -> Result<Self, Errno> {
        let stream = saved::stream(fds.next().ok_or(Errno::EINVAL)?)?;
        let mut channel = Self::new(stream).map_err(|_| Errno::EINVAL)?;
        channel.inbox.restore(saved.inbox, fds)?;
        channel.outbox = Outbox::restore(&saved.outbox, fds)?;
        Ok(channel)
    }

    fn new(stream: UnixStream) -> std::io::Result<Self> {
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
    fn interest(&self) -> PollFlags {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, !self.inbox.is_full());
        wanted.set(PollFlags::POLLOUT, self.outbox.len() > 0);
        wanted
    }

    /// Acts on what poll said.
    fn advance(&mut self, ready: PollFlags) -> Result<(), Closed> {
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

/// Where a DMA message's data is: behind a `count` of 64 bits. The clients of QEMU 10 have 32 bits there and the data at
/// once, as the protocol had it before 0.1, in messages that are as long as everybody's; later ones are right, and propose
/// the same version. Which of them this is, it shows by its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Layout {
    Wide,
    Narrow,
    /// A QEMU that has not shown it.
    Unsure,
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

/// What is asked of the client.
enum Transfer<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

/// Why a transfer failed.
enum Failure {
    /// The client said so, or its answer makes no sense.
    Refused(Errno),
    /// The connection is over.
    Closed(Closed),
}

impl From<Closed> for Failure {
    fn from(closed: Closed) -> Self {
        Self::Closed(closed)
    }
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

    /// # Errors
    /// Why the connection is over, when something that was asked of the client ended it.
    pub(crate) fn check(&self) -> Result<(), Closed> {
        self.broken.map_or(Ok(()), Err)
    }

    /// One DMA_READ or DMA_WRITE.
    fn transfer(&mut self, iova: u64, transfer: &mut Transfer<'_>) -> Result<(), Errno> {
        if self.broken.is_some() {
            return Err(Errno::ENOTCONN);
        }
        let begin = Instant::now();
        let due = begin + self.budget;
        let result = match (self.layout, &mut *transfer) {
            (Layout::Unsure, Transfer::Read(data)) => self.read_unsure(iova, data, due),
            (Layout::Unsure, Transfer::Write(data)) => self.write_unsure(iova, data, due),
            _ => self.exchange(iova, transfer, due),
        };
        self.budget = self.budget.saturating_sub(begin.elapsed());
        result.map_err(|failure| match failure {
            Failure::Refused(errno) => errno,
            Failure::Closed(closed) => {
                self.broken = Some(closed);
                // Who waits for the socket is told now.
                let _ = self.main.stream.shutdown(std::net::Shutdown::Both);
                Errno::ENOTCONN
            }
        })
    }

    /// Reads from a client whose layout is not known, and learns it if there is anything but zeros.
    fn read_unsure(&mut self, iova: u64, data: &mut [u8], due: Instant) -> Result<(), Failure> {
        self.exchange(iova, &mut Transfer::Read(&mut *data), due)?;
        let seen = data.iter().position(|byte| *byte != 0);
        let (Layout::Unsure, Some(index)) = (self.layout, seen) else {
            return Ok(());
        };
        // If it is narrow, this byte is not zero, and comes where a wide one has zeros.
        let at = iova.wrapping_add(index as u64);
        self.exchange(at, &mut Transfer::Read(&mut [0]), due)?;
        if self.layout != Layout::Narrow {
            self.layout = Layout::Wide;
            self.exchange(iova, &mut Transfer::Read(data), due)?;
        }
        Ok(())
    }

    /// Writes to a client whose layout is not known, and learns it if there is anything but zeros.
    fn write_unsure(&mut self, iova: u64, data: &[u8], due: Instant) -> Result<(), Failure> {
        let mut there = vec![0; data.len()];
        let is_zero = data.iter().all(|byte| *byte == 0);
        if !is_zero {
            match self.read_unsure(iova, &mut there, due) {
                // What may not be read can't be looked at afterwards either.
                Err(Failure::Refused(_)) => {
                    return self.exchange(iova, &mut Transfer::Write(data), due);
                }
                result => result?,
            }
        }
        self.exchange(iova, &mut Transfer::Write(data), due)?;
        if is_zero || self.layout != Layout::Unsure {
            return Ok(());
        }
        self.read_unsure(iova, &mut there, due)?;
        if self.layout == Layout::Unsure {
            // A wide one would have shown what was written.
            self.layout = Layout::Narrow;
        }
        if self.layout == Layout::Narrow {
            self.exchange(iova, &mut Transfer::Write(data), due)?;
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        iova: u64,
        transfer: &mut Transfer<'_>,
        due: Instant,
    ) -> Result<(), Failure> {
        let asked = self.ask(iova, transfer);
        loop {
            self.main.flush()?;
            if let Some(twin) = &mut self.twin {
                twin.flush()?;
            }
            if let Some(result) = self.take_answer(&asked, transfer)? {
                return result.map_err(Failure::Refused);
            }
            self.poll(due)?;
        }
    }

    /// Queues the request.
    fn ask(&mut self, iova: u64, transfer: &Transfer<'_>) -> Asked {
        let (command, count, data) = match transfer {
            Transfer::Read(data) => (Command::DMA_READ, data.len(), &[][..]),
            Transfer::Write(data) => (Command::DMA_WRITE, data.len(), *data),
        };
        let access = DmaAccess {
            address: iova,
            count: count as u64,
        };
        let header = Header {
            id: self.next_id,
            command,
            size_bytes: (size_of::<Header>() + size_of::<DmaAccess>() + data.len()) as u32,
            flags: Header::TYPE_COMMAND,
            error: 0,
        };
        self.next_id = self.next_id.wrapping_add(1);
        let (access_bytes, padding) = access.as_bytes().split_at(self.layout.data_offset());
        // Of a narrow message, what the count does not take is padding.
        let parts: [&[u8]; 3] = match self.layout {
            _ if data.is_empty() => [access_bytes, padding, &[]],
            _ => [access_bytes, data, padding],
        };
        let channel = self.twin.as_mut().unwrap_or(&mut self.main);
        channel.outbox.push_parts(&header, &parts);
        Asked { header, access }
    }

    /// The answer, if it has arrived. Other replies answer nothing and are dropped.
    fn take_answer(
        &mut self,
        asked: &Asked,
        transfer: &mut Transfer<'_>,
    ) -> Result<Option<Result<(), Errno>>, Closed> {
        loop {
            let (inbox, in_band) = match &mut self.twin {
                Some(twin) => (&mut twin.inbox, false),
                None => (&mut self.main.inbox, true),
            };
            // Nothing but replies may come on the twin socket.
            let frame = if in_band {
                inbox.next_reply()?
            } else {
                inbox.next()?
            };
            let Some(frame) = frame else {
                return Ok(None);
            };
            let answers = asked.is_answered_by(&frame.header);
            let result = answers.then(|| {
                asked.read_answer(&frame, inbox.payload(&frame), &mut self.layout, transfer)
            });
            if in_band {
                inbox.discard(frame);
            }
            if result.is_some() {
                return Ok(result);
            }
            debug!("reply to nothing ignored");
        }
    }

    /// Waits until the client sends something, or takes something.
    fn poll(&mut self, due: Instant) -> Result<(), Closed> {
        if self.twin.is_none() && self.main.inbox.is_full() {
            return Err(Closed::Protocol(
                "more requests were sent than are held while DMA_READ or DMA_WRITE is not answered",
            ));
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Closed::Unanswered(BUDGET));
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        let main = PollFd::new(self.main.stream.as_fd(), self.main.interest());
        // Without a twin, `main` is there twice.
        let twin = self.twin.as_ref().unwrap_or(&self.main);
        let twin = PollFd::new(twin.stream.as_fd(), twin.interest());
        let mut fds = [main, twin];
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Closed::Failed(errno)),
        }
        let [main, twin] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        self.main.advance(main)?;
        match &mut self.twin {
            Some(channel) => channel.advance(twin),
            None => Ok(()),
        }
    }
}

/// A request that the client has not answered.
struct Asked {
    header: Header,
    access: DmaAccess,
}

impl Asked {
    fn is_answered_by(&self, reply: &Header) -> bool {
        reply.flags & Header::TYPE_MASK == Header::TYPE_REPLY
            && (reply.id, reply.command) == (self.header.id, self.header.command)
    }

    /// Checks the answer, and takes the data.
    fn read_answer(
        &self,
        frame: &Frame,
        payload: &[u8],
        layout: &mut Layout,
        transfer: &mut Transfer<'_>,
    ) -> Result<(), Errno> {
        if let Some(errno) = frame.refused {
            return Err(errno);
        }
        if frame.header.flags & Header::ERROR != 0 {
            return Err(match Errno::from_raw(frame.header.error.cast_signed()) {
                Errno::UnknownErrno => Errno::EIO,
                errno => errno,
            });
        }
        let expected = self.access.as_bytes();
        match transfer {
            // A header alone is enough. Behind a count of 32 bits, as QEMU 10 and the specification have it, may be the
            // beginning of what was written.
            Transfer::Write(_) => match payload.len() {
                0 => Ok(()),
                12 | 16 if payload[..12] == expected[..12] => Ok(()),
                _ => Err(Errno::EBADMSG),
            },
            Transfer::Read(data) => {
                if payload.len() != expected.len() + data.len() || payload[..12] != expected[..12] {
                    return Err(Errno::EBADMSG);
                }
                layout.learn(payload);
                if *layout == Layout::Wide && payload[12..16] != [0; 4] {
                    return Err(Errno::EBADMSG);
                }
                // While that is open, zeros in front are taken for data: see `read_unsure`.
                let at = match layout {
                    Layout::Wide => 16,
                    Layout::Narrow | Layout::Unsure => 12,
                };
                data.copy_from_slice(&payload[at..at + data.len()]);
                Ok(())
            }
        }
    }
}

impl Layout {
    fn data_offset(self) -> usize {
        match self {
            Self::Wide | Self::Unsure => 16,
            Self::Narrow => 12,
        }
    }

    /// Looks at a reply to DMA_READ: the upper half of a wide count is zero, and so is the padding behind narrow data.
    fn learn(&mut self, payload: &[u8]) {
        if *self == Self::Unsure {
            if payload[12..16] != [0; 4] {
                *self = Self::Narrow;
            } else if !payload.ends_with(&[0; 4]) {
                *self = Self::Wide;
            }
        }
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
