//! What the loop waits for: one epoll, and deadlines.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        prctl,
        time::TimeSpec,
    },
};

/// Events taken at a time.
const MAX_EVENTS: usize = 16;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Client,
    /// The client unmasks an interrupt by eventfd.
    Irqs,
    Backend,
    Signal,
    Control,
    Peer(usize),
}

impl Token {
    const FIRST_PEER: u64 = 6;

    fn to_u64(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Client => 1,
            Self::Irqs => 2,
            Self::Backend => 3,
            Self::Signal => 4,
            Self::Control => 5,
            Self::Peer(index) => Self::FIRST_PEER + index as u64,
        }
    }

    fn from_u64(number: u64) -> Self {
        match number {
            0 => Self::Listener,
            1 => Self::Client,
            2 => Self::Irqs,
            3 => Self::Backend,
            4 => Self::Signal,
            5 => Self::Control,
            peer => Self::Peer((peer - Self::FIRST_PEER) as usize),
        }
    }
}

/// Descriptors, each with what it is about.
pub(super) struct Watch {
    epoll: Arc<Epoll>,
}

impl Watch {
    pub(super) fn new() -> Result<Self, Errno> {
        // The kernel wakes a thread up to 50 µs late unless it says otherwise: a NIC's interrupts are due that often.
        prctl::set_timerslack(1)?;
        Ok(Self {
            epoll: Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
        })
    }

    /// Waits for a descriptor to be readable.
    pub(super) fn add(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token.to_u64());
        self.epoll.add(fd, event)
    }

    /// Waits for something else of it.
    pub(super) fn modify(
        &self,
        fd: impl AsFd,
        token: Token,
        wanted: EpollFlags,
    ) -> Result<(), Errno> {
        let mut event = EpollEvent::new(wanted, token.to_u64());
        self.epoll.modify(fd, &mut event)
    }

    /// For somebody else who waits: it is readable when something has happened.
    pub(super) fn epoll(&self) -> Arc<Epoll> {
        Arc::clone(&self.epoll)
    }

    pub(super) fn remove(&self, fd: impl AsFd) -> Result<(), Errno> {
        self.epoll.delete(fd)
    }

    /// Waits until something happens or the time is over; `None`: for as long as it takes.
    pub(super) fn wait(
        &self,
        limit: Option<Duration>,
    ) -> Result<impl Iterator<Item = Token> + use<>, Errno> {
        let timeout = match limit {
            None => EpollTimeout::NONE,
            Some(Duration::ZERO) => EpollTimeout::ZERO,
            Some(limit) => {
                // epoll counts in milliseconds, and a packet may be due in a fraction of one.
                let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
                match ppoll(&mut fds, Some(TimeSpec::from(limit)), None) {
                    Ok(_) | Err(Errno::EINTR) => EpollTimeout::ZERO,
                    Err(errno) => return Err(errno),
                }
            }
        };
        let mut events = [EpollEvent::empty(); MAX_EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        let events = events.into_iter().take(count);
        Ok(events.map(|event| Token::from_u64(event.data())))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream, time::Instant};

    use super::*;

    #[test]
    fn a_deadline_is_kept_and_not_overslept_by_milliseconds() {
        let watch = Watch::new().unwrap();
        let limit = Duration::from_micros(100);
        let begin = Instant::now();
        // A hundred times: even a busy machine is not always late.
        let quick = (0..100).any(|_| {
            let begin = Instant::now();
            assert_eq!(watch.wait(Some(limit)).unwrap().count(), 0);
            begin.elapsed() < Duration::from_millis(1)
        });
        assert!(begin.elapsed() >= limit);
        assert!(quick, "each wait for {limit:?} took a millisecond");
    }

    #[test]
    fn who_waits_is_woken_in_time() {
        let _watch = Watch::new().unwrap();
        assert_eq!(prctl::get_timerslack(), Ok(1));
    }

    #[test]
    fn what_happens_is_told_with_and_without_a_deadline() {
        let watch = Watch::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        watch.add(&ours, Token::Peer(3)).unwrap();
        theirs.write_all(b"x").unwrap();
        for limit in [None, Some(Duration::ZERO), Some(Duration::from_secs(60))] {
            let tokens: Vec<_> = watch.wait(limit).unwrap().collect();
            assert_eq!(tokens, [Token::Peer(3)]);
        }
        watch.remove(&ours).unwrap();
        assert_eq!(watch.wait(Some(Duration::ZERO)).unwrap().count(), 0);
    }
}
