//! What the supervisor asks of the kernel that has no safe interface in the crates at hand: pidfds,
//! and readiness of any fd. Small, and safe from outside.
#![expect(
    unsafe_code,
    reason = "the standard library has no stable pidfd, and tokio \
              registers any fd only by an unsafe call"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of the process that has this pid now.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the kernel checks them.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to that process; to one that has ended it does nothing.
pub(super) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) {
    let number = signal as libc::c_int;
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: plain numbers, a borrowed descriptor, and a null pointer, which the call allows.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            info,
            0,
        )
    };
}

/// Lets tasks wait until `fd` can be read.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and stays the same until it is dropped, and nobody takes it out.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(watched?)
}
