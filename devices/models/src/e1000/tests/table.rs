//! Every register of the manual's chapter 13 that the 82540EM has: where it is, its value after power-on, and the bits
//! that software can write. The numbers are the manual's tables.

use super::*;

/// Offset, how many, distance, value after power-on, bits that keep what is written.
type Row = (u64, u64, u64, u32, u32);

const ALL: u32 = 0xffff_ffff;

/// Registers that keep what is written, and do nothing else that shows in them.
const KEEPING: &[Row] = &[
    // 13.4.8 to 13.4.12: FCAL, FCAH, FCT, VET, FCTTV.
    (0x0028, 1, 4, 0, ALL),
    (0x002c, 1, 4, 0, 0xffff),
    (0x0030, 1, 4, 0, 0xffff),
    (0x0038, 1, 4, 0x8100, 0xffff),
    (0x0170, 1, 4, 0, 0xffff),
    // 13.4.15: LEDCTL.
    (0x0e00, 1, 4, 0x0706_8302, 0xcfcf_cfcf),
    // 13.4.18: ITR.
    (0x00c4, 1, 4, 0, 0xffff),
    // 13.4.22 to 13.4.24: RCTL, FCRTL, FCRTH.
    (0x0100, 1, 4, 0, 0x06df_b3fe),
    (0x2160, 1, 4, 0, 0x8000_fff8),
    (0x2168, 1, 4, 0, 0xfff8),
    // 13.4.25 to 13.4.28: RDBAL, RDBAH, RDLEN, RDH.
    (0x2800, 1, 4, 0, 0xffff_fff0),
    (0x2804, 1, 4, 0, ALL),
    (0x2808, 1, 4, 0, 0x000f_ff80),
    (0x2810, 1, 4, 0, 0xffff),
    // 13.4.29: RDT.
    (0x2818, 1, 4, 0, 0xffff),
    // 13.4.31, 13.4.32: RADV, RSRPD.
    (0x282c, 1, 4, 0, 0xffff),
    (0x2c00, 1, 4, 0, 0x0fff),
    // 13.4.34, 13.4.35: TIPG, AIFS.
    (0x0410, 1, 4, 0x0060_200a, 0x3fff_ffff),
    (0x0458, 1, 4, 0, 0xffff),
    // 13.4.36 to 13.4.39: TDBAL, TDBAH, TDLEN, TDH.
    (0x3800, 1, 4, 0, 0xffff_fff0),
    (0x3804, 1, 4, 0, ALL),
    (0x3808, 1, 4, 0, 0x000f_ff80),
    (0x3810, 1, 4, 0, 0xffff),
    // 13.4.40, 13.4.41: TDT, TIDV.
    (0x3818, 1, 4, 0, 0xffff),
    (0x3820, 1, 4, 0, 0xffff),
    // 13.4.43 to 13.4.47: TXDCTL, TADV, TSPMT, RXDCTL, RXCSUM.
    (0x3828, 1, 4, 0, 0xff3f_3f3f),
    (0x382c, 1, 4, 0, 0xffff),
    (0x3830, 1, 4, 0x0100_0400, ALL),
    (0x2828, 1, 4, 0x0101_0000, 0x013f_3f3f),
    (0x5000, 1, 4, 0, 0x07ff),
    // 13.5.1, 13.5.2, 13.5.3, 13.5.4: MTA, RAL and RAH from the second on, VFTA.
    (0x5200, 128, 4, 0, ALL),
    (0x5408, 15, 8, 0, ALL),
    (0x540c, 15, 8, 0, 0x8003_ffff),
    (0x5600, 128, 4, 0, ALL),
    // 13.6.2, 13.6.4 to 13.6.11: WUFC, IPAV, IP4AT, IP6AT, WUPL, WUPM, FFLT, FFMT, FFVT.
    (0x5808, 1, 4, 0, 0x000f_00ff),
    (0x5838, 1, 4, 0, 0x0001_000f),
    (0x5840, 4, 8, 0, ALL),
    (0x5880, 4, 4, 0, ALL),
    (0x5900, 1, 4, 0, 0x0fff),
    (0x5a00, 32, 4, 0, ALL),
    (0x5f00, 4, 8, 0, 0x07ff),
    (0x9000, 128, 8, 0, 0x000f),
    (0x9800, 128, 8, 0, ALL),
    // 13.8.1 to 13.8.10: the receive FIFO's pointers and count, and the transmit FIFO's.
    (0x2410, 1, 4, 0, 0x1fff),
    (0x2418, 1, 4, 0, 0x1fff),
    (0x2420, 1, 4, 0, 0x1fff),
    (0x2428, 1, 4, 0, 0x1fff),
    (0x2430, 1, 4, 0, 0x1fff),
    (0x3410, 1, 4, 0, 0x07ff),
    (0x3418, 1, 4, 0, 0x07ff),
    (0x3420, 1, 4, 0, 0x1fff),
    (0x3428, 1, 4, 0, 0x1fff),
    (0x3430, 1, 4, 0, 0x1fff),
    // 13.8.11: the packet buffer.
    (0x1_0000, 0x4000, 4, 0, ALL),
];

