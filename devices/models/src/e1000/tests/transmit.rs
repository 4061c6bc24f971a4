//! Frames from descriptors.

use std::time::Duration;

use super::*;

const GPTC: u64 = 0x4080;
pub(super) const TXDW: u32 = 0x1;
pub(super) const TXQE: u32 = 0x2;
pub(super) const TXD_LOW: u32 = 0x8000;

/// A legacy descriptor of a whole packet.
pub(super) const LEGACY: u64 = EOP | IFCS | RS;
/// A data descriptor of a whole packet.
const DATA: u64 = EOP | IFCS | RS | DEXT | 1 << 20;
const IXSM: u64 = 1 << 40;
const TXSM: u64 = 2 << 40;

/// A context descriptor for IPv4 at 14 and TCP at 34.
fn tcp_context() -> [u64; 2] {
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    [offsets, DEXT | 0x03 << 24]
}

#[test]
fn tail_write_sends_the_frame() {
    let mut driver = Driver::transmitting(8);
    driver.read(ICR);
    let frame = frame([0xff; 6], 1514);
    let index = driver.queue_data(&frame, LEGACY);
    driver.ring();
    assert_eq!(driver.wire.sent(), [frame]);
    assert_eq!(driver.transmit_status(index), 1);
    assert_eq!(driver.read(TDH), 1);
    assert_eq!(driver.read(ICR), TXDW | TXQE | TXD_LOW);
}

#[test]
fn only_rs_reports_status() {
    let mut driver = Driver::transmitting(8);
    driver.read(ICR);
    let index = driver.queue_data(&frame(MAC, 60), EOP | IFCS);
    driver.ring();
    assert_eq!(driver.wire.sent().len(), 1);
    assert_eq!(driver.transmit_status(index), 0);
    assert_eq!(driver.read(ICR), TXQE | TXD_LOW);
}

#[test]
fn descriptors_gather_one_frame() {
    let mut driver = Driver::transmitting(8);
    let frame = frame(MAC, 300);
    driver.queue_data(&frame[..14], IFCS);
    driver.queue_data(&frame[14..100], IFCS);
    driver.queue(0, IFCS | 50);
    driver.queue_data(&frame[100..], LEGACY);
    driver.ring();
    assert_eq!(
        driver.wire.sent(),
        [frame],
        "a null descriptor adds nothing"
    );
}

#[test]
fn short_frames_are_padded_when_psp_says_so() {
    let mut driver = Driver::transmitting(8);
    let short = frame(MAC, 20);
    driver.queue_data(&short, LEGACY);
    driver.ring();
    let sent = driver.wire.sent();
    assert_eq!(sent[0].len(), 60);
    assert_eq!(sent[0][..20], short);
    driver.write(TCTL, 2);
    driver.queue_data(&short, LEGACY);
    driver.ring();
    assert_eq!(driver.wire.sent(), [short]);
}

#[test]
fn without_ifcs_the_guests_fcs_is_checked_and_taken_off() {
    let mut driver = Driver::transmitting(8);
    let mut with_fcs = frame(MAC, 100);
    with_fcs.extend(fcs(&with_fcs));
    driver.queue_data(&with_fcs, EOP | RS);
    driver.ring();
    assert_eq!(driver.wire.sent(), [&with_fcs[..100]]);
    with_fcs[103] ^= 1;
    let index = driver.queue_data(&with_fcs, EOP | RS);
    driver.queue_data(&with_fcs[..3], EOP | RS);
    driver.ring();
    assert!(driver.wire.sent().is_empty(), "nobody would take it");
    assert_eq!(driver.transmit_status(index), 1);
}

#[test]
fn the_ring_wraps() {
    let mut driver = Driver::transmitting(8);
    for round in 0..50 {
        let frames: Vec<_> = (0..5).map(|at| frame(MAC, 60 + round + at)).collect();
        for frame in &frames {
            driver.queue_data(frame, LEGACY);
        }
        driver.ring();
        assert_eq!(driver.wire.sent(), frames);
        assert_eq!(driver.read(TDH), driver.read(TDT));
    }
    assert_eq!(driver.read(GPTC), 250);
}

#[test]
fn nothing_is_sent_while_the_transmitter_is_off() {
    let mut driver = Driver::transmitting(8);
    driver.write(TCTL, 8);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert!(driver.wire.sent().is_empty());
    driver.write(TCTL, 10);
    assert_eq!(driver.wire.sent().len(), 1);
}

