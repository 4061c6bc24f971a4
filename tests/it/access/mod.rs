//! Who may call the agent, and what is written about it.

mod tls;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::v1;
use proto::v1::agent_service_client::AgentServiceClient;
use proto::v1::device_service_client::DeviceServiceClient;
use serde_json::Value;
use tests::agent::{Agent, programs};
use tests::command::{self, Output};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The user `nobody`, whom no agent runs as.
const NOBODY: u32 = 65_534;
const LIMIT: Duration = Duration::from_secs(60);

/// Lets other users reach the agent's socket.
fn open_to_all(agent: &Agent) -> Result<()> {
    fs::set_permissions(agent.dir(), Permissions::from_mode(0o755))?;
    let socket = agent.endpoint();
    let socket = socket.strip_prefix("unix://").context("an endpoint")?;
    Ok(fs::set_permissions(socket, Permissions::from_mode(0o666))?)
}

/// `vfuctl` as another user.
fn ctl_as(agent: &Agent, uid: u32, args: &str) -> Result<Output> {
    let mut command = Command::new(programs()?.join("vfuctl"));
    command
        .uid(uid)
        .gid(uid)
        .current_dir("/")
        .args(args.split_whitespace())
        .env("VFU_ENDPOINT", agent.endpoint());
    command::output(&mut command, LIMIT)
}

/// The audit log's lines about a method, without the service's name.
fn audit(agent: &Agent, method: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(agent.dir().join("state/audit.log"))?;
    let lines = text.lines().map(serde_json::from_str::<Value>);
    let lines: Vec<_> = lines.collect::<Result<_, _>>()?;
    let is_about = |it: &Value| {
        let name = it["method"].as_str().unwrap_or_default();
        name.rsplit_once('/')
            .is_some_and(|(_, name)| name == method)
    };
    Ok(lines.into_iter().filter(is_about).collect())
}

#[test]
fn without_rules_who_can_open_the_socket_is_an_operator() -> Result<()> {
    let agent = Agent::start()?;
    open_to_all(&agent)?;
    let created = ctl_as(&agent, NOBODY, "create e1000 nic0 --net.null")?;
    assert!(created.status.success(), "{}", created.stderr);
    let line = audit(&agent, "CreateDevice")?.remove(0);
    assert_eq!(line["caller"]["uid"], NOBODY);
    assert_eq!(line["caller"]["gid"], NOBODY);
    assert_eq!(line["role"], "operator");
    assert_eq!(line["resource"], "devices/nic0");
    assert_eq!(line["code"], "OK");
    let executable = line["caller"]["executable"].as_str().context("a program")?;
    assert!(executable.ends_with("/vfuctl"), "{executable}");

    let drained = ctl_as(&agent, NOBODY, "drain")?;
    assert_eq!(drained.status.code(), Some(6), "{}", drained.stderr);
    for word in ["uid 65534", "operator", "Drain takes admin", "[[access]]"] {
        assert!(drained.stderr.contains(word), "{}", drained.stderr);
    }
    let line = audit(&agent, "Drain")?.remove(0);
    assert_eq!(line["caller"]["uid"], NOBODY);
    assert_eq!(line["code"], "PERMISSION_DENIED");
    assert_eq!(line["reason"], "ACCESS_DENIED");
    // What reads is not written, and root may do all.
    agent.ctl_ok("list")?;
    assert_eq!(audit(&agent, "ListDevices")?.len(), 0);
    agent.ctl_ok("delete nic0")?;
    let line = audit(&agent, "DeleteDevice")?.remove(0);
    assert_eq!(line["role"], "admin");
    Ok(())
}

#[test]
fn the_audit_log_has_no_configuration() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 --net.null --mac 52:54:00:ab:cd:ef")?;
    let line = audit(&agent, "CreateDevice")?.remove(0);
    let resource = line["resource"].as_str().context("a made-up id")?;
    assert!(resource.starts_with("devices/e1000-"), "{line}");
    assert!(!line.to_string().to_lowercase().contains("ab:cd"), "{line}");
    let mode = fs::metadata(agent.dir().join("state/audit.log"))?.permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
    Ok(())
}

#[test]
fn what_an_operator_does_is_written_with_what_it_was_done_to() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    for (command, method, resource) in [
        ("update nic0 --label a=b", "UpdateDevice", "devices/nic0"),
        ("reset nic0", "ResetDevice", "devices/nic0"),
        ("restart nic0", "RestartDevice", "devices/nic0"),
        ("drain", "Drain", "agent"),
        ("shutdown-devices", "ShutDownDevices", "agent"),
        ("undrain", "Undrain", "agent"),
    ] {
        agent.ctl_ok(command)?;
        let line = audit(&agent, method)?.remove(0);
        assert_eq!(line["resource"], resource, "{line}");
    }
    Ok(())
}

async fn channel(agent: &Agent) -> Result<Channel> {
    Ok(Endpoint::from_shared(agent.endpoint())?.connect().await?)
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|it| it.reason).unwrap_or_default()
}

