//! The way out of the transmitter: to the backend, back to the receiver, or nowhere.

use net::{Full, Offload, Offloads};
use pci::{Bus, regs::Regs};

use super::{
    budget::OVERHEAD_BYTES,
    flow::Flow,
    interrupt::Events,
    path::Path,
    rx::Receiver,
    statistics::{Cast, Sent},
    totals::FCS_BYTES,
    totals::Totals,
};

/// The shortest frame on the wire, without FCS.
pub(super) const FRAME_BYTES_MIN: usize = 60;

/// The way out, for one run.
pub(super) struct Way<'a, 'b> {
    pub(super) path: Path,
    pub(super) offloads: Offloads,
    pub(super) backend: &'a mut dyn net::Backend,
    pub(super) receiver: &'a mut Receiver,
    pub(super) flow: &'a mut Flow,
    pub(super) totals: &'a mut Totals,
    pub(super) regs: &'a mut Regs,
    pub(super) bus: &'a mut Bus<'b>,
    pub(super) budget: u32,
    /// The type of VLAN tags, if they are inserted (CTRL.VME).
    pub(super) tag_type: Option<u16>,
    /// Short frames are padded (TCTL.PSP).
    pub(super) pads: bool,
    /// How many descriptors are reported at once; 0: each as soon as it is done.
    pub(super) write_back_threshold: u32,
    pub(super) sent: Sent,
    pub(super) events: Events,
}

/// Why a run ends before the ring does.
pub(super) enum Pause {
    Full,
    Budget,
}

impl From<Full> for Pause {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl Way<'_, '_> {
    /// Takes from the budget; a run that has any left may overdraw it once, so that it always gets somewhere.
    pub(super) fn spend(&mut self, bytes: u32) -> Result<(), Pause> {
        if self.budget == 0 {
            return Err(Pause::Budget);
        }
        self.budget = self.budget.saturating_sub(bytes);
        Ok(())
    }

    /// Sends a frame, and counts what then goes over the wire.
    pub(super) fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Pause> {
        let bytes = frame.len() as u32;
        let frames = match offload {
            // Who takes it whole may have to cut it before he answers.
            Offload::Segment {
                header_bytes,
                segment_bytes,
                ..
            } => (bytes - u32::from(header_bytes)).div_ceil(segment_bytes.into()),
            Offload::None | Offload::Checksum { .. } => 1,
        };
        self.spend(frames * OVERHEAD_BYTES + bytes)?;
        match self.path {
            Path::Backend => self.backend.send(frame, offload)?,
            Path::Loopback => {
                let events =
                    self.receiver
                        .loop_back(self.regs, self.bus, self.flow, self.totals, frame);
                self.events.add(events);
            }
            Path::Nowhere => {
                self.sent.drop_frames(frames);
                return Ok(());
            }
        }
        let cast = Cast::of(frame);
        match offload {
            Offload::Segment {
                header_bytes,
                segment_bytes,
                ..
            } => {
                let (header, segment) = (u32::from(header_bytes), u32::from(segment_bytes));
                let payload = bytes - header;
                let full = header + segment + FCS_BYTES;
                self.sent.add(cast, full, payload / segment);
                if !payload.is_multiple_of(segment) {
                    let padded = if self.pads { FRAME_BYTES_MIN as u32 } else { 0 };
                    let last = padded.max(header + payload % segment) + FCS_BYTES;
                    self.sent.add(cast, last, 1);
                }
            }
            Offload::None | Offload::Checksum { .. } => {
                self.sent.add(cast, bytes + FCS_BYTES, 1);
            }
        }
        Ok(())
    }
}
