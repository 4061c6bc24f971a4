//! TCP segmentation against a segmenter that is written for clarity.

use super::*;

const DATA: u64 = EOP | IFCS | RS | DEXT | 1 << 20 | 0x04 << 24;
const IXSM: u64 = 1 << 40;
const TXSM: u64 = 2 << 40;

#[derive(Clone, Copy)]
struct Layout {
    ipv4: bool,
    /// First byte of TCP.
    tcp: usize,
}

const IPV4: Layout = Layout {
    ipv4: true,
    tcp: 34,
};
const IPV6: Layout = Layout {
    ipv4: false,
    tcp: 54,
};

impl Layout {
    fn frame(self, payload: &[u8]) -> Vec<u8> {
        if self.ipv4 {
            ipv4_frame(6, payload)
        } else {
            ipv6_frame(payload)
        }
    }

    /// IPv6 has no checksum.
    fn options(self) -> u64 {
        if self.ipv4 { IXSM | TXSM } else { TXSM }
    }

    fn addresses(self) -> std::ops::Range<usize> {
        if self.ipv4 { 26..34 } else { 22..54 }
    }

    /// The context descriptor.
    fn context(self, payload: usize, mss: u64) -> [u64; 2] {
        let tcp = self.tcp as u64;
        let ip = match self.ipv4 {
            true => 14 | 24 << 8 | 33 << 16,
            false => 14,
        };
        let command = if self.ipv4 { 0x27 } else { 0x25 };
        [
            ip | tcp << 32 | (tcp + 16) << 40,
            payload as u64 | command << 24 | (tcp + 20) << 40 | mss << 48,
        ]
    }

