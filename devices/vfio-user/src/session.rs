//! A session: one client from its connection to its end.
//!
//! ```text
//!   accepted --VERSION--> negotiated --requests, each answered in order--> closed
//!      |  5 s without it, or another command first                           ^
//!      +---------------------------------------------------------------------+
//! ```
//!
//! A request that can't be served is answered with an errno and leaves the session usable; only bytes that are no message
//! end it. The session takes no more requests than it can hold the replies of: when the client does not read, it waits.

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{UnixCredentials, getsockopt, sockopt},
};
use tracing::debug;
use zerocopy::IntoBytes;

use crate::{
    Device, Lent,
    irq::Irqs,
    message::{Command, Header, RegionAccess},
    negotiate::{self, MAX_TRANSFER_BYTES},
    requests,
    socket::{Closed, Inbox, Outbox},
};

const MAX_MESSAGE_BYTES: usize =
    size_of::<Header>() + size_of::<RegionAccess>() + MAX_TRANSFER_BYTES;
/// With more replies waiting than this, no further request is taken.
const OUTBOX_HIGH_BYTES: usize = 64 << 10;
/// How long a client may take to say VERSION.
const NEGOTIATION: Duration = Duration::from_secs(5);

/// A connected client.
pub struct Session {
    stream: UnixStream,
    inbox: Inbox,
    outbox: Outbox,
    state: State,
}

/// What the requests work on.
struct State {
    lent: Lent,
    /// When VERSION is due; `None` once it has been answered.
    negotiation_due: Option<Instant>,
    device_resets: u64,
}

impl Session {
    /// Begins with a client that has just connected to `device`.
    ///
    /// # Errors
    /// When the socket can't be used.
    pub fn new(stream: UnixStream, device: &dyn Device, now: Instant) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let lent = Lent {
            irqs: Irqs::new(device.irqs()),
            ..Lent::default()
        };
        Ok(Self {
            stream,
            inbox: Inbox::new(MAX_MESSAGE_BYTES),
            outbox: Outbox::default(),
            state: State {
                lent,
                negotiation_due: Some(now + NEGOTIATION),
                device_resets: 0,
            },
        })
    }

    /// Takes what has arrived, and answers it.
    ///
    /// # Errors
    /// [`Closed`]: the session is over.
    pub fn serve(&mut self, device: &mut dyn Device) -> Result<(), Closed> {
        self.outbox.flush(&self.stream)?;
        if self.is_blocked() {
            return Ok(());
        }
        self.inbox.receive(&self.stream)?;
        while let Some(frame) = self.inbox.next()? {
            let payload = self.inbox.payload(&frame);
            self.state.handle(
                device,
                frame.header,
                payload,
                frame.fds,
                self.outbox.buffer(),
            )?;
            if self.is_blocked() {
                self.outbox.flush(&self.stream)?;
                if self.is_blocked() {
                    return Ok(());
                }
            }
        }
        self.outbox.flush(&self.stream)
    }

    /// Whether the session waits for the client to take its replies, and for nothing else.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.outbox.len() >= OUTBOX_HIGH_BYTES
    }

    /// Whether replies wait to be taken.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.outbox.len() > 0
    }

    /// Whether the client has closed its end. What it sent before may still wait to be served.
    #[must_use]
    pub fn has_hung_up(&self) -> bool {
        let hangup = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.stream.as_fd(), hangup)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// When the session should be ended unless the client has negotiated by then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.state.negotiation_due
    }

    /// What the client lends: for work that did not begin with a request.
    pub fn lent(&mut self) -> &mut Lent {
        &mut self.state.lent
    }

    /// How often the client sent DEVICE_RESET.
    #[must_use]
    pub fn device_resets(&self) -> u64 {
        self.state.device_resets
    }

    /// Who connected.
    ///
    /// # Errors
    /// What getsockopt says.
    pub fn credentials(&self) -> nix::Result<UnixCredentials> {
        getsockopt(&self.stream, sockopt::PeerCredentials)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl State {
    /// Serves one message and appends the reply, if it gets one.
    fn handle(
        &mut self,
        device: &mut dyn Device,
        header: Header,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        out: &mut Vec<u8>,
    ) -> Result<(), Closed> {
        if header.flags & Header::TYPE_MASK != Header::TYPE_COMMAND {
            debug!(
                id = header.id,
                command = header.command.0,
                "reply to nothing ignored"
            );
            return Ok(());
        }
        let start = out.len();
        let mut reply = Header {
            flags: Header::TYPE_REPLY,
            error: 0,
            ..header
        };
        out.extend_from_slice(reply.as_bytes());
        let result = match (self.negotiation_due, header.command) {
            (Some(_), Command::VERSION) => negotiate::answer(payload).map(|version| {
                out.extend_from_slice(&version);
                self.negotiation_due = None;
            }),
            (Some(_), _) => return Err(Closed::Protocol("the first message is not VERSION")),
            (None, Command::DEVICE_RESET) => {
                self.device_resets += 1;
                device.reset(&mut self.lent);
                Ok(())
            }
            (None, command) => requests::answer(device, &mut self.lent, command, payload, fds, out),
        };
        if let Err(errno) = result {
            debug!(id = header.id, command = header.command.0, %errno, "request refused");
            out.truncate(start + size_of::<Header>());
            reply.flags |= Header::ERROR;
            reply.error = errno as u32;
        }
        if header.flags & Header::NO_REPLY != 0 {
            out.truncate(start);
        } else {
            reply.size_bytes = (out.len() - start) as u32;
            out[start..start + size_of::<Header>()].copy_from_slice(reply.as_bytes());
        }
        Ok(())
    }
}
