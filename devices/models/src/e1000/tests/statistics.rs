//! What is counted of received frames, section 13.7.

use serde_json::{Value, json};

use super::*;

const BAM: u32 = 0x8000;
const LPE: u32 = 0x20;
const SBP: u32 = 0x04;
const MPC: u64 = 0x4010;
const RLEC: u64 = 0x4040;
const PRC: u64 = 0x405c;
const GPRC: u64 = 0x4074;
const BPRC: u64 = 0x4078;
const MPRC: u64 = 0x407c;
const GORCL: u64 = 0x4088;
const GORCH: u64 = 0x408c;
const RNBC: u64 = 0x40a0;
const ROC: u64 = 0x40ac;
const TORL: u64 = 0x40c0;
const TORH: u64 = 0x40c4;
const TPR: u64 = 0x40d0;
/// Of errors that a medium has: CRCERRS, ALGNERRC, SYMERRS, RXERRC, SEC, CEXTERR, RUC, RFC, RJC.
const MEDIUM: [u64; 9] = [
    0x4000, 0x4004, 0x4008, 0x400c, 0x4038, 0x403c, 0x40a4, 0x40a8, 0x40b0,
];
/// Of what only half duplex has: SCC, ECOL, MCC, LATECOL, COLC; and TNCRS, which a PHY without errors has not.
const COLLISIONS: [u64; 6] = [0x4014, 0x4018, 0x401c, 0x4020, 0x4028, 0x4034];
/// Of management: MGTPRC, MGTPDC, MGTPTC.
const MANAGEMENT: [u64; 3] = [0x40b4, 0x40b8, 0x40bc];

const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];

fn sizes(driver: &mut Driver) -> [u32; 6] {
    [0, 1, 2, 3, 4, 5].map(|index| driver.read(PRC + 4 * index))
}

#[test]
fn sizes_are_those_on_the_wire() {
    let mut driver = Driver::receiving(64, LPE);
    for (bytes, index) in [
        (64, 0),
        (65, 1),
        (127, 1),
        (128, 2),
        (255, 2),
        (256, 3),
        (511, 3),
        (512, 4),
        (1023, 4),
        (1024, 5),
        (1522, 5),
        (16_384, 5),
    ] {
        driver.arrive(&frame(MAC, bytes - 4));
        let mut expected = [0; 6];
        expected[index] = 1;
        assert_eq!(sizes(&mut driver), expected, "{bytes} bytes");
    }
}

#[test]
fn frames_that_filters_drop_count_in_the_totals_alone() {
    let mut driver = Driver::receiving(8, BAM);
    driver.arrive(&frame(OTHER, 100));
    driver.arrive(&frame(GROUP, 100));
    assert_eq!((driver.read(TPR), driver.read(TORL)), (2, 208));
    for register in [GPRC, MPRC, BPRC, GORCL, GORCH, RLEC, ROC, MPC, RNBC] {
        assert_eq!(driver.read(register), 0, "{register:#x}");
    }
    assert_eq!(sizes(&mut driver), [0; 6]);
}

#[test]
fn groups_and_broadcasts_are_counted_apart() {
    let mut driver = Driver::receiving(8, BAM | 0x10);
    driver.arrive(&frame(GROUP, 100));
    driver.arrive(&frame(GROUP, 100));
    driver.arrive(&frame([0xff; 6], 100));
    driver.arrive(&frame(MAC, 100));
    assert_eq!((driver.read(MPRC), driver.read(BPRC)), (2, 1));
    assert_eq!((driver.read(GPRC), driver.read(GORCL)), (4, 416));
}

#[test]
fn too_long_a_frame_is_a_length_error_unless_it_is_for_others() {
    for (rctl, longest) in [(0, 1522), (LPE, 16_384)] {
        let mut driver = Driver::receiving(64, rctl);
        driver.arrive(&frame(OTHER, longest - 3));
        assert_eq!((driver.read(ROC), driver.read(RLEC)), (0, 0));
        driver.arrive(&frame(MAC, longest - 3));
        assert_eq!((driver.read(ROC), driver.read(RLEC)), (1, 1));
        assert_eq!((driver.read(TPR), driver.read(RDH)), (2, 0));
        driver.arrive(&frame(MAC, longest - 4));
        assert_eq!((driver.read(ROC), driver.read(RLEC)), (0, 0));
        assert_eq!((driver.read(GPRC), driver.read(GORCL)), (1, longest as u32));
    }
}

