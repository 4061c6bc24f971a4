//! What both directions count of a frame, section 13.7.

use pci::regs::Regs;

use super::spec;

/// Bytes of the FCS, which backends don't carry and counters count.
pub(super) const FCS_BYTES: u32 = 4;

/// Adds to a counter of 64 bits that stays at its maximum.
fn count_octets(regs: &mut Regs, low: u32, high: u32, more: u32) {
    let now = u64::from(regs.get(high)) << 32 | u64::from(regs.get(low));
    let sum = now.saturating_add(more.into());
    regs.set(low, sum as u32);
    regs.set(high, (sum >> 32) as u32);
}

/// The upper half of a pair was read: both start again (section 13.7).
pub(super) fn clear_pair(regs: &mut Regs, low: u32, high: u32) {
    regs.set(low, 0);
    regs.set(high, 0);
}

/// The register of a group of six by the size of the frame, FCS included.
fn by_size(first: u32, wire_bytes: u32) -> u32 {
    let step = match wire_bytes {
        0..=64 => 0,
        65..=127 => 1,
        128..=255 => 2,
        256..=511 => 3,
        512..=1023 => 4,
        _ => 5,
    };
    first + 4 * step
}

/// What the destination address makes a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cast {
    Unicast,
    Multicast,
    Broadcast,
}

impl Cast {
    pub(super) fn of(frame: &[u8]) -> Self {
        match frame {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => Self::Broadcast,
            [first, ..] if first & 1 == 1 => Self::Multicast,
            _ => Self::Unicast,
        }
    }
}

/// Frames of `wire_bytes` each (FCS included) went out.
pub(super) fn count_sent(regs: &mut Regs, cast: Cast, wire_bytes: u32, frames: u32) {
    let octets = wire_bytes.saturating_mul(frames);
    regs.count(spec::GPTC, frames);
    regs.count(spec::TPT, frames);
    count_octets(regs, spec::GOTCL, spec::GOTCH, octets);
    count_octets(regs, spec::TOTL, spec::TOTH, octets);
    regs.count(by_size(spec::PTC, wire_bytes), frames);
    match cast {
        Cast::Unicast => {}
        Cast::Multicast => regs.count(spec::MPTC, frames),
        Cast::Broadcast => regs.count(spec::BPTC, frames),
    }
}

/// A frame came in, whatever the filters say.
pub(super) fn count_seen(regs: &mut Regs, wire_bytes: u32) {
    regs.count(spec::TPR, 1);
    count_octets(regs, spec::TORL, spec::TORH, wire_bytes);
}

/// A frame passed the filters and went to memory.
pub(super) fn count_received(regs: &mut Regs, cast: Cast, wire_bytes: u32) {
    regs.count(spec::GPRC, 1);
    count_octets(regs, spec::GORCL, spec::GORCH, wire_bytes);
    regs.count(by_size(spec::PRC, wire_bytes), 1);
    match cast {
        Cast::Unicast => {}
        Cast::Multicast => regs.count(spec::MPRC, 1),
        Cast::Broadcast => regs.count(spec::BPRC, 1),
    }
}
