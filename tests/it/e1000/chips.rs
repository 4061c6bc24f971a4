//! The other members of the family, which the same driver uses by other ways, and how often each interrupts.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::{require, traffic};

use super::{
    ethtool::passes_all_five,
    wired::{HOST, Wired},
};

fn is_used_and_passes(chip: &str, id: &str) -> Result<Wired> {
    let mut wired = Wired::boot(json!({"chip": chip}))?;
    let pci = traffic::pci_line(&mut wired.guest, "eth0")?;
    ensure!(
        pci.ends_with(&format!("class 020000 8086:{id} driver e1000")),
        "{pci}"
    );
    wired.works()?;
    passes_all_five(&mut wired)?;
    Ok(wired)
}

/// Linux reaches the EEPROM and the PHY of this one pin by pin.
#[test]
fn linux_uses_an_82543gc() -> Result<()> {
    require!(Qemu, Tap);
    is_used_and_passes("82543gc", "1004").map(|_| ())
}

/// The driver lets nobody tell the smaller chips how long to wait with an interrupt.
#[test]
fn linux_uses_an_82545em_and_its_interrupts_are_throttled() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = is_used_and_passes("82545em", "100f")?;
    for usecs in [0, 1, 3, 4, 10, 100, 10_000] {
        wired.guest.sh(&format!(
            "ethtool -C eth0 rx-usecs {usecs} && ethtool -c eth0 | grep -x 'rx-usecs:[[:space:]]*{usecs}'"
        ))?;
        // The smallest ones choose a way of the driver's own to find a rate.
        throttled(&mut wired, (usecs > 4).then(|| 1_000_000 / usecs))
            .with_context(|| format!("{usecs} us"))?;
    }
    Ok(())
}

#[test]
fn an_82540em_interrupts_as_the_drivers_parameters_say() -> Result<()> {
    require!(Qemu, Tap);
    let mut wired = Wired::boot(json!({}))?;
    for (parameters, rate) in [
        ("InterruptThrottleRate=0", None),
        ("InterruptThrottleRate=1", None),
        ("InterruptThrottleRate=3", None),
        ("InterruptThrottleRate=100", Some(100)),
        (
            "InterruptThrottleRate=0 RxIntDelay=200 RxAbsIntDelay=800 TxIntDelay=200 TxAbsIntDelay=800",
            None,
        ),
        (
            "InterruptThrottleRate=0 RxIntDelay=0 RxAbsIntDelay=0 TxIntDelay=0 TxAbsIntDelay=0",
            None,
        ),
    ] {
        wired.reload(parameters)?;
        throttled(&mut wired, rate).with_context(|| parameters.to_owned())?;
    }
    Ok(())
}

/// Checks that the card works, and that it interrupts no more often than this per second.
fn throttled(wired: &mut Wired, rate: Option<u64>) -> Result<()> {
    let (before, started) = interrupts(wired)?;
    // Twice as many are asked for as any limit here allows, each with a frame sent and one received. A guest that the
    // host lets wait finds more answers at once than its ping has room for, and tries again.
    let pings = format!(
        "for i in 1 2 3; do ping -c 500 -i 0.002 -W 5 {HOST} | grep ' 0% packet loss' && exit 0; done; exit 1"
    );
    wired.guest.sh(&pings)?;
    let (after, ended) = interrupts(wired)?;
    wired.works()?;
    let (count, seconds) = (after - before, ended - started);
    ensure!(count > 0, "it works without interrupts");
    if let Some(rate) = rate {
        // The clock of the guest and that of the device are two, and the first interrupts wait for nobody.
        let most = (rate as f64 * (seconds + 0.1) * 1.1).ceil();
        ensure!(
            (count as f64) <= most + 10.0,
            "{count} interrupts in {seconds} s, at {rate} per second"
        );
    }
    Ok(())
}

/// How often the card has interrupted, and when that was asked.
fn interrupts(wired: &mut Wired) -> Result<(u64, f64)> {
    let shown = wired
        .guest
        .sh("grep eth0 /proc/interrupts; cut -d ' ' -f 1 /proc/uptime")?;
    let (line, uptime) = shown.trim().split_once('\n').context("two lines")?;
    let count = line.split_whitespace().nth(1).context("a count")?;
    Ok((count.parse()?, uptime.parse()?))
}
