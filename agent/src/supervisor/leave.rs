//! A device goes: durable first, then its process, then all that is left of it.

use std::sync::Arc;

use tracing::{info, warn};

use super::device::Task;
use super::error::Error;
use super::state::Event;
use crate::chain::chain;
use crate::events::Severity;
use crate::store::{Call, Record};
use crate::{clock, steps};

impl Task {
    /// Makes it durable that the device shall go, unless somebody uses it.
    pub(super) async fn delete(
        &mut self,
        etag: &str,
        force: bool,
        call: Option<Call>,
    ) -> Result<(), Error> {
        let is_repeated = call.as_ref().map(|it| it.is_among(&self.record.deleted_by));
        let is_repeated = is_repeated.transpose().map_err(|it| Error::RequestReused {
            request_id: it.request_id.clone(),
            id: self.record.id.clone(),
        })?;
        if is_repeated == Some(true) {
            return Ok(());
        }
        self.record.check_etag(etag)?;
        if self.record.delete_time.is_none() {
            self.check_use(force).await?;
            self.check_place(force)?;
            let delete_time = Some(clock::now_after(self.record.create_time));
            let record = Record {
                delete_time,
                deleted_by: call,
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

    /// The device goes: its VMM has to let go of it first, if it is in one.
    pub(super) async fn begin_to_leave(&mut self) {
        if !self.leave_vmm_for_good().await {
            self.event(Event::Delete).await;
        }
    }

    /// Removes all that is left of the device: first what others see, then the record, so that an
    /// agent that dies in between goes on with it. Returns whether nothing is left.
    pub(super) async fn clean_up(&mut self) -> bool {
        self.sockets = None;
        let result = self.remove().await;
        match &result {
            Ok(()) => {
                info!("device gone");
                self.note(Severity::Normal, "DELETED", "device gone");
                // Before somebody else can have the id.
                self.shared.changes.remove(&self.record.id);
                self.shared.devices().remove(&self.record.id);
            }
            Err(error) => {
                warn!(error = chain(error), "device not removed wholly");
                self.note(Severity::Warning, "NOT_REMOVED", &chain(error));
            }
        }
        for reply in self.deleters.drain(..) {
            let answer = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(Error::Left {
                    id: self.record.id.clone(),
                    why: chain(error),
                    reason: error.storage_reason(),
                }),
            };
            // A caller that went away does not want the answer.
            let _ = reply.send(answer);
        }
        result.is_ok()
    }

    async fn remove(&mut self) -> Result<(), Error> {
        if let Err(error) = self.shared.cgroups.remove(&self.record.id).await {
            warn!(%error, "cgroup not removed");
        }
        steps::reached("delete.cgroup");
        self.dir.remove().map_err(|source| Error::NotRemoved {
            id: self.record.id.clone(),
            path: self.dir.path().to_owned(),
            source,
        })?;
        steps::reached("delete.removed");
        if self.is_recorded {
            let removed = self.shared.store.remove(&self.record).await;
            removed.map_err(|source| self.not_durable("remove its record", source))?;
        }
        steps::reached("delete.forgotten");
        Ok(())
    }
}
