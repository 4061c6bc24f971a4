//! What a VMM is asked for, and does.

use std::time::Duration;

use tests::cloud_hypervisor::Machine;

use super::{Bench, LIMIT, next, plug};
use crate::vmm::{Error, Event, Placed, STUBBORN};

fn placed(bus: &str, address: &str) -> Placed {
    Placed {
        bus: bus.to_owned(),
        address: address.to_owned(),
    }
}

#[tokio::test]
async fn a_device_goes_in_and_out_once_however_often_that_is_asked_for() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    let there = placed("0", "0000:00:02.0");
    for _ in 0..2 {
        assert_eq!(vm.plug(&plug("nic0")).await.unwrap(), there);
    }
    let found = vm.find("nic0").await.unwrap().unwrap();
    assert_eq!(found.placed, there);
    assert_eq!(found.device_socket, Some("/run/nic0.sock".into()));
    for _ in 0..2 {
        vm.unplug("nic0", LIMIT).await.unwrap();
    }
    assert_eq!(vm.find("nic0").await.unwrap(), None);
    let calls = bench.vmm().calls();
    let count = |name: &str| calls.iter().filter(|it| *it == name).count();
    assert_eq!(
        (count(super::super::ADD), count(super::super::REMOVE)),
        (1, 1)
    );
}

#[tokio::test]
async fn a_machine_that_is_off_has_the_device_when_it_is_turned_on() {
    let bench = Bench::new(|machine, _| machine.is_on = false);
    let vm = bench.vm().await;
    assert_eq!(vm.facts().await.unwrap().run_state, "created");
    assert_eq!(vm.plug(&plug("nic0")).await.unwrap(), placed("0", ""));
    assert_eq!(bench.vmm().configured(), ["nic0"]);
    vm.plug(&plug("nic1")).await.unwrap();
    vm.unplug("nic1", LIMIT).await.unwrap();
    assert_eq!(bench.vmm().configured(), ["nic0"]);
    bench.vmm().boot().unwrap();
    let found = vm.find("nic0").await.unwrap().unwrap();
    assert_eq!(found.placed, placed("0", "0000:00:02.0"));
}

#[tokio::test]
async fn a_segment_is_chosen_by_its_number() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    let mut nic = plug("nic0");
    nic.wanted.pci_segment = Some(1);
    let at = vm.plug(&nic).await.unwrap();
    assert_eq!(at, placed("1", "0001:00:02.0"));
    nic.id = "nic1".to_owned();
    nic.device_socket = "/run/nic1.sock".into();
    nic.wanted.pci_segment = Some(7);
    let refused = vm.plug(&nic).await.unwrap_err();
    assert!(
        refused.to_string().contains("Invalid PCI segment"),
        "{refused}"
    );
}

#[tokio::test]
async fn names_and_sockets_that_are_taken_are_told_before_the_vmm_is_asked() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    vm.plug(&plug("nic0")).await.unwrap();
    let mut other = plug("nic0");
    other.device_socket = "/run/nic1.sock".into();
    let mut twin = plug("twin");
    twin.device_socket = "/run/nic0.sock".into();
    for (request, why) in [
        (other, "on another socket"),
        (twin, "of the name `nic0`"),
        (plug("_disk0"), "the name of another device"),
        (plug("_virtio-pci-_disk0"), "the name of another device"),
    ] {
        let error = vm.plug(&request).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let refused = vm.unplug("_disk0", LIMIT).await.unwrap_err();
    assert!(
        refused.to_string().contains("no device of ours"),
        "{refused}"
    );
    assert_eq!(vm.find("_disk0").await.unwrap(), None);
    let calls = bench.vmm().calls();
    let adds = calls.iter().filter(|it| *it == super::super::ADD);
    assert_eq!(adds.count(), 1);
}

