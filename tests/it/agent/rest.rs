//! Processes that are replaced on demand, and hosts that are taken out of service.

use proto::v1::{
    Agent, DrainRequest, RestartDeviceRequest, ShutDownDevicesRequest, ShutDownDevicesResponse,
    UndrainRequest,
};

use super::*;

type Agents = AgentServiceClient<Channel>;

fn restart(id: &str) -> RestartDeviceRequest {
    RestartDeviceRequest {
        name: format!("devices/{id}"),
        ..RestartDeviceRequest::default()
    }
}

pub(super) async fn agents(host: &Host) -> Agents {
    AgentServiceClient::new(host.channel().await)
}

async fn agent(agents: &mut Agents) -> Agent {
    let request = GetAgentRequest::default();
    agents.get_agent(request).await.unwrap().into_inner()
}

pub(super) async fn shut_down(
    agents: &mut Agents,
    force: bool,
) -> Result<ShutDownDevicesResponse, tonic::Status> {
    let request = ShutDownDevicesRequest {
        force,
        timeout: None,
    };
    Ok(agents.shut_down_devices(request).await?.into_inner())
}

fn restart_count(device: &Device) -> i64 {
    device.status.as_ref().unwrap().restart_count
}

#[tokio::test]
async fn a_restart_replaces_the_process_and_keeps_the_device() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let before = create(&mut devices, nic("nic0")).await;
    let validated = RestartDeviceRequest {
        validate_only: true,
        ..restart("nic0")
    };
    devices.restart_device(validated).await.unwrap();
    assert_eq!(host.processes(), [pid(&before)]);

    let after = devices.restart_device(restart("nic0")).await.unwrap();
    let after = after.into_inner();
    assert_eq!(state(&after), State::Ready);
    assert_ne!(pid(&after), pid(&before));
    assert_eq!(host.processes(), [pid(&after)]);
    assert_eq!((&after.uid, &after.etag), (&before.uid, &before.etag));
    assert_eq!(restart_count(&after), 1);

    let stale = RestartDeviceRequest {
        etag: "other".to_owned(),
        ..restart("nic0")
    };
    let error = devices.restart_device(stale).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    let error = devices.restart_device(restart("nic1")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_in_use_is_restarted_by_force_only_and_who_connects_meanwhile_waits() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let path = device.status.as_ref().unwrap().socket_path.clone();
    let mut client = UnixStream::connect(&path).unwrap();
    wait_for(&mut devices, "nic0", "connected", |it| {
        state(it) == State::Connected
    })
    .await;
    for validate_only in [true, false] {
        let request = RestartDeviceRequest {
            validate_only,
            ..restart("nic0")
        };
        let error = devices.restart_device(request).await.unwrap_err();
        assert_eq!(
            (error.code(), &*reason(&error)),
            (Code::FailedPrecondition, "CLIENT_CONNECTED")
        );
    }
    assert_eq!(pid(&get(&mut devices, "nic0").await), pid(&device));

    let force = RestartDeviceRequest {
        force: true,
        ..restart("nic0")
    };
    let connected = tokio::task::spawn_blocking(move || {
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "its process has ended");
        // The listening socket outlives the process: this is not refused, whenever it comes.
        UnixStream::connect(&path).unwrap()
    });
    let after = devices.restart_device(force).await.unwrap().into_inner();
    let _next = connected.await.unwrap();
    assert_ne!(pid(&after), pid(&device));
    wait_for(&mut devices, "nic0", "connected again", |it| {
        state(it) == State::Connected
    })
    .await;
}

