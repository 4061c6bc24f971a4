//! What becomes of a device, whatever becomes of its process and of the agent.

use super::*;

#[tokio::test]
async fn a_device_lives_from_create_to_delete() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    request
        .device
        .as_mut()
        .unwrap()
        .labels
        .insert("app".to_owned(), "x".to_owned());
    spec(&mut request).socket = Some(SocketSpec {
        mode: Some(0o640),
        ..SocketSpec::default()
    });
    let mut request = Request::new(request);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    let device = devices.create_device(request).await.unwrap().into_inner();

    assert_eq!(device.name, "devices/nic0");
    assert_eq!(device.labels["app"], "x");
    assert_eq!(device.generation, 1);
    assert_eq!(state(&device), State::Ready);
    let status = device.status.clone().unwrap();
    assert_eq!(status.traceparent, traceparent);
    let path = Path::new(&status.socket_path);
    assert_eq!(path, host.path("run/devices/nic0/vfio-user.sock"));
    let metadata = path.metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    assert_eq!(host.processes(), [status.pid]);
    assert_eq!(get(&mut devices, "nic0").await, device);

    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
    let missing = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(
        (missing.code(), &*reason(&missing)),
        (Code::NotFound, "DEVICE_NOT_FOUND")
    );
    let resource = missing.get_details_resource_info().unwrap();
    assert_eq!(resource.resource_name, "devices/nic0");
    let allowed = DeleteDeviceRequest {
        allow_missing: true,
        ..deletion("nic0")
    };
    devices.delete_device(allowed).await.unwrap();
}

#[tokio::test]
async fn a_killed_agent_is_followed_by_one_that_adopts() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let kept = create(&mut devices, nic("kept")).await;
    let lost = create(&mut devices, nic("lost")).await;
    host.end_agent(Signal::SIGKILL);
    assert_eq!(host.processes().len(), 2);
    send(pid(&lost), Signal::SIGKILL);
    host.start_agent().await;

    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "kept", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!(pid(&adopted), pid(&kept));
    assert_eq!((&adopted.uid, &adopted.etag), (&kept.uid, &kept.etag));
    assert_eq!(
        adopted.status.unwrap().start_time,
        kept.status.as_ref().unwrap().start_time
    );
    let anew = wait_for(&mut devices, "lost", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_ne!(pid(&anew), pid(&lost));
    UnixStream::connect(&anew.status.unwrap().socket_path).unwrap();

    // An adopted process is watched and can be deleted as any other.
    send(pid(&kept), Signal::SIGKILL);
    let again = wait_for(&mut devices, "kept", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&kept)
    })
    .await;
    assert_eq!(again.status.unwrap().restart_count, 1);
    for id in ["kept", "lost"] {
        devices.delete_device(deletion(id)).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn an_agent_that_ends_removes_its_socket_and_leaves_devices() {
    let mut host = Host::start().await;
    let device = create(&mut host.devices().await, nic("nic0")).await;
    host.end_agent(Signal::SIGTERM);
    assert!(!host.path("run/agent.sock").exists());
    assert_eq!(host.processes(), [pid(&device)]);
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn a_second_agent_is_refused_and_the_first_serves_on() {
    let host = Host::start().await;
    let second = host.command().output().unwrap();
    assert!(!second.status.success());
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains("in use by another agent"), "{told}");
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_process_that_ends_is_started_again_or_not_by_policy() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let always = create(&mut devices, nic("always")).await;
    let mut request = nic("never");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let never = create(&mut devices, request).await;

    send(pid(&always), Signal::SIGKILL);
    // Whoever connects while there is no process waits in the queue of the socket that the agent holds.
    let path = always.status.clone().unwrap().socket_path;
    UnixStream::connect(path).unwrap();
    let again = wait_for(&mut devices, "always", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&always)
    })
    .await;
    assert_eq!(again.status.unwrap().restart_count, 1);

    send(pid(&never), Signal::SIGKILL);
    let failed = wait_for(&mut devices, "never", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    let condition = failed.status.unwrap().conditions.remove(0);
    assert_eq!(condition.reason, "PROCESS_EXITED");
    for word in ["SIGKILL", "serving", "restart or delete it"] {
        assert!(condition.message.contains(word), "{}", condition.message);
    }
    let reset = ResetDeviceRequest {
        name: "devices/never".to_owned(),
        ..ResetDeviceRequest::default()
    };
    let error = devices.reset_device(reset).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "DEVICE_NOT_SERVED")
    );
    for id in ["always", "never"] {
        devices.delete_device(deletion(id)).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_in_use_is_deleted_by_force_only() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let mut client = UnixStream::connect(device.status.unwrap().socket_path).unwrap();
    let connected = wait_for(&mut devices, "nic0", "connected", |it| {
        state(it) == State::Connected
    })
    .await;
    let me = connected.status.unwrap().client.unwrap();
    assert_eq!(u32::try_from(me.pid).unwrap(), std::process::id());
    assert_eq!(Path::new(&me.executable), std::env::current_exe().unwrap());

    let error = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "CLIENT_CONNECTED")
    );
    for word in [&me.pid.to_string(), &me.executable, "force"] {
        assert!(error.message().contains(word), "{error}");
    }
    let reset = ResetDeviceRequest {
        name: "devices/nic0".to_owned(),
        ..ResetDeviceRequest::default()
    };
    devices.reset_device(reset).await.unwrap();
    wait_for(&mut devices, "nic0", "one reset", |it| {
        it.status.as_ref().unwrap().resets.unwrap().api == 1
    })
    .await;

    let force = DeleteDeviceRequest {
        force: true,
        ..deletion("nic0")
    };
    devices.delete_device(force).await.unwrap();
    host.assert_empty().await;
    client.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn a_caller_that_does_not_wait_gets_the_device_by_its_request_id() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    request.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
    let mut hasty = Request::new(request.clone());
    hasty.set_timeout(Duration::from_micros(1));
    let gone = devices.create_device(hasty).await.unwrap_err();
    assert!(
        matches!(gone.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{gone}"
    );
    let device = create(&mut devices, request).await;
    assert_eq!(state(&device), State::Ready);
    assert_eq!(host.processes(), [pid(&device)]);
}

