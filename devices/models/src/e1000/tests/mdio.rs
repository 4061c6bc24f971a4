//! The 82543GC as Linux drives it: the PHY through pins of CTRL, and the EEPROM's pins without asking for them.

use serde_json::json;

use super::*;

const CTRL_EXT: u64 = 0x0018;
const DATA: u32 = 0x0010_0000;
const CLOCK: u32 = 0x0020_0000;
const DATA_OUT: u32 = 0x0100_0000;
const CLOCK_OUT: u32 = 0x0200_0000;

fn card() -> Guest<Controller> {
    let config = serde_json::from_value(json!({"chip": "82543gc"})).unwrap();
    Guest::new(crate::e1000::open(config, crate::Seed([2; 8])).unwrap())
}

fn pulse(guest: &mut Guest<Controller>, ctrl: u32) {
    guest.write32(0, CTRL, ctrl | CLOCK);
    guest.write32(0, CTRL, ctrl);
}

fn shift_out(guest: &mut Guest<Controller>, bits: u32, count: u32) {
    for position in (0..count).rev() {
        let data = (bits >> position & 1) * DATA;
        let ctrl = 0x40 | DATA_OUT | CLOCK_OUT | data;
        guest.write32(0, CTRL, ctrl);
        pulse(guest, ctrl);
    }
}

fn read(guest: &mut Guest<Controller>, phy: u32, register: u32) -> u16 {
    shift_out(guest, u32::MAX, 32);
    shift_out(guest, 0b0110 << 10 | phy << 5 | register, 14);
    let ctrl = 0x40 | CLOCK_OUT;
    guest.write32(0, CTRL, ctrl);
    pulse(guest, ctrl);
    let mut value = 0;
    for _ in 0..16 {
        guest.write32(0, CTRL, ctrl | CLOCK);
        value = value << 1 | u16::from(guest.read32(0, CTRL) & DATA != 0);
        guest.write32(0, CTRL, ctrl);
    }
    pulse(guest, ctrl);
    value
}

fn write(guest: &mut Guest<Controller>, register: u32, value: u16) {
    shift_out(guest, u32::MAX, 32);
    let header = 0b0101 << 12 | 1 << 7 | register << 2 | 0b10;
    shift_out(guest, header << 16 | u32::from(value), 32);
}

#[test]
fn the_phy_is_read_bit_by_bit() {
    let mut guest = card();
    assert_eq!(read(&mut guest, 1, 2), 0x0141);
    assert_eq!(read(&mut guest, 1, 3), 0x0c50, "the 88E1000");
    assert_eq!(read(&mut guest, 1, 1), 0x796d);
    assert_eq!(read(&mut guest, 2, 2), 0xffff, "nobody");
    assert_eq!(read(&mut guest, 1, 2), 0x0141);
}

#[test]
fn the_phy_is_written_bit_by_bit() {
    let mut guest = card();
    write(&mut guest, 16, 0x1234);
    assert_eq!(read(&mut guest, 1, 16), 0x1234);
    guest.read32(0, ICR);
    write(&mut guest, 0, 0x1940);
    assert_eq!(guest.read32(0, STATUS) & 2, 0, "powered down");
    assert_eq!(guest.read32(0, ICR), LSC);
}

/// Linux sets a downshift that this PHY lacks, and does not expect to read it back.
#[test]
fn the_88e1000_has_no_downshift() {
    let mut guest = card();
    assert_eq!(read(&mut guest, 1, 20), 0x0060);
    write(&mut guest, 20, 0x0f70);
    assert_eq!(read(&mut guest, 1, 20), 0x0070);
}

#[test]
fn a_frame_may_come_without_a_preamble_and_after_nonsense() {
    let mut guest = card();
    shift_out(&mut guest, 0b00, 2);
    shift_out(&mut guest, 0b0110 << 10 | 1 << 5 | 2, 14);
    let ctrl = 0x40 | CLOCK_OUT;
    guest.write32(0, CTRL, ctrl);
    assert_eq!(guest.read32(0, CTRL) & DATA, DATA, "the pull-up");
    pulse(&mut guest, ctrl);
    assert_eq!(guest.read32(0, CTRL) & DATA, 0, "the turnaround");
}

#[test]
fn a_frame_goes_on_where_its_state_is_loaded() {
    let mut guest = card();
    shift_out(&mut guest, 0b0110 << 10 | 1 << 5 | 2, 14);
    let mut guest = guest.moved_to(Controller::new(
        crate::e1000::Board::new(
            &serde_json::from_value(json!({"chip": "82543gc"})).unwrap(),
            crate::Seed([3; 8]),
        ),
        Box::new(Wire(Arc::default())),
    ));
    let guest = guest.as_mut().unwrap();
    let ctrl = 0x40 | CLOCK_OUT;
    guest.write32(0, CTRL, ctrl);
    pulse(guest, ctrl);
    let mut value = 0u16;
    for _ in 0..16 {
        guest.write32(0, CTRL, ctrl | CLOCK);
        value = value << 1 | u16::from(guest.read32(0, CTRL) & DATA != 0);
        guest.write32(0, CTRL, ctrl);
    }
    assert_eq!(value, 0x0141);
}

#[test]
fn a_pin_resets_the_phy() {
    let mut guest = card();
    assert_eq!(guest.read32(0, CTRL_EXT), 0, "an input, from power-on");
    write(&mut guest, 16, 0x1234);
    assert_eq!(guest.read32(0, STATUS) & 2, 2);
    guest.write32(0, CTRL_EXT, 0x100);
    assert_eq!(guest.read32(0, STATUS) & 2, 0);
    guest.write32(0, CTRL_EXT, 0x110);
    assert_eq!(guest.read32(0, CTRL_EXT), 0x110);
    assert_eq!(guest.read32(0, STATUS) & 2, 2);
    assert_eq!(read(&mut guest, 1, 16), 0x0068);
}

#[test]
fn the_eeprom_needs_no_request() {
    let mut guest = card();
    let mut read = 0;
    for (position, bit) in "11000110100000000000000000".bytes().enumerate() {
        let data = u32::from(bit - b'0') << 2;
        guest.write32(0, EECD, 2 | data);
        guest.write32(0, EECD, 3 | data);
        if position > 8 {
            read = read << 1 | guest.read32(0, EECD) >> 3 & 1;
        }
    }
    assert_eq!(read >> 1, 0x1004, "word 0Dh");
}

/// Linux's loopback test of a PHY that is not inside the controller.
#[test]
fn the_phy_keeps_what_linux_loopback_test_looks_for() {
    let mut guest = card();
    for _ in 0..2 {
        let clock = self::read(&mut guest, 1, 20) | 0x0070;
        write(&mut guest, 20, clock);
        write(&mut guest, 0, 0x8100);
    }
    write(&mut guest, 29, 0x1f);
    write(&mut guest, 30, 0x8ffc);
    write(&mut guest, 29, 0x1a);
    write(&mut guest, 30, 0x8ff0);
    let control = self::read(&mut guest, 1, 0);
    write(&mut guest, 0, control | 0x4000);
    let registers = [0, 20, 29].map(|register| self::read(&mut guest, 1, register));
    assert_eq!(registers, [0x4100, 0x0070, 0x001a]);
}

/// What is a pin there is none here.
#[test]
fn the_82540em_has_no_such_pins() {
    let mut driver = Driver::new();
    driver.write(CTRL, DATA_OUT | CLOCK_OUT | CLOCK);
    assert_eq!(driver.read(CTRL), CLOCK, "EN_PHY_PWR_MGMT");
}
