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
fn a_cable_that_changes_while_the_device_is_stopped_costs_no_frame() {
    let mut driver = Driver::receiving(8, 0x0400_8018);
    for size in 60..68 {
        driver.arrive(&frame(MAC, size));
    }
    assert!(!driver.wire.state().interest.receive, "the last one waits");
    driver.guest.set_running(false);
    driver.guest.update(&json!({"link": "down"})).unwrap();
    driver.guest.update(&json!({"link": "up"})).unwrap();
    driver.guest.set_running(true);
    driver.write(RDT, 2);
    driver.guest.run_until_idle();
    // MPC, and the frame.
    assert_eq!(driver.read(0x4010), 0);
    assert_eq!(driver.received(7).data, frame(MAC, 67));
}

#[test]
fn frames_do_not_wait_for_a_cable_that_was_pulled() {
    let mut driver = Driver::receiving(8, 0x8018);
    for size in 60..68 {
        driver.arrive(&frame(MAC, size));
    }
    driver.wire.arrive(&frame(MAC, 68));
    driver.guest.update(&json!({"link": "down"})).unwrap();
    assert_eq!(driver.guest.due_in(), Some(std::time::Duration::ZERO));
    driver.guest.run_until_idle();
    let state = driver.wire.state();
    assert!(state.arriving.is_empty() && state.interest.receive);
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
fn a_global_reset_keeps_the_phy() {
    let mut driver = Driver::new();
    mdi_write(&mut driver, 16, 0x1234);
    driver.write(CTRL, 0x0400_0000);
    assert_eq!(mdi_read(&mut driver, 16), 0x1234);
    driver.guest.reset();
    assert_eq!(mdi_read(&mut driver, 16), 0x0068);
}

/// Number, value after power-on, and the bits that keep what is written (13.4.7.1.1 to 13.4.7.1.26). Control, whose bits
/// do things, is not among them.
const REGISTERS: &[(u32, u16, u16)] = &[
    (2, 0x0141, 0),
    (3, 0x0c20, 0),
    (4, 0x01e1, 0xbde0),
    (7, 0x2001, 0xb7ff),
    (8, 0, 0),
    (9, 0x1e00, 0xff00),
    (15, 0x3000, 0),
    (16, 0x0068, 0xffff),
    (18, 0, 0xffff),
    (20, 0x0d60, 0xffff),
    (21, 0, 0),
    (29, 0, 0xffff),
    (30, 0, 0xffff),
    // Not this PHY's: LEDs, fibre, pages.
    (11, 0, 0),
    (12, 0, 0),
    (13, 0, 0),
    (14, 0, 0),
    (22, 0, 0),
    (23, 0, 0),
    (24, 0, 0),
    (25, 0, 0),
    (26, 0, 0),
    (27, 0, 0),
    (28, 0, 0),
    (31, 0, 0),
];

#[test]
fn every_phy_register_has_its_value_and_keeps_what_is_not_reserved() {
    let mut driver = Driver::new();
    for &(register, value, writable) in REGISTERS {
        let read = mdi_read(&mut driver, register);
        assert_eq!(read, value, "{register}");
        for pattern in [0x5a5a, 0xa5a5, 0, 0xffff, value] {
            mdi_write(&mut driver, register, pattern);
            let expected = pattern & writable | value & !writable;
            assert_eq!(mdi_read(&mut driver, register), expected, "{register}");
        }
    }
    for register in [1, 5, 6, 10, 17] {
        let before = mdi_read(&mut driver, register);
        mdi_write(&mut driver, register, !before);
        assert_eq!(mdi_read(&mut driver, register), before, "{register}");
    }
}

#[test]
fn the_phy_has_negotiated_a_gigabit() {
    let mut driver = Driver::new();
    assert_eq!(mdi_read(&mut driver, 0), 0x1140);
    assert_eq!(mdi_read(&mut driver, 1), 0x796d);
    // Everything at 10 and 100 Mb/s, symmetric pause, acknowledged, a next page.
    assert_eq!(mdi_read(&mut driver, 5), 0xc5e1);
    assert_eq!(mdi_read(&mut driver, 6), 0x000f);
    // Master, both receivers fine, the partner does full duplex.
    assert_eq!(mdi_read(&mut driver, 10), 0x7800);
    // 1000 Mb/s, full duplex, resolved, link; no pause, since this side offers none.
    assert_eq!(mdi_read(&mut driver, 17), 0xac00);
}

#[test]
fn nobody_answers_at_other_addresses() {
    let mut driver = Driver::new();
    driver.write(MDIC, 0x0840_0000);
    assert_eq!(driver.read(MDIC), 0x5840_ffff, "ready and error");
    driver.write(MDIC, 0x0440_1140);
    assert_eq!(driver.read(MDIC), 0x1440_1140, "a write to nobody is done");
    // An operation that is none.
    driver.write(MDIC, 0x0c20_0000);
    assert_eq!(driver.read(MDIC) >> 28, 5);
    // READY and ERROR are the controller's, and bit 31 is reserved.
    driver.write(MDIC, 0xd822_0000);
    assert_eq!(driver.read(MDIC), 0x1822_0141);
}

#[test]
fn the_best_common_mode_is_the_link() {
    for (advertised, gigabit, status) in [
        (0x01e1, 0x0200, 0x8000 | 0x2000),
        (0x01e1, 0x0000, 0x4000 | 0x2000),
        // The partner has no half duplex at 1000 Mb/s.
        (0x01e1, 0x0100, 0x4000 | 0x2000),
        (0x00e1, 0x0000, 0x4000),
        (0x0061, 0x0000, 0x2000),
        (0x0021, 0x0000, 0x0000),
    ] {
        let mut driver = Driver::new();
        driver.set_up_transmit(8);
        // No FRCSPD, so that the MAC follows.
        driver.write(CTRL, 0x40);
        mdi_write(&mut driver, 4, advertised);
        mdi_write(&mut driver, 9, gigabit);
        assert_eq!(mdi_read(&mut driver, 17) & 0xec00, 0xac00, "nothing yet");
        mdi_write(&mut driver, 0, 0x1340);
        let expected = status | 0x0c00;
        assert_eq!(mdi_read(&mut driver, 17) & 0xec00, expected);
        assert_eq!(mdi_read(&mut driver, 1) & 0x20, 0x20, "complete");
        let speed = u32::from(status) >> 14;
        let duplex = u32::from(status) >> 13 & 1;
        assert_eq!(
            driver.read(STATUS) & 0x3c3,
            speed << 8 | speed << 6 | 2 | duplex
        );
    }
}

#[test]
fn without_a_common_mode_there_is_no_link() {
    let mut driver = Driver::new();
    driver.set_link_up();
    driver.read(ICR);
    mdi_read(&mut driver, 19);
    mdi_write(&mut driver, 4, 0x0001);
    mdi_write(&mut driver, 9, 0);
    mdi_write(&mut driver, 0, 0x1340);
    assert_eq!(driver.read(STATUS) & 2, 0);
    assert_eq!(driver.read(ICR), LSC);
    assert_eq!(mdi_read(&mut driver, 1) & 0x24, 0, "no link, not complete");
    assert_eq!((mdi_read(&mut driver, 5), mdi_read(&mut driver, 6)), (0, 0));
    assert_eq!(mdi_read(&mut driver, 19) & 0x8400, 0x8400);
}

#[test]
fn pause_is_what_both_offer() {
    for (offer, status) in [(0x0000, 0), (0x0400, 0xc), (0x0c00, 0xc), (0x0800, 0)] {
        let mut driver = Driver::new();
        mdi_write(&mut driver, 4, 0x01e1 | offer);
        mdi_write(&mut driver, 0, 0x1340);
        assert_eq!(mdi_read(&mut driver, 17) & 0xc, status, "{offer:#x}");
        assert_eq!(mdi_read(&mut driver, 5) & 0x0c00, 0x0400);
    }
    // There is none in half duplex.
    let mut driver = Driver::new();
    mdi_write(&mut driver, 4, 0x0421);
    mdi_write(&mut driver, 9, 0);
    mdi_write(&mut driver, 0, 0x1340);
    assert_eq!(mdi_read(&mut driver, 17) & 0xc, 0);
}

#[test]
fn a_speed_is_set_without_negotiating() {
    for (control, status) in [
        (0x2100, 0x4000 | 0x2000),
        (0x2000, 0x4000),
        (0x0100, 0x2000),
        (0x0000, 0x0000),
    ] {
        let mut driver = Driver::new();
        driver.write(CTRL, 0x40);
        // With a reset, as section 11.1.3 wants it.
        mdi_write(&mut driver, 0, 0x8000 | control);
        assert_eq!(mdi_read(&mut driver, 17) & 0xec00, status | 0x0c00);
        assert_eq!(mdi_read(&mut driver, 1), 0x7949, "the link was lost");
        assert_eq!(mdi_read(&mut driver, 1), 0x794d, "nothing was negotiated");
        assert_eq!(mdi_read(&mut driver, 5), 0);
        assert_eq!(
            driver.read(STATUS) & 0xc3,
            u32::from(status) >> 8 & 0xc0 | 2 | u32::from(status) >> 13 & 1
        );
    }
}

/// Section 13.4.7.1.1, bit 12: 1000 Mb/s is negotiated even so, and nothing else.
#[test]
fn a_gigabit_that_is_set_is_negotiated() {
    let mut driver = Driver::new();
    mdi_write(&mut driver, 9, 0);
    mdi_write(&mut driver, 0, 0x8140);
    assert_eq!(mdi_read(&mut driver, 17) & 0xec00, 0xac00);
    assert_eq!(mdi_read(&mut driver, 5), 0xc5e1);
    mdi_write(&mut driver, 0, 0x8040);
    assert_eq!(mdi_read(&mut driver, 17) & 0x0c00, 0, "not in half duplex");
}

#[test]
fn speed_and_duplex_wait_for_the_phy_to_begin_anew() {
    // A reset, a restart, power after none, and a lost link.
    for begin in [
        &[0xa100][..],
        &[0x2300],
        &[0x2900, 0x2100],
        &[0x2500, 0x2100],
    ] {
        let mut driver = Driver::new();
        mdi_write(&mut driver, 0, 0x2100);
        assert_eq!(mdi_read(&mut driver, 0), 0x2100, "it is what was written");
        assert_eq!(
            mdi_read(&mut driver, 17) & 0xec00,
            0xac00,
            "and not yet what is"
        );
        for control in begin {
            mdi_write(&mut driver, 0, *control);
        }
        assert_eq!(mdi_read(&mut driver, 17) & 0xec00, 0x6c00, "{begin:x?}");
    }
    // And a cable.
    let mut driver = Driver::new();
    mdi_write(&mut driver, 9, 0);
    for link in [Link::Down, Link::Up] {
        let set = |device: &mut Controller, bus: &mut pci::Bus<'_>| device.set_link(bus, link);
        driver.guest.with_device(set);
    }
    assert_eq!(mdi_read(&mut driver, 17) & 0xec00, 0x6c00);
}

#[test]
fn the_phys_reset_by_software_keeps_what_was_configured() {
    let mut driver = Driver::new();
    // What to write, and what is left of it; tables 13-16 to 13-50.
    let registers = [
        (4, 0xbde1, 0xbde1),
        (7, 0x0123, 0x2001),
        (9, 0xf700, 0x1700),
        (16, 0x1234, 0x1234),
        (18, 0x0001, 0x0001),
        (20, 0xffff, 0x0ff7),
        (29, 0x0005, 0x0000),
    ];
    for (register, value, _) in registers {
        mdi_write(&mut driver, register, value);
    }
    mdi_write(&mut driver, 30, 0x1234);
    mdi_write(&mut driver, 0, 0xfdc0);
    assert_eq!(
        mdi_read(&mut driver, 0),
        0x3140,
        "reset, and what was selected"
    );
    for (register, _, value) in registers {
        assert_eq!(mdi_read(&mut driver, register), value, "{register}");
    }
    mdi_write(&mut driver, 29, 5);
    assert_eq!(mdi_read(&mut driver, 30), 0);
}

#[test]
fn a_window_has_a_register_for_each_selection() {
    let mut driver = Driver::new();
    for (select, value) in [(4, 0x1111), (5, 0x2222), (31, 0x8ffc)] {
        mdi_write(&mut driver, 29, select);
        mdi_write(&mut driver, 30, value);
    }
    mdi_write(&mut driver, 29, 5);
    assert_eq!(mdi_read(&mut driver, 30), 0x2222);
    mdi_write(&mut driver, 29, 4);
    assert_eq!(mdi_read(&mut driver, 30), 0x1111);
}

/// CTRL.PHY_RST.
#[test]
fn a_phy_reset_restores_its_registers() {
    let mut driver = Driver::new();
    driver.set_link_up();
    mdi_write(&mut driver, 16, 0x1234);
    mdi_write(&mut driver, 4, 0x0de1);
    driver.read(ICR);
    driver.set(CTRL, 0x8000_0000);
    assert_eq!(driver.read(CTRL) >> 31, 1, "until software lets it go");
    assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (0, LSC));
    driver.write(MDIC, 0x0821_0000);
    assert_eq!(driver.read(MDIC) >> 28, 5, "it does not answer");
    driver.write(CTRL, 0x40);
    assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (2, LSC));
    assert_eq!(mdi_read(&mut driver, 16), 0x0068);
    assert_eq!(mdi_read(&mut driver, 4), 0x01e1);
}

