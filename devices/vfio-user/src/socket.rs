//! The socket: bytes in with the file descriptors that came along, bytes out, nothing blocking and everything bounded.
//!
//! Everything that has arrived is taken with one recvmsg. Descriptors belong to the message that holds the last byte
//! which arrived with them: the kernel ends a recvmsg behind the packet that carried descriptors, so that this is the
//! message they were sent with, whatever came glued before it.

#![expect(
    unsafe_code,
    reason = "recvmsg by hand: nix drops the descriptors of a message that was cut, and they would stay open"
)]

use std::{
    collections::VecDeque,
    io::IoSlice,
    mem,
    ops::Range,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    ptr,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessage, MsgFlags, send, sendmsg},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::message::Header;

/// More descriptors than the kernel puts into one packet (`SCM_MAX_FD`).
const FDS_PER_PACKET: usize = 253;
/// A client that lets more descriptors than this wait for the rest of their message is cut off.
const MAX_WAITING_FDS: usize = 2 * FDS_PER_PACKET;

// SAFETY: a calculation with a constant.
const CONTROL_WORDS: usize =
    unsafe { libc::CMSG_SPACE((FDS_PER_PACKET * size_of::<RawFd>()) as u32) } as usize
        / size_of::<u64>();

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The client closed it.
    #[error("the client closed the connection")]
    ByClient,
    /// The socket failed.
    #[error("the connection failed")]
    Failed(#[source] Errno),
    /// The client broke the protocol in a way that leaves no message boundary to go on from.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
}

/// What has arrived and is not yet processed.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    /// The unprocessed part of `buffer`.
    filled: Range<usize>,
    /// Room for control messages, aligned as their headers have to be.
    control: [u64; CONTROL_WORDS],
    /// Descriptors, each with the index in `buffer` of the last byte that came with it.
    fds: VecDeque<(usize, OwnedFd)>,
}

/// A message, in the inbox.
pub(crate) struct Frame {
    pub(crate) header: Header,
    payload: Range<usize>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Inbox {
    /// For messages of up to `max_message_bytes`.
    pub(crate) fn new(max_message_bytes: usize) -> Self {
        Self {
            buffer: vec![0; max_message_bytes].into_boxed_slice(),
            filled: 0..0,
            control: [0; CONTROL_WORDS],
            fds: VecDeque::new(),
        }
    }

    /// Takes what has arrived, if anything has.
    pub(crate) fn receive(&mut self, stream: &UnixStream) -> Result<(), Closed> {
        self.make_room();
        let room = &mut self.buffer[self.filled.end..];
        if room.is_empty() {
            // Whole messages are waiting for the client to take its replies.
            return Ok(());
        }
        let mut fds = Vec::new();
        let (count, flags) = match receive_message(stream, room, &mut self.control, &mut fds) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(Errno::ECONNRESET) => return Err(Closed::ByClient),
            Err(error) => return Err(Closed::Failed(error)),
        };
        if count == 0 {
            return Err(Closed::ByClient);
        }
        if flags & libc::MSG_CTRUNC != 0 {
            return Err(Closed::Protocol(
                "file descriptors were lost: this process may open no more",
            ));
        }
        self.filled.end += count;
        let last = self.filled.end - 1;
        self.fds.extend(fds.into_iter().map(|fd| (last, fd)));
        if self.fds.len() > MAX_WAITING_FDS {
            return Err(Closed::Protocol(
                "too many file descriptors wait for the rest of their message",
            ));
        }
        Ok(())
    }

    /// The next whole message, if there is one.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Closed> {
        let filled = &self.buffer[self.filled.clone()];
        let Ok((header, _)) = Header::read_from_prefix(filled) else {
            return Ok(None);
        };
        let size = header.size_bytes as usize;
        if size < size_of::<Header>() {
            return Err(Closed::Protocol("a message is smaller than its header"));
        }
        if size > self.buffer.len() {
            return Err(Closed::Protocol("a message is larger than negotiated"));
        }
        if size > filled.len() {
            return Ok(None);
        }
        let end = self.filled.start + size;
        let payload = self.filled.start + size_of::<Header>()..end;
        self.filled.start = end;
        let mine = self.fds.partition_point(|(last, _)| *last < end);
        let fds = self.fds.drain(..mine).map(|(_, fd)| fd).collect();
        Ok(Some(Frame {
            header,
            payload,
            fds,
        }))
    }

    pub(crate) fn payload(&self, frame: &Frame) -> &[u8] {
        &self.buffer[frame.payload.clone()]
    }

    /// Moves what is left to the front, when a message might not fit behind it.
    fn make_room(&mut self) {
        let start = self.filled.start;
        if start == 0 {
            return;
        }
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        for (last, _) in &mut self.fds {
            *last -= start;
        }
    }
}

/// What a message carries after its header.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Reply {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.fds.clear();
    }
}

/// Messages that the client has not yet taken.
#[derive(Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Descriptors, each set with the index in `bytes` of the message that it goes with.
    fds: VecDeque<(usize, Vec<OwnedFd>)>,
}

