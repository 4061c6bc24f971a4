//! QEMU's own server.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use tests::{Guest, QemuServer, require, traffic};

use super::{Server, probe};

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
