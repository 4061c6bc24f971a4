//! The EEPROM: its content, its pins, and what the controller takes from it.

use super::*;

const EERD: u64 = 0x0014;
const CTRL_EXT: u64 = 0x0018;
const EE_RST: u32 = 0x2000;

/// A word, through EERD.
pub(super) fn eerd(driver: &mut Driver, word: u32) -> u16 {
    driver.write(EECD, 0);
    driver.write(EERD, word << 8 | 1);
    let answer = driver.read(EERD);
    assert_eq!(answer & 0xffff, word << 8 | 0x10, "DONE, and no START");
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

fn command(driver: &mut Driver, opcode: u32, address: u32) {
    deselect(driver);
    shift(driver, opcode << 6 | address, 9);
}

/// EWEN, WRITE, EWDS.
pub(super) fn program(driver: &mut Driver, word: u32, data: u16) {
    command(driver, 0b100, 0b11_0000);
    command(driver, 0b101, word);
    shift(driver, data.into(), 16);
    deselect(driver);
    assert_eq!(driver.read(EECD) & 8, 8, "ready");
    command(driver, 0b100, 0b00_0000);
    driver.write(EECD, 0);
}

#[test]
fn eerd_reads_words_that_sum_up() {
    let mut driver = Driver::new();
    let words: Vec<u16> = (0..64).map(|word| eerd(&mut driver, word)).collect();
    let sum = |sum: u16, word: &u16| sum.wrapping_add(*word);
    assert_eq!(words.iter().fold(0, sum), 0xbaba);
    assert_eq!(words[..8], [0x5452, 0x1200, 0x5634, 0, 0xffff, 0, 0, 0]);
    assert_eq!(words[0x0a] >> 14, 0b01, "the signature of a valid EEPROM");
    assert_eq!(words[0x0b..0x0f], [0x001e, 0x8086, 0x100e, 0x8086]);
    // What tables 5-2 and 5-12 give: pause both ways, and no Flash.
    assert_eq!(words[0x0f], 0x3040);
    assert_eq!(words[0x20..0x25], [0x000c, 0x7061, 0x280c, 0x0000, 0x08c8]);
    assert_eq!(words[0x2f], 0x0602);
}

#[test]
fn eerd_waits_while_software_holds_the_pins() {
    let mut driver = Driver::new();
    driver.write(EECD, 0x40);
    driver.write(EERD, 0x0b01);
    assert_eq!(driver.read(EERD) & 0x11, 1, "started, and not done");
    driver.write(EECD, 0);
    assert_eq!(driver.read(EERD), 0x001e_0b10);
}

#[test]
fn eerd_reads_again_at_every_start() {
    let mut driver = Driver::new();
    eerd(&mut driver, 0x0b);
    driver.write(EERD, 0x0c00);
    assert_eq!(driver.read(EERD), 0x001e_0b10, "no START, no command");
    // The part has 64 words, and ignores what else there is of an address.
    assert_eq!(eerd(&mut driver, 0x4c), 0x8086);
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
        command(&mut driver, 0b110, word);
        let read = shift(&mut driver, 0, 16) as u16;
        assert_eq!(read, eerd(&mut driver, word), "word {word}");
    }
    // The address goes on by itself.
    command(&mut driver, 0b110, 0);
    let pair = shift(&mut driver, 0, 32);
    assert_eq!(pair, 0x5452_1200);
}

#[test]
fn a_zero_comes_before_the_data() {
    let mut driver = Driver::new();
    deselect(&mut driver);
    assert_eq!(shift(&mut driver, 0b110 << 6 | 0x0c, 9), 0b1_1111_1110);
}

#[test]
fn zeros_before_the_start_bit_are_nothing() {
    let mut driver = Driver::new();
    deselect(&mut driver);
    shift(&mut driver, 0, 5);
    shift(&mut driver, 0b110 << 6 | 0x0c, 9);
    assert_eq!(shift(&mut driver, 0, 16), 0x8086);
}

