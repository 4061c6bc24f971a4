//! The PHY behind MDIC, and the link that it makes.

use serde_json::json;

use super::*;

fn mdi_read(driver: &mut Driver, register: u32) -> u16 {
    driver.write(MDIC, 0x0820_0000 | register << 16);
    let answer = driver.read(MDIC);
    assert_eq!(answer & 0x5000_0000, 0x1000_0000, "ready, no error");
    answer as u16
}

fn mdi_write(driver: &mut Driver, register: u32, value: u16) {
    driver.write(MDIC, 0x0420_0000 | register << 16 | u32::from(value));
}

#[test]
fn the_phy_has_negotiated_a_gigabit() {
    let mut driver = Driver::new();
    assert_eq!(mdi_read(&mut driver, 0), 0x1140);
    assert_eq!(mdi_read(&mut driver, 1), 0x796d);
    assert_eq!(mdi_read(&mut driver, 2), 0x0141);
    assert_eq!(mdi_read(&mut driver, 3) & 0xfff0, 0x0c20);
    assert_eq!(mdi_read(&mut driver, 5), 0x41e1);
    assert_eq!(mdi_read(&mut driver, 10), 0x3800);
    assert_eq!(mdi_read(&mut driver, 17), 0xac00);
}

#[test]
fn only_phy_1_answers() {
    let mut driver = Driver::new();
    driver.write(MDIC, 0x0840_0000);
    assert_eq!(driver.read(MDIC) >> 28, 5, "ready and error");
}

#[test]
fn mdio_interrupts_when_asked_to() {
    let mut driver = Driver::new();
    driver.write(MDIC, 0x0821_0000);
    assert_eq!(driver.read(ICR), 0);
    driver.write(MDIC, 0x2821_0000);
    assert_eq!(driver.read(ICR), 0x200);
}

#[test]
fn the_link_comes_with_slu_and_goes_with_the_phys_power() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(STATUS) & 2, 0);
    driver.set_link_up();
    assert_eq!(
        driver.read(STATUS) & 0x3c3,
        0x283,
        "up, full duplex, 1000 Mb/s"
    );
    assert_eq!(driver.read(ICR), LSC);
    mdi_write(&mut driver, 0, 0x1940);
    assert_eq!(driver.read(STATUS) & 2, 0);
    assert_eq!(driver.read(ICR), LSC);
    mdi_write(&mut driver, 0, 0x1140);
    assert_eq!(driver.read(STATUS) & 2, 2);
    assert_eq!(driver.read(ICR), LSC);
    assert_eq!(mdi_read(&mut driver, 1) & 4, 0, "the loss is latched");
    assert_eq!(mdi_read(&mut driver, 1) & 4, 4);
}

#[test]
fn a_pulled_cable_is_a_lost_link() {
    let mut driver = Driver::receiving(8, 0);
    driver.read(ICR);
    driver.write(IMS, LSC);
    driver.wire.arrive(&frame(MAC, 60));
    driver
        .guest
        .with_device(|device, bus| device.set_link(bus, Link::Down));
    assert!(driver.guest.interrupted());
    assert_eq!(driver.read(STATUS) & 2, 0);
    assert_eq!(driver.read(ICR), LSC);
    assert_eq!(
        mdi_read(&mut driver, 1) & 0x24,
        0,
        "no link, nothing agreed"
    );
    assert_eq!(mdi_read(&mut driver, 17) & 0x0400, 0);
    driver.guest.run_until_idle();
    assert!(driver.wire.state().arriving.is_empty(), "lost");
    assert_eq!(driver.read(RDH), 0);
    driver
        .guest
        .with_device(|device, bus| device.set_link(bus, Link::Down));
    assert_eq!(driver.read(ICR), 0, "nothing has changed");
    driver.guest.reset();
    driver.set_link_up();
    assert_eq!(driver.read(STATUS) & 2, 0, "a reset plugs no cable in");
    driver
        .guest
        .with_device(|device, bus| device.set_link(bus, Link::Up));
    assert_eq!(driver.read(ICR), LSC);
    assert_eq!(driver.read(STATUS) & 2, 2);
}

#[test]
fn a_new_configuration_pulls_the_cable_and_plugs_it_in() {
    let mut driver = Driver::receiving(8, 0);
    driver.read(ICR);
    driver.write(IMS, LSC);
    driver.guest.update(&json!({"link": "up"})).unwrap();
    assert_eq!(driver.read(ICR), 0, "it is in");
    driver.guest.update(&json!({"link": "down"})).unwrap();
    assert!(driver.guest.interrupted());
    assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (0, LSC));
    driver.guest.update(&json!({})).unwrap();
    assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (2, LSC));
}

#[test]
fn a_device_that_is_stopped_tells_of_its_cable_when_it_goes_on() {
    let mut driver = Driver::receiving(8, 0);
    driver.read(ICR);
    driver.write(IMS, LSC);
    driver.guest.set_running(false);
    driver.guest.update(&json!({"link": "down"})).unwrap();
    assert!(!driver.guest.interrupted());
    driver.guest.set_running(true);
    assert!(driver.guest.interrupted());
    assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (0, LSC));
}

#[test]
fn negotiating_anew_is_a_link_change() {
    let mut driver = Driver::new();
    driver.set_link_up();
    driver.read(ICR);
    mdi_write(&mut driver, 0, 0x1340);
    assert_eq!(driver.read(ICR), LSC);
    assert_eq!(mdi_read(&mut driver, 0), 0x1140, "restart clears itself");
    assert_eq!(mdi_read(&mut driver, 1) & 0x20, 0x20);
}

#[test]
fn a_phy_reset_restores_its_registers() {
    let mut driver = Driver::new();
    mdi_write(&mut driver, 16, 0x1234);
    driver.set(CTRL, 0x8000_0000);
    assert_eq!(driver.read(CTRL) >> 31, 0);
    assert_eq!(mdi_read(&mut driver, 16), 0x0068);
}

#[test]
fn a_global_reset_keeps_the_phy() {
    let mut driver = Driver::new();
    mdi_write(&mut driver, 16, 0x1234);
    driver.write(CTRL, 0x0400_0000);
    assert_eq!(mdi_read(&mut driver, 16), 0x1234);
    driver.guest.reset();
    assert_eq!(mdi_read(&mut driver, 16), 0x0068);
}
