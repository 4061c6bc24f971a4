//! A device's model goes back to its power-on state: asked of the process, and answered when it says so.

use std::sync::Arc;

use tracing::{info, warn};

use super::control;
use super::device::Task;
use super::error::Error;
use super::request::{Reply, Reset};
use super::state::Phase;
use crate::chain::chain;
use crate::events::Severity;
use crate::steps;
use crate::store::{Call, Record};

impl Task {
    /// Begins to reset the model.
    pub(super) fn reset(&mut self, etag: &str, call: Option<Call>, reply: Reply) {
        let answer = match self.ask_for_reset(etag, call.as_ref()) {
            Ok(Some(request)) => {
                // Who waited too long went away.
                self.resets
                    .retain(|_, reset| reset.replies.iter().any(|it| !it.is_closed()));
                let replies = Vec::new();
                let reset = Reset { call, replies };
                let reset = self.resets.entry(request).or_insert(reset);
                reset.replies.push(reply);
                return;
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        // A caller that went away does not want the answer.
        let _ = reply.send(answer);
    }

    /// Asks the process, unless this call has asked already. Returns under which number; `None`: it has been met.
    fn ask_for_reset(&mut self, etag: &str, call: Option<&Call>) -> Result<Option<u64>, Error> {
        if self.record.has_met(call)? {
            return Ok(None);
        }
        let same = |it: &&Reset| call.is_some() && it.call.as_ref() == call;
        if let Some((number, _)) = self.resets.iter().find(|(_, it)| same(it)) {
            return Ok(Some(*number));
        }
        self.record.check_etag(etag)?;
        let id = self.record.id.clone();
        let (Phase::Serving { .. }, Some(control)) = (self.state.phase, &self.control) else {
            let why = self.view.message.clone();
            return Err(Error::NotServing { id, why });
        };
        self.next_request += 1;
        let request = control::Request::Reset {
            id: self.next_request,
        };
        let sent = control.send(&request);
        sent.map_err(|source| Error::Ask { id, source })?;
        steps::reached("reset.told");
        Ok(Some(self.next_request))
    }

    /// The process says whether it has reset the model. The call is remembered only now: an agent that dies in between
    /// resets again when it is asked again, rather than never.
    pub(super) async fn reset_answered(&mut self, reset: Reset, answer: Result<(), Refused>) {
        steps::reached("reset.answered");
        let id = self.record.id.clone();
        if answer.is_ok() {
            info!("device reset by the API");
            self.note(Severity::Normal, "RESET", "device reset by the API");
            if reset.call.is_some() {
                self.remember_reset(reset.call.as_ref()).await;
            }
        }
        for reply in reset.replies {
            let answer = answer.clone().map_err(|(field, message)| Error::Refused {
                id: id.clone(),
                field,
                message,
            });
            let _ = reply.send(answer);
        }
    }

    /// The process has ended before it could answer.
    pub(super) fn resets_lost(&mut self) {
        for (_, reset) in self.resets.drain() {
            for reply in reset.replies {
                let _ = reply.send(Err(Error::NotServing {
                    id: self.record.id.clone(),
                    why: "its process ended before it had reset the model".to_owned(),
                }));
            }
        }
    }

    async fn remember_reset(&mut self, call: Option<&Call>) {
        let mut record: Record = (*self.record).clone();
        record.remember(call);
        if let Err(error) = self.shared.store.put(&record).await {
            let error = chain(&error);
            warn!(error, "a call that reset the device was not recorded");
        }
        steps::reached("reset.recorded");
        self.record = Arc::new(record);
        self.shown = self.record.clone();
    }
}

/// Which field of the configuration it is about, and why.
type Refused = (Option<String>, String);
