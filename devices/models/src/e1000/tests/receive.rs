//! Frames into buffers.

use super::*;

const RXT0: u32 = 0x80;
const RXDMT0: u32 = 0x10;
const RXO: u32 = 0x40;
const BAM: u32 = 0x8000;
const SECRC: u32 = 0x0400_0000;
const DD: u8 = 0x01;
const EOP: u8 = 0x02;
const IXSM: u8 = 0x04;
const VP: u8 = 0x08;
const TCPCS: u8 = 0x20;
const IPCS: u8 = 0x40;
const PIF: u8 = 0x80;

#[test]
fn a_frame_goes_into_a_buffer() {
    let mut driver = Driver::receiving(8, BAM);
    driver.read(ICR);
    driver.write(IMS, RXT0);
    driver.guest.interrupted();
    let frame = frame(MAC, 1514);
    driver.arrive(&frame);
    let received = driver.received(0);
    assert_eq!(received.data.len(), 1518, "with FCS");
    assert_eq!(received.data[..1514], frame);
    assert_eq!(received.data[1514..], fcs(&frame));
    assert_eq!(received.status, DD | EOP | IXSM);
    assert_eq!(received.errors, 0);
    assert_eq!(driver.read(RDH), 1);
    assert!(driver.guest.interrupted());
    assert_eq!(driver.read(ICR), RXT0);
}

#[test]
fn the_fcs_is_stripped_and_short_frames_are_padded() {
    let mut driver = Driver::receiving(8, SECRC);
    let short = frame(MAC, 42);
    driver.arrive(&short);
    let received = driver.received(0);
    assert_eq!(received.data.len(), 60);
    assert_eq!(received.data[..42], short);
    assert_eq!(received.data[42..], [0; 18]);
}

#[test]
fn a_long_frame_takes_many_buffers() {
    // LPE, buffers of 256 bytes.
    let mut driver = Driver::receiving(64, SECRC | 0x20 | 0x3_0000);
    let frame = frame(MAC, 9014);
    driver.arrive(&frame);
    let mut data = Vec::new();
    for index in 0..36 {
        let received = driver.received(index);
        assert_eq!(
            received.status & (DD | EOP),
            if index == 35 { DD | EOP } else { DD }
        );
        data.extend(received.data);
    }
    assert_eq!(data, frame);
    assert_eq!(driver.received(36).status, 0);
}

#[test]
fn buffers_have_the_size_that_rctl_says() {
    for (size, bytes) in [
        (0, 2048),
        (0x1_0000, 1024),
        (0x2_0000, 512),
        (0x3_0000, 256),
        (0x0201_0000, 16_384),
        (0x0202_0000, 8192),
        (0x0203_0000, 4096),
    ] {
        let mut driver = Driver::receiving(64, SECRC | 0x20 | size);
        driver.arrive(&frame(MAC, 16_000));
        assert_eq!(driver.received(0).data.len(), bytes.min(16_000));
    }
}

#[test]
fn long_frames_need_lpe() {
    let mut driver = Driver::receiving(16, 0);
    driver.arrive(&frame(MAC, 1519));
    assert_eq!(driver.received(0).status, 0);
    assert_eq!(driver.read(0x40ac), 1, "ROC");
    driver.arrive(&frame(MAC, 1518));
    assert_eq!(driver.received(0).data.len(), 1522);
}

#[test]
fn addresses_are_filtered() {
    let other = [2, 0, 0, 0, 0, 9];
    let group = [0x01, 0x00, 0x5e, 0x7f, 0xab, 0xcd];
    let accepted = |rctl: u32, destination: [u8; 6]| {
        let mut driver = Driver::receiving(8, rctl);
        driver.arrive(&frame(destination, 60));
        let status = driver.received(0).status;
        (status & DD == DD, status & PIF == PIF)
    };
    assert_eq!(accepted(0, MAC), (true, false));
    assert_eq!(accepted(0, other), (false, false));
    assert_eq!(accepted(0x08, other), (true, true));
    assert_eq!(accepted(0, [0xff; 6]), (false, false));
    assert_eq!(accepted(BAM, [0xff; 6]), (true, false));
    assert_eq!(accepted(0x08, group), (false, false));
    assert_eq!(accepted(0x10, group), (true, true));
}