#[test]
fn pins_that_were_not_granted_do_nothing() {
    let mut driver = Driver::new();
    command(&mut driver, 0b100, 0b11_0000);
    driver.write(EECD, 0);
    // ERASE of word 0, without REQ.
    for bit in "111000000".bytes() {
        let data = u32::from(bit - b'0') << 2;
        driver.write(EECD, 2 | data);
        driver.write(EECD, 3 | data);
    }
    driver.write(EECD, 0);
    assert_eq!(eerd(&mut driver, 0), 0x5452);
}

#[test]
fn a_write_through_the_pins_needs_enabling() {
    let mut driver = Driver::new();
    command(&mut driver, 0b101, 0x1f);
    shift(&mut driver, 0xbeef, 16);
    deselect(&mut driver);
    assert_eq!(eerd(&mut driver, 0x1f), 0xffff);
    program(&mut driver, 0x1f, 0xbeef);
    assert_eq!(eerd(&mut driver, 0x1f), 0xbeef);
    command(&mut driver, 0b111, 0x1f);
    deselect(&mut driver);
    assert_eq!(eerd(&mut driver, 0x1f), 0xbeef, "it is disabled again");
}

#[test]
fn a_write_that_is_cut_short_writes_nothing() {
    let mut driver = Driver::new();
    command(&mut driver, 0b100, 0b11_0000);
    command(&mut driver, 0b101, 0x1f);
    shift(&mut driver, 0, 15);
    deselect(&mut driver);
    assert_eq!(eerd(&mut driver, 0x1f), 0xffff);
}

#[test]
fn words_are_erased_and_written_one_by_one_and_all_at_once() {
    let mut driver = Driver::new();
    command(&mut driver, 0b100, 0b11_0000);
    command(&mut driver, 0b111, 2);
    deselect(&mut driver);
    assert_eq!(eerd(&mut driver, 2), 0xffff);
    assert_eq!(eerd(&mut driver, 1), 0x1200);
    // WRAL.
    command(&mut driver, 0b100, 0b01_0000);
    shift(&mut driver, 0x1234, 16);
    deselect(&mut driver);
    for word in [0, 31, 63] {
        assert_eq!(eerd(&mut driver, word), 0x1234);
    }
    // ERAL.
    command(&mut driver, 0b100, 0b10_0000);
    deselect(&mut driver);
    for word in [0, 31, 63] {
        assert_eq!(eerd(&mut driver, word), 0xffff);
    }
}

/// What `ethtool -E` and a driver that is loaded again do.
#[test]
fn an_address_that_is_written_is_the_card_s_after_the_next_reset() {
    let mut driver = Driver::new();
    for (word, data) in [(0, 0x0002), (1, 0x0403), (2, 0x0605)] {
        program(&mut driver, word, data);
    }
    assert_eq!(driver.read(0x5400), 0x1200_5452, "nothing was read yet");
    driver.write(CTRL, 0x0400_0000);
    assert_eq!(driver.read(0x5400), 0x0403_0002);
    assert_eq!(driver.read(0x5404), 0x8000_0605);
    driver.guest.reset();
    assert_eq!(driver.read(0x5400), 0x0403_0002, "as a card keeps it");
    let wire = driver.wire.clone();
    let another = Controller::new(MacAddress([2; 6]), Box::new(wire));
    let mut guest = driver.guest.moved_to(another).unwrap();
    guest.reset();
    assert_eq!(guest.read32(0, 0x5400), 0x0403_0002);
}

