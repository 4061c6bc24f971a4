//! Who may call the agent, and what is written about it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::agent::{Agent, programs};
use tests::command::{self, Output};

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
