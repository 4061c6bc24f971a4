//! Requests and their replies, and the server's own requests in between.
//!
//! The server answers in order ("Command Concurrency"), so that a reply belongs to the oldest request that has none:
//! `expected` holds those, `arrived` the replies that nobody has collected yet.

use std::{
    collections::VecDeque,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{Error, Memory, Options, Reply, channel::Channel, error::name, memory};
use crate::{
    message::{Command, Header},
    socket,
};

/// As many descriptors as the kernel puts into one packet (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// A request to send.
pub(super) struct Request<'a> {
    pub(super) command: Command,
    pub(super) flags: u32,
    /// The payload, one behind the other.
    pub(super) parts: [&'a [u8]; 3],
    pub(super) fds: &'a [BorrowedFd<'a>],
    /// A reply whose payload is longer breaks the protocol.
    pub(super) max_reply_bytes: usize,
}

impl Request<'_> {
    /// A header alone, answered by one.
    pub(super) fn new(command: Command) -> Self {
        Self {
            command,
            flags: 0,
            parts: [&[]; 3],
            fds: &[],
            max_reply_bytes: 0,
        }
    }
}

/// A request whose reply has not arrived.
struct Expected {
    /// Counts the requests with a reply.
    number: u64,
    id: u16,
    command: Command,
    max_reply_bytes: usize,
    /// False: nobody waits for it any more.
    wanted: bool,
}

/// What the server answered, and will.
#[derive(Default)]
struct Replies {
    expected: VecDeque<Expected>,
    /// By the number of the request.
    arrived: VecDeque<(u64, Reply)>,
}

/// The sockets of one session.
pub(super) struct Connection<M> {
    main: Channel,
    twin: Option<Channel>,
    pub(super) memory: M,
    pub(super) timeout: Duration,
    spin: Duration,
    /// How much the server may ask for at once.
    max_transfer_bytes: usize,
    /// Of the last request.
    id: u16,
    /// How many requests with a reply there were.
    count: u64,
    replies: Replies,
    /// Something went wrong that nothing can follow.
    is_over: bool,
    /// How many requests of the server were answered.
    answered: u64,
}

impl<M: Memory> Connection<M> {
    pub(super) fn new(stream: UnixStream, options: &Options, memory: M) -> Result<Self, Error> {
        Ok(Self {
            main: channel(stream)?,
            twin: None,
            memory,
            timeout: options.timeout,
            spin: options.spin,
            max_transfer_bytes: options.max_transfer_bytes(),
            id: 0,
            count: 0,
            replies: Replies::default(),
            is_over: false,
            answered: 0,
        })
    }

    /// From now on the server asks on this socket.
    pub(super) fn set_twin(&mut self, stream: UnixStream) -> Result<(), Error> {
        self.twin = Some(channel(stream)?);
        Ok(())
    }

    /// Appends a request to what is to be sent; returns its number when it is to have a reply.
    pub(super) fn queue(&mut self, request: &Request<'_>) -> Result<Option<u64>, Error> {
        if self.is_over {
            return Err(Error::Over);
        }
        if request.fds.len() > MAX_FDS {
            return Err(Error::Argument(
                "the kernel passes at most 253 descriptors at once",
            ));
        }
        let len: usize = request.parts.iter().map(|part| part.len()).sum();
        let size_bytes = u32::try_from(size_of::<Header>() + len)
            .map_err(|_| Error::Argument("a message is larger than its size field can say"))?;
        let fds = request.fds.iter().map(|fd| fd.try_clone_to_owned());
        let mut body = socket::Reply {
            bytes: request.parts.concat(),
            fds: fds.collect::<Result<_, _>>().map_err(failed)?,
        };
        self.id = self.id.wrapping_add(1);
        let header = Header {
            id: self.id,
            command: request.command,
            size_bytes,
            flags: Header::TYPE_COMMAND | request.flags,
            error: 0,
        };
        self.main.push(&header, &mut body);
        if request.flags & Header::NO_REPLY != 0 {
            return Ok(None);
        }
        self.count += 1;
        self.replies.expected.push_back(Expected {
            number: self.count,
            id: self.id,
            command: request.command,
            max_reply_bytes: request.max_reply_bytes,
            wanted: true,
        });
        Ok(Some(self.count))
    }

