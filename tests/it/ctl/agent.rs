//! What an operator does with a host.

use anyhow::{Result, ensure};
use tests::{Agent, command::wait_for};

use super::{LIMIT, fails, json, only};

#[test]
fn the_page_of_the_agent_tells_what_it_can_serve() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let page = agent.ctl_ok("agent")?;
    for line in [
        &format!("Run directory:   {}", agent.dir().join("run").display()),
        "Devices:         1 (1 ready)",
        "New devices:     made",
    ] {
        ensure!(page.lines().any(|it| it == line), "no `{line}` in\n{page}");
    }
    ensure!(page.contains("vfu-device   yes      e1000"), "{page}");
    let limits = json(&agent, "agent")?["limits"].clone();
    ensure!(limits["devices"].as_i64() > Some(0), "{limits}");
    agent.stop()
}

#[test]
fn a_restart_replaces_the_process_and_leaves_the_socket() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let before = json(&agent, "get nic0")?;
    let told = agent.ctl_ok("restart nic0 --dry-run")?;
    ensure!(
        told == "devices/nic0 can be restarted; nothing was\n",
        "{told}"
    );
    ensure!(json(&agent, "get nic0")?["status"]["pid"] == before["status"]["pid"]);
    let told = agent.ctl_ok("restart nic0")?;
    ensure!(told == "devices/nic0 restarted\n", "{told}");
    let after = json(&agent, "get nic0")?;
    ensure!(after["status"]["pid"] != before["status"]["pid"], "{after}");
    for field in ["socketPath", "state"] {
        ensure!(after["status"][field] == before["status"][field], "{after}");
    }
    ensure!(after["uid"] == before["uid"], "{after}");
    only(&agent, &["nic0"])?;
    let stale = ["restart", "nic0", "--etag", "other"];
    fails(&agent, &stale, 4, &["nic0"])?;
    fails(&agent, &["restart", "nic9"], 3, &["nic9"])?;
    agent.stop()
}

#[test]
fn a_drained_agent_makes_nothing_new_until_it_is_undrained() -> Result<()> {
    let mut agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    agent.ctl_ok("drain --reason reboot")?;
    agent.start_again()?;
    let page = agent.ctl_ok("agent")?;
    ensure!(page.contains(" ago): reboot; vfuctl undrain\n"), "{page}");
    let create = ["create", "e1000", "nic1", "--net.null"];
    fails(&agent, &create, 5, &["drained", "reboot"])?;
    only(&agent, &["nic0"])?;
    agent.ctl_ok("undrain")?;
    agent.ctl_ok("create e1000 nic1 --net.null")?;
    only(&agent, &["nic0", "nic1"])?;
    agent.stop()
}

#[test]
fn devices_that_were_shut_down_are_shown_and_come_back() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    agent.ctl_ok("create e1000 nic1 --net.null")?;
    let told = agent.ctl_ok("shutdown-devices")?;
    ensure!(told == "2 devices stopped\n", "{told}");
    ensure!(agent.device_processes()?.is_empty());
    let table = agent.ctl_ok("list")?;
    ensure!(table.matches("STOPPED").count() == 2, "{table}");
    let page = agent.ctl_ok("agent")?;
    ensure!(page.contains("(2 stopped)"), "{page}");
    ensure!(page.contains("Shut down:"), "{page}");
    agent.ctl_ok("undrain")?;
    wait_for("both to be back", LIMIT, || {
        let table = agent.ctl_ok("list")?;
        Ok((table.matches("READY").count() == 2).then_some(()))
    })?;
    agent.stop()
}
