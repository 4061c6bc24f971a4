//! Cards that come and go while the guest runs.
//!
//! The guest is Linux on QEMU's `q35`, which has two ways to hot-plug: by ACPI, its own choice, where a card goes as soon as
//! the guest has let go; and PCI Express native, where Linux waits five seconds before it does, as after a button's press.

mod api;
mod early;
mod monitor;

use std::{net::TcpListener, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{
    Device, Guest, Netns,
    command::wait_for,
    guest::Builder,
    traffic::{self, Transfer},
};

/// The address of every card.
const MAC: &str = "52:54:00:12:34:56";
/// The host's address and the guest's.
const HOST: &str = "198.18.0.1";
const GUEST: &str = "198.18.0.2";
/// How long QEMU and a guest that emulates its processor may take to let go of a card.
const UNPLUG_LIMIT: Duration = Duration::from_secs(60);

/// How the guest is told of cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Acpi,
    Native,
}

/// A guest with two free root ports, `port0` and `port1`.
fn machine(way: Way) -> Builder {
    let mut builder = Guest::builder();
    if way == Way::Native {
        builder = builder
            .arg("-global")
            .arg("ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
    }
    for number in 0..2 {
        builder = builder.arg("-device").arg(format!(
            "pcie-root-port,id=port{number},chassis={number},slot={number}"
        ));
    }
    builder
}

/// A card's cable to a namespace of its own, which has the host's address.
#[derive(Debug)]
struct Cable {
    netns: Netns,
}

impl Cable {
    fn new() -> Result<Self> {
        let netns = Netns::new()?;
        Ok(Self { netns })
    }

    /// The configuration of the card at its end.
    fn card(&self) -> Value {
        let tap = json!({"ifname": "vfu0", "netns": self.netns.path()});
        json!({"mac": MAC, "net": {"tap": tap}})
    }

    /// Gives the host its address, when the card is there.
    fn configure(&self) -> Result<()> {
        self.netns.ip(&format!("addr add {HOST}/30 dev vfu0"))?;
        self.netns.ip("link set vfu0 up")?;
        Ok(())
    }

    /// Gives the guest its address on the card that has come, and has a ping answered.
    fn meet(&self, guest: &mut Guest) -> Result<()> {
        wait_for_card(guest)?;
        traffic::configure(guest, "eth0", &format!("{GUEST}/30"))?;
        traffic::ping(guest, HOST.parse()?, 1)?;
        Ok(())
    }

    /// A MiB each way.
    fn transfer(&self, guest: &mut Guest) -> Result<(Transfer, Transfer)> {
        let listener = self.netns.inside(|| Ok(TcpListener::bind((HOST, 0))?))?;
        Ok((
            traffic::to_host(guest, &listener, 1)?,
            traffic::to_guest(guest, &listener, 1)?,
        ))
    }
}

/// Gives the guest a device by its monitor.
fn plug(guest: &mut Guest, id: &str, socket: &Path, port: &str) -> Result<()> {
    let socket = json!({"type": "unix", "path": socket});
    guest.qmp(
        "device_add",
        json!({"driver": "vfio-user-pci", "id": id, "bus": port, "socket": socket}),
    )?;
    Ok(())
}

/// Another card, for a guest that is to be reset while the first is on its way out: QEMU 11.1 may abort when its last
/// vfio-user device leaves then (`resettable_container_child_foreach: Assertion "len == rc->children->len"`).
fn companion(guest: &mut Guest, port: &str) -> Result<Device> {
    let config = json!({"mac": "52:54:00:12:34:57", "net": {"null": {}}});
    let device = Device::start(Device::dir()?, "e1000", &config.to_string())?;
    plug(guest, "companion", &device.socket(), port)?;
    Ok(device)
}

/// Waits until the guest's driver has a card.
fn wait_for_card(guest: &mut Guest) -> Result<()> {
    guest.sh("for try in $(seq 600); do
             test -e /sys/class/net/eth0 && exit 0; usleep 50000
         done
         echo no card has come; exit 1")?;
    Ok(())
}

/// Checks that the guest has no card.
fn has_no_card(guest: &mut Guest) -> Result<()> {
    guest.sh("test ! -e /sys/class/net/eth0")?;
    let cards = guest.sh("cat /sys/bus/pci/devices/*/class")?;
    ensure!(!cards.contains("0x020000"), "{cards}");
    Ok(())
}

/// Whether this QEMU connects the interrupt by which it is asked for a card: whether its `vfio-user-pci` has the property by
/// which its `vfio-pci` is told to.
fn listens_for_requests(guest: &mut Guest) -> Result<bool> {
    let properties = guest.qmp(
        "device-list-properties",
        json!({"typename": "vfio-user-pci"}),
    )?;
    let mut properties = properties.as_array().context("a list")?.iter();
    Ok(properties.any(|property| property["name"] == "x-req"))
}
