//! What is sent: UDP in IPv4, and large TCP packets that are to be cut, to a station that nobody is.

use clap::ValueEnum;

/// The device's address, and so the receiver's.
pub(super) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// Ethernet, IPv4 and TCP.
pub(super) const TCP_HEADERS_BYTES: usize = 54;
/// What a segment takes besides its payload, and its payload.
const SEGMENTS: usize = 44;
const SEGMENT_BYTES: usize = 1460;

/// How long the frames are, without FCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Size {
    #[value(name = "64")]
    Small,
    #[value(name = "512")]
    Medium,
    #[value(name = "1514")]
    Large,
    /// A packet of 64 KiB, handed over whole, to be cut into segments of 1460 bytes.
    #[value(name = "tso")]
    Segments,
}

impl Size {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Small => 64,
            Self::Medium => 512,
            Self::Large => 1514,
            Self::Segments => (TCP_HEADERS_BYTES + SEGMENTS * SEGMENT_BYTES) as u64,
        }
    }

    /// How many frames of how many bytes in all a wire carries for one.
    pub(super) fn on_the_wire(self) -> (u64, u64) {
        match self {
            Self::Segments => {
                let segments = SEGMENTS as u64;
                (
                    segments,
                    segments * (TCP_HEADERS_BYTES + SEGMENT_BYTES) as u64,
                )
            }
            _ => (1, self.bytes()),
        }
    }

    /// What the driver hands over.
    pub(super) fn frame(self) -> Vec<u8> {
        frame(self, OTHER, MAC)
    }

    /// What comes to the device.
    pub(super) fn arriving_frame(self) -> Vec<u8> {
        frame(self, MAC, OTHER)
    }
}

fn frame(size: Size, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let bytes = size.bytes() as usize;
    let protocol = if size == Size::Segments { 6 } else { 17 };
    let mut ip = [
        &[0x45, 0][..],
        &((bytes - 14) as u16).to_be_bytes(),
        &[0, 7, 0x40, 0, 64, protocol, 0, 0],
        &[10, 0, 0, 1, 10, 0, 0, 2],
    ]
    .concat();
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut transport = match protocol {
        // PSH and ACK.
        6 => [
            &[0x80, 0, 0x80, 1][..],
            &[0; 8],
            &[0x50, 0x18, 0x10, 0, 0, 0, 0, 0],
        ]
        .concat(),
        _ => [
            &[0x80, 0, 0x80, 1][..],
            &((bytes - 34) as u16).to_be_bytes(),
            &[0, 0],
        ]
        .concat(),
    };
    transport.extend((transport.len()..bytes - 34).map(|index| (index * 31) as u8));
    let pseudo = [&ip[12..20], &[0, protocol]].concat();
    if protocol == 6 {
        // The driver leaves the sum of what every segment has in common.
        let pseudo = sum(&pseudo);
        transport[16..18].copy_from_slice(&pseudo.to_be_bytes());
    } else {
        let length = (transport.len() as u16).to_be_bytes();
        let checksum = !sum(&[&pseudo[..], &length, &transport].concat());
        transport[6..8].copy_from_slice(&checksum.to_be_bytes());
    }
    [&to[..], &from, &[0x08, 0], &ip, &transport].concat()
}

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_long_as_they_say_and_their_sums_are_right() {
        for size in Size::value_variants() {
            let frame = size.frame();
            assert_eq!(frame.len() as u64, size.bytes());
            assert_eq!(sum(&frame[14..34]), 0xffff);
            if *size != Size::Segments {
                let length = ((frame.len() - 34) as u16).to_be_bytes();
                let covered = [&frame[26..34], &[0, 17], &length, &frame[34..]].concat();
                assert_eq!(sum(&covered), 0xffff);
            }
        }
    }
}