#[test]
fn without_a_link_frames_are_lost_and_descriptors_done() {
    let mut driver = Driver::transmitting(8);
    driver.write(CTRL, 1);
    let index = driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert!(driver.wire.sent().is_empty());
    assert_eq!(driver.transmit_status(index), 1);
}

#[test]
fn legacy_checksum_is_inserted() {
    let mut driver = Driver::transmitting(8);
    let right = ipv4_frame(6, b"hello");
    let mut frame = unsummed(&right);
    frame[24..26].copy_from_slice(&right[24..26]);
    driver.queue_data(&frame, LEGACY | 0x04 << 24 | 50 << 16 | 34 << 40);
    driver.ring();
    assert_eq!(driver.wire.sent()[0][..right.len()], right);
}

#[test]
fn a_checksum_outside_the_frame_is_ignored() {
    let mut driver = Driver::transmitting(8);
    let frame = frame(MAC, 80);
    driver.queue_data(&frame, LEGACY | 0x04 << 24 | 79 << 16 | 34 << 40);
    driver.queue_data(&frame, LEGACY | 0x04 << 24 | 20 << 16 | 80 << 40);
    driver.ring();
    assert_eq!(driver.wire.sent(), [frame.clone(), frame]);
}

/// A frame as a driver hands it over for checksum insertion.
fn unsummed(right: &[u8]) -> Vec<u8> {
    let mut frame = right.to_vec();
    frame[24..26].fill(0);
    let covered = with_pseudo_header(&right[26..34], 6, &right[34..]);
    let pseudo = !internet_checksum(&covered[..16]);
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame
}

#[test]
fn a_context_serves_many_packets() {
    let mut driver = Driver::transmitting(16);
    let rights: Vec<_> = (0..3)
        .map(|at| ipv4_frame(6, &vec![at; 100 + usize::from(at)]))
        .collect();
    let [low, high] = tcp_context();
    driver.queue(low, high);
    for right in &rights {
        let frame = unsummed(right);
        // Options count in the first descriptor only.
        driver.queue_data(&frame[..20], DATA & !EOP | IXSM | TXSM);
        driver.queue_data(&frame[20..], DATA);
    }
    driver.ring();
    assert_eq!(driver.wire.sent(), rights);
    driver.queue_data(&unsummed(&rights[0]), DATA);
    driver.ring();
    assert_eq!(
        driver.wire.sent(),
        [unsummed(&rights[0])],
        "no option, no checksum"
    );
}

#[test]
fn a_backend_that_sums_gets_the_rest_of_the_work() {
    let mut driver = Driver::transmitting(16);
    driver.wire.state().offloads.checksum = true;
    let right = ipv4_frame(6, &[7; 100]);
    let [low, high] = tcp_context();
    driver.queue(low, high);
    driver.queue_data(&unsummed(&right), DATA | IXSM | TXSM);
    driver.ring();
    let (frame, offload) = driver.wire.state().sent.remove(0);
    assert_eq!(
        offload,
        Offload::Checksum {
            start: 34,
            offset: 16
        }
    );
    assert_eq!(frame[14..34], right[14..34], "the IP header is summed here");
    assert_eq!(frame[50..52], unsummed(&right)[50..52]);
}

#[test]
fn the_vlan_tag_goes_behind_the_addresses() {
    let mut driver = Driver::transmitting(16);
    driver.wire.state().offloads.checksum = true;
    let right = ipv4_frame(6, &[7; 100]);
    let [low, high] = tcp_context();
    driver.queue(low, high);
    let tagged = DATA | VLE | 0x6123 << 48 | IXSM | TXSM;
    driver.queue_data(&unsummed(&right), tagged);
    driver.ring();
    assert_eq!(
        driver.wire.sent()[0].len(),
        right.len(),
        "not without CTRL.VME"
    );
    driver.set(CTRL, 0x4000_0000);
    driver.queue_data(&unsummed(&right), tagged);
    driver.ring();
    let (frame, offload) = driver.wire.state().sent.remove(0);
    assert_eq!(frame[..12], right[..12]);
    assert_eq!(frame[12..16], [0x81, 0x00, 0x61, 0x23]);
    assert_eq!(frame[16..38], right[12..34]);
    assert_eq!(
        offload,
        Offload::Checksum {
            start: 38,
            offset: 16
        }
    );
}