/// Statistics, section 13.7: all that there are between these offsets, and the gaps.
const STATISTICS: std::ops::RangeInclusive<u64> = 0x4000..=0x40fc;
const STATISTICS_GAPS: [u64; 6] = [0x4024, 0x402c, 0x4044, 0x4084, 0x4098, 0x409c];

/// Registers that a test of their own is about, with their values after power-on.
const OTHERS: &[(u64, u32)] = &[
    // 13.4.1: FD and SPEED, and what the EEPROM sets: FRCSPD, ADVD3WUC and EN_PHY_PWR_MGMT.
    (0x0000, 0x0030_0a01),
    // 13.4.2: 66 MHz, and what the PHY says while the MAC does not listen to it: full duplex, 1000 Mb/s.
    (0x0008, 0x0000_0a81),
    // 13.4.3: present, and writing a Flash is disabled.
    (0x0010, 0x0000_0110),
    // 13.4.4: EERD.
    (0x0014, 0),
    // 13.4.6: CTRL_EXT.
    (0x0018, 0x0000_0100),
    // 13.4.7: MDIC.
    (0x0020, 0),
    // 13.4.16: PBA.
    (0x1000, 0x0010_0030),
    // 13.4.17, 13.4.19 to 13.4.21: ICR, ICS, IMS, IMC.
    (0x00c0, 0),
    (0x00c8, 0),
    (0x00d0, 0),
    (0x00d8, 0),
    // 13.4.30, 13.4.33: RDTR, TCTL.
    (0x2820, 0),
    (0x0400, 0),
    // 13.5.2, 13.5.3: the first receive address is the EEPROM's.
    (0x5400, 0x1200_5452),
    (0x5404, 0x8000_5634),
    // 13.6.1, 13.6.3: WUC, WUS.
    (0x5800, 0),
    (0x5810, 0),
];

/// Registers that the manual has no page about, and drivers look for: TXCW (the 82540EM's manual says it has none) and
/// MANC (whose bits section 5.6.24 names).
const UNDOCUMENTED: [u64; 2] = [0x0178, 0x5820];

/// Offsets of the family's older members that still reach a register, in ranges of words.
const OLDER: &[(u64, u64)] = &[
    (0x0004, 1),
    (0x0040, 32),
    (0x0108, 1),
    (0x0110, 3),
    (0x0120, 1),
    (0x0128, 1),
    (0x0160, 1),
    (0x0168, 1),
    (0x0200, 128),
    (0x0420, 3),
    (0x0430, 1),
    (0x0438, 1),
    (0x0440, 1),
    (0x0600, 128),
    (0x8000, 1),
    (0x8008, 1),
    (0x8010, 1),
    (0x8018, 1),
];

fn keeping() -> impl Iterator<Item = (u64, u32, u32)> {
    KEEPING
        .iter()
        .flat_map(|&(offset, count, stride, value, writable)| {
            (0..count).map(move |index| (offset + index * stride, value, writable))
        })
}

#[test]
fn every_register_has_its_value_after_power_on() {
    let mut driver = Driver::new();
    for (offset, value, _) in keeping() {
        assert_eq!(driver.read(offset), value, "{offset:#x}");
    }
    for (offset, value) in OTHERS {
        assert_eq!(driver.read(*offset), *value, "{offset:#x}");
    }
    for offset in STATISTICS.step_by(4) {
        assert_eq!(driver.read(offset), 0, "{offset:#x}");
    }
}