#[test]
fn a_bad_frame_is_stored_with_sbp_and_none_of_the_good_ones() {
    let mut driver = Driver::receiving(64, SBP);
    let long = frame(MAC, 1800);
    driver.arrive(&long);
    let received = driver.received(0);
    assert_eq!((received.status & 3, received.errors), (3, 0));
    assert_eq!(received.data[..1800], long);
    assert_eq!((driver.read(ROC), driver.read(GPRC)), (1, 0));
    assert_eq!((driver.read(TPR), driver.read(TORL)), (1, 1804));
    assert_eq!(sizes(&mut driver), [0; 6]);
    driver.arrive(&frame(OTHER, 1800));
    assert_eq!(driver.read(RDH), 1, "filters count all the same");
}

#[test]
fn a_frame_that_the_packet_buffer_can_not_hold_is_missed() {
    let mut driver = Driver::receiving(64, SBP | LPE);
    // 48 KiB.
    driver.arrive(&frame(MAC, 48 * 1024 - 4));
    assert_eq!((driver.read(MPC), driver.read(RDH)), (0, 24));
    driver.read(ICR);
    driver.arrive(&frame(MAC, 48 * 1024 - 3));
    assert_eq!((driver.read(MPC), driver.read(RDH)), (1, 24));
    assert_eq!(driver.read(ICR), 0x40, "RXO");
    assert_eq!((driver.read(TPR), driver.read(GPRC)), (2, 0));
}

#[test]
fn a_medium_that_is_not_there_has_no_errors() {
    let mut driver = Driver::receiving(8, BAM);
    for bytes in [6, 14, 59, 60, 1518, 1519] {
        driver.arrive(&frame(MAC, 20_000)[..bytes]);
    }
    for register in MEDIUM {
        assert_eq!(driver.read(register), 0, "{register:#x}");
    }
    assert_eq!(
        driver.read(RLEC),
        1,
        "short frames were padded on their way"
    );
    assert_eq!(driver.read(GPRC), 5);
}

#[test]
fn nobody_is_on_the_cable_to_collide_with_and_nobody_manages_the_card() {
    // FRCDPLX with FD and without.
    for duplex in [0x1001, 0x1000] {
        let mut driver = Driver::receiving(8, BAM);
        let ctrl = driver.read(CTRL) & !0x1001;
        driver.write(CTRL, ctrl | duplex);
        driver.set_up_transmit(64);
        for _ in 0..3 {
            driver.queue_data(&frame([0xff; 6], 100), EOP | IFCS | RS);
        }
        driver.ring();
        driver.arrive(&frame(MAC, 100));
        assert_eq!(driver.wire.sent().len(), 3);
        for register in COLLISIONS.into_iter().chain(MANAGEMENT) {
            assert_eq!(driver.read(register), 0, "{register:#x}");
        }
    }
}

#[test]
fn nothing_is_counted_while_the_receiver_is_off() {
    let mut driver = Driver::receiving(8, BAM);
    driver.write(RCTL, BAM);
    driver.arrive(&frame(MAC, 100));
    driver.arrive(&frame(MAC, 9000));
    for register in (0x4000..0x4100).step_by(4) {
        assert_eq!(driver.read(register), 0, "{register:#x}");
    }
}

#[test]
fn every_frame_that_finds_no_descriptor_counts() {
    let mut driver = Driver::receiving(8, 0);
    for _ in 0..10 {
        driver.arrive(&frame(MAC, 100));
    }
    assert_eq!(driver.read(RNBC), 1, "others were not looked at");
    driver.write(RDT, 0);
    driver.guest.run_until_idle();
    assert_eq!(driver.read(RNBC), 1, "the next one");
    assert_eq!((driver.read(GPRC), driver.read(MPC)), (9, 0));
}

