//! One DMA_READ or DMA_WRITE: from the request to its answer, and where the data is in them.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use tracing::debug;
use zerocopy::IntoBytes;

use super::{BUDGET, Link};
use crate::{
    message::{Command, DmaAccess, Header},
    socket::{Closed, Frame},
};

/// What is asked of the client.
pub(super) enum Transfer<'a> {
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

/// Where a DMA message's data is: behind a `count` of 64 bits. The clients of QEMU 10 have 32 bits there and the data at
/// once, as the protocol had it before 0.1, in messages that are as long as everybody's; later ones are right, and propose
/// the same version. Which of them this is, it shows by its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Layout {
    Wide,
    Narrow,
    /// A QEMU that has not shown it.
    Unsure,
}

impl Link {
    /// One DMA_READ or DMA_WRITE.
    pub(super) fn transfer(&mut self, iova: u64, transfer: &mut Transfer<'_>) -> Result<(), Errno> {
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
