//! Identity, registers, EEPROM, PHY, link, interrupts, resets.

use serde_json::json;

use super::*;

const EECD: u64 = 0x0010;
const EERD: u64 = 0x0014;
const MDIC: u64 = 0x0020;
const ICS: u64 = 0x00c8;
const LSC: u32 = 0x4;

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
    assert_eq!(read(0x14), 1, "the second BAR is I/O");
    assert_eq!(read(0x2c), 0x001e_8086);
    assert_eq!(read(0x3c), 0x00ff_0100);
    assert_eq!(read(0x34), 0xdc);
    driver.guest.config_write(0x10, &[0xff; 8]);
    let mut bars = [0; 8];
    driver.guest.config_read(0x10, &mut bars);
    assert_eq!(bars, [0, 0, 0xfe, 0xff, 0xc1, 0xff, 0xff, 0xff]);
}

#[test]
fn registers_keep_the_bits_that_a_self_test_writes() {
    let mut driver = Driver::new();
    let all = 0xffff_ffff;
    for (register, mask, written) in [
        (0x0028, all, all),
        (0x002c, 0xffff, all),
        (0x0030, 0xffff, all),
        (0x0038, 0xffff, all),
        (0x2820, 0xffff, all),
        (0x2804, all, all),
        (0x2808, 0x000f_ff80, 0x000f_ffff),
        (RDH, 0xffff, 0xffff),
        (RDT, 0xffff, 0xffff),
        (0x2168, 0xfff8, 0xfff8),
        (0x0170, 0xffff, 0xffff),
        (0x0410, 0x3fff_ffff, 0x3fff_ffff),
        (0x3804, all, all),
        (0x3808, 0x000f_ff80, 0x000f_ffff),
        (RDBAL, 0xffff_fff0, all),
        (0x0178, 0xc000_ffff, 0xffff),
        (TDBAL, 0xffff_fff0, all),
        (0x3820, 0xffff, 0xffff),
        (0x5404, 0x8003_ffff, all),
        (0x547c, 0x8003_ffff, all),
        (0x5200, all, all),
        (0x53fc, all, all),
        (RCTL, 0x06df_b3fe, all),
        // Without SWXOFF, which clears itself.
        (TCTL, 0x03bf_fffa, all),
    ] {
        for pattern in [0x5a5a_5a5a, 0xa5a5_a5a5, 0, all] {
            driver.write(register, written & pattern);
            assert_eq!(
                driver.read(register),
                written & pattern & mask,
                "{register:#x}"
            );
        }
    }
    let before = driver.read(STATUS);
    driver.write(STATUS, 0xffff_f833);
    assert_eq!(driver.read(STATUS), before);
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
fn a_narrow_access_touches_its_bytes_only() {
    let mut driver = Driver::new();
    driver.write(0x0028, 0x1122_3344);
    driver.guest.write(0, 0x0029, &[0xaa, 0xbb]);
    assert_eq!(driver.read(0x0028), 0x11bb_aa44);
    let mut data = [0; 8];
    driver.guest.read(0, 0x0026, &mut data);
    assert_eq!(data, [0, 0, 0x44, 0xaa, 0xbb, 0x11, 0, 0]);
    driver.write(ICS, 0x3);
    driver.guest.write(0, ICR, &[1]);
    assert_eq!(driver.read(ICR), 2);
}

#[test]
fn eerd_reads_words_that_sum_up() {
    let mut driver = Driver::new();
    let words: Vec<u16> = (0..64).map(|word| eerd(&mut driver, word)).collect();
    assert_eq!(words[..3], [0x5452, 0x1200, 0x5634]);
    assert_eq!(
        words
            .iter()
            .fold(0, |sum: u16, word| sum.wrapping_add(*word)),
        0xbaba
    );
    assert_eq!(words[0x0a] >> 14, 0b01, "the signature of a valid EEPROM");
    assert_eq!(words[0x0b..0x0f], [0x001e, 0x8086, 0x100e, 0x8086]);
}

fn eerd(driver: &mut Driver, word: u32) -> u16 {
    driver.write(EERD, word << 8 | 1);
    let answer = driver.read(EERD);
    assert_eq!(answer & 0x10, 0x10, "DONE");
    (answer >> 16) as u16
}

/// Clocks bits into the EEPROM and returns what it put out meanwhile.
fn shift(driver: &mut Driver, bits: u32, count: u32) -> u32 {
    let mut out = 0;
    for position in (0..count).rev() {
        let data = (bits >> position & 1) << 2;
        driver.write(EECD, 0x42 | data);
        driver.write(EECD, 0x43 | data);
        out = out << 1 | driver.read(EECD) >> 3 & 1;
        driver.write(EECD, 0x42 | data);
    }
    out
}

fn deselect(driver: &mut Driver) {
    driver.write(EECD, 0x40);
    driver.write(EECD, 0x42);
}

#[test]
fn the_pins_read_what_eerd_reads() {
    let mut driver = Driver::new();
    driver.write(EECD, 0x40);
    assert_eq!(
        driver.read(EECD) & 0x1c0,
        0x1c0,
        "requested, granted, present"
    );
    for word in 0..64 {
        deselect(&mut driver);
        shift(&mut driver, 0b110 << 6 | word, 9);
        let read = shift(&mut driver, 0, 16) as u16;
        assert_eq!(read, eerd(&mut driver, word), "word {word}");
    }
    // The address goes on by itself.
    deselect(&mut driver);
    shift(&mut driver, 0b110 << 6, 9);
    let pair = shift(&mut driver, 0, 32);
    assert_eq!(pair, 0x5452_1200);
}

#[test]
fn a_write_through_the_pins_needs_enabling() {
    let mut driver = Driver::new();
    deselect(&mut driver);
    shift(&mut driver, 0b101 << 6 | 5, 9);
    shift(&mut driver, 0xbeef, 16);
    deselect(&mut driver);
    assert_eq!(eerd(&mut driver, 5), 0xffff);
    shift(&mut driver, 0b100_110000, 9);
    deselect(&mut driver);
    shift(&mut driver, 0b101 << 6 | 5, 9);
    shift(&mut driver, 0xbeef, 16);
    deselect(&mut driver);
    assert_eq!(driver.read(EECD) & 8, 8, "ready");
    assert_eq!(eerd(&mut driver, 5), 0xbeef);
    shift(&mut driver, 0b100_000000, 9);
    deselect(&mut driver);
    shift(&mut driver, 0b111 << 6 | 5, 9);
    deselect(&mut driver);
    assert_eq!(eerd(&mut driver, 5), 0xbeef, "writing is disabled again");
    driver.guest.reset();
    assert_eq!(eerd(&mut driver, 5), 0xbeef, "words outlive a reset");
}

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
    driver.guest.write32(1, 0, 0x5404);
    assert_eq!(driver.guest.read32(1, 0), 0x5404);
    assert_eq!(driver.guest.read32(1, 4), 0x8000_5634);
    driver.guest.write32(1, 0, 0x0028);
    driver.guest.write32(1, 4, 0xdead_beef);
    driver.guest.write(1, 4, &[0, 0]);
    assert_eq!(
        driver.read(0x0028),
        0xdead_beef,
        "narrow writes are ignored"
    );
    driver.guest.write(1, 0, &[0, 0]);
    assert_eq!(driver.guest.read32(1, 0), 0x0028);
    driver.guest.write32(1, 0, 0xfff8_0000);
    assert_eq!(driver.guest.read32(1, 0), 0x0008_0000);
    driver.guest.write32(1, 4, 1);
    assert_eq!(driver.guest.read32(1, 4), 0, "no Flash");
    assert_eq!(driver.guest.read32(1, 0x20), 0);
}