    /// Sends everything that was queued.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.run("room for a request", self.timeout, |it| {
            !it.main.wants_write()
        })
    }

    /// Sends a request after those that were queued, and waits for its reply.
    pub(super) fn call(&mut self, request: &Request<'_>) -> Result<Reply, Error> {
        let number = self
            .queue(request)?
            .ok_or(Error::Argument("a request without a reply is posted"))?;
        self.wait(number, request.command, self.timeout)
    }

    /// Waits for the reply to the request that was queued last.
    pub(super) fn wait(
        &mut self,
        number: u64,
        command: Command,
        within: Duration,
    ) -> Result<Reply, Error> {
        let last = |it: &Self| it.replies.arrived.back().map(|(number, _)| *number);
        let outcome = self.run(name(command), within, |it| last(it) == Some(number));
        if let Err(error) = outcome {
            self.replies.give_up(number);
            return Err(error);
        }
        let (_, reply) = self.replies.arrived.pop_back().expect("it has arrived");
        Ok(reply)
    }

    /// The reply to the oldest request that nobody has collected.
    pub(super) fn next_reply(&mut self) -> Result<Reply, Error> {
        if self.outstanding() == 0 {
            return Err(Error::Argument("no request is waiting for a reply"));
        }
        let oldest = self.replies.expected.front();
        let what = oldest.map_or("", |expected| name(expected.command));
        self.run(what, self.timeout, |it| !it.replies.arrived.is_empty())?;
        let (_, reply) = self.replies.arrived.pop_front().expect("it has arrived");
        Ok(reply)
    }

    pub(super) fn outstanding(&self) -> usize {
        let wanted = self.replies.expected.iter().filter(|it| it.wanted);
        self.replies.arrived.len() + wanted.count()
    }

    /// Answers the server for a while.
    pub(super) fn serve(&mut self, duration: Duration) -> Result<u64, Error> {
        let before = self.answered;
        match self.run("", duration, |_| false) {
            Ok(()) | Err(Error::Late { .. }) => Ok(self.answered - before),
            Err(error) => Err(error),
        }
    }

    /// The first bytes that the server sent, once there are `len` of them or no more will come.
    pub(super) fn first_bytes(&mut self, len: usize) -> Vec<u8> {
        let deadline = after(self.timeout);
        loop {
            let sent = self.main.flush();
            let received = self.main.receive();
            let waiting = self.main.inbox.waiting();
            let over = sent.is_err() || received.is_err() || Instant::now() >= deadline;
            if waiting.len() >= len || over || self.sleep(deadline).is_err() {
                return self.main.inbox.waiting().iter().copied().take(64).collect();
            }
        }
    }

    /// Sends, receives and answers until `done`, for which it waits at most `within`. After an error that leaves the
    /// two sides at odds there is no other attempt.
    fn run(
        &mut self,
        what: &'static str,
        within: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), Error> {
        if self.is_over {
            return Err(Error::Over);
        }
        let result = self.exchange(what, within, done);
        if !matches!(result, Ok(()) | Err(Error::Late { .. })) {
            self.is_over = true;
            self.replies = Replies::default();
        }
        result
    }

    fn exchange(
        &mut self,
        what: &'static str,
        within: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), Error> {
        let deadline = after(within);
        let spin_until = after(self.spin);
        loop {
            // A server that closes the connection may have said something before.
            let sent = self.send();
            // Something may have been left in the inbox, too.
            self.handle()?;
            if sent.is_ok() && done(self) {
                return Ok(());
            }
            let now = Instant::now();
            if sent.is_ok() && now >= spin_until {
                if now >= deadline {
                    return Err(Error::Late { what, within });
                }
                self.sleep(deadline)?;
            }
            let received = self.receive();
            self.handle()?;
            if done(self) {
                return Ok(());
            }
            sent.and(received)?;
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        self.main.flush()?;
        if let Some(twin) = &mut self.twin {
            twin.flush()?;
        }
        Ok(())
    }

    /// Takes what has arrived on both sockets.
    fn receive(&mut self) -> Result<(), Error> {
        self.main.receive()?;
        if let Some(twin) = &mut self.twin {
            twin.receive()?;
        }
        Ok(())
    }

    /// Works on it: the server's requests are answered, its replies are kept for those who wait for them.
    fn handle(&mut self) -> Result<(), Error> {
        while let Some(frame) = self.main.next()? {
            match frame.header.flags & Header::TYPE_MASK {
                Header::TYPE_COMMAND => {
                    let max = self.max_transfer_bytes;
                    memory::answer(&mut self.memory, max, &mut self.main, &frame);
                    self.answered += 1;
                }
                Header::TYPE_REPLY => {
                    if frame.refused.is_some() {
                        return Err(Error::Protocol(
                            "a reply is larger, or has more descriptors, than was said to be taken",
                        ));
                    }
                    let payload = self.main.inbox.payload(&frame);
                    self.replies.take(frame.header, payload, frame.fds)?;
                }
                _ => return Err(Error::Protocol("a message is neither command nor reply")),
            }
        }
        let Some(twin) = &mut self.twin else {
            return Ok(());
        };
        while let Some(frame) = twin.next()? {
            if frame.header.flags & Header::TYPE_MASK != Header::TYPE_COMMAND {
                return Err(Error::Protocol(
                    "the twin socket has a message that is no command",
                ));
            }
            memory::answer(&mut self.memory, self.max_transfer_bytes, twin, &frame);
            self.answered += 1;
        }
        Ok(())
    }

    /// Until something can be sent or received.
    fn sleep(&self, deadline: Instant) -> Result<(), Error> {
        let channels = [Some(&self.main), self.twin.as_ref()];
        let mut fds: Vec<_> = channels
            .into_iter()
            .flatten()
            .map(|channel| {
                let mut events = PollFlags::empty();
                events.set(PollFlags::POLLIN, channel.wants_read());
                events.set(PollFlags::POLLOUT, channel.wants_write());
                PollFd::new(channel.stream.as_fd(), events)
            })
            .collect();
        // Rounded up, so that the last fraction of a millisecond is slept too.
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        match poll(&mut fds, PollTimeout::from(timeout)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::Failed(errno)),
        }
    }
}