impl Outbox {
    /// Appends a message.
    pub(crate) fn push(&mut self, header: &Header, reply: &mut Reply) {
        if !reply.fds.is_empty() {
            self.fds
                .push_back((self.bytes.len(), mem::take(&mut reply.fds)));
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(&reply.bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends as much as the client takes now.
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
        self.bytes.clear();
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

/// One recvmsg that does not wait: how many bytes came, the flags, and the descriptors in `fds`, also when there were
/// more than fitted or than this process may have.
fn receive_message(
    stream: &UnixStream,
    room: &mut [u8],
    control: &mut [u64],
    fds: &mut Vec<OwnedFd>,
) -> Result<(usize, i32), Errno> {
    let mut iov = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: a msghdr is integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to `room` and `control`, with their sizes, and both outlive the call.
    let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
    let count = Errno::result(received)?.cast_unsigned();
    // SAFETY: the kernel filled in the header; what these return lies in `control`, or is null.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: not null, so it is a whole header in `control`, which is aligned for it.
        let libc::cmsghdr {
            cmsg_len,
            cmsg_level,
            cmsg_type,
            ..
        } = unsafe { *header };
        if (cmsg_level, cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: a calculation.
            let bytes = cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(header) };
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel says that so many descriptors follow the header.
                let fd = unsafe { ptr::read_unaligned(data.cast::<RawFd>().add(index)) };
                // SAFETY: the kernel has just opened it for this process, and nothing else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: as for the first one.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok((count, message.msg_flags))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsFd};

    use super::*;
    use crate::message::Command;

    fn message(id: u16, payload: &[u8]) -> Vec<u8> {
        let size_bytes = 16 + payload.len() as u32;
        let header = Header {
            id,
            command: Command(1),
            size_bytes,
            ..Header::default()
        };
        [header.as_bytes(), payload].concat()
    }

    fn send_with_fds(stream: &UnixStream, bytes: &[u8], count: usize) {
        let fds = vec![stream.as_fd().as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &rights,
            MsgFlags::empty(),
            None,
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    #[test]
    fn frames_cut_at_every_byte_are_put_together() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let bytes = [message(1, b"abc"), message(2, b""), message(3, &[7; 100])].concat();
        for cut in 0..=bytes.len() {
            let mut inbox = Inbox::new(256);
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                theirs.write_all(part).unwrap();
                inbox.receive(&ours).unwrap();
                while let Some(frame) = inbox.next().unwrap() {
                    seen.push((frame.header.id, inbox.payload(&frame).to_vec()));
                }
            }
            assert_eq!(
                seen,
                [(1, b"abc".to_vec()), (2, vec![]), (3, vec![7; 100])],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&message(1, b"")).unwrap();
        send_with_fds(&theirs, &message(2, b"xy"), 2);
        theirs.write_all(&message(3, b"")).unwrap();
        send_with_fds(&theirs, &message(4, b""), 1);
        let mut inbox = Inbox::new(256);
        let mut seen = Vec::new();
        for _ in 0..4 {
            inbox.receive(&ours).unwrap();
        }
        while let Some(frame) = inbox.next().unwrap() {
            seen.push((frame.header.id, frame.fds.len()));
        }
        assert_eq!(seen, [(1, 0), (2, 2), (3, 0), (4, 1)]);
    }

    #[test]
    fn bad_sizes_end_the_connection() {
        for size_bytes in [0, 15, 257, u32::MAX] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs
                .write_all(
                    Header {
                        size_bytes,
                        ..Header::default()
                    }
                    .as_bytes(),
                )
                .unwrap();
            let mut inbox = Inbox::new(256);
            inbox.receive(&ours).unwrap();
            assert!(
                matches!(inbox.next(), Err(Closed::Protocol(_))),
                "{size_bytes}"
            );
        }
    }

    #[test]
    fn descriptors_of_a_message_that_was_cut_are_closed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (pipe, held) = nix::unistd::pipe().unwrap();
        let rights = [held.as_raw_fd(); FDS_PER_PACKET];
        let rights = [ControlMessage::ScmRights(&rights)];
        let iov = [IoSlice::new(b"x")];
        sendmsg::<()>(theirs.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        drop(held);
        // Room for a third of them: the kernel opens these and cuts the rest, as at the limit of open files.
        let mut control = [0; CONTROL_WORDS / 3];
        let mut fds = Vec::new();
        let (count, flags) = receive_message(&ours, &mut [0; 16], &mut control, &mut fds).unwrap();
        assert_eq!((count, flags & libc::MSG_CTRUNC), (1, libc::MSG_CTRUNC));
        assert!(!fds.is_empty() && fds.len() < FDS_PER_PACKET);
        drop(fds);
        // The pipe has no writer any more: none of the descriptors is left open.
        nix::unistd::write(&theirs, b"end").unwrap();
        assert_eq!(nix::unistd::read(&pipe, &mut [0; 1]), Ok(0));
    }

    #[test]
    fn an_outbox_that_is_never_empty_does_not_grow() {
        use std::io::Read;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        let mut chunk = [0; 4096];
        for _ in 0..5000 {
            outbox.bytes.extend_from_slice(&[7; 4096]);
            outbox.flush(&ours).unwrap();
            if outbox.len() > 32 << 10 {
                theirs.read_exact(&mut chunk).unwrap();
            }
        }
        assert!(outbox.len() > 0 && outbox.bytes.len() < 1 << 20);
    }

    #[test]
    fn hoarded_descriptors_end_the_connection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(256);
        let bytes = message(1, &[0; 64]);
        let result = bytes.chunks(1).take(4).try_for_each(|byte| {
            send_with_fds(&theirs, byte, FDS_PER_PACKET);
            inbox.receive(&ours)
        });
        assert!(matches!(result, Err(Closed::Protocol(_))));
    }
}
