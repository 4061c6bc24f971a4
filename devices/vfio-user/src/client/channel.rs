//! One socket to the server: the connection itself, or its twin, on which the server asks.

use std::{collections::VecDeque, os::unix::net::UnixStream};

use super::MAX_TRANSFER_BYTES;
use crate::{
    message::Header,
    socket::{Closed, Frame, Inbox, Outbox, Reply},
};

/// The longest message: data, with what describes it.
const MAX_MESSAGE_BYTES: usize = MAX_TRANSFER_BYTES + 4096;
/// With more answers than this untaken by the server, no further request of its is read.
const MAX_ANSWERS: usize = 8;

/// A socket, with what has arrived on it and what is to leave.
pub(super) struct Channel {
    pub(super) stream: UnixStream,
    pub(super) inbox: Inbox,
    outbox: Outbox,
    /// How many bytes were ever put into the outbox.
    pushed_bytes: u64,
    /// Where in these the answers end that the server has not taken yet.
    answers: VecDeque<u64>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Inbox::new(MAX_MESSAGE_BYTES),
            outbox: Outbox::default(),
            pushed_bytes: 0,
            answers: VecDeque::new(),
        })
    }

    pub(super) fn push(&mut self, header: &Header, body: &mut Reply) {
        self.outbox.push(header, body);
        self.pushed_bytes += u64::from(header.size_bytes);
    }

    /// An answer to a request of the server.
    pub(super) fn push_answer(&mut self, header: &Header, body: &mut Reply) {
        self.push(header, body);
        self.answers.push_back(self.pushed_bytes);
    }

    /// Sends as much as the server takes now.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        let result = self.outbox.flush(&self.stream);
        let sent = self.pushed_bytes - self.outbox.len() as u64;
        while self.answers.front().is_some_and(|end| *end <= sent) {
            self.answers.pop_front();
        }
        result
    }

    pub(super) fn wants_write(&self) -> bool {
        self.outbox.len() > 0
    }

    /// Whether more may be read: a server that asks and does not take the answers is left waiting.
    pub(super) fn wants_read(&self) -> bool {
        self.answers.len() < MAX_ANSWERS
    }

    /// Takes what has arrived.
    pub(super) fn receive(&mut self) -> Result<(), Closed> {
        if self.wants_read() {
            self.inbox.receive(&self.stream)?;
        }
        Ok(())
    }

    /// The next message that may be handled.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Closed> {
        if self.wants_read() {
            self.inbox.next()
        } else {
            Ok(None)
        }
    }
}
