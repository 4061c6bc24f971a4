//! QEMU's monitor by hand, a device without an agent: what a VMM and its guest do, and what our device makes of it.

use tests::require;

use super::*;
use crate::control::Control;

/// A guest and a card that is not in it yet.
struct Bench {
    guest: Guest,
    device: Device,
    cable: Cable,
}

impl Bench {
    fn new(builder: Builder) -> Result<Self> {
        let cable = Cable::new()?;
        let device = Device::start(Device::dir()?, "e1000", &cable.card().to_string())?;
        cable.configure()?;
        Ok(Self {
            guest: builder.boot()?,
            device,
            cable,
        })
    }

    fn plug(&mut self, port: &str) -> Result<()> {
        plug(&mut self.guest, "card", &self.device.socket(), port)
    }

    /// The guest lets go, and the device has no client any more.
    fn unplug(&mut self) -> Result<()> {
        self.guest.qmp("device_del", json!({"id": "card"}))?;
        self.wait_deleted()
    }

    fn wait_deleted(&mut self) -> Result<()> {
        let deleted = self.guest.event("DEVICE_DELETED", UNPLUG_LIMIT)?;
        let deleted = deleted.context("the guest does not let go")?;
        ensure!(deleted["data"]["device"] == "card", "{deleted}");
        Ok(())
    }

    /// One whole stay in the guest.
    fn cycle(&mut self, port: &str) -> Result<()> {
        self.plug(port)?;
        self.cable.meet(&mut self.guest)?;
        self.unplug()?;
        has_no_card(&mut self.guest)
    }
}

#[test]
fn a_card_comes_and_goes_by_acpi() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(machine(Way::Acpi))?;
    for port in ["port0", "port1", "port0"] {
        bench.cycle(port).with_context(|| port.to_owned())?;
    }
    bench.plug("port0")?;
    bench.cable.meet(&mut bench.guest)?;
    bench.cable.transfer(&mut bench.guest)?;
    Ok(())
}

#[test]
fn a_card_comes_and_goes_by_native_hot_plug() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(machine(Way::Native))?;
    for port in ["port0", "port1", "port0"] {
        bench.cycle(port).with_context(|| port.to_owned())?;
    }
    Ok(())
}

/// Whose guest does not listen for hot-plug keeps its card, which works on.
#[test]
fn a_guest_that_does_not_let_go_keeps_a_card_that_works() -> Result<()> {
    require!(Qemu, Tap);
    let builder = machine(Way::Acpi).kernel_option("acpiphp.disable=1");
    let mut bench = Bench::new(builder)?;
    bench.plug("port0")?;
    bench.guest.sh("echo 1 >/sys/bus/pci/rescan")?;
    bench.cable.meet(&mut bench.guest)?;
    bench.guest.qmp("device_del", json!({"id": "card"}))?;
    let deleted = bench
        .guest
        .event("DEVICE_DELETED", Duration::from_secs(5))?;
    ensure!(deleted.is_none(), "{deleted:?}");
    bench.cable.transfer(&mut bench.guest)?;
    // QEMU takes the card all the same when the guest starts anew.
    let _companion = companion(&mut bench.guest, "port1")?;
    bench.guest.reset()?;
    bench.wait_deleted()?;
    wait_for_card(&mut bench.guest)?;
    let cards = bench.guest.sh("cat /sys/class/net/*/address")?;
    ensure!(!cards.contains(MAC), "{cards}");
    Ok(())
}

#[test]
fn a_card_whose_vmm_is_killed_goes_to_the_next_one() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(machine(Way::Acpi))?;
    bench.plug("port1")?;
    bench.cable.meet(&mut bench.guest)?;
    let Bench {
        guest,
        device,
        cable,
    } = bench;
    guest.kill()?;
    let guest = machine(Way::Acpi).boot()?;
    let mut bench = Bench {
        guest,
        device,
        cable,
    };
    bench.cycle("port1")
}

#[test]
fn a_vmm_is_asked_for_the_card() -> Result<()> {
    require!(Qemu);
    let (device, control) = Control::e1000();
    let mut guest = machine(Way::Acpi).boot()?;
    plug(&mut guest, "card", &device.socket(), "port0")?;
    wait_for_card(&mut guest)?;
    let listens = listens_for_requests(&mut guest)?;
    let asked = control.ask("request-release");
    if listens {
        ensure!(asked.is_ok(), "{asked:?}");
        let deleted = guest.event("DEVICE_DELETED", UNPLUG_LIMIT)?;
        deleted.context("the guest does not let go")?;
        return has_no_card(&mut guest);
    }
    let why = asked.err().context("QEMU was asked, and it has no ear")?;
    ensure!(why.contains("has not connected"), "{why}");
    // Nothing has happened to it.
    let driver = "basename $(readlink /sys/class/net/eth0/device/driver)";
    ensure!(guest.sh(driver)? == "e1000\n");
    guest.qmp("device_del", json!({"id": "card"}))?;
    let deleted = guest.event("DEVICE_DELETED", UNPLUG_LIMIT)?;
    deleted.context("the guest does not let go")?;
    wait_for("the device to be free", Duration::from_secs(10), || {
        let why = control.ask("request-release").err();
        Ok(why.filter(|why| why.contains("no client")))
    })?;
    has_no_card(&mut guest)
}
