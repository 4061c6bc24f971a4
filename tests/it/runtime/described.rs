//! Models that description files add, under the agent. What stands in for a program of somebody else's is our own device
//! program, which knows nothing of that.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use proto::v1::{
    CreateDeviceRequest, Device, GetModelRequest, Model, ResetDeviceRequest, ResourceLimits,
    RestartDeviceRequest, Runtime, SocketSpec, device_status::State,
    model_service_client::ModelServiceClient,
};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt;

use crate::agent::{
    Devices, Host, create, deletion, e1000, pid, reason, send, spec, state, wait_for,
};
use crate::limits::{agent, cgroup, limit};

const NOBODY: u32 = 65534;

/// A file for a card that serves the socket that it makes.
pub(super) fn card(host: &Host) -> Value {
    let program = host.program.with_file_name("vfu-device");
    json!({
        "version": 1,
        "name": "card",
        "description": "a network card",
        "vendor_id": 0x8086,
        "device_id": 0x100e,
        "class_code": 0x20000,
        "command": [
            program.to_str().unwrap(), "e1000", "--socket-path", "{socket}",
            "--config", "{{\"mac\":{config.mac|json},\"net\":{{\"null\":{{}}}}}}"
        ],
        "readiness": "socket",
        "config_schema": {
            "type": "object",
            "additionalProperties": false,
            "required": ["mac"],
            "properties": {"mac": {"type": "string", "pattern": "^[0-9a-f:]*$"}}
        }
    })
}

/// An agent that reads these files.
pub(super) async fn host(files: impl FnOnce(&Host) -> Vec<Value>) -> Host {
    Host::start_with(|host| {
        let folder = host.path("models.d");
        fs::create_dir(&folder).unwrap();
        for file in files(host) {
            write(&folder, &file);
        }
        let config = host.path("agent.toml");
        let text = format!("models_dirs = [{folder:?}]\n[timeouts]\nstart = \"5s\"\n");
        fs::write(&config, text).unwrap();
        host.flags = vec!["--config".to_owned(), config.display().to_string()];
    })
    .await
}

fn write(folder: &Path, file: &Value) {
    let path = folder.join(format!("{}.json", file["name"].as_str().unwrap()));
    fs::write(&path, file.to_string()).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
}

pub(super) fn device(id: &str, model: &str, config: Value) -> CreateDeviceRequest {
    let mut request = e1000(id, config);
    spec(&mut request).model = model.to_owned();
    request
}

fn one(id: &str) -> CreateDeviceRequest {
    device(id, "card", json!({"mac": "52:54:00:00:00:01"}))
}

pub(super) fn socket(device: &Device) -> PathBuf {
    device.status.as_ref().unwrap().socket_path.clone().into()
}

/// The program that serves a device, which is the child of the process that the agent knows.
pub(super) fn program(device: &Device) -> i32 {
    let pid = pid(device);
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap();
    children.trim().parse().unwrap()
}

fn is_alive(pid: i32) -> bool {
    // One that nobody has waited for yet has no command line any more.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty())
}

pub(super) async fn model(host: &Host, name: &str) -> Model {
    let mut models = ModelServiceClient::new(host.channel().await);
    let name = format!("models/{name}");
    let request = GetModelRequest { name };
    models.get_model(request).await.unwrap().into_inner()
}

pub(super) async fn runtime(host: &Host, name: &str) -> Runtime {
    let runtimes = agent(host).await.runtimes;
    let found = runtimes.into_iter().find(|it| it.name == name);
    found.unwrap_or_else(|| panic!("no runtime {name}"))
}

/// Finds a card at the device's socket.
fn probe(device: &Device) {
    let report = tokio::task::block_in_place(|| super::probe(&socket(device))).unwrap();
    assert_eq!(report["function"]["device_id"], 0x100e);
}

