//! A server that does what a test says, byte by byte, right or wrong.

use std::{
    io::Read,
    os::{fd::RawFd, unix::net::UnixStream},
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::wire::{self, Message, message};

/// The server's end of a connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
}

/// Starts a server that does what `script` says. Returns the client's end, and what `script` returns.
pub(crate) fn server<T: Send + 'static>(
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (UnixStream, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer::new(ours);
    (theirs, thread::spawn(move || script(&mut peer)))
}

impl Peer {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self { stream }
    }

    /// The next message, whole.
    pub(crate) fn receive(&mut self) -> Message {
        wire::receive(&self.stream)
    }

    /// Sends a message of any kind.
    pub(crate) fn send(
        &mut self,
        id: u16,
        command: u16,
        flags: u32,
        payload: &[u8],
        fds: &[RawFd],
    ) {
        wire::send(&self.stream, &message(id, command, flags, payload), fds);
    }

    /// Takes a request, and grants it.
    pub(crate) fn grant(&mut self, payload: &[u8], fds: &[RawFd]) -> Message {
        let request = self.receive();
        self.send(request.id, request.command, 1, payload, fds);
        request
    }

    /// Negotiates 0.1 with these capabilities.
    pub(crate) fn negotiate(&mut self, capabilities: &str, fds: &[RawFd]) -> Message {
        let data = format!("{{\"capabilities\":{capabilities}}}\0");
        self.grant(&[b"\0\0\x01\0", data.as_bytes()].concat(), fds)
    }

    /// Until the client leaves.
    pub(crate) fn wait_for_the_end(&mut self) {
        while self.stream.read(&mut [0; 4096]).unwrap() > 0 {}
    }
}
