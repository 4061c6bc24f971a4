//! `cargo xtask demo`: the main job from end to end, each step shown as it goes.

use std::fmt::Display;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::command::{self, run as run_command};
use tests::{Agent, Guest, require, traffic};

use crate::{cargo, setup, step};

const ID: &str = "demo0";
const MEBIBYTES: u32 = 16;
/// How long what was ended may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run() -> Result<()> {
    if !require::is_root() {
        bail!(
            "the demo needs root: vfu-device makes a TAP device, and the demo gives it an address on this host \
             (ip addr add). Run it as root; without root `cargo xtask test` does what it can"
        );
    }
    let show = Show {
        started: Instant::now(),
    };
    show.step("set-up: QEMU, guest, programs of the host");
    setup::run()?;
    show.step("cargo build --release");
    step(cargo()?.args([
        "build",
        "--release",
        "-p",
        "agent",
        "-p",
        "ctl",
        "-p",
        "process",
    ]))?;
    // This program is target/debug/xtask.
    let here = std::env::current_exe()?;
    let programs = here
        .ancestors()
        .nth(2)
        .context("cargo's target folder")?
        .join("release");

    crate::stop_by_signal()?;
    let tap = format!("vfu{}", std::process::id());
    let outcome = main_job(&show, &programs, &tap);
    // Whatever happened, by now every fixture has been dropped.
    let clean = tap_is_gone(&tap);
    outcome?;
    clean?;
    show.step("done");
    Ok(())
}

fn main_job(show: &Show, programs: &Path, tap: &str) -> Result<()> {
    show.step("start vfu-agent");
    let agent = Agent::start_from(programs)?;
    show.result(agent.endpoint());
    let ctl = |args: &str| -> Result<()> {
        show.step(format_args!("vfuctl {args}"));
        show.result(agent.ctl_ok(args)?);
        Ok(())
    };
    ctl(&format!("create e1000 {ID} --net.tap.ifname {tap}"))?;
    let [host, guest_address] = free_subnet()?;
    show.step(format_args!("ip addr add {host}/30 dev {tap}"));
    run_command(Command::new("ip").args(["addr", "add", &format!("{host}/30"), "dev", tap]))?;
    run_command(Command::new("ip").args(["link", "set", tap, "up"]))?;
    let listener = TcpListener::bind((host, 0)).with_context(|| format!("listen on {host}"))?;

    let socket = agent.device_socket(ID);
    show.step(format_args!(
        "boot Linux in QEMU, its only NIC is vfio-user-pci on {}",
        socket.display()
    ));
    let mut guest = Guest::builder().nic(&socket).boot()?;
    show.result(guest.sh("uname -sr")?);
    in_the_guest(show, &mut guest, host, guest_address, &listener)?;
    ctl(&format!("get {ID}"))?;

    show.step("quit QEMU");
    guest.quit()?;
    command::wait_for("the device to see its client gone", GONE_LIMIT, || {
        Ok(agent
            .ctl_ok(&format!("get {ID}"))?
            .contains("READY")
            .then_some(()))
    })?;
    ctl(&format!("delete {ID}"))?;
    nothing_is_left(show, agent, tap)
}

/// What the guest sees and does.
fn in_the_guest(
    show: &Show,
    guest: &mut Guest,
    host: Ipv4Addr,
    address: Ipv4Addr,
    listener: &TcpListener,
) -> Result<()> {
    show.step("guest: the PCI device and its driver");
    let device = traffic::pci_line(guest, "eth0")?;
    show.result(&device);
    ensure!(
        device.contains("8086:100e driver e1000"),
        "not an e1000: {device}"
    );

    show.step("guest: link");
    traffic::configure(guest, "eth0", &format!("{address}/30"))?;
    let link = guest.sh("ethtool eth0 | grep -E 'Speed|Duplex|Link detected'")?;
    show.result(&link);
    ensure!(
        link.contains("1000Mb/s") && link.contains("Full"),
        "not 1000 Mb/s full duplex: {link}"
    );

    show.step(format_args!(
        "guest: ping {host}, the host's end of the TAP"
    ));
    show.result(traffic::ping(guest, host.into(), 10)?);

    show.step(format_args!(
        "TCP, {MEBIBYTES} MiB from the guest to the host"
    ));
    show.result(transferred(&traffic::to_host(guest, listener, MEBIBYTES)?));
    show.step(format_args!(
        "TCP, {MEBIBYTES} MiB from the host to the guest"
    ));
    show.result(transferred(&traffic::to_guest(guest, listener, MEBIBYTES)?));
    Ok(())
}

fn transferred(transfer: &traffic::Transfer) -> String {
    let rate = f64::from(MEBIBYTES) / transfer.time.as_secs_f64();
    format!(
        "SHA-256 matches: {}\n{rate:.1} MiB/s (the guest's processor is emulated)",
        transfer.sha256
    )
}

/// Looks for what the demo could have left: a process, a socket, a TAP, a directory.
fn nothing_is_left(show: &Show, agent: Agent, tap: &str) -> Result<()> {
    show.step("nothing is left");
    let processes = agent.device_processes()?;
    ensure!(
        processes.is_empty(),
        "device processes are left: {processes:?}"
    );
    show.result("no device process");
    let folder = agent.device_dir(ID);
    ensure!(!folder.exists(), "{} is left", folder.display());
    show.result("no socket, no directory of the device");
    tap_is_gone(tap)?;
    show.result(format_args!("no TAP {tap}"));
    let folder = agent.dir().to_owned();
    agent.stop()?;
    ensure!(!folder.exists(), "{} is left", folder.display());
    show.result("no agent, no directory of the agent");
    Ok(())
}

fn tap_is_gone(tap: &str) -> Result<()> {
    let path = Path::new("/sys/class/net").join(tap);
    command::wait_to_the_end(&format!("the end of TAP {tap}"), GONE_LIMIT, || {
        Ok((!path.exists()).then_some(()))
    })
}

/// The two addresses of a /30 in 198.18.0.0/15, which is set aside for such use, that this host has no route to.
fn free_subnet() -> Result<[Ipv4Addr; 2]> {
    for block in 0..=u8::MAX {
        let [host, guest] = [1, 2].map(|last| Ipv4Addr::new(198, 18, block, last));
        let routes = run_command(
            Command::new("ip")
                .args(["-4", "route", "show", "table", "all", "match"])
                .arg(guest.to_string()),
        )?;
        if routes.lines().all(|route| route.starts_with("default")) {
            return Ok([host, guest]);
        }
    }
    bail!("every subnet 198.18.x.0/30 has a route on this host")
}

/// Prints steps with the time since the start, and below each what came of it.
struct Show {
    started: Instant,
}

impl Show {
    fn step(&self, name: impl Display) {
        println!("[{:6.1} s] {name}", self.started.elapsed().as_secs_f64());
    }

    fn result(&self, text: impl Display) {
        for line in text.to_string().trim_end().lines() {
            println!("           | {line}");
        }
    }
}
