//! What the supervisor asks of the kernel that has no safe interface in the crates at hand: pidfds,
//! and readiness of any fd. Small, and safe from outside.
#![expect(
    unsafe_code,
    reason = "the standard library has no stable pidfd, and tokio \
              registers any fd only by an unsafe call"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

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

/// Sends a signal to that process, or with none only looks whether it could. Returns whether the process has its pid
/// still, which it has until its parent has waited for it; afterwards this does nothing.
pub(super) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Option<Signal>) -> bool {
    let number = signal.map_or(0, |it| it as libc::c_int);
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: plain numbers, a borrowed descriptor, and a null pointer, which the call allows.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            info,
            0,
        )
    };
    sent == 0
}

/// How that process ended: nothing before its parent has waited for it. An error when the kernel does not tell.
pub(super) fn pidfd_exit(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    // SAFETY: a structure of plain numbers, all of which may be zero.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    let asked = u64::from(libc::PIDFD_INFO_EXIT);
    info.mask = asked;
    // SAFETY: a borrowed descriptor, and a pointer to a structure of the size that is part of the request's number.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    match done {
        0 if info.mask & asked != 0 => Ok(Some(ExitStatus::from_raw(info.exit_code))),
        0 => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets tasks wait until `fd` can be read.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and stays the same until it is dropped, and nobody takes it out.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(watched?)
}