#[test]
fn a_software_reset_keeps_phy_pba_and_eeprom() {
    let mut driver = Driver::new();
    driver.write(0x1000, 0x20);
    assert_eq!(driver.read(0x1000), 0x0020_0020);
    mdi_write(&mut driver, 16, 0x1234);
    driver.write(0x5400, 0);
    driver.write(0x5200, 1);
    driver.write(IMS, 0x80);
    driver.write(ICS, 0x80);
    driver.set(CTRL, 0x0400_0000);
    assert_eq!(
        driver.read(CTRL),
        0x0020_0201,
        "power-on, and RST cleared itself"
    );
    assert_eq!(driver.read(0x1000), 0x0020_0020);
    assert_eq!(mdi_read(&mut driver, 16), 0x1234);
    assert_eq!(driver.read(0x5400), 0x1200_5452);
    assert_eq!(driver.read(0x5200), 0);
    assert_eq!((driver.read(IMS), driver.read(ICR)), (0, 0));
    driver.guest.interrupted();
    assert!(!driver.guest.interrupted());
    assert_eq!(driver.guest.software_resets(), 1);
    driver.guest.reset();
    assert_eq!(driver.read(0x1000), 0x0010_0030);
    assert_eq!(mdi_read(&mut driver, 16), 0x0068);
    assert_eq!(driver.guest.software_resets(), 1);
}

#[test]
fn leds_and_timers_have_their_values_after_a_reset() {
    let mut driver = Driver::new();
    for (register, value) in [
        (0x0e00, 0x0706_8302),
        (0x0038, 0x8100),
        (0x00c4, 0),
        (0x2828, 0x0001_0000),
        (0x3828, 0),
    ] {
        assert_eq!(driver.read(register), value, "{register:#x}");
    }
}
