//! What a change leads back to until the device's process has agreed to it.
//!
//! A change is durable before the process hears of it, and so is the way back: an agent that dies before the process has
//! refused is followed by one that tells it again, hears the refusal and goes back. An agreement takes the way back away
//! before the caller hears of it, so that nothing that was promised is ever undone.
//!
//! What nobody has seen goes back without a trace. What somebody has seen, because the answer came late or another
//! agent heard it, goes back as one more change: its generation goes on, and it has an etag of its own.

use tracing::warn;
use uuid::Uuid;

use super::device::Task;
use super::error::{Error, StartError};
use super::state::Phase;
use super::view::Configured;
use crate::chain::chain;
use crate::events::Severity;
use crate::store::{Call, Previous, Record};
use crate::{clock, steps};

impl Task {
    /// The way back from a change that this call makes: to where the process agreed last.
    pub(super) fn way_back(&self, call: Option<&Call>) -> Box<Previous> {
        let mut undo = self.record.undo.clone().unwrap_or_else(|| {
            let record = &self.record;
            Box::new(Previous {
                etag: record.etag.clone(),
                generation: record.generation,
                labels: record.labels.clone(),
                annotations: record.annotations.clone(),
                update_time: record.update_time,
                spec: record.spec.clone(),
                was_configured: self.is_configured(),
                calls: Vec::new(),
            })
        });
        undo.calls.extend(call.cloned());
        undo
    }

    /// Goes back to what the process has when it has refused the change, and gives the way back up when it has agreed.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        let Some(undo) = self.record.undo.clone() else {
            return Ok(());
        };
        let failure = self.view.failure.as_deref();
        match (self.state.phase, &self.view.configured) {
            (Phase::Serving { .. }, Configured::Yes) => {
                let mut record = (*self.record).clone();
                record.undo = None;
                let change = "write that its process has agreed";
                self.record_durably(record, change).await?;
                steps::reached("update.agreed");
                self.shown = self.record.clone();
            }
            (Phase::Serving { .. }, Configured::No { .. }) => {
                let was_configured = undo.was_configured;
                self.go_back(*undo).await?;
                match was_configured {
                    true => self.view.configured = Configured::Yes,
                    false => self.tell(),
                }
            }
            // A process that was started with the change says so in its own way.
            (Phase::Waiting { .. } | Phase::Failed, _)
                if matches!(failure, Some(StartError::Refused(_))) =>
            {
                self.go_back(*undo).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Settles what nobody waits for.
    pub(super) async fn settle_late(&mut self) {
        let etag = self.record.etag.clone();
        if self.record.undo.is_none() {
            return;
        }
        match self.settle().await {
            Ok(()) if self.record.etag != etag => {
                let why = "the change was undone: the device's process refused it";
                warn!("{why}");
                self.note(Severity::Warning, "UPDATE_UNDONE", why);
            }
            Ok(()) => {}
            Err(error) => {
                let error = chain(&error);
                warn!(error, "the device's answer to a change was not recorded");
            }
        }
        self.publish();
    }

    async fn go_back(&mut self, undo: Previous) -> Result<(), Error> {
        let was_seen = self.shown.etag != undo.etag;
        let mut record = undone(&self.record, undo);
        if was_seen {
            record.etag = Uuid::new_v4().simple().to_string();
            let is_other_spec = record.spec != self.record.spec;
            record.generation = self.record.generation + i64::from(is_other_spec);
            record.update_time = clock::now_after(self.record.update_time);
        }
        let change = "write again how it was";
        self.record_durably(record, change).await?;
        steps::reached("update.undone");
        self.shown = self.record.clone();
        Ok(())
    }
}

/// The record as it was, but for what happened to the device since.
fn undone(record: &Record, undo: Previous) -> Record {
    let Previous {
        etag,
        generation,
        labels,
        annotations,
        update_time,
        spec,
        was_configured: _,
        calls,
    } = undo;
    let mut record = Record {
        etag,
        generation,
        labels,
        annotations,
        update_time,
        spec,
        undo: None,
        ..record.clone()
    };
    record.calls.retain(|it| !calls.contains(it));
    record
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::tests::record;

    #[test]
    fn what_happened_since_stays_when_a_change_is_undone() {
        let before = record("nic0");
        let call = |request_id| Call::new(request_id, &"content").unwrap();
        let previous = Previous {
            etag: before.etag.clone(),
            generation: before.generation,
            labels: before.labels.clone(),
            annotations: before.annotations.clone(),
            update_time: before.update_time,
            spec: before.spec.clone(),
            was_configured: true,
            calls: vec![call("update")],
        };
        let mut changed = before.clone();
        changed.etag = "2".to_owned();
        changed.generation = 2;
        changed.labels.clear();
        changed.spec.config = json!({"mac": "x"});
        changed.calls = vec![call("update"), call("reset")];
        changed.history.restart_count = 3;
        changed.undo = Some(Box::new(previous.clone()));
        let mut expected = before;
        expected.calls = vec![call("reset")];
        expected.history.restart_count = 3;
        assert_eq!(undone(&changed, previous), expected);
    }
}
