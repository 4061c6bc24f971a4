//! The traffic as the host's operator sees it: since the device was made, whatever its guest reads, resets or loads.
//!
//! A frame counts as it is on the wire, padded, without the FCS that backends don't carry.

use pci::stats::Sink;

/// Bytes of the FCS.
pub(super) const FCS_BYTES: u32 = 4;

/// What went through the device, and what did not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) received: Direction,
    pub(super) sent: Direction,
}

/// One way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Direction {
    packets: u64,
    bytes: u64,
    /// Lost for want of room, of a link, or of a driver.
    pub(super) drops: u64,
    /// Not as a frame has to be.
    pub(super) errors: u64,
}

impl Direction {
    /// Adds frames with so many octets, FCS included.
    pub(super) fn add(&mut self, frames: u32, octets: u64) {
        self.packets += u64::from(frames);
        self.bytes += octets.saturating_sub(u64::from(FCS_BYTES) * u64::from(frames));
    }
}

impl Totals {
    /// Tells the numbers.
    pub(super) fn tell(&self, sink: &mut dyn Sink) {
        let Self { received, sent } = self;
        sink.count("network.received_packets", "{packet}", received.packets);
        sink.count("network.received_bytes", "By", received.bytes);
        sink.count("network.received_drops", "{packet}", received.drops);
        sink.count("network.received_errors", "{packet}", received.errors);
        sink.count("network.sent_packets", "{packet}", sent.packets);
        sink.count("network.sent_bytes", "By", sent.bytes);
        sink.count("network.sent_drops", "{packet}", sent.drops);
        sink.count("network.sent_errors", "{packet}", sent.errors);
    }
}
