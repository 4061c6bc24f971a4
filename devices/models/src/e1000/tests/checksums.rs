//! Which packets the receiver understands, table 3-5, and what it says of their checksums.

use super::*;

const IPOFLD: u32 = 0x100;
const TUOFLD: u32 = 0x200;
const IPV6OFL: u32 = 0x400;
const ALL: u32 = IPOFLD | TUOFLD | IPV6OFL;
const RXCSUM: u64 = 0x5000;
/// LPE, and buffers of 16 KiB.
const LONG: u32 = 0x0201_0020;
const IXSM: u8 = 0x04;
const TCPCS: u8 = 0x20;
const IPCS: u8 = 0x40;
const TCPE: u8 = 0x20;
const IPE: u8 = 0x40;

fn receiver(rxcsum: u32) -> Driver {
    let mut driver = Driver::receiving(16, LONG);
    driver.write(RXCSUM, rxcsum);
    driver
}

fn judge(rxcsum: u32, frame: &[u8]) -> (u8, u8) {
    let mut driver = receiver(rxcsum);
    driver.arrive(frame);
    let received = driver.received(0);
    assert_eq!(received.status & 3, 3);
    (received.status & (IXSM | IPCS | TCPCS), received.errors)
}

/// Puts options into the IPv4 header.
fn with_ip_options(mut frame: Vec<u8>) -> Vec<u8> {
    frame.splice(34..34, [1, 1, 1, 0]);
    frame[14] += 1;
    with_ip_total(frame)
}

/// The IPv4 header's length and sum are those of the frame.
fn with_ip_total(mut frame: Vec<u8>) -> Vec<u8> {
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    with_ip_sum(frame)
}

