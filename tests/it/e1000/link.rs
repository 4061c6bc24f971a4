//! Links that go down and up, and drivers that come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::{Agent, Guest, require, traffic};

use super::{
    GUEST, HOST, Tap, wait_state,
    wired::{DRIVER, Wired},
};

/// A hundred looks, of ten milliseconds each: so much longer than a second as the machine is slow.
fn seen_within_a_second(carrier: u8) -> String {
    format!(
        "for look in $(seq 100); do
             test $(cat /sys/class/net/eth0/carrier) = {carrier} && exit 0; usleep 10000
         done
         exit 1"
    )
}

#[test]
fn a_cable_that_the_host_pulls_is_seen_within_a_second() -> Result<()> {
    require!(Qemu, Tap);
    let agent = Agent::start()?;
    let tap = Tap::create(&agent, "nic0", HOST)?;
    let mut guest = Guest::builder().nic(agent.device_socket("nic0")).boot()?;
    traffic::configure(&mut guest, "eth0", GUEST)?;
    for round in 0..5 {
        agent.ctl_ok("update nic0 --set link=down")?;
        guest
            .sh(&seen_within_a_second(0))
            .with_context(|| format!("the cable is out, round {round}"))?;
        let (status, output) =
            guest.sh_status(&format!("ping -c 1 -W 1 {HOST}"), Duration::from_secs(20))?;
        ensure!(status != 0, "without a cable: {output}");
        agent.ctl_ok("update nic0 --set link=up")?;
        guest
            .sh(&seen_within_a_second(1))
            .with_context(|| format!("the cable is in, round {round}"))?;
        tap.ping(&mut guest)?;
    }
    let link = guest.sh("ethtool eth0")?;
    ensure!(link.contains("Speed: 1000Mb/s"), "{link}");
    tap.transfer_both_ways(&mut guest, 1)?;
    guest.quit()?;
    wait_state(&agent, "nic0", "READY")?;
    agent.ctl_ok("delete nic0")?;
    agent.stop()
}

#[test]
fn the_card_works_after_a_hundred_times_down_and_up() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    for _ in 0..10 {
        wired.works_after(
            "for i in $(seq 10); do ip link set eth0 down && ip link set eth0 up || exit 1; done",
        )?;
    }
    Ok(())
}

#[test]
fn the_card_works_after_twenty_loads_of_its_driver() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    for count in 1..=20 {
        if count % 5 == 0 {
            wired.reload("")?;
            wired.works()?;
        } else {
            // Used, and taken away while it is up.
            wired.guest.sh(&format!(
                "rmmod e1000 && insmod {DRIVER} && ip link set eth0 up"
            ))?;
        }
    }
    Ok(())
}