#[test]
fn registers_keep_the_bits_that_are_not_reserved() {
    let mut driver = Driver::new();
    for (offset, value, writable) in keeping() {
        for pattern in [0x5a5a_5a5a, 0xa5a5_a5a5, 0, ALL, value] {
            driver.write(offset, pattern);
            assert_eq!(driver.read(offset), pattern & writable, "{offset:#x}");
        }
    }
}

#[test]
fn statistics_can_not_be_written() {
    let mut driver = Driver::new();
    for offset in STATISTICS.step_by(4) {
        driver.write(offset, ALL);
        assert_eq!(driver.read(offset), 0, "{offset:#x}");
    }
}

#[test]
fn what_is_reserved_reads_zero_and_ignores_writes() {
    let mut declared = std::collections::HashSet::new();
    declared.extend(keeping().map(|(offset, _, _)| offset));
    declared.extend(OTHERS.iter().map(|(offset, _)| *offset));
    declared.extend(STATISTICS.step_by(4));
    for gap in STATISTICS_GAPS {
        declared.remove(&gap);
    }
    declared.extend(UNDOCUMENTED);
    for (offset, words) in OLDER {
        declared.extend((0..*words).map(|word| offset + 4 * word));
    }
    let mut driver = Driver::new();
    let before = driver.guest.save();
    let reserved = (0..0x1_0000).step_by(4);
    let reserved = reserved.filter(|offset| !declared.contains(offset));
    for offset in reserved {
        driver.write(offset, ALL);
        assert_eq!(driver.read(offset), 0, "{offset:#x}");
    }
    assert!(driver.guest.save() == before, "nothing has changed");
}

#[test]
fn control_keeps_what_is_not_reserved() {
    let mut driver = Driver::new();
    // All but RST and PHY_RST, whose tests are elsewhere.
    for (written, read) in [
        (0, 0),
        (0x7bff_ffff, 0x58fc_1be1),
        // The data of a pin that is an input is what the pin has.
        (0x000c_0000, 0),
        (0x004c_0000, 0x0044_0000),
        (0x008c_0000, 0x0088_0000),
    ] {
        driver.write(CTRL, written);
        assert_eq!(driver.read(CTRL), read, "{written:#x}");
        assert_eq!(driver.read(0x0004), read, "its second offset");
    }
}

#[test]
fn extended_control_keeps_what_is_not_reserved() {
    let mut driver = Driver::new();
    for (written, read) in [
        (0, 0),
        // ASDCHK and EE_RST clear themselves, and the EEPROM has zeros for bits 6, 7, 14 and 16.
        (ALL, 0x0000_8f0f),
        (0x0001_4000, 0x0001_4000),
        (0x0000_00c0, 0),
        (0x0000_04c0, 0x0000_0440),
        (0x0000_1000, 0),
    ] {
        driver.write(0x0018, written);
        assert_eq!(driver.read(0x0018), read, "{written:#x}");
    }
}

#[test]
fn status_can_not_be_written() {
    let mut driver = Driver::new();
    let before = driver.read(STATUS);
    driver.write(STATUS, !before);
    assert_eq!(driver.read(STATUS), before);
}

#[test]
fn eecd_keeps_what_software_drives() {
    let mut driver = Driver::new();
    // SK, CS, DI, FWE and REQ; DO, GNT and PRES are the controller's, and SIZE says 64 words.
    driver.write(0x0010, ALL);
    assert_eq!(driver.read(0x0010) & !0x8, 0x0000_01f7);
    driver.write(0x0010, 0);
    assert_eq!(driver.read(0x0010) & !0x8, 0x0000_0100);
}

#[test]
fn transmit_control_keeps_what_is_not_reserved() {
    let mut driver = Driver::new();
    // SWXOFF clears itself.
    driver.write(TCTL, ALL);
    assert_eq!(driver.read(TCTL) & !0x0040_0000, 0x013f_fffa);
    driver.write(TCTL, 0);
    assert_eq!(driver.read(TCTL), 0);
}

#[test]
fn the_packet_buffers_allocation_sums_up_to_64() {
    let mut driver = Driver::new();
    for (written, read) in [
        (0x0000_0020, 0x0020_0020),
        (0xffff_ff08, 0x0038_0008),
        (0x0000_0040, 0x0000_0040),
    ] {
        driver.write(0x1000, written);
        assert_eq!(driver.read(0x1000), read, "{written:#x}");
    }
}

