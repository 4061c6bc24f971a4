//! The client is asked to let go of the device, through the process and without a word to its VMM.
//!
//! It is a request: the client answers nothing, and disconnects when its guest has let go, at once or never.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::control::{self, Reason};
use super::device::{Task, receive};
use super::error::Error;
use super::state::Phase;
use crate::events::Severity;

/// How long a process may take to say whether it has asked.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Who was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// The client, which may take its time.
    Client,
    /// There is no client.
    Nobody,
}

/// What the process is asked, and its answer.
#[derive(Debug)]
pub(super) struct Release {
    request: u64,
    answer: Option<Answer>,
}

/// That the client was asked, or why not.
type Answer = Result<(), (Option<Reason>, String)>;

impl Release {
    /// The process has answered a request; it may be another one.
    pub(super) fn answered(&mut self, request: u64, answer: Answer) {
        if self.request == request {
            self.answer = Some(answer);
        }
    }
}

impl Task {
    /// Has the process ask its client to let go of the device. Answers when it has done so.
    pub(super) async fn ask_for_release(&mut self) -> Result<Asked, Error> {
        let id = self.record.id.clone();
        let (Phase::Serving { .. }, Some(control)) = (self.state.phase, &self.control) else {
            let why = self.view.message.clone();
            return Err(Error::NotServing { id, why });
        };
        self.next_request += 1;
        let request = self.next_request;
        let sent = control.send(&control::Request::Release { id: request });
        if let Err(source) = sent {
            return Err(Error::Ask { id, source });
        }
        let answer = None;
        self.release = Some(Release { request, answer });
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        while self.release.as_ref().is_some_and(|it| it.answer.is_none()) && self.control.is_some()
        {
            match timeout_at(deadline, receive(self.control.as_ref())).await {
                Ok(message) => self.hear(message).await,
                Err(_) => break,
            }
        }
        match self.release.take().and_then(|release| release.answer) {
            Some(Ok(())) => {
                info!("client asked to let go of the device");
                let text = "the client was asked to let go of the device";
                self.note(Severity::Normal, "RELEASE_REQUESTED", text);
                Ok(Asked::Client)
            }
            Some(Err((Some(Reason::NoClient), _))) => Ok(Asked::Nobody),
            Some(Err((Some(Reason::TakesNoRequest), message))) => Err(Error::TakesNoRequest {
                id,
                client: self.view.client.clone(),
                message,
            }),
            Some(Err((_, message))) => Err(Error::Refused {
                id,
                field: None,
                message,
            }),
            None => Err(Error::NoAnswer {
                id,
                patience: RELEASE_TIMEOUT,
            }),
        }
    }
}
