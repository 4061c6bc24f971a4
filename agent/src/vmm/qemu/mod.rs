//! QEMU, by QMP.
//!
//! Devices are found in QEMU's object tree. QEMU does not tell the socket of a device that it has, so a device is known by
//! its name there and by its type, and that it is the one that was meant by the process that is connected to its socket.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::events::Receiver;
use super::said;
use super::{Error, Event, Owner, Placed, Plug};

mod buses;
mod connection;
mod look;
mod pace;
mod session;
mod wire;

use look::Named;
use session::Session;
use wire::Version;

/// QEMU's device that is a client of ours.
const DRIVER: &str = "vfio-user-pci";

/// The first QEMU whose vfio-user device is whole.
const NEEDED: Version = Version {
    major: 10,
    minor: 1,
    micro: 1,
};

/// One answer. QEMU's loop can be busy with a device that answers slowly, which it waits for up to five seconds.
const ANSWER: Duration = Duration::from_secs(10);
/// `device_add`, in which QEMU exchanges some twenty messages with the device.
const ADDITION: Duration = Duration::from_secs(30);
/// All of plugging in.
const PLUG: Duration = Duration::from_secs(60);

/// The pause before a request to unplug is repeated, which doubles up to the longest.
const REPEAT: Duration = Duration::from_millis(500);
const REPEAT_LONGEST: Duration = Duration::from_secs(5);

/// One run of QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    session: Session,
    /// Held from the choice of a place until it is taken.
    placing: Mutex<()>,
}

impl Qemu {
    /// Connects to it; `run` gets the task of the session.
    pub(super) async fn open(
        path: &Path,
        shutdown: watch::Receiver<bool>,
        run: impl FnOnce(Pin<Box<dyn Future<Output = ()> + Send>>),
    ) -> Result<Self, Error> {
        let (session, task) = Session::open(path, shutdown).await?;
        run(Box::pin(task));
        Ok(Self {
            session,
            placing: Mutex::new(()),
        })
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

    pub(super) async fn plug(&self, plug: &Plug) -> Result<Placed, Error> {
        let begun = Instant::now();
        let plugged = timeout(PLUG, self.plug_now(plug)).await;
        plugged.unwrap_or_else(|_| {
            Err(Error::Unanswered {
                operation: "device_add",
                waited: begun.elapsed(),
            })
        })
    }

    async fn plug_now(&self, plug: &Plug) -> Result<Placed, Error> {
        if self.session.version < NEEDED {
            return Err(Error::TooOld {
                version: format!("QEMU {}", self.session.version),
                needed: format!("QEMU {NEEDED} or later"),
            });
        }
        let refused = |message: String| Error::Refused {
            operation: "device_add",
            message,
        };
        let id = &plug.id;
        if !is_id(id) {
            let why = "is no name for a device: it takes a letter, then letters, digits, `-`, `.` and `_`";
            return Err(refused(format!("`{}` {why}", said::text(id))));
        }
        let _placing = self.placing.lock().await;
        match self.named(id).await? {
            Named::Nothing => {}
            Named::Ours if plug.client.is_some() && plug.client == self.session.owner.pid => {
                return self.placed(id).await;
            }
            Named::Ours => {
                let why = "a vfio-user device of this name is there, on another socket: choose another name";
                return Err(refused(why.to_owned()));
            }
            Named::Other(kind) => {
                let why = format!("`{id}` is the name of a {kind}: choose another one");
                return Err(refused(why));
            }
        }
        let (bus, slot) = buses::choose(&self.buses().await?, &plug.wanted)?;
        let arguments = json!({
            "driver": DRIVER,
            "id": id,
            "socket": {"type": "unix", "path": plug.device_socket},
            "bus": bus,
            "addr": slot,
        });
        let added = self.session.ask("device_add", arguments, ADDITION).await?;
        added.map_err(|refusal| refused(said::text(&refusal.desc)))?;
        self.placed(id).await
    }

    pub(super) async fn unplug(&self, id: &str, patience: Duration) -> Result<(), Error> {
        let refused = |message: String| Error::Refused {
            operation: "device_del",
            message,
        };
        let begun = Instant::now();
        let deadline = begun + patience;
        // Before the first request, so that no event is missed.
        let mut events = self.session.events();
        let mut pause = REPEAT;
        let mut is_asked = false;
        loop {
            match self.named(id).await? {
                Named::Nothing => return Ok(()),
                Named::Ours => {}
                Named::Other(kind) => {
                    let why = format!("`{}` is a {kind} and no device of ours", said::text(id));
                    return Err(refused(why));
                }
            }
            if Instant::now() >= deadline && is_asked {
                let waited = begun.elapsed();
                return Err(Error::Late { waited });
            }
            let until = |pause| (Instant::now() + pause).min(deadline);
            let this_pause = pause;
            pause = (pause * 2).min(REPEAT_LONGEST);
            if self.is_deaf(id).await? {
                // QEMU would take the request, and no later one.
                is_asked = true;
                self.heed(&mut events, id, until(this_pause)).await?;
                continue;
            }
            let asked = self
                .session
                .ask("device_del", json!({"id": id}), ANSWER)
                .await?;
            match asked {
                Ok(_) => is_asked = true,
                // Look again whether it is there.
                Err(refusal) if refusal.is_missing() => continue,
                Err(refusal) if is_under_way(&refusal.desc) => is_asked = true,
                Err(refusal) => return Err(refused(said::text(&refusal.desc))),
            }
            self.heed(&mut events, id, until(this_pause)).await?;
        }
    }

    /// Waits for something that makes it worth to look whether the device is there still.
    async fn heed(&self, events: &mut Receiver, id: &str, until: Instant) -> Result<(), Error> {
        while let Ok(event) = timeout_at(until, events.next()).await {
            match event {
                Some(Event::Unplugged { id: gone }) if gone == id => break,
                Some(Event::GuestRefused { id: held, message }) if held == id => {
                    return Err(Error::GuestRefused { message });
                }
                Some(Event::Missed | Event::Reset) => break,
                Some(Event::Gone) | None => {
                    let path = self.session.path().to_owned();
                    return Err(Error::Gone { path });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What QEMU says to a question.
    async fn ask(
        &self,
        operation: &'static str,
        arguments: Value,
    ) -> Result<Result<Value, wire::Refusal>, Error> {
        self.session.ask(operation, arguments, ANSWER).await
    }
}

/// What QEMU takes as a name.
fn is_id(id: &str) -> bool {
    let is_other = |it: u8| it.is_ascii_alphanumeric() || b"-._".contains(&it);
    id.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && id.bytes().all(is_other)
}

/// Whether QEMU says that the guest is at it, or was not ready for the request.
fn is_under_way(message: &str) -> bool {
    ["in the process of unplug", "guest is busy", "is blinking"]
        .iter()
        .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests;
