//! Devices go into a running VMM and out of it.

use proto::v1::{
    Attachment, PlugDeviceRequest, UnplugDeviceRequest, Vmm, attachment,
    unplug_device_request::Method, vmm::Endpoint,
};
use tests::{Guest, guest::Builder, require};

use super::*;

/// A VMM with two root ports that nothing is on, and a QMP socket for the agent. Its guest never begins.
fn machine(host: &Host) -> Builder {
    let qmp = qmp_path(host);
    let mut builder = Guest::builder()
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", qmp.display()));
    for number in 0..2 {
        builder = builder.arg("-device").arg(format!(
            "pcie-root-port,id=port{number},chassis={number},slot={number}"
        ));
    }
    builder
}

pub(super) fn qmp_path(host: &Host) -> PathBuf {
    host.path("vm-qmp.sock")
}

pub(super) fn plug(host: &Host, id: &str) -> PlugDeviceRequest {
    PlugDeviceRequest {
        name: format!("devices/{id}"),
        vmm: Some(Vmm {
            endpoint: Some(Endpoint::QmpSocketPath(
                qmp_path(host).display().to_string(),
            )),
            ..Vmm::default()
        }),
        ..PlugDeviceRequest::default()
    }
}

pub(super) fn unplug(id: &str) -> UnplugDeviceRequest {
    UnplugDeviceRequest {
        name: format!("devices/{id}"),
        ..UnplugDeviceRequest::default()
    }
}

pub(super) fn attached(device: &Device) -> Option<&Attachment> {
    device.status.as_ref()?.attachment.as_ref()
}

