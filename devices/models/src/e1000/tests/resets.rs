//! What each reset leaves as it is, section 14.7.

use super::*;

const RST: u32 = 0x0400_0000;

/// A register of each kind, and something to write to it that is not its value after power-on.
const WRITTEN: &[(u64, u32)] = &[
    // General, interrupts, receive, transmit, wake-up, diagnostics.
    (0x0028, 0x1234),
    (0x002c, 0x1234),
    (0x0030, 0x1234),
    (0x0038, 0x1234),
    (0x0170, 0x1234),
    (0x0e00, 0x0101_0101),
    (0x00c4, 0x1234),
    (0x00d0, 0x0080),
    (0x00c8, 0x0010),
    (0x0100, 0x8000),
    (0x2160, 0x1000),
    (0x2168, 0x1000),
    (0x2808, 0x0100),
    (0x2810, 0x0001),
    (0x2818, 0x0001),
    (0x2820, 0x0001),
    (0x2828, 0x0101),
    (0x282c, 0x0001),
    (0x2c00, 0x0001),
    (0x5000, 0x0100),
    (0x0400, 0x0008),
    (0x0458, 0x0001),
    (0x3808, 0x0100),
    (0x3810, 0x0001),
    (0x3818, 0x0001),
    (0x3820, 0x0001),
    (0x3828, 0x0101),
    (0x382c, 0x0001),
    (0x3830, 0x0001),
    (0x5800, 0x0001),
    (0x5808, 0x0001),
    (0x5838, 0x0002),
    (0x5f00, 0x0001),
    (0x2410, 0x0001),
    (0x3410, 0x0001),
];

/// Registers whose value nothing but power takes, with something to write to each.
const KEPT: &[(u64, u32)] = &[
    (0x2800, 0x1230),
    (0x2804, 0x1),
    (0x3800, 0x1230),
    (0x3804, 0x1),
    (0x5200, 0x1234),
    (0x53fc, 0x1234),
    (0x5600, 0x1234),
    (0x57fc, 0x1234),
    (0x5408, 0x1234),
    (0x540c, 0x0002_1234),
    (0x547c, 0x0000_1234),
    (0x0410, 0x1234),
    (0x5840, 0x1234),
    (0x5858, 0x1234),
    (0x5880, 0x1234),
    (0x5900, 0x0123),
    (0x5a00, 0x1234),
    (0x5a7c, 0x1234),
    (0x9000, 0x0005),
    (0x9bf8, 0x1234),
    (0x1_0000, 0x1234),
    (0x1_fffc, 0x1234),
    // Not in section 14.7: PBA, whose value takes effect by the reset.
    (0x1000, 0x0038_0008),
];

fn written(driver: &mut Driver) {
    for (offset, value) in WRITTEN.iter().chain(KEPT) {
        driver.write(*offset, *value);
    }
}

#[test]
fn a_global_reset_brings_back_what_power_on_sets() {
    let mut driver = Driver::new();
    let fresh: Vec<_> = WRITTEN
        .iter()
        .map(|(offset, _)| driver.read(*offset))
        .collect();
    written(&mut driver);
    let after: Vec<_> = WRITTEN
        .iter()
        .filter(|(offset, _)| *offset != 0xc8)
        .map(|(offset, _)| driver.read(*offset))
        .collect();
    assert!(
        after
            .iter()
            .zip(&fresh)
            .any(|(after, fresh)| after != fresh)
    );
    driver.write(CTRL, RST);
    for ((offset, _), fresh) in WRITTEN.iter().zip(fresh) {
        assert_eq!(driver.read(*offset), fresh, "{offset:#x}");
    }
    assert_eq!(driver.read(ICR), 0);
    assert_eq!(driver.read(CTRL), 0x0030_0a01, "RST clears itself");
    driver.guest.interrupted();
    assert!(!driver.guest.interrupted());
    assert_eq!(driver.guest.software_resets(), 1);
}

#[test]
fn a_global_reset_keeps_addresses_and_tables() {
    let mut driver = Driver::new();
    written(&mut driver);
    driver.write(CTRL, RST);
    for (offset, value) in KEPT {
        assert_eq!(driver.read(*offset), *value, "{offset:#x}");
    }
}

#[test]
fn a_global_reset_makes_receive_addresses_invalid_but_the_card_s() {
    let mut driver = Driver::new();
    for index in 0..16 {
        driver.write(0x5400 + 8 * index, 0x1234);
        driver.write(0x5404 + 8 * index, 0x8001_5678);
    }
    driver.write(CTRL, RST);
    assert_eq!(driver.read(0x5400), 0x1200_5452);
    assert_eq!(driver.read(0x5404), 0x8000_5634);
    for index in 1..16 {
        assert_eq!(driver.read(0x5400 + 8 * index), 0x1234);
        assert_eq!(driver.read(0x5404 + 8 * index), 0x0001_5678);
    }
}

#[test]
fn a_global_reset_keeps_the_directions_of_the_pins() {
    let mut driver = Driver::new();
    driver.write(CTRL, 0x00cc_0000);
    driver.write(0x0018, 0x0cc0);
    driver.set(CTRL, RST);
    assert_eq!(driver.read(CTRL) & 0x00cc_0000, 0x00c0_0000);
    assert_eq!(driver.read(0x0018) & 0x0cc0, 0x0c00);
    driver.guest.reset();
    assert_eq!(driver.read(CTRL) & 0x00cc_0000, 0);
    assert_eq!(driver.read(0x0018) & 0x0cc0, 0);
}

#[test]
fn a_global_reset_keeps_configuration_space_and_the_io_window() {
    let mut driver = Driver::new();
    driver.guest.config_write(0x3c, &[11]);
    driver.guest.config_write(0x10, &[0, 0, 0xfe, 0xff]);
    driver.guest.write32(2, 0, 0x0028);
    driver.write(CTRL, RST);
    let mut line = [0];
    driver.guest.config_read(0x3c, &mut line);
    let mut bar = [0; 4];
    driver.guest.config_read(0x10, &mut bar);
    assert_eq!((line, bar), ([11], [0, 0, 0xfe, 0xff]));
    assert_eq!(driver.guest.read32(2, 0), 0x0028);
}

#[test]
fn a_global_reset_clears_the_statistics() {
    let mut driver = Driver::receiving(8, 0x8000);
    driver.arrive(&frame([0xff; 6], 100));
    driver.write(CTRL, RST);
    for offset in (0x4000..0x4100).step_by(4) {
        assert_eq!(driver.read(offset), 0, "{offset:#x}");
    }
}

/// DEVICE_RESET, and a client that leaves: the card has lost its power, and what it had in its registers.
#[test]
fn the_client_s_reset_is_power_on() {
    let fresh = Driver::new().guest.save();
    let mut driver = Driver::new();
    written(&mut driver);
    driver.write(CTRL, 0x00cc_0040);
    driver.guest.write32(2, 0, 0x0028);
    driver.guest.reset();
    assert!(driver.guest.save() == fresh, "nothing is left");
    assert_eq!(driver.guest.software_resets(), 0);
}

#[test]
fn leaving_d3hot_is_a_reset() {
    let mut driver = Driver::new();
    written(&mut driver);
    driver.guest.config_write(0xe0, &[3]);
    driver.guest.config_write(0xe0, &[0]);
    assert_eq!(driver.read(0x0028), 0);
    assert_eq!(driver.read(0x5400), 0x1200_5452, "the EEPROM was read");
}
