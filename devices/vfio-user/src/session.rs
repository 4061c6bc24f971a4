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
//!
//! [`Session::serve`] is for an event loop and waits for nothing but memory that the client serves by messages;
//! [`Session::wait`] is for a thread that has nothing else to do, and costs one recvmsg and one sendmsg for a request that
//! comes alone, and as much for a hundred that come together.

use std::{
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
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
    link::{Channel, Link},
    memory::Memory,
    message::{Command, Header},
    migration::Machine,
    negotiate::{Negotiated, Proposal},
    requests::{self, Context},
    socket::{Closed, Frame, Reply},
};

/// Why a session has a link: only `Lent::default()` has none.
const CONNECTED: &str = "a session has a connection";
/// How long a client may take to say VERSION.
const NEGOTIATION: Duration = Duration::from_secs(5);

/// A connected client.
pub struct Session {
    pub(crate) lent: Lent,
    pub(crate) phase: Phase,
    pub(crate) device_resets: u64,
    pub(crate) migration: Machine,
    /// The payload that is being served, and its reply: copies, so that the connection is free for memory that is reached
    /// by messages meanwhile.
    payload: Vec<u8>,
    reply: Reply,
    /// How long [`Session::wait`] looks for the next message before it sleeps.
    spin: Duration,
    /// When the last one came, if that matters.
    last_message: Option<Instant>,
}

pub(crate) enum Phase {
    /// VERSION is due then.
    Accepted(Instant),
    Negotiated(Negotiated),
}

impl Session {
    /// Begins with a client that has just connected to `device`.
    ///
    /// # Errors
    /// When the socket can't be used.
    pub fn new(stream: UnixStream, device: &dyn Device, now: Instant) -> std::io::Result<Self> {
        let lent = Lent {
            irqs: Irqs::new(device.irqs()),
            memory: Memory::default(),
            link: Some(Link::new(stream)?),
        };
        Ok(Self::with(lent, now))
    }

    /// Begins with a client that lends this.
    pub(crate) fn with(lent: Lent, now: Instant) -> Self {
        Self {
            lent,
            phase: Phase::Accepted(now + NEGOTIATION),
            device_resets: 0,
            migration: Machine::default(),
            payload: Vec::new(),
            reply: Reply::default(),
            spin: Duration::ZERO,
            last_message: None,
        }
    }

    /// Takes what has arrived, and answers it. Waits for nothing but memory that the client serves by messages, and for that
    /// five seconds at most.
    ///
    /// # Errors
    /// [`Closed`]: the session is over.
    pub fn serve(&mut self, device: &mut dyn Device) -> Result<(), Closed> {
        self.look(device).map(drop)
    }

    /// As [`Session::serve`], and says whether anything had arrived: for a loop that does not sleep before it looks again.
    ///
    /// # Errors
    /// [`Closed`]: the session is over.
    pub fn look(&mut self, device: &mut dyn Device) -> Result<bool, Closed> {
        self.begin_turn()?;
        self.channel().flush()?;
        if self.is_blocked() {
            return Ok(false);
        }
        let arrived = self.channel().receive()?;
        self.answer(device)?;
        Ok(arrived)
    }

    /// As [`Session::look`], and sleeps until something arrives, unless there is something to do already. A signal ends
    /// that, and nothing else does: for a loop that has somebody who sends it one.
    ///
    /// # Errors
    /// [`Closed`]: the session is over.
    pub fn sleep(&mut self, device: &mut dyn Device) -> Result<bool, Closed> {
        if self.wants_write() || self.has_requests() || self.deadline().is_some() {
            return self.look(device);
        }
        self.begin_turn()?;
        let arrived = self.channel().wait()?;
        self.answer(device)?;
        Ok(arrived)
    }

    /// Waits until something arrives, and answers it. Returns also when a signal came, when the client took replies that it
    /// had not taken before, and when it ended an interrupt by eventfd.
    ///
    /// # Errors
    /// [`Closed`]: the session is over. Also when the client does not negotiate in time.
    pub fn wait(&mut self, device: &mut dyn Device) -> Result<(), Closed> {
        self.begin_turn()?;
        if self.wants_write() || self.deadline().is_some() {
            if self.is_blocked() || !self.has_requests() {
                self.wait_for_either()?;
            }
            return self.serve(device);
        }
        if self.has_requests() || self.spin()? || self.wait_for_message()? {
            if !self.spin.is_zero() {
                self.last_message = Some(Instant::now());
            }
            return self.answer(device);
        }
        Ok(())
    }