#[test]
fn any_receive_address_matches_once_it_is_valid() {
    let mut driver = Driver::receiving(8, 0);
    let other = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
    driver.write(0x5478, 0x3322_1102);
    driver.write(0x547c, 0x0000_5544);
    driver.arrive(&frame(other, 60));
    assert_eq!(driver.received(0).status, 0);
    driver.write(0x547c, 0x8000_5544);
    driver.arrive(&frame(other, 60));
    assert_eq!(driver.received(0).status & (DD | PIF), DD);
    // AS 1: the source is compared.
    driver.write(0x5478, 0x0000_0002);
    driver.write(0x547c, 0x8001_0100);
    driver.arrive(&frame(other, 60));
    assert_eq!(driver.received(1).status & DD, DD);
}

#[test]
fn the_multicast_table_hashes_by_mo() {
    // 01:00:5e:00:5a:c3: the last 16 bits are 0xc35a, of which MO chooses 12.
    let group = [0x01, 0x00, 0x5e, 0x00, 0x5a, 0xc3];
    for (mo, hash) in [(0u32, 0xc35u32), (1, 0x86b), (2, 0x0d6), (3, 0x35a)] {
        let mut driver = Driver::receiving(8, mo << 12);
        let register = 0x5200 + u64::from(hash >> 5) * 4;
        driver.write(register, !(1 << (hash & 31)));
        driver.arrive(&frame(group, 60));
        assert_eq!(driver.received(0).status, 0, "mo {mo}");
        driver.write(register, 1 << (hash & 31));
        driver.arrive(&frame(group, 60));
        assert_eq!(driver.received(0).status & (DD | PIF), DD | PIF, "mo {mo}");
    }
}

fn tagged(tag: u16, bytes: usize) -> Vec<u8> {
    let mut frame = frame(MAC, bytes);
    frame.splice(12..12, [0x81, 0x00, (tag >> 8) as u8, tag as u8]);
    frame
}

#[test]
fn vlan_tags_are_filtered_and_stripped() {
    let mut driver = Driver::receiving(8, SECRC);
    driver.arrive(&tagged(0x6123, 100));
    let kept = driver.received(0);
    assert_eq!((kept.data.len(), kept.status & VP), (104, 0));
    driver.set(CTRL, 0x4000_0000);
    driver.arrive(&tagged(0x6123, 100));
    let stripped = driver.received(1);
    assert_eq!(stripped.data, frame(MAC, 100));
    assert_eq!((stripped.status & VP, stripped.special), (VP, 0x6123));
    // VFE: only what the table names.
    driver.set(RCTL, 0x4_0000);
    driver.arrive(&tagged(0x6123, 100));
    assert_eq!(driver.received(2).status, 0);
    driver.write(0x5600 + 0x123 / 32 * 4, 1 << (0x123 % 32));
    driver.arrive(&tagged(0x6123, 100));
    assert_eq!(driver.received(2).status & DD, DD);
    // CFIEN, with CFI 0: tags with the indicator are dropped.
    driver.set(RCTL, 0x8_0000);
    driver.arrive(&tagged(0x7123, 100));
    assert_eq!(driver.received(3).status, 0);
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.received(3).status & DD, DD, "no tag, no filter");
}