#[test]
fn a_viewer_can_list_but_not_delete_and_who_has_no_role_can_do_nothing() -> Result<()> {
    let agent = Agent::start_with(|_| {
        let rule = format!("[[access]]\nrole = \"viewer\"\nuid = {NOBODY}\n");
        Ok(rule)
    })?;
    open_to_all(&agent)?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let listed = ctl_as(&agent, NOBODY, "list -o name")?;
    assert!(listed.stdout.contains("nic0"), "{}", listed.stderr);
    let deleted = ctl_as(&agent, NOBODY, "delete nic0")?;
    assert_eq!(deleted.status.code(), Some(6), "{}", deleted.stderr);
    let words = "has role viewer, and DeleteDevice takes operator";
    assert!(deleted.stderr.contains(words), "{}", deleted.stderr);
    let line = audit(&agent, "DeleteDevice")?.remove(0);
    assert_eq!(line["role"], "viewer");
    assert_eq!(line["code"], "PERMISSION_DENIED");
    agent.ctl_ok("get nic0")?;

    let other = NOBODY - 1;
    let listed = ctl_as(&agent, other, "list")?;
    assert_eq!(listed.status.code(), Some(6), "{}", listed.stderr);
    assert!(listed.stderr.contains("has no role"), "{}", listed.stderr);
    let line = audit(&agent, "ListDevices")?.remove(0);
    assert_eq!(line["caller"]["uid"], other);
    assert_eq!(line["code"], "PERMISSION_DENIED");
    Ok(())
}

#[test]
fn rules_that_change_hold_for_the_next_call() -> Result<()> {
    let rule = |role| {
        let mode = "api.mode = \"0666\"";
        format!("{mode}\n[[access]]\nrole = \"{role}\"\nuid = {NOBODY}\n")
    };
    let agent = Agent::start_with(|_| Ok(rule("viewer")))?;
    fs::set_permissions(agent.dir(), Permissions::from_mode(0o755))?;
    let create = || ctl_as(&agent, NOBODY, "create e1000 nic0 --net.null");
    let denied = create()?;
    assert_eq!(denied.status.code(), Some(6), "{}", denied.stderr);
    fs::write(agent.dir().join("agent.toml"), rule("operator"))?;
    command::wait_for("that the rules are read again", LIMIT, || {
        Ok(create()?.status.success().then_some(()))
    })?;
    fs::write(agent.dir().join("agent.toml"), rule("viewer"))?;
    command::wait_for("that the rules are read again", LIMIT, || {
        let denied = ctl_as(&agent, NOBODY, "reset nic0")?;
        Ok((denied.status.code() == Some(6)).then_some(()))
    })?;
    Ok(())
}

#[tokio::test]
async fn every_call_that_changes_something_has_a_line_with_its_resource() -> Result<()> {
    let agent = Agent::start()?;
    let mut devices = DeviceServiceClient::new(channel(&agent).await?);
    let name = "devices/nope".to_owned();
    let request_id = "8d5c4e29-8ee1-4a3f-9a1e-4f0e4c1c7b11".to_owned();
    macro_rules! refused {
        ($($call:ident($request:ident { $($field:ident: $value:expr),* }),)*) => { $(
            let request = v1::$request {
                $($field: $value,)*
                request_id: request_id.clone(),
                ..v1::$request::default()
            };
            let refused = devices.$call(request).await;
            refused.expect_err(stringify!($call));
        )* };
    }
    let device = Some(v1::Device {
        name: name.clone(),
        ..v1::Device::default()
    });
    refused! {
        create_device(CreateDeviceRequest { device_id: "nope".to_owned() }),
        update_device(UpdateDeviceRequest { device: device }),
        delete_device(DeleteDeviceRequest { name: name.clone() }),
        reset_device(ResetDeviceRequest { name: name.clone() }),
        restart_device(RestartDeviceRequest { name: name.clone() }),
        plug_device(PlugDeviceRequest { name: name.clone() }),
        unplug_device(UnplugDeviceRequest { name: name.clone() }),
    }
    for method in [
        "CreateDevice",
        "UpdateDevice",
        "DeleteDevice",
        "ResetDevice",
        "RestartDevice",
        "PlugDevice",
        "UnplugDevice",
    ] {
        let line = audit(&agent, method)?.remove(0);
        assert_eq!(line["resource"], "devices/nope", "{line}");
        assert_eq!(line["request_id"], request_id, "{line}");
        assert_eq!(line["caller"]["pid"], std::process::id(), "{line}");
    }
    let mut agents = AgentServiceClient::new(channel(&agent).await?);
    agents.drain(v1::DrainRequest::default()).await?;
    let request = v1::ShutDownDevicesRequest::default();
    agents.shut_down_devices(request).await?;
    agents.undrain(v1::UndrainRequest {}).await?;
    for method in ["Drain", "ShutDownDevices", "Undrain"] {
        let line = audit(&agent, method)?.remove(0);
        assert_eq!(line["resource"], "agent", "{line}");
        assert_eq!(line["code"], "OK", "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn a_request_over_the_limit_is_refused_by_its_name_and_the_connection_lives() -> Result<()> {
    let agent = Agent::start_with(|_| Ok("[limits]\nrequest_bytes = 65536\n".to_owned()))?;
    let mut devices = DeviceServiceClient::new(channel(&agent).await?);
    let request = |bytes| v1::ListDevicesRequest {
        page_token: "x".repeat(bytes),
        ..v1::ListDevicesRequest::default()
    };
    let refused = devices.list_devices(request(70_000)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(reason(&refused), "REQUEST_TOO_LONG");
    assert!(
        refused.message().contains("limits.request_bytes"),
        "{refused}"
    );
    let refused = devices.list_devices(request(60_000)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    devices.list_devices(request(0)).await?;
    Ok(())
}
