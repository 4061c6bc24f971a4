//! TCP segmentation, sections 3.3.5 to 3.3.7 and 3.5: one packet of the guest becomes many on the wire.
//!
//! Each segment is built in place: its header is written over the end of the payload before it, which has been sent, so
//! that the payload is never copied.

use std::ops::Range;

use net::Offload;
use pci::saved::{Bytes, LoadError};

use super::{
    checksum,
    spec::{
        FRAME_BYTES_MAX,
        descriptor::{ContextOffsets, ContextSegments},
    },
    state,
};

const IPV4_TOTAL_LENGTH: usize = 2;
const IPV4_IDENTIFICATION: usize = 4;
const IPV6_PAYLOAD_LENGTH: usize = 4;
const IPV6_HEADER_BYTES: usize = 40;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
/// FIN and PSH, which belong to the last segment.
const TCP_LAST_FLAGS: u8 = 0x09;
const UDP_LENGTH: usize = 4;

/// What the guest's context descriptor said.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Context {
    pub(super) offsets: ContextOffsets,
    pub(super) segments: ContextSegments,
}

impl Context {
    /// The bytes that the IP header's checksum covers in a packet of so many bytes.
    pub(super) fn ip_range(&self, packet_bytes: usize) -> Range<usize> {
        range(self.offsets.ip_start(), self.offsets.ip_end(), packet_bytes)
    }

    /// The bytes that the TCP or UDP checksum covers in a packet of so many bytes.
    pub(super) fn tcp_range(&self, packet_bytes: usize) -> Range<usize> {
        range(
            self.offsets.tcp_start(),
            self.offsets.tcp_end(),
            packet_bytes,
        )
    }

    /// What is in the header that differs from segment to segment.
    fn header(&self) -> Header {
        match (self.segments.ipv4(), self.segments.tcp()) {
            (true, true) => Header::Tcp { ipv4: true },
            (false, true) => Header::Tcp { ipv4: false },
            (true, false) => Header::Udp,
            (false, false) => Header::Constant,
        }
    }
}

/// From where to where a checksum goes; an end of 0 is that of the packet (section 3.6).
fn range(start: u8, end: u16, packet_bytes: usize) -> Range<usize> {
    let end = match end {
        0 => packet_bytes,
        inclusive => usize::from(inclusive) + 1,
    };
    start.into()..end
}

/// What a prototype header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Tcp {
        ipv4: bool,
    },
    /// In IPv4.
    Udp,
    /// Anything, and the same in each segment (section 3.3.6.1, note 2): UDP in IPv6 can't be told from it.
    Constant,
}

impl Header {
    fn ipv4(self) -> bool {
        matches!(self, Self::Tcp { ipv4: true } | Self::Udp)
    }

    /// Of IP and of TCP or UDP, as many bytes as there are at least.
    fn least_bytes(self) -> (usize, usize) {
        match self {
            Self::Tcp { ipv4: true } => (20, 20),
            Self::Tcp { ipv4: false } => (IPV6_HEADER_BYTES, 20),
            Self::Udp => (20, 8),
            Self::Constant => (0, 0),
        }
    }
}

/// A packet that is being cut.
#[derive(Debug)]
pub(super) struct Segmenter {
    context: Context,
    insert_ip_checksum: bool,
    insert_tcp_checksum: bool,
    /// The guest's header, with a VLAN tag in it if it is to have one.
    header: [u8; Segmenter::HEADER_BYTES],
    header_bytes: usize,
    /// Bytes of that tag: offsets of the context count without it.
    tag_bytes: usize,
    /// Where the next segment's payload begins in the buffer.
    next: usize,
    end: usize,
    index: u32,
}

impl Segmenter {
    const TAG_BYTES: usize = 4;
    /// HDRLEN has 8 bits; and the tag.
    const HEADER_BYTES: usize = 255 + Self::TAG_BYTES;

