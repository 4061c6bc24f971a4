//! cloud-hypervisor, by its HTTP API.
//!
//! A device is known by its name and its socket, which the VMM tells. That the VMM says yes to a removal means that the
//! guest is asked: it is over when the device is in the machine no more. The VMM tells of that as an event where it has a
//! file for events; elsewhere it is asked, often.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::events::Receiver;
use super::{Error, Event, Owner, Placed, Plug, said};

mod http;
mod look;
mod monitor;
mod owner;
mod session;
mod wire;

use http::{Answer, Call};
use look::Named;
use session::Session;
use wire::Version;

/// The first version whose vfio-user client is the one that this project is tested with.
const NEEDED: Version = Version {
    major: 30,
    minor: 0,
};

/// One answer. The VMM does one thing after the other, and what it is at can take a while.
const ANSWER: Duration = Duration::from_secs(10);
/// `vm.add-user-device`, in which the VMM exchanges some messages with the device for each piece of memory.
const ADDITION: Duration = Duration::from_secs(30);
/// All of plugging in.
const PLUG: Duration = Duration::from_secs(60);

/// The pause before a request to remove is repeated, which doubles up to the longest.
const REPEAT: Duration = Duration::from_millis(500);
const REPEAT_LONGEST: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile whether the device is there still.
const LOOK: Duration = Duration::from_millis(500);

const ADD: &str = "vm.add-user-device";
const REMOVE: &str = "vm.remove-device";

/// One run of cloud-hypervisor.
#[derive(Debug)]
pub(super) struct CloudHypervisor {
    session: Session,
}

