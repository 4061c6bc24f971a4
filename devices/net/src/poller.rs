//! One descriptor that stands for several, so that a backend's own stays the same however often it reconnects.
//!
//! An epoll instance can itself be polled: it is readable while one of its descriptors is ready. Besides sockets it holds
//! an eventfd, which a backend raises when something is possible that no descriptor shows, such as a frame that was read
//! ahead. Everything is level-triggered.

use std::os::fd::{AsFd, BorrowedFd};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use tracing::warn;

use crate::Error;

/// An epoll instance and its eventfd.
pub(crate) struct Poller {
    epoll: Epoll,
    flag: Flag,
}

/// What is armed for one descriptor in a [`Poller`].
#[derive(Default)]
pub(crate) struct Watch {
    armed: Option<EpollFlags>,
}

/// An eventfd that is readable while it is raised.
pub(crate) struct Flag {
    eventfd: EventFd,
    raised: bool,
}

const FLAG_TOKEN: u64 = u64::MAX;
const EVENTS: usize = 4;

impl Poller {
    pub(crate) fn new() -> Result<Self, Error> {
        let flag = Flag::new()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Error::Poller)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, FLAG_TOKEN);
        epoll.add(&flag.eventfd, event).map_err(Error::Poller)?;
        Ok(Self { epoll, flag })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Makes [`Poller::fd`] readable for as long as `raised` holds.
    pub(crate) fn raise(&mut self, raised: bool) {
        self.flag.raise(raised);
    }

    /// Watches `fd` for `wanted`, and always for errors and hang-up; `None` stops watching it.
    pub(crate) fn arm(
        &self,
        watch: &mut Watch,
        token: u64,
        fd: BorrowedFd<'_>,
        wanted: Option<EpollFlags>,
    ) {
        let result = match (watch.armed, wanted) {
            (armed, wanted) if armed == wanted => return,
            (None, Some(flags)) => self.epoll.add(fd, EpollEvent::new(flags, token)),
            (Some(_), Some(flags)) => self.epoll.modify(fd, &mut EpollEvent::new(flags, token)),
            (_, None) => self.epoll.delete(fd),
        };
        match result {
            Ok(()) => watch.armed = wanted,
            // Only a host that is out of memory or of watches does this. The next change tries again.
            Err(errno) => warn!(%errno, "epoll_ctl failed"),
        }
    }

    /// What has happened to the descriptor that was armed as `token`, for each of up to `N` tokens from zero on.
    pub(crate) fn events<const N: usize>(&self) -> [EpollFlags; N] {
        const { assert!(N < EVENTS, "and one for the eventfd") };
        let mut happened = [EpollFlags::empty(); N];
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                warn!(%errno, "epoll_wait failed");
                0
            }
        };
        for event in &events[..count] {
            let slot = usize::try_from(event.data())
                .ok()
                .and_then(|token| happened.get_mut(token));
            if let Some(slot) = slot {
                *slot = event.events();
            }
        }
        happened
    }
}

impl Flag {
    pub(crate) fn new() -> Result<Self, Error> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let eventfd = EventFd::from_flags(flags).map_err(Error::Poller)?;
        Ok(Self {
            eventfd,
            raised: false,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    pub(crate) fn raise(&mut self, raised: bool) {
        if raised == self.raised {
            return;
        }
        let result = if raised {
            self.eventfd.write(1).map(drop)
        } else {
            self.eventfd.read().map(drop)
        };
        result.expect("an eventfd that alternates between zero and one never blocks");
        self.raised = raised;
    }
}
