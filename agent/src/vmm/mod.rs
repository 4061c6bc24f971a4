//! VMMs on this host: asked to take a device and to give it up.
//!
//! A [`Vm`] is the way to one VMM, shared by all who use it, and ends with the last of them. What a VMM takes one after the
//! other is put to it one after the other, and every call has a deadline: a VMM that hangs costs its own callers their
//! time and nobody else anything.
//!
//! What a driver promises, whichever VMM it is for:
//!
//! - [`Vm::plug`] returns when the VMM has the device; an error other than [`Error::Unanswered`] and [`Error::Gone`] means
//!   that it has not. A device that is there already, on the same socket, is as good.
//! - [`Vm::unplug`] returns when the VMM has let go and would not find the device any more. One that is not there is as good.
//! - [`Vm::find`] tells what is there now, for who does not know how an earlier call ended.
//! - A `Vm` is one run of a VMM. Once that has ended every call is [`Error::Gone`], also when another VMM has come to the
//!   same socket; [`Vmms::open`] gives that one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

mod cloud_hypervisor;
mod error;
mod events;
mod facts;
mod identity;
mod qemu;
mod said;

use cloud_hypervisor::CloudHypervisor;
pub(crate) use error::Error;
pub(crate) use events::{Event, Events};
pub(crate) use facts::{Bus, Facts, Found, Memory, Owner, Windows};
pub(crate) use identity::Process;

/// A guest that runs and keeps a device for so long, although it is asked for it again and again, refuses.
const STUBBORN: Duration = Duration::from_secs(10);

/// Where a VMM is controlled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) enum Endpoint {
    /// QEMU's QMP socket.
    Qmp { socket: PathBuf },
    /// cloud-hypervisor's API socket, and the file or FIFO of its events if there is one.
    CloudHypervisor {
        socket: PathBuf,
        events: Option<PathBuf>,
    },
}

impl Endpoint {
    /// The socket it is controlled by.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Qmp { socket } | Self::CloudHypervisor { socket, .. } => socket,
        }
    }
}

/// What a VMM shall take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plug {
    /// The vfio-user socket.
    pub(crate) device_socket: PathBuf,
    /// Its name inside the VMM.
    pub(crate) id: String,
    /// Where the caller wants it.
    pub(crate) wanted: Wanted,
    /// The process that is connected to the socket. Where a VMM does not tell the sockets of its devices, a device that has
    /// the name already is taken for this one only if that process is the VMM.
    pub(crate) client: Option<i32>,
}

/// Where in a VMM a device shall be; what is empty is the driver's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Wanted {
    pub(crate) bus: String,
    pub(crate) slot: String,
    pub(crate) pci_segment: Option<u32>,
}

/// Where in a VMM a device is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Placed {
    pub(crate) bus: String,
    /// `0000:02:00.0`; empty where the VMM does not tell.
    pub(crate) address: String,
}

/// The VMMs that somebody uses.
#[derive(Debug)]
pub(crate) struct Vmms {
    /// Each behind a lock of its own: who opens one while another does waits for that one's connection, because some
    /// VMMs serve no second one.
    known: Mutex<HashMap<Endpoint, Arc<Slot>>>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    shutdown: watch::Receiver<bool>,
}

type Slot = tokio::sync::Mutex<Weak<Driver>>;

impl Vmms {
    /// No VMM yet; the ways to them end with `shutdown`.
    pub(crate) fn new(shutdown: watch::Receiver<bool>) -> Self {
        Self {
            known: Mutex::default(),
            tasks: Arc::default(),
            shutdown,
        }
    }

    /// The way to this VMM: the one there is, or a new one.
    pub(crate) async fn open(&self, endpoint: &Endpoint) -> Result<Vm, Error> {
        let slot = self.slot(endpoint);
        let mut slot = slot.lock().await;
        if let Some(driver) = slot.upgrade().filter(|it| !it.is_over()) {
            return Ok(Vm { driver });
        }
        let driver = match endpoint {
            Endpoint::Qmp { socket } => {
                let tasks = |task| self.run(task);
                let qemu = qemu::Qemu::open(socket, self.shutdown.clone(), tasks).await?;
                Driver::Qemu(qemu)
            }
            Endpoint::CloudHypervisor { socket, events } => {
                let tasks = |task| self.run(task);
                let shutdown = self.shutdown.clone();
                let events = events.as_deref();
                let vmm = CloudHypervisor::open(socket, events, shutdown, tasks).await?;
                Driver::CloudHypervisor(vmm)
            }
        };
        let driver = Arc::new(driver);
        *slot = Arc::downgrade(&driver);
        Ok(Vm { driver })
    }

