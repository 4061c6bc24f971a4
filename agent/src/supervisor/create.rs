//! A device is made, unless something speaks against it.

use std::collections::BTreeMap;

use super::device::Begin;
use super::{Device, Error, Handle, Life, Supervisor};
use crate::limits::{self, Limits};
use crate::store::Record;
use crate::{socket, steps};

impl Supervisor {
    /// Whether this device could be made: its path fits, and nobody has its id.
    pub(crate) fn check(&self, record: &Record) -> Result<(), Error> {
        let devices = self.shared.devices();
        match repeated(&devices, record)? {
            Some(_) => Ok(()),
            None => self.check_free(&devices, &record.id),
        }
    }

    /// Whether this host can hold a device to its limits.
    pub(crate) fn check_limits(&self, limits: &Limits) -> Result<(), Error> {
        let most = limits::open_files_of_agent();
        if let Some(files) = limits.open_files.filter(|it| u64::from(*it) > most) {
            let why = format!(
                "{files} is more than the {most} that the agent itself may have; ask for less, or raise LimitNOFILE= of \
                 its service"
            );
            let limit = "open_files";
            return Err(Error::Unenforceable { limit, why });
        }
        let cpu = limits
            .cpu_millis
            .map_or(Ok(()), |_| self.shared.cgroups.check_cpu());
        let limit = "cpu_millis";
        cpu.map_err(|why| Error::Unenforceable { limit, why })
    }

    fn check_free(&self, devices: &BTreeMap<String, Handle>, id: &str) -> Result<(), Error> {
        let dir = self.shared.dir(id);
        for path in [dir.socket(), dir.control()] {
            socket::check_path(&path).map_err(Error::Path)?;
        }
        if devices.contains_key(id) {
            let id = id.to_owned();
            return Err(Error::Exists { id });
        }
        if self.shared.unreadable.contains_key(id) {
            let id = id.to_owned();
            return Err(Error::Unreadable { id });
        }
        // Under the lock of the devices: a shutdown that comes later finds the device among them.
        self.shared.drain.check_creation()?;
        let limit = self.shared.config().limits.devices;
        if devices.len() >= limit as usize {
            return Err(Error::Full { limit });
        }
        if dir.path().exists() && dir.is_served() {
            return Err(Error::Orphan {
                id: id.to_owned(),
                path: dir.path().to_owned(),
            });
        }
        Ok(())
    }

    /// Makes a device and waits until it is ready. Goes on when the caller does not wait any more;
    /// who calls again with the same request id gets the same device.
    pub(crate) async fn create(&self, record: Record) -> Result<Device, Error> {
        let handle = {
            let mut devices = self.shared.devices();
            match repeated(&devices, &record)? {
                Some(handle) => handle,
                None => {
                    self.check_free(&devices, &record.id)?;
                    steps::reached("create.checked");
                    self.launch(&mut devices, record, Begin::Create)
                }
            }
        };
        settled(handle).await
    }
}

/// The device that an earlier call with this record's request id made, when it asked for the same.
fn repeated(devices: &BTreeMap<String, Handle>, record: &Record) -> Result<Option<Handle>, Error> {
    let Some(call) = &record.created_by else {
        return Ok(None);
    };
    let earlier = devices.values().find_map(|handle| {
        let device = handle.device.borrow();
        let earlier = device.record.created_by.as_ref();
        let earlier = earlier.filter(|it| it.request_id == call.request_id);
        earlier.map(|it| (it == call, device.record.id.clone(), handle))
    });
    match earlier {
        Some((false, id, _)) => Err(Error::RequestReused {
            request_id: call.request_id.clone(),
            id,
        }),
        earlier => Ok(earlier.map(|(_, _, handle)| handle.clone())),
    }
}

/// The device when its start has come to an end.
async fn settled(mut handle: Handle) -> Result<Device, Error> {
    let came = handle
        .device
        .wait_for(|device| device.view.life != Life::Starting)
        .await
        .map(|device| device.clone());
    let device = came.map_err(|_| Error::ShuttingDown)?;
    let id = device.record.id.clone();
    match (device.view.life, &device.view.failure) {
        // It was made, and rests with its host.
        (Life::Ready | Life::Connected | Life::Stopped, _) => Ok(device),
        (Life::Gone | Life::Failed | Life::Deleting, Some(failure)) => Err(Error::Start {
            id,
            failure: failure.clone(),
        }),
        _ => Err(Error::DeletedMeanwhile { id }),
    }
}
