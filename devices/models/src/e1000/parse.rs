//! What the receiver says of a frame's checksums, sections 3.2.3.1 and 3.2.9.
//!
//! The manual wants RXCSUM.IPOFLD for an IPv4 header to be looked into at all (section 3.2.9.3), and says elsewhere that
//! IPOFLD and TUOFLD are each for one checksum (13.4.47). Linux sets TUOFLD alone and gets TCP checksums from cards, so the
//! latter holds.

use pci::regs::Regs;

use super::{
    checksum,
    spec::{
        self,
        bits::Rxcsum,
        descriptor::{ReceiveErrors, ReceiveStatus},
    },
};

const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
/// A type field up to this is a length, IEEE 802.3.
const LENGTH_MAX: u16 = 1500;
/// LLC and SNAP headers, up to the type.
const SNAP: [u8; 6] = [0xaa, 0xaa, 0x03, 0, 0, 0];
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;
/// The longest extension header that is understood, section 3.2.9.4.
const EXTENSION_BYTES_MAX: usize = 64;
/// A packet whose checksum is right sums up to this.
const RIGHT: u16 = 0xffff;

/// What follows an IP header: its protocol field, or IPv6's next header.
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const IPV4: u8 = 4;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const IPV6: u8 = 41;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const DESTINATION: u8 = 60;
}

/// The bits of a descriptor that tell of checksums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Verdict {
    pub(super) status: ReceiveStatus,
    pub(super) errors: ReceiveErrors,
    summed: Option<Summed>,
}

/// What was added up of a frame, so that it need not be again.
#[derive(Clone, Copy, Debug)]
struct Summed {
    start: usize,
    end: usize,
    sum: u16,
}

/// Judges frames as RXCSUM asks for.
#[derive(Debug)]
pub(super) struct Parser {
    rxcsum: Rxcsum,
    /// VET.
    tag_type: u16,
}

impl Parser {
    pub(super) fn load(regs: &Regs) -> Self {
        Self {
            rxcsum: Rxcsum::from_bits(regs.get(spec::RXCSUM)),
            tag_type: regs.get(spec::VET) as u16,
        }
    }

    /// The sum of everything stored from RXCSUM.PCSS on, which software may correct to what it needs (section 13.4.47).
    /// `verdict` is about the same bytes.
    pub(super) fn packet_checksum(&self, stored: &[u8], verdict: &Verdict) -> u16 {
        let first = usize::from(self.rxcsum.packet_start());
        let Some(covered) = stored.get(first..) else {
            return 0;
        };
        let Some(Summed { start, end, sum }) = verdict.summed else {
            return checksum::sum(covered);
        };
        let (Some(before), Some(after)) = (stored.get(first..start), stored.get(end..)) else {
            return checksum::sum(covered);
        };
        // Words that begin at an odd byte have their bytes in the other order.
        let place = |at: usize, sum: u16| match (at - first) % 2 {
            0 => sum,
            _ => sum.swap_bytes(),
        };
        let sum = checksum::add(checksum::sum(before), place(start, sum));
        checksum::add(sum, place(end, checksum::sum(after)))
    }

    /// `is_right`: somebody vouches for the TCP or UDP checksum.
    pub(super) fn judge(&self, frame: &[u8], is_right: bool) -> Verdict {
        let mut verdict = Verdict::default();
        if self.rxcsum.ip() || self.rxcsum.tcp_udp() {
            self.check(frame, is_right, &mut verdict);
        }
        // Nothing was checked, so there is nothing to go by.
        let nothing = !verdict.status.ip_checked() && !verdict.status.tcp_checked();
        verdict.status.set_ignore_checksum(nothing);
        verdict
    }