#[test]
fn checksums_are_judged() {
    let judge = |frame: &[u8]| {
        let mut driver = Driver::receiving(8, 0);
        driver.write(0x5000, 0x700);
        driver.arrive(frame);
        let received = driver.received(0);
        (received.status & (IXSM | IPCS | TCPCS), received.errors)
    };
    for protocol in [6, 17] {
        let good = ipv4_frame(protocol, &[9; 101]);
        assert_eq!(judge(&good), (IPCS | TCPCS, 0));
        let mut bad = good.clone();
        bad[100] ^= 1;
        assert_eq!(judge(&bad), (IPCS | TCPCS, 0x20));
        let mut bad = good.clone();
        bad[22] -= 1;
        assert_eq!(judge(&bad).1, 0x40);
        let mut fragment = good;
        fragment[20] = 0x20;
        assert_eq!(judge(&fragment).0, IPCS);
    }
    assert_eq!(judge(&ipv6_frame(&[1; 200])), (TCPCS, 0));
    let mut bad = ipv6_frame(&[1; 200]);
    bad[60] ^= 0x80;
    assert_eq!(judge(&bad), (TCPCS, 0x20));
    assert_eq!(judge(&frame(MAC, 60)), (IXSM, 0));
    let mut snap = ipv4_frame(6, &[9; 100]);
    snap.splice(12..12, [0, 150, 0xaa, 0xaa, 3, 0, 0, 0]);
    assert_eq!(judge(&snap), (IPCS | TCPCS, 0));
    let mut unsummed = ipv4_frame(17, &[1; 50]);
    unsummed[40..42].fill(0);
    assert_eq!(judge(&unsummed), (IPCS, 0), "UDP without a checksum");
    for length in 0..54 {
        judge(&ipv4_frame(6, &[])[..length]);
        judge(&ipv6_frame(&[])[..length]);
    }
}

#[test]
fn the_packet_checksum_covers_what_is_stored_from_pcss_on() {
    let mut driver = Driver::receiving(8, 0);
    driver.write(0x5000, 14);
    let mut frame = frame(MAC, 101);
    driver.arrive(&frame);
    driver.set(RCTL, SECRC);
    driver.arrive(&frame);
    assert_eq!(
        driver.received(1).checksum,
        !internet_checksum(&frame[14..])
    );
    frame.extend(fcs(&frame));
    assert_eq!(
        driver.received(0).checksum,
        !internet_checksum(&frame[14..])
    );
}

#[test]
fn a_full_ring_leaves_frames_in_the_backend() {
    let mut driver = Driver::receiving(8, 0);
    driver.read(ICR);
    for index in 0..10 {
        driver.wire.arrive(&frame(MAC, 100 + index));
    }
    driver.guest.run_until_idle();
    assert_eq!(driver.read(RDH), 7);
    assert_eq!(driver.read(0x40a0), 1, "RNBC: one waits here");
    assert_eq!(driver.read(ICR) & RXO, RXO);
    assert_eq!(driver.wire.state().arriving.len(), 2);
    assert!(!driver.wire.state().interest.receive);
    driver.write(RDT, 1);
    assert_eq!(driver.received(7).data.len(), 111);
    assert_eq!(driver.received(0).data.len(), 112);
    assert_eq!(driver.wire.state().arriving.len(), 0);
    assert_eq!(driver.read(0x40a0), 1);
    driver.write(RDT, 6);
    driver.guest.run_until_idle();
    assert_eq!(driver.received(1).data.len(), 113);
    assert!(driver.wire.state().interest.receive);
    assert_eq!(driver.read(0x4074), 10, "none was lost");
    assert_eq!(driver.read(0x4010), 0);
}

#[test]
fn a_frame_goes_on_when_descriptors_come() {
    // Buffers of 256 bytes, of which the frame needs six.
    let mut driver = Driver::receiving(16, SECRC | 0x3_0000);
    driver.write(RDT, 5);
    let frame = frame(MAC, 1500);
    driver.arrive(&frame);
    assert_eq!(driver.read(RDH), 5);
    assert_eq!(driver.received(4).status, DD);
    assert_eq!(driver.received(5).status, 0);
    assert_eq!(driver.read(0x40a0), 0, "there were buffers");
    assert_eq!(driver.read(ICR) & RXO, RXO);
    driver.write(RDT, 6);
    let stored: Vec<_> = (0..6).map(|index| driver.received(index).data).collect();
    let lengths: Vec<_> = stored.iter().map(Vec::len).collect();
    assert_eq!(lengths, [256, 256, 256, 256, 256, 220]);
    assert_eq!(stored.concat(), frame);
    assert_eq!(driver.received(5).status & EOP, EOP);
    assert_eq!(driver.read(0x4074), 1);
}