#[test]
fn wake_up_control_and_status_keep_what_is_not_reserved() {
    let mut driver = Driver::new();
    // PME_Status clears by writing a one, and so does all of WUS; nothing here sets them.
    driver.write(0x5800, ALL);
    assert_eq!(driver.read(0x5800), 0x0000_000b);
    driver.write(0x5810, ALL);
    assert_eq!(driver.read(0x5810), 0);
}

#[test]
fn pme_en_is_that_of_configuration_space() {
    let mut driver = Driver::new();
    let control = |driver: &mut Driver| {
        let mut control = [0; 2];
        driver.guest.config_read(0xe0, &mut control);
        u16::from_le_bytes(control)
    };
    driver.write(0x5800, 0x3);
    assert_eq!(control(&mut driver), 0x0100);
    // CTRL.RST: section 14.7.
    driver.write(CTRL, 0x0400_0000);
    assert_eq!((driver.read(0x5800), control(&mut driver)), (0x2, 0x0100));
    driver.guest.config_write(0xe0, &[0, 0]);
    assert_eq!(driver.read(0x5800), 0);
    driver.guest.config_write(0xe0, &[0, 1]);
    assert_eq!(driver.read(0x5800), 0x2);
    driver.write(0x5800, 0);
    assert_eq!((driver.read(0x5800), control(&mut driver)), (0, 0));
}

/// Of MANC the manual has only the bits that the EEPROM sets; software switches what has to do with packets.
#[test]
fn management_control_is_there_and_manages_nothing() {
    let mut driver = Driver::receiving(8, 0x8000);
    driver.write(0x5820, 0xa303);
    assert_eq!(driver.read(0x5820), 0xa303);
    // ARP_EN: a request would be kept from a host with a management controller beside it.
    let mut request = frame([0xff; 6], 60);
    request[12..14].copy_from_slice(&[0x08, 0x06]);
    driver.arrive(&request);
    assert_eq!(driver.read(RDH), 1);
    driver.write(0x5820, 0);
    assert_eq!(driver.read(0x5820), 0);
}

#[test]
fn a_narrow_write_is_ignored_and_a_narrow_read_reads_the_whole() {
    let mut driver = Driver::new();
    driver.write(0x0028, 0x1122_3344);
    for (offset, data) in [(0x28, &[1][..]), (0x29, &[1, 2, 3]), (0x2a, &[1, 2])] {
        driver.guest.write(0, offset, data);
        assert_eq!(driver.read(0x0028), 0x1122_3344);
    }
    let mut data = [0; 8];
    driver.guest.read(0, 0x0026, &mut data);
    assert_eq!(data, [0, 0, 0x44, 0x33, 0x22, 0x11, 0, 0]);
    driver.write(0x00c8, 0x3_00);
    driver.guest.read(0, ICR, &mut data[..1]);
    assert_eq!(driver.read(ICR), 0, "all of it was read");
}

/// Linux's self-test (`ethtool -t`) of registers: what it writes, and the bits that it wants back.
#[test]
fn linux_register_test_passes() {
    let mut driver = Driver::new();
    let all = ALL;
    let addresses: Vec<_> = (0..16)
        .map(|index| (0x5404 + 8 * index, 0x8003_ffff, all))
        .collect();
    let table: Vec<_> = (0..128)
        .map(|index| (0x5200 + 4 * index, all, all))
        .collect();
    let registers = [
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
    ];
    let before = driver.read(STATUS) & 0xffff_f833;
    driver.write(STATUS, 0xffff_f833);
    assert_eq!(driver.read(STATUS) & 0xffff_f833, before);
    for (register, mask, written) in registers.into_iter().chain(addresses).chain(table) {
        for pattern in [0x5a5a_5a5a, 0xa5a5_a5a5, 0, all] {
            driver.write(register, written & pattern);
            let expected = written & pattern & mask;
            assert_eq!(driver.read(register), expected, "{register:#x}");
        }
    }
    for (register, mask, written) in [
        (RCTL, all, 0),
        (RCTL, 0x06df_b3fe, 0x003f_fffb),
        (TCTL, all, 0),
        (RCTL, 0x06df_b3fe, all),
    ] {
        driver.write(register, written & mask);
        assert_eq!(
            driver.read(register) & mask,
            written & mask,
            "{register:#x}"
        );
    }
}
