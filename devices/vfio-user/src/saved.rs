//! A session taken apart into values and descriptors, and put together again, maybe in another process: the client notices
//! nothing.
//!
//! The values are versioned and can be written as JSON. The descriptors are the connection itself, those of messages that
//! were half received or not yet sent, one for each file with guest memory, and the interrupts' eventfds, in this order;
//! they go along by SCM_RIGHTS. The device's own state is not the session's.

use std::{io::ErrorKind, os::fd::OwnedFd, time::Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::{
    Device, Irqs, Lent, Memory, SavedIrqs, SavedMemory, Session,
    link::{Link, SavedLink},
    migration::{Machine, SavedMigration},
    negotiate::Negotiated,
    session::Phase,
};

/// Which [`SavedSession`] this is.
const VERSION: u32 = 1;

/// A session that was taken apart.
#[derive(Debug)]
pub struct Saved {
    /// What it knows.
    pub value: SavedSession,
    /// What it has open.
    pub fds: Vec<OwnedFd>,
}

/// The values of a session.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSession {
    version: u32,
    /// `None`: the client has not said VERSION yet.
    negotiated: Option<Negotiated>,
    device_resets: u64,
    link: SavedLink,
    memory: SavedMemory,
    irqs: SavedIrqs,
    migration: SavedMigration,
}

/// Why a session could not be taken apart; it goes on.
#[derive(Debug, thiserror::Error)]
#[error("take the session apart")]
pub struct NotSaved {
    /// The session, as it was.
    pub session: Box<Session>,
    #[source]
    source: std::io::Error,
}

/// Why there is no session to put together. The descriptors are closed.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    /// It was taken apart by something else.
    #[error("the saved session has version {0}, and only {VERSION} is known")]
    Version(u32),
    /// A part of it can't be, or does not belong to this device.
    #[error("the {part} of the saved session")]
    Part {
        /// Which.
        part: &'static str,
        /// Why not.
        #[source]
        errno: Errno,
    },
}

impl Session {
    /// Takes the session apart. The connection stays open, with what the client has sent meanwhile.
    ///
    /// # Errors
    /// [`NotSaved`]: descriptors can't be duplicated, or the session is over.
    pub fn into_saved(self) -> Result<Saved, NotSaved> {
        self.save().map_err(|source| NotSaved {
            session: Box::new(self),
            source,
        })
    }

    fn save(&self) -> std::io::Result<Saved> {
        let over = || std::io::Error::from(ErrorKind::NotConnected);
        let link = self.lent.link.as_ref().ok_or_else(over)?;
        link.check().map_err(|_| over())?;
        let mut fds = Vec::new();
        let value = SavedSession {
            version: VERSION,
            negotiated: match &self.phase {
                Phase::Accepted(_) => None,
                Phase::Negotiated(negotiated) => Some(negotiated.clone()),
            },
            device_resets: self.device_resets,
            link: link.save(&mut fds)?,
            memory: self.lent.memory.save(&mut fds)?,
            irqs: self.lent.irqs.save(&mut fds)?,
            migration: self.migration.save(),
        };
        Ok(Saved { value, fds })
    }

    /// Puts together what [`Session::into_saved`] took apart, for a device with the same regions and interrupts, whose own
    /// state has been loaded. A client that has not negotiated has its time again. [`Session::has_requests`] says whether
    /// there is something to serve at once.
    ///
    /// # Errors
    /// [`NotRestored`]. The values and the descriptors may come from anywhere.
    pub fn from_saved(
        saved: Saved,
        device: &mut dyn Device,
        now: Instant,
    ) -> Result<Self, NotRestored> {
        let Saved { value, fds } = saved;
        if value.version != VERSION {
            return Err(NotRestored::Version(value.version));
        }
        let part = |part| move |errno| NotRestored::Part { part, errno };
        let mut fds = fds.into_iter();
        if let Some(negotiated) = &value.negotiated {
            negotiated.check().map_err(part("negotiation"))?;
        }
        let link = Link::restore(value.link, value.negotiated.as_ref(), &mut fds)
            .map_err(part("connection"))?;
        let memory = Memory::restore(value.memory, &mut fds).map_err(part("guest memory"))?;
        let irqs =
            Irqs::restore(device.irqs(), value.irqs, &mut fds).map_err(part("interrupts"))?;
        if fds.next().is_some() {
            return Err(part("descriptors")(Errno::EINVAL));
        }
        let migration = Machine::restore(&value.migration).map_err(part("migration"))?;
        let mut lent = Lent {
            irqs,
            memory,
            link: Some(link),
        };
        if !migration.is_running() {
            let Some(device) = device.migration() else {
                return Err(part("migration")(Errno::ENOTSUP));
            };
            device.set_running(&mut lent, false);
        }
        let mut session = Self::with(lent, now);
        session.device_resets = value.device_resets;
        session.migration = migration;
        if let Some(negotiated) = value.negotiated {
            session.phase = Phase::Negotiated(negotiated);
        }
        Ok(session)
    }
}