#[test]
fn isolation_and_no_power_are_no_link() {
    for control in [0x1540, 0x1940] {
        let mut driver = Driver::new();
        driver.set_link_up();
        driver.read(ICR);
        mdi_write(&mut driver, 0, control);
        assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (0, LSC));
        assert_eq!(mdi_read(&mut driver, 17) & 0x0400, 0);
        mdi_write(&mut driver, 0, 0x1140);
        assert_eq!((driver.read(STATUS) & 2, driver.read(ICR)), (2, LSC));
    }
}

#[test]
fn the_phy_interrupts_for_what_it_was_asked_to() {
    let mut driver = Driver::new();
    mdi_read(&mut driver, 19);
    // GPI_EN bit 1: PHYINT_EN. Speed and duplex changes.
    driver.write(0x0018, 0x0002);
    mdi_write(&mut driver, 18, 0x6000);
    mdi_write(&mut driver, 0, 0x1340);
    assert_eq!((driver.read(ICR), driver.read(0x0018)), (0, 2));
    mdi_write(&mut driver, 0, 0xa000);
    assert_eq!((driver.read(ICR), driver.read(0x0018)), (0x1000, 0x22));
    assert_eq!(driver.read(ICR), 0);
    // Link, duplex and speed; the reset has cleared what the restart had set.
    assert_eq!(mdi_read(&mut driver, 19), 0x6400);
    assert_eq!(driver.read(0x0018), 2, "the read has ended it");
    assert_eq!(mdi_read(&mut driver, 19), 0);
    // Without PHYINT_EN there is a level and no cause.
    driver.write(0x0018, 0);
    mdi_write(&mut driver, 0, 0x9140);
    assert_eq!((driver.read(ICR), driver.read(0x0018)), (0, 0x20));
}

