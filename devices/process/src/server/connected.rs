//! The client of the moment, and what its session has to be waited for.

use nix::{errno::Errno, sys::epoll::EpollFlags};
use vfio_user::{Closed, Device, Session};

use super::watch::{Token, Watch};
use crate::control::Client;

/// A connected client.
pub(super) struct Connected {
    pub(super) session: Session,
    pub(super) client: Option<Client>,
    /// What the connection is watched for.
    watched: EpollFlags,
    irqs_watched: bool,
}

impl Connected {
    /// Begins to wait for the client's requests.
    pub(super) fn new(session: Session, watch: &Watch) -> Result<Self, Errno> {
        watch.add(&session, Token::Client)?;
        let client = session.credentials().ok().map(Client::from);
        Ok(Self {
            session,
            client,
            watched: EpollFlags::EPOLLIN,
            irqs_watched: false,
        })
    }

    /// Serves what has arrived. Says whether anything had.
    pub(super) fn serve(&mut self, device: &mut dyn Device) -> Result<bool, Closed> {
        self.session.look(device)
    }

    /// Sleeps until something arrives, and serves it. Says whether anything had.
    pub(super) fn sleep(&mut self, device: &mut dyn Device) -> Result<bool, Closed> {
        self.session.sleep(device)
    }

    /// Whether there is nothing to do until the client sends something, or ends an interrupt that is watched for.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.watched == EpollFlags::EPOLLIN
            && !self.session.wants_write()
            && (self.irqs_watched || self.session.lent().irqs.fd().is_none())
    }

    /// The connection is no longer watched: somebody sleeps in it.
    pub(super) fn pause_watch(&self, watch: &Watch) -> Result<(), Errno> {
        watch.remove(&self.session)
    }

    /// Ends [`Connected::pause_watch`].
    pub(super) fn resume_watch(&self, watch: &Watch) -> Result<(), Errno> {
        watch.add(&self.session, Token::Client)
    }

    /// Whether requests have arrived of which the connection does not tell any more.
    pub(super) fn has_requests(&self) -> bool {
        self.session.has_requests() && !self.session.is_blocked()
    }

    /// Waits for room to write while replies wait, for requests unless too many replies wait, and for interrupts that are
    /// unmasked by eventfd once there is such.
    pub(super) fn update(&mut self, watch: &Watch) -> Result<(), Errno> {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLOUT, self.session.wants_write());
        wanted.set(EpollFlags::EPOLLIN, !self.session.is_blocked());
        if wanted != self.watched {
            watch.modify(&self.session, Token::Client, wanted)?;
            self.watched = wanted;
        }
        if !self.irqs_watched
            && let Some(fd) = self.session.lent().irqs.fd()
        {
            watch.add(fd, Token::Irqs)?;
            self.irqs_watched = true;
        }
        Ok(())
    }
}