    /// Prepares to cut `buffer[packet]`, whose header begins with `tag_bytes` of VLAN tag more than the context knows.
    /// `None` when the context makes no sense for it.
    pub(super) fn new(
        context: Context,
        insert_ip_checksum: bool,
        insert_tcp_checksum: bool,
        buffer: &[u8],
        packet: Range<usize>,
        tag_bytes: usize,
    ) -> Option<Self> {
        let header_bytes = usize::from(context.segments.header_bytes()) + tag_bytes;
        let in_header = |start: u8, bytes: usize| {
            usize::from(start) + bytes <= usize::from(context.segments.header_bytes())
        };
        let (ip_bytes, tcp_bytes) = context.header().least_bytes();
        let sound = context.segments.segment_bytes() > 0
            && !packet.is_empty()
            && header_bytes <= packet.len()
            && usize::from(context.segments.segment_bytes()).min(packet.len() - header_bytes)
                <= FRAME_BYTES_MAX - header_bytes
            && in_header(context.offsets.ip_start(), ip_bytes)
            && in_header(context.offsets.tcp_start(), tcp_bytes);
        if !sound {
            return None;
        }
        let mut header = [0; Self::HEADER_BYTES];
        header[..header_bytes].copy_from_slice(buffer.get(packet.start..)?.get(..header_bytes)?);
        Some(Self {
            context,
            insert_ip_checksum,
            insert_tcp_checksum,
            header,
            header_bytes,
            tag_bytes,
            next: packet.start + header_bytes,
            end: packet.end,
            index: 0,
        })
    }

    /// The packet, of which `buffer` has what is left, for a saved state.
    pub(super) fn save(&self, buffer: &[u8]) -> state::Segments {
        let Self {
            // The transmitter's.
            context: _,
            insert_ip_checksum,
            insert_tcp_checksum,
            header,
            header_bytes,
            tag_bytes,
            next,
            end,
            index,
        } = self;
        state::Segments {
            insert_ip_checksum: *insert_ip_checksum,
            insert_tcp_checksum: *insert_tcp_checksum,
            header: Bytes(header[..*header_bytes].to_vec()),
            tagged: *tag_bytes > 0,
            payload: Bytes(buffer[*next..*end].to_vec()),
            sent: *index,
        }
    }

    /// What [`Segmenter::save`] gave, with what is left of it in `buffer`.
    pub(super) fn restore(
        saved: &state::Segments,
        context: Context,
        buffer: &mut [u8],
    ) -> Result<Self, LoadError> {
        let error = |field, problem| Err(LoadError::new(field, problem));
        let state::Segments {
            insert_ip_checksum,
            insert_tcp_checksum,
            header: Bytes(header),
            tagged,
            payload: Bytes(payload),
            sent,
        } = saved;
        let tag_bytes = if *tagged { Self::TAG_BYTES } else { 0 };
        if header.len() != usize::from(context.segments.header_bytes()) + tag_bytes {
            return error("header", "has not the length that the context says");
        }
        let packet = 0..header.len() + payload.len();
        let Some(room) = buffer.get_mut(packet.clone()) else {
            return error("payload", "is longer than a packet can be");
        };
        if payload.is_empty() && *sent > 0 {
            return error("payload", "is empty: all segments were sent");
        }
        room[..header.len()].copy_from_slice(header);
        room[header.len()..].copy_from_slice(payload);
        let segmenter = Self::new(
            context,
            *insert_ip_checksum,
            *insert_tcp_checksum,
            buffer,
            packet,
            tag_bytes,
        );
        let Some(segmenter) = segmenter else {
            return error("header", "can't be cut as the context says");
        };
        Ok(Self {
            index: *sent,
            ..segmenter
        })
    }

    /// Payload bytes of a full segment.
    fn segment_bytes(&self) -> usize {
        self.context.segments.segment_bytes().into()
    }

    /// Payload bytes that are left.
    fn left(&self) -> usize {
        self.end - self.next
    }

    /// Payload bytes of the next segment.
    fn payload_bytes(&self) -> usize {
        self.left().min(self.segment_bytes())
    }

    /// Builds the next segment and says where in the buffer it is. Doing so twice gives the same.
    pub(super) fn build(&self, buffer: &mut [u8]) -> Range<usize> {
        let payload = self.payload_bytes();
        let segment = self.next - self.header_bytes..self.next + payload;
        let frame = &mut buffer[segment.clone()];
        frame[..self.header_bytes].copy_from_slice(&self.header[..self.header_bytes]);
        self.fix(&mut frame[self.tag_bytes..], payload == self.left());
        if self.insert_tcp_checksum {
            let inner = &mut frame[self.tag_bytes..];
            let at = usize::from(self.context.offsets.tcp_offset());
            if self.context.header() != Header::Constant {
                // The guest left the pseudo-header's sum without a length in the field.
                let start = usize::from(self.context.offsets.tcp_start());
                checksum::add_to_field(inner, at, (inner.len() - start) as u16);
            }
            let covered = self.context.tcp_range(inner.len());
            checksum::insert(inner, covered.start, covered.end, at);
        }
        segment
    }

    /// The segment that was built has been sent. Returns whether it was the last.
    pub(super) fn advance(&mut self) -> bool {
        self.next += self.payload_bytes();
        self.index = self.index.wrapping_add(1);
        self.next == self.end
    }

