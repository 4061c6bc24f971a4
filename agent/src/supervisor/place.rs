//! Where a device is: what becomes of it in its VMM, and who waits for that.
//!
//! What `attach.rs` decides is carried out here and in `vmm_call.rs`. Each stage is durable before the VMM hears of it. An
//! agent that dies in between is followed by one that asks the VMM what it has, and goes on from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::attach::{self, Action, Event};
use super::device::Task;
use super::error::Error;
use super::loss::Mending;
use super::names::Name;
use super::plug::PATIENCE;
use super::request::Reply;
use super::state;
use super::view::Life;
use super::vmm_call::Answer;
use crate::chain::chain;
use crate::events::Severity;
use crate::store::{Attachment, Call, Stage};
use crate::vmm::{self, Placed, Vm};
use crate::{clock, steps};

/// How long the client may take to disconnect after its VMM has said that the device is out.
const PARTING: Duration = Duration::from_secs(5);

/// The way between a device and its VMM, while it has one.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) state: Option<attach::State>,
    /// Its name in its VMM, which no other device has.
    pub(super) name: Option<Name>,
    pub(super) calls: JoinSet<Answer>,
    /// What happens in the VMM. Keeps the way to it open.
    pub(super) events: Option<vmm::Events>,
    /// Who waits until the device is in, and until it is out.
    pub(super) in_waiters: Vec<Reply>,
    pub(super) out_waiters: Vec<Reply>,
    /// Who waits until the client has gone.
    pub(super) release_waiters: Vec<Reply>,
    /// How long the guest has.
    pub(super) patience: Duration,
    /// Until when who waits for the device to be out waits for its client to disconnect too, which some VMMs do a moment
    /// after they have said that it is.
    pub(super) parting: Option<Instant>,
    /// Whether the device shall be deleted once it is out.
    pub(super) is_last: bool,
    /// Whether the client has left since the VMM was last asked.
    pub(super) is_left: bool,
    /// What is to be done about a VMM that has lost the device's process.
    pub(super) mending: Mending,
}

/// What the place has to tell its task.
#[derive(Debug)]
pub(super) enum News {
    /// None when the call ended without one.
    Answer(Option<Box<Answer>>),
    /// None when nothing more comes.
    Vmm(Option<vmm::Event>),
    Tick,
}

impl Place {
    /// The next news; none while the device is in no VMM. Cancel safe.
    pub(super) async fn news(&mut self) -> News {
        let deadline = self.state.as_ref().and_then(attach::State::deadline);
        let others = self.parting.into_iter().chain(self.mending.deadline());
        let deadline = deadline.into_iter().chain(others).min();
        tokio::select! {
            Some(answer) = self.calls.join_next() => News::Answer(answer.ok().map(Box::new)),
            event = next_event(self.events.as_mut()) => News::Vmm(event),
            () = until(deadline) => News::Tick,
        }
    }

    /// Whether the device is in a VMM, or on its way.
    pub(super) fn is_taken(&self) -> bool {
        self.state.is_some()
    }
}

/// Adds who waits to those who do still: what is waited for may never come, however often it is asked for.
pub(super) fn wait(waiters: &mut Vec<Reply>, reply: Reply) {
    waiters.retain(|it| !it.is_closed());
    waiters.push(reply);
}

async fn next_event(events: Option<&mut vmm::Events>) -> Option<vmm::Event> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

impl Task {
    /// Goes on with what an earlier agent had begun.
    pub(super) fn find_place(&mut self) {
        let Some(attachment) = self.record.attachment.as_deref() else {
            return;
        };
        let (vmm, name) = (&attachment.vmm, &attachment.vmm_device_id);
        self.place.name = self.shared.names.take(vmm, name, &self.record.id).ok();
        self.place.state = Some(attach::State::found(attachment.stage));
        self.place.patience = PATIENCE;
        self.carry_to_vmm(Action::Find);
    }

    /// The device's client has gone by itself.
    pub(super) async fn client_left(&mut self) {
        for reply in self.place.release_waiters.drain(..) {
            // A caller that went away does not want the answer.
            let _ = reply.send(Ok(()));
        }
        self.parted();
        if self.place.is_taken() {
            self.place.is_left = true;
            if let Some(events) = &self.place.events {
                events.vm().hint();
            }
            self.attach_event(Event::Doubt).await;
        }
    }

