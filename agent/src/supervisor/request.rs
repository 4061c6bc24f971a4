//! What a device's task is asked for, one thing after the other: a reset, another
//! process, another configuration, its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::error::Error;
use super::plug::{Method, Plug};
use crate::change::Change;
use crate::clock;
use crate::models::Catalogue;
use crate::store::{Call, Record};

/// So many calls of a device are remembered.
const MAX_CALLS: usize = 16;

/// Who waits for an answer.
pub(super) type Reply = oneshot::Sender<Result<(), Error>>;

/// What a task is asked for.
#[derive(Debug)]
pub(super) enum Request {
    Reset {
        etag: String,
        call: Option<Call>,
        reply: Reply,
    },
    Restart {
        etag: String,
        force: bool,
        call: Option<Call>,
        reply: Reply,
    },
    /// Whether the host's devices are shut down may have changed. Which of several changes it was about does not matter:
    /// the last one counts.
    LookAtDrain,
    Update {
        update: Box<Update>,
        reply: Reply,
    },
    Plug {
        plug: Box<Plug>,
        etag: String,
        call: Option<Call>,
        reply: Reply,
    },
    Unplug {
        method: Method,
        /// How long the guest has.
        patience: Duration,
        etag: String,
        call: Option<Call>,
        reply: Reply,
    },
    Delete {
        etag: String,
        force: bool,
        call: Option<Call>,
        reply: Reply,
    },
}

/// A reset that the process was asked for.
#[derive(Debug)]
pub(super) struct Reset {
    pub(super) call: Option<Call>,
    pub(super) replies: Vec<Reply>,
}

/// Who waits for another process.
#[derive(Debug, Default)]
pub(super) struct Restart {
    pub(super) replies: Vec<Reply>,
    /// The calls that asked for it, of those that had an id, until they are in the record.
    pub(super) calls: Vec<Call>,
}

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
        if record.has_met(self.call.as_ref())? {
            return Ok(record.clone());
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
            planned.update_time = clock::now_after(record.update_time);
        }
        planned.remember(self.call.as_ref());
        Ok(planned)
    }
}

impl Record {
    /// Whether this call has been met already. The same request id with other content is an error.
    pub(crate) fn has_met(&self, call: Option<&Call>) -> Result<bool, Error> {
        let met = call.map(|call| call.is_among(&self.calls)).transpose();
        met.map(Option::unwrap_or_default)
            .map_err(|earlier| Error::RequestReused {
                request_id: earlier.request_id.clone(),
                id: self.id.clone(),
            })
    }

    /// Keeps the call among the last ones.
    pub(super) fn remember(&mut self, call: Option<&Call>) {
        let Some(call) = call else { return };
        let forgotten = (self.calls.len() + 1).saturating_sub(MAX_CALLS);
        self.calls.drain(..forgotten);
        self.calls.push(call.clone());
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
        assert_eq!(many.calls.len(), MAX_CALLS);
    }

    #[test]
    fn a_device_that_is_being_deleted_and_a_change_that_is_wrong_are_refused() {
        let mut going = record("nic0");
        going.delete_time = Some(clock::now());
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