#[tokio::test]
async fn a_yes_to_a_removal_is_no_removal() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    let there = vm.plug(&plug("nic0")).await.unwrap();
    bench.vmm().guest_keeps(true);
    let late = vm.unplug("nic0", Duration::from_millis(1200)).await;
    assert!(matches!(late, Err(Error::Late { .. })), "{late:?}");
    let refused = vm.unplug("nic0", STUBBORN).await;
    assert!(
        matches!(refused, Err(Error::GuestRefused { .. })),
        "{refused:?}"
    );
    // It was asked again, and the device is found although the configuration has it no more.
    let calls = bench.vmm().calls();
    let removals = calls.iter().filter(|it| *it == super::super::REMOVE);
    assert!(removals.count() >= 4, "{calls:?}");
    assert_eq!(bench.vmm().configured(), [""; 0]);
    let found = vm.find("nic0").await.unwrap().unwrap();
    assert_eq!((found.placed, found.device_socket), (there.clone(), None));
    // Only if its process is that of the VMM it is the one that was meant.
    let stranger = vm.plug(&plug("nic0")).await.unwrap_err();
    assert!(
        stranger.to_string().contains("on another socket"),
        "{stranger}"
    );
    let mut ours = plug("nic0");
    ours.client = i32::try_from(std::process::id()).ok();
    assert_eq!(vm.plug(&ours).await.unwrap(), there);
    bench.vmm().eject("nic0");
    assert_eq!(vm.find("nic0").await.unwrap(), None);
}

#[tokio::test]
async fn an_event_ends_the_wait_for_the_guest() {
    let bench = Bench::new(|machine, dir| machine.events = Some(dir.join("events")));
    let vm = bench.vm().await;
    vm.plug(&plug("nic0")).await.unwrap();
    vm.plug(&plug("nic1")).await.unwrap();
    bench.vmm().guest_keeps(true);
    let mut events = vm.events();
    bench.vmm().eject("nic1");
    let id = "nic1".to_owned();
    assert_eq!(next(&mut events).await, Event::Unplugged { id });
    let (unplugged, ()) = tokio::join!(vm.unplug("nic0", LIMIT), async {
        let is_asked = || {
            bench
                .vmm()
                .calls()
                .iter()
                .any(|it| it == super::super::REMOVE)
        };
        while !is_asked() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.vmm().eject("nic0");
        let id = "nic0".to_owned();
        assert_eq!(next(&mut events).await, Event::Unplugged { id });
    });
    unplugged.unwrap();
}

#[tokio::test]
async fn a_guest_that_throws_a_device_out_leaves_a_configuration_that_refuses_it() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    vm.plug(&plug("nic0")).await.unwrap();
    bench.vmm().eject("nic0");
    assert_eq!(vm.find("nic0").await.unwrap(), None);
    vm.unplug("nic0", LIMIT).await.unwrap();
    let error = vm.plug(&plug("nic0")).await.unwrap_err();
    assert!(error.to_string().contains("by itself"), "{error}");
}

#[tokio::test]
async fn facts_are_what_the_vmm_tells_of_itself() {
    let bench = Bench::new(|machine, _| machine.is_shared = false);
    let facts = bench.vm().await.facts().await.unwrap();
    assert_eq!(
        (facts.program, &*facts.version),
        ("cloud-hypervisor", "54.0.0")
    );
    assert_eq!((facts.version_needed, facts.takes_vfio_user), (None, true));
    assert_eq!(facts.owner.pid, i32::try_from(std::process::id()).ok());
    assert_eq!(facts.run_state, "running");
    let memory = &facts.memory[0];
    assert_eq!((memory.size_bytes, memory.is_shared), (512 << 20, false));
    let names: Vec<_> = facts.buses.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["0", "1"]);
    assert_eq!(facts.buses[0].devices, ["_virtio-pci-_disk0", "_disk0"]);
    assert_eq!(facts.buses[0].free_slots.len(), 30);
    assert_eq!(facts.buses[1].free_slots.len(), 31);
    assert_eq!(facts.devices, []);

    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    vm.plug(&plug("nic0")).await.unwrap();
    let facts = vm.facts().await.unwrap();
    assert_eq!(facts.devices.len(), 1);
    assert_eq!(
        facts.devices[0].device_socket,
        Some("/run/nic0.sock".into())
    );
    assert!(facts.memory[0].is_shared);
}

#[tokio::test]
async fn a_vmm_from_before_the_client_we_know_is_refused() {
    for (version, is_old) in [
        ("v29.0", true),
        ("29.9.9", true),
        ("v30.0-4-gabc", false),
        ("main", false),
    ] {
        let bench = Bench::new(|machine: &mut Machine, _| machine.version = version.to_owned());
        let vm = bench.vm().await;
        let facts = vm.facts().await.unwrap();
        assert_eq!(facts.version_needed, is_old.then(|| "30.0".to_owned()));
        let plugged = vm.plug(&plug("nic0")).await;
        match is_old {
            true => assert!(matches!(plugged, Err(Error::TooOld { .. })), "{plugged:?}"),
            false => drop(plugged.unwrap()),
        }
    }
}
