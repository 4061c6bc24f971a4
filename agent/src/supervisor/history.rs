//! What a device's past is to the next agent: how often its process was started again, and that it has failed.

use std::sync::Arc;

use tracing::warn;

use super::device::Task;
use super::error::StartError;
use super::state::{Action, Phase};
use crate::chain::chain;
use crate::clock;
use crate::events::Severity;
use crate::steps;
use crate::store::Failure;

impl Task {
    /// Makes durable what the next agent has to know of a step, before it is taken. A disk that takes no more keeps no
    /// device from running: that is only logged.
    pub(super) async fn remember(&mut self, before: Phase, action: Action) {
        let mut record = (*self.record).clone();
        let history = &mut record.history;
        match (self.state.phase, action) {
            (_, Action::Spawn) => {
                history.restart_count += 1;
                history.failure = None;
                for call in self.restart.calls.drain(..) {
                    record.remember(Some(&call));
                }
            }
            (Phase::Failed, _) if before != Phase::Failed => {
                let why = "device process not started again: it ended too often, or a policy of its says so";
                self.note(Severity::Warning, "FAILED", why);
                let failure = self.view.failure.as_deref();
                history.failure = failure.map(|failure| Failure {
                    reason: failure.reason().to_owned(),
                    message: chain(failure),
                    time: clock::now(),
                    boot_id: self.shared.boot_id.clone(),
                });
            }
            _ => return,
        }
        self.view.restart_count = record.history.restart_count;
        if let Err(error) = self.shared.store.put(&record).await {
            let error = chain(&error);
            warn!(error, "what happened to the device was not recorded");
        }
        steps::reached("history.recorded");
        self.record = Arc::new(record);
        self.shown = self.record.clone();
    }

    /// Whether the device was given up since the host has booted, by this agent or an earlier one. Whether a process
    /// lives is to be looked at first: who started it may have died before it could say so.
    pub(super) fn has_failed(&mut self) -> bool {
        let failure = self.record.history.failure.clone();
        let Some(failure) = failure.filter(|it| it.boot_id == self.shared.boot_id) else {
            return false;
        };
        self.view.failure = Some(Arc::new(StartError::Earlier(failure)));
        true
    }
}
