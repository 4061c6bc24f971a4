//! Devices are given to VMMs and taken from them: what a caller asks for is checked, made durable, and begun. `place.rs` goes
//! on from there, and answers.

use std::time::Duration;

use tracing::warn;

use super::Device;
use super::attach::{self, Action, Event};
use super::device::Task;
use super::error::Error;
use super::loss::Mending;
use super::place::wait;
use super::release::Asked;
use super::request::Reply;
use super::view::Life;
use crate::chain::chain;
use crate::events::Severity;
use crate::store::{Attachment, Call, Stage};
use crate::vmm::{Endpoint, Placed, Wanted};
use crate::{clock, steps};

/// How long a guest has to let go of a device that is deleted by force, or that an earlier agent was unplugging.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Who is asked to let go of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// The VMM that it was given to.
    Vmm,
    /// Its client, whoever gave it to that.
    ClientRequest,
}

/// A VMM that shall take a device, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plug {
    pub(crate) vmm: Endpoint,
    pub(crate) vmm_device_id: String,
    pub(crate) wanted: Wanted,
}

impl Plug {
    /// Whether this is where it is.
    pub(super) fn is(&self, attachment: &Attachment) -> bool {
        self.vmm == attachment.vmm && self.vmm_device_id == attachment.vmm_device_id
    }
}

impl Device {
    /// Whether this VMM could be given the device, or has it already.
    pub(super) fn check_plug(&self, plug: &Plug, etag: &str) -> Result<(), Error> {
        let id = || self.record.id.clone();
        match &self.record.attachment {
            Some(attachment) if plug.is(attachment) && attachment.stage != Stage::Unplugging => {
                return Ok(());
            }
            Some(attachment) => {
                return Err(Error::AlreadyPlugged {
                    id: id(),
                    attachment: attachment.clone(),
                });
            }
            None => {}
        }
        self.record.check_etag(etag)?;
        self.view.check_use(&id(), false)?;
        if self.view.life != Life::Ready {
            return Err(Error::NotServing {
                id: id(),
                why: self.view.message.clone(),
            });
        }
        Ok(())
    }

    /// Whether the device could be taken from who has it, or nobody has it.
    pub(super) fn check_unplug(&self, method: Method, etag: &str) -> Result<(), Error> {
        self.record.check_etag(etag)?;
        let is_strange = self.record.attachment.is_none() && self.view.life == Life::Connected;
        if method == Method::Vmm && is_strange {
            return Err(Error::NotPlugged {
                id: self.record.id.clone(),
                client: self.view.client.clone(),
            });
        }
        Ok(())
    }
}

