//! How a device is, as callers see it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use super::control::{Client, Resets};
use super::error::{Error, StartError};
use super::state::{Phase, Then};
use crate::chain::chain;
use crate::clock;
use crate::store::Record;

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Starting,
    Ready,
    Connected,
    Failed,
    Stopped,
    Deleting,
    /// Nothing is left of it; only who waits for a device sees this.
    Gone,
}

/// Whether the process has the recorded configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Configured {
    /// It started with it, or took it over.
    Yes,
    /// It was told of it, or is to be, and has not answered.
    Unknown,
    /// It can't take it over because of this field, for this reason, and has the one before.
    No {
        field: Option<String>,
        message: String,
    },
}

/// How a device is.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) life: Life,
    pub(crate) pid: Option<i32>,
    pub(crate) start_time: Option<SystemTime>,
    pub(crate) client: Option<Client>,
    pub(crate) restart_count: i64,
    pub(crate) resets: Resets,
    pub(crate) delete_time: Option<SystemTime>,
    /// Why it is not served, for programs and for people.
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
    /// Since when it has been served, or not.
    pub(crate) since: SystemTime,
    pub(crate) configured: Configured,
    /// The same of a device that is served; `None`: that can't be told.
    pub(crate) is_configured: Option<bool>,
    /// Since when that holds.
    pub(crate) configured_since: SystemTime,
    /// What ended the last process.
    pub(crate) failure: Option<Arc<StartError>>,
}

impl View {
    pub(super) fn new(record: &Record) -> Self {
        Self {
            life: Life::Starting,
            pid: None,
            start_time: None,
            client: None,
            restart_count: record.history.restart_count,
            resets: Resets::default(),
            delete_time: record.delete_time,
            reason: "STARTING".into(),
            message: String::new(),
            since: clock::now(),
            configured: Configured::Yes,
            is_configured: None,
            configured_since: clock::now(),
            failure: None,
        }
    }

    /// Whether the socket is served.
    pub(crate) fn served(&self) -> bool {
        matches!(self.life, Life::Ready | Life::Connected)
    }

    /// Whether nobody uses the device, or that is not to matter.
    pub(crate) fn check_use(&self, id: &str, force: bool) -> Result<(), Error> {
        if self.life != Life::Connected || force {
            return Ok(());
        }
        Err(Error::Connected {
            id: id.to_owned(),
            client: self.client.clone(),
        })
    }

    /// Takes over where the device is in its life, and says why it is not served.
    pub(super) fn update(&mut self, phase: Phase) {
        let served_before = self.served();
        self.life = match phase {
            Phase::Gone => Life::Gone,
            // Its VMM may have to let go of it first.
            _ if self.delete_time.is_some() => Life::Deleting,
            Phase::Starting { .. }
            | Phase::Overdue { .. }
            | Phase::Waiting { .. }
            | Phase::Stopping {
                then: Then::Restart,
                ..
            }
            | Phase::Killed {
                then: Then::Restart,
            } => Life::Starting,
            Phase::Serving { connected: false } => Life::Ready,
            Phase::Serving { connected: true } => Life::Connected,
            Phase::Failed => Life::Failed,
            Phase::Stopped
            | Phase::Stopping {
                then: Then::Rest, ..
            }
            | Phase::Killed { then: Then::Rest } => Life::Stopped,
            Phase::Stopping {
                then: Then::Delete, ..
            }
            | Phase::Killed { then: Then::Delete }
            | Phase::Leaving { .. } => Life::Deleting,
        };
        let failed = |next: &str, failure: &StartError| {
            let message = format!("{next}: {}", chain(failure));
            (Cow::Owned(failure.reason().to_owned()), message)
        };
        let told = |reason, message: &str| (Cow::Borrowed(reason), message.to_owned());
        (self.reason, self.message) = match (phase, self.life, self.failure.as_deref()) {
            (Phase::Leaving { .. }, ..) => told(
                "DELETING",
                "what is left of it can't be removed, which is tried again; the agent's log says why",
            ),
            (_, Life::Deleting | Life::Gone, _) => told("DELETING", "it is being deleted"),
            (Phase::Serving { .. }, ..) => told("SERVED", ""),
            (_, Life::Stopped, _) => told(
                "SHUT_DOWN",
                "the devices of this host were shut down; Undrain starts them again",
            ),
            (Phase::Stopping { .. } | Phase::Killed { .. }, ..) => {
                told("RESTARTING", "its process is being replaced")
            }
            (Phase::Failed, _, Some(failure)) => {
                failed("it is not started again, restart or delete it", failure)
            }
            (_, _, Some(failure)) => failed("it is started again", failure),
            (.., None) => told("STARTING", "it is being started"),
        };
        if self.served() != served_before {
            self.since = clock::now_after(self.since);
        }
        let is_configured = match &self.configured {
            _ if !self.served() => None,
            Configured::Yes => Some(true),
            Configured::No { .. } => Some(false),
            Configured::Unknown => None,
        };
        if self.is_configured != is_configured {
            self.is_configured = is_configured;
            self.configured_since = clock::now_after(self.configured_since);
        }
    }
}