#[test]
fn a_frame_may_be_longer_than_the_ring() {
    let mut driver = Driver::receiving(8, SECRC | 0x20 | 0x3_0000);
    let frame = frame(MAC, 9000);
    driver.arrive(&frame);
    let mut data = Vec::new();
    for index in 0.. {
        let index = index % 8;
        let received = driver.received(index);
        assert_eq!(received.status & DD, DD);
        data.extend(received.data);
        driver.descriptor(RX_RING, index, [RX_DATA + u64::from(index) * RX_STRIDE, 0]);
        driver.write(RDT, index);
        if received.status & EOP == EOP {
            break;
        }
    }
    assert_eq!(data, frame);
    assert_eq!(driver.read(0x4074), 1);
    assert_eq!(driver.read(0x4010), 0);
}

#[test]
fn a_frame_that_waits_outlives_the_switch_but_no_reset() {
    for (reset, expected) in [(false, 1), (true, 0)] {
        let mut driver = Driver::receiving(8, SECRC);
        for _ in 0..8 {
            driver.arrive(&frame(MAC, 100));
        }
        driver.write(RCTL, SECRC);
        // It is off: these are lost, and the one before stays.
        driver.arrive(&frame(MAC, 200));
        driver.arrive(&frame(MAC, 200));
        assert!(driver.wire.state().arriving.is_empty());
        driver.read(0x4074);
        if reset {
            driver.write(CTRL, 0x0400_0000);
            driver.write(RDBAL, RX_RING as u32);
            driver.write(RDLEN, 128);
        }
        driver.descriptor(RX_RING, 7, [RX_DATA, 0]);
        driver.write(RDH, 7);
        driver.write(RDT, 3);
        assert_eq!(driver.received(7).status, 0, "it is still off");
        driver.write(RCTL, SECRC | 2);
        driver.guest.run_until_idle();
        let received = driver.received(7);
        assert_eq!(u32::from(received.status & DD), expected);
        assert_eq!(received.data.len(), 100 * expected as usize);
    }
}

#[test]
fn a_receiver_that_is_off_loses_frames() {
    let mut driver = Driver::receiving(8, 0);
    driver.write(RCTL, 0);
    driver.arrive(&frame(MAC, 100));
    assert!(driver.wire.state().arriving.is_empty());
    driver.write(RCTL, 2);
    driver.write(CTRL, 1);
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.received(0).status, 0, "no link either");
    driver.set_link_up();
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.received(0).status & DD, DD);
}

#[test]
fn the_ring_wraps() {
    let mut driver = Driver::receiving(8, SECRC);
    for round in 0..100u32 {
        let frame = frame(MAC, 60 + round as usize);
        driver.arrive(&frame);
        let index = round % 8;
        assert_eq!(driver.received(index).data, frame);
        driver.descriptor(RX_RING, index, [RX_DATA + u64::from(index) * RX_STRIDE, 0]);
        driver.write(RDT, index);
    }
}

#[test]
fn the_minimum_threshold_interrupts_once() {
    let mut driver = Driver::receiving(16, 0x100);
    driver.read(ICR);
    // A quarter of 16 descriptors.
    let causes: Vec<_> = (0..13)
        .map(|_| {
            driver.arrive(&frame(MAC, 60));
            driver.read(ICR)
        })
        .collect();
    let crossings: Vec<_> = (0..13).filter(|at| causes[*at] & RXDMT0 != 0).collect();
    assert_eq!(crossings, [10], "15 descriptors, less 11");
}

