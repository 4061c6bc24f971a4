//! A real VMM with a Linux guest.

use anyhow::Result;
use tests::{Guest, require};

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