#[test]
fn a_full_backend_holds_the_ring_until_there_is_room() {
    let mut driver = Driver::transmitting(16);
    driver.wire.state().room = Some(2);
    let frames: Vec<_> = (0..6).map(|at| frame(MAC, 60 + at)).collect();
    let indexes: Vec<_> = frames
        .iter()
        .map(|frame| driver.queue_data(frame, LEGACY))
        .collect();
    driver.ring();
    assert_eq!(driver.wire.sent(), frames[..2]);
    assert_eq!(driver.read(TDH), 2);
    assert_eq!(driver.transmit_status(indexes[2]), 0);
    assert!(driver.wire.state().interest.send);
    driver.wire.state().room = Some(1);
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), frames[2..3]);
    driver.wire.state().room = None;
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), frames[3..]);
    assert!(!driver.wire.state().interest.send);
    assert_eq!(driver.read(TDH), 6);
}

#[test]
fn a_transmitter_that_is_off_does_not_wait_for_room() {
    let mut driver = Driver::transmitting(16);
    driver.wire.state().room = Some(0);
    let frame = frame(MAC, 60);
    driver.queue_data(&frame, LEGACY);
    driver.ring();
    assert!(driver.wire.state().interest.send);
    driver.write(TCTL, 8);
    assert!(!driver.wire.state().interest.send);
    driver.wire.state().room = None;
    driver.write(TCTL, 10);
    assert_eq!(driver.wire.sent(), [frame]);
}

#[test]
fn a_reset_forgets_what_waited() {
    let mut driver = Driver::transmitting(16);
    driver.wire.state().room = Some(0);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    driver.guest.reset();
    assert!(!driver.wire.state().interest.send);
    driver.wire.state().room = None;
    driver.tx_next = 0;
    driver.set_up_transmit(16);
    let other = frame(MAC, 70);
    driver.queue_data(&other, LEGACY);
    driver.ring();
    assert_eq!(driver.wire.sent(), [other]);
}

#[test]
fn a_batch_is_flushed_once() {
    let mut driver = Driver::transmitting(64);
    for _ in 0..40 {
        driver.queue_data(&frame(MAC, 60), LEGACY);
    }
    let tail = driver.tx_next;
    let before = driver.wire.state().flushes;
    driver.write(TDT, tail);
    assert_eq!(driver.wire.sent().len(), 40);
    assert_eq!(driver.wire.state().flushes, before + 1);
}

#[test]
fn one_write_of_the_tail_has_bounded_work() {
    let mut driver = Driver::transmitting(4096);
    driver.guest.store(TX_DATA, &frame(MAC, 1514));
    for _ in 0..4095 {
        driver.queue(TX_DATA, LEGACY | 1514);
    }
    driver.write(TDT, 4095);
    let first = driver.wire.sent().len();
    assert!((100..1000).contains(&first), "{first}");
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent().len(), 4095 - first);
}

#[test]
fn oversize_packets_and_missing_memory_cost_only_themselves() {
    let mut driver = Driver::transmitting(16);
    for _ in 0..9 {
        driver.queue(TX_DATA, DATA & !EOP | 0x2000);
    }
    driver.queue(TX_DATA, DATA | 0x2000);
    driver.queue(TX_DATA, DATA | 16_289);
    driver.queue(0xffff_ffff_ffff_fff0, DATA | 100);
    driver.queue(0x1000_0000_0000, LEGACY | 100);
    let good = frame(MAC, 60);
    let index = driver.queue_data(&good, LEGACY);
    driver.ring();
    assert_eq!(driver.wire.sent(), [good]);
    assert_eq!(driver.transmit_status(index), 1);
}

#[test]
fn a_ring_that_is_not_memory_is_tried_once_a_write() {
    let mut driver = Driver::transmitting(8);
    driver.write(TDBAL, 0xff00_0000);
    driver.write(TDT, 4);
    driver.guest.run_until_idle();
    assert_eq!(driver.read(TDH), 0);
    driver.write(TDBAL, TX_RING as u32);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert_eq!(driver.wire.sent().len(), 1);
}