    /// The packet as a driver hands it over: no lengths, no sums but that of a pseudo-header without length.
    fn prepared(self, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.frame(payload);
        if self.ipv4 {
            frame[16..18].fill(0);
            frame[24..26].fill(0);
        } else {
            frame[18..20].fill(0);
        }
        let covered = with_pseudo_header(&frame[self.addresses()], 6, &[]);
        let sum = !internet_checksum(&covered);
        frame[self.tcp + 16..self.tcp + 18].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// What has to come out.
    fn segments(self, payload: &[u8], mss: usize) -> Vec<Vec<u8>> {
        let count = payload.chunks(mss).len();
        let cut = |(index, chunk): (usize, &[u8])| {
            let mut frame = self.frame(chunk);
            if self.ipv4 {
                let id = 0x1234 + index as u16;
                frame[18..20].copy_from_slice(&id.to_be_bytes());
                frame[24..26].fill(0);
                let sum = internet_checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            let at = self.tcp + 4;
            let sequence = u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
            let sequence = sequence.wrapping_add((index * mss) as u32);
            frame[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < count {
                frame[self.tcp + 13] = 0x10;
            }
            frame[self.tcp + 16..self.tcp + 18].fill(0);
            let covered = with_pseudo_header(&frame[self.addresses()], 6, &frame[self.tcp..]);
            let sum = internet_checksum(&covered);
            frame[self.tcp + 16..self.tcp + 18].copy_from_slice(&sum.to_be_bytes());
            frame.resize(frame.len().max(60), 0);
            frame
        };
        payload.chunks(mss).enumerate().map(cut).collect()
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// Queues context and packet, with the header in its own descriptor.
fn queue(driver: &mut Driver, layout: Layout, payload: &[u8], mss: u64) {
    let [low, high] = layout.context(payload.len(), mss);
    driver.queue(low, high);
    let packet = layout.prepared(payload);
    let header = layout.tcp + 20;
    let options = layout.options();
    driver.queue_data(&packet[..header], DATA & !(EOP | RS) | options);
    for (index, chunk) in packet[header..].chunks(30_000).enumerate() {
        let last = (index + 1) * 30_000 >= payload.len();
        let end = if last { EOP | RS } else { 0 };
        driver.queue_data(chunk, DATA & !(EOP | RS) | end);
    }
}

#[test]
fn packets_are_cut_as_the_manual_says() {
    for layout in [IPV4, IPV6] {
        for (bytes, mss) in [
            (1, 1460),
            (1460, 1460),
            (1461, 1460),
            (64_000, 1448),
            (3000, 536),
            (40, 7),
        ] {
            let mut driver = Driver::transmitting(32);
            let payload = payload(bytes);
            queue(&mut driver, layout, &payload, mss);
            driver.ring();
            let expected = layout.segments(&payload, mss as usize);
            let sent = driver.wire.sent();
            assert_eq!(sent.len(), expected.len());
            for (sent, expected) in sent.iter().zip(&expected) {
                assert_eq!(sent, expected, "{bytes} by {mss}");
            }
            assert_eq!(driver.read(0x4080), expected.len() as u32);
            assert_eq!(driver.read(0x40f8), 1);
        }
    }
}

#[test]
fn a_backend_that_cuts_gets_the_packet_whole() {
    for layout in [IPV4, IPV6] {
        let mut driver = Driver::transmitting(32);
        driver.wire.state().offloads = Offloads {
            checksum: true,
            segment: true,
        };
        let payload = payload(10_000);
        queue(&mut driver, layout, &payload, 1448);
        driver.ring();
        let (frame, offload) = driver.wire.state().sent.remove(0);
        assert_eq!(
            offload,
            Offload::Segment {
                ip_version: if layout.ipv4 { 4 } else { 6 },
                header_bytes: layout.tcp as u16 + 20,
                segment_bytes: 1448,
                start: layout.tcp as u16,
                offset: 16,
            }
        );
        let mut whole = layout.frame(&payload);
        let covered = with_pseudo_header(&whole[layout.addresses()], 6, &whole[layout.tcp..]);
        let pseudo_bytes = layout.addresses().len() + 8;
        let pseudo = !internet_checksum(&covered[..pseudo_bytes]);
        whole[layout.tcp + 16..layout.tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
        assert_eq!(frame, whole);
        assert_eq!(driver.read(0x4080), 7, "counted as seven");
        assert_eq!(driver.read(0x4090), 10_000 + 7 * (layout.tcp as u32 + 24));
    }
}

#[test]
fn a_packet_of_one_segment_is_not_handed_over() {
    let mut driver = Driver::transmitting(32);
    driver.wire.state().offloads.segment = true;
    queue(&mut driver, IPV4, &payload(1000), 1448);
    driver.ring();
    let (frame, offload) = driver.wire.state().sent.remove(0);
    assert_eq!(offload, Offload::None);
    assert_eq!(frame, IPV4.frame(&payload(1000)));
}

#[test]
fn each_segment_has_the_vlan_tag() {
    let mut driver = Driver::transmitting(32);
    driver.set(CTRL, 0x4000_0000);
    let payload = payload(3000);
    let [low, high] = IPV4.context(payload.len(), 1448);
    driver.queue(low, high);
    driver.queue_data(&IPV4.prepared(&payload), DATA | IXSM | TXSM | VLE | 5 << 48);
    driver.ring();
    let sent = driver.wire.sent();
    let expected = IPV4.segments(&payload, 1448);
    assert_eq!(sent.len(), 3);
    for (sent, expected) in sent.iter().zip(expected) {
        assert_eq!(sent[..12], expected[..12]);
        assert_eq!(sent[12..16], [0x81, 0, 0, 5]);
        assert_eq!(sent[16..], expected[12..]);
    }
}

/// The checksum's field has to lie in the header that the context tells, which the tag does not lengthen.
#[test]
fn a_checksum_behind_the_header_is_not_left_to_the_backend() {
    let mut driver = Driver::transmitting(32);
    driver.wire.state().offloads = Offloads {
        checksum: true,
        segment: true,
    };
    driver.set(CTRL, 0x4000_0000);
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 56 << 40;
    driver.queue(offsets, 0x27 << 24 | 54 << 40 | 100 << 48 | 1000);
    driver.queue_data(&vec![0; 1054], DATA | IXSM | TXSM | VLE);
    driver.ring();
    let state = driver.wire.state();
    assert!(!state.sent.is_empty());
    for (_, offload) in &state.sent {
        assert_eq!(*offload, Offload::None);
    }
}

#[test]
fn a_full_backend_gets_every_segment_once() {
    let mut driver = Driver::transmitting(32);
    let payload = payload(20_000);
    driver.wire.state().room = Some(0);
    queue(&mut driver, IPV4, &payload, 1000);
    driver.ring();
    let mut sent = Vec::new();
    for _ in 0..20 {
        driver.wire.state().room = Some(1);
        driver.guest.run_until_idle();
        sent.extend(driver.wire.sent());
    }
    assert_eq!(sent, IPV4.segments(&payload, 1000));
    assert_eq!(driver.read(TDH), driver.read(TDT));
}

#[test]
fn contexts_for_sums_and_for_segments_are_kept_apart() {
    let mut driver = Driver::transmitting(32);
    queue(&mut driver, IPV4, &payload(2000), 1448);
    // A context for checksums comes in between; the next packet is cut by the older one.
    driver.queue(0, DEXT);
    driver.queue_data(&IPV4.prepared(&payload(2000)), DATA | IXSM | TXSM);
    driver.ring();
    let expected = IPV4.segments(&payload(2000), 1448);
    let sent = driver.wire.sent();
    assert_eq!(sent[..2], expected);
    assert_eq!(sent[2..], expected);
}

#[test]
fn a_context_without_sense_sends_nothing() {
    let good = IPV4.context(2000, 1448);
    let header = 0xff << 40;
    for [low, high] in [
        [good[0], good[1] & 0x0000_ffff_ffff_ffff],
        [good[0], good[1] & !header],
        [good[0], good[1] & !header | 20 << 40],
        [good[0] | 0xff, good[1]],
        [good[0] | 0xff << 32, good[1]],
        [good[0], good[1] | 0xffff << 48],
    ] {
        let mut driver = Driver::transmitting(32);
        driver.queue(low, high);
        driver.queue_data(&IPV4.prepared(&payload(20_000)), DATA | IXSM | TXSM);
        driver.ring();
        assert!(driver.wire.sent().is_empty());
        assert_eq!(driver.read(0x40fc), 1);
        assert_eq!(driver.read(TDH), driver.read(TDT));
    }
}

#[test]
fn short_segments_are_padded_as_psp_says() {
    for (tctl, shortest) in [(0xa, 60), (2, 55)] {
        let mut driver = Driver::transmitting(32);
        driver.write(TCTL, tctl);
        let payload = payload(5);
        queue(&mut driver, IPV4, &payload, 2);
        driver.ring();
        let sent = driver.wire.sent();
        let expected = IPV4.segments(&payload, 2);
        assert_eq!(sent.len(), 3);
        for (sent, expected) in sent.iter().zip(expected) {
            assert!(sent.len() >= shortest);
            assert_eq!(*sent, expected[..sent.len()]);
        }
        assert_eq!(sent[2].len(), shortest);
    }
}

/// UDP in IPv4: lengths, identification and both sums follow each segment; the guest's checksum has no length in it.
#[test]
fn udp_is_cut_into_datagrams() {
    let payload = payload(2500);
    let mut driver = Driver::transmitting(32);
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 40 << 40;
    driver.queue(offsets, 0x26 << 24 | 2500 | 42 << 40 | 1000 << 48);
    let mut packet = ipv4_frame(17, &payload);
    packet[24..26].fill(0);
    let mut pseudo = packet[26..34].to_vec();
    pseudo.extend([0, 17]);
    let sum = !internet_checksum(&pseudo);
    packet[40..42].copy_from_slice(&sum.to_be_bytes());
    driver.queue_data(&packet, DATA | IXSM | TXSM);
    driver.ring();
    let expected: Vec<_> = (0u16..)
        .zip(payload.chunks(1000))
        .map(|(index, chunk)| {
            let mut frame = ipv4_frame(17, chunk);
            frame[18..20].copy_from_slice(&(0x1234 + index).to_be_bytes());
            frame[24..26].fill(0);
            let sum = internet_checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame
        })
        .collect();
    assert_eq!(driver.wire.sent(), expected);
}

#[test]
fn with_neither_ip_nor_tcp_the_header_is_constant() {
    let mut driver = Driver::transmitting(32);
    let header: Vec<u8> = (100..120).collect();
    let payload = payload(250);
    // TUCSS 20, TUCSO 22: a sum over each segment's payload, in its own third and fourth byte.
    driver.queue(20 << 32 | 22 << 40, 0x24 << 24 | 250 | 20 << 40 | 100 << 48);
    driver.queue_data(&[&header[..], &payload].concat(), DATA | TXSM);
    driver.ring();
    let expected: Vec<_> = payload
        .chunks(100)
        .map(|chunk| {
            let mut frame = [&header[..], chunk].concat();
            let sum = internet_checksum(&frame[20..]);
            frame[22..24].copy_from_slice(&sum.to_be_bytes());
            frame
        })
        .collect();
    assert_eq!(expected.last().unwrap().len(), 70);
    assert_eq!(driver.wire.sent(), expected);
}

#[test]
fn without_options_the_sums_stay_as_they_are() {
    let mut driver = Driver::transmitting(32);
    let [low, high] = IPV4.context(2000, 1000);
    driver.queue(low, high);
    let packet = IPV4.prepared(&payload(2000));
    driver.queue_data(&packet, DATA);
    driver.ring();
    let sent = driver.wire.sent();
    assert_eq!(sent.len(), 2);
    for frame in sent {
        assert_eq!(frame[24..26], packet[24..26], "IP");
        assert_eq!(frame[50..52], packet[50..52], "TCP");
        assert_eq!(frame[16..18], [0x04, 0x10], "the length follows anyway");
    }
}

#[test]
fn tag_and_options_of_a_segmented_packet_are_its_first_descriptors() {
    let mut driver = Driver::transmitting(32);
    driver.set(CTRL, 0x4000_0000);
    let payload = payload(2000);
    let [low, high] = IPV4.context(payload.len(), 1000);
    driver.queue(low, high);
    let packet = IPV4.prepared(&payload);
    driver.queue_data(
        &packet[..54],
        DATA & !(EOP | RS) | IXSM | TXSM | VLE | 5 << 48,
    );
    driver.queue_data(&packet[54..], DATA | 9 << 48);
    driver.queue_data(&packet[..54], DATA & !(EOP | RS) | IXSM | TXSM);
    driver.queue_data(&packet[54..], DATA | VLE | 9 << 48);
    driver.ring();
    let sent = driver.wire.sent();
    let expected = IPV4.segments(&payload, 1000);
    assert_eq!(sent.len(), 4);
    assert_eq!(sent[0][12..16], [0x81, 0, 0, 5]);
    assert_eq!(sent[1][16..], expected[1][12..]);
    assert_eq!(sent[2..], expected);
}

#[test]
fn sequence_numbers_and_identifications_wrap() {
    let mut driver = Driver::transmitting(32);
    let payload = payload(3000);
    let [low, high] = IPV4.context(payload.len(), 1000);
    driver.queue(low, high);
    let mut packet = IPV4.prepared(&payload);
    packet[18..20].copy_from_slice(&[0xff, 0xff]);
    packet[38..42].copy_from_slice(&[0xff, 0xff, 0xff, 0x00]);
    driver.queue_data(&packet, DATA | IXSM | TXSM);
    driver.ring();
    let sent = driver.wire.sent();
    let fields: Vec<_> = sent
        .iter()
        .map(|frame| (&frame[18..20], &frame[38..42]))
        .collect();
    assert_eq!(
        fields[0],
        (&[0xff, 0xff][..], &[0xff, 0xff, 0xff, 0x00][..])
    );
    assert_eq!(fields[1], (&[0, 0][..], &[0, 0, 0x02, 0xe8][..]));
    assert_eq!(fields[2], (&[0, 1][..], &[0, 0, 0x06, 0xd0][..]));
}

#[test]
fn fin_and_psh_are_the_last_segments() {
    let mut driver = Driver::transmitting(32);
    let [low, high] = IPV4.context(3000, 1000);
    driver.queue(low, high);
    let mut packet = IPV4.prepared(&payload(3000));
    packet[47] = 0xff;
    driver.queue_data(&packet, DATA | IXSM | TXSM);
    driver.ring();
    let flags: Vec<_> = driver.wire.sent().iter().map(|frame| frame[47]).collect();
    assert_eq!(flags, [0xf6, 0xf6, 0xff]);
}

#[test]
fn a_packet_that_is_not_as_long_as_payload_length_says_is_a_failure() {
    for (said, fails) in [(2000, 0), (1999, 1), (2001, 1), (0, 1)] {
        for offloads in [false, true] {
            let mut driver = Driver::transmitting(32);
            driver.wire.state().offloads.segment = offloads;
            let [low, high] = IPV4.context(said, 1000);
            driver.queue(low, high);
            driver.queue_data(&IPV4.prepared(&payload(2000)), DATA | IXSM | TXSM);
            driver.ring();
            let frames = if offloads { 1 } else { 2 };
            assert_eq!(driver.wire.sent().len(), frames);
            let counters = (driver.read(0x40f8), driver.read(0x40fc));
            assert_eq!(counters, (1 - fails, fails), "TSCTC and TSCTFC, {said}");
        }
    }
}

#[test]
fn a_segmented_packet_counts_when_its_last_segment_is_sent() {
    let mut driver = Driver::transmitting(32);
    driver.wire.state().room = Some(1);
    queue(&mut driver, IPV4, &payload(2000), 1000);
    driver.ring();
    assert_eq!(driver.read(0x40f8), 0);
    driver.wire.state().room = None;
    driver.guest.run_until_idle();
    assert_eq!(driver.read(0x40f8), 1);
}

#[test]
fn options_of_ip_and_tcp_are_part_of_the_header() {
    let mut driver = Driver::transmitting(32);
    let payload = payload(2000);
    // 12 bytes of TCP options: the header is 66 bytes long.
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    driver.queue(offsets, 0x27 << 24 | 2000 | 66 << 40 | 1000 << 48);
    let mut packet = IPV4.prepared(&payload);
    packet.splice(54..54, [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    driver.queue_data(&packet, DATA | IXSM | TXSM);
    driver.ring();
    for (index, frame) in driver.wire.sent().iter().enumerate() {
        assert_eq!(frame.len(), 1066);
        assert_eq!(frame[54..66], packet[54..66]);
        assert_eq!(frame[66..], payload[1000 * index..][..1000]);
        assert_eq!(frame[16..18], (1052u16).to_be_bytes());
        let mut tcp = frame[34..].to_vec();
        let sum = tcp[16..18].to_vec();
        tcp[16..18].fill(0);
        let covered = with_pseudo_header(&frame[26..34], 6, &tcp);
        assert_eq!(sum, internet_checksum(&covered).to_be_bytes());
    }
}

#[test]
fn a_packet_above_64_kib_is_refused_and_harms_no_other() {
    let mut driver = Driver::transmitting(32);
    let long = payload(66_000);
    for at in (0..3).rev() {
        let [low, high] = IPV4.context(long.len(), 1448);
        driver.queue(low, high);
        let packet = IPV4.prepared(&long[..22_000]);
        driver.queue_data(&packet, DATA & !EOP | IXSM | TXSM);
        driver.queue_data(&long[22_000..44_000], DATA & !EOP);
        // In one piece and in two.
        driver.queue_data(&long[44_000..], DATA & !(at.min(1) * EOP));
        if at > 0 {
            driver.queue_data(&long[44_000..44_001], DATA);
        }
        driver.ring();
    }
    assert!(driver.wire.sent().is_empty());
    assert_eq!(driver.read(0x40fc), 3, "TSCTFC");
    assert_eq!(driver.read(TDH), driver.read(TDT));
    queue(&mut driver, IPV4, &payload(65_480), 1448);
    driver.ring();
    assert_eq!(driver.wire.sent(), IPV4.segments(&payload(65_480), 1448));
}

#[test]
fn one_descriptor_may_have_a_whole_packet() {
    let mut driver = Driver::transmitting(32);
    let payload = payload(65_000);
    let [low, high] = IPV4.context(payload.len(), 1448);
    driver.queue(low, high);
    // DTALEN has 20 bits, of which the tests above need 15.
    driver.queue_data(&IPV4.prepared(&payload), DATA | IXSM | TXSM);
    driver.ring();
    assert_eq!(driver.wire.sent(), IPV4.segments(&payload, 1448));
}

#[test]
fn a_header_may_have_240_bytes() {
    let mut driver = Driver::transmitting(32);
    let payload = payload(500);
    let header: Vec<u8> = (0..240).map(|at| at as u8).collect();
    driver.queue(0, 0x24 << 24 | 500 | 240 << 40 | 300 << 48);
    driver.queue_data(&[&header[..], &payload].concat(), DATA);
    driver.ring();
    let expected: Vec<_> = payload
        .chunks(300)
        .map(|chunk| [&header[..], chunk].concat())
        .collect();
    assert_eq!(driver.wire.sent(), expected);
}
