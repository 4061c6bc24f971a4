//! A server that does what a test says, byte by byte, right or wrong.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// The server's end of a connection.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
}

/// A message, as it was received.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) flags: u32,
    pub(crate) error: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
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
        let mut header = [0; 16];
        let mut fds = Vec::new();
        let mut space = cmsg_space!([RawFd; 253]);
        let mut iov = [IoSliceMut::new(&mut header)];
        let received = recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut iov,
            Some(&mut space),
            MsgFlags::MSG_WAITALL,
        )
        .unwrap();
        assert_eq!(received.bytes, 16, "the client left");
        for rights in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = rights {
                fds.extend(numbers.into_iter().map(own));
            }
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        self.stream.read_exact(&mut payload).unwrap();
        Message {
            id: u16::from_le_bytes([header[0], header[1]]),
            command: u16::from_le_bytes([header[2], header[3]]),
            flags: word(8),
            error: word(12),
            payload,
            fds,
        }
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
        let size = 16 + payload.len() as u32;
        let words = [size, flags, 0];
        let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(payload);
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let iov = [IoSlice::new(&bytes)];
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(fd, &iov, rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
        self.stream.write_all(&bytes[sent..]).unwrap();
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

#[expect(unsafe_code, reason = "nix hands received descriptors over as numbers")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for this process, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}