impl CloudHypervisor {
    /// Connects to it; `run` gets the task of the session.
    pub(super) async fn open(
        path: &Path,
        events_path: Option<&Path>,
        shutdown: watch::Receiver<bool>,
        run: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Result<Self, Error> {
        let (session, task) = Session::open(path, events_path, shutdown).await?;
        run(Box::pin(task));
        Ok(Self { session })
    }

    pub(super) fn is_over(&self) -> bool {
        self.session.is_over()
    }

    pub(super) fn owner(&self) -> Owner {
        self.session.owner
    }

    pub(super) fn events(&self) -> Receiver {
        self.session.events()
    }

    /// Somebody has seen what makes it worth to look at the VMM now.
    pub(super) fn hint(&self) {
        self.session.hint.notify_waiters();
    }

    /// Whether it is too old. A build that has no number is taken for new.
    fn is_old(&self) -> bool {
        self.session.version.is_some_and(|it| it < NEEDED)
    }

    pub(super) async fn plug(&self, plug: &Plug) -> Result<Placed, Error> {
        let begun = Instant::now();
        let plugged = timeout(PLUG, self.plug_now(plug)).await;
        plugged.unwrap_or_else(|_| {
            Err(Error::Unanswered {
                operation: ADD,
                waited: begun.elapsed(),
            })
        })
    }

    async fn plug_now(&self, plug: &Plug) -> Result<Placed, Error> {
        if self.is_old() {
            return Err(Error::TooOld {
                version: format!(
                    "cloud-hypervisor {}",
                    said::text(&self.session.version_text)
                ),
                needed: format!("cloud-hypervisor {NEEDED} or later"),
            });
        }
        let Some(socket) = plug.device_socket.to_str() else {
            let why = "the path of the device's socket is no UTF-8".to_owned();
            return Err(refused(ADD, why));
        };
        if let Some(placed) = self.plugged(plug).await? {
            return Ok(placed);
        }
        let mut body = json!({"socket": socket, "id": plug.id});
        if let Some(segment) = plug.wanted.pci_segment {
            body["pci_segment"] = segment.into();
        }
        let answer = self.session.ask(Call::put(ADD, &body), ADDITION).await?;
        // An earlier request may have been carried out meanwhile, and this one be refused for that.
        match self.plugged(plug).await? {
            Some(placed) => Ok(placed),
            None if answer.status.is_success() => {
                let why = "it said yes, and has no such device";
                Err(refused(ADD, why.to_owned()))
            }
            None => Err(refused(ADD, wire::refusal(&answer))),
        }
    }

    /// Where the device is, if the VMM has it; an error where it can't be given it.
    async fn plugged(&self, plug: &Plug) -> Result<Option<Placed>, Error> {
        let Some(info) = self.info().await? else {
            return Err(Error::NoPlace {
                why: "the VMM has no machine yet".to_owned(),
                cure: "create one, and start it (vm.create, vm.boot)".to_owned(),
            });
        };
        let why = match info.named(&plug.id) {
            Named::Ours(placed, device) if device.socket == plug.device_socket => {
                return Ok(Some(placed));
            }
            Named::Leaving(placed)
                if plug.client.is_some() && plug.client == self.session.owner.pid =>
            {
                return Ok(Some(placed));
            }
            Named::Ours(..) | Named::Leaving(_) => {
                "a vfio-user device of this name is there, on another socket: choose another name"
                    .to_owned()
            }
            Named::Other => "this is the name of another device: choose another one".to_owned(),
            Named::Nothing => match info.on_socket(&plug.device_socket) {
                Some(id) if id != plug.id => format!(
                    "it has a device on this socket already, of the name `{}`: unplug that first",
                    said::text(id)
                ),
                Some(_) => {
                    "its guest has thrown this device out by itself, and it does not take it again before the machine \
                     has been turned off and on"
                        .to_owned()
                }
                None => return Ok(None),
            },
        };
        Err(refused(ADD, why))
    }

    pub(super) async fn unplug(&self, id: &str, patience: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        let deadline = begun + patience;
        // Before the first request, so that no event is missed.
        let mut events = self.session.events();
        let _attention = self.session.attention();
        let mut pause = REPEAT;
        let mut ask_at = begun;
        let mut is_asked = false;
        loop {
            if !self.has(id).await? {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline && is_asked {
                let waited = begun.elapsed();
                return Err(Error::Late { waited });
            }
            if now >= ask_at {
                let answer = self.remove(id).await?;
                if !answer.status.is_success() {
                    // Also because it is gone by now.
                    return match self.has(id).await? {
                        true => Err(refused(REMOVE, wire::refusal(&answer))),
                        false => Ok(()),
                    };
                }
                is_asked = true;
                ask_at = Instant::now() + pause;
                pause = (pause * 2).min(REPEAT_LONGEST);
            }
            let look_at = Instant::now() + LOOK;
            self.heed(&mut events, id, look_at.min(deadline)).await?;
        }
    }

    async fn remove(&self, id: &str) -> Result<Answer, Error> {
        let call = Call::put(REMOVE, &json!({"id": id}));
        self.session.ask(call, ANSWER).await
    }

    /// Whether a vfio-user device of this name is there.
    async fn has(&self, id: &str) -> Result<bool, Error> {
        let info = self.info().await?;
        match info.as_ref().map(|it| it.named(id)) {
            None | Some(Named::Nothing) => Ok(false),
            Some(Named::Ours(..) | Named::Leaving(_)) => Ok(true),
            Some(Named::Other) => {
                let why = format!("`{}` is no device of ours", said::text(id));
                Err(refused(REMOVE, why))
            }
        }
    }

    /// Waits for something that makes it worth to look whether the device is there still.
    async fn heed(&self, events: &mut Receiver, id: &str, until: Instant) -> Result<(), Error> {
        let happened = async {
            while let Some(event) = events.next().await {
                match event {
                    Event::Unplugged { id: gone } if gone == id => return true,
                    Event::Missed | Event::Reset => return true,
                    Event::Gone => return false,
                    _ => {}
                }
            }
            false
        };
        let hint = self.session.hint.notified();
        let happened = async {
            tokio::select! {
                happened = happened => happened,
                () = hint => true,
            }
        };
        match timeout_at(until, happened).await {
            Ok(false) => Err(Error::Gone {
                path: self.session.path().to_owned(),
            }),
            Ok(true) | Err(_) => Ok(()),
        }
    }
}

fn refused(operation: &'static str, message: String) -> Error {
    Error::Refused { operation, message }
}

#[cfg(test)]
mod tests;