    /// `None`: there is something that the receiver does not understand.
    fn check(&self, frame: &[u8], is_right: bool, verdict: &mut Verdict) -> Option<()> {
        let (ether_type, packet) = self.network(frame)?;
        let transport = match ether_type {
            TYPE_IPV4 => self.check_ipv4(packet, verdict)?,
            TYPE_IPV6 => self.ipv6(packet)?,
            _ => return None,
        };
        if self.rxcsum.tcp_udp() {
            verdict.status.set_tcp_checked(true);
            if !is_right {
                let sum = checksum::sum(transport.data);
                let wrong = checksum::add(transport.pseudo_header(), sum) != RIGHT;
                verdict.errors.set_tcp(wrong);
                let start = transport.data.as_ptr().addr() - frame.as_ptr().addr();
                verdict.summed = Some(Summed {
                    start,
                    end: start + transport.data.len(),
                    sum,
                });
            }
        }
        Some(())
    }

    /// The network layer's type and packet, behind Ethernet, a VLAN tag and SNAP.
    fn network<'a>(&self, frame: &'a [u8]) -> Option<(u16, &'a [u8])> {
        let mut ether_type = be16(frame, ETHERNET_BYTES - 2)?;
        let mut packet = frame.get(ETHERNET_BYTES..)?;
        if ether_type == self.tag_type {
            ether_type = be16(packet, 2)?;
            packet = packet.get(TAG_BYTES..)?;
        }
        if ether_type <= LENGTH_MAX
            && let Some(inside) = packet.strip_prefix(&SNAP)
        {
            ether_type = be16(inside, 0)?;
            packet = inside.get(2..)?;
        }
        Some((ether_type, packet))
    }

    fn check_ipv4<'a>(&self, packet: &'a [u8], verdict: &mut Verdict) -> Option<Transport<'a>> {
        let header = packet.get(..usize::from(packet.first()? & 0xf) * 4)?;
        if packet[0] >> 4 != 4 || header.len() < IPV4_HEADER_BYTES {
            return None;
        }
        let protocol = header[9];
        // Table 3-5: not even the outer header's.
        if protocol == protocol::IPV4 {
            return None;
        }
        if self.rxcsum.ip() {
            verdict.status.set_ip_checked(true);
            verdict.errors.set_ip(checksum::sum(header) != RIGHT);
        }
        let is_fragment = be16(header, 6)? & 0x3fff != 0;
        let total = usize::from(be16(header, 2)?);
        let data = packet.get(header.len()..total)?;
        match protocol {
            _ if is_fragment => None,
            protocol::IPV6 => self.ipv6(data),
            _ => Transport::new(protocol, &header[12..20], data),
        }
    }

    fn ipv6<'a>(&self, packet: &'a [u8]) -> Option<Transport<'a>> {
        let header = packet.get(..IPV6_HEADER_BYTES)?;
        if !self.rxcsum.ipv6() || header[0] >> 4 != 6 {
            return None;
        }
        let payload = usize::from(be16(header, 4)?);
        let mut data = packet.get(IPV6_HEADER_BYTES..IPV6_HEADER_BYTES + payload)?;
        let mut next = header[6];
        while let protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION = next {
            let bytes = 8 + 8 * usize::from(*data.get(1)?);
            // With segments left, the sum has a destination that is not the header's.
            let is_under_way = next == protocol::ROUTING && *data.get(3)? != 0;
            if bytes > EXTENSION_BYTES_MAX || is_under_way {
                return None;
            }
            next = data[0];
            data = data.get(bytes..)?;
        }
        Transport::new(next, &header[8..40], data)
    }
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
        let data = match protocol {
            protocol::TCP if data.len() >= 20 => data,
            protocol::UDP if be16(data, 6)? != 0 => data.get(..usize::from(be16(data, 4)?))?,
            _ => return None,
        };
        Some(Self {
            protocol,
            addresses,
            data,
        })
    }

    /// The sum of what a checksum covers beside the packet.
    fn pseudo_header(&self) -> u16 {
        let sum = checksum::add(self.protocol.into(), self.data.len() as u16);
        checksum::add(sum, checksum::sum(self.addresses))
    }
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    let field = data.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]))
}
