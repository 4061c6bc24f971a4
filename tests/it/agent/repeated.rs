//! Calls that are made again with their request ids, because their caller has heard no answer.

use proto::v1::RestartDeviceRequest;

use super::*;

const FIRST: &str = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e";
const SECOND: &str = "3c6e0b8a-9c15-424a-a8a0-5ea8a1b9a9a1";

fn reset(id: &str, request_id: &str) -> ResetDeviceRequest {
    ResetDeviceRequest {
        name: format!("devices/{id}"),
        request_id: request_id.to_owned(),
        ..ResetDeviceRequest::default()
    }
}

fn restart(id: &str, request_id: &str) -> RestartDeviceRequest {
    RestartDeviceRequest {
        name: format!("devices/{id}"),
        request_id: request_id.to_owned(),
        ..RestartDeviceRequest::default()
    }
}

fn delete(id: &str, request_id: &str) -> DeleteDeviceRequest {
    DeleteDeviceRequest {
        request_id: request_id.to_owned(),
        ..deletion(id)
    }
}

async fn other_agent(host: &mut Host) -> Devices {
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    devices
}

#[tokio::test]
async fn a_repeated_reset_is_the_first_also_for_the_next_agent() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let count = |device: &Device| device.status.as_ref().unwrap().resets.unwrap().api;
    for _ in 0..2 {
        let device = devices.reset_device(reset("nic0", FIRST)).await.unwrap();
        assert_eq!(count(&device.into_inner()), 1);
    }
    let mut devices = other_agent(&mut host).await;
    let device = devices.reset_device(reset("nic0", FIRST)).await.unwrap();
    assert_eq!(count(&device.into_inner()), 1);
    let device = devices.reset_device(reset("nic0", SECOND)).await.unwrap();
    assert_eq!(count(&device.into_inner()), 2);

    let error = devices
        .restart_device(restart("nic0", FIRST))
        .await
        .unwrap_err();
    assert_eq!(violation(&error).0, "request_id");
    let error = devices.reset_device(reset("nic0", "x")).await.unwrap_err();
    assert_eq!(violation(&error).0, "request_id");
}

#[tokio::test]
async fn a_repeated_restart_is_the_first_also_for_the_next_agent() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let before = create(&mut devices, nic("nic0")).await;
    let mut also = devices.clone();
    let (first, second) = tokio::join!(
        devices.restart_device(restart("nic0", FIRST)),
        also.restart_device(restart("nic0", FIRST))
    );
    let (first, second) = (first.unwrap().into_inner(), second.unwrap().into_inner());
    assert_eq!(pid(&first), pid(&second));
    assert_ne!(pid(&first), pid(&before));
    let mut devices = other_agent(&mut host).await;
    let again = devices.restart_device(restart("nic0", FIRST)).await;
    assert_eq!(pid(&again.unwrap().into_inner()), pid(&first));
    let next = devices.restart_device(restart("nic0", SECOND)).await;
    assert_ne!(pid(&next.unwrap().into_inner()), pid(&first));
}

#[tokio::test]
async fn a_restart_that_was_recorded_is_carried_out_by_the_next_agent() {
    let mut host = Host::start_with(|host| {
        let step = ("VFU_DIE_AT".to_owned(), "history.recorded".to_owned());
        host.env.push(step);
    })
    .await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let before = create(&mut devices, request).await;
    // The process is gone by then, and another one is not there.
    devices
        .restart_device(restart("nic0", FIRST))
        .await
        .unwrap_err();
    host.end_agent(Signal::SIGKILL);
    host.env.clear();
    host.start_agent().await;
    let mut devices = host.devices().await;
    let after = wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_ne!(pid(&after), pid(&before));
    let again = devices.restart_device(restart("nic0", FIRST)).await;
    assert_eq!(pid(&again.unwrap().into_inner()), pid(&after));
    assert_eq!(after.status.unwrap().restart_count, 1);
}

#[tokio::test]
async fn a_reset_whose_process_ends_is_not_told_that_there_is_no_device() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let mut also = devices.clone();
    let (error, ()) = tokio::join!(also.reset_device(reset("nic0", "")), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        send(pid(&device), Signal::SIGKILL);
    });
    let error = error.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "DEVICE_NOT_SERVED")
    );
}

#[tokio::test]
async fn a_repeated_deletion_spares_the_next_device_of_that_name() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    devices.delete_device(delete("nic0", FIRST)).await.unwrap();
    devices.delete_device(delete("nic0", FIRST)).await.unwrap();
    let error = devices.delete_device(delete("nic0", SECOND)).await;
    assert_eq!(error.unwrap_err().code(), Code::NotFound);

    let next = create(&mut devices, nic("nic0")).await;
    let mut devices = other_agent(&mut host).await;
    devices.delete_device(delete("nic0", FIRST)).await.unwrap();
    assert_eq!(get(&mut devices, "nic0").await.uid, next.uid);
    let other = DeleteDeviceRequest {
        force: true,
        ..delete("nic0", FIRST)
    };
    let error = devices.delete_device(other).await.unwrap_err();
    assert_eq!(violation(&error).0, "request_id");
    devices.delete_device(delete("nic0", SECOND)).await.unwrap();
    host.assert_empty().await;
}
