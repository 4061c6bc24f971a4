//! The driver against a double that answers as it is told, and against a real QEMU.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::super::{Endpoint, Error, Events, Plug, Vm, Vmms, Wanted};

mod double;
mod hostile;
mod real;
mod unplug;

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

fn vmms() -> (watch::Sender<bool>, Vmms) {
    let (stop, stopping) = watch::channel(false);
    (stop, Vmms::new(stopping))
}

fn endpoint(socket: &Path) -> Endpoint {
    let socket = socket.to_owned();
    Endpoint::Qmp { socket }
}

/// What a device shall become, whose process nobody is connected to.
fn plug(socket: &Path, id: &str, bus: &str, slot: &str) -> Plug {
    Plug {
        device_socket: socket.to_owned(),
        id: id.to_owned(),
        wanted: Wanted {
            bus: bus.to_owned(),
            slot: slot.to_owned(),
            pci_segment: None,
        },
        client: None,
    }
}

/// Asks what the driver itself does not.
async fn ask(vm: &Vm, operation: &'static str, limit: Duration) -> Result<String, Error> {
    let super::super::Driver::Qemu(qemu) = &*vm.driver else {
        unreachable!("of a QEMU");
    };
    let answer = qemu.session.ask(operation, serde_json::Value::Null, limit);
    Ok(match answer.await? {
        Ok(value) => value.to_string(),
        Err(refusal) => refusal.desc,
    })
}

/// The next event, which comes.
async fn next(events: &mut Events) -> super::Event {
    let event = tokio::time::timeout(LIMIT, events.next()).await;
    event.expect("an event in time").expect("no end yet")
}