#[test]
fn a_page_was_received_until_it_is_read() {
    let mut driver = Driver::new();
    assert_eq!(mdi_read(&mut driver, 17) & 0x1000, 0);
    mdi_write(&mut driver, 0, 0x1340);
    assert_eq!(mdi_read(&mut driver, 17) & 0x1000, 0x1000);
    assert_eq!(mdi_read(&mut driver, 17) & 0x1000, 0);
}

/// Tables 8-6 to 8-9.
#[test]
fn the_mac_s_speed_and_duplex_are_the_phy_s_or_forced() {
    let mut driver = Driver::new();
    // The PHY: 100 Mb/s, half duplex.
    mdi_write(&mut driver, 0, 0xa000);
    for (ctrl, extended, status) in [
        // SLU alone, and with ASDE.
        (0x0000_0040, 0, 0x0142),
        (0x0000_0060, 0, 0x0142),
        (0x0000_0241, 0, 0x0142),
        // FRCSPD, FRCDPLX, and both.
        (0x0000_0a40, 0, 0x0182),
        (0x0000_0840, 0, 0x0102),
        (0x0000_1041, 0, 0x0143),
        (0x0000_1a41, 0, 0x0183),
        // SPD_BYPS.
        (0x0000_0240, 0x8000, 0x0182),
        // No SLU, no link.
        (0x0000_0a00, 0, 0x0180),
    ] {
        driver.write(CTRL, ctrl);
        driver.write(0x0018, extended);
        assert_eq!(driver.read(STATUS) & 0x3c3, status, "{ctrl:#x}");
    }
}

