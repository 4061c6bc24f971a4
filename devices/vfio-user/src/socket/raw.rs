//! recvmsg, with the file descriptors that came along.

#![expect(
    unsafe_code,
    reason = "recvmsg by hand: nix drops the descriptors of a message that was cut, and they would stay open"
)]

use std::{
    mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    ptr,
};

use nix::{errno::Errno, libc};

/// The most descriptors that the kernel puts into one packet (`SCM_MAX_FD`).
pub(crate) const FDS_PER_PACKET: usize = 253;

// SAFETY: a calculation with a constant.
pub(super) const CONTROL_WORDS: usize =
    unsafe { libc::CMSG_SPACE((FDS_PER_PACKET * size_of::<RawFd>()) as u32) } as usize
        / size_of::<u64>();

/// One recvmsg: how many bytes came, the flags, and the descriptors in `fds`, also when there were more than fitted or
/// than this process may have. `control` is words, because the headers in it are aligned to them.
pub(super) fn receive_message(
    stream: &UnixStream,
    room: &mut [u8],
    control: &mut [u64],
    fds: &mut Vec<OwnedFd>,
    flags: i32,
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
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to `room` and `control`, with their sizes, and both outlive the call.
    let received = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, flags) };
    let count = Errno::result(received)?.cast_unsigned();
    if message.msg_controllen == 0 {
        return Ok((count, message.msg_flags));
    }
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
