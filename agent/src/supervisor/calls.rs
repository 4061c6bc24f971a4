//! What is asked of one device, through the task that owns it.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::plug::{Method, Plug};
use super::request::{Request, Update};
use super::update::UPDATE_TIMEOUT;
use super::{DELETE_SLACK, Device, Error, Handle, Life, REPLY_TIMEOUT, Supervisor};
use crate::store::Call;

/// How long a VMM may take to be asked, and to take a device.
const PLUG_PATIENCE: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Takes a device down and waits until nothing is left of it.
    pub(crate) async fn delete(
        &self,
        id: &str,
        etag: String,
        force: bool,
        call: Option<Call>,
    ) -> Result<(), Error> {
        // Before the device is looked for: there may be another one of that name.
        if self.has_deleted(id, call.as_ref())? {
            return Ok(());
        }
        let repeated = call.clone();
        let mut patience = self.shared.config().timeouts.stop + DELETE_SLACK;
        if self.get(id).is_ok_and(|it| it.record.attachment.is_some()) {
            patience += PLUG_PATIENCE;
        }
        let request = |reply| Request::Delete {
            etag,
            force,
            call,
            reply,
        };
        match self.ask(id, patience, request).await {
            // The same call, made earlier, was about to come to its end.
            Err(Error::Missing { .. }) if self.has_deleted(id, repeated.as_ref())? => Ok(()),
            answer => answer,
        }
    }

    /// Whether this call has deleted a device already.
    pub(crate) fn has_deleted(&self, id: &str, call: Option<&Call>) -> Result<bool, Error> {
        let Some(call) = call else {
            return Ok(false);
        };
        let deleted = self.shared.store.has_deleted(call);
        deleted.map_err(|()| Error::RequestReused {
            request_id: call.request_id.clone(),
            id: id.to_owned(),
        })
    }

    /// Replaces a device's process, and waits until the new one serves.
    pub(crate) async fn restart(
        &self,
        id: &str,
        etag: String,
        force: bool,
        call: Option<Call>,
    ) -> Result<Device, Error> {
        let config = self.shared.config();
        let patience = config.timeouts.stop + config.timeouts.start + DELETE_SLACK;
        self.ask(id, patience, |reply| Request::Restart {
            etag,
            force,
            call,
            reply,
        })
        .await?;
        self.get(id)
    }

    /// Whether a device could be restarted now, as far as can be seen without asking its process.
    pub(crate) fn check_restart(&self, id: &str, etag: &str, force: bool) -> Result<Device, Error> {
        let device = self.get(id)?;
        device.record.check_etag(etag)?;
        let id = id.to_owned();
        match device.view.life {
            Life::Deleting | Life::Gone => return Err(Error::Deleting { id }),
            Life::Stopped => return Err(Error::ShutDown { id }),
            Life::Starting | Life::Ready | Life::Connected | Life::Failed => {}
        }
        device.view.check_use(&id, force)?;
        Ok(device)
    }

    /// Resets a device's model.
    pub(crate) async fn reset(
        &self,
        id: &str,
        etag: String,
        call: Option<Call>,
    ) -> Result<Device, Error> {
        self.ask(id, REPLY_TIMEOUT, |reply| Request::Reset {
            etag,
            call,
            reply,
        })
        .await?;
        self.get(id)
    }

    /// Gives a device to a VMM, and waits until that has it.
    pub(crate) async fn plug(
        &self,
        id: &str,
        plug: Plug,
        etag: String,
        call: Option<Call>,
    ) -> Result<Device, Error> {
        let plug = Box::new(plug);
        self.ask(id, PLUG_PATIENCE, |reply| Request::Plug {
            plug,
            etag,
            call,
            reply,
        })
        .await?;
        self.get(id)
    }

    /// Takes a device from its VMM, and waits until that has let go. The guest has `patience`.
    pub(crate) async fn unplug(
        &self,
        id: &str,
        method: Method,
        patience: Duration,
        etag: String,
        call: Option<Call>,
    ) -> Result<Device, Error> {
        let request = |reply| Request::Unplug {
            method,
            patience,
            etag,
            call,
            reply,
        };
        // The way to the VMM takes time of its own; the client is waited for by itself.
        let slack = match method {
            Method::Vmm => PLUG_PATIENCE,
            Method::ClientRequest => Duration::ZERO,
        };
        match self.ask(id, patience + slack, request).await {
            Err(Error::NoAnswer { id, .. }) => Err(Error::GuestLate { id, patience }),
            answer => answer,
        }?;
        self.get(id)
    }

    /// Whether a device could be given to a VMM now, for all that is known of the device.
    pub(crate) fn check_plug(&self, id: &str, plug: &Plug, etag: &str) -> Result<Device, Error> {
        let device = self.get(id)?;
        device.check_plug(plug, etag)?;
        Ok(device)
    }

    /// The ids of devices but for `except` that are plugged into this VMM under this name.
    pub(crate) fn attached(&self, plug: &Plug, except: Option<&str>) -> Vec<String> {
        let devices = self.shared.devices();
        let others = devices.iter().filter(|(id, _)| Some(&***id) != except);
        let is_there = |handle: &Handle| {
            let device = handle.device.borrow();
            let attachment = device.record.attachment.as_deref();
            attachment.is_some_and(|it| plug.is(it))
        };
        others
            .filter(|(_, handle)| is_there(handle))
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Whether a device could be taken from its VMM now.
    pub(crate) fn check_unplug(
        &self,
        id: &str,
        method: Method,
        etag: &str,
    ) -> Result<Device, Error> {
        let device = self.get(id)?;
        device.check_unplug(method, etag)?;
        Ok(device)
    }

    /// Changes a device. Goes on when the caller does not wait any more.
    pub(crate) async fn update(&self, id: &str, update: Update) -> Result<Device, Error> {
        let update = Box::new(update);
        let patience = REPLY_TIMEOUT + UPDATE_TIMEOUT;
        self.ask(id, patience, |reply| Request::Update { update, reply })
            .await?;
        self.get(id)
    }

    async fn ask(
        &self,
        id: &str,
        patience: Duration,
        request: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Request,
    ) -> Result<(), Error> {
        let handle = self.handle(id)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            handle.requests.send(request(reply)).await.ok()?;
            answer.await.ok()
        };
        match timeout(patience, asked).await {
            Ok(Some(answer)) => answer,
            // The task has ended: the device is gone, or the agent is about to be.
            Ok(None) if *self.shutdown.borrow() => Err(Error::ShuttingDown),
            Ok(None) => Err(Error::Missing { id: id.to_owned() }),
            Err(_) => Err(Error::NoAnswer {
                id: id.to_owned(),
                patience,
            }),
        }
    }
}