#[tokio::test]
async fn many_devices_are_made_at_once() {
    let host = Host::start().await;
    let devices = host.devices().await;
    let mut creations = tokio::task::JoinSet::new();
    for index in 0..24 {
        let mut devices = devices.clone();
        creations.spawn(async move { create(&mut devices, nic(&format!("nic{index}"))).await });
    }
    let made = creations.join_all().await;
    assert!(made.iter().all(|it| state(it) == State::Ready));
    let mut deletions = tokio::task::JoinSet::new();
    for index in 0..24 {
        let mut devices = devices.clone();
        deletions.spawn(async move {
            devices
                .delete_device(deletion(&format!("nic{index}")))
                .await
        });
    }
    assert!(deletions.join_all().await.iter().all(Result::is_ok));
    host.assert_empty().await;
}

#[tokio::test]
async fn what_a_dead_agent_left_behind_is_cleaned() {
    let mut host = Host::start().await;
    host.end_agent(Signal::SIGTERM);
    let stale = host.path("run/devices/stale");
    fs::create_dir(&stale).unwrap();
    drop(UnixListener::bind(stale.join("vfio-user.sock")).unwrap());
    host.start_agent().await;
    host.assert_empty().await;
    create(&mut host.devices().await, nic("stale")).await;
}

#[tokio::test]
async fn a_directory_in_which_a_stranger_serves_is_no_new_device_s() {
    let host = Host::start().await;
    let strange = host.path("run/devices/nic0");
    fs::create_dir_all(&strange).unwrap();
    let socket = strange.join("vfio-user.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut devices = host.devices().await;
    let refused = devices.create_device(nic("nic0")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(reason(&refused), "DIRECTORY_IN_USE");
    assert!(refused.message().contains(strange.to_str().unwrap()));
    assert!(socket.exists());
    // It ends, and what it leaves behind is nobody's.
    drop(listener);
    create(&mut devices, nic("nic0")).await;
}

#[tokio::test]
async fn a_device_that_shall_not_be_restarted_is_not_by_the_next_agent_either() {
    let mut host = Host::start().await;
    let mut request = nic("nic0");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let device = create(&mut host.devices().await, request).await;
    host.end_agent(Signal::SIGTERM);
    send(pid(&device), Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let failed = wait_for(&mut devices, "nic0", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    assert!(
        failed.status.unwrap().conditions[0]
            .message
            .contains("serving")
    );
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_that_shall_go_is_shown_so_before_the_next_agent_has_found_its_process() {
    let mut host = Host::start_with(|host| {
        let step = ("VFU_DIE_AT".to_owned(), "delete.recorded".to_owned());
        host.env.push(step);
    })
    .await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    devices.delete_device(deletion("nic0")).await.unwrap_err();
    host.end_agent(Signal::SIGKILL);
    host.env.clear();
    // It does not answer.
    send(pid(&device), Signal::SIGSTOP);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let list = devices.list_devices(ListDevicesRequest::default()).await;
    let [listed] = &list.unwrap().into_inner().devices[..] else {
        panic!("not one device");
    };
    assert_eq!(state(listed), State::Deleting);
    send(pid(&device), Signal::SIGCONT);
    let gone = async {
        let name = "devices/nic0".to_owned();
        let request = GetDeviceRequest { name };
        while devices.get_device(request.clone()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_loses_and_leaks_nothing() {
    let mut host = Host::start().await;
    for round in 0..12_u64 {
        let devices = host.devices().await;
        let mut calls = tokio::task::JoinSet::new();
        for index in 0..6 {
            let mut devices = devices.clone();
            calls.spawn(async move {
                let id = format!("nic{index}");
                loop {
                    let made = devices.create_device(nic(&id)).await;
                    let deleted = devices.delete_device(deletion(&id)).await;
                    // The agent is gone.
                    if made.is_err() && deleted.is_err() {
                        break;
                    }
                }
            });
        }
        // Moments spread over what a creation takes, the same in every run.
        tokio::time::sleep(Duration::from_millis(3 + round * 7 % 40)).await;
        host.end_agent(Signal::SIGKILL);
        calls.join_all().await;
        host.start_agent().await;

        let mut devices = host.devices().await;
        let settled = async {
            loop {
                let request = ListDevicesRequest::default();
                let list = devices
                    .list_devices(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .devices;
                if list.iter().all(|it| state(it) == State::Ready) {
                    return list;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let list = tokio::time::timeout(LIMIT, settled).await.unwrap();
        let mut named: Vec<_> = list.iter().map(pid).collect();
        let mut running = host.processes();
        named.sort_unstable();
        running.sort_unstable();
        assert_eq!(named, running, "round {round}");
        let left = fs::read_dir(host.path("run/devices")).unwrap().count();
        assert_eq!(left, list.len(), "round {round}");
        for device in list {
            let id = device.name.strip_prefix("devices/").unwrap();
            devices.delete_device(deletion(id)).await.unwrap();
        }
        host.assert_empty().await;
    }
}
