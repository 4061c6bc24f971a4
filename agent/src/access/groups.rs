//! The supplementary groups of the process at the other end of a UNIX socket, for which the crates at hand have no safe
//! interface.
#![expect(
    unsafe_code,
    reason = "SO_PEERGROUPS writes an array of a length that only the kernel knows"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Groups that the first question has room for.
const USUAL: usize = 64;
/// The most that a process of Linux has.
const MAX: usize = 65_536;

/// The groups that the process had when it connected.
pub(super) fn of_peer(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut room = USUAL;
    loop {
        let mut groups = vec![0_u32; room];
        let mut bytes = libc::socklen_t::try_from(size_of_val(&*groups)).expect("at most 256 KiB");
        // SAFETY: the kernel writes at most `bytes` bytes to `groups`, which has as many, and how many there are to
        // `bytes`; both outlive the call. Any bytes are numbers.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<u32>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) || count <= room || count > MAX {
                    return Err(error);
                }
                room = count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn groups_are_those_of_the_process() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        let mut groups = of_peer(&socket).unwrap();
        let mut own: Vec<_> = nix::unistd::getgroups()
            .unwrap()
            .into_iter()
            .map(nix::unistd::Gid::as_raw)
            .collect();
        groups.sort_unstable();
        own.sort_unstable();
        assert_eq!(groups, own);
    }
}
