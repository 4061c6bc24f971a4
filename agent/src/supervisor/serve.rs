//! Does what a device's task is asked for, or begins to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::control::{self, Message};
use super::device::{Task, receive};
use super::error::Error;
use super::request::Request;
use super::state::{Event, Phase};
use super::view::Life;
use crate::clock;
use crate::events::Severity;
use crate::steps;
use crate::store::Record;

/// How long the process may take to say how it is before a decision that depends on it.
const REFRESH: Duration = Duration::from_secs(1);

impl Task {
    /// Does what it was asked for, or begins to.
    pub(super) async fn serve(&mut self, request: Request) {
        match request {
            Request::Reset { etag, reply } => {
                if let Err((reply, error)) = self.reset(&etag, reply) {
                    // A caller that went away does not want the answer.
                    let _ = reply.send(Err(error));
                }
            }
            Request::Restart { etag, force, reply } => match self.may_restart(&etag, force).await {
                Ok(()) => {
                    self.restart(reply);
                    self.event(Event::Restart).await;
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Request::Rest => self.event(Event::Rest).await,
            Request::Wake => self.event(Event::Wake).await,
            Request::Update { update, reply } => {
                let answer = self.update(&update).await;
                self.shown = self.record.clone();
                self.publish();
                let _ = reply.send(answer);
            }
            Request::Delete { etag, force, reply } => match self.delete(&etag, force).await {
                Ok(()) => {
                    self.deleters.push(reply);
                    self.event(Event::Delete).await;
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
        }
    }

    fn reset(
        &mut self,
        etag: &str,
        reply: oneshot::Sender<Result<(), Error>>,
    ) -> Result<(), (oneshot::Sender<Result<(), Error>>, Error)> {
        if let Err(error) = self.record.check_etag(etag) {
            return Err((reply, error));
        }
        let id = self.record.id.clone();
        let (Phase::Serving { .. }, Some(control)) = (self.state.phase, &self.control) else {
            let error = Error::NotServing {
                id,
                why: self.view.message.clone(),
            };
            return Err((reply, error));
        };
        self.next_request += 1;
        let request = control::Request::Reset {
            id: self.next_request,
        };
        if let Err(source) = control.send(&request) {
            return Err((reply, Error::Ask { id, source }));
        }
        steps::reached("reset.told");
        // Who waited too long went away.
        self.resets.retain(|_, reply| !reply.is_closed());
        self.resets.insert(self.next_request, reply);
        Ok(())
    }

    /// Asks the process how it is: a client that has just ended may not have been reported yet. What does not answer
    /// stays as it was.
    async fn refresh(&mut self) {
        let asked = self
            .control
            .as_ref()
            .map(|control| control.send(&control::Request::Status));
        if !matches!(asked, Some(Ok(()))) {
            return;
        }
        let deadline = tokio::time::Instant::now() + REFRESH;
        while let Ok(message) =
            tokio::time::timeout_at(deadline, receive(self.control.as_ref())).await
        {
            let answered = matches!(message, Ok(Message::Status(_)) | Err(_));
            self.hear(message).await;
            if answered {
                return;
            }
        }
    }

    /// Whether nobody uses the device, or that is not to matter.
    async fn check_use(&mut self, force: bool) -> Result<(), Error> {
        if self.view.life == Life::Connected && !force {
            self.refresh().await;
        }
        self.view.check_use(&self.record.id, force)
    }

    /// Whether the process may be replaced.
    async fn may_restart(&mut self, etag: &str, force: bool) -> Result<(), Error> {
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
        self.check_use(force).await
    }

    /// Makes it durable that the device shall go, unless somebody uses it.
    async fn delete(&mut self, etag: &str, force: bool) -> Result<(), Error> {
        self.record.check_etag(etag)?;
        self.check_use(force).await?;
        if self.record.delete_time.is_none() {
            let delete_time = Some(clock::now_after(self.record.create_time));
            let record = Record {
                delete_time,
                ..(*self.record).clone()
            };
            let put = self.shared.store.put(&record).await;
            put.map_err(|source| self.not_durable("write that it shall go", source))?;
            steps::reached("delete.recorded");
            self.note(Severity::Normal, "DELETING", "deletion begins");
            self.record = Arc::new(record);
            self.shown = self.record.clone();
            self.view.delete_time = delete_time;
        }
        Ok(())
    }
}
