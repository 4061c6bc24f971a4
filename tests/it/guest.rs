//! A real VMM with a Linux guest.

use anyhow::Result;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use tests::peer::FRAME_LENGTHS;
use tests::{Guest, Netns, Peer, require, traffic};

/// QEMU's own e1000 needs nothing of ours: this judges the fixture.
#[test]
fn the_guest_runs_commands_before_and_after_a_reset() -> Result<()> {
    require!(Qemu);
    let mut guest = Guest::builder().arg("-device").arg("e1000").boot()?;
    assert_eq!(guest.sh("printf 'a\\nb\\n\\n'")?, "a\nb\n\n");
    let (status, output) =
        guest.sh_status("echo no >&2; exit 3", std::time::Duration::from_secs(10))?;
    assert_eq!((status, output.as_str()), (3, "no\n"));

    let driver = "basename $(readlink /sys/class/net/eth0/device/driver)";
    assert_eq!(guest.sh(driver)?, "e1000\n");
    guest.sh("touch /tmp/here")?;
    guest.reset()?;
    assert_eq!(guest.sh(driver)?, "e1000\n");
    guest.sh("test ! -e /tmp/here")?;
    Ok(())
}

/// The same for the network: a TAP in a namespace, pings, and data both ways.
#[test]
fn the_fixture_moves_data_both_ways() -> Result<()> {
    require!(Qemu, Tap);
    let netns = Netns::new()?;
    netns.ip("tuntap add tap0 mode tap")?;
    netns.ip("addr add 198.18.0.1/30 dev tap0")?;
    netns.ip("link set tap0 up")?;
    let listener = netns.inside(|| Ok(TcpListener::bind("198.18.0.1:0")?))?;
    let builder = Guest::builder()
        .arg("-netdev")
        .arg("tap,id=net,ifname=tap0,script=no,downscript=no")
        .arg("-device")
        .arg("e1000,netdev=net");
    let mut guest = netns.inside(|| builder.boot())?;
    let device = traffic::pci_line(&mut guest, "eth0")?;
    assert!(
        device.ends_with("class 020000 8086:100e driver e1000"),
        "{device}"
    );
    traffic::configure(&mut guest, "eth0", "198.18.0.2/30")?;
    traffic::ping(&mut guest, "198.18.0.1".parse()?, 3)?;
    let link = guest.sh("ethtool eth0")?;
    assert!(link.contains("Speed: 1000Mb/s"), "{link}");
    traffic::to_host(&mut guest, &listener, 4)?;
    traffic::to_guest(&mut guest, &listener, 4)?;
    Ok(())
}

/// The same for a station that the test plays.
#[test]
fn the_fixture_echoes_frames_of_every_length() -> Result<()> {
    require!(Qemu);
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("wire.sock");
    let listener = UnixListener::bind(&path)?;
    let mut guest = Guest::builder()
        .arg("-netdev")
        .arg(format!(
            "stream,id=net,server=off,addr.type=unix,addr.path={}",
            path.display()
        ))
        .arg("-device")
        .arg("e1000,netdev=net")
        .boot()?;
    Peer::accept(&listener)?.echo(&mut guest, "eth0", FRAME_LENGTHS)
}
