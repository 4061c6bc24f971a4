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
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{UnixCredentials, getsockopt, sockopt},
};
use tracing::debug;

use crate::{
    Device, Lent,
    irq::Irqs,
    link::Link,
    memory::Memory,
    message::{Command, Header},
    migration::Machine,
    negotiate,
    requests::{self, Context},
    socket::{Closed, Frame, Reply},
};

/// Why a session has a link: only `Lent::default()` has none.
const CONNECTED: &str = "a session has a connection";
/// With more replies waiting than this, no further request is taken.
const OUTBOX_HIGH_BYTES: usize = 64 << 10;
/// How long a client may take to say VERSION.
const NEGOTIATION: Duration = Duration::from_secs(5);

/// A connected client.
pub struct Session {
    lent: Lent,
    /// When VERSION is due; `None` once it has been answered.
    negotiation_due: Option<Instant>,
    device_resets: u64,
    migration: Machine,
    /// The payload that is being served, and its reply: copies, so that the connection is free for memory that is reached
    /// by messages meanwhile.
    payload: Vec<u8>,
    reply: Reply,
}

impl Session {
    /// Begins with a client that has just connected to `device`.
    ///
    /// # Errors
    /// When the socket can't be used.
    pub fn new(stream: UnixStream, device: &dyn Device, now: Instant) -> std::io::Result<Self> {
        Ok(Self {
            lent: Lent {
                irqs: Irqs::new(device.irqs()),
                memory: Memory::default(),
                link: Some(Link::new(stream)?),
            },
            negotiation_due: Some(now + NEGOTIATION),
            device_resets: 0,
            migration: Machine::default(),
            payload: Vec::new(),
            reply: Reply::default(),
        })
    }

    /// Takes what has arrived, and answers it.
    ///
    /// # Errors
    /// [`Closed`]: the session is over.
    pub fn serve(&mut self, device: &mut dyn Device) -> Result<(), Closed> {
        self.link().flush()?;
        if self.is_blocked() {
            return Ok(());
        }
        self.link().receive()?;
        while let Some(frame) = self.next_frame()? {
            self.handle(device, frame)?;
            if self.is_blocked() {
                self.link().flush()?;
                if self.is_blocked() {
                    return Ok(());
                }
            }
        }
        self.link().flush()
    }

    /// The next whole message, its payload in `self.payload`.
    fn next_frame(&mut self) -> Result<Option<Frame>, Closed> {
        let link = self.lent.link.as_mut().expect(CONNECTED);
        let frame = link.inbox.next()?;
        if let Some(frame) = &frame {
            self.payload.clear();
            self.payload.extend_from_slice(link.inbox.payload(frame));
        }
        Ok(frame)
    }

    fn link(&mut self) -> &mut Link {
        self.lent.link.as_mut().expect(CONNECTED)
    }

    /// Whether the session waits for the client to take its replies, and for nothing else.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.connection().outbox.len() >= OUTBOX_HIGH_BYTES
    }

    /// Whether replies wait to be taken.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.connection().outbox.len() > 0
    }

    fn connection(&self) -> &Link {
        self.lent.link.as_ref().expect(CONNECTED)
    }

    /// Whether the client has closed its end. What it sent before may still wait to be served.
    #[must_use]
    pub fn has_hung_up(&self) -> bool {
        let hangup = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.connection().stream.as_fd(), hangup)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// When the session should be ended unless the client has negotiated by then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.negotiation_due
    }

    /// What the client lends: for work that did not begin with a request.
    pub fn lent(&mut self) -> &mut Lent {
        &mut self.lent
    }

    /// Whether the device may do anything: not while the client has stopped it to move it elsewhere, or it failed to load
    /// what was moved here.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.migration.is_running()
    }

    /// How often the client sent DEVICE_RESET.
    #[must_use]
    pub fn device_resets(&self) -> u64 {
        self.device_resets
    }

    /// Who connected.
    ///
    /// # Errors
    /// What getsockopt says.
    pub fn credentials(&self) -> nix::Result<UnixCredentials> {
        getsockopt(&self.connection().stream, sockopt::PeerCredentials)
    }
}

impl Session {
    /// Serves one message and queues the reply, if it gets one.
    fn handle(&mut self, device: &mut dyn Device, frame: Frame) -> Result<(), Closed> {
        let Frame { header, fds, .. } = frame;
        if header.flags & Header::TYPE_MASK != Header::TYPE_COMMAND {
            debug!(
                id = header.id,
                command = header.command.0,
                "reply to nothing ignored"
            );
            return Ok(());
        }
        self.reply.clear();
        let result = match (self.negotiation_due, header.command) {
            (Some(_), Command::VERSION) => negotiate::answer(&self.payload).map(|version| {
                self.reply.bytes.extend_from_slice(&version);
                self.negotiation_due = None;
            }),
            (Some(_), _) => return Err(Closed::Protocol("the first message is not VERSION")),
            (None, Command::DEVICE_RESET) => {
                self.device_resets += 1;
                device.reset(&mut self.lent);
                self.migration = Machine::default();
                Ok(())
            }
            (None, command) => {
                let mut context = Context {
                    device,
                    lent: &mut self.lent,
                    migration: &mut self.migration,
                    reply: &mut self.reply,
                };
                requests::answer(&mut context, command, &self.payload, fds)
            }
        };
        if header.flags & Header::NO_REPLY == 0 {
            self.send_reply(header, result);
        }
        Ok(())
    }

    fn send_reply(&mut self, request: Header, result: Result<(), Errno>) {
        let mut header = Header {
            flags: Header::TYPE_REPLY,
            error: 0,
            ..request
        };
        if let Err(errno) = result {
            debug!(id = request.id, command = request.command.0, %errno, "request refused");
            self.reply.clear();
            header.flags |= Header::ERROR;
            header.error = errno as u32;
        }
        header.size_bytes = (size_of::<Header>() + self.reply.bytes.len()) as u32;
        let link = self.lent.link.as_mut().expect(CONNECTED);
        link.outbox.push(&header, &mut self.reply);
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection().stream.as_fd()
    }
}