    /// The device is out, and its client has gone or has had its time.
    fn parted(&mut self) {
        if self.place.parting.take().is_none() {
            return;
        }
        if let Err(error) = self.view.check_use(&self.record.id, false) {
            warn!(error = chain(&error), "a VMM says that it has let go");
            for reply in self.place.out_waiters.drain(..) {
                // A caller that went away does not want the answer.
                let _ = reply.send(self.view.check_use(&self.record.id, false));
            }
        }
        self.answer_waiters(None);
    }

    /// Takes in what there is to tell about the place.
    pub(super) async fn place_news(&mut self, news: News) {
        let event = match news {
            News::Tick => {
                if self.place.parting.is_some_and(|it| it <= Instant::now()) {
                    self.parted();
                }
                Event::Tick
            }
            News::Vmm(Some(event)) => match self.meaning(&event) {
                Some(event) => event,
                None => return,
            },
            News::Vmm(None) => {
                self.place.events = None;
                return;
            }
            News::Answer(answer) => {
                return match answer {
                    Some(answer) => self.answered_by_vmm(*answer).await,
                    None => self.attach_event(Event::Unknown).await,
                };
            }
        };
        self.attach_event(event).await;
    }

    /// What this means for the device.
    fn meaning(&self, event: &vmm::Event) -> Option<Event> {
        let attachment = self.record.attachment.as_deref()?;
        match event {
            vmm::Event::Unplugged { id } if *id == attachment.vmm_device_id => Some(Event::Doubt),
            vmm::Event::Missed => Some(Event::Doubt),
            vmm::Event::Gone => Some(Event::Gone),
            vmm::Event::Unplugged { .. }
            | vmm::Event::GuestRefused { .. }
            | vmm::Event::Reset
            | vmm::Event::Shutdown => None,
        }
    }

    async fn answered_by_vmm(&mut self, answer: Answer) {
        let Answer {
            event,
            placed,
            vm,
            error,
        } = answer;
        let step = match self.record.attachment.as_ref().map(|it| it.stage) {
            Some(Stage::Unplugging) => "unplug.answered",
            _ => "plug.answered",
        };
        steps::reached(step);
        let process = vm.as_ref().and_then(Vm::process);
        if let Some(vm) = vm
            && self.place.events.is_none()
        {
            self.place.events = Some(vm.events());
        }
        if let (Some(placed), Some(attachment)) = (placed, &self.record.attachment)
            && (&attachment.placed, attachment.process) != (&placed, process)
        {
            let attachment = Attachment {
                placed,
                process,
                ..(**attachment).clone()
            };
            self.record_place_late(Some(attachment)).await;
        }
        self.still_there(event).await;
        let error = error.map(Arc::new);
        if let Some(error) = &error {
            self.tell_failure(event, error);
        }
        self.attach_event_with(event, error).await;
    }

    fn tell_failure(&self, event: Event, error: &Arc<vmm::Error>) {
        let reason = match event {
            Event::Refused => "PLUG_FAILED",
            Event::Kept => "UNPLUG_FAILED",
            Event::Gone => "VMM_GONE",
            _ => "VMM_NO_ANSWER",
        };
        let error = chain(&**error);
        warn!(error, reason, "VMM");
        self.note(Severity::Warning, reason, &error);
    }

    pub(super) async fn attach_event(&mut self, event: Event) {
        self.attach_event_with(event, None).await;
    }

    async fn attach_event_with(&mut self, event: Event, error: Option<Arc<vmm::Error>>) {
        let Some(before) = self.place.state.take() else {
            return;
        };
        let (after, action) = attach::next(&before, event, Instant::now());
        if action == Action::Forget {
            self.forget_place(event).await;
        } else {
            if after.stage != before.stage && event != Event::Unplug {
                self.enter(after.stage).await;
            }
            self.place.state = Some(after);
            self.carry_to_vmm(action);
        }
        self.answer_waiters(error.as_ref());
        self.publish();
        let is_out = !self.place.is_taken() || event == Event::Kept || event == Event::Unknown;
        if is_out && std::mem::take(&mut self.place.is_last) {
            Box::pin(self.event(state::Event::Delete)).await;
        }
    }

