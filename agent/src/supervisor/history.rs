//! What a device's past is to the next agent: how often its process was started again, and that it has failed.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::device::Task;
use super::error::{Error, StartError, chain};
use super::state::{Action, Phase, Then};
use crate::clock;
use crate::events::Severity;
use crate::steps;
use crate::store::{Failure, History, Record};

impl Task {
    /// Makes durable what the next agent has to know of a step, before it is taken. A disk that takes no more keeps no
    /// device from running: that is only logged.
    pub(super) async fn remember(&mut self, before: Phase, action: Action) {
        let mut history = self.record.history.clone();
        match (self.state.phase, action) {
            (_, Action::Spawn) => {
                history.restart_count += 1;
                history.failure = None;
            }
            (Phase::Failed, _) if before != Phase::Failed => {
                let why = "device process not started again: it ended too often, or its restart policy says so";
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
        self.record_history(history).await;
        steps::reached("history.recorded");
    }

    async fn record_history(&mut self, history: History) {
        self.view.restart_count = history.restart_count;
        let with = |record: &Record| {
            Arc::new(Record {
                history: history.clone(),
                ..record.clone()
            })
        };
        self.shown = with(&self.shown);
        self.record = with(&self.record);
        if let Err(error) = self.shared.store.put(&self.record).await {
            let error = chain(&error);
            warn!(error, "what happened to the device was not recorded");
        }
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

    /// Begins to replace the process. The answer comes when the new one serves, or can't.
    pub(super) fn restart(&mut self, reply: oneshot::Sender<Result<(), Error>>) {
        info!("device restarted by the API");
        self.restarters.push(reply);
    }

    /// Tells who waits for another process what came of it, once something has.
    pub(super) fn answer_restarts(&mut self) {
        let id = || self.record.id.clone();
        let answer = || match (self.state.phase, &self.view.failure) {
            (Phase::Serving { .. }, _) => Some(Ok(())),
            (Phase::Waiting { .. } | Phase::Failed, Some(failure)) => Some(Err(Error::Start {
                id: id(),
                failure: failure.clone(),
            })),
            (
                Phase::Stopped
                | Phase::Stopping {
                    then: Then::Rest, ..
                }
                | Phase::Killed { then: Then::Rest },
                _,
            ) => Some(Err(Error::ShutDown { id: id() })),
            (
                Phase::Gone
                | Phase::Stopping {
                    then: Then::Delete, ..
                }
                | Phase::Killed { then: Then::Delete },
                _,
            ) => Some(Err(Error::Deleting { id: id() })),
            _ => None,
        };
        if self.restarters.is_empty() {
            return;
        }
        while let Some(answer) = answer() {
            let Some(reply) = self.restarters.pop() else {
                return;
            };
            // A caller that went away does not want the answer.
            let _ = reply.send(answer);
        }
    }
}
