//! A living device becomes another one.
//!
//! First the record, durable; then the process, which either takes the configuration over or says why it can't: then the
//! record goes back, and nobody has seen it. A process that does not answer leaves the record as the caller wants it, and
//! is told until it answers; so is every process that an agent finds, because the one before may have died in between.
//! What has no process starts with what is recorded.
//!
//! ```text
//!   told --ok--> Configured::Yes        told --refused--> Configured::No
//!    ^  \--no answer, connection lost--> Configured::Unknown --connected again, heard of--> told
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use super::control;
use super::device::{Task, receive};
use super::error::Error;
use super::state::Phase;
use super::view::Configured;
use crate::change::Change;
use crate::models::Catalogue;
use crate::store::{Call, Record};

/// How long a process may take to say whether it can be configured so.
pub(super) const UPDATE_TIMEOUT: Duration = Duration::from_secs(3);
/// So many calls that updated a device are remembered.
const MAX_CALLS: usize = 16;

/// What a caller wants.
#[derive(Debug)]
pub(crate) struct Update {
    /// Of the device as the caller knows it; empty: whatever it is.
    pub(crate) etag: String,
    pub(crate) change: Change,
    pub(crate) call: Option<Call>,
    /// Needed when the change does.
    pub(crate) catalogue: Option<Arc<Catalogue>>,
}

impl Update {
    /// The record as it is to be.
    pub(crate) fn plan(&self, record: &Record) -> Result<Record, Error> {
        let id = || record.id.clone();
        let same = |it: &&Call| Some(&it.request_id) == self.call.as_ref().map(|it| &it.request_id);
        match record.updated_by.iter().find(same) {
            Some(earlier) if Some(earlier) == self.call.as_ref() => return Ok(record.clone()),
            Some(earlier) => {
                return Err(Error::RequestReused {
                    request_id: earlier.request_id.clone(),
                    id: id(),
                });
            }
            None => {}
        }
        record.check_etag(&self.etag)?;
        if record.delete_time.is_some() {
            return Err(Error::Deleting { id: id() });
        }
        let models = self.catalogue.as_ref().map(|it| &it.models);
        let model = models.and_then(|it| it.get(&record.spec.model));
        let mut planned = self.change.apply(record, model).map_err(Error::Invalid)?;
        if planned.spec != record.spec {
            planned.generation += 1;
        }
        if planned != *record {
            planned.etag = Uuid::new_v4().simple().to_string();
            planned.update_time = SystemTime::now();
        }
        if let Some(call) = &self.call {
            let forgotten = (planned.updated_by.len() + 1).saturating_sub(MAX_CALLS);
            planned.updated_by.drain(..forgotten);
            planned.updated_by.push(call.clone());
        }
        Ok(planned)
    }
}

impl Task {
    /// Changes the device.
    pub(super) async fn update(&mut self, update: &Update) -> Result<(), Error> {
        let before = self.record.clone();
        let planned = update.plan(&before)?;
        if planned != *before {
            self.record_durably(planned, "write how it shall be")
                .await?;
        }
        if self.record.spec.config == before.spec.config && self.is_configured() {
            return Ok(());
        }
        let was_configured = self.is_configured();
        let configured = self.configure().await;
        if matches!(configured, Err(Error::Refused { .. })) && self.record != before {
            let change = "write again how it was";
            self.record_durably((*before).clone(), change).await?;
            match was_configured {
                true => self.view.configured = Configured::Yes,
                false => self.tell(),
            }
        }
        configured
    }

    async fn record_durably(&mut self, record: Record, change: &'static str) -> Result<(), Error> {
        let put = self.shared.store.put(&record).await;
        put.map_err(|source| self.not_durable(change, source))?;
        self.state.set_policy(record.spec.restart_policy);
        self.record = Arc::new(record);
        Ok(())
    }

    /// Whether there is no process with another configuration than the recorded one.
    fn is_configured(&self) -> bool {
        self.view.pid.is_none() || self.view.configured == Configured::Yes
    }

    /// Tells the process the recorded configuration, and waits for its answer.
    async fn configure(&mut self) -> Result<(), Error> {
        if self.view.pid.is_none() {
            return Ok(());
        }
        self.tell();
        // One that is still starting answers when it has.
        if !matches!(self.state.phase, Phase::Serving { .. }) {
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
            Ok(()) => self.told = Some(self.next_request),
            Err(error) => warn!(%error, "device not told its configuration"),
        }
    }

    /// The process says whether it has the configuration that it was told, or which field it can't change and why.
    pub(super) fn answered(&mut self, answer: Result<(), (Option<String>, String)>) {
        self.told = None;
        self.view.configured = match answer {
            Ok(()) => Configured::Yes,
            Err((field, message)) => {
                warn!(
                    field,
                    message, "device can't be configured as it is recorded"
                );
                Configured::No { field, message }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::change::Edit;
    use crate::store::tests::record;

    fn label(value: &str, request_id: &str) -> Update {
        let change = Change(vec![Edit::Label("app".to_owned(), Some(value.to_owned()))]);
        Update {
            etag: String::new(),
            call: Call::new(request_id, &change),
            change,
            catalogue: None,
        }
    }

    #[test]
    fn an_etag_changes_with_everything_and_the_generation_with_the_spec() {
        let before = record("nic0");
        let after = label("y", "").plan(&before).unwrap();
        assert_ne!(after.etag, before.etag);
        assert!(after.update_time > before.update_time);
        assert_eq!(after.generation, before.generation);
        let mut policy = label("x", "");
        let never = crate::store::RestartPolicy::Never;
        policy.change.0.push(Edit::RestartPolicy(never));
        let after = policy.plan(&before).unwrap();
        assert_eq!(after.generation, before.generation + 1);
        assert_ne!(after.etag, before.etag);
        assert_eq!(label("x", "").plan(&before).unwrap(), before);
    }

    #[test]
    fn an_update_of_another_version_is_refused() {
        let mut update = label("y", "");
        update.etag = "2".to_owned();
        let error = update.plan(&record("nic0")).unwrap_err();
        assert!(matches!(error, Error::Etag { .. }), "{error}");
        update.etag = "1".to_owned();
        update.plan(&record("nic0")).unwrap();
    }

    #[test]
    fn a_call_that_comes_again_changes_nothing_even_after_another() {
        let first = label("y", "a").plan(&record("nic0")).unwrap();
        let second = label("z", "b").plan(&first).unwrap();
        assert_eq!(label("y", "a").plan(&second).unwrap(), second);
        let mut stale = label("y", "a");
        stale.etag = "1".to_owned();
        assert_eq!(
            stale.plan(&second).unwrap(),
            second,
            "its etag was right then"
        );
        let error = label("x", "b").plan(&second).unwrap_err();
        assert!(matches!(error, Error::RequestReused { .. }), "{error}");
        let mut many = second;
        for index in 0..100 {
            many = label("y", &index.to_string()).plan(&many).unwrap();
        }
        assert_eq!(many.updated_by.len(), MAX_CALLS);
    }

    #[test]
    fn a_device_that_is_being_deleted_and_a_change_that_is_wrong_are_refused() {
        let mut going = record("nic0");
        going.delete_time = Some(SystemTime::now());
        let error = label("y", "").plan(&going).unwrap_err();
        assert!(matches!(error, Error::Deleting { .. }), "{error}");
        let mut update = label("y", "");
        update
            .change
            .0
            .push(Edit::Config(json!({"net": {"loopback": {}}})));
        let error = update.plan(&record("nic0")).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
}
