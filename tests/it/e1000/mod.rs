//! The main job: a Linux guest whose stock driver uses an e1000 that vfuctl created. The modules beside this one ask more
//! of drivers, each of a card that is served without an agent.

mod boot;
mod chips;
mod dpdk;
mod ethtool;
mod filters;
mod link;
mod network;
mod wired;

use std::{
    net::{IpAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tests::{
    Agent, Guest, Netns, command,
    peer::{FRAME_LENGTHS, Peer},
    require, traffic,
};

const HOST: &str = "198.18.0.1";
const GUEST: &str = "198.18.0.2/30";

/// An e1000 whose TAP lies in a namespace of its own.
struct Tap {
    netns: Netns,
    host: IpAddr,
}

impl Tap {
    fn create(agent: &Agent, id: &str, host: &str) -> Result<Self> {
        let netns = Netns::new()?;
        let path = netns.path();
        agent.ctl_ok(&format!(
            "create e1000 {id} --net.tap.ifname vfu0 --net.tap.netns {}",
            path.display()
        ))?;
        netns.ip(&format!("addr add {host}/30 dev vfu0"))?;
        Ok(Self {
            netns,
            host: host.parse()?,
        })
    }

    fn ping(&self, guest: &mut Guest) -> Result<()> {
        let summary = traffic::ping(guest, self.host, 3)?;
        ensure!(summary.contains(" 0% packet loss"), "{summary}");
        Ok(())
    }

    fn transfer_both_ways(&self, guest: &mut Guest, mebibytes: u32) -> Result<()> {
        let listener = self
            .netns
            .inside(|| Ok(TcpListener::bind((self.host, 0))?))?;
        traffic::to_host(guest, &listener, mebibytes)?;
        traffic::to_guest(guest, &listener, mebibytes)?;
        Ok(())
    }
}

fn state(agent: &Agent, id: &str) -> Result<String> {
    let device: serde_json::Value =
        serde_json::from_str(&agent.ctl_ok(&format!("get {id} -o json"))?)?;
    Ok(device["status"]["state"]
        .as_str()
        .context("state")?
        .to_owned())
}

fn wait_state(agent: &Agent, id: &str, wanted: &str) -> Result<()> {
    command::wait_for(
        &format!("{id} to be {wanted}"),
        Duration::from_secs(10),
        || Ok((state(agent, id)? == wanted).then_some(())),
    )
}

fn nothing_is_left(agent: &Agent, id: &str) -> Result<()> {
    ensure!(
        !agent.device_dir(id).exists(),
        "the device's directory is left"
    );
    ensure!(
        agent.device_processes()?.is_empty(),
        "a device process is left"
    );
    Ok(())
}

#[test]
fn a_linux_guest_uses_a_device_that_vfuctl_created() -> Result<()> {
    require!(Qemu, Tap);
    let agent = Agent::start()?;
    let tap = Tap::create(&agent, "demo0", HOST)?;
    assert_eq!(state(&agent, "demo0")?, "READY");

    let mut guest = Guest::builder().nic(agent.device_socket("demo0")).boot()?;
    wait_state(&agent, "demo0", "CONNECTED")?;
    let pci = traffic::pci_line(&mut guest, "eth0")?;
    assert!(
        pci.ends_with("class 020000 8086:100e driver e1000"),
        "{pci}"
    );
    traffic::configure(&mut guest, "eth0", GUEST)?;
    let link = guest.sh("ethtool eth0")?;
    assert!(
        link.contains("Speed: 1000Mb/s") && link.contains("Link detected: yes"),
        "{link}"
    );
    tap.ping(&mut guest)?;
    tap.transfer_both_ways(&mut guest, 16)?;

    // A guest's reboot resets the device and the new kernel finds it as new.
    guest.reset()?;
    traffic::configure(&mut guest, "eth0", GUEST)?;
    tap.ping(&mut guest)?;
    tap.transfer_both_ways(&mut guest, 1)?;

    // A device in use is not deleted from under its VMM.
    let refused = agent.ctl(["delete", "demo0"])?;
    assert_eq!(refused.status.code(), Some(5), "{}", refused.stderr);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);

    // A VMM that is killed leaves the device to the next one.
    guest.kill()?;
    wait_state(&agent, "demo0", "READY")?;
    let mut guest = Guest::builder()
        .machine("pc")
        .nic(agent.device_socket("demo0"))
        .boot()?;
    traffic::configure(&mut guest, "eth0", GUEST)?;
    tap.ping(&mut guest)?;
    tap.transfer_both_ways(&mut guest, 1)?;
    guest.quit()?;

    wait_state(&agent, "demo0", "READY")?;
    agent.ctl_ok("delete demo0")?;
    nothing_is_left(&agent, "demo0")?;
    assert!(!tap.netns.ip("link")?.contains("vfu0"), "the TAP is left");
    agent.stop()
}

#[test]
fn two_devices_in_one_guest() -> Result<()> {
    require!(Qemu, Tap);
    let agent = Agent::start()?;
    let first = Tap::create(&agent, "nic0", HOST)?;
    let second = Tap::create(&agent, "nic1", "198.18.1.1")?;
    let mut guest = Guest::builder()
        .nic(agent.device_socket("nic0"))
        .nic(agent.device_socket("nic1"))
        .boot()?;
    traffic::configure(&mut guest, "eth0", GUEST)?;
    traffic::configure(&mut guest, "eth1", "198.18.1.2/30")?;
    for tap in [&first, &second, &first] {
        tap.ping(&mut guest)?;
    }
    first.transfer_both_ways(&mut guest, 1)?;
    second.transfer_both_ways(&mut guest, 1)?;
    guest.quit()?;
    wait_state(&agent, "nic0", "READY")?;
    wait_state(&agent, "nic1", "READY")?;
    agent.ctl_ok("delete nic0 nic1")?;
    nothing_is_left(&agent, "nic0")?;
    agent.stop()
}

/// The test is the other end of the cable: it sends an echo request in a frame of every length and compares the reply.
#[test]
fn frames_of_every_length_pass_a_guest_byte_by_byte() -> Result<()> {
    require!(Qemu);
    let agent = Agent::start()?;
    let path = agent.dir().join("peer.sock");
    let listener = UnixListener::bind(&path)?;
    agent.ctl_ok(&format!(
        "create e1000 nic0 --mac 52:54:00:12:34:56 --net.stream.path {} --net.stream.mode connect",
        path.display()
    ))?;
    let mut peer = Peer::accept(&listener)?;
    let mut guest = Guest::builder().nic(agent.device_socket("nic0")).boot()?;
    peer.echo(&mut guest, "eth0", FRAME_LENGTHS)?;
    guest.quit()?;
    wait_state(&agent, "nic0", "READY")?;
    agent.ctl_ok("delete nic0")?;
    nothing_is_left(&agent, "nic0")?;
    agent.stop()
}

/// A vfio-user socket that QEMU finds by what vfuctl prints.
#[test]
fn the_printed_command_line_is_the_one_that_boots() -> Result<()> {
    require!(Qemu);
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let line = agent.ctl_ok("cmdline nic0 --vmm qemu")?;
    let socket = agent.device_socket("nic0");
    assert!(
        line.contains("share=on") && line.contains(path(&socket)),
        "{line}"
    );
    let words: Vec<String> =
        serde_json::from_str(&agent.ctl_ok("cmdline nic0 --vmm qemu -o json")?)?;
    let device = words
        .iter()
        .position(|word| word == "-device")
        .context("-device")?;
    let mut guest = Guest::builder()
        .arg("-device")
        .arg(&words[device + 1])
        .boot()?;
    assert!(traffic::pci_line(&mut guest, "eth0")?.contains("8086:100e"));
    Ok(())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
