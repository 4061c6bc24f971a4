//! When the guest hears of descriptors that are done: status, thresholds, and causes.

use std::time::Duration;

use super::{
    transmit::{LEGACY, TXD_LOW, TXDW, TXQE},
    *,
};

const TIDV: u64 = 0x3820;
const TXDCTL: u64 = 0x3828;
const IDE: u64 = 0x80 << 24;
/// TXDCTL.GRAN: thresholds count descriptors.
const GRAN: u32 = 1 << 24;

fn tick(count: u64) -> Duration {
    Duration::from_nanos(1024 * count)
}

#[test]
fn only_the_status_of_a_descriptor_is_written_back() {
    let mut driver = Driver::transmitting(8);
    let frame = frame(MAC, 60);
    driver.queue_data(&frame, LEGACY | 0xff << 36 | 0xabcd << 48);
    driver.queue_data(&frame, EOP | IFCS);
    let before = driver.guest.load(TX_RING, 32);
    driver.ring();
    let mut expected = before;
    expected[12] = 1;
    assert_eq!(driver.guest.load(TX_RING, 32), expected);
}

#[test]
fn a_batch_is_reported_where_rs_asks_for_it() {
    let mut driver = Driver::transmitting(128);
    for round in 0..3u32 {
        let asks = |index: u32| (index * 7 + round).is_multiple_of(3);
        let indexes: Vec<_> = (0..100)
            .map(|_| {
                let report = if asks(driver.tx_next) { RS } else { 0 };
                driver.queue_data(&frame(MAC, 60), EOP | IFCS | report)
            })
            .collect();
        driver.ring();
        for index in indexes {
            assert_eq!(
                driver.transmit_status(index),
                u8::from(asks(index)),
                "{index}"
            );
        }
    }
}

#[test]
fn with_a_threshold_descriptors_wait_for_others() {
    let mut driver = Driver::transmitting(32);
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, GRAN | 4 << 16);
    driver.read(ICR);
    // It takes one with RS to begin; the others count then.
    for command in [EOP | IFCS, LEGACY, EOP | IFCS, LEGACY] {
        driver.queue_data(&frame(MAC, 60), command);
        driver.ring();
    }
    assert_eq!(driver.wire.sent().len(), 4);
    assert_eq!(driver.read(TDH), 4);
    assert_eq!(driver.read(ICR) & TXDW, 0);
    assert_eq!(
        (driver.transmit_status(1), driver.transmit_status(3)),
        (0, 0)
    );
    driver.queue_data(&frame(MAC, 60), EOP | IFCS);
    driver.ring();
    assert_eq!(driver.read(ICR) & TXDW, TXDW);
    let statuses = [0, 1, 2, 3, 4].map(|index| driver.transmit_status(index));
    assert_eq!(statuses, [0, 1, 0, 1, 0], "only RS makes DD");
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn descriptors_that_wait_are_written_back_when_tidv_has_passed() {
    let mut driver = Driver::transmitting(32);
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, GRAN | 4 << 16);
    driver.read(ICR);
    let first = driver.queue_data(&frame(MAC, 60), LEGACY | IDE);
    driver.ring();
    driver.guest.advance(tick(4));
    let second = driver.queue_data(&frame(MAC, 60), LEGACY | IDE);
    driver.ring();
    assert_eq!(driver.guest.due_in(), Some(tick(6)), "the first started it");
    driver.guest.advance(tick(6) - Duration::from_nanos(1));
    driver.guest.run();
    assert_eq!(
        (driver.transmit_status(first), driver.read(ICR) & TXDW),
        (0, 0)
    );
    driver.guest.advance(Duration::from_nanos(1));
    driver.guest.run();
    let statuses = [first, second].map(|index| driver.transmit_status(index));
    assert_eq!(statuses, [1, 1]);
    assert_eq!(driver.read(ICR) & TXDW, TXDW);
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn without_tidv_nothing_waits() {
    let mut driver = Driver::transmitting(32);
    driver.write(TXDCTL, GRAN | 4 << 16);
    let index = driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert_eq!(driver.transmit_status(index), 1);
}

#[test]
fn a_threshold_of_one_is_none() {
    let mut driver = Driver::transmitting(32);
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, GRAN | 1 << 16);
    let index = driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert_eq!(driver.transmit_status(index), 1);
}