    /// For how long after a message [`Session::wait`] keeps looking for the next one, which takes a processor, before it
    /// sleeps, which takes time to wake from. Zero, which it is at first: not at all.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Looks for a message for as long as it was asked to, and takes it.
    fn spin(&mut self) -> Result<bool, Closed> {
        let Some(last) = self.last_message else {
            return Ok(false);
        };
        loop {
            if self.channel().receive()? {
                return Ok(true);
            }
            self.lent.irqs.serve();
            if last.elapsed() >= self.spin {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Waits for a message, and takes it; or for the end of an interrupt.
    fn wait_for_message(&mut self) -> Result<bool, Closed> {
        if self.lent.irqs.fd().is_none() {
            return self.channel().wait();
        }
        self.wait_for_either()?;
        self.channel().receive()
    }

    /// Waits for what [`Session::serve`] can make use of, or for the end of an interrupt, and no longer than for VERSION.
    fn wait_for_either(&mut self) -> Result<(), Closed> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, !self.is_blocked());
        wanted.set(PollFlags::POLLOUT, self.wants_write());
        let timeout = match self.deadline() {
            None => PollTimeout::NONE,
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Closed::Protocol("VERSION did not come in time"));
                }
                // Rounded up, so that a deadline a fraction of a millisecond away does not spin.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let stream = PollFd::new(self.connection().main.stream.as_fd(), wanted);
        let result = match self.lent.irqs.fd() {
            None => poll(&mut [stream], timeout),
            Some(irqs) => poll(&mut [stream, PollFd::new(irqs, PollFlags::POLLIN)], timeout),
        };
        self.lent.irqs.serve();
        match result {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Closed::Failed(errno)),
        }
    }

    /// Answers what has arrived.
    fn answer(&mut self, device: &mut dyn Device) -> Result<(), Closed> {
        let answered = self.answer_each(device);
        device.end_batch(&mut self.lent);
        answered?;
        self.channel().flush()
    }

    fn answer_each(&mut self, device: &mut dyn Device) -> Result<(), Closed> {
        while let Some(frame) = self.next_frame()? {
            self.handle(device, frame)?;
            self.connection().check()?;
            if self.connection().has_waited() {
                // Requests may have come meanwhile, and may come again while those are served: others want their turn.
                break;
            }
            if self.is_blocked() {
                self.channel().flush()?;
                if self.is_blocked() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// The next whole message, its payload in `self.payload`.
    fn next_frame(&mut self) -> Result<Option<Frame>, Closed> {
        let link = self.lent.link.as_mut().expect(CONNECTED);
        let inbox = &mut link.main.inbox;
        let frame = inbox.next()?;
        if let Some(frame) = &frame {
            self.payload.clear();
            self.payload.extend_from_slice(inbox.payload(frame));
        }
        Ok(frame)
    }

    /// # Errors
    /// [`Closed`]: the session ended between turns.
    fn begin_turn(&mut self) -> Result<(), Closed> {
        let link = self.lent.link.as_mut().expect(CONNECTED);
        link.begin_turn();
        link.check()
    }

    fn channel(&mut self) -> &mut Channel {
        &mut self.lent.link.as_mut().expect(CONNECTED).main
    }

    fn connection(&self) -> &Link {
        self.lent.link.as_ref().expect(CONNECTED)
    }

    /// Whether the session waits for the client to take its replies, and for nothing else.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.connection().main.outbox.is_full()
    }

    /// Whether replies wait to be taken.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.connection().main.outbox.len() > 0
    }

    /// Whether requests are here that came while the device used the client's memory, or that waited for replies to leave,
    /// which did meanwhile. They are to be [served](Session::serve), unless the session [is blocked](Session::is_blocked):
    /// the socket does not tell of them again.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        self.connection().main.inbox.has_next()
    }

    /// Whether the client has closed its end. What it sent before may still wait to be served.
    #[must_use]
    pub fn has_hung_up(&self) -> bool {
        let hangup = PollFlags::from_bits_retain(nix::libc::POLLRDHUP);
        let mut fds = [PollFd::new(self.connection().main.stream.as_fd(), hangup)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// When the session should be ended unless the client has negotiated by then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Accepted(due) => Some(due),
            Phase::Negotiated(_) => None,
        }
    }

    /// What the client lends: for work that did not begin with a request.
    pub fn lent(&mut self) -> &mut Lent {
        if let Some(link) = &mut self.lent.link {
            link.begin_turn();
        }
        &mut self.lent
    }

    /// The client's interrupts.
    #[must_use]
    pub fn irqs(&self) -> &Irqs {
        &self.lent.irqs
    }

    /// Whether the device may do anything: not while the client has stopped it to move it elsewhere, or it failed to load
    /// what was moved here.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.migration.is_running()
    }

    /// Ends the session. What the client has sent meanwhile is dropped, and the client finds the end of the connection.
    pub fn close(self) {
        self.connection().drain();
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
        getsockopt(&self.connection().main.stream, sockopt::PeerCredentials)
    }

    /// Serves one message and queues the reply, if it gets one.
    fn handle(&mut self, device: &mut dyn Device, frame: Frame) -> Result<(), Closed> {
        let Frame {
            header,
            fds,
            refused,
            ..
        } = frame;
        if header.flags & Header::TYPE_MASK != Header::TYPE_COMMAND {
            debug!(
                id = header.id,
                command = header.command.0,
                "reply to nothing ignored"
            );
            return Ok(());
        }
        self.reply.clear();
        let result = match (&self.phase, header.command) {
            (Phase::Accepted(_), command) if command != Command::VERSION => {
                return Err(Closed::Protocol("the first message is not VERSION"));
            }
            _ if let Some(errno) = refused => Err(errno),
            (Phase::Accepted(_), _) => self.negotiate(device, header, &fds),
            (Phase::Negotiated(_), Command::DEVICE_RESET) => {
                drop(fds);
                self.device_resets += 1;
                self.lent.irqs.forget_messages();
                device.reset(&mut self.lent);
                self.migration = Machine::default();
                Ok(())
            }
            (Phase::Negotiated(negotiated), command) => {
                let mut context = Context {
                    device,
                    lent: &mut self.lent,
                    migration: &mut self.migration,
                    reply: &mut self.reply,
                    negotiated,
                };
                requests::answer(&mut context, command, &self.payload, fds)
            }
        };
        if header.flags & Header::NO_REPLY == 0 {
            self.send_reply(header, result);
        }
        Ok(())
    }

    /// Answers VERSION.
    fn negotiate(
        &mut self,
        device: &mut dyn Device,
        request: Header,
        fds: &[OwnedFd],
    ) -> Result<(), Errno> {
        if !fds.is_empty() {
            return Err(Errno::EINVAL);
        }
        let proposal = Proposal::parse(&self.payload)?;
        // A client that wants no reply would not get the descriptor.
        let wants_twin = proposal.wants_twin_socket && request.flags & Header::NO_REPLY == 0;
        // Without one, in want of descriptors, memory is reached in band.
        let twin = wants_twin.then(UnixStream::pair).and_then(Result::ok);
        let can_migrate = device.migration().is_some();
        let (negotiated, version) = proposal.agree(can_migrate, twin.is_some());
        debug!(?negotiated, "negotiated");
        self.reply.bytes.extend_from_slice(&version);
        let ours = twin.map(|(ours, theirs)| {
            self.reply.fds.push(theirs.into());
            ours
        });
        let link = self.lent.link.as_mut().expect(CONNECTED);
        link.negotiated(&negotiated, ours).map_err(|_| Errno::EIO)?;
        self.phase = Phase::Negotiated(negotiated);
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
        link.main.outbox.push(&header, &mut self.reply);
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("lent", &self.lent)
            .finish_non_exhaustive()
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection().main.stream.as_fd()
    }
}