/// What Linux writes before it sends to itself (15.1.3.1).
#[test]
fn the_phys_loopback_returns_what_is_sent() {
    let mut driver = Driver::receiving(8, 0x8000);
    driver.set_up_transmit(8);
    mdi_write(&mut driver, 16, 0x0808);
    mdi_write(&mut driver, 0, 0x9140);
    mdi_write(&mut driver, 0, 0x8140);
    mdi_write(&mut driver, 0, 0x4140);
    driver.write(CTRL, 0x1a41);
    driver.queue_data(&frame([0xff; 6], 100), EOP | IFCS);
    driver.ring();
    assert_eq!(driver.received(0).data.len(), 104, "with an FCS");
    assert!(driver.wire.sent().is_empty());
    // Half duplex has no way back.
    driver.write(CTRL, 0x1a40);
    driver.queue_data(&frame([0xff; 6], 100), EOP | IFCS);
    driver.ring();
    assert_eq!(driver.read(RDH), 1);
    assert!(driver.wire.sent().is_empty());
    mdi_write(&mut driver, 0, 0x9140);
    driver.write(CTRL, 0x40);
    driver.queue_data(&frame([0xff; 6], 100), EOP | IFCS);
    driver.ring();
    assert_eq!(driver.wire.sent().len(), 1);
}