/// Deletes a device as soon as it is seen that its last client has gone.
async fn delete(devices: &mut Devices, id: &str) {
    wait_for(devices, id, "unused", |it| state(it) == State::Ready).await;
    devices.delete_device(deletion(id)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_described_program_serves_a_device() {
    let host = host(|host| vec![card(host)]).await;
    let mut devices = host.devices().await;
    let described = model(&host, "card").await;
    let file = host.path("models.d/card.json");
    assert_eq!(described.source, file.to_str().unwrap());
    assert_eq!(described.runtime, "card");
    assert_eq!(
        described.unsupported,
        ["reset", "update", "stats", "request_unplug"]
    );
    assert_eq!(runtime(&host, "card").await.error, "");

    let mut request = one("nic0");
    spec(&mut request).socket = Some(SocketSpec {
        mode: Some(0o666),
        uid: Some(NOBODY),
        ..SocketSpec::default()
    });
    let device = create(&mut devices, request).await;
    assert_eq!(state(&device), State::Ready);
    let metadata = fs::metadata(socket(&device)).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o666);
    assert_eq!(metadata.uid(), NOBODY);
    probe(&device);

    let request = ResetDeviceRequest {
        name: "devices/nic0".to_owned(),
        ..ResetDeviceRequest::default()
    };
    let refused = devices.reset_device(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(
        refused.message().contains("restart the device"),
        "{refused:?}"
    );

    let program = program(&device);
    delete(&mut devices, "nic0").await;
    assert!(!is_alive(program));
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_a_described_program_is_seen_to_come_and_go() {
    let host = host(|host| vec![card(host)]).await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, one("nic0")).await;
    let client = UnixStream::connect(socket(&device)).unwrap();
    let connected = wait_for(&mut devices, "nic0", "its client", |it| {
        state(it) == State::Connected
    })
    .await;
    let seen = connected.status.unwrap().client.unwrap();
    assert_eq!(seen.pid.cast_unsigned(), std::process::id());
    let refused = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_CONNECTED");
    drop(client);
    let device = wait_for(&mut devices, "nic0", "without a client", |it| {
        state(it) == State::Ready
    })
    .await;
    let resets = device.status.unwrap().resets.unwrap();
    assert_eq!(resets.lost_connection, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_described_program_outlives_the_agent_and_dies_with_its_device() {
    let mut host = host(|host| vec![card(host)]).await;
    let device = create(&mut host.devices().await, one("nic0")).await;
    let child = program(&device);
    let client = UnixStream::connect(socket(&device)).unwrap();
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "its client", |it| {
        state(it) == State::Connected
    })
    .await;
    assert_eq!((pid(&adopted), program(&adopted)), (pid(&device), child));
    drop(client);

    // The program's end is the device's, and is told.
    send(child, Signal::SIGKILL);
    let restarted = wait_for(&mut devices, "nic0", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&device)
    })
    .await;
    let log = fs::read_to_string(host.run_dir.join("devices/nic0/log")).unwrap();
    assert!(log.contains("vfu-device was ended by SIGKILL"), "{log}");
    // And the other way round.
    let (shim, child) = (pid(&restarted), program(&restarted));
    send(shim, Signal::SIGKILL);
    let again = wait_for(&mut devices, "nic0", "a third process", |it| {
        state(it) == State::Ready && pid(it) != shim
    })
    .await;
    assert!(!is_alive(child));
    assert_eq!(again.status.unwrap().restart_count, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_described_program_has_the_limits_and_the_cgroup_of_its_device() {
    let host = host(|host| vec![card(host)]).await;
    let mut devices = host.devices().await;
    let mut request = one("nic0");
    spec(&mut request).limits = Some(ResourceLimits {
        memory_bytes: 32 << 20,
        open_files: 100,
        ..ResourceLimits::default()
    });
    let device = create(&mut devices, request).await;
    let program = program(&device);
    assert_eq!(limit(program, "Max data size"), "33554432");
    assert_eq!(limit(program, "Max open files"), "100");
    assert_eq!(limit(program, "Max core file size"), "0");
    assert_eq!(cgroup(program), cgroup(pid(&device)));
    let has_cgroups = !agent(&host).await.cgroup.is_empty();
    assert_eq!(cgroup(program).ends_with("/nic0"), has_cgroups);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_description_changes_has_the_new_one_from_its_next_start_on() {
    let mut host = host(|host| vec![card(host)]).await;
    let folder = host.path("models.d");
    let device = create(&mut host.devices().await, one("nic0")).await;
    // An agent that reads another one adopts the device as it is.
    host.end_agent(Signal::SIGKILL);
    let mut other = card(&host);
    other["command"][0] = "/nonexistent/program".into();
    write(&folder, &other);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "adopted", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!(pid(&adopted), pid(&device));
    probe(&adopted);

    // Its next process can't be started: it is told why, until there is one that can.
    send(pid(&device), Signal::SIGKILL);
    let lacks = |what: &'static str| {
        move |it: &Device| {
            let status = it.status.as_ref().unwrap();
            status.conditions.iter().any(|it| it.message.contains(what))
        }
    };
    let program = lacks("/nonexistent/program");
    wait_for(&mut devices, "nic0", "its program is missing", program).await;
    fs::remove_file(folder.join("card.json")).unwrap();
    let file = lacks("no model card any more");
    wait_for(&mut devices, "nic0", "its file is missing", file).await;
    write(&folder, &card(&host));
    let served = wait_for(&mut devices, "nic0", "served again", |it| {
        state(it) == State::Ready && pid(it) != pid(&device)
    })
    .await;
    probe(&served);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_can_take_its_socket_or_say_when_it_is_ready() {
    let host = host(|host| {
        let mut taking = card(host);
        taking["name"] = "taking".into();
        taking["readiness"] = "fd".into();
        taking["command"][2] = "--fd".into();
        taking["command"][3] = "{fd}".into();
        let mut saying = card(host);
        saying["name"] = "saying".into();
        saying["readiness"] = json!({"line": "serving"});
        vec![taking, saying]
    })
    .await;
    let mut devices = host.devices().await;
    for name in ["taking", "saying"] {
        let config = json!({"mac": "52:54:00:00:00:01"});
        let device = create(&mut devices, device(name, name, config)).await;
        assert_eq!(state(&device), State::Ready);
        probe(&device);
        let request = RestartDeviceRequest {
            name: format!("devices/{name}"),
            force: true,
            ..RestartDeviceRequest::default()
        };
        let restarted = devices.restart_device(request).await.unwrap().into_inner();
        assert_ne!(pid(&restarted), pid(&device));
        probe(&restarted);
        delete(&mut devices, name).await;
    }
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_become_ready_or_fails_is_told_with_its_log() {
    let host = host(|host| {
        let mut silent = card(host);
        silent["name"] = "silent".into();
        silent["readiness"] = json!({"line": "a line that never comes"});
        let mut failing = card(host);
        failing["name"] = "failing".into();
        failing["command"][1] = "no-such-model".into();
        vec![silent, failing]
    })
    .await;
    let mut devices = host.devices().await;
    let config = json!({"mac": "52:54:00:00:00:01"});
    let refused = devices
        .create_device(device("a", "failing", config.clone()))
        .await;
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("no-such-model"), "{refused:?}");
    assert!(
        refused.message().contains("exited with code"),
        "{refused:?}"
    );
    let refused = devices.create_device(device("a", "silent", config)).await;
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("was not ready"), "{refused:?}");
    host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_the_command_can_t_take_and_programs_that_are_missing_are_refused_at_once() {
    let host = host(|host| {
        let mut hostile = card(host);
        hostile["command"][5] = "mac={config.mac}".into();
        hostile["config_schema"]["properties"]["mac"] = json!({"type": "string"});
        let mut missing = card(host);
        missing["name"] = "missing".into();
        missing["command"][0] = "/nonexistent/program".into();
        let mut unable = card(host);
        unable["name"] = "unable".into();
        unable["requires"] =
            json!([{"arguments": ["models"], "prints": "ne2000", "cure": "get another"}]);
        let mut same = card(host);
        same["name"] = "e1000".into();
        vec![hostile, missing, unable, same]
    })
    .await;
    let mut devices = host.devices().await;
    let refused = devices
        .create_device(device("a", "card", json!({"mac": "x,y --z"})))
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let bad = refused.get_details_bad_request().unwrap();
    assert_eq!(bad.field_violations[0].field, "device.spec.config.mac");
    for (name, cure) in [
        ("missing", "there is no program"),
        ("unable", "get another"),
    ] {
        let config = json!({"mac": "52:54:00:00:00:01"});
        let mut request = device("a", name, config);
        request.validate_only = true;
        let refused = devices.create_device(request).await.unwrap_err();
        assert_eq!(reason(&refused), "RUNTIME_UNAVAILABLE");
        assert!(refused.message().contains(cure), "{refused:?}");
        let told = runtime(&host, name).await.error;
        assert!(told.contains(cure), "{told}");
    }
    // The name is taken, and whose it is stays.
    assert_eq!(model(&host, "e1000").await.runtime, "vfu-device");
    assert!(runtime(&host, "e1000").await.error.contains("rename it"));
    host.assert_empty().await;
}
