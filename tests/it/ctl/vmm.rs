//! What a VMM is told, and that it works.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{Agent, Image, agent::programs, command::wait_for, require};

use super::{LIMIT, fails, json, only};

#[test]
fn the_command_line_for_a_vmm_survives_a_shell() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    agent.ctl_ok("create e1000 nic1 --net.null")?;
    for vmm in ["qemu", "cloud-hypervisor"] {
        let command = format!("cmdline nic0 nic1 --memory 256M --vmm {vmm}");
        let argv = json(&agent, &command)?;
        let argv: Vec<String> = serde_json::from_value(argv)?;
        let text = agent.ctl_ok(&command)?;
        let output = Command::new("sh")
            .args(["-c", &format!("printf '%s\\0' {text}")])
            .output()?;
        let words = String::from_utf8(output.stdout)?;
        assert_eq!(
            words.split_terminator('\0').collect::<Vec<_>>(),
            argv,
            "{vmm}"
        );
        for id in ["nic0", "nic1"] {
            let socket = agent.device_socket(id);
            let socket = socket.to_str().context("UTF-8")?;
            assert!(argv.iter().any(|word| word.contains(socket)), "{argv:?}");
        }
    }
    let argv = json(&agent, "cmdline nic0 --vmm qemu")?;
    let device = argv
        .as_array()
        .and_then(|argv| argv.last()?.as_str())
        .context("-device")?;
    assert_eq!(
        serde_json::from_str::<Value>(device)?,
        json!({"driver": "vfio-user-pci", "socket": {"path": agent.device_socket("nic0"), "type": "unix"}})
    );
    Ok(())
}

#[test]
fn qemu_takes_the_command_line_and_shows_as_the_client() -> Result<()> {
    require!(Qemu);
    let image = Image::find()?.context("the image")?;
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let vmm = Command::new("sh")
        .arg("-c")
        .arg(r#"eval "exec $QEMU -nodefaults -no-user-config -display none -accel tcg $($VFUCTL cmdline nic0 --vmm qemu)""#)
        .env("QEMU", &image.qemu)
        .env("VFUCTL", programs()?.join("vfuctl"))
        .env("VFU_ENDPOINT", agent.endpoint())
        .stdin(Stdio::null())
        .spawn()?;
    let vmm = Vmm(vmm);
    let state = |state: &str| {
        wait_for(state, LIMIT, || {
            let device = json(&agent, "get nic0")?;
            Ok((device["status"]["state"] == state).then_some(device))
        })
    };
    let device = state("CONNECTED")?;
    let client = &device["status"]["client"];
    let program = client["executable"].as_str().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let shown = format!(" {program}({}) ", client["pid"]);
    let table = agent.ctl_ok("list")?;
    assert!(table.contains(&shown), "no `{shown}` in\n{table}");

    fails(&agent, &["delete", "nic0"], 5, &["nic0", "--force"])?;
    only(&agent, &["nic0"])?;
    drop(vmm);
    state("READY")?;
    agent.ctl_ok("delete nic0")?;
    only(&agent, &[])
}

/// A VMM that is killed when dropped.
pub(super) struct Vmm(pub(super) Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