#[tokio::test]
async fn a_failed_device_stays_failed_until_it_is_restarted() {
    let mut host = Host::start().await;
    let mut request = nic("nic0");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let device = create(&mut host.devices().await, request).await;
    send(pid(&device), Signal::SIGKILL);
    let failed = wait_for(&mut host.devices().await, "nic0", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    let why = |device: &Device| {
        let ready = &device.status.as_ref().unwrap().conditions[0];
        (ready.reason.clone(), ready.message.clone())
    };
    assert_eq!(why(&failed).0, "PROCESS_EXITED");
    assert!(why(&failed).1.contains("SIGKILL"), "{}", why(&failed).1);

    // Whatever its policy: an agent that comes later does not begin again by itself.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        host.end_agent(signal);
        host.start_agent().await;
        let found = wait_for(&mut host.devices().await, "nic0", "failed", |it| {
            state(it) == State::Failed
        })
        .await;
        assert_eq!(why(&found), why(&failed));
        assert_eq!(host.processes(), [0; 0]);
    }

    let mut devices = host.devices().await;
    let again = devices.restart_device(restart("nic0")).await.unwrap();
    let again = again.into_inner();
    assert_eq!((state(&again), restart_count(&again)), (State::Ready, 1));
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let found = wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!((pid(&found), restart_count(&found)), (pid(&again), 1));
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn a_drained_agent_makes_no_devices_and_touches_none() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let old = create(&mut devices, nic("old")).await;
    let drain = |reason: &str| DrainRequest {
        reason: reason.to_owned(),
    };
    let mut agents_now = agents(&host).await;
    let first = agents_now.drain(drain("new disks")).await.unwrap();
    let first = first.into_inner();
    assert_eq!(first.drain_reason, "new disks");
    let second = agents_now.drain(drain("new fans")).await.unwrap();
    let second = second.into_inner();
    assert_eq!(second.drain_time, first.drain_time);

    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let found = wait_for(&mut devices, "old", "ready", |it| state(it) == State::Ready).await;
    assert_eq!(pid(&found), pid(&old));
    for validate_only in [true, false] {
        let request = CreateDeviceRequest {
            validate_only,
            ..nic("new")
        };
        let error = refused(&mut devices, request).await;
        assert_eq!(
            (error.code(), &*reason(&error)),
            (Code::FailedPrecondition, "DRAINED")
        );
        assert!(error.message().contains("new fans"), "{error}");
    }
    let mut agents_now = agents(&host).await;
    let undrained = agents_now.undrain(UndrainRequest {}).await.unwrap();
    assert_eq!(undrained.into_inner().drain_time, None);
    create(&mut devices, nic("new")).await;
    let error = agents_now.drain(drain(&"x".repeat(257))).await.unwrap_err();
    assert_eq!(violation(&error).0, "reason");
}

#[tokio::test]
async fn devices_that_were_shut_down_rest_until_the_agent_is_undrained() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let used = create(&mut devices, nic("used")).await;
    create(&mut devices, nic("idle")).await;
    let client = UnixStream::connect(&used.status.as_ref().unwrap().socket_path).unwrap();
    wait_for(&mut devices, "used", "connected", |it| {
        state(it) == State::Connected
    })
    .await;

    let mut agents_now = agents(&host).await;
    let error = shut_down(&mut agents_now, false).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "CLIENT_CONNECTED")
    );
    assert!(error.message().contains("used"), "{error}");
    assert_eq!(host.processes().len(), 2);

    drop(client);
    let came = shut_down(&mut agents_now, true).await.unwrap();
    assert_eq!((came.stopped, came.remaining), (2, vec![]));
    assert_eq!(host.processes(), [0; 0]);
    let now = agent(&mut agents_now).await;
    assert!(now.shut_down_time.is_some());
    assert_eq!(now.device_counts.unwrap().stopped, 2);
    let error = refused(&mut devices, nic("new")).await;
    assert_eq!(reason(&error), "DEVICES_SHUT_DOWN");
    let error = devices.restart_device(restart("idle")).await.unwrap_err();
    assert_eq!(reason(&error), "DEVICES_SHUT_DOWN");

    // Another agent leaves them at rest, too; one can be deleted.
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    for id in ["used", "idle"] {
        wait_for(&mut devices, id, "stopped", |it| {
            state(it) == State::Stopped
        })
        .await;
    }
    assert_eq!(host.processes(), [0; 0]);
    devices.delete_device(deletion("idle")).await.unwrap();

    let mut agents_now = agents(&host).await;
    agents_now.undrain(UndrainRequest {}).await.unwrap();
    let woken = wait_for(&mut devices, "used", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!(host.processes(), [pid(&woken)]);
    create(&mut devices, nic("new")).await;
}
