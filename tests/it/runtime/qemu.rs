//! QEMU's own server.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Agent, Guest, QemuServer, command::wait_for, require, traffic};

use super::{LIMIT, Server, deployed, probe};

/// What serves an e1000 whose network QEMU plays: its station 10.0.2.2 answers pings.
fn e1000() -> Result<impl FnOnce(&Path) -> Command> {
    let server = QemuServer::find()?.context("a QEMU that serves devices")?;
    Ok(move |socket: &Path| {
        let mut object =
            OsString::from("x-vfio-user-server,id=server,device=device,type=unix,path=");
        object.push(socket);
        let mut command = Command::new(server.program());
        command
            .args(["-machine", "x-remote,vfio-user=on,auto-shutdown=on"])
            .args(["-nodefaults", "-nographic", "-monitor", "none"])
            .args(["-netdev", "user,id=net"])
            .args(["-device", "e1000,id=device,netdev=net"])
            .arg("-object")
            .arg(object);
        command
    })
}

#[test]
fn a_guest_pings_through_qemu_s_own_server() -> Result<()> {
    require!(Qemu, QemuServer);
    let mut server = Server::start(e1000()?)?;
    let mut guest = Guest::builder().nic(server.socket()).boot()?;
    let card = traffic::pci_line(&mut guest, "eth0")?;
    assert!(
        card.ends_with("class 020000 8086:100e driver e1000"),
        "{card}"
    );
    traffic::configure(&mut guest, "eth0", "10.0.2.15/24")?;
    traffic::ping(&mut guest, "10.0.2.2".parse()?, 3).with_context(|| server.log())?;
    drop(guest);
    // It exits 0, or aborts when its card raises an interrupt just after its client has gone: either way it is over.
    server.end()?;
    Ok(())
}

#[test]
fn qemu_s_own_server_is_probed_once() -> Result<()> {
    require!(QemuServer);
    let mut server = Server::start(e1000()?)?;
    let report = probe(&server.socket()).with_context(|| server.log())?;
    assert_eq!(report["function"]["vendor_id"], 0x8086);
    assert_eq!(report["function"]["device_id"], 0x100e);
    // The probe was its client; the path stays, which the next one can't bind.
    assert!(server.end()?.success(), "{}", server.log());
    assert!(server.socket().exists());
    Ok(())
}

#[test]
fn who_connects_to_qemu_s_own_server_and_says_nothing_ends_it() -> Result<()> {
    require!(QemuServer);
    let mut server = Server::start(e1000()?)?;
    drop(UnixStream::connect(server.socket())?);
    assert!(!server.end()?.success());
    assert!(
        server.log().contains("Failed to attach device"),
        "{}",
        server.log()
    );
    Ok(())
}

/// An agent that has QEMU as a runtime.
fn agent() -> Result<Agent> {
    let server = QemuServer::find()?.context("a QEMU that serves devices")?;
    Agent::start_with(|dir| deployed(dir, "qemu", server.program()))
}

fn status(agent: &Agent, id: &str) -> Result<Value> {
    let device = agent.ctl_ok(&format!("get {id} -o json"))?;
    Ok(serde_json::from_str::<Value>(&device)?["status"].take())
}

fn wait_for_state(agent: &Agent, id: &str, state: &str) -> Result<Value> {
    wait_for(&format!("{id} to be {state}"), LIMIT, || {
        let status = status(agent, id)?;
        Ok((status["state"] == state).then_some(status))
    })
}

#[test]
fn guests_ping_one_after_the_other_through_a_card_of_qemu_s() -> Result<()> {
    require!(Qemu, QemuServer);
    let agent = agent()?;
    agent.ctl_ok("create qemu nic0 --set device=e1000 --set net.user=true")?;
    let pid = status(&agent, "nic0")?["pid"].clone();
    for _ in 0..2 {
        let mut guest = Guest::builder().nic(agent.device_socket("nic0")).boot()?;
        let card = traffic::pci_line(&mut guest, "eth0")?;
        assert!(card.ends_with("8086:100e driver e1000"), "{card}");
        traffic::configure(&mut guest, "eth0", "10.0.2.15/24")?;
        traffic::ping(&mut guest, "10.0.2.2".parse()?, 3)?;
        let client = wait_for_state(&agent, "nic0", "CONNECTED")?["client"].take();
        assert!(client["pid"].is_number(), "{client}");
        drop(guest);
        wait_for_state(&agent, "nic0", "READY")?;
    }
    // It went on with the process that it had, or that process was started again under the same roof.
    let log = agent.ctl_ok("logs nic0")?;
    assert_eq!(status(&agent, "nic0")?["pid"], pid, "{log}");
    agent.ctl_ok("reset nic0")?;
    let resets = status(&agent, "nic0")?["resets"].take();
    assert_eq!(resets["api"], "1", "{resets}");
    assert_eq!(resets["lostConnection"], "2", "{resets}");
    agent.ctl_ok("delete nic0")?;
    agent.stop()
}

#[test]
fn a_disk_controller_of_qemu_s_is_served_again_and_again() -> Result<()> {
    require!(QemuServer);
    let agent = agent()?;
    let image = agent.dir().join("a,b.img");
    std::fs::File::create(&image)?.set_len(1 << 20)?;
    let image = image.display();
    for (id, auto_shutdown) in [("disk0", false), ("disk1", true)] {
        agent.ctl_ok(&format!(
            "create qemu {id} --set device=nvme --set properties.serial=a,b \
             --set drive.file={image} --set auto_shutdown={auto_shutdown}"
        ))?;
        for _ in 0..5 {
            wait_for_state(&agent, id, "READY")?;
            let report = wait_for("a server", LIMIT, || {
                Ok(probe(&agent.device_socket(id)).ok())
            })?;
            assert_eq!(report["function"]["vendor_id"], 0x1b36);
            assert_eq!(report["function"]["device_id"], 0x0010);
        }
        let status = wait_for_state(&agent, id, "READY")?;
        if !auto_shutdown {
            // Where it shuts down it may crash as its client leaves, which looks like any other crash.
            let restarts = status["restartCount"].as_str().unwrap_or("0");
            assert_eq!(
                restarts,
                "0",
                "{status}\n{}",
                agent.ctl_ok(&format!("logs {id}"))?
            );
        }
        agent.ctl_ok(&format!("delete {id}"))?;
    }
    agent.stop()
}
