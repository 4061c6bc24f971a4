//! The header of virtio-net, before each frame of a TAP: what is still to be done to the frame, and what is known of it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, byteorder::little_endian::U16};

use crate::{Offload, Received};

/// `struct virtio_net_hdr`, always little-endian (`TUNSETVNETLE`).
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    flags: u8,
    segmentation: u8,
    header_bytes: U16,
    segment_bytes: U16,
    checksum_start: U16,
    checksum_offset: U16,
}

pub(crate) const HEADER_BYTES: usize = 10;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_IS_RIGHT: u8 = 2;
const SEGMENTATION_TCPV4: u8 = 1;
const SEGMENTATION_TCPV6: u8 = 4;
const SEGMENTATION_ECN: u8 = 0x80;

/// In a TCP header: the byte of flags that has CWR, which only the first segment keeps (RFC 3168, 6.1.2).
const TCP_FLAGS: usize = 13;
const CWR: u8 = 0x80;

/// A frame of which the kernel left to us what we did not offer to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Incomplete;

impl Header {
    /// Asks for what `offload` says, to be done to `frame`.
    pub(crate) fn new(offload: Offload, frame: &[u8]) -> Self {
        match offload {
            Offload::None => Self::default(),
            Offload::Checksum { start, offset } => Self {
                flags: NEEDS_CHECKSUM,
                checksum_start: start.into(),
                checksum_offset: offset.into(),
                ..Self::default()
            },
            Offload::Segment {
                ip_version,
                header_bytes,
                segment_bytes,
                start,
                offset,
            } => {
                let flags = frame.get(usize::from(start) + TCP_FLAGS);
                let ecn = match flags {
                    Some(flags) if flags & CWR != 0 => SEGMENTATION_ECN,
                    _ => 0,
                };
                let ip = match ip_version {
                    6 => SEGMENTATION_TCPV6,
                    _ => SEGMENTATION_TCPV4,
                };
                Self {
                    flags: NEEDS_CHECKSUM,
                    segmentation: ip | ecn,
                    header_bytes: header_bytes.into(),
                    segment_bytes: segment_bytes.into(),
                    checksum_start: start.into(),
                    checksum_offset: offset.into(),
                }
            }
        }
    }

    /// Does what a frame from the kernel still needs, which is a checksum at most.
    pub(crate) fn complete(&self, frame: &mut [u8]) -> Result<Received, Incomplete> {
        let frame_bytes = frame.len();
        if self.segmentation != 0 {
            return Err(Incomplete);
        }
        let is_ours = self.flags & NEEDS_CHECKSUM != 0;
        if is_ours {
            let summed = frame.get_mut(usize::from(self.checksum_start.get())..);
            let summed = summed.ok_or(Incomplete)?;
            let sum = internet_checksum(summed);
            let offset = usize::from(self.checksum_offset.get());
            let place = summed.get_mut(offset..offset + 2).ok_or(Incomplete)?;
            place.copy_from_slice(&sum);
        }
        Ok(Received {
            frame_bytes,
            checksum_is_right: is_ours || self.flags & CHECKSUM_IS_RIGHT != 0,
        })
    }
}

/// RFC 1071's checksum as it is written, with zero as its other representation, as UDP requires and TCP allows.
fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    // In the host's byte order and by whole words, which that sum allows, as long as the result is written likewise.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]);
    let mut sum: u64 = words.map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => [0xff; 2],
        checksum => checksum.to_ne_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Flags; the type of segmentation; four lengths.
    fn header(flags: u8, segmentation: u8, numbers: [u16; 4]) -> Header {
        let mut bytes = vec![flags, segmentation];
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        Header::read_from_bytes(&bytes).unwrap()
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        // Its own example, section 3.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet_checksum(&example), [0x22, 0x0d]);
        assert_eq!(internet_checksum(&[0xff, 0xff]), [0xff, 0xff]);
        assert_eq!(internet_checksum(&[]), [0xff, 0xff]);
        // Bytes that carry a lot, of every length: with the checksum in front it all adds up.
        let bytes: Vec<u8> = (0..1600_u32)
            .map(|index| (index * 125) as u8 | 0xc0)
            .collect();
        for length in 0..bytes.len() {
            let checksum = internet_checksum(&bytes[..length]);
            let whole = [&checksum[..], &bytes[..length]].concat();
            let word = |pair: &[u8]| {
                u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))
            };
            let mut sum: u32 = whole.chunks(2).map(word).sum();
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            assert_eq!(sum, 0xffff, "length {length}");
        }
    }

    #[test]
    fn a_checksum_that_is_left_to_us_is_put_in_and_is_right() {
        let mut frame = [0, 0, 0, 0, 0x12, 0x34, 0, 0, 1];
        let received = header(1, 0, [0, 0, 4, 2]).complete(&mut frame);
        let expected = Received {
            frame_bytes: 9,
            checksum_is_right: true,
        };
        assert_eq!(received, Ok(expected));
        assert_eq!(frame[..6], [0, 0, 0, 0, 0x12, 0x34]);
        assert_eq!(frame[6..], [0xec, 0xcb, 1]);
    }

    #[test]
    fn what_the_kernel_has_verified_is_told() {
        for (flags, is_right) in [(0, false), (2, true)] {
            let received = header(flags, 0, [0; 4]).complete(&mut [7; 60]).unwrap();
            assert_eq!(received.frame_bytes, 60);
            assert_eq!(received.checksum_is_right, is_right);
        }
    }

    #[test]
    fn what_can_not_be_completed_is_told() {
        let mut frame = [0; 60];
        for header in [
            header(0, 1, [0; 4]),
            header(1, 4, [0; 4]),
            header(1, 0, [0, 0, 61, 0]),
            header(1, 0, [0, 0, 58, 1]),
            header(1, 0, [0, 0, 0xffff, 0xffff]),
        ] {
            assert_eq!(header.complete(&mut frame), Err(Incomplete));
        }
    }

    #[test]
    fn segments_of_a_packet_with_cwr_are_cut_with_regard_to_it() {
        let mut frame = [0; 200];
        let offload = |ip_version| Offload::Segment {
            ip_version,
            header_bytes: 54,
            segment_bytes: 100,
            start: 34,
            offset: 16,
        };
        let written = [1, 1, 54, 0, 100, 0, 34, 0, 16, 0];
        assert_eq!(Header::new(offload(4), &frame).as_bytes(), written);
        frame[34 + 13] = 0x90;
        assert_eq!(Header::new(offload(4), &frame).as_bytes()[1], 0x81);
        assert_eq!(Header::new(offload(6), &frame).as_bytes()[1], 0x84);
        assert_eq!(Header::new(offload(4), &frame[..40]).as_bytes(), written);
    }
}