#[test]
fn what_is_looped_back_and_finds_no_room_is_missed() {
    let mut driver = Driver::receiving(8, BAM | 0x40);
    driver.set_up_transmit(64);
    for _ in 0..20 {
        driver.queue_data(&frame([0xff; 6], 100), EOP | IFCS | RS);
    }
    driver.ring();
    // Seven find descriptors, and one waits.
    assert_eq!((driver.read(GPRC), driver.read(MPC)), (8, 12));
    assert_eq!((driver.read(TPR), driver.read(RNBC)), (20, 1));
    assert_eq!(driver.read(BPRC), 8, "what is missed is not received");
    assert_eq!(driver.read(TORL), 20 * 104);
}

/// A driver whose counters have these values.
fn with_counters(counters: &[(&str, u32)]) -> Driver {
    let mut driver = Driver::receiving(8, BAM);
    driver.guest.set_running(false);
    let mut state: Value = serde_json::from_slice(&driver.guest.save()).unwrap();
    for (name, value) in counters {
        let path = format!("/device/state/registers/{name}");
        *state.pointer_mut(&path).unwrap() = json!([value]);
    }
    let state = serde_json::to_vec(&state).unwrap();
    driver.guest.load_state(&state).unwrap();
    driver.guest.set_running(true);
    driver
}

#[test]
fn counters_stick_at_their_maximum() {
    let mut driver = with_counters(&[("GPRC", u32::MAX), ("TPR", u32::MAX - 1)]);
    driver.arrive(&frame(MAC, 100));
    driver.arrive(&frame(MAC, 100));
    assert_eq!((driver.read(GPRC), driver.read(TPR)), (u32::MAX, u32::MAX));
    assert_eq!((driver.read(GPRC), driver.read(TPR)), (0, 0));
}

#[test]
fn octets_are_counted_in_64_bits_that_clear_with_the_upper_half() {
    let mut driver = with_counters(&[
        ("GORCL", u32::MAX),
        ("TORL", u32::MAX - 10),
        ("TORH", u32::MAX),
    ]);
    driver.arrive(&frame(MAC, 100));
    assert_eq!((driver.read(GORCL), driver.read(GORCL)), (103, 103));
    assert_eq!((driver.read(GORCH), driver.read(GORCH)), (1, 0));
    assert_eq!(driver.read(GORCL), 0);
    assert_eq!((driver.read(TORL), driver.read(TORH)), (u32::MAX, u32::MAX));
    assert_eq!((driver.read(TORL), driver.read(TORH)), (0, 0));
}

/// What the operator sees of the traffic: packets, bytes, drops, errors.
fn totals(driver: &Driver, way: &str) -> [u64; 4] {
    let stats = driver.guest.stats();
    ["packets", "bytes", "drops", "errors"].map(|what| stats[&*format!("network.{way}_{what}")])
}

#[test]
fn the_operator_sees_what_was_received_whatever_the_guest_reads_or_resets() {
    let mut driver = Driver::receiving(8, BAM);
    driver.arrive(&frame(MAC, 100));
    driver.arrive(&frame(MAC, 20));
    driver.arrive(&frame(OTHER, 100));
    driver.arrive(&frame(MAC, 1800));
    driver.read(GPRC);
    // Padded as on the wire.
    assert_eq!(totals(&driver, "received"), [2, 160, 0, 1]);
    driver.guest.reset();
    driver.arrive(&frame(MAC, 100));
    assert_eq!(totals(&driver, "received"), [2, 160, 1, 1], "nobody heard");
    assert_eq!(totals(&driver, "sent"), [0; 4]);
}

#[test]
fn the_operator_sees_what_was_sent_and_what_was_not() {
    let mut driver = Driver::transmitting(8);
    driver.queue_data(&frame(OTHER, 100), EOP | IFCS);
    driver.queue_data(&frame(OTHER, 20), EOP | IFCS);
    // Its own FCS is wrong.
    driver.queue_data(&frame(OTHER, 100), EOP);
    driver.ring();
    assert_eq!(totals(&driver, "sent"), [2, 160, 0, 1]);
    // Without a link.
    let control = driver.read(CTRL);
    driver.write(CTRL, control & !0x40);
    driver.queue_data(&frame(OTHER, 100), EOP | IFCS);
    driver.ring();
    assert_eq!(totals(&driver, "sent"), [2, 160, 1, 1]);
    assert_eq!(totals(&driver, "received"), [0; 4]);
}
