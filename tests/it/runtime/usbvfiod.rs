//! usbvfiod: an xHCI controller for the host's USB devices, here without any.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tests::published::USBVFIOD;
use tests::require;

use super::{Server, probe};

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
