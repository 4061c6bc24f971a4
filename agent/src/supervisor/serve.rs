//! Does what a device's task is asked for, or begins to.

use std::time::Duration;

use super::control::{self, Message};
use super::device::{Task, receive};
use super::error::Error;
use super::plug::Method;
use super::request::Request;
use super::state::Event;
use super::view::Life;

/// How long the process may take to say how it is before a decision that depends on it.
const REFRESH: Duration = Duration::from_secs(1);

impl Task {
    /// Does what it was asked for, or begins to.
    pub(super) async fn serve(&mut self, request: Request) {
        match request {
            Request::Reset { etag, call, reply } => self.reset(&etag, call, reply),
            Request::Restart {
                etag,
                force,
                call,
                reply,
            } => self.restart(&etag, force, call, reply).await,
            Request::LookAtDrain => match self.shared.drain.is_shut_down() {
                true => self.event(Event::Rest).await,
                false => self.event(Event::Wake).await,
            },
            Request::Update { update, reply } => {
                let answer = self.update(&update).await;
                self.shown = self.record.clone();
                self.publish();
                // A caller that went away does not want the answer.
                let _ = reply.send(answer);
            }
            Request::Plug {
                plug,
                etag,
                call,
                reply,
            } => self.plug(*plug, &etag, call, reply).await,
            Request::Unplug {
                method,
                patience,
                etag,
                call,
                reply,
            } => match method {
                Method::Vmm => self.unplug(patience, &etag, call, reply).await,
                Method::ClientRequest => self.release(&etag, call, reply).await,
            },
            Request::Delete {
                etag,
                force,
                call,
                reply,
            } => match self.delete(&etag, force, call).await {
                Ok(()) => {
                    self.deleters.push(reply);
                    self.begin_to_leave().await;
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
        }
    }

    /// Asks the process how it is: a client that has just ended may not have been reported yet. What does not answer
    /// stays as it was.
    pub(super) async fn refresh(&mut self) {
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
    pub(super) async fn check_use(&mut self, force: bool) -> Result<(), Error> {
        if self.view.life == Life::Connected && !force {
            self.refresh().await;
        }
        self.view.check_use(&self.record.id, force)
    }
}