#[test]
fn a_nonsense_tail_sends_nothing() {
    let mut driver = Driver::transmitting(8);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    for (length, head, tail) in [(128, 0, 8), (128, 0, 0xffff), (128, 9, 1), (0, 0, 1)] {
        driver.write(TDLEN, length);
        driver.write(TDH, head);
        driver.write(TDT, tail);
        driver.guest.run_until_idle();
        assert!(driver.wire.sent().is_empty());
    }
}

#[test]
fn without_bus_mastering_nothing_is_fetched() {
    let mut driver = Driver::transmitting(8);
    driver.guest.config_write(4, &[3, 0]);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert!(driver.wire.sent().is_empty());
    driver.guest.config_write(4, &[7, 0]);
    driver.ring();
    assert_eq!(driver.wire.sent().len(), 1);
}

#[test]
fn sent_frames_are_counted_and_reading_clears() {
    let mut driver = Driver::transmitting(8);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.queue_data(&frame([0xff; 6], 61), LEGACY);
    driver.queue_data(&frame([1, 0, 0x5e, 0, 0, 1], 1514), LEGACY);
    driver.ring();
    for (register, value) in [
        (GPTC, 3),
        (0x4090, 60 + 61 + 1514 + 12),
        (0x4094, 0),
        (0x4090, 0),
        (0x40c8, 60 + 61 + 1514 + 12),
        (0x40c8, 60 + 61 + 1514 + 12),
        (0x40d4, 3),
        (0x40d8, 1),
        (0x40dc, 1),
        (0x40ec, 1),
        (0x40f0, 1),
        (0x40f4, 1),
        (GPTC, 0),
        (0x40d4, 0),
    ] {
        assert_eq!(driver.read(register), value, "{register:#x}");
    }
}