    /// The VMM has the device, or keeps it.
    async fn enter(&mut self, stage: Stage) {
        let Some(attachment) = self.record.attachment.as_deref() else {
            return;
        };
        let is_kept = attachment.comes_back;
        let attachment = Attachment {
            stage,
            comes_back: false,
            update_time: clock::now_after(attachment.update_time),
            ..attachment.clone()
        };
        if is_kept {
            self.kept_dead();
        } else if stage == Stage::Plugged {
            let Placed { bus, address } = &attachment.placed;
            info!(bus, address, "device plugged");
            let text = format!("its VMM has it on {bus} at {address}");
            self.note(Severity::Normal, "PLUGGED", &text);
        }
        self.record_place_late(Some(attachment)).await;
        steps::reached("plug.done");
    }

    /// The device is in no VMM any more.
    async fn forget_place(&mut self, event: Event) {
        self.place.calls.abort_all();
        self.place.calls = JoinSet::new();
        self.place.is_left = false;
        if matches!(event, Event::LetGo | Event::Found(false))
            && let Some(attachment) = self.record.attachment.as_deref().cloned()
            && attachment.comes_back
        {
            return self.come_back(attachment).await;
        }
        self.place.events = None;
        self.place.name = None;
        if event != Event::Refused {
            // A VMM can be done before its process has told of the client. Boxed, for what it hears can lead here.
            Box::pin(self.refresh()).await;
        }
        let is_connected = event != Event::Refused && self.view.life == Life::Connected;
        self.place.parting = is_connected.then(|| Instant::now() + PARTING);
        match event {
            Event::Refused => {}
            Event::Gone => {
                info!("VMM gone");
                self.note(Severity::Warning, "VMM_GONE", "its VMM is gone");
            }
            _ => {
                info!("device unplugged");
                self.note(Severity::Normal, "UNPLUGGED", "it is in no VMM any more");
            }
        }
        self.record_place_late(None).await;
        steps::reached("unplug.done");
    }

    /// Tells who waits, once there is something to tell. `error` is why the last call to the VMM did not do.
    pub(super) fn answer_waiters(&mut self, error: Option<&Arc<vmm::Error>>) {
        let id = &self.record.id;
        let failure = || match error {
            Some(source) => Error::Vmm {
                id: id.clone(),
                source: source.clone(),
            },
            None => Error::PlugEnded { id: id.clone() },
        };
        let stage = self.place.state.as_ref().map(|it| it.stage);
        let (is_in, is_out) = match stage {
            Some(Stage::Plugged) => (Some(true), Some(false)),
            Some(Stage::Unplugging) => (Some(false), error.map(|_| false)),
            Some(Stage::Plugging) => (error.map(|_| false), None),
            None => (Some(false), self.place.parting.is_none().then_some(true)),
        };
        for (waiters, outcome) in [
            (&mut self.place.in_waiters, is_in),
            (&mut self.place.out_waiters, is_out),
        ] {
            let Some(is_done) = outcome else { continue };
            for reply in waiters.drain(..) {
                let answer = is_done.then_some(()).ok_or_else(failure);
                // A caller that went away does not want the answer.
                let _ = reply.send(answer);
            }
        }
    }

    /// Makes the device's place durable.
    pub(super) async fn record_place(
        &mut self,
        attachment: Option<Attachment>,
        call: Option<&Call>,
    ) -> Result<(), Error> {
        let mut record = (*self.record).clone();
        record.attachment = attachment.map(Box::new);
        record.remember(call);
        let change = "write what becomes of it in its VMM";
        self.record_durably(record, change).await?;
        self.shown = self.record.clone();
        self.publish();
        Ok(())
    }

    /// The same of what has happened already. Where that can't be written the next agent asks the VMM.
    pub(super) async fn record_place_late(&mut self, attachment: Option<Attachment>) {
        let kept = attachment.clone();
        if let Err(error) = self.record_place(attachment, None).await {
            warn!(error = chain(&error), "place in a VMM");
            let mut record = (*self.record).clone();
            record.attachment = kept.map(Box::new);
            self.record = Arc::new(record);
            self.shown = self.record.clone();
        }
    }
}
