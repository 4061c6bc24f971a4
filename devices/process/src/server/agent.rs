//! What the agent asks for through the control socket, and what it is told.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use pci::UpdateError;
use serde_json::Value;
use tracing::{info, warn};
use vfio_user::{Device as _, Migration as _};

use super::{Server, watch::Token};
use crate::control::{Control, Reason, Request, Resets, State, Status};

/// How often the agent is told at most.
const STATUS_PERIOD: Duration = Duration::from_millis(100);
/// What helps with a client that has no ear for requests.
const CURE: &str = "unplug the device through the VMM's own control socket or monitor";

impl Server {
    pub(super) fn accept_control(
        &mut self,
        control: &mut Control,
        now: Instant,
    ) -> Result<(), Errno> {
        let index = match control.accept(&self.status()) {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(()),
            Err(error) => return self.pause_listening(control, &error, now),
        };
        let watched = control
            .peer(index)
            .map_or(Ok(()), |fd| self.watch.add(fd, Token::Peer(index)));
        if let Err(errno) = watched {
            warn!(%errno, "a control connection could not be served, and was closed");
            control.close(index);
        }
        Ok(())
    }

    pub(super) fn serve_control(&mut self, control: &mut Control, index: usize, now: Instant) {
        match control.receive(index) {
            Some(Request::Reset { id }) => {
                self.reset();
                // First what it led to: who waits for the reply then knows.
                control.send_status_to(index, &self.status());
                control.reply(index, id, Ok(()));
            }
            Some(Request::Update { id, config }) => {
                let updated = self.update(config);
                control.reply(index, id, updated.map_err(Into::into));
            }
            Some(Request::Release { id }) => {
                self.notice_hang_up(now);
                let asked = self.request_release();
                control.reply(index, id, asked.map_err(Into::into));
            }
            Some(Request::Status) => {
                self.notice_hang_up(now);
                control.send_status_to(index, &self.status());
            }
            None => {}
        }
    }

    /// Back to the power-on state. A device that the client has stopped stays stopped: it does not know of this.
    fn reset(&mut self) {
        let (function, lent) = self.function_and_lent();
        let was_running = function.is_running();
        function.reset(lent);
        function.set_running(lent, was_running);
        self.resets.api += 1;
        info!("reset through the control socket");
    }

    /// Brings the device to this configuration, with and without a client. A client that has stopped the device has its
    /// guest hear of it when the device goes on.
    fn update(&mut self, config: Value) -> Result<(), UpdateError> {
        // Whether its model can change anything or not, it is that device.
        if config == self.config {
            return Ok(());
        }
        let (function, lent) = self.function_and_lent();
        function.update(lent, &config)?;
        self.config = config;
        info!("configuration changed through the control socket");
        Ok(())
    }

    /// Asks the client to let go of the device.
    fn request_release(&mut self) -> Result<(), (Reason, String)> {
        if self.session.is_none() {
            let message = "no client is connected: there is nobody to ask".into();
            return Err((Reason::NoClient, message));
        }
        let (function, lent) = self.function_and_lent();
        function
            .request_release(lent)
            .map_err(|error| (Reason::TakesNoRequest, format!("{error}; {CURE}")))?;
        info!("the client was asked to release the device");
        Ok(())
    }

    /// Tells the agent what has changed, at most once per [`STATUS_PERIOD`]: a guest that resets its device in a loop must
    /// not flood it.
    pub(super) fn tell_status(&mut self, control: &mut Control, now: Instant) {
        if self.status_due().is_some_and(|due| due <= now) {
            control.send_status(&self.status());
            self.told = self.news();
            self.told_at = now;
        }
    }

    pub(super) fn status_due(&self) -> Option<Instant> {
        (self.news() != self.told).then(|| self.told_at + STATUS_PERIOD)
    }

    fn news(&self) -> (bool, Resets) {
        (self.session.is_some(), self.resets_by_now())
    }

    pub(super) fn resets_by_now(&self) -> Resets {
        let mut resets = self.resets;
        resets.software = self.function.software_resets();
        resets.device_reset += self
            .session
            .as_ref()
            .map_or(0, |connected| connected.session.device_resets());
        resets
    }

    fn status(&self) -> Status {
        let (connected, resets) = self.news();
        Status {
            pid: std::process::id(),
            state: if connected {
                State::Connected
            } else {
                State::Listening
            },
            client: self
                .session
                .as_ref()
                .and_then(|connected| connected.client.clone()),
            resets,
        }
    }
}
