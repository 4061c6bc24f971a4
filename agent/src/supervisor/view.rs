//! How a device is, as callers see it.

use std::sync::Arc;
use std::time::SystemTime;

use super::control::{Client, Resets};
use super::error::{StartError, chain};
use super::state::Phase;
use crate::store::Record;

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Starting,
    Ready,
    Connected,
    Failed,
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
    pub(crate) reason: &'static str,
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
            restart_count: 0,
            resets: Resets::default(),
            delete_time: record.delete_time,
            reason: "STARTING",
            message: String::new(),
            since: SystemTime::now(),
            configured: Configured::Yes,
            is_configured: None,
            configured_since: SystemTime::now(),
            failure: None,
        }
    }

    /// Whether the socket is served.
    pub(crate) fn served(&self) -> bool {
        matches!(self.life, Life::Ready | Life::Connected)
    }

    /// Takes over where the device is in its life, and says why it is not served.
    pub(super) fn update(&mut self, phase: Phase) {
        let served_before = self.served();
        self.life = match phase {
            Phase::Starting { .. } | Phase::Overdue { .. } | Phase::Waiting { .. } => {
                Life::Starting
            }
            Phase::Serving { connected: false } => Life::Ready,
            Phase::Serving { connected: true } => Life::Connected,
            Phase::Failed => Life::Failed,
            Phase::Stopping { .. } | Phase::Killed => Life::Deleting,
            Phase::Gone => Life::Gone,
        };
        (self.reason, self.message) = match (phase, self.failure.as_deref()) {
            (Phase::Serving { .. }, _) => ("SERVED", String::new()),
            (Phase::Stopping { .. } | Phase::Killed | Phase::Gone, _) => {
                ("DELETING", "it is being deleted".to_owned())
            }
            (Phase::Failed, Some(failure)) => {
                let next = "it is not started again, delete it and create it anew";
                (failure.reason(), format!("{next}: {}", chain(failure)))
            }
            (_, Some(failure)) => {
                let next = "it is started again";
                (failure.reason(), format!("{next}: {}", chain(failure)))
            }
            (_, None) => ("STARTING", "it is being started".to_owned()),
        };
        if self.served() != served_before {
            self.since = SystemTime::now();
        }
        let is_configured = match &self.configured {
            _ if !self.served() => None,
            Configured::Yes => Some(true),
            Configured::No { .. } => Some(false),
            Configured::Unknown => None,
        };
        if self.is_configured != is_configured {
            self.is_configured = is_configured;
            self.configured_since = SystemTime::now();
        }
    }
}
