//! What both directions count, section 13.7.
//!
//! A run of either direction counts in a plain structure, which goes into the registers when the run is over: nobody can
//! read them meanwhile. Counters stay at their maximum, and each frame counts with its FCS, which backends don't carry.

use pci::regs::Regs;

use super::{spec, totals::Totals};

/// The shortest good frame.
const GOOD_BYTES_MIN: u32 = 64;
/// The sizes that are counted apart: up to 64, 127, 255, 511, 1023, and more bytes.
const SIZES: usize = 6;

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

/// Frames and their octets.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    frames: u32,
    octets: u64,
}

/// Good frames, which flow control's are not.
#[derive(Clone, Copy, Debug, Default)]
struct Good {
    sum: Sum,
    multicast: u32,
    broadcast: u32,
    by_size: [u32; SIZES],
}

/// What a run of the transmitter counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    total: Sum,
    good: Good,
    /// Of these the registers don't tell.
    dropped: u32,
    failed: u32,
}

/// What a run of the receiver counted. It counts while the receiver is enabled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    total: Sum,
    good: Good,
    oversized: u32,
    missed: u32,
    without_buffer: u32,
}

impl Sent {
    /// `frames` frames of `wire_bytes` each went out.
    pub(super) fn add(&mut self, cast: Cast, wire_bytes: u32, frames: u32) {
        self.total.add(wire_bytes, frames);
        // What is shorter is no good packet (section 13.7.30).
        if wire_bytes >= GOOD_BYTES_MIN {
            self.good.add(cast, wire_bytes, frames);
        }
    }

    /// A frame of flow control went out.
    pub(super) fn add_control(&mut self, wire_bytes: u32) {
        self.total.add(wire_bytes, 1);
    }

    /// `frames` frames had nowhere to go.
    pub(super) fn drop_frames(&mut self, frames: u32) {
        self.dropped = self.dropped.saturating_add(frames);
    }

    /// The guest asked for what makes no frame.
    pub(super) fn fail(&mut self) {
        self.failed = self.failed.saturating_add(1);
    }

    /// Adds to the registers, and to the totals.
    pub(super) fn settle(self, regs: &mut Regs, totals: &mut Totals) {
        let Self {
            total,
            good,
            dropped,
            failed,
        } = self;
        totals.sent.add(total.frames, total.octets);
        totals.sent.drops += u64::from(dropped);
        totals.sent.errors += u64::from(failed);
        total.settle(regs, [spec::TPT, spec::TOTL, spec::TOTH]);
        good.sum
            .settle(regs, [spec::GPTC, spec::GOTCL, spec::GOTCH]);
        regs.count(spec::MPTC, good.multicast);
        regs.count(spec::BPTC, good.broadcast);
        settle_sizes(regs, spec::PTC, good.by_size);
    }
}

impl Received {
    /// A frame came in, whatever becomes of it.
    pub(super) fn see(&mut self, wire_bytes: u32) {
        self.total.add(wire_bytes, 1);
    }

    /// A frame passed the filters and was received. `cast`: as what it is counted.
    pub(super) fn receive(&mut self, cast: Cast, wire_bytes: u32) {
        self.good.add(cast, wire_bytes, 1);
    }

    /// A frame passed the filters that is longer than the receiver takes.
    pub(super) fn find_oversized(&mut self) {
        self.oversized += 1;
    }

    /// A frame was lost for want of room.
    pub(super) fn miss(&mut self) {
        self.missed += 1;
    }

    /// A frame was received while the guest had given no buffers.
    pub(super) fn find_no_buffer(&mut self) {
        self.without_buffer += 1;
    }

    /// Adds to the registers, and to the totals.
    pub(super) fn settle(self, regs: &mut Regs, totals: &mut Totals) {
        let Self {
            total,
            good,
            oversized,
            missed,
            without_buffer,
        } = self;
        totals.received.add(good.sum.frames, good.sum.octets);
        totals.received.drops += u64::from(missed);
        totals.received.errors += u64::from(oversized);
        total.settle(regs, [spec::TPR, spec::TORL, spec::TORH]);
        good.sum
            .settle(regs, [spec::GPRC, spec::GORCL, spec::GORCH]);
        regs.count(spec::MPRC, good.multicast);
        regs.count(spec::BPRC, good.broadcast);
        settle_sizes(regs, spec::PRC, good.by_size);
        // Every frame that is too long has a right FCS (ROC); there are no others with a bad length (RLEC).
        regs.count(spec::RLEC, oversized);
        regs.count(spec::ROC, oversized);
        regs.count(spec::MPC, missed);
        regs.count(spec::RNBC, without_buffer);
    }
}

impl Sum {
    fn add(&mut self, wire_bytes: u32, frames: u32) {
        self.frames = self.frames.saturating_add(frames);
        self.octets = self
            .octets
            .saturating_add(u64::from(wire_bytes) * u64::from(frames));
    }

    fn settle(self, regs: &mut Regs, [count, low, high]: [u32; 3]) {
        if self.frames == 0 {
            return;
        }
        regs.count(count, self.frames);
        let now = u64::from(regs.get(high)) << 32 | u64::from(regs.get(low));
        let sum = now.saturating_add(self.octets);
        regs.set(low, sum as u32);
        regs.set(high, (sum >> 32) as u32);
    }
}

impl Good {
    #[inline]
    fn add(&mut self, cast: Cast, wire_bytes: u32, frames: u32) {
        self.sum.add(wire_bytes, frames);
        let size = &mut self.by_size[size_index(wire_bytes)];
        *size = size.saturating_add(frames);
        match cast {
            Cast::Unicast => {}
            Cast::Multicast => self.multicast = self.multicast.saturating_add(frames),
            Cast::Broadcast => self.broadcast = self.broadcast.saturating_add(frames),
        }
    }
}

/// Where a frame of this size is counted.
fn size_index(wire_bytes: u32) -> usize {
    match wire_bytes {
        0..=64 => 0,
        65..=127 => 1,
        128..=255 => 2,
        256..=511 => 3,
        512..=1023 => 4,
        _ => 5,
    }
}

fn settle_sizes(regs: &mut Regs, first: u32, by_size: [u32; SIZES]) {
    for (register, count) in (first..).step_by(4).zip(by_size) {
        regs.count(register, count);
    }
}

/// The upper half of a pair was read: both start again (section 13.7).
pub(super) fn clear_pair(regs: &mut Regs, low: u32, high: u32) {
    regs.set(low, 0);
    regs.set(high, 0);
}