#[test]
fn thresholds_count_cache_lines_without_gran() {
    // Cache Line Size counts words: none, one descriptor and four of them.
    for (words, waits) in [(0, 0), (4, 1), (16, 7)] {
        let mut driver = Driver::transmitting(32);
        driver.guest.config_write(0x0c, &[words]);
        driver.guest.advance(Duration::ZERO);
        driver.write(TIDV, 10);
        driver.write(TXDCTL, 2 << 16);
        let first = driver.queue_data(&frame(MAC, 60), LEGACY);
        driver.ring();
        for count in 0..8 {
            let expected = u8::from(count >= waits);
            assert_eq!(driver.transmit_status(first), expected, "{words} {count}");
            driver.queue_data(&frame(MAC, 60), LEGACY);
            driver.ring();
        }
    }
}

#[test]
fn a_lower_threshold_takes_effect_at_once() {
    let mut driver = Driver::transmitting(32);
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, GRAN | 8 << 16);
    let index = driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert_eq!(driver.transmit_status(index), 0);
    driver.write(TXDCTL, GRAN);
    assert_eq!(driver.transmit_status(index), 1);
}

#[test]
fn descriptors_that_wait_may_lie_around_the_end_of_the_ring() {
    let mut driver = Driver::transmitting(8);
    driver.write(TDH, 6);
    driver.write(TDT, 6);
    driver.tx_next = 6;
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, GRAN | 4 << 16);
    let indexes = [(); 4].map(|()| {
        let index = driver.queue_data(&frame(MAC, 60), LEGACY);
        driver.ring();
        index
    });
    assert_eq!(indexes, [6, 7, 0, 1]);
    assert_eq!(indexes.map(|index| driver.transmit_status(index)), [1; 4]);
}

#[test]
fn the_chip_has_room_for_64_descriptors_that_wait() {
    let mut driver = Driver::transmitting(128);
    driver.guest.config_write(0x0c, &[64]);
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, 63 << 16);
    let indexes: Vec<_> = (0..65)
        .map(|_| driver.queue_data(&frame(MAC, 60), LEGACY))
        .collect();
    driver.ring();
    assert_eq!(driver.transmit_status(indexes[63]), 1);
    assert_eq!(driver.transmit_status(indexes[64]), 0);
}

#[test]
fn a_reset_forgets_what_was_not_written_back() {
    let mut driver = Driver::transmitting(32);
    driver.guest.advance(Duration::ZERO);
    driver.write(TIDV, 10);
    driver.write(TXDCTL, GRAN | 8 << 16);
    let index = driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    driver.write(CTRL, 0x0400_0000);
    assert_eq!(driver.guest.due_in(), None);
    assert_eq!(driver.transmit_status(index), 0);
}

#[test]
fn prefetch_thresholds_hold_nothing_back() {
    let mut driver = Driver::transmitting(32);
    driver.write(TXDCTL, GRAN | 0x3f << 8 | 0x3f);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert_eq!(driver.wire.sent().len(), 1);
}

#[test]
fn txd_low_comes_when_descriptors_fall_to_the_threshold() {
    let mut driver = Driver::transmitting(32);
    driver.write(TXDCTL, 1 << 25);
    for (queued, room, raised) in [
        (8, 0, 0),
        (4, 3, 0),
        (0, 1, TXD_LOW),
        (0, 2, 0),
        (3, 1, TXD_LOW),
    ] {
        for _ in 0..queued {
            driver.queue_data(&frame(MAC, 60), LEGACY);
        }
        driver.read(ICR);
        driver.wire.state().room = Some(room);
        driver.ring();
        assert_eq!(driver.read(ICR) & TXD_LOW, raised, "{queued} {room}");
    }
}

#[test]
fn without_a_threshold_txd_low_comes_with_the_last_descriptor() {
    let mut driver = Driver::transmitting(32);
    for _ in 0..3 {
        driver.queue_data(&frame(MAC, 60), LEGACY);
    }
    driver.wire.state().room = Some(2);
    driver.ring();
    assert_eq!(driver.read(ICR) & (TXD_LOW | TXQE), 0);
    driver.wire.state().room = Some(1);
    driver.guest.run_until_idle();
    assert_eq!(driver.read(ICR) & (TXD_LOW | TXQE), TXD_LOW | TXQE);
}
