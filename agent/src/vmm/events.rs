//! What happens in a VMM, for whoever wants to know.

use tokio::sync::{broadcast, watch};

use super::Vm;

/// Events that one who listens may be behind.
const CAPACITY: usize = 64;

/// What happened in a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It has let go of the device of this name, whoever wanted that.
    Unplugged { id: String },
    /// The guest does not give up the device of this name.
    GuestRefused { id: String, message: String },
    /// The machine was reset. What was about to be unplugged is, by that.
    Reset,
    /// The machine is turned off; most VMMs end soon after.
    Shutdown,
    /// Something may have happened that nobody was told of: look what is there now.
    Missed,
    /// The VMM is gone, and with it all its devices. Nothing comes after it.
    Gone,
}

/// Where a driver tells what happens. Dropping it ends what listeners wait for.
#[derive(Debug)]
pub(super) struct Feed {
    sender: broadcast::Sender<Event>,
    gone: watch::Sender<bool>,
}

impl Feed {
    pub(super) fn new() -> (Self, Receiver) {
        let (sender, receiver) = broadcast::channel(CAPACITY);
        let (gone, is_gone) = watch::channel(false);
        (Self { sender, gone }, Receiver { receiver, is_gone })
    }

    /// Tells it to those who listen. A VMM's end is told by [`Feed::gone`].
    pub(super) fn tell(&self, event: Event) {
        // An error says that nobody listens.
        let _ = self.sender.send(event);
    }

    /// The VMM is no more. Also those learn it who begin to listen later.
    pub(super) fn gone(self) {
        self.gone.send_replace(true);
    }
}

/// The other end of a [`Feed`].
#[derive(Debug)]
pub(super) struct Receiver {
    receiver: broadcast::Receiver<Event>,
    is_gone: watch::Receiver<bool>,
}

impl Receiver {
    /// One that hears what happens from now on.
    pub(super) fn again(&self) -> Self {
        Self {
            receiver: self.receiver.resubscribe(),
            is_gone: self.is_gone.clone(),
        }
    }

    /// Whether the VMM is gone.
    pub(super) fn is_gone(&self) -> bool {
        *self.is_gone.borrow()
    }

    /// The next event; nothing when the agent ends. Nothing is lost when it is not waited for to the end.
    pub(super) async fn next(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Missed),
            Err(broadcast::error::RecvError::Closed) => self.is_gone().then_some(Event::Gone),
        }
    }
}

/// What happens in a VMM from when it was asked for.
#[derive(Debug)]
pub(crate) struct Events {
    receiver: Receiver,
    /// Kept, so that the way to the VMM stays.
    vm: Vm,
}

impl Events {
    pub(super) fn new(receiver: Receiver, vm: Vm) -> Self {
        Self { receiver, vm }
    }

    /// The VMM they are of.
    pub(crate) fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The next event; nothing when the agent ends. Nothing is lost when it is not waited for to the end.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.receiver.next().await
    }
}