impl<M> Connection<M> {
    pub(super) fn stream(&self) -> &UnixStream {
        &self.main.stream
    }
}

impl Replies {
    /// Takes a reply, which has to be the oldest request's.
    fn take(&mut self, header: Header, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Error> {
        let expected = self
            .expected
            .pop_front()
            .ok_or(Error::Protocol("a reply to nothing"))?;
        if (header.id, header.command) != (expected.id, expected.command) {
            return Err(Error::Protocol("a reply is not to the oldest request"));
        }
        let error = header.flags & Header::ERROR != 0;
        if !error && payload.len() > expected.max_reply_bytes {
            return Err(Error::Protocol("a reply is longer than was asked for"));
        }
        if expected.wanted {
            let reply = Reply {
                error: error.then(|| Errno::from_raw(header.error.cast_signed())),
                payload: payload.to_vec(),
                fds,
            };
            self.arrived.push_back((expected.number, reply));
        }
        Ok(())
    }

    /// Nobody waits for this reply any more.
    fn give_up(&mut self, number: u64) {
        if let Some(expected) = self.expected.iter_mut().find(|it| it.number == number) {
            expected.wanted = false;
        }
    }
}

/// The time that lies so far ahead; a day ahead if there is no such time.
fn after(duration: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(duration)
        .unwrap_or_else(|| now + Duration::from_secs(86400))
}

fn channel(stream: UnixStream) -> Result<Channel, Error> {
    Channel::new(stream).map_err(failed)
}

fn failed(error: std::io::Error) -> Error {
    Error::Failed(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}
