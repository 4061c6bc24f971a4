//! A real QEMU without an operating system in it: with `-S` its processor does not run at all.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tests::image::Image;
use tests::{Device, command, require};
use tokio::sync::watch;

use super::super::super::{Endpoint, Error, Event, Placed, Plug, Vm, Vmms, Wanted};

/// How long anything here may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Four ports, of which one takes nothing and one has a bridge with a card behind it.
const PORTS: &str = "-device pcie-root-port,id=rp0,chassis=1 -device pcie-root-port,id=rp1,chassis=2 \
    -device pcie-pci-bridge,id=bridge,bus=rp1 -device e1000,id=card,bus=bridge,addr=7 \
    -device pcie-root-port,id=fixed,chassis=3,hotplug=off -device pcie-root-port,id=rp3,chassis=4";
const SHARED: &str = "-object memory-backend-memfd,id=memory,size=64M,share=on";
/// Ports are served by themselves, not by ACPI, and let go at once while nobody has turned a slot on.
const NATIVE: &str = "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off";

/// A QEMU that has stopped before its first instruction. Dropping it kills it.
struct Qemu {
    child: Child,
    dir: tempfile::TempDir,
}

impl Qemu {
    fn start(machine: &str, more: &str) -> Self {
        let image = Image::find().unwrap().unwrap();
        let dir = Device::dir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let child = Command::new(&image.qemu)
            .args("-nodefaults -no-user-config -display none -S -accel tcg -m 64M".split(' '))
            .args(["-machine", machine])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(more.split_whitespace())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let qemu = Self { child, dir };
        command::wait_for("QEMU's socket", LIMIT, || Ok(socket.exists().then_some(()))).unwrap();
        qemu
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("qmp.sock")
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::Qmp {
            socket: self.socket(),
        }
    }

    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vmms() -> (watch::Sender<bool>, Vmms) {
    let (stop, stopping) = watch::channel(false);
    (stop, Vmms::new(stopping))
}

fn e1000() -> Device {
    let config = r#"{"net": {"null": {}}}"#;
    Device::start(Device::dir().unwrap(), "e1000", config).unwrap()
}

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

/// Asks QEMU for what the driver does not.
async fn command(vm: &Vm, operation: &'static str) {
    let super::super::super::Driver::Qemu(qemu) = &*vm.driver;
    let answer = qemu.session.ask(operation, serde_json::Value::Null, LIMIT);
    answer.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_qemu_is_and_has_is_told_before_its_firmware_has_run() {
    require!(Qemu);
    let machine = "q35,memory-backend=memory";
    let qemu = Qemu::start(machine, &format!("{SHARED} {PORTS}"));
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    let facts = vm.facts().await.unwrap();
    assert_eq!(facts.version_needed, None);
    assert!(facts.takes_vfio_user);
    assert_eq!(facts.owner.pid, Some(qemu.pid()));
    assert!(facts.machine.starts_with("pc-q35-"), "{}", facts.machine);
    assert_eq!(facts.run_state, "prelaunch");
    let [memory] = &facts.memory[..] else {
        panic!("{:?}", facts.memory)
    };
    assert_eq!(memory.id, "memory");
    assert_eq!(memory.size_bytes, 64 << 20);
    assert!(memory.is_shared);
    let bus = |name: &str| facts.buses.iter().find(|it| it.name == name).unwrap();
    for (name, kind, is_hotpluggable, has_place, devices) in [
        ("rp0", "pcie-root-port", true, true, vec![]),
        ("rp1", "pcie-root-port", true, false, vec!["bridge"]),
        ("fixed", "pcie-root-port", false, false, vec![]),
        ("bridge", "pcie-pci-bridge", true, true, vec!["card"]),
    ] {
        let bus = bus(name);
        assert_eq!(bus.kind, kind);
        assert_eq!(bus.is_hotpluggable, is_hotpluggable, "{bus:?}");
        assert_eq!(bus.has_place(), has_place, "{bus:?}");
        assert_eq!(bus.devices, devices);
    }
    assert!(!bus("bridge").free_slots.contains(&"7".to_owned()));
    assert!(!bus("pcie.0").is_hotpluggable);
    assert!(bus("pcie.0").devices.contains(&"rp0".to_owned()));
    assert_eq!(facts.buses[0].name, "rp0");
    assert_eq!(facts.devices, []);
    assert_eq!(vm.find("card").await.unwrap(), None);
}

#[tokio::test]
async fn memory_that_nobody_else_can_map_is_told() {
    require!(Qemu);
    let qemu = Qemu::start("pc", "");
    let (_stop, vmms) = vmms();
    let facts = vmms.open(&qemu.endpoint()).await.unwrap().facts().await;
    let facts = facts.unwrap();
    assert!(!facts.memory.is_empty() && facts.memory.iter().all(|it| !it.is_shared));
    let root = facts.buses.iter().find(|it| it.name == "pci.0").unwrap();
    assert!(root.has_place(), "{root:?}");
}

#[tokio::test]
async fn a_device_is_plugged_in_and_out_of_a_machine_that_has_stopped() {
    require!(Qemu);
    let machine = "q35,memory-backend=memory";
    let qemu = Qemu::start(machine, &format!("{SHARED} {PORTS} {NATIVE}"));
    let device = e1000();
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    let mut events = vm.events();
    let mut wish = plug(&device.socket(), "nic0", "", "");
    let placed = vm.plug(&wish).await.unwrap();
    // Its buses have no numbers before the firmware runs.
    let expected = Placed {
        bus: "rp0".to_owned(),
        address: String::new(),
    };
    assert_eq!(placed, expected);
    let found = vm.find("nic0").await.unwrap().unwrap();
    assert_eq!((&*found.id, &found.placed), ("nic0", &expected));
    assert_eq!(vm.facts().await.unwrap().devices, [found]);

    // Whose client is this QEMU, that is the device there; others are not.
    wish.client = Some(qemu.pid());
    assert_eq!(vm.plug(&wish).await.unwrap(), expected);
    for client in [None, Some(1)] {
        wish.client = client;
        let refused = vm.plug(&wish).await.unwrap_err();
        assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    }

    vm.unplug("nic0", LIMIT).await.unwrap();
    assert_eq!(vm.find("nic0").await.unwrap(), None);
    let id = "nic0".to_owned();
    assert_eq!(events.next().await, Some(Event::Unplugged { id }));
    vm.unplug("nic0", LIMIT).await.unwrap();
}
