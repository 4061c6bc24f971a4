//! Links that go down and up, and drivers that come and go.

use anyhow::Result;
use serde_json::json;
use tests::require;

use super::wired::{DRIVER, Wired};

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
