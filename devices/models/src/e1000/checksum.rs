//! The Internet checksum (RFC 1071), and Ethernet's frame check sequence (IEEE 802.3, 3.2.9).

/// Bytes summed at once.
const BLOCK_BYTES: usize = 32;

/// The one's complement sum of big-endian words; an odd last byte is the upper half of one.
pub(super) fn sum(data: &[u8]) -> u16 {
    // Words are summed as the host has them: the sum's bytes come out swapped, and nothing else changes (RFC 1071, 2.B).
    // Lanes of 64 bits don't overflow in any length that memory has, and the compiler puts several into one register.
    let (blocks, rest) = data.as_chunks::<BLOCK_BYTES>();
    let mut lanes = [0u64; BLOCK_BYTES / 4];
    let mut add = |block: &[u8; BLOCK_BYTES]| {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u32::from_ne_bytes(*word).into());
        }
    };
    blocks.iter().for_each(&mut add);
    let mut last = [0; BLOCK_BYTES];
    last[..rest.len()].copy_from_slice(rest);
    add(&last);
    let mut sum = lanes
        .iter()
        .fold(0, |sum: u64, lane| sum.wrapping_add(*lane));
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::from_be_bytes((sum as u16).to_ne_bytes())
}

/// One's complement addition.
pub(super) fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Sums `frame[start..end]` and puts the checksum at `at`. Does nothing when that is not inside the frame.
pub(super) fn insert(frame: &mut [u8], start: usize, end: usize, at: usize) {
    let Some(covered) = frame.get(start..end).filter(|bytes| !bytes.is_empty()) else {
        return;
    };
    let checksum = !sum(covered);
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Adds a value to a 16-bit field, in one's complement. Does nothing when that is not inside the frame.
pub(super) fn add_to_field(frame: &mut [u8], at: usize, value: u16) {
    if let Some(field) = frame.get_mut(at..at + 2) {
        let now = u16::from_be_bytes([field[0], field[1]]);
        field.copy_from_slice(&add(now, value).to_be_bytes());
    }
}

/// The FCS that follows a frame on the wire.
pub(super) fn frame_check_sequence(frame: &[u8]) -> [u8; 4] {
    crc32fast::hash(frame).to_le_bytes()
}
