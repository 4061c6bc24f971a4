//! A living device becomes another one.
//!
//! First the record, durable; then the process, which either takes the configuration over or says why it can't: then the
//! record goes back (`undo`), and nobody has seen it. A process that does not answer leaves the record as the caller wants
//! it, and is told until it answers; so is every process that an agent finds, because the one before may have died in
//! between. What has no process, or one that does not serve yet, has what is recorded.
//!
//! ```text
//!   told --ok--> Configured::Yes        told --refused--> Configured::No
//!    ^  \--no answer, connection lost--> Configured::Unknown --connected again, heard of--> told
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::control;
use super::device::{Task, receive};
use super::error::Error;
use super::request::Update;
use super::state::Phase;
use super::view::Configured;
use crate::events::Severity;
use crate::steps;
use crate::store::Record;

/// How long a process may take to say whether it can be configured so.
pub(super) const UPDATE_TIMEOUT: Duration = Duration::from_secs(3);

impl Task {
    /// Changes the device.
    pub(super) async fn update(&mut self, update: &Update) -> Result<(), Error> {
        let before = self.record.clone();
        let mut planned = update.plan(&before)?;
        let has_all = planned.spec.config == before.spec.config && self.is_configured();
        planned.undo = match &before.undo {
            // Whatever comes then, the caller is promised that it stays so.
            _ if !self.can_answer() => None,
            undo if has_all || planned == *before => undo.clone(),
            _ => Some(self.way_back(update.call.as_ref())),
        };
        if planned != *before {
            self.record_durably(planned, "write how it shall be")
                .await?;
            steps::reached("update.recorded");
        }
        let configured = match has_all {
            true => Ok(()),
            false => self.configure().await,
        };
        self.settle().await?;
        configured
    }

    pub(super) async fn record_durably(
        &mut self,
        record: Record,
        change: &'static str,
    ) -> Result<(), Error> {
        let put = self.shared.store.put(&record).await;
        put.map_err(|source| self.not_durable(change, source))?;
        self.state.set_policy(record.spec.restart_policy);
        let (id, limits) = (&record.id, &record.spec.limits);
        if *limits != self.record.spec.limits
            && let Err(error) = self.shared.cgroups.set(id, limits)
        {
            warn!(%error, "cgroup as it was before the update");
        }
        self.record = Arc::new(record);
        Ok(())
    }

    /// Whether there is no process with another configuration than the recorded one.
    pub(super) fn is_configured(&self) -> bool {
        self.view.pid.is_none() || self.view.configured == Configured::Yes
    }

    /// Whether there is a process that says what it thinks of a change; one that is still starting does so later.
    fn can_answer(&self) -> bool {
        self.view.pid.is_some() && matches!(self.state.phase, Phase::Serving { .. })
    }

    /// Tells the process the recorded configuration, and waits for its answer.
    async fn configure(&mut self) -> Result<(), Error> {
        if self.view.pid.is_none() {
            return Ok(());
        }
        self.tell();
        if !self.can_answer() {
            return Ok(());
        }
        let deadline = Instant::now() + UPDATE_TIMEOUT;
        while self.view.configured == Configured::Unknown && self.control.is_some() {
            match timeout_at(deadline, receive(self.control.as_ref())).await {
                Ok(message) => self.hear(message).await,
                Err(_) => break,
            }
        }
        let id = self.record.id.clone();
        match &self.view.configured {
            Configured::Yes => {
                info!("device updated by the API");
                self.note(
                    Severity::Normal,
                    "CONFIGURED",
                    "device configured by the API",
                );
                Ok(())
            }
            Configured::Unknown => Err(Error::Unconfirmed {
                id,
                patience: UPDATE_TIMEOUT,
            }),
            Configured::No { field, message } => Err(Error::Refused {
                id,
                field: field.clone(),
                message: message.clone(),
            }),
        }
    }

    /// Tells the process the recorded configuration, which it may have already.
    pub(super) fn tell(&mut self) {
        self.told = None;
        self.view.configured = Configured::Unknown;
        let Some(control) = &self.control else {
            return;
        };
        self.next_request += 1;
        let request = control::Request::Update {
            id: self.next_request,
            config: &self.record.spec.config,
        };
        match control.send(&request) {
            Ok(()) => {
                self.told = Some(self.next_request);
                steps::reached("update.told");
            }
            Err(error) => warn!(%error, "device not told its configuration"),
        }
    }

    /// The process says whether it has the configuration that it was told, or which field it can't change and why.
    pub(super) fn answered(&mut self, answer: Result<(), (Option<String>, String)>) {
        steps::reached("update.answered");
        self.told = None;
        self.view.configured = match answer {
            Ok(()) => Configured::Yes,
            Err((field, message)) => {
                self.note(Severity::Warning, "DEVICE_REFUSED", &message);
                warn!(
                    field,
                    message, "device can't be configured as it is recorded"
                );
                Configured::No { field, message }
            }
        };
        // Else only when it is certain what the record is now.
        if self.record.undo.is_none() {
            self.publish();
        }
    }
}
