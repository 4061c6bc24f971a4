//! A device in a VMM: what `attach.rs` decides is carried out here, one call to the VMM at a time and beside everything
//! else that the device's task does.
//!
//! Each stage is durable before the VMM hears of it. An agent that dies in between is followed by one that asks the VMM
//! what it has, and goes on from there.

use std::io;
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
use super::release::Asked;
use super::request::Reply;
use super::state;
use super::view::Life;
use super::{Device, Shared};
use crate::chain::chain;
use crate::events::Severity;
use crate::store::{Attachment, Call, Stage};
use crate::vmm::{self, Endpoint, Placed, Vm, Wanted};
use crate::{clock, steps};

/// How long a guest has to let go of a device that is deleted by force, or that an earlier agent was unplugging.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the client may take to disconnect after its VMM has said that the device is out.
const PARTING: Duration = Duration::from_secs(5);

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

/// The way between a device and its VMM, while it has one.
#[derive(Debug, Default)]
pub(super) struct Place {
    state: Option<attach::State>,
    /// Its name in its VMM, which no other device has.
    name: Option<Name>,
    calls: JoinSet<Answer>,
    /// What happens in the VMM. Keeps the way to it open.
    events: Option<vmm::Events>,
    /// Who waits until the device is in, and until it is out.
    in_waiters: Vec<Reply>,
    out_waiters: Vec<Reply>,
    /// Who waits until the client has gone.
    release_waiters: Vec<Reply>,
    /// How long the guest has.
    patience: Duration,
    /// Until when who waits for the device to be out waits for its client to disconnect too, which some VMMs do a moment
    /// after they have said that it is.
    parting: Option<Instant>,
    /// Whether the device shall be deleted once it is out.
    is_last: bool,
    /// Whether the client has left since the VMM was last asked.
    pub(super) is_left: bool,
    /// What is to be done about a VMM that has lost the device's process.
    pub(super) mending: Mending,
}

/// What came of a call to the VMM.
#[derive(Debug)]
pub(super) struct Answer {
    event: Event,
    placed: Option<Placed>,
    vm: Option<Vm>,
    error: Option<vmm::Error>,
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
fn wait(waiters: &mut Vec<Reply>, reply: Reply) {
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

    async fn attach_event(&mut self, event: Event) {
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
    fn answer_waiters(&mut self, error: Option<&Arc<vmm::Error>>) {
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

    fn carry_to_vmm(&mut self, action: Action) {
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

    /// Makes the device's place durable.
    async fn record_place(
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

async fn plug_into(shared: &Shared, endpoint: &Endpoint, plug: &vmm::Plug) -> Answer {
    let vm = match shared.vmms.open(endpoint).await {
        Ok(vm) => vm,
        Err(error) => return Answer::failed(Event::Refused, error, None),
    };
    match vm.plug(plug).await {
        Ok(placed) => Answer {
            event: Event::Took,
            placed: Some(placed),
            vm: Some(vm),
            error: None,
        },
        Err(error) => {
            let event = match &error {
                vmm::Error::Unanswered { .. } => Event::Unknown,
                vmm::Error::Gone { .. } => Event::Gone,
                _ => Event::Refused,
            };
            Answer::failed(event, error, Some(vm))
        }
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
        Ok(()) => Answer {
            event: Event::LetGo,
            placed: None,
            vm: Some(vm),
            error: None,
        },
        Err(error) => {
            let event = match &error {
                vmm::Error::Unanswered { .. } => Event::Unknown,
                vmm::Error::Gone { .. } => Event::Gone,
                _ => Event::Kept,
            };
            Answer::failed(event, error, Some(vm))
        }
    }
}

async fn find_in(shared: &Shared, attachment: &Attachment) -> Answer {
    let vm = match open_again(shared, attachment).await {
        Ok(vm) => vm,
        Err(answer) => return answer,
    };
    match vm.find(&attachment.vmm_device_id).await {
        Ok(found) => Answer {
            event: Event::Found(found.is_some()),
            placed: found.map(|it| it.placed),
            vm: Some(vm),
            error: None,
        },
        Err(error) => {
            let event = match &error {
                vmm::Error::Gone { .. } => Event::Gone,
                _ => Event::Unknown,
            };
            Answer::failed(event, error, Some(vm))
        }
    }
}

impl Answer {
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