#[test]
fn a_buffer_that_is_not_memory_loses_the_frame() {
    let mut driver = Driver::receiving(8, 0);
    driver.descriptor(RX_RING, 0, [0xffff_ffff_ffff_ff00, 0]);
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.read(0x4010), 1);
    driver.descriptor(RX_RING, 0, [RX_DATA, 0]);
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.received(0).status & DD, DD);
}

#[test]
fn a_null_descriptor_is_passed_over() {
    let mut driver = Driver::receiving(8, SECRC);
    driver.descriptor(RX_RING, 0, [0, 0]);
    let before = driver.guest.load(0, 64);
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.guest.load(0, 64), before);
    let null = driver.guest.load(RX_RING + 8, 5);
    assert_eq!((null[0], null[4] & (DD | EOP)), (0, DD));
    assert_eq!(driver.received(1).data, frame(MAC, 100));
}

#[test]
fn small_packets_are_detected() {
    let mut driver = Driver::receiving(8, SECRC);
    driver.write(0x2c00, 100);
    driver.read(ICR);
    driver.arrive(&frame(MAC, 101));
    assert_eq!(driver.read(ICR), RXT0);
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.read(ICR), RXT0 | 0x1_0000);
}

#[test]
fn received_frames_are_counted() {
    let mut driver = Driver::receiving(16, BAM | 0x10);
    driver.arrive(&frame(MAC, 60));
    driver.arrive(&frame([0xff; 6], 200));
    driver.arrive(&frame([1, 0, 0x5e, 0, 0, 1], 1000));
    driver.arrive(&frame([2, 9, 9, 9, 9, 9], 300));
    for (register, value) in [
        (0x4074, 3),
        (0x4078, 1),
        (0x407c, 1),
        (0x4088, 1260 + 12),
        (0x408c, 0),
        (0x4088, 0),
        (0x405c, 1),
        (0x4064, 1),
        (0x406c, 1),
        (0x40d0, 4),
        (0x40c0, 1560 + 16),
        (0x4074, 0),
    ] {
        assert_eq!(driver.read(register), value, "{register:#x}");
    }
}

#[test]
fn loopback_returns_what_is_sent() {
    // MAC loopback, and the PHY's: control 0x4140.
    for phy in [false, true] {
        let mut driver = Driver::receiving(16, if phy { BAM } else { BAM | 0x40 });
        driver.set_up_transmit(16);
        if phy {
            driver.write(0x0020, 0x0420_4140);
        }
        let frame = frame([0xff; 6], 1024);
        for index in 0..10 {
            driver.queue_data(&frame, 0x0b << 24);
            driver.ring();
            assert_eq!(driver.received(index).data[..1024], frame);
        }
        assert!(driver.wire.sent().is_empty());
        assert_eq!(driver.read(0x4074), 10);
    }
}

#[test]
fn a_bsize_that_is_reserved_is_the_largest() {
    let mut driver = Driver::receiving(8, SECRC | 0x20 | 0x0200_0000);
    driver.arrive(&frame(MAC, 16_380));
    assert_eq!(driver.received(0).data.len(), 16_380);
}

#[test]
fn buffers_may_lie_anywhere() {
    let mut driver = Driver::receiving(8, SECRC);
    for index in 0..7 {
        driver.descriptor(RX_RING, index, [RX_DATA + u64::from(index) * 0x1001 + 3, 0]);
    }
    for index in 0..7 {
        let frame = frame(MAC, 1000 + index as usize);
        driver.arrive(&frame);
        assert_eq!(driver.received(index).data, frame);
    }
}

#[test]
fn only_the_last_descriptor_tells_of_the_packet() {
    let mut driver = Driver::receiving(8, SECRC | 0x3_0000);
    driver.write(0x5000, 0x300);
    driver.set(CTRL, 0x4000_0000);
    let mut frame = ipv4_frame(6, &[7; 400]);
    frame[60] ^= 1;
    frame.splice(12..12, [0x81, 0, 0, 9]);
    driver.arrive(&frame);
    let (first, last) = (driver.received(0), driver.received(1));
    assert_eq!((first.status, first.errors, first.special), (DD, 0, 0));
    assert_eq!(last.status, DD | EOP | VP | TCPCS | IPCS);
    assert_eq!((last.errors, last.special), (0x20, 9));
}

