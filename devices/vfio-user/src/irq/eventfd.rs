//! Eventfds of the client: written and read without ever waiting for it.
//!
//! The client has the same open file, and may make it block or fill its counter at any time. Reading can be told not to wait
//! (RWF_NOWAIT); for writing the kernel has no such thing, so that the counter is looked at before. A client that fills the
//! counter between the look and the write, and has made the file block, stops its own device and no other.

#![expect(unsafe_code, reason = "nix has no preadv2")]

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat},
    unistd,
};

/// An eventfd.
#[derive(Debug)]
pub(super) struct Eventfd {
    fd: OwnedFd,
    /// The kernel's number for it, which is the same for every descriptor of it.
    id: Option<u64>,
}

impl Eventfd {
    /// Takes a descriptor that the client says is an eventfd.
    ///
    /// # Errors
    /// `EINVAL` when it is something else.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        // What has no file type is one of the kernel's own kinds of file. None of them can be harmed by eight bytes, so
        // that where /proc is missing, and its kind can't be seen, nothing worse happens than that nobody is told.
        if fstat(&fd)?.st_mode & SFlag::S_IFMT.bits() != 0 {
            return Err(Errno::EINVAL);
        }
        // What else /proc says of other kinds may be as long as a client makes it.
        let id = match fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Ok(kind) if kind.as_os_str() != "anon_inode:[eventfd]" => return Err(Errno::EINVAL),
            Ok(_) => fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))
                .ok()
                .and_then(|info| id(&info)),
            Err(_) => None,
        };
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, id })
    }

    /// Whether this is surely the same eventfd.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.id.is_some() && self.id == other.id
    }

    /// Adds one to the counter. One that is full has told the client often enough.
    pub(super) fn signal(&self) {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            // An error means that the client passed something that can't be signalled, which is its own loss.
            let _ = unistd::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Empties the counter, and says whether there was anything in it.
    pub(super) fn take(&self) -> bool {
        let mut counter = [0u8; 8];
        let iovec = libc::iovec {
            iov_base: counter.as_mut_ptr().cast(),
            iov_len: counter.len(),
        };
        // SAFETY: one iovec, which is the counter's eight bytes. An eventfd has no position, which is what -1 stands for.
        let read = unsafe { libc::preadv2(self.fd.as_raw_fd(), &iovec, 1, -1, libc::RWF_NOWAIT) };
        // A kernel that can't but wait is not asked to: then the counter is left as it is, and the event is believed.
        read > 0 || Errno::last() == Errno::EOPNOTSUPP
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The number in what /proc says of an eventfd; Linux 5.2 and newer have it.
fn id(info: &str) -> Option<u64> {
    info.lines()
        .find_map(|line| line.strip_prefix("eventfd-id:"))
        .and_then(|id| id.trim().parse().ok())
}
