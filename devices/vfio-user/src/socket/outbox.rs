//! What is to leave: messages that the peer has not yet taken.

use std::{
    collections::VecDeque,
    io::IoSlice,
    mem,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, send, sendmsg},
};
use zerocopy::IntoBytes;

use super::Closed;
use crate::message::Header;

/// Buffers that a message has made longer than this are given back: room for what region accesses need, and not for the
/// bitmap of a large guest.
const KEPT_BYTES: usize = 2 << 20;

/// With more than this waiting, no further request is taken.
const HIGH_BYTES: usize = 64 << 10;
/// As many messages with descriptors, of which each may have a few.
const HIGH_FD_MESSAGES: usize = 16;

/// What a message carries after its header.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Reply {
    pub(crate) fn clear(&mut self) {
        empty(&mut self.bytes);
        self.fds.clear();
    }
}

fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > KEPT_BYTES {
        *buffer = Vec::new();
    }
}

/// Messages that the peer has not yet taken.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// Descriptors, each set with the index in `bytes` of the message that it goes with.
    pub(super) fds: VecDeque<(usize, Vec<OwnedFd>)>,
}

impl Outbox {
    /// Appends a message.
    pub(crate) fn push(&mut self, header: &Header, reply: &mut Reply) {
        if !reply.fds.is_empty() {
            self.fds
                .push_back((self.bytes.len(), mem::take(&mut reply.fds)));
        }
        self.push_parts(header, &[&reply.bytes]);
    }

    /// Appends a message without descriptors, whose payload is in parts.
    pub(crate) fn push_parts(&mut self, header: &Header, parts: &[&[u8]]) {
        self.bytes.extend_from_slice(header.as_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether no more should be put in before the peer takes some: descriptors that wait are open.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= HIGH_BYTES || self.fds.len() >= HIGH_FD_MESSAGES
    }

    /// Sends as much as the peer takes now.
    pub(crate) fn flush(&mut self, stream: &UnixStream) -> Result<(), Closed> {
        while self.sent < self.bytes.len() {
            match self.send(stream) {
                Ok(sent) => self.sent += sent,
                Err(Errno::EAGAIN) => {
                    // What is sent makes room, or a client that reads slowly lets this grow for ever.
                    self.bytes.drain(..self.sent);
                    for (at, _) in &mut self.fds {
                        *at -= self.sent;
                    }
                    self.sent = 0;
                    return Ok(());
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(Closed::ByClient),
                Err(error) => return Err(Closed::Failed(error)),
            }
        }
        empty(&mut self.bytes);
        self.sent = 0;
        Ok(())
    }

    /// One sendmsg: up to the next message with descriptors, which begins a packet of its own, since a receiver gets them
    /// with a packet's first byte.
    fn send(&mut self, stream: &UnixStream) -> Result<usize, Errno> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let fd = stream.as_raw_fd();
        match self.fds.front() {
            Some((at, fds)) if *at == self.sent => {
                let end = self.fds.get(1).map_or(self.bytes.len(), |(at, _)| *at);
                let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
                let iov = [IoSlice::new(&self.bytes[self.sent..end])];
                let rights = [ControlMessage::ScmRights(&raw)];
                let sent = sendmsg::<()>(fd, &iov, &rights, flags, None)?;
                self.fds.pop_front();
                Ok(sent)
            }
            front => {
                let end = front.map_or(self.bytes.len(), |(at, _)| *at);
                send(fd, &self.bytes[self.sent..end], flags)
            }
        }
    }
}
