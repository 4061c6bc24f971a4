//! What the receiver says of a frame's checksums, sections 3.2.3.1 and 3.2.9.

use super::{
    checksum,
    spec::{
        bits::Rxcsum,
        descriptor::{ReceiveErrors, ReceiveStatus},
    },
};

const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
/// A type field up to this is a length, IEEE 802.3.
const LENGTH_MAX: u16 = 1500;
/// LLC and SNAP headers, up to the type.
const SNAP: [u8; 6] = [0xaa, 0xaa, 0x03, 0, 0, 0];
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// A packet whose checksum is right sums up to this.
const RIGHT: u16 = 0xffff;

/// The bits of a descriptor that tell of checksums.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) status: ReceiveStatus,
    pub(super) errors: ReceiveErrors,
}

/// The sum of everything stored from RXCSUM.PCSS on, which software may correct to what it needs (section 13.4.31).
pub(super) fn packet_checksum(stored: &[u8], rxcsum: Rxcsum) -> u16 {
    stored
        .get(usize::from(rxcsum.packet_start())..)
        .map_or(0, checksum::sum)
}

/// Checks what RXCSUM asks for.
pub(super) fn verdict(frame: &[u8], rxcsum: Rxcsum) -> Verdict {
    check(frame, rxcsum).unwrap_or(Verdict {
        status: ReceiveStatus::new().with_ignore_checksum(true),
        errors: ReceiveErrors::new(),
    })
}

/// `None`: this is no packet that the receiver understands.
fn check(frame: &[u8], rxcsum: Rxcsum) -> Option<Verdict> {
    let mut packet = frame.get(ETHERNET_BYTES..)?;
    let mut ether_type = be16(frame, ETHERNET_BYTES - 2)?;
    if ether_type == TYPE_VLAN {
        ether_type = be16(packet, 2)?;
        packet = packet.get(TAG_BYTES..)?;
    }
    if packet.starts_with(&SNAP) && ether_type <= LENGTH_MAX {
        ether_type = be16(packet, SNAP.len())?;
        packet = packet.get(SNAP.len() + 2..)?;
    }
    let mut status = ReceiveStatus::new();
    let mut errors = ReceiveErrors::new();
    let transport = match ether_type {
        TYPE_IPV4 => {
            let header = packet.get(..usize::from(packet.first()? & 0xf) * 4)?;
            if packet[0] >> 4 != 4 || header.len() < IPV4_HEADER_BYTES {
                return None;
            }
            if rxcsum.ip() {
                status.set_ip_checked(true);
                errors.set_ip(checksum::sum(header) != RIGHT);
            }
            transport_of_ipv4(packet, header)
        }
        TYPE_IPV6 if rxcsum.ipv6() => transport_of_ipv6(packet),
        _ => return None,
    };
    if let Some(transport) = transport.filter(|_| rxcsum.tcp_udp()) {
        status.set_tcp_checked(true);
        errors.set_tcp(transport.sum() != RIGHT);
    }
    // Nothing was checked, so there is nothing to go by.
    let nothing = !status.ip_checked() && !status.tcp_checked();
    Some(Verdict {
        status: status.with_ignore_checksum(nothing),
        errors,
    })
}

/// A TCP or UDP packet with a checksum.
struct Transport<'a> {
    protocol: u8,
    /// Source and destination, which are part of the sum.
    addresses: &'a [u8],
    data: &'a [u8],
}

impl<'a> Transport<'a> {
    fn new(protocol: u8, addresses: &'a [u8], data: &'a [u8]) -> Option<Self> {
        let has_checksum = match protocol {
            PROTOCOL_TCP => data.len() >= 20,
            PROTOCOL_UDP => be16(data, 6)? != 0,
            _ => false,
        };
        has_checksum.then_some(Self {
            protocol,
            addresses,
            data,
        })
    }

    fn sum(&self) -> u16 {
        let pseudo = checksum::add(self.protocol.into(), self.data.len() as u16);
        let pseudo = checksum::add(pseudo, checksum::sum(self.addresses));
        checksum::add(pseudo, checksum::sum(self.data))
    }
}

fn transport_of_ipv4<'a>(packet: &'a [u8], header: &'a [u8]) -> Option<Transport<'a>> {
    let total = usize::from(be16(header, 2)?);
    let fragment = be16(header, 6)? & 0x3fff != 0;
    let data = packet.get(header.len()..total)?;
    if fragment {
        return None;
    }
    Transport::new(header[9], &header[12..20], data)
}

fn transport_of_ipv6(packet: &[u8]) -> Option<Transport<'_>> {
    let header = packet.get(..IPV6_HEADER_BYTES)?;
    let payload = usize::from(be16(header, 4)?);
    let data = packet.get(IPV6_HEADER_BYTES..IPV6_HEADER_BYTES + payload)?;
    Transport::new(header[6], &header[8..40], data)
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    let field = data.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]))
}
