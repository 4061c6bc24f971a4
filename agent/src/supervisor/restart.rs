//! Another process for a device: asked for, and answered when it serves, or can't.

use tracing::info;

use super::device::Task;
use super::error::Error;
use super::request::Reply;
use super::state::{Event, Phase, Then};
use crate::events::Severity;
use crate::store::Call;

impl Task {
    /// Replaces the process, or begins to.
    pub(super) async fn restart(
        &mut self,
        etag: &str,
        force: bool,
        call: Option<Call>,
        reply: Reply,
    ) {
        match self.may_restart(etag, force, call.as_ref()).await {
            Ok(true) => {
                info!("device restarted by the API");
                self.note(
                    Severity::Normal,
                    "RESTARTING",
                    "device restarted by the API",
                );
                self.restart.replies.push(reply);
                self.restart.calls.extend(call);
                self.event(Event::Restart).await;
            }
            // It is what that call has led to, or is about to lead to.
            Ok(false) => {
                self.restart.replies.push(reply);
                self.answer_restarts();
            }
            Err(error) => {
                // A caller that went away does not want the answer.
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Whether the process may be replaced, and is to be: the call is not an earlier one that is repeated.
    async fn may_restart(
        &mut self,
        etag: &str,
        force: bool,
        call: Option<&Call>,
    ) -> Result<bool, Error> {
        let is_under_way = call.is_some_and(|call| self.restart.calls.contains(call));
        if is_under_way || self.record.has_met(call)? {
            return Ok(false);
        }
        self.record.check_etag(etag)?;
        let id = self.record.id.clone();
        if self.record.delete_time.is_some() {
            return Err(Error::Deleting { id });
        }
        if self.state.is_first() {
            return Err(Error::Creating { id });
        }
        if self.shared.drain.is_shut_down() {
            return Err(Error::ShutDown { id });
        }
        self.check_use(force).await?;
        Ok(true)
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
                | Phase::Leaving { .. }
                | Phase::Stopping {
                    then: Then::Delete, ..
                }
                | Phase::Killed { then: Then::Delete },
                _,
            ) => Some(Err(Error::Deleting { id: id() })),
            _ => None,
        };
        if self.restart.replies.is_empty() {
            return;
        }
        while let Some(answer) = answer() {
            let Some(reply) = self.restart.replies.pop() else {
                // What led to no start is no call that has been met.
                self.restart.calls.clear();
                return;
            };
            // A caller that went away does not want the answer.
            let _ = reply.send(answer);
        }
    }
}