    fn slot(&self, endpoint: &Endpoint) -> Arc<Slot> {
        let mut known = self.known.lock().expect("no holder panics");
        // What nobody uses any more and nobody is about to.
        known.retain(|_, slot| {
            let is_wanted = Arc::strong_count(slot) > 1;
            is_wanted || slot.try_lock().is_ok_and(|it| it.strong_count() > 0)
        });
        known.entry(endpoint.clone()).or_default().clone()
    }

    /// Runs a driver's task, which ends with its driver, and with the agent.
    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "task of a VMM");
            }
        }
        tasks.spawn(task);
    }

    /// Waits for the tasks, which end because of the shutdown; the VMMs keep their devices.
    pub(crate) async fn join(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().expect("no holder panics"));
        while tasks.join_next().await.is_some() {}
    }
}

/// The way to one run of a VMM. Whoever keeps a clone of it, or its [`Events`], keeps it open.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    driver: Arc<Driver>,
}

#[derive(Debug)]
enum Driver {
    CloudHypervisor(CloudHypervisor),
    Qemu(qemu::Qemu),
}

impl Driver {
    /// Whether the VMM has ended, or the agent is about to.
    fn is_over(&self) -> bool {
        match self {
            Self::CloudHypervisor(vmm) => vmm.is_over(),
            Self::Qemu(qemu) => qemu.is_over(),
        }
    }
}

impl Vm {
    /// The process that serves its control socket, where that can be seen.
    pub(crate) fn process(&self) -> Option<Process> {
        let owner = match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.owner(),
            Driver::Qemu(qemu) => qemu.owner(),
        };
        owner.pid.and_then(Process::of)
    }

    /// What it is and has. Takes several questions, and changes nothing.
    pub(crate) async fn facts(&self) -> Result<Facts, Error> {
        match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.facts().await,
            Driver::Qemu(qemu) => qemu.facts().await,
        }
    }

    /// The vfio-user device of this name.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<Found>, Error> {
        match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.find(id).await,
            Driver::Qemu(qemu) => qemu.find(id).await,
        }
    }

    /// Gives it a device. It goes on also when the caller does not wait: what has come of it tells [`Vm::find`].
    pub(crate) async fn plug(&self, plug: &Plug) -> Result<Placed, Error> {
        match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.plug(plug).await,
            Driver::Qemu(qemu) => qemu.plug(plug).await,
        }
    }

    /// Takes the device of this name from it, for which the guest has `patience`; [`Error::Late`] means that it may still
    /// let go.
    pub(crate) async fn unplug(&self, id: &str, patience: Duration) -> Result<(), Error> {
        let unplugged = match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.unplug(id, patience).await,
            Driver::Qemu(qemu) => qemu.unplug(id, patience).await,
        };
        match unplugged {
            Err(Error::Late { waited }) if waited >= STUBBORN && self.runs().await => {
                let message = format!(
                    "it runs, was asked again and again for {} s, and has kept it; load its driver for hot-plug (Linux: \
                     pciehp or acpiphp), or restart the guest",
                    waited.as_secs()
                );
                Err(Error::GuestRefused { message })
            }
            unplugged => unplugged,
        }
    }

    /// Whether its guest is known to run.
    async fn runs(&self) -> bool {
        let runs = match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.runs().await,
            Driver::Qemu(qemu) => qemu.runs().await,
        };
        runs.unwrap_or(false)
    }

    /// Tells it that something outside of it makes it worth to look whether it has let go of a device. Which VMM tells that
    /// itself needs no hint.
    pub(crate) fn hint(&self) {
        match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.hint(),
            Driver::Qemu(_) => {}
        }
    }

    /// What happens in it from now on.
    pub(crate) fn events(&self) -> Events {
        let receiver = match &*self.driver {
            Driver::CloudHypervisor(vmm) => vmm.events(),
            Driver::Qemu(qemu) => qemu.events(),
        };
        Events::new(receiver, self.clone())
    }
}