fn with_ip_sum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let end = 14 + usize::from(frame[14] & 0xf) * 4;
    let sum = internet_checksum(&frame[14..end]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A packet in an IPv4 packet.
fn in_ipv4(protocol: u8, inner: &[u8]) -> Vec<u8> {
    let mut frame = ipv4_frame(6, &[]);
    frame.truncate(34);
    frame[23] = protocol;
    frame.extend(inner);
    with_ip_total(frame)
}

/// TCP in IPv6, behind other headers.
fn behind(next: u8, headers: &[u8]) -> Vec<u8> {
    let mut frame = ipv6_frame(&[5; 33]);
    frame.splice(54..54, headers.iter().copied());
    frame[20] = next;
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame
}

/// An extension header of IPv6.
fn extension(next: u8, bytes: usize) -> Vec<u8> {
    let mut header = vec![0; bytes];
    header[0] = next;
    header[1] = ((bytes - 8) / 8) as u8;
    header
}

#[test]
fn the_table_of_packets_holds() {
    let tcp = ipv4_frame(6, &[9; 101]);
    let mut tcp_options = ipv4_frame(6, &[0x11; 40]);
    // A longer TCP header is no other packet: the sum does not look at where it ends.
    tcp_options[46] = 0x80;
    tcp_options[50..52].fill(0);
    let sum = internet_checksum(&with_pseudo_header(
        &tcp_options[26..34],
        6,
        &tcp_options[34..],
    ));
    tcp_options[50..52].copy_from_slice(&sum.to_be_bytes());
    let mut icmp = tcp.clone();
    icmp[23] = 1;
    let mut first_fragment = tcp.clone();
    first_fragment[20] = 0x20;
    let mut last_fragment = tcp.clone();
    last_fragment[21] = 0x01;
    let mut vlan = tcp.clone();
    vlan.splice(12..12, [0x81, 0, 0, 7]);
    let mut snap = tcp.clone();
    snap.splice(12..12, [0, 150, 0xaa, 0xaa, 3, 0, 0, 0]);
    let ipv6 = ipv6_frame(&[1; 200]);
    let two = [extension(60, 16), extension(6, 24)].concat();
    for (name, frame, expected) in [
        ("IPv4, TCP", tcp.clone(), IPCS | TCPCS),
        ("IPv4, UDP", ipv4_frame(17, &[9; 101]), IPCS | TCPCS),
        ("IPv4, options", with_ip_options(tcp.clone()), IPCS | TCPCS),
        ("TCP, options", tcp_options, IPCS | TCPCS),
        ("IPv4, another protocol", with_ip_sum(icmp), IPCS),
        ("first fragment", with_ip_sum(first_fragment), IPCS),
        ("last fragment", with_ip_sum(last_fragment), IPCS),
        ("tagged", vlan, IPCS | TCPCS),
        ("SNAP", snap, IPCS | TCPCS),
        ("long", ipv4_frame(6, &[3; 9000]), IPCS | TCPCS),
        ("IPv6", ipv6.clone(), TCPCS),
        ("hop by hop", behind(0, &extension(6, 8)), TCPCS),
        ("destination", behind(60, &extension(6, 64)), TCPCS),
        ("routing", behind(43, &extension(6, 24)), TCPCS),
        ("two headers", behind(0, &two), TCPCS),
        ("too long a header", behind(60, &extension(6, 72)), IXSM),
        ("fragment of IPv6", behind(44, &extension(6, 8)), IXSM),
        ("IPv4 in IPv4", in_ipv4(4, &tcp[14..]), IXSM),
        ("IPv6 in IPv4", in_ipv4(41, &ipv6[14..]), IPCS | TCPCS),
        ("IPv6 in IPv6", behind(41, &ipv6[14..]), IXSM),
        ("IPv4 in IPv6", behind(4, &tcp[14..]), IXSM),
        ("no IP", super::frame(MAC, 100), IXSM),
    ] {
        assert_eq!(judge(ALL, &frame), (expected, 0), "{name}");
        assert_eq!(judge(0, &frame), (IXSM, 0), "{name}, switched off");
    }
}

#[test]
fn wrong_sums_are_errors_wherever_they_are_looked_for() {
    let ipv6 = ipv6_frame(&[1; 200]);
    for (name, mut frame, tcp) in [
        ("IPv4", ipv4_frame(6, &[9; 101]), 60),
        ("UDP", ipv4_frame(17, &[9; 101]), 60),
        ("options", with_ip_options(ipv4_frame(6, &[9; 101])), 64),
        ("IPv6", ipv6.clone(), 80),
        ("two headers", behind(0, &extension(6, 8)), 80),
        ("IPv6 in IPv4", in_ipv4(41, &ipv6[14..]), 100),
    ] {
        frame[tcp] ^= 4;
        assert_eq!(judge(ALL, &frame).1, TCPE, "{name}");
        assert_eq!(judge(ALL & !TUOFLD, &frame).1, 0, "{name}, TUOFLD off");
        if frame[12] == 8 {
            // Time to live.
            frame[22] ^= 1;
            assert_eq!(judge(ALL, &frame).1, IPE | TCPE, "{name}");
            assert_eq!(judge(ALL & !IPOFLD, &frame).1, TCPE, "{name}, IPOFLD off");
        }
    }
}

#[test]
fn each_sum_has_its_switch() {
    let (ipv4, ipv6) = (ipv4_frame(6, &[9; 101]), ipv6_frame(&[1; 200]));
    let tunnel = in_ipv4(41, &ipv6[14..]);
    for (rxcsum, of_ipv4, of_ipv6, of_tunnel) in [
        (IPOFLD, IPCS, IXSM, IPCS),
        (TUOFLD, TCPCS, IXSM, IXSM),
        (IPV6OFL, IXSM, IXSM, IXSM),
        (IPOFLD | TUOFLD, IPCS | TCPCS, IXSM, IPCS),
        (TUOFLD | IPV6OFL, TCPCS, TCPCS, TCPCS),
        (ALL, IPCS | TCPCS, TCPCS, IPCS | TCPCS),
    ] {
        assert_eq!(judge(rxcsum, &ipv4), (of_ipv4, 0), "{rxcsum:#x}");
        assert_eq!(judge(rxcsum, &ipv6), (of_ipv6, 0), "{rxcsum:#x}");
        assert_eq!(judge(rxcsum, &tunnel), (of_tunnel, 0), "{rxcsum:#x}");
    }
}

#[test]
fn headers_that_are_none_are_not_judged() {
    let good = ipv4_frame(6, &[9; 101]);
    let change = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    for (name, frame, expected) in [
        ("version", change(14, 0x55), IXSM),
        ("short header", change(14, 0x44), IXSM),
        ("longer than the frame", with_ip_sum(change(16, 0x7f)), IPCS),
        ("a type that is none", change(13, 6), IXSM),
    ] {
        assert_eq!(judge(ALL, &frame), (expected, 0), "{name}");
    }
    let mut ipv6 = ipv6_frame(&[1; 200]);
    ipv6[14] = 0x50;
    assert_eq!(judge(ALL, &ipv6), (IXSM, 0));
    // Segments left: the sum has another destination.
    let mut routing = extension(6, 24);
    routing[3] = 1;
    assert_eq!(judge(ALL, &behind(43, &routing)), (IXSM, 0));
}

#[test]
fn what_is_behind_the_packet_is_no_part_of_it() {
    let mut padded = ipv4_frame(17, &[9; 5]);
    padded.resize(100, 0xee);
    assert_eq!(judge(ALL, &padded), (IPCS | TCPCS, 0));
    // Nor what is behind a datagram in its packet.
    let mut inner = ipv4_frame(17, &[9; 60]);
    inner.extend([0xee; 6]);
    assert_eq!(judge(ALL, &with_ip_total(inner)), (IPCS | TCPCS, 0));
}

#[test]
fn udp_without_a_checksum_is_not_judged() {
    let mut frame = ipv4_frame(17, &[1; 50]);
    frame[40..42].fill(0);
    assert_eq!(judge(ALL, &frame), (IPCS, 0));
}

#[test]
fn a_checksum_that_is_vouched_for_is_right() {
    let mut frame = ipv4_frame(6, &[9; 101]);
    frame[60] ^= 4;
    frame[22] ^= 1;
    let mut driver = receiver(ALL);
    driver.wire.state().vouches = true;
    driver.arrive(&frame);
    let received = driver.received(0);
    assert_eq!(received.status & (IPCS | TCPCS), IPCS | TCPCS);
    assert_eq!(received.errors, IPE, "nobody said so of the IPv4 header");
    let mut unsummed = ipv4_frame(17, &[1; 50]);
    unsummed[40..42].fill(0);
    driver.arrive(&unsummed);
    assert_eq!(driver.received(1).status & TCPCS, 0, "there is none");
}

#[test]
fn the_packet_checksum_leaves_out_what_is_stripped() {
    let plain = ipv4_frame(6, &[9; 101]);
    let mut tagged = plain.clone();
    tagged.splice(12..12, [0x81, 0, 0x20, 7]);
    for start in [0, 14, 34, 255] {
        let mut driver = receiver(start);
        // SECRC, and VME.
        driver.set(RCTL, 0x0400_0000);
        driver.set(CTRL, 0x4000_0000);
        driver.arrive(&tagged);
        let covered = plain.get(start as usize..).unwrap_or(&[]);
        let expected = !internet_checksum(covered);
        assert_eq!(driver.received(0).checksum, expected, "from {start} on");
    }
}

#[test]
fn the_first_descriptor_has_the_packet_checksum() {
    let mut driver = receiver(14);
    // Buffers of 256 bytes, SECRC.
    driver.write(RCTL, 0x0403_0002);
    let frame = frame(MAC, 1000);
    driver.arrive(&frame);
    let expected = !internet_checksum(&frame[14..]);
    assert_eq!(driver.received(0).checksum, expected);
}

#[test]
fn the_packet_checksum_is_the_same_whether_or_not_others_are_judged() {
    for extra in 0..4 {
        let mut packet = ipv4_frame(17, &[0x5a; 71][..68 + extra]);
        packet.extend(&[0xc3; 5][..extra]);
        for start in 0..120u32 {
            let mut driver = receiver(start);
            driver.arrive(&packet);
            driver.write(RXCSUM, start | ALL);
            driver.arrive(&packet);
            let (plain, judged) = (driver.received(0), driver.received(1));
            assert_eq!(judged.status & TCPCS, TCPCS);
            let expected =
                !internet_checksum(&plain.data[start.min(plain.data.len() as u32) as usize..]);
            assert_eq!(plain.checksum, expected, "{extra}, from {start} on");
            assert_eq!(judged.checksum, expected, "{extra}, from {start} on");
        }
    }
}
