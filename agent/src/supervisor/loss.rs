//! A device that lost its backend: the VMM has it, and is connected to no process of it. No VMM connects again by itself, so
//! that the guest's card is dead until the device goes out of the VMM and in again.
//!
//! What is done about it is the device's `backend_loss_policy`. A VMM that is gone has lost nothing: then the device is in
//! no VMM any more, which `place.rs` finds out.

use std::time::{Duration, Instant};

use tracing::warn;

use super::attach::Event;
use super::device::Task;
use super::plug::PATIENCE;
use super::state::Action;
use super::view::Life;
use crate::chain::chain;
use crate::clock;
use crate::events::Severity;
use crate::store::{Attachment, BackendLossPolicy, Stage};

/// How long a client that has left may take to come back, as that of a guest that reboots does.
const GRACE: Duration = Duration::from_secs(2);
/// Pause before a guest that has kept its dead card is asked again, doubled each time.
const PAUSE: Duration = Duration::from_secs(5);
/// So often it is asked.
const TRIES: u32 = 5;

/// What is to be done about it.
#[derive(Debug, Default)]
pub(super) struct Mending {
    /// Not before this.
    at: Option<Instant>,
    /// Whether only the process is waited for.
    is_due: bool,
    /// How often the guest has kept its card.
    tries: u32,
}

impl Mending {
    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.at
    }
}

impl Task {
    /// The VMM's way to the device is cut. Whether there was one.
    pub(super) async fn backend_lost(&mut self) -> bool {
        let Some(attachment) = self.record.attachment.as_deref() else {
            return false;
        };
        if attachment.lost_time.is_none() {
            let policy = self.record.spec.backend_loss_policy;
            let message = format!(
                "the VMM has the device, and no process of it: {}",
                policy.cure()
            );
            self.note(Severity::Warning, "BACKEND_LOST", &message);
            let lost_time = Some(clock::now());
            let attachment = Attachment {
                lost_time,
                ..attachment.clone()
            };
            self.record_place_late(Some(attachment)).await;
        }
        self.place.mending.at = Some(Instant::now() + GRACE);
        true
    }

    /// The VMM is connected to the device.
    pub(super) async fn backend_found(&mut self) {
        self.place.mending = Mending::default();
        if let Some(attachment) = self.record.attachment.as_deref()
            && attachment.lost_time.is_some()
        {
            let attachment = Attachment {
                lost_time: None,
                ..attachment.clone()
            };
            self.record_place_late(Some(attachment)).await;
        }
    }

    /// Whether a device whose process has ended under its VMM is to stay without one.
    pub(super) fn fails_with_backend(&self) -> bool {
        self.record.attachment.is_some()
            && self.record.spec.backend_loss_policy == BackendLossPolicy::Fail
    }

    /// No other process is started.
    pub(super) async fn give_up(&mut self) {
        let before = self.state.phase;
        self.state = self.state.clone().failed();
        self.remember(before, Action::None).await;
        self.publish();
        self.answer_restarts();
    }

    /// Takes a dead card out of the guest, to put it back, once it is time and there is a process for it.
    pub(super) async fn mend(&mut self) {
        let mending = &mut self.place.mending;
        if mending.at.is_some_and(|at| at <= Instant::now()) {
            mending.at = None;
            mending.is_due = true;
        }
        if !mending.is_due || self.view.life != Life::Ready {
            return;
        }
        mending.is_due = false;
        let replug = BackendLossPolicy::Replug;
        let Some(attachment) = self.record.attachment.as_deref().cloned() else {
            return;
        };
        let is_dead = attachment.lost_time.is_some() && attachment.stage == Stage::Plugged;
        if !is_dead || self.record.spec.backend_loss_policy != replug {
            return;
        }
        let attachment = Attachment {
            stage: Stage::Unplugging,
            comes_back: true,
            update_time: clock::now_after(attachment.update_time),
            ..attachment
        };
        let why = "its VMM is asked to let go of it, and to take it again";
        self.note(Severity::Warning, "REPLUGGING", why);
        if let Err(error) = self.leave_to(attachment, PATIENCE, None).await {
            warn!(error = chain(&error), "device not plugged in again");
            self.place.mending.at = Some(Instant::now() + PAUSE);
        }
    }

    /// The guest has kept its dead card.
    pub(super) fn kept_dead(&mut self) {
        let mending = &mut self.place.mending;
        mending.tries += 1;
        if mending.tries < TRIES {
            mending.at = Some(Instant::now() + PAUSE * 2_u32.pow(mending.tries));
            return;
        }
        let why = format!("the guest has kept its dead card {TRIES} times; unplug the device");
        self.note(Severity::Warning, "REPLUG_FAILED", &why);
    }

    /// The VMM has let go of a device that it is to take again, in the same place.
    pub(super) async fn come_back(&mut self, attachment: Attachment) {
        let mut wanted = attachment.wanted;
        if wanted.bus.is_empty() {
            wanted.bus = attachment.placed.bus;
        }
        let attachment = Attachment {
            stage: Stage::Plugging,
            wanted,
            placed: crate::vmm::Placed::default(),
            process: None,
            lost_time: None,
            comes_back: false,
            update_time: clock::now_after(attachment.update_time),
            ..attachment
        };
        self.record_place_late(Some(attachment)).await;
        crate::steps::reached("plug.recorded");
        self.begin_to_plug();
    }

    /// The VMM has the device still, whose client has left. Whoever has it may be about to come back.
    pub(super) async fn still_there(&mut self, event: Event) {
        let is_left = std::mem::take(&mut self.place.is_left);
        let is_there = event == Event::Found(true) && self.view.life == Life::Ready;
        let stage = self.record.attachment.as_ref().map(|it| it.stage);
        if is_left && is_there && stage == Some(Stage::Plugged) {
            self.backend_lost().await;
        }
    }
}

impl BackendLossPolicy {
    /// What becomes of a dead card, for people.
    pub(crate) fn cure(self) -> &'static str {
        match self {
            Self::Hold => {
                "the guest's card is dead until the device is unplugged and plugged in again"
            }
            Self::Replug => "it is unplugged and plugged in again, which the guest sees",
            Self::Fail => "its process is not started again; unplug the device, then restart it",
        }
    }
}