impl Task {
    /// Has a VMM take the device, and answers when it has.
    pub(super) async fn plug(&mut self, plug: Plug, etag: &str, call: Option<Call>, reply: Reply) {
        match self.begin_plug(plug, etag, call).await {
            Ok(true) => {
                wait(&mut self.place.in_waiters, reply);
                self.answer_waiters(None);
            }
            Ok(false) => {
                let _ = reply.send(Ok(()));
            }
            Err(error) => {
                // A caller that went away does not want the answer.
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Whether there is something to wait for.
    async fn begin_plug(
        &mut self,
        plug: Plug,
        etag: &str,
        call: Option<Call>,
    ) -> Result<bool, Error> {
        let is_met = self.record.has_met(call.as_ref())?;
        if self.record.attachment.is_none() {
            // It was taken out again since.
            if is_met {
                return Ok(false);
            }
            self.check_use(false).await?;
        }
        self.device()
            .check_plug(&plug, if is_met { "" } else { etag })?;
        if self.record.attachment.is_some() {
            return Ok(true);
        }
        let id = &self.record.id;
        let taken = self.shared.names.take(&plug.vmm, &plug.vmm_device_id, id);
        let name = taken.map_err(|holder| Error::NameTaken {
            id: id.clone(),
            vmm_device_id: plug.vmm_device_id.clone(),
            holder,
        })?;
        let now = clock::now();
        let attachment = Attachment {
            stage: Stage::Plugging,
            vmm: plug.vmm,
            vmm_device_id: plug.vmm_device_id,
            wanted: plug.wanted,
            placed: Placed::default(),
            process: None,
            lost_time: None,
            comes_back: false,
            create_time: now,
            update_time: now,
        };
        self.record_place(Some(attachment), call.as_ref()).await?;
        steps::reached("plug.recorded");
        self.place.name = Some(name);
        self.begin_to_plug();
        Ok(true)
    }

    /// Asks the VMM to take the device, as it is recorded.
    pub(super) fn begin_to_plug(&mut self) {
        self.note(Severity::Normal, "PLUGGING", "a VMM is asked to take it");
        self.place.mending = Mending::default();
        self.place.state = Some(attach::State::plugging());
        self.carry_to_vmm(Action::Plug);
    }

    /// Takes the device from its VMM, and answers when that has let go.
    pub(super) async fn unplug(
        &mut self,
        patience: Duration,
        etag: &str,
        call: Option<Call>,
        reply: Reply,
    ) {
        match self.begin_unplug(patience, etag, call).await {
            Ok(true) => wait(&mut self.place.out_waiters, reply),
            Ok(false) => {
                // A caller that went away does not want the answer.
                let _ = reply.send(Ok(()));
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Whether there is something to wait for.
    async fn begin_unplug(
        &mut self,
        patience: Duration,
        etag: &str,
        call: Option<Call>,
    ) -> Result<bool, Error> {
        let is_met = self.record.has_met(call.as_ref())?;
        let Some(attachment) = self.record.attachment.clone() else {
            if self.place.parting.is_some() {
                return Ok(true);
            }
            if !is_met {
                self.device().check_unplug(Method::Vmm, etag)?;
            }
            return Ok(false);
        };
        if attachment.stage == Stage::Unplugging {
            self.stay_out().await?;
            return Ok(true);
        }
        self.record.check_etag(etag)?;
        self.leave_vmm(patience, call.as_ref()).await?;
        Ok(true)
    }

    /// Has the client let go of the device, and answers when it has gone.
    pub(super) async fn release(&mut self, etag: &str, call: Option<Call>, reply: Reply) {
        let answer = match self.begin_release(etag, call).await {
            Ok(Asked::Client) => return wait(&mut self.place.release_waiters, reply),
            Ok(Asked::Nobody) => Ok(()),
            Err(error) => Err(error),
        };
        // A caller that went away does not want the answer.
        let _ = reply.send(answer);
    }

    async fn begin_release(&mut self, etag: &str, call: Option<Call>) -> Result<Asked, Error> {
        if self.record.has_met(call.as_ref())? && self.view.life != Life::Connected {
            return Ok(Asked::Nobody);
        }
        self.device().check_unplug(Method::ClientRequest, etag)?;
        match self.view.life {
            Life::Connected => self.ask_for_release().await,
            _ => Ok(Asked::Nobody),
        }
    }

    /// Makes it durable that the device shall leave its VMM, and begins with that.
    async fn leave_vmm(&mut self, patience: Duration, call: Option<&Call>) -> Result<(), Error> {
        let Some(attachment) = self.record.attachment.as_deref().cloned() else {
            return Ok(());
        };
        let attachment = Attachment {
            stage: Stage::Unplugging,
            update_time: clock::now_after(attachment.update_time),
            ..attachment
        };
        let why = "its VMM is asked to let go of it";
        self.leave_to(attachment, patience, call).await?;
        self.note(Severity::Normal, "UNPLUGGING", why);
        Ok(())
    }

    /// The same, with what is to become of the device then.
    pub(super) async fn leave_to(
        &mut self,
        attachment: Attachment,
        patience: Duration,
        call: Option<&Call>,
    ) -> Result<(), Error> {
        self.record_place(Some(attachment), call).await?;
        steps::reached("unplug.recorded");
        self.place.patience = patience;
        self.attach_event(Event::Unplug).await;
        Ok(())
    }

    /// A device that is on its way out of its VMM does not go in again by itself.
    async fn stay_out(&mut self) -> Result<(), Error> {
        match self.record.attachment.as_deref() {
            Some(attachment) if attachment.comes_back => {
                let attachment = Attachment {
                    comes_back: false,
                    ..attachment.clone()
                };
                self.record_place(Some(attachment), None).await
            }
            _ => Ok(()),
        }
    }

    /// Takes the device from its VMM before it is deleted. Whether that is under way.
    pub(super) async fn leave_vmm_for_good(&mut self) -> bool {
        if !self.place.is_taken() {
            return false;
        }
        self.place.is_last = true;
        let stage = self.record.attachment.as_ref().map(|it| it.stage);
        let left = match stage {
            Some(Stage::Unplugging) => self.stay_out().await,
            _ => self.leave_vmm(PATIENCE, None).await,
        };
        if let Err(error) = left {
            warn!(error = chain(&error), "device deleted while it is plugged");
            self.place.is_last = false;
            return false;
        }
        true
    }

    /// Whether the device is in no VMM, or that is not to matter.
    pub(super) fn check_place(&self, force: bool) -> Result<(), Error> {
        match &self.record.attachment {
            Some(attachment) if !force => Err(Error::AlreadyPlugged {
                id: self.record.id.clone(),
                attachment: attachment.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The device as it is now.
    fn device(&self) -> Device {
        Device {
            record: self.record.clone(),
            view: self.view.clone(),
        }
    }
}
