//! Messages in bytes, as the specification lays them out, on a stream between a test and what it tests.

#![allow(dead_code, reason = "each test binary takes what it needs of it")]

use std::{
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

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

/// The bytes of a message without an error.
pub(crate) fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [id.to_le_bytes(), command.to_le_bytes()].concat();
    bytes.extend(words(&[16 + payload.len() as u32, flags, 0]));
    bytes.extend(payload);
    bytes
}

/// What REGION_READ and REGION_WRITE begin with.
pub(crate) fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}

/// Little-endian 32-bit words.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian 64-bit words.
pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// Sends all of `bytes`, and `fds` with the first of them.
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    send_with(stream, bytes, fds, || unreachable!("nobody takes it"));
}

/// Like [`send`], and does `full` whenever the stream takes no more for now.
pub(crate) fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[RawFd], mut full: impl FnMut()) {
    let rights = [ControlMessage::ScmRights(fds)];
    let mut rights = if fds.is_empty() { &[][..] } else { &rights };
    let mut rest = bytes;
    while !rest.is_empty() {
        let iov = [IoSlice::new(rest)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(stream.as_raw_fd(), &iov, rights, flags, None) {
            Ok(sent) => {
                rest = &rest[sent..];
                rights = &[];
            }
            Err(Errno::EAGAIN) => full(),
            Err(Errno::EINTR) => {}
            Err(errno) => unreachable!("{errno}"),
        }
    }
}

/// The next message, whole.
pub(crate) fn receive(stream: &UnixStream) -> Message {
    try_receive(stream).unwrap()
}

/// The next message, whole, unless the stream ends before.
pub(crate) fn try_receive(stream: &UnixStream) -> io::Result<Message> {
    receive_with(stream, || unreachable!("nothing came in time"))
}

/// Like [`try_receive`], and does `empty` whenever the stream has no more for now.
pub(crate) fn receive_with(stream: &UnixStream, mut empty: impl FnMut()) -> io::Result<Message> {
    let (mut bytes, mut fds) = (vec![0; 16], Vec::new());
    let mut got = 0;
    while got < bytes.len() {
        match receive_some(stream, &mut bytes[got..], &mut fds, MsgFlags::empty()) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => got += count,
            Err(Errno::EAGAIN) => empty(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if got == 16 {
            let size = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
            assert!(size >= 16, "a message of {size} bytes");
            bytes.resize(size as usize, 0);
        }
    }
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    Ok(Message {
        id: half(0),
        command: half(2),
        flags: word(8),
        error: word(12),
        payload: bytes.split_off(16),
        fds,
    })
}

/// Receives once: how many bytes are now in `room`; what descriptors came with them are behind those in `fds`.
pub(crate) fn receive_some(
    stream: &UnixStream,
    room: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: MsgFlags,
) -> nix::Result<usize> {
    let mut space = cmsg_space!([RawFd; 253]);
    let mut iov = [IoSliceMut::new(room)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    for rights in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = rights {
            fds.extend(numbers.into_iter().map(own));
        }
    }
    Ok(received.bytes)
}

#[expect(unsafe_code, reason = "nix hands received descriptors over as numbers")]
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for this process, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
