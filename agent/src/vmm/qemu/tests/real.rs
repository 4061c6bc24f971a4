//! A real QEMU without an operating system in it: with `-S` its processor does not run at all.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::image::Image;
use tests::{Device, command, require};

use super::{LIMIT, ask, endpoint, next, plug, vmms};
use crate::vmm::{Endpoint, Error, Event, Placed, STUBBORN, Windows};

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
        endpoint(&self.socket())
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

fn e1000() -> Device {
    let config = r#"{"net": {"null": {}}}"#;
    Device::start(Device::dir().unwrap(), "e1000", config).unwrap()
}

#[tokio::test]
async fn what_qemu_is_and_has_is_told_before_its_firmware_has_run() {
    require!(Qemu);
    let machine = "q35,memory-backend=memory";
    let tight = "-device pcie-root-port,id=tight,chassis=5,io-reserve=0,mem-reserve=1M";
    let qemu = Qemu::start(machine, &format!("{SHARED} {PORTS} {tight}"));
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
    let card = ("7".to_owned(), "card".to_owned());
    assert!(bus("bridge").taken_slots.contains(&card));
    assert_eq!(bus("rp0").windows, Windows::default());
    let tight = Windows {
        io_bytes: Some(0),
        memory_bytes: Some(1 << 20),
    };
    assert_eq!(bus("tight").windows, tight);
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
    assert_eq!(next(&mut events).await, Event::Unplugged { id });
    vm.unplug("nic0", LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_device_stays_while_nobody_in_the_guest_lets_go_and_leaves_with_a_reset() {
    require!(Qemu);
    let qemu = Qemu::start("pc,memory-backend=memory", SHARED);
    let device = e1000();
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    // QEMU 11.1 may abort when its last vfio-user device leaves with a reset.
    let stays = e1000();
    let wish = plug(&stays.socket(), "nic1", "pci.0", "");
    vm.plug(&wish).await.unwrap();
    let wish = plug(&device.socket(), "nic0", "pci.0", "9");
    let placed = vm.plug(&wish).await.unwrap();
    // The first bus has its number always.
    assert_eq!((&*placed.bus, &*placed.address), ("pci.0", "0000:00:09.0"));
    // Before the machine has run nobody could.
    let error = vm.unplug("nic0", STUBBORN).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error:?}");
    ask(&vm, "cont", LIMIT).await.unwrap();
    let error = vm.unplug("nic0", Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error:?}");
    let error = vm.unplug("nic0", STUBBORN).await.unwrap_err();
    assert!(matches!(error, Error::GuestRefused { .. }), "{error:?}");
    assert!(vm.find("nic0").await.unwrap().is_some());
    let mut events = vm.events();
    ask(&vm, "system_reset", LIMIT).await.unwrap();
    while next(&mut events).await
        != (Event::Unplugged {
            id: "nic0".to_owned(),
        })
    {}
    assert_eq!(vm.find("nic0").await.unwrap(), None);
    vm.unplug("nic0", LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_device_behind_a_port_has_an_address_once_the_firmware_has_run() {
    require!(Qemu);
    let machine = "q35,memory-backend=memory";
    let qemu = Qemu::start(machine, &format!("{SHARED} {PORTS}"));
    let device = e1000();
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    let wish = plug(&device.socket(), "nic0", "rp3", "");
    assert_eq!(vm.plug(&wish).await.unwrap().address, "");
    ask(&vm, "cont", LIMIT).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    let address = loop {
        let found = vm.find("nic0").await.unwrap().unwrap();
        if !found.placed.address.is_empty() {
            break found.placed.address;
        }
        assert!(Instant::now() < deadline, "no address yet");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // The fourth port, behind whose second one a bridge has one more bus.
    assert_eq!(address, "0000:05:00.0");
    assert_eq!(vm.facts().await.unwrap().run_state, "running");
    // Before its device, which its firmware may be reading.
    drop(qemu);
}

#[tokio::test]
async fn a_place_that_qemu_has_not_is_refused_before_the_device_is_asked() {
    require!(Qemu);
    let qemu = Qemu::start("q35,memory-backend=memory", &format!("{SHARED} {PORTS}"));
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    let nowhere = PathBuf::from("/nonexistent/vfio-user.sock");
    for (bus, slot) in [
        ("pcie.0", ""),
        ("fixed", ""),
        ("rp1", ""),
        ("rp0", "5"),
        ("rp9", ""),
        ("bridge", "7"),
    ] {
        let error = vm
            .plug(&plug(&nowhere, "nic0", bus, slot))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NoPlace { .. }), "{bus}: {error:?}");
        assert!(
            error.to_string().contains("free are `rp0`, `rp3`"),
            "{error}"
        );
    }
    // A device that does not answer is told by QEMU, which has nothing then.
    let error = vm.plug(&plug(&nowhere, "nic0", "", "")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(
        error.to_string().contains("/nonexistent/vfio-user.sock"),
        "{error}"
    );
    assert_eq!(vm.find("nic0").await.unwrap(), None);
    let error = vm.plug(&plug(&nowhere, "card", "", "")).await.unwrap_err();
    assert!(
        error.to_string().contains("is the name of a e1000"),
        "{error}"
    );
}

#[tokio::test]
async fn two_that_are_plugged_in_at_once_get_a_place_each_and_a_third_none() {
    require!(Qemu);
    let ports = "-device pcie-root-port,id=rp0,chassis=1 -device pcie-root-port,id=rp1,chassis=2";
    let qemu = Qemu::start("q35,memory-backend=memory", &format!("{SHARED} {ports}"));
    let devices = [e1000(), e1000(), e1000()];
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    let wishes = [0, 1].map(|at| plug(&devices[at].socket(), &format!("nic{at}"), "", ""));
    let (one, other) = tokio::join!(vm.plug(&wishes[0]), vm.plug(&wishes[1]));
    let mut buses = [one.unwrap().bus, other.unwrap().bus];
    buses.sort();
    assert_eq!(buses, ["rp0", "rp1"]);
    let error = vm
        .plug(&plug(&devices[2].socket(), "nic2", "", ""))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoPlace { .. }), "{error:?}");
}

#[tokio::test]
async fn a_qemu_that_is_killed_is_gone() {
    require!(Qemu);
    let mut qemu = Qemu::start("q35", "");
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&qemu.endpoint()).await.unwrap();
    let mut events = vm.events();
    qemu.kill();
    while next(&mut events).await != Event::Gone {}
    let error = vm.facts().await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    let error = vmms.open(&qemu.endpoint()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_qemu_that_talks_to_another_program_is_told_so() {
    require!(Qemu);
    let qemu = Qemu::start("q35", "");
    let _other = std::os::unix::net::UnixStream::connect(qemu.socket()).unwrap();
    let (_stop, vmms) = vmms();
    let error = vmms.open(&qemu.endpoint()).await.unwrap_err();
    assert!(matches!(error, Error::Stranger { .. }), "{error:?}");
    assert!(
        error.to_string().contains("another program is connected"),
        "{error}"
    );
}
