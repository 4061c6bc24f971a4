//! What has arrived and is not yet processed.
//!
//! ```text
//!   0       start              scanned            end              buffer.len()
//!   |  done |  whole messages  |  not looked at   |  room          |
//! ```
//!
//! Descriptors belong to the message that holds the last byte which arrived with them: the kernel ends a recvmsg behind
//! the packet that carried descriptors, so that this is the message they were sent with, whatever came glued before it.
//!
//! A message that is larger than the limit is never stored: its header stays, for the error reply, and its bytes are
//! dropped as they come. Only a size that is smaller than a header leaves no boundary to go on from.

use std::{
    collections::VecDeque,
    ops::Range,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use nix::{errno::Errno, libc};
use zerocopy::FromBytes;

use super::{
    Closed, close, do_not_linger,
    raw::{CONTROL_WORDS, FDS_PER_PACKET, receive_message},
};
use crate::{message::Header, negotiate::MAX_MESSAGE_FDS};

/// A client that lets more descriptors than this wait to be processed is cut off.
pub(super) const MAX_WAITING_FDS: usize = 2 * FDS_PER_PACKET;
pub(super) const HEADER_BYTES: usize = size_of::<Header>();

/// What has arrived and is not yet processed.
pub(crate) struct Inbox {
    pub(super) buffer: Box<[u8]>,
    /// The largest message that is taken.
    pub(super) max_message_bytes: usize,
    /// The unprocessed part of `buffer`.
    pub(super) filled: Range<usize>,
    /// Where the first message begins that has not been looked at.
    pub(super) scanned: usize,
    /// Where the headers are whose messages were too large.
    pub(super) refused: VecDeque<usize>,
    /// Bytes of such a message that are still to come.
    pub(super) skip: usize,
    /// Room for control messages.
    control: [u64; CONTROL_WORDS],
    /// Descriptors, each with the index in `buffer` of the last byte that came with it.
    pub(super) fds: VecDeque<(usize, OwnedFd)>,
}

/// A message, in the inbox.
pub(crate) struct Frame {
    pub(crate) header: Header,
    payload: Range<usize>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Why it can't be served, whatever it says. There is no payload then, and no descriptor.
    pub(crate) refused: Option<Errno>,
}

impl Inbox {
    /// For messages of up to `max_message_bytes`.
    pub(crate) fn new(max_message_bytes: usize) -> Self {
        Self {
            // A largest message fits, and another behind it: a reply that is waited for, behind requests that are not
            // yet served. The kernel gives the pages when they are first used.
            buffer: vec![0; 2 * max_message_bytes].into_boxed_slice(),
            max_message_bytes,
            filled: 0..0,
            scanned: 0,
            refused: VecDeque::new(),
            skip: 0,
            control: [0; CONTROL_WORDS],
            fds: VecDeque::new(),
        }
    }

    /// Takes what has arrived, and says whether anything had. Does not wait.
    pub(crate) fn receive(&mut self, stream: &UnixStream) -> Result<bool, Closed> {
        self.receive_with(stream, libc::MSG_DONTWAIT)
    }

    /// Waits until something arrives, and takes it. Nothing may have when a signal came.
    pub(crate) fn wait(&mut self, stream: &UnixStream) -> Result<bool, Closed> {
        self.receive_with(stream, 0)
    }

    fn receive_with(&mut self, stream: &UnixStream, flags: i32) -> Result<bool, Closed> {
        self.make_room();
        let room = &mut self.buffer[self.filled.end..];
        if room.is_empty() {
            // Whole messages are waiting for the client to take its replies.
            return Ok(false);
        }
        let mut fds = Vec::new();
        let (count, flags) = match receive_message(stream, room, &mut self.control, &mut fds, flags)
        {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            Err(Errno::ECONNRESET) => return Err(Closed::ByClient),
            Err(error) => return Err(Closed::Failed(error)),
        };
        if count == 0 {
            return Err(Closed::ByClient);
        }
        let start = self.filled.end;
        self.filled.end += count;
        if !fds.is_empty() {
            let last = self.filled.end - 1;
            self.fds.extend(fds.into_iter().map(|fd| (last, fd)));
        }
        if flags & libc::MSG_CTRUNC != 0 {
            return Err(Closed::Protocol(
                "file descriptors were lost: this process may open no more",
            ));
        }
        if self.fds.len() > MAX_WAITING_FDS {
            return Err(Closed::Protocol(
                "too many file descriptors wait for their messages to be processed",
            ));
        }
        if self.skip > 0 {
            let skipped = self.skip.min(count);
            self.skip -= skipped;
            self.remove(start..start + skipped);
        }
        Ok(true)
    }

    /// The next whole message, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Closed> {
        let start = self.filled.start;
        if start == self.scanned && !self.scan()? {
            return Ok(None);
        }
        let header = self.header(start);
        let too_large = self.refused.front() == Some(&start);
        if too_large {
            self.refused.pop_front();
        }
        let end = start
            + if too_large {
                HEADER_BYTES
            } else {
                header.size_bytes as usize
            };
        self.filled.start = end;
        let mut frame = Frame {
            header,
            payload: start + HEADER_BYTES..end,
            fds: self.take_fds(end),
            refused: None,
        };
        if too_large || frame.fds.len() > MAX_MESSAGE_FDS {
            frame.refused = Some(if too_large {
                Errno::EMSGSIZE
            } else {
                Errno::E2BIG
            });
            frame.payload = end..end;
            frame.fds.clear();
        }
        Ok(Some(frame))
    }

    /// The next reply, if it has arrived whole: taken from behind the requests that came before it, which stay. It is
    /// to be [removed](Self::discard) once it has been read, before anything else is received.
    pub(crate) fn next_reply(&mut self) -> Result<Option<Frame>, Closed> {
        loop {
            let start = self.scanned;
            if !self.scan()? {
                return Ok(None);
            }
            let header = self.header(start);
            if header.flags & Header::TYPE_MASK == Header::TYPE_COMMAND {
                continue;
            }
            let too_large = self.refused.back() == Some(&start);
            if too_large {
                self.refused.pop_back();
            }
            return Ok(Some(Frame {
                header,
                payload: start + HEADER_BYTES..self.scanned,
                fds: Vec::new(),
                refused: too_large.then_some(Errno::EMSGSIZE),
            }));
        }
    }

    /// Removes what [`Self::next_reply`] gave.
    pub(crate) fn discard(&mut self, reply: Frame) {
        let start = reply.payload.start - HEADER_BYTES;
        self.scanned = start;
        self.remove(start..reply.payload.end);
    }

    /// What was received and not yet taken by [`Self::next`].
    pub(crate) fn waiting(&self) -> &[u8] {
        &self.buffer[self.filled.clone()]
    }

    pub(crate) fn payload(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.payload.clone()]
    }

    /// Whether [`Self::next`] has something to say now: what [`Self::next_reply`] has passed over, and what came behind a
    /// reply, or while nobody looked.
    pub(crate) fn has_next(&self) -> bool {
        let rest = &self.buffer[self.scanned..self.filled.end];
        let is_next = |(header, _): (Header, _)| {
            let size = header.size_bytes as usize;
            size <= rest.len() || size > self.max_message_bytes
        };
        self.filled.start < self.scanned || Header::read_from_prefix(rest).is_ok_and(is_next)
    }

    /// Whether nothing more can be received before messages are processed.
    pub(crate) fn is_full(&self) -> bool {
        self.filled.len() == self.buffer.len()
    }

    /// Looks at the next message: whether it is whole. One that is too large shrinks to its header.
    pub(super) fn scan(&mut self) -> Result<bool, Closed> {
        let rest = &self.buffer[self.scanned..self.filled.end];
        let Ok((header, _)) = Header::read_from_prefix(rest) else {
            return Ok(false);
        };
        let size = header.size_bytes as usize;
        if size < HEADER_BYTES {
            return Err(Closed::Protocol("a message is smaller than its header"));
        }
        if size > self.max_message_bytes {
            let start = self.scanned;
            self.scanned += HEADER_BYTES;
            let body = (size - HEADER_BYTES).min(self.filled.end - self.scanned);
            self.skip = size - HEADER_BYTES - body;
            self.refused.push_back(start);
            self.remove(self.scanned..self.scanned + body);
            return Ok(true);
        }
        if size > rest.len() {
            return Ok(false);
        }
        self.scanned += size;
        Ok(true)
    }

    /// The header at `start`, which [`Self::scan`] has seen.
    pub(super) fn header(&self, start: usize) -> Header {
        Header::read_from_prefix(&self.buffer[start..])
            .map(|(header, _)| header)
            .unwrap_or_default()
    }

    /// The descriptors that came with the message that ends before `end`, and with nothing before it.
    fn take_fds(&mut self, end: usize) -> Vec<OwnedFd> {
        if self.fds.is_empty() {
            return Vec::new();
        }
        let count = self.fds.partition_point(|(last, _)| *last < end);
        let fds: Vec<_> = self.fds.drain(..count).map(|(_, fd)| fd).collect();
        fds.iter().for_each(do_not_linger);
        fds
    }

    /// Takes bytes out of the buffer, and closes the descriptors that came with them.
    fn remove(&mut self, range: Range<usize>) {
        let from = self.fds.partition_point(|(last, _)| *last < range.start);
        let to = self.fds.partition_point(|(last, _)| *last < range.end);
        close(self.fds.drain(from..to).map(|(_, fd)| fd));
        self.buffer
            .copy_within(range.end..self.filled.end, range.start);
        self.filled.end -= range.len();
        for (last, _) in self.fds.range_mut(from..) {
            *last -= range.len();
        }
    }

    /// Moves what is left to the front, when the rest of a message might not fit behind it.
    fn make_room(&mut self) {
        let start = self.filled.start;
        if start == 0 {
            return;
        }
        if !self.filled.is_empty() {
            if self.buffer.len() - self.filled.end >= self.max_message_bytes {
                return;
            }
            self.buffer.copy_within(self.filled.clone(), 0);
        }
        self.filled = 0..self.filled.len();
        self.scanned -= start;
        self.refused.iter_mut().for_each(|at| *at -= start);
        self.fds.iter_mut().for_each(|(last, _)| *last -= start);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        close(self.fds.drain(..).map(|(_, fd)| fd));
    }
}
