//! A device that an earlier agent had.

use std::sync::Arc;

use tracing::{info, warn};

use super::child::Exit;
use super::control::Message;
use super::device::Task;
use super::error::StartError;
use super::rundir::Manifest;
use super::start;
use super::state::{Action, Event};
use crate::chain::chain;
use crate::events::Severity;
use crate::steps;

impl Task {
    /// Goes on with an earlier agent's device: with its process when it lives, else by policy, and
    /// with a new one when this boot has not seen any.
    pub(super) async fn find(&mut self) {
        let manifest = self
            .dir
            .read_manifest()
            .filter(|it| it.uid == self.record.uid && it.boot_id == self.shared.boot_id);
        let patience = self.shared.config().timeouts.start;
        let found = match &manifest {
            Some(manifest) => start::adopt(&self.dir, manifest, patience).await,
            None => None,
        };
        match found {
            Some((running, status)) => {
                info!(pid = running.process.pid(), "device adopted");
                self.take(running);
                steps::reached("adopt.done");
                // The agent before this one may have died before it did.
                self.tell();
                self.hear(Ok(Message::Status(status))).await;
            }
            None if self.record.delete_time.is_some() => {
                self.event(Event::Ended { success: true }).await;
            }
            None if self.shared.drain.is_shut_down() => {
                self.state = self.state.clone().stopped();
                self.publish();
            }
            None if self.has_failed() => {
                self.state = self.state.clone().failed();
                self.publish();
            }
            None if manifest.is_some() && !self.is_start_due(manifest.as_ref()) => {
                let (exit, log) = (Exit::Unknown, self.dir.log_tail(0));
                let failure = StartError::Ended {
                    exit,
                    cause: self.cause(exit, &log),
                    log,
                };
                warn!(failure = chain(&failure), "device process ended by itself");
                self.note(Severity::Warning, failure.reason(), &chain(&failure));
                self.view.failure = Some(Arc::new(failure));
                self.backend_lost().await;
                match self.fails_with_backend() {
                    true => self.give_up().await,
                    false => self.event(Event::Ended { success: false }).await,
                }
            }
            None => {
                if manifest.is_none()
                    && let Err(error) = self.dir.remove()
                {
                    warn!(%error, path = %self.dir.path().display(), "remove stale directory");
                }
                self.act(Action::Spawn).await;
            }
        }
        self.find_place();
        if self.record.delete_time.is_some() {
            self.begin_to_leave().await;
        } else if self.shared.drain.is_shut_down() {
            self.event(Event::Rest).await;
        }
    }

    /// Whether the agent before this one was about to start a process, and has not lived to do so.
    fn is_start_due(&self, manifest: Option<&Manifest>) -> bool {
        manifest.is_none_or(|manifest| {
            manifest.pid.is_none() || manifest.restart_count < self.record.history.restart_count
        })
    }
}
