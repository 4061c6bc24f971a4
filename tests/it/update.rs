//! A living device is told through its control socket to be another one, as an agent does it.

use serde_json::json;
use tests::{Device, command};
use vfio_user::{MigrationState as State, client::Client};

use crate::{
    control::Control,
    device::wait_idle,
    driver::{Driver, LIMIT, Registers},
    migration::drive,
};

const LSC: u32 = 0x4;

/// A driver that is interrupted when its link comes or goes.
fn watch(device: &Device) -> Driver<Client> {
    let mut driver = drive(device);
    // That it came when the driver set it up is no news.
    driver.read(0xc0);
    driver.write(0xd0, LSC);
    driver
}

/// Whether there is a link, as the driver reads it in Device Status.
pub(crate) fn has_link<C: Registers>(driver: &mut Driver<C>) -> bool {
    driver.read(0x8) & 2 != 0
}

#[test]
fn a_link_is_told_with_and_without_a_client_and_outlives_both() {
    let (device, control) = Control::e1000();
    assert_eq!(control.update(&json!({"link": "down"})), Ok(()));
    let mut driver = watch(&device);
    assert!(!has_link(&mut driver), "pulled before anybody looked");
    assert_eq!(control.update(&json!({"link": "up"})), Ok(()));
    assert_eq!(driver.wait_interrupt(), LSC);
    assert!(has_link(&mut driver));

    assert_eq!(control.update(&json!({"link": "down"})), Ok(()));
    assert_eq!(driver.wait_interrupt(), LSC);
    assert_eq!(control.update(&json!({"link": "down"})), Ok(()));
    assert_eq!(driver.read(0xc0), 0, "that was known");
    driver.client.reset().unwrap();
    // CTRL: set link up.
    driver.write(0x0, 0x40);
    assert!(!has_link(&mut driver), "a reset plugs nothing in");
    control.ask("reset").unwrap();
    driver.write(0x0, 0x40);
    assert!(!has_link(&mut driver));
    drop(driver);
    assert!(!has_link(&mut drive(&device)), "nor does another client");
}

#[test]
fn a_device_that_dozes_hears_of_its_link() {
    let (device, control) = Control::e1000();
    let mut driver = watch(&device);
    for _ in 0..200 {
        driver.read(0x8);
    }
    wait_idle(&device);
    assert_eq!(control.update(&json!({"link": "down"})), Ok(()));
    assert_eq!(driver.wait_interrupt(), LSC);
}

#[test]
fn what_can_not_change_is_named_and_leaves_the_device_as_it_was() {
    let (device, control) = Control::e1000();
    let mut driver = drive(&device);
    for (config, field, cure) in [
        (
            json!({"link": "down", "mac": "52:54:00:12:34:56"}),
            Some("mac"),
            "create it anew",
        ),
        (
            json!({"link": "down", "net": {"loopback": {}}}),
            Some("net.null"),
            "create it anew",
        ),
        (json!({"link": "sideways"}), Some("link"), "`up` or `down`"),
        (json!(["link"]), None, "JSON object"),
    ] {
        let (named, why) = control.update(&config).unwrap_err();
        assert_eq!(named.as_deref(), field, "{config}");
        assert!(why.contains(cure), "{config}: {why}");
        assert!(has_link(&mut driver), "{config}");
    }
    let large = json!({"mac": "x".repeat(64 << 10)});
    let (named, _) = control.update(&large).unwrap_err();
    assert_eq!(named.as_deref(), Some("mac"), "it was read whole");
}

#[test]
fn a_stopped_device_tells_of_its_link_when_it_goes_on() {
    let (device, control) = Control::e1000();
    let mut driver = watch(&device);
    driver.client.set_migration_state(State::STOP).unwrap();
    assert_eq!(control.update(&json!({"link": "down"})), Ok(()));
    assert!(driver.interrupt.read().is_err());
    driver.client.set_migration_state(State::RUNNING).unwrap();
    let told = command::wait_for("the interrupt", LIMIT, || Ok(driver.interrupt.read().ok()));
    told.unwrap();
    assert_eq!(driver.read(0xc0), LSC);
    assert!(!has_link(&mut driver));
}
