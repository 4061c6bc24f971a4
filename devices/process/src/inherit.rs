//! Descriptors that the parent process left open for us, by number.

#![expect(
    unsafe_code,
    reason = "a number on the command line becomes an owned descriptor"
)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::failure::Failure;

/// Takes over descriptor `number`. To be called before this process opens descriptors of its own, once for each number.
pub(crate) fn take(flag: &str, number: RawFd) -> Result<OwnedFd, Failure> {
    if number <= 2 {
        return Err(Failure::invalid(format!(
            "--{flag} {number}: 0 to 2 are the standard streams; pass 3 or more"
        )));
    }
    // SAFETY: fcntl takes any number, and says so when it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| {
        Failure::invalid(format!(
            "--{flag} {number}: {errno}; pass the number of an open file descriptor"
        ))
    })?;
    // SAFETY: the descriptor is open, and it is ours: the parent opened it for this flag, and nothing else here uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