#[test]
fn a_null_descriptor_gets_dd_and_nothing_else() {
    let mut driver = Driver::receiving(8, SECRC);
    driver.descriptor(RX_RING, 0, [0, 0x1122_3340_5566_7788]);
    driver.arrive(&frame(MAC, 100));
    let null = driver.guest.load(RX_RING, 16);
    assert_eq!(null[..8], [0; 8]);
    assert_eq!(null[8..], 0x1122_3341_5566_7788u64.to_le_bytes());
    assert_eq!(driver.received(1).data, frame(MAC, 100));
}

#[test]
fn a_ring_of_null_descriptors_takes_nothing() {
    let mut driver = Driver::receiving(8, SECRC);
    for index in 0..8 {
        driver.descriptor(RX_RING, index, [0, 0]);
    }
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.read(RDH), 7);
    driver.descriptor(RX_RING, 7, [RX_DATA, 0]);
    driver.write(RDT, 0);
    assert_eq!(driver.received(7).data, frame(MAC, 100));
}

#[test]
fn nothing_beyond_the_tail_is_touched() {
    let mut driver = Driver::receiving(128, SECRC);
    driver.write(RDT, 40);
    for index in 40..128 {
        driver.descriptor(RX_RING, index, [0x1234_5678, 0x5a5a]);
    }
    let before = driver.guest.load(RX_RING + 40 * 16, 88 * 16);
    for _ in 0..60 {
        driver.wire.arrive(&frame(MAC, 100));
    }
    driver.guest.run_until_idle();
    assert_eq!(driver.read(RDH), 40);
    assert_eq!(driver.guest.load(RX_RING + 40 * 16, 88 * 16), before);
}

#[test]
fn bursts_fill_the_ring_round_and_round() {
    let mut driver = Driver::receiving(40, SECRC);
    let mut next = 0;
    for round in 0..50usize {
        let frames: Vec<_> = (0..39).map(|at| frame(MAC, 60 + round + 13 * at)).collect();
        for frame in &frames {
            driver.wire.arrive(frame);
        }
        driver.guest.run_until_idle();
        for frame in &frames {
            let received = driver.received(next);
            assert_eq!(received.status & DD, DD);
            assert_eq!(&received.data, frame);
            driver.descriptor(RX_RING, next, [RX_DATA + u64::from(next) * RX_STRIDE, 0]);
            next = (next + 1) % 40;
        }
        assert_eq!(driver.read(RDH), next);
        driver.write(RDT, (next + 39) % 40);
    }
}

#[test]
fn a_head_or_tail_outside_of_the_ring_is_no_ring() {
    for (length, head, tail) in [
        (0, 0, 0),
        (0, 0, 5),
        (128, 8, 3),
        (128, 0, 8),
        (128, 0, 0xffff),
    ] {
        let mut driver = Driver::receiving(8, SECRC);
        driver.write(RCTL, SECRC);
        driver.write(RDLEN, length);
        driver.write(RDH, head);
        driver.write(RDT, tail);
        driver.write(RCTL, SECRC | 2);
        driver.arrive(&frame(MAC, 100));
        assert_eq!(driver.read(RDH), head, "{length} {head} {tail}");
        // What waits is received once the ring makes sense, whatever is written last.
        let index = if head < 8 { head } else { 1 };
        if tail == 0 || tail >= 8 {
            driver.write(RDT, 7);
        }
        if head != index {
            driver.write(RDH, index);
        }
        if length == 0 {
            driver.write(RDLEN, 128);
        }
        assert_eq!(driver.read(RDH), index + 1, "{length} {head} {tail}");
        assert_eq!(driver.received(index).data, frame(MAC, 100));
    }
}