#[test]
fn ee_rst_reads_the_eeprom_and_resets_nothing_else() {
    let mut driver = Driver::new();
    driver.write(0x5400, 0);
    driver.write(0x5404, 0);
    driver.write(RCTL, 2);
    driver.write(0x5200, 7);
    driver.write(CTRL, 0x40);
    driver.write(CTRL_EXT, EE_RST);
    assert_eq!(driver.read(CTRL_EXT) & EE_RST, 0);
    assert_eq!(driver.read(0x5400), 0x1200_5452);
    assert_eq!(driver.read(0x5404), 0x8000_5634);
    assert_eq!((driver.read(RCTL), driver.read(0x5200)), (2, 7));
    assert_eq!(
        driver.read(CTRL),
        0x0030_0841,
        "FD, FRCSPD, ADVD3WUC and EN_PHY_PWR_MGMT; SLU stays, and SPEED does"
    );
    assert_eq!(driver.guest.software_resets(), 0);
}

/// The registers that section 5.6 fills from words, after each word had a value of its own.
#[test]
fn what_the_words_say_is_in_the_registers() {
    for (words, registers) in [
        // Initialization Control Word 1: IPS0, FRCSPD, FD and IPS1.
        (
            &[(0x0a, 0x7103)][..],
            &[(0x0000, 0x0030_0200), (0x0018, 0x0001_4100)][..],
        ),
        (&[(0x0a, 0x6c02)], &[(0x0000, 0x0030_0a01)]),
        // Initialization Control Word 2: APM PME# Enable and ASDE.
        (
            &[(0x0f, 0xc000)],
            &[(0x0000, 0x0030_0a21), (0x5800, 0x0000_0008)],
        ),
        // Software Defined Pins: the directions are set by power only.
        (&[(0x20, 0xc3c3)], &[(0x0000, 0x0000_0a01), (0x0018, 0x100)]),
        // Management Control, and the addresses that it calls valid.
        (
            &[(0x23, 0xffff), (0x25, 0x2211), (0x26, 0x4433)],
            &[
                (0x5820, 0xa307),
                (0x5838, 0x0001_0001),
                (0x5840, 0x4433_2211),
                (0x5880, 0xffff_ffff),
                (0x0000, 0x0030_0a41),
            ],
        ),
        (
            &[
                (0x23, 0x0080),
                (0x27, 0x0201),
                (0x28, 0x0403),
                (0x2d, 0x0e0d),
                (0x2e, 0x100f),
            ],
            &[
                (0x5838, 0x0001_0000),
                (0x5840, 0),
                (0x5880, 0x0403_0201),
                (0x588c, 0x100f_0e0d),
            ],
        ),
        // Initialization Control 3: APM Enable, which needs the link.
        (
            &[(0x24, 0x04c8)],
            &[(0x5800, 0x0000_0001), (0x0000, 0x0030_0a41)],
        ),
        // LED0 and LED2.
        (&[(0x2f, 0xcfc7)], &[(0x0e00, 0x07cf_83c7)]),
    ] {
        let mut driver = Driver::new();
        for (word, data) in words {
            program(&mut driver, *word, *data);
        }
        driver.write(CTRL, 0x0400_0000);
        for (register, value) in registers {
            let read = driver.read(*register);
            assert_eq!(read, *value, "{words:x?}: {register:#x} is {read:#x}");
        }
    }
}

#[test]
fn pins_are_outputs_from_power_on_where_the_eeprom_says_so() {
    let mut driver = Driver::new();
    // SDP0 and SDP7 are outputs, and high.
    program(&mut driver, 0x20, 0x8181);
    driver.guest.reset();
    assert_eq!(driver.read(CTRL) & 0x00cc_0000, 0x0044_0000);
    assert_eq!(driver.read(CTRL_EXT) & 0x0cc0, 0x0880);
}

#[test]
fn an_eeprom_without_signature_is_not_read() {
    for word in [0x0000, 0x8c0a, 0xec0a] {
        let mut driver = Driver::new();
        driver.write(0x5404, 0);
        program(&mut driver, 0x0a, word);
        driver.write(CTRL, 0x0400_0000);
        assert_eq!(driver.read(0x5404) >> 31, 0, "no address is valid");
        assert_eq!(driver.read(CTRL), 0x0000_0a01);
        driver.guest.reset();
        assert_eq!(driver.read(0x5400), 0);
    }
}