#[test]
fn a_ring_that_can_not_be_read_is_tried_again_less_and_less_often() {
    let mut driver = Driver::transmitting(8);
    driver.guest.advance(Duration::ZERO);
    driver.guest.config_write(4, &[3, 0]);
    let frame = frame(MAC, 60);
    let index = driver.queue_data(&frame, LEGACY);
    driver.ring();
    let mut waited = Vec::new();
    for _ in 0..12 {
        let due = driver.guest.due_in().unwrap();
        waited.push(due.as_millis());
        driver.guest.advance(due);
        driver.guest.run();
    }
    assert_eq!(waited, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
    driver.guest.config_write(4, &[7, 0]);
    driver.guest.advance(Duration::from_secs(1));
    driver.guest.run();
    assert_eq!(driver.wire.sent(), [frame], "without a write of the tail");
    assert_eq!(driver.transmit_status(index), 1);
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn a_transmitter_that_is_off_tries_no_ring() {
    let mut driver = Driver::transmitting(8);
    driver.guest.advance(Duration::ZERO);
    driver.write(TDBAL, 0xff00_0000);
    driver.write(TDT, 4);
    assert_eq!(driver.guest.due_in(), Some(Duration::from_millis(1)));
    driver.write(TCTL, 8);
    assert_eq!(driver.guest.due_in(), None);
}

#[test]
fn descriptors_in_front_of_a_hole_are_done() {
    let mut driver = Driver::new();
    driver.set_link_up();
    let end = pci::testing::MEMORY_BYTES;
    driver.write(TDBAL, (end - 32) as u32);
    driver.write(TDLEN, 128);
    driver.write(TCTL, 0xa);
    let frame = frame(MAC, 60);
    driver.guest.store(TX_DATA, &frame);
    for at in [end - 32, end - 16] {
        driver.guest.store(at, &TX_DATA.to_le_bytes());
        driver.guest.store(at + 8, &(LEGACY | 60).to_le_bytes());
    }
    driver.write(TDT, 5);
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent(), [frame.clone(), frame]);
    assert_eq!(driver.read(TDH), 2);
}

#[test]
fn switched_off_in_the_middle_of_a_packet_the_transmitter_goes_on_with_it() {
    let mut driver = Driver::transmitting(8);
    let frame = frame(MAC, 300);
    driver.queue_data(&frame[..100], IFCS);
    let at = driver.data;
    driver.ring();
    driver.write(TCTL, 8);
    driver.guest.store(at, &frame[100..]);
    driver.queue(at, LEGACY | 200);
    driver.ring();
    assert!(driver.wire.sent().is_empty());
    driver.write(TCTL, 10);
    assert_eq!(driver.wire.sent(), [frame]);
}

#[test]
fn a_tag_brings_a_new_fcs_whatever_ifcs_says() {
    let mut driver = Driver::transmitting(8);
    driver.set(CTRL, 0x4000_0000);
    let frame = frame(MAC, 100);
    driver.queue_data(&frame, EOP | RS | VLE | 7 << 48);
    driver.ring();
    let sent = driver.wire.sent();
    assert_eq!(sent[0].len(), 104, "nothing was taken off as the guest's");
    assert_eq!(sent[0][12..16], [0x81, 0, 0, 7]);
}

#[test]
fn vet_is_the_type_of_tags() {
    let mut driver = Driver::transmitting(8);
    driver.set(CTRL, 0x4000_0000);
    driver.write(0x38, 0x88a8);
    driver.queue_data(&frame(MAC, 100), LEGACY | VLE | 0xffff << 48);
    driver.ring();
    assert_eq!(driver.wire.sent()[0][12..16], [0x88, 0xa8, 0xff, 0xff]);
}

#[test]
fn vle_ifcs_and_ic_count_in_the_last_descriptor() {
    let mut driver = Driver::transmitting(8);
    driver.set(CTRL, 0x4000_0000);
    let right = ipv4_frame(6, b"hello, hello");
    let mut frame = unsummed(&right);
    frame[24..26].copy_from_slice(&right[24..26]);
    let checksum = 0x04 << 24;
    // CSS is the first's, CSO the last's.
    driver.queue_data(&frame[..40], VLE | 9 << 48 | checksum | 14 << 16 | 34 << 40);
    driver.queue_data(&frame[40..], LEGACY | checksum | 50 << 16 | 99 << 40);
    driver.queue_data(&frame[..40], checksum | 50 << 16 | 34 << 40);
    driver.queue_data(&frame[40..], LEGACY | 50 << 16);
    driver.ring();
    assert_eq!(driver.wire.sent(), [right, frame]);
}

#[test]
fn an_ip_checksum_without_an_end_goes_to_the_end_of_the_packet() {
    let mut driver = Driver::transmitting(8);
    // IPCSS 14, IPCSO 16, IPCSE 0.
    driver.queue(14 | 16 << 8, DEXT);
    let mut frame = frame(MAC, 101);
    driver.queue_data(&frame, DATA | IXSM);
    driver.ring();
    let sum = internet_checksum(&frame[14..]);
    frame[16..18].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(driver.wire.sent(), [frame]);
}

#[test]
fn a_context_reports_its_status_like_others() {
    let mut driver = Driver::transmitting(8);
    driver.read(ICR);
    let [low, high] = tcp_context();
    let index = driver.queue(low, high | RS);
    driver.ring();
    assert_eq!(driver.transmit_status(index), 1);
    assert_eq!(driver.read(ICR) & TXDW, TXDW);
    assert_eq!(driver.read(TDH), 1);
}

#[test]
fn reserved_descriptor_types_are_passed_over() {
    let mut driver = Driver::transmitting(8);
    let index = driver.queue(TX_DATA, LEGACY | DEXT | 5 << 20 | 60);
    driver.ring();
    assert!(driver.wire.sent().is_empty());
    assert_eq!((driver.transmit_status(index), driver.read(TDH)), (1, 1));
}

#[test]
fn the_longest_packet_has_16288_bytes() {
    let mut driver = Driver::transmitting(16);
    for (bytes, is_sent) in [(16_288usize, true), (16_289, false)] {
        for parts in [1, 3] {
            let frame = frame(MAC, bytes);
            let chunks: Vec<_> = frame.chunks(bytes.div_ceil(parts)).collect();
            for (at, chunk) in chunks.iter().enumerate() {
                let end = if at + 1 == chunks.len() { LEGACY } else { 0 };
                driver.queue_data(chunk, end);
            }
            driver.ring();
            assert_eq!(driver.wire.sent().len(), usize::from(is_sent), "{bytes}");
            assert_eq!(driver.read(TDH), driver.read(TDT));
        }
    }
}

#[test]
fn inert_registers_change_no_frame() {
    // COLD, CT, RTLC; TIPG; AIT; TBT; TSPMT; TADV.
    for (register, value) in [
        (TCTL, 0x013f_fffa),
        (0x0410, 0x3fff_ffff),
        (0x0458, 0xffff),
        (0x0448, 0xffff),
        (0x3830, 0xffff_ffff),
        (0x382c, 0xffff),
    ] {
        let mut driver = Driver::transmitting(8);
        driver.write(register, value);
        let frame = frame(MAC, 60);
        let index = driver.queue_data(&frame, LEGACY);
        driver.ring();
        assert_eq!(driver.wire.sent(), [frame], "{register:#x}");
        assert_eq!(driver.transmit_status(index), 1);
        assert_eq!(driver.guest.due_in(), None);
    }
}

#[test]
fn frames_below_64_bytes_are_none_of_the_good_ones() {
    let mut driver = Driver::transmitting(8);
    driver.write(TCTL, 2);
    driver.queue_data(&frame(MAC, 59), LEGACY);
    driver.queue_data(&frame(MAC, 60), LEGACY);
    driver.ring();
    assert_eq!(
        (driver.read(0x40d4), driver.read(0x40c8)),
        (2, 127),
        "TPT, TOT"
    );
    assert_eq!(
        (driver.read(GPTC), driver.read(0x4090)),
        (1, 64),
        "GPTC, GOTC"
    );
    assert_eq!(driver.read(0x40d8), 1, "PTC64");
}

#[test]
fn a_contexts_checksum_outside_of_the_packet_is_not_inserted() {
    let frame = frame(MAC, 80);
    for offsets in [
        14 | 200 << 8 | 33 << 16 | 34 << 32 | 200 << 40,
        14 | 79 << 8 | 33 << 16 | 34 << 32 | 79 << 40,
        90 | 20 << 8 | 34 << 32 | 40 << 40 | 200 << 48,
    ] {
        let mut driver = Driver::transmitting(8);
        driver.queue(offsets, DEXT);
        driver.queue_data(&frame, DATA | IXSM | TXSM);
        driver.ring();
        assert_eq!(driver.wire.sent(), [&frame[..]], "{offsets:#x}");
    }
}

#[test]
fn a_checksum_may_end_before_the_packet_does() {
    let mut driver = Driver::transmitting(8);
    driver.wire.state().offloads.checksum = true;
    // TUCSE 59, inclusive.
    driver.queue(34 << 32 | 40 << 40 | 59 << 48, DEXT);
    let mut frame = frame(MAC, 80);
    driver.queue_data(&frame, DATA | TXSM);
    driver.ring();
    let sum = internet_checksum(&frame[34..60]);
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(driver.wire.sent(), [frame]);
}

#[test]
fn a_null_descriptor_reports_its_status() {
    let mut driver = Driver::transmitting(8);
    let null = driver.queue(0, RS | 50);
    let empty = driver.queue(TX_DATA, RS);
    driver.ring();
    assert_eq!(
        (driver.transmit_status(null), driver.transmit_status(empty)),
        (1, 1)
    );
    assert!(driver.wire.sent().is_empty());
}

#[test]
fn the_rings_address_has_64_bits() {
    let mut driver = Driver::transmitting(8);
    driver.guest.advance(Duration::ZERO);
    driver.write(0x3804, 1);
    let frame = frame(MAC, 60);
    driver.queue_data(&frame, LEGACY);
    driver.ring();
    assert!(driver.wire.sent().is_empty(), "nothing is there");
    driver.write(0x3804, 0);
    driver.guest.advance(Duration::from_millis(1));
    driver.guest.run();
    assert_eq!(driver.wire.sent(), [frame]);
}

#[test]
fn the_longest_ring_wraps() {
    let mut driver = Driver::transmitting(8);
    // In memory where nothing else is: 1 MiB less 128 bytes.
    let (ring, count) = (0x80_0000, 0xfff80 / 16);
    driver.write(TDBAL, ring as u32);
    driver.write(TDLEN, 0xfff80);
    driver.guest.store(TX_DATA, &frame(MAC, 100));
    for (index, bytes) in [(count - 1, 70), (0, 80)] {
        driver.descriptor(ring, index, [TX_DATA, LEGACY | bytes]);
    }
    driver.write(TDH, count - 1);
    driver.write(TDT, 1);
    driver.guest.run_until_idle();
    let lengths: Vec<_> = driver.wire.sent().iter().map(Vec::len).collect();
    assert_eq!((lengths, driver.read(TDH)), (vec![70, 80], 1));
}
