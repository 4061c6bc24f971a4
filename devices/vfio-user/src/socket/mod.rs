//! The socket: bytes in with the file descriptors that came along, bytes out with those that go along, everything bounded.
//!
//! Everything that has arrived is taken with one recvmsg, and everything that waits leaves in one sendmsg.

mod inbox;
mod outbox;
mod raw;
mod saved;
#[cfg(test)]
mod tests;

pub(crate) use inbox::{Frame, Inbox};
pub(crate) use outbox::{Outbox, Reply};
pub(crate) use raw::FDS_PER_PACKET;
pub(crate) use saved::{SavedInbox, SavedOutbox};

use std::{
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};

/// Why a connection ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
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
    /// The client was asked for its memory and said nothing.
    #[error(
        "the client did not answer DMA_READ or DMA_WRITE within {0:?}; share the guest's memory with the device (QEMU: \
         memory-backend-memfd,share=on)"
    )]
    Unanswered(Duration),
}

/// Closing a socket of the client's must not wait for what is unsent on it, as SO_LINGER can have it.
fn do_not_linger(fd: &OwnedFd) {
    let off = libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    // What is not a socket has no such option, and is closed at once.
    let _ = setsockopt(fd, sockopt::Linger, &off);
}

/// Takes what still lies in a socket that is not used any more: closing a descriptor that is among it is then not left to
/// the kernel, which may wait. What was sent to the client stays there.
pub(crate) fn drain(stream: &UnixStream) {
    // The client can send nothing more, so that this ends.
    let _ = stream.shutdown(Shutdown::Both);
    let mut room = [0; 4096];
    let mut control = [0; raw::CONTROL_WORDS];
    loop {
        let mut fds = Vec::new();
        let flags = libc::MSG_DONTWAIT;
        let received = raw::receive_message(stream, &mut room, &mut control, &mut fds, flags);
        close(fds);
        match received {
            Ok((1.., _)) | Err(Errno::EINTR) => {}
            Ok((0, _)) | Err(_) => return,
        }
    }
}

/// Closes descriptors that nobody wants.
fn close(fds: impl IntoIterator<Item = OwnedFd>) {
    for fd in fds {
        do_not_linger(&fd);
    }
}
