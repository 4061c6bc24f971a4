//! Identity, older offsets, interrupts, and the I/O window.

use serde_json::{Value, json};

use super::*;

#[test]
fn configuration_space_tells_the_82540em() {
    let mut driver = Driver::new();
    let mut read = |at| {
        let mut data = [0; 4];
        driver.guest.config_read(at, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(0x00), 0x100e_8086);
    assert_eq!(read(0x08), 0x0200_0002);
    assert_eq!(read(0x14), 0, "no Flash");
    assert_eq!(read(0x18), 1, "the third BAR is I/O");
    assert_eq!(read(0x2c), 0x001e_8086);
    assert_eq!(read(0x3c), 0x00ff_0100);
    assert_eq!(read(0x34), 0xdc);
    driver.guest.config_write(0x10, &[0xff; 24]);
    let mut bars = [0; 24];
    driver.guest.config_read(0x10, &mut bars);
    let mut expected = [0; 24];
    expected[2..4].copy_from_slice(&[0xfe, 0xff]);
    expected[8..12].copy_from_slice(&[0xc1, 0xff, 0xff, 0xff]);
    assert_eq!(bars, expected);
}

fn configured(config: Value) -> Guest<Controller> {
    let config = serde_json::from_value(config).unwrap();
    Guest::new(crate::e1000::open(config, crate::Seed([2; 8])).unwrap())
}

fn identity(guest: &mut Guest<Controller>) -> [u32; 3] {
    [0x00, 0x08, 0x2c].map(|at| {
        let mut data = [0; 4];
        guest.config_read(at, &mut data);
        u32::from_le_bytes(data)
    })
}

#[test]
fn each_chip_has_its_ids() {
    for (chip, ids) in [
        ("82540em", [0x100e_8086, 0x0200_0002, 0x001e_8086]),
        ("82545em", [0x100f_8086, 0x0200_0001, 0x1001_8086]),
        ("82543gc", [0x1004_8086, 0x0200_0002, 0x1004_8086]),
    ] {
        let mut guest = configured(json!({"chip": chip}));
        assert_eq!(identity(&mut guest), ids, "{chip}");
        // Words 0Bh to 0Eh of the EEPROM say the same.
        for (word, expected) in [
            (0x0b, ids[2] >> 16),
            (0x0c, ids[2] & 0xffff),
            (0x0d, ids[0] >> 16),
            (0x0e, ids[0] & 0xffff),
        ] {
            guest.write32(0, 0x14, word << 8 | 1);
            assert_eq!(guest.read32(0, 0x14) >> 16, expected, "{chip}");
        }
    }
}

#[test]
fn a_card_can_be_another_maker_s() {
    let mut guest = configured(json!({
        "subsystem_vendor_id": 0x1028,
        "subsystem_id": 0x0151,
        "revision_id": 7,
    }));
    let ids = [0x100e_8086, 0x0200_0007, 0x0151_1028];
    assert_eq!(identity(&mut guest), ids);
}

#[test]
fn the_eeprom_decides_how_wide_base_addresses_are() {
    let mut guest = configured(json!({"chip": "82545em"}));
    guest.config_write(0x10, &[0xff; 24]);
    let mut bars = [0; 24];
    guest.config_read(0x10, &mut bars);
    let mut expected = [0; 24];
    expected[..8].copy_from_slice(&[4, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
    expected[16..20].copy_from_slice(&[0xc1, 0xff, 0xff, 0xff]);
    assert_eq!(bars, expected);
    assert_eq!(guest.read32(0, 0x0010) & 0x100, 0x100);
    guest.write32(4, 0, 0x0038);
    assert_eq!(guest.read32(4, 4), 0x8100);
}

#[test]
fn older_offsets_reach_the_same_registers() {
    let mut driver = Driver::new();
    driver.write(0x0420, 0x1234_5670);
    assert_eq!(driver.read(TDBAL), 0x1234_5670);
    driver.write(0x0204, 7);
    assert_eq!(driver.read(0x5204), 7);
    assert_eq!(driver.read(0x0004), driver.read(CTRL));
}

#[test]
fn reading_icr_lowers_the_line() {
    let mut driver = Driver::new();
    driver.write(ICS, 0x80);
    assert!(!driver.guest.interrupted(), "masked");
    driver.write(IMS, 0x80);
    assert!(driver.guest.interrupted());
    assert!(driver.guest.interrupted(), "the level stays");
    assert_eq!(driver.read(ICR), 0x80);
    driver.guest.interrupted();
    assert!(!driver.guest.interrupted());
    assert_eq!(driver.read(ICR), 0);
}

#[test]
fn the_mask_holds_the_line_low_and_lets_it_rise_again() {
    let mut driver = Driver::new();
    driver.write(IMS, 0x84);
    driver.write(ICS, 0x04);
    driver.write(IMC, 0xffff_ffff);
    while driver.guest.interrupted() {}
    assert_eq!(driver.read(IMS), 0);
    driver.write(IMS, 0x04);
    assert!(driver.guest.interrupted());
    driver.write(ICR, 0x04);
    while driver.guest.interrupted() {}
    assert_eq!(driver.read(IMS), 0x04);
    assert_eq!(driver.read(ICR), 0);
}

#[test]
fn every_cause_of_an_interrupt_test_can_be_set() {
    let mut driver = Driver::new();
    for cause in 0..10 {
        driver.write(ICS, 1 << cause);
        assert_eq!(driver.read(ICR), 1 << cause);
    }
}

#[test]
fn the_io_window_reaches_registers() {
    let mut driver = Driver::new();
    driver.guest.write32(2, 0, 0x5404);
    assert_eq!(driver.guest.read32(2, 0), 0x5404);
    assert_eq!(driver.guest.read32(2, 4), 0x8000_5634);
    driver.guest.write32(2, 0, 0x0028);
    driver.guest.write32(2, 4, 0xdead_beef);
    driver.guest.write(2, 4, &[0, 0]);
    assert_eq!(
        driver.read(0x0028),
        0xdead_beef,
        "narrow writes are ignored"
    );
    driver.guest.write(2, 0, &[0, 0]);
    assert_eq!(driver.guest.read32(2, 0), 0x0028);
    driver.guest.write32(2, 0, 0xfff8_0000);
    assert_eq!(driver.guest.read32(2, 0), 0x0008_0000);
    driver.guest.write32(2, 4, 1);
    assert_eq!(driver.guest.read32(2, 4), 0, "no Flash");
    assert_eq!(driver.guest.read32(2, 0x20), 0);
}
