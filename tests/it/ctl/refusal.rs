//! What is refused is named, with the flag that gave it, and leaves nothing behind.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use tests::{Agent, Netns, require};

use super::{agent_by, fails, json, only};

#[test]
fn bad_input_is_named_and_leaves_nothing() -> Result<()> {
    let agent = Agent::start()?;
    let long = format!("/{}", "x".repeat(107));
    let cases: [(&[&str], i32, &[&str]); 16] = [
        (&["create", "e1001", "nic0"], 3, &["e1001"]),
        // What vfuctl sees itself.
        (
            &["create", "e1000", "nic0", "--colour", "red"],
            2,
            &["--colour"],
        ),
        (
            &["create", "e1000", "nic0", "--set", "net.tap.ifnam=x"],
            2,
            &["did you mean net.tap.ifname?"],
        ),
        (
            &["create", "e1000", "nic0", "--net.tap", "--net.null"],
            2,
            &["--net.tap and --net.null exclude"],
        ),
        (
            &["create", "e1000", "nic0", "--net.stream.mode", "call"],
            2,
            &["--net.stream.mode", "connect"],
        ),
        // What the agent sees by the schema.
        (
            &["create", "e1000", "nic0", "--config", r#"{"colour":"red"}"#],
            2,
            &["colour"],
        ),
        (
            &["create", "e1000", "nic0", "--config", r#"{"mac":5}"#],
            2,
            &["device.spec.config.mac (--mac)"],
        ),
        (
            &["create", "e1000", "nic0", "--mac", "52:54:00"],
            2,
            &["device.spec.config.mac (--mac)"],
        ),
        (
            &["create", "e1000", "nic0", "--net.stream.mode", "listen"],
            2,
            &["net.stream", "path"],
        ),
        (
            &[
                "create",
                "e1000",
                "nic0",
                "--net.stream.mode",
                "listen",
                "--net.stream.path",
                &long,
            ],
            2,
            &["(--net.stream.path)", "107"],
        ),
        (&["create", "e1000", "Nic_0"], 2, &["device_id (ID)"]),
        (&["create", "e1000", "nic0", "--label=-=x"], 2, &["--label"]),
        // What the host can't give.
        (
            &[
                "create",
                "e1000",
                "nic0",
                "--net.tap.ifname",
                "vfu0",
                "--net.tap.netns",
                "/nonexistent/netns",
            ],
            5,
            &["/nonexistent/netns"],
        ),
        // What does not exist.
        (&["get", "nic0"], 3, &["nic0"]),
        (&["delete", "nic0", "nic1"], 3, &["nic0", "nic1"]),
        (&["cmdline", "nic0", "--vmm", "qemu"], 3, &["nic0"]),
    ];
    for (args, code, words) in cases {
        fails(&agent, args, code, words)?;
        only(&agent, &[]).with_context(|| format!("after {args:?}"))?;
    }
    agent.ctl_ok("delete nic0 --allow-missing")?;

    agent.ctl_ok("create e1000 nic0 --net.null")?;
    fails(
        &agent,
        &["create", "e1000", "nic0", "--net.loopback"],
        4,
        &["nic0"],
    )?;
    only(&agent, &["nic0"])?;
    let device = json(&agent, "get nic0")?;
    assert_eq!(device["spec"]["config"], json!({"net": {"null": {}}}));
    Ok(())
}

#[test]
fn a_busy_tap_is_named_and_leaves_nothing() -> Result<()> {
    require!(Tap);
    let netns = Netns::new()?;
    let agent = Agent::start()?;
    let tap = format!(
        "--net.tap.ifname vfu0 --net.tap.netns {}",
        netns.path().display()
    );
    agent.ctl_ok(&format!("create e1000 nic0 {tap}"))?;
    let second = format!("create e1000 nic1 {tap}");
    let args: Vec<_> = second.split(' ').collect();
    fails(&agent, &args, 5, &["vfu0", "(--net.tap.ifname)"])?;
    only(&agent, &["nic0"])?;
    agent.ctl_ok("delete nic0")?;
    only(&agent, &[])?;
    assert!(netns.ip("link show vfu0").is_err(), "the interface is left");
    Ok(())
}

#[test]
fn a_missing_permission_is_named_and_leaves_nothing() -> Result<()> {
    require!(Tap);
    // Root without the right to make interfaces.
    let (agent, _dir) = agent_by(r#"exec setpriv --bounding-set=-net_admin "$AGENT" "$@""#)?;
    let args = ["create", "e1000", "nic0", "--net.tap.ifname", "vfuperm0"];
    fails(&agent, &args, 5, &["vfuperm0", "CAP_NET_ADMIN"])?;
    only(&agent, &[])?;
    assert!(!Path::new("/sys/class/net/vfuperm0").exists());
    Ok(())
}

#[test]
fn a_missing_device_program_is_named() -> Result<()> {
    let (agent, _dir) = agent_by(r#"exec "$AGENT" --device-program /nonexistent/vfu-device "$@""#)?;
    for args in [&["create", "e1000", "nic0"][..], &["models"]] {
        fails(&agent, args, 5, &["/nonexistent/vfu-device"])?;
    }
    only(&agent, &[])
}

#[test]
fn a_socket_path_over_107_bytes_is_refused() -> Result<()> {
    let (agent, _dir) = agent_by(
        r#"exec "$AGENT" --run-dir "$2/of-a-quite-long-path" --state-dir "$4" --listen "$6""#,
    )?;
    let id = "a".repeat(63);
    fails(
        &agent,
        &["create", "e1000", &id, "--net.null"],
        2,
        &["107", "device_id (ID)"],
    )?;
    assert_eq!(agent.ctl_ok("list -o name")?, "");
    assert!(agent.device_processes()?.is_empty());
    let device = json(&agent, "create e1000 nic0 --net.null")?;
    assert_eq!(device["status"]["state"], "READY");
    Ok(())
}