#[test]
fn a_batch_ends_where_memory_does() {
    let mut driver = Driver::receiving(64, SECRC);
    let end = pci::testing::MEMORY_BYTES;
    driver.write(RCTL, SECRC);
    driver.write(RDBAL, (end - 32) as u32);
    driver.guest.store(end - 32, &RX_DATA.to_le_bytes());
    driver
        .guest
        .store(end - 16, &(RX_DATA + RX_STRIDE).to_le_bytes());
    driver.write(RCTL, SECRC | 2);
    for _ in 0..3 {
        driver.arrive(&frame(MAC, 100));
    }
    assert_eq!(driver.read(RDH), 2);
    assert_eq!(driver.guest.load(RX_DATA + RX_STRIDE, 100), frame(MAC, 100));
    assert_eq!(driver.read(0x4010), 1, "the third is missed");
}

#[test]
fn without_bus_mastering_frames_are_missed() {
    let mut driver = Driver::receiving(8, SECRC);
    driver.guest.config_write(4, &3u16.to_le_bytes());
    driver.arrive(&frame(MAC, 100));
    driver.guest.config_write(4, &7u16.to_le_bytes());
    assert_eq!((driver.read(0x4010), driver.read(0x4074)), (1, 0));
    driver.arrive(&frame(MAC, 100));
    assert_eq!(driver.received(0).data, frame(MAC, 100));
}

#[test]
fn the_minimum_threshold_is_a_fraction_of_the_ring() {
    for (rdmts, free) in [(0, 32), (1, 16), (2, 8)] {
        let mut driver = Driver::receiving(64, rdmts << 8);
        driver.read(ICR);
        let mut left = 63;
        while driver.read(ICR) & RXDMT0 == 0 {
            driver.arrive(&frame(MAC, 60));
            left -= 1;
        }
        assert_eq!(left, free, "RDMTS {rdmts}");
    }
}

#[test]
fn what_is_small_is_said_of_what_is_stored() {
    for (rctl, vme, stored) in [
        (0, false, 108),
        (SECRC, false, 104),
        (0, true, 104),
        (SECRC, true, 100),
    ] {
        for (limit, is_small) in [(stored, true), (stored - 1, false), (0, false)] {
            let mut driver = Driver::receiving(8, rctl);
            if vme {
                driver.set(CTRL, 0x4000_0000);
            }
            driver.write(0x2c00, limit);
            driver.read(ICR);
            driver.arrive(&tagged(7, 100));
            let expected = if is_small { RXT0 | 0x1_0000 } else { RXT0 };
            assert_eq!(driver.read(ICR), expected, "{rctl:#x} {vme} {limit}");
        }
    }
}

#[test]
fn prefetch_and_write_back_thresholds_hold_nothing_back() {
    // PTHRESH 0, HTHRESH and WTHRESH 63, of descriptors and of cache lines.
    for rxdctl in [0x013f_3f00, 0x003f_3f00] {
        let mut driver = Driver::receiving(8, SECRC);
        driver.write(0x2828, rxdctl);
        driver.arrive(&frame(MAC, 100));
        assert_eq!(driver.received(0).data, frame(MAC, 100));
        assert_eq!(driver.read(RDH), 1);
    }
}

#[test]
fn without_a_link_frames_no_longer_wait() {
    let mut driver = Driver::receiving(8, SECRC);
    for _ in 0..12 {
        driver.arrive(&frame(MAC, 100));
    }
    assert_eq!(driver.wire.state().arriving.len(), 4);
    // SLU off.
    let ctrl = driver.read(CTRL);
    driver.write(CTRL, ctrl & !0x40);
    driver.guest.run_until_idle();
    assert!(driver.wire.state().arriving.is_empty());
    assert!(driver.wire.state().interest.receive);
    driver.write(CTRL, ctrl);
    driver.write(RDT, 6);
    driver.guest.run_until_idle();
    assert_eq!(
        driver.received(7).data,
        frame(MAC, 100),
        "it was here before"
    );
    assert_eq!((driver.read(RDH), driver.read(0x40d0)), (0, 8));
}
