//! The calls to a VMM, one at a time and beside everything else that the device's task does, and what they lead to.

use std::io;
use std::time::Duration;

use super::Shared;
use super::attach::{Action, Event};
use super::device::Task;
use crate::store::Attachment;
use crate::vmm::{self, Endpoint, Placed, Vm};

/// What came of a call to the VMM.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) event: Event,
    pub(super) placed: Option<Placed>,
    pub(super) vm: Option<Vm>,
    pub(super) error: Option<vmm::Error>,
}

impl Task {
    /// Begins with the call that is due.
    pub(super) fn carry_to_vmm(&mut self, action: Action) {
        let Some(attachment) = self.record.attachment.as_deref().cloned() else {
            return;
        };
        let shared = self.shared.clone();
        match action {
            Action::None | Action::Forget => {}
            Action::Plug => {
                let device_socket = self.dir.socket();
                let plug = vmm::Plug {
                    device_socket,
                    id: attachment.vmm_device_id.clone(),
                    wanted: attachment.wanted.clone(),
                    client: self.view.client.as_ref().map(|it| it.pid),
                };
                let call = async move { plug_into(&shared, &attachment.vmm, &plug).await };
                self.place.calls.spawn(call);
            }
            Action::Unplug => {
                let patience = self.place.patience;
                let call = async move { unplug_from(&shared, &attachment, patience).await };
                self.place.calls.spawn(call);
            }
            Action::Find => {
                let call = async move { find_in(&shared, &attachment).await };
                self.place.calls.spawn(call);
            }
        }
    }
}

async fn plug_into(shared: &Shared, endpoint: &Endpoint, plug: &vmm::Plug) -> Answer {
    let vm = match shared.vmms.open(endpoint).await {
        Ok(vm) => vm,
        Err(error) => return Answer::failed(Event::Refused, error, None),
    };
    match vm.plug(plug).await {
        Ok(placed) => Answer::done(Event::Took, Some(placed), vm),
        Err(error) => Answer::refused(Event::Refused, error, vm),
    }
}

/// The way to the VMM that was given the device: another one that has come to its socket is told from it.
async fn open_again(shared: &Shared, attachment: &Attachment) -> Result<Vm, Answer> {
    let opened = shared.vmms.open(&attachment.vmm).await;
    let vm = opened.map_err(|error| Answer::no_way(error, attachment.process))?;
    match (attachment.process, vm.process()) {
        (Some(then), Some(now)) if then != now => {
            let path = attachment.vmm.path().to_owned();
            Err(Answer::failed(Event::Gone, vmm::Error::Gone { path }, None))
        }
        _ => Ok(vm),
    }
}

async fn unplug_from(shared: &Shared, attachment: &Attachment, patience: Duration) -> Answer {
    let vm = match open_again(shared, attachment).await {
        Ok(vm) => vm,
        Err(answer) => return answer,
    };
    match vm.unplug(&attachment.vmm_device_id, patience).await {
        Ok(()) => Answer::done(Event::LetGo, None, vm),
        Err(error) => Answer::refused(Event::Kept, error, vm),
    }
}

async fn find_in(shared: &Shared, attachment: &Attachment) -> Answer {
    let vm = match open_again(shared, attachment).await {
        Ok(vm) => vm,
        Err(answer) => return answer,
    };
    match vm.find(&attachment.vmm_device_id).await {
        Ok(found) => {
            let event = Event::Found(found.is_some());
            Answer::done(event, found.map(|it| it.placed), vm)
        }
        Err(error) => Answer::refused(Event::Unknown, error, vm),
    }
}

impl Answer {
    fn done(event: Event, placed: Option<Placed>, vm: Vm) -> Self {
        Self {
            event,
            placed,
            vm: Some(vm),
            error: None,
        }
    }

    /// The VMM did not do it, which is `event` if it has said so.
    fn refused(event: Event, error: vmm::Error, vm: Vm) -> Self {
        let event = match &error {
            vmm::Error::Unanswered { .. } => Event::Unknown,
            vmm::Error::Gone { .. } => Event::Gone,
            _ => event,
        };
        Self::failed(event, error, Some(vm))
    }

    fn failed(event: Event, error: vmm::Error, vm: Option<Vm>) -> Self {
        Self {
            event,
            placed: None,
            vm,
            error: Some(error),
        }
    }

    /// There is no way to a VMM that had the device: either it has ended, or that is not certain. Its socket can be removed
    /// while it lives.
    fn no_way(error: vmm::Error, process: Option<vmm::Process>) -> Self {
        let is_over = match &error {
            vmm::Error::Unreachable { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ),
            _ => false,
        };
        let event = match is_over && !process.is_some_and(vmm::Process::lives) {
            true => Event::Gone,
            false => Event::Unknown,
        };
        Self::failed(event, error, None)
    }
}
