//! The driver against a double that speaks the API, and against peers that do not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tests::CloudHypervisor;
use tests::cloud_hypervisor::Machine;
use tokio::sync::watch;

use super::super::{Endpoint, Events, Plug, Vm, Vmms, Wanted};

mod api;
mod habits;
mod hostile;
mod monitor;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A VMM that is nobody's client, and an agent's way to it.
struct Bench {
    vmm: Option<CloudHypervisor>,
    machine: Machine,
    dir: TempDir,
    vmms: Vmms,
    _stop: watch::Sender<bool>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Machine, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Machine {
            connects: false,
            ..Machine::default()
        };
        change(&mut machine, dir.path());
        let (stop, vmms) = vmms();
        let mut bench = Self {
            vmm: None,
            machine,
            dir,
            vmms,
            _stop: stop,
        };
        bench.start();
        bench
    }

    /// Begins with the next run of the VMM.
    fn start(&mut self) {
        let path = self.path();
        drop(self.vmm.take());
        // Nothing is there at first.
        let _ = std::fs::remove_file(&path);
        let vmm = CloudHypervisor::start(&path, self.machine.clone());
        self.vmm = Some(vmm.unwrap());
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    fn vmm(&self) -> &CloudHypervisor {
        self.vmm.as_ref().unwrap()
    }

    async fn vm(&self) -> Vm {
        let endpoint = Endpoint::CloudHypervisor {
            socket: self.path(),
            events: self.machine.events.clone(),
        };
        self.vmms.open(&endpoint).await.unwrap()
    }
}

fn vmms() -> (watch::Sender<bool>, Vmms) {
    let (stop, stopping) = watch::channel(false);
    (stop, Vmms::new(stopping))
}

/// What a device shall become, whose process nobody is connected to.
fn plug(id: &str) -> Plug {
    Plug {
        device_socket: format!("/run/{id}.sock").into(),
        id: id.to_owned(),
        wanted: Wanted::default(),
        client: None,
    }
}

/// The next event, which comes.
async fn next(events: &mut Events) -> super::Event {
    let event = tokio::time::timeout(LIMIT, events.next()).await;
    event.expect("an event in time").expect("no end yet")
}
