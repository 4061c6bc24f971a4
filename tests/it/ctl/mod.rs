//! `vfuctl` against a real agent and real device processes: what it prints, how it ends, and that nothing is left of what
//! failed.

mod agent;
mod device;
mod observe;
mod plug;
mod refusal;
mod usage;
mod vmm;
mod watch;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::{Agent, agent::programs};

const MAC: &str = "52:54:00:12:34:56";
const LIMIT: Duration = Duration::from_secs(10);

/// The parsed answer of a command with `-o json`.
fn json(agent: &Agent, args: &str) -> Result<Value> {
    Ok(serde_json::from_str(
        &agent.ctl_ok(&format!("{args} -o json"))?,
    )?)
}

/// Runs a command that has to fail, and checks its exit code and that standard error names each of `words`.
fn fails(agent: &Agent, args: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let output = agent.ctl(args)?;
    let told = format!("vfuctl {args:?}: {}\n{}", output.status, output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "not exit code {code}: {told}"
    );
    ensure!(
        output.stdout.is_empty(),
        "printed {}: {told}",
        output.stdout
    );
    for word in words {
        ensure!(output.stderr.contains(word), "no `{word}`: {told}");
    }
    Ok(())
}

/// Checks that the agent has these devices and nothing of any other.
fn only(agent: &Agent, ids: &[&str]) -> Result<()> {
    let names: String = ids.iter().map(|id| format!("devices/{id}\n")).collect();
    let listed = agent.ctl_ok("list -o name")?;
    ensure!(listed == names, "listed: {listed}");
    let mut folders = Vec::new();
    let devices = agent.device_dir("x");
    let devices = devices.parent().context("the folder of devices")?;
    for entry in fs::read_dir(devices).into_iter().flatten() {
        folders.push(entry?.file_name().to_string_lossy().into_owned());
    }
    folders.sort();
    ensure!(folders == ids, "folders: {folders:?}");
    let processes = agent.device_processes()?;
    ensure!(processes.len() == ids.len(), "processes: {processes:?}");
    Ok(())
}

/// An agent that `script` starts, a line of shell in which `$AGENT` is the real one and `$@` its flags: `--run-dir DIR
/// --state-dir DIR --listen URL`. The folder has to live as long as the agent.
fn agent_by(script: &str) -> Result<(Agent, TempDir)> {
    let real = programs()?;
    let dir = tempfile::tempdir()?;
    for program in ["vfuctl", "vfu-device"] {
        symlink(real.join(program), dir.path().join(program))?;
    }
    let path = dir.path().join("vfu-agent");
    let real = real.join("vfu-agent");
    fs::write(
        &path,
        format!("#!/bin/sh\nAGENT='{}'\n{script}\n", real.display()),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((Agent::start_from(dir.path())?, dir))
}

/// Kills a device's process, as a crash would.
fn kill(pid: i32) -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    Ok(kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
}
