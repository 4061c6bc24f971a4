//! A VMM that has a device whose process is gone, or whose own process is.
//!
//! The VMM here is one that plays QEMU: QEMU 11.1 itself may abort when a device's process dies while it is asked something
//! (`error_setv: Assertion "*errp == NULL" failed`), and then there is nothing to mend.

use proto::v1::{
    RestartDeviceRequest, UndrainRequest, UpdateDeviceRequest, attachment,
    device_spec::BackendLossPolicy,
};
use tests::Vmm;

use super::plug::{attached, is_plugged, plug, qmp_path, unplug};
use super::rest::{agents, shut_down};
use super::*;

fn is_lost(device: &Device) -> bool {
    let status = device.status.as_ref().unwrap();
    status
        .conditions
        .iter()
        .any(|it| it.r#type == "BackendLost")
}

/// A device with this policy in a running VMM.
async fn plugged(host: &Host, devices: &mut Devices, policy: BackendLossPolicy) -> (Vmm, Device) {
    let mut request = nic("nic0");
    spec(&mut request).backend_loss_policy = policy.into();
    create(devices, request).await;
    let vmm = Vmm::start(&qmp_path(host)).unwrap();
    devices.plug_device(plug(host, "nic0")).await.unwrap();
    let device = connected(devices).await;
    (vmm, device)
}

async fn connected(devices: &mut Devices) -> Device {
    until(devices, |it| {
        state(it) == State::Connected && is_plugged(it) && !is_lost(it)
    })
    .await
}

/// A guest that keeps its card is asked again after a while.
async fn until(devices: &mut Devices, is: impl Fn(&Device) -> bool) -> Device {
    let begin = std::time::Instant::now();
    loop {
        let device = get(devices, "nic0").await;
        if is(&device) {
            return device;
        }
        let time = begin.elapsed();
        assert!(time < Duration::from_secs(60), "never: {device:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_held_waits_in_its_vmm_until_it_is_unplugged() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let (_vmm, before) = plugged(&host, &mut devices, BackendLossPolicy::Unspecified).await;
    let policy = before.spec.as_ref().unwrap().backend_loss_policy();
    assert_eq!(policy, BackendLossPolicy::Hold);
    send(pid(&before), Signal::SIGKILL);
    let after = wait_for(&mut devices, "nic0", "lost and served again", |it| {
        is_lost(it) && state(it) == State::Ready && pid(it) != pid(&before)
    })
    .await;
    assert!(is_plugged(&after), "{after:#?}");
    devices.unplug_device(unplug("nic0")).await.unwrap();
    let out = get(&mut devices, "nic0").await;
    assert!(!is_lost(&out) && attached(&out).is_none(), "{out:#?}");
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    connected(&mut devices).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_replugged_comes_back_to_its_place() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let (_vmm, before) = plugged(&host, &mut devices, BackendLossPolicy::Replug).await;
    send(pid(&before), Signal::SIGKILL);
    wait_for(&mut devices, "nic0", "lost", is_lost).await;
    let after = connected(&mut devices).await;
    assert_ne!(pid(&after), pid(&before));
    let place = |it: &Device| {
        let it = attached(it).unwrap();
        (it.vmm_device_id.clone(), it.bus.clone(), it.address.clone())
    };
    assert_eq!(place(&after), place(&before));
    // An operator who replaces the process has the same.
    let restarted = devices
        .restart_device(RestartDeviceRequest {
            name: "devices/nic0".to_owned(),
            force: true,
            ..RestartDeviceRequest::default()
        })
        .await;
    assert_ne!(pid(&restarted.unwrap().into_inner()), pid(&after));
    connected(&mut devices).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_with_its_process_stays_so_also_for_the_next_agent() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let (_vmm, before) = plugged(&host, &mut devices, BackendLossPolicy::Hold).await;
    let mut change = before.clone();
    change.etag = String::new();
    let wanted = change.spec.as_mut().unwrap();
    wanted.backend_loss_policy = BackendLossPolicy::Fail.into();
    devices
        .update_device(UpdateDeviceRequest {
            device: Some(change),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["spec.backend_loss_policy".to_owned()],
            }),
            ..UpdateDeviceRequest::default()
        })
        .await
        .unwrap();
    send(pid(&before), Signal::SIGKILL);
    let failed = |it: &Device| state(it) == State::Failed && is_lost(it) && is_plugged(it);
    until(&mut devices, failed).await;
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "failed", failed).await;
    devices.unplug_device(unplug("nic0")).await.unwrap();
    let restart = RestartDeviceRequest {
        name: "devices/nic0".to_owned(),
        ..RestartDeviceRequest::default()
    };
    devices.restart_device(restart).await.unwrap();
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    connected(&mut devices).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_shut_down_under_its_vmm_is_back_there_when_it_may_run_again() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let (vmm, before) = plugged(&host, &mut devices, BackendLossPolicy::Replug).await;
    let mut agents = agents(&host).await;
    let refused = shut_down(&mut agents, false).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_CONNECTED");
    shut_down(&mut agents, true).await.unwrap();
    let stopped = get(&mut devices, "nic0").await;
    assert_eq!(state(&stopped), State::Stopped);
    assert!(is_lost(&stopped) && is_plugged(&stopped), "{stopped:#?}");
    assert_eq!(vmm.devices(), ["nic0"]);
    agents.undrain(UndrainRequest {}).await.unwrap();
    let after = connected(&mut devices).await;
    assert_ne!(pid(&after), pid(&before));
    assert_eq!(vmm.additions("nic0"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replug_goes_on_wherever_its_agent_is_killed() {
    for step in [
        "unplug.recorded",
        "unplug.answered",
        "plug.recorded",
        "plug.answered",
        "plug.done",
    ] {
        let mut host = Host::start().await;
        let mut devices = host.devices().await;
        let (_vmm, before) = plugged(&host, &mut devices, BackendLossPolicy::Replug).await;
        host.end_agent(Signal::SIGKILL);
        // What ends while no agent runs is seen by the next one, which is killed at this step.
        send(pid(&before), Signal::SIGKILL);
        host.env = vec![("VFU_DIE_AT".to_owned(), step.to_owned())];
        host.start_agent().await;
        let agent = host.agent.as_mut().unwrap();
        command::wait_for("the agent's end", LIMIT, || Ok(agent.try_wait()?))
            .unwrap_or_else(|error| panic!("{step}: {error}\n{}", host.log()));
        host.env.clear();
        host.start_agent().await;
        let mut devices = host.devices().await;
        let after = connected(&mut devices).await;
        assert_ne!(pid(&after), pid(&before), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_vmm_has_died_is_ready_for_another() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let (vmm, before) = plugged(&host, &mut devices, BackendLossPolicy::Replug).await;
    drop(vmm);
    let after = wait_for(&mut devices, "nic0", "without a VMM", |it| {
        state(it) == State::Ready && attached(it).is_none()
    })
    .await;
    assert_eq!(pid(&after), pid(&before));
    assert!(!is_lost(&after));
    let resets = after.status.unwrap().resets.unwrap();
    assert_eq!(resets.lost_connection, 1);
    // What a VMM that is killed leaves behind.
    fs::remove_file(qmp_path(&host)).unwrap();
    let _vmm = Vmm::start(&qmp_path(&host)).unwrap();
    devices.plug_device(plug(&host, "nic0")).await.unwrap();
    let again = connected(&mut devices).await;
    assert_eq!(
        attached(&again).unwrap().state(),
        attachment::State::Plugged
    );
}