    /// Whether the packet, of which not all was sent yet, has as much payload as the context says (PAYLEN).
    pub(super) fn is_as_long_as_said(&self) -> bool {
        let sent = self.index as usize * self.segment_bytes();
        sent + self.left() == self.context.segments.payload_bytes() as usize
    }

    /// How someone else can cut the packet, if nothing of it was sent, there is something to cut, and it is to be done as
    /// everybody does it.
    pub(super) fn offload(&self) -> Option<Offload> {
        let start = u16::from(self.context.offsets.tcp_start());
        let at = u16::from(self.context.offsets.tcp_offset());
        let untagged_header_bytes = self.header_bytes - self.tag_bytes;
        let header = self.context.header();
        let usual = matches!(header, Header::Tcp { .. })
            && self.insert_tcp_checksum
            && self.insert_ip_checksum == header.ipv4()
            && self.context.offsets.tcp_end() == 0
            && start <= at
            && usize::from(at) + 2 <= untagged_header_bytes;
        // IP has 16 bits for its length.
        let fits = untagged_header_bytes + self.left() <= usize::from(u16::MAX);
        let worth = self.index == 0 && self.left() > self.segment_bytes();
        (usual && fits && worth).then(|| Offload::Segment {
            ip_version: if header.ipv4() { 4 } else { 6 },
            header_bytes: self.header_bytes as u16,
            segment_bytes: self.context.segments.segment_bytes(),
            start: start + self.tag_bytes as u16,
            offset: at - start,
        })
    }

    /// Makes the packet whole for someone else to cut, with lengths and sums as if it went out in one piece, and says
    /// where in the buffer it is. Doing so twice gives the same.
    pub(super) fn build_whole(&self, buffer: &mut [u8]) -> Range<usize> {
        let whole = self.next - self.header_bytes..self.end;
        let frame = &mut buffer[whole.clone()];
        frame[..self.header_bytes].copy_from_slice(&self.header[..self.header_bytes]);
        let inner = &mut frame[self.tag_bytes..];
        self.fix(inner, true);
        let start = usize::from(self.context.offsets.tcp_start());
        let at = usize::from(self.context.offsets.tcp_offset());
        checksum::add_to_field(inner, at, (inner.len() - start) as u16);
        whole
    }

    /// What differs from segment to segment (section 3.5.9), except the TCP or UDP checksum. `frame` begins where the
    /// context's offsets count from.
    fn fix(&self, frame: &mut [u8], last: bool) {
        let ip = usize::from(self.context.offsets.ip_start());
        let tcp = usize::from(self.context.offsets.tcp_start());
        let bytes_from = |at: usize| (frame.len() - at) as u16;
        match self.context.header() {
            Header::Constant => {}
            Header::Tcp { ipv4 } => {
                let ip_length = bytes_from(ip);
                self.fix_ip(frame, ip, ip_length, ipv4);
                self.fix_tcp(frame, tcp, last);
            }
            Header::Udp => {
                let (ip_length, udp_length) = (bytes_from(ip), bytes_from(tcp));
                self.fix_ip(frame, ip, ip_length, true);
                put(frame, tcp + UDP_LENGTH, udp_length);
            }
        }
        if self.insert_ip_checksum {
            let covered = self.context.ip_range(frame.len());
            let at = usize::from(self.context.offsets.ip_offset());
            checksum::insert(frame, covered.start, covered.end, at);
        }
    }

    fn fix_ip(&self, frame: &mut [u8], ip: usize, length: u16, ipv4: bool) {
        if ipv4 {
            put(frame, ip + IPV4_TOTAL_LENGTH, length);
            let at = ip + IPV4_IDENTIFICATION;
            let identification = u16::from_be_bytes([frame[at], frame[at + 1]]);
            put(frame, at, identification.wrapping_add(self.index as u16));
        } else {
            let payload = length.wrapping_sub(IPV6_HEADER_BYTES as u16);
            put(frame, ip + IPV6_PAYLOAD_LENGTH, payload);
        }
    }

    fn fix_tcp(&self, frame: &mut [u8], tcp: usize, last: bool) {
        let at = tcp + TCP_SEQUENCE;
        let field = [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
        let offset = self
            .index
            .wrapping_mul(self.context.segments.segment_bytes().into());
        let sequence = u32::from_be_bytes(field).wrapping_add(offset);
        frame[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            frame[tcp + TCP_FLAGS] &= !TCP_LAST_FLAGS;
        }
    }
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
