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
    let options = IXSM | TXSM;
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
                assert_eq!(sent[..], expected[..sent.len()], "{bytes} by {mss}");
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