pub(super) fn is_plugged(device: &Device) -> bool {
    attached(device).is_some_and(|it| it.state() == attachment::State::Plugged)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_goes_into_a_running_vmm_and_out_again() {
    require!(Qemu);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let mut guest = tokio::task::block_in_place(|| machine(&host).boot()).unwrap();

    let plugged = devices.plug_device(plug(&host, "nic0")).await;
    let plugged = plugged.unwrap().into_inner();
    assert!(is_plugged(&plugged), "{plugged:#?}");
    let place = attached(&plugged).unwrap();
    assert_eq!(place.vmm_device_id, "nic0");
    assert_eq!(place.bus, "port0");
    assert!(place.address.ends_with(":00.0"), "{place:?}");
    wait_for(&mut devices, "nic0", "its client", |it| {
        state(it) == State::Connected
    })
    .await;
    // Once more is as good, another VMM is not.
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    let mut other = plug(&host, "nic0");
    other.vmm_device_id = "other".to_owned();
    let refused = devices.plug_device(other).await.unwrap_err();
    assert_eq!(reason(&refused), "ALREADY_PLUGGED");
    let refused = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_CONNECTED");

    let unplugged = devices.unplug_device(unplug("nic0")).await;
    let unplugged = unplugged.unwrap().into_inner();
    assert_eq!(attached(&unplugged), None);
    wait_for(&mut devices, "nic0", "without a client", |it| {
        state(it) == State::Ready
    })
    .await;
    devices.unplug_device(unplug("nic0")).await.unwrap();
    let there = guest.qmp("query-pci", serde_json::json!({})).unwrap();
    assert!(!there.to_string().contains("nic0"), "{there}");
    devices.delete_device(deletion("nic0")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_given_a_device_away_by_other_means_is_told_so() {
    require!(Qemu);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let socket = device.status.unwrap().socket_path;
    let guest = tokio::task::block_in_place(|| machine(&host).nic(socket).boot()).unwrap();
    wait_for(&mut devices, "nic0", "its client", |it| {
        state(it) == State::Connected
    })
    .await;
    let refused = devices.plug_device(plug(&host, "nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_CONNECTED");
    let refused = devices.unplug_device(unplug("nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_PLUGGED");
    let mut request = unplug("nic0");
    request.set_method(Method::ClientRequest);
    let refused = devices.unplug_device(request).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_TAKES_NO_REQUEST");
    guest.kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_vmm_dies_is_ready_again() {
    require!(Qemu);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let guest = tokio::task::block_in_place(|| machine(&host).boot()).unwrap();
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    guest.kill().unwrap();
    wait_for(&mut devices, "nic0", "ready again", |it| {
        state(it) == State::Ready && attached(it).is_none()
    })
    .await;
    let refused = devices.plug_device(plug(&host, "nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "VMM_UNREACHABLE");
    wait_for(&mut devices, "nic0", "in no VMM", |it| {
        attached(it).is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_followed_by_one_that_knows_the_vmm() {
    require!(Qemu);
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let guest = tokio::task::block_in_place(|| machine(&host).boot()).unwrap();
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "plugged", is_plugged).await;
    devices.unplug_device(unplug("nic0")).await.unwrap();
    // What is deleted by force leaves its VMM first.
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    let mut request = deletion("nic0");
    request.force = true;
    devices.delete_device(request).await.unwrap();
    host.assert_empty().await;
    guest.kill().unwrap();
}

/// i440fx has no ports: its only bus takes devices in any slot.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_machine_without_ports_devices_are_in_slots_of_its_bus() {
    require!(Qemu);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    for id in ["nic0", "nic1", "nic2"] {
        create(&mut devices, nic(id)).await;
    }
    let qmp = format!("unix:{},server=on,wait=off", qmp_path(&host).display());
    let pc = Guest::builder().machine("pc").arg("-qmp").arg(qmp);
    let mut guest = tokio::task::block_in_place(|| pc.boot()).unwrap();
    let in_slot = |id: &str, slot: &str| PlugDeviceRequest {
        slot: slot.to_owned(),
        ..plug(&host, id)
    };

    // Whoever gives no slot gets one that nobody has.
    let chosen = devices.plug_device(plug(&host, "nic0")).await.unwrap();
    let chosen = attached(chosen.get_ref()).unwrap().clone();
    assert_eq!(chosen.bus, "pci.0");
    // A slot is hexadecimal, as in QEMU's own words.
    let given = devices.plug_device(in_slot("nic1", "1f")).await.unwrap();
    let given = attached(given.get_ref()).unwrap().clone();
    assert_eq!((&*given.bus, &*given.address), ("pci.0", "0000:00:1f.0"));
    for address in [&chosen.address, &given.address] {
        let comes = format!(
            "for try in $(seq 600); do
                 test -e /sys/bus/pci/devices/{address} && exit 0; usleep 50000
             done
             ls /sys/bus/pci/devices; exit 1"
        );
        guest.sh(&comes).unwrap();
    }

    // Who is in a slot is named to who wants it.
    for (slot, occupant) in [
        ("0x1f.0", "nic1"),
        (&chosen.address[8..10], "nic0"),
        ("0", "i440FX"),
    ] {
        let request = in_slot("nic2", slot);
        let on_bus = PlugDeviceRequest {
            bus: "pci.0".to_owned(),
            ..request
        };
        let refused = devices.plug_device(on_bus).await.unwrap_err();
        assert_eq!(reason(&refused), "SLOT_TAKEN", "{refused:?}");
        let violations = refused.get_details_precondition_failure().unwrap();
        let why = &violations.violations[0].description;
        assert!(why.contains(occupant), "{why}");
    }
    for no_slot in ["20", "1f.1", "1f.8", "x"] {
        let request = in_slot("nic2", no_slot);
        let refused = devices.plug_device(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }

    // Where a device was another one can be.
    devices.unplug_device(unplug("nic1")).await.unwrap();
    devices.plug_device(in_slot("nic2", "1F")).await.unwrap();
    let address = get(&mut devices, "nic2").await;
    assert_eq!(attached(&address).unwrap().address, "0000:00:1f.0");
    guest.kill().unwrap();
}

#[tokio::test]
async fn two_devices_never_have_one_name_in_a_vmm() {
    let host = Host::start().await;
    let vmm = tests::Vmm::start(&qmp_path(&host)).unwrap();
    let devices = host.devices().await;
    for id in ["nic0", "nic1"] {
        create(&mut devices.clone(), nic(id)).await;
    }
    for round in 0..8 {
        let plug = |id: &str| {
            let mut devices = devices.clone();
            let request = PlugDeviceRequest {
                vmm_device_id: "card".to_owned(),
                ..plug(&host, id)
            };
            async move { devices.plug_device(request).await }
        };
        let (one, other) = tokio::join!(plug("nic0"), plug("nic1"));
        let (id, refused) = match (one, other) {
            (Ok(_), Err(refused)) => ("nic0", refused),
            (Err(refused), Ok(_)) => ("nic1", refused),
            both => panic!("round {round}: {both:?}"),
        };
        assert_eq!(reason(&refused), "VMM_DEVICE_ID_TAKEN", "{refused:?}");
        assert_eq!(vmm.devices(), ["card"]);
        devices.clone().unplug_device(unplug(id)).await.unwrap();
    }
}

#[tokio::test]
async fn a_vmm_that_says_it_has_let_go_and_stays_is_named() {
    let host = Host::start().await;
    let vmm = tests::Vmm::start(&qmp_path(&host)).unwrap();
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    vmm.lies(true);
    let refused = devices.unplug_device(unplug("nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_CONNECTED", "{refused:?}");
    assert!(refused.message().contains(&std::process::id().to_string()));
    assert_eq!(attached(&get(&mut devices, "nic0").await), None);
    vmm.lies(false);
    wait_for(&mut devices, "nic0", "without a client", |it| {
        state(it) == State::Ready
    })
    .await;
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
}

/// The agent has no session to tell them apart: it is a new one.
#[tokio::test(flavor = "multi_thread")]
async fn another_vmm_at_the_same_socket_keeps_its_device_of_the_same_name() {
    require!(Qemu);
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let other = create(&mut devices, nic("nic1")).await;
    let socket = other.status.unwrap().socket_path;
    let first = tokio::task::block_in_place(|| machine(&host).boot()).unwrap();
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    host.end_agent(Signal::SIGKILL);
    first.kill().unwrap();
    fs::remove_file(qmp_path(&host)).unwrap();
    let card = json!({"driver": "vfio-user-pci", "id": "nic0", "bus": "port0",
                      "socket": {"type": "unix", "path": socket}});
    let second = machine(&host).arg("-device").arg(card.to_string());
    let mut second = tokio::task::block_in_place(|| second.boot()).unwrap();
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "in no VMM", |it| {
        attached(it).is_none() && state(it) == State::Ready
    })
    .await;
    devices.unplug_device(unplug("nic0")).await.unwrap();
    let there = second.qmp("query-pci", json!({})).unwrap();
    assert!(there.to_string().contains("nic0"), "{there}");
    second.kill().unwrap();
}

/// Somebody has removed its socket.
#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_lives_and_can_not_be_asked_has_its_device_still() {
    require!(Qemu);
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let guest = tokio::task::block_in_place(|| machine(&host).boot()).unwrap();
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    host.end_agent(Signal::SIGKILL);
    let aside = host.path("aside");
    fs::rename(qmp_path(&host), &aside).unwrap();
    host.start_agent().await;
    let mut devices = host.devices().await;
    let refused = devices.unplug_device(unplug("nic0")).await.unwrap_err();
    assert!(refused.message().contains("vm-qmp.sock"), "{refused:?}");
    let device = get(&mut devices, "nic0").await;
    assert!(attached(&device).is_some(), "{device:?}");
    fs::rename(aside, qmp_path(&host)).unwrap();
    devices.unplug_device(unplug("nic0")).await.unwrap();
    guest.kill().unwrap();
}
