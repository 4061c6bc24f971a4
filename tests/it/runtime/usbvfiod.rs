//! usbvfiod: an xHCI controller for the host's USB devices, here without any.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tests::published::USBVFIOD;
use tests::{Agent, command::wait_for, require};

use super::{LIMIT, Server, deployed, probe};

fn usbvfiod(program: PathBuf) -> impl FnOnce(&Path) -> Command {
    move |socket| {
        let mut command = Command::new(program);
        command.arg("--no-color").arg("--socket-path").arg(socket);
        command
    }
}

#[test]
fn usbvfiod_is_probed_and_ends_with_its_client() -> Result<()> {
    require!(Usbvfiod);
    let program = USBVFIOD.find()?.context("usbvfiod")?;
    let mut server = Server::start(usbvfiod(program))?;
    let report = probe(&server.socket()).with_context(|| server.log())?;
    assert_eq!(report["function"]["vendor_id"], 0x1b36);
    assert_eq!(report["function"]["device_id"], 0x000d);
    // Whether it calls a client that has gone an error depends on who was quicker.
    server.end()?;
    Ok(())
}

#[test]
fn usbvfiod_serves_one_client_after_the_other_under_the_agent() -> Result<()> {
    require!(Usbvfiod);
    let program = USBVFIOD.find()?.context("usbvfiod")?;
    let agent = Agent::start_with(|dir| deployed(dir, "usbvfiod", &program))?;
    agent.ctl_ok("create usbvfiod usb0")?;
    for _ in 0..3 {
        // Between two clients it is started again.
        let socket = agent.device_socket("usb0");
        let report = wait_for("a server", LIMIT, || Ok(probe(&socket).ok()))?;
        assert_eq!(report["function"]["vendor_id"], 0x1b36);
        assert_eq!(report["function"]["device_id"], 0x000d);
    }
    let log = agent.ctl_ok("logs usb0")?;
    assert!(log.contains("usbvfiod"), "{log}");
    let page = agent.ctl_ok("models usbvfiod")?;
    assert!(page.contains("models.d/usbvfiod.json"), "{page}");
    agent.ctl_ok("delete usb0")?;
    agent.stop()
}
