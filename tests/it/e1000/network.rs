//! Networks that are more than a cable: frames of any size, VLANs, and load.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::{Device, Guest, Image, command, require};

use super::wired::{HOST, Wired, statistics};

#[test]
fn frames_of_every_size_that_the_driver_allows_pass() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    // The driver has its own way with frames of up to 1500 bytes, and buffers of 4, 8 and 16 KiB for others; 16110 is its
    // limit. Small ones come last, because both kernels remember for a while that a path was narrow.
    for mtu in [1500, 1501, 2000, 4000, 8100, 9000, 16110, 576, 68] {
        wired.netns.ip(&format!("link set vfu0 mtu {mtu}"))?;
        wired.works_after(&format!("ip link set eth0 mtu {mtu}"))?;
        let before = statistics(&mut wired.guest)?;
        let output = wired
            .guest
            .sh(&format!("ping -c 5 -i 0.1 -W 5 -s {} {HOST}", mtu - 28))?;
        ensure!(output.contains(" 0% packet loss"), "{mtu}: {output}");
        let after = statistics(&mut wired.guest)?;
        for (direction, tag) in [("tx_bytes", "tx_packets"), ("rx_bytes", "rx_packets")] {
            let bytes = after[direction] - before[direction];
            let frames = after[tag] - before[tag];
            // Nothing was cut into pieces; a frame or two of ARP may come between.
            ensure!(
                bytes >= 5 * (mtu + 18) && (5..=10).contains(&frames),
                "{mtu}: {frames} frames with {bytes} bytes"
            );
        }
    }
    let (status, refused) = wired
        .guest
        .sh_status("ip link set eth0 mtu 16111", Duration::from_secs(10))?;
    ensure!(status != 0, "{refused}");
    wired.netns.ip("link set vfu0 mtu 1500")?;
    wired.works_after("ip link set eth0 mtu 1500")?;
    Ok(())
}

/// Two cards at one cable, each in a network of its own: the guest is at both ends, because not every host's kernel has
/// VLANs.
#[test]
fn a_vlan_spans_two_cards() -> Result<()> {
    require!(Qemu);
    let dir = Device::dir()?;
    let cable = dir.path().join("cable.sock");
    let card = |mode: &str, last: u8| -> Result<Device> {
        let config = json!({
            "mac": format!("52:54:00:12:34:{last:02x}"),
            "net": {"stream": {"path": cable, "mode": mode}},
        });
        Device::start(Device::dir()?, "e1000", &config.to_string())
    };
    let (near, far) = (card("listen", 1)?, card("connect", 2)?);
    let mut guest = Guest::builder()
        .nic(near.socket())
        .nic(far.socket())
        .boot()?;
    guest.sh(
        "mkfifo /tmp/quiet
         unshare -n sleep 100000 & echo $! >/tmp/far
         for try in $(seq 100); do
             test $(readlink /proc/$(cat /tmp/far)/ns/net) != $(readlink /proc/self/ns/net) && break; usleep 50000
         done
         /bin/ip link set eth1 netns $(cat /tmp/far)
         far() { nsenter -t $(cat /tmp/far) -n \"$@\"; }
         plug() {
             $1 ip link set $2 up && $1 ip link add link $2 name vlan type vlan id 5 &&
             $1 ip addr add 198.18.5.$3/30 dev vlan && $1 ip link set vlan up
         }
         plug '' eth0 1 && plug far eth1 2 && for try in $(seq 100); do
             test $(cat /sys/class/net/vlan/operstate) = up && ping -c 1 -W 1 198.18.5.2 && break; usleep 50000
         done",
    )?;
    // The cards insert and strip the tags; then one of the kernels does, then both, then the cards again.
    for (near, far) in [("on", "on"), ("off", "on"), ("off", "off"), ("on", "on")] {
        guest
            .sh(&format!(
                "set -e
                 far() {{ nsenter -t $(cat /tmp/far) -n \"$@\"; }}
                 ethtool -K eth0 rxvlan {near}; far ethtool -K eth1 rxvlan {far}
                 ping -c 3 -i 0.1 -W 5 198.18.5.2 | grep ' 0% packet loss'
                 dd if=/dev/urandom of=/tmp/sent bs=1M count=1
                 far nc -l -p 5000 <>/tmp/quiet >/tmp/there &
                 usleep 300000; nc 198.18.5.2 5000 </tmp/sent; wait $!; cmp /tmp/sent /tmp/there
                 nc -l -p 5000 <>/tmp/quiet >/tmp/back &
                 usleep 300000; far nc 198.18.5.1 5000 </tmp/sent; wait $!; cmp /tmp/sent /tmp/back"
            ))
            .with_context(|| format!("tags by the card: {near} here, {far} there"))?;
    }
    Ok(())
}

#[test]
fn iperf3_loads_the_card_both_ways() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    for (options, is_tcp) in [
        ("", true),
        ("--reverse", true),
        ("--udp --bitrate 2M", false),
        ("--udp --bitrate 2M --reverse", false),
    ] {
        let report = iperf3(&mut wired, options)?;
        let sum = |name: &str, field: &str| {
            report["end"][name][field]
                .as_f64()
                .with_context(|| format!("iperf3 {options}: no {name}.{field} in {report:#}"))
        };
        if is_tcp {
            let bytes = sum("sum_received", "bytes")?;
            ensure!(bytes > 1e6, "iperf3 {options}: {bytes} bytes arrived");
        } else {
            let (packets, lost) = (sum("sum", "packets")?, sum("sum", "lost_percent")?);
            // What a busy machine loses of it is not the card's doing.
            ensure!(
                packets > 50.0 && lost < 50.0,
                "iperf3 {options}: {lost} % of {packets} packets are lost"
            );
        }
        wired.works()?;
    }
    Ok(())
}

/// Two seconds of it, from the guest unless the options say otherwise; its report.
fn iperf3(wired: &mut Wired, options: &str) -> Result<Value> {
    let image = Image::find()?.context("no image")?;
    let [program, args @ ..] = image.program("usr/bin/iperf3");
    let mut server = wired
        .netns
        .command(program.to_str().context("a path")?)
        .args(args)
        .args(["--server", "--one-off", "--idle-timeout", "60"])
        .stdout(Stdio::null())
        .spawn()
        .context("start iperf3")?;
    let listening = command::wait_for("iperf3 to listen", Duration::from_secs(10), || {
        let sockets = wired
            .netns
            .inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
        // Port 5201, state LISTEN.
        Ok(sockets
            .lines()
            .any(|line| line.contains(":1451 ") && line.contains(" 0A "))
            .then_some(()))
    });
    let report = listening.and_then(|()| {
        wired
            .guest
            .sh(&format!("iperf3 --client {HOST} --time 2 --json {options}"))
    });
    // It has served its one client; if it has not, there is nothing to wait for.
    server.kill()?;
    server.wait()?;
    serde_json::from_str(&report?).context("iperf3's report")
}
