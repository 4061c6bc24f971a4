//! Reception, section 3.2: frames that pass the filters go to the guest's buffers.
//!
//! A run fetches descriptors in batches, fills their buffers, and writes them back in batches; registers are looked at when
//! it begins and written when it ends.
//!
//! The packet buffer holds one frame: a frame that has passed the filters and finds no descriptors, or not enough, waits in
//! it, and as long as it does, the others wait in the backend. A card would go on until its packet buffer is full and lose
//! the rest (MPC). A backend has a queue of its own, and a peer that is held back loses nothing, which is what virtual
//! machines are used to. The guest learns all the same that its ring ran dry: RNBC counts each frame that found it so, and
//! RXO is set. MPC counts what is really lost: frames that the transmitter loops back while one waits, frames that are longer
//! than the packet buffer, and frames whose descriptors or buffers are not memory.
//!
//! While the receiver is off or has no link, frames are lost as they are on a wire, and counted nowhere. Those in the packet
//! buffer stay.
//!
//! Descriptors are written back at the end of each run at the latest, sooner than RXDCTL.WTHRESH may ask for, and fetched
//! when they are needed, whatever PTHRESH and HTHRESH say: thresholds are about a PCI bus, and a driver can't tell.

mod delivery;
mod descriptors;

use pci::{
    Bus,
    regs::Regs,
    saved::{Bytes, LoadError},
};

use super::{
    Controller,
    budget::{BUDGET_BYTES, OVERHEAD_BYTES},
    flow::Flow,
    interrupt::Events,
    spec::{
        self,
        bits::Rctl,
        descriptor::{ReceiveErrors, ReceiveStatus},
    },
    state,
    totals::FCS_BYTES,
    totals::Totals,
};
use delivery::{Delivery, Packet, Report};

/// The longest frame that a backend has.
const FRAME_BYTES: usize = net::MAX_FRAME_BYTES;
/// A frame, and its FCS.
const BUFFER_BYTES: usize = FRAME_BYTES + FCS_BYTES as usize;

/// The receiver's state between frames.
#[derive(Debug)]
pub(super) struct Receiver {
    /// Where a frame comes to.
    arriving: Box<[u8]>,
    /// The packet buffer.
    waiting: Box<[u8]>,
    /// What is in the packet buffer.
    packet: Option<Packet>,
    /// Descriptors are missing: frames are left where they are.
    pub(super) blocked: bool,
    /// The budget ended before the frames did.
    pub(super) more: bool,
}

impl Controller {
    /// The guest gave descriptors, or switched the receiver.
    pub(super) fn resume_receive(&mut self, bus: &mut Bus<'_>) {
        if self.rx.blocked || self.rx.packet.is_some() {
            self.receive(bus);
        }
    }

    /// Takes frames from the backend, as far as descriptors and budget go.
    pub(super) fn receive(&mut self, bus: &mut Bus<'_>) {
        let link_up = self.link_up();
        let Self {
            regs,
            rx,
            flow,
            totals,
            backend,
            ..
        } = self;
        let mut unheard = 0;
        rx.more = false;
        rx.blocked = false;
        let enabled = Rctl::from_bits(regs.get(spec::RCTL)).enable();
        let mut delivery = Delivery::begin(regs, bus, flow, totals);
        if enabled {
            rx.store_waiting(&mut delivery);
        }
        let mut budget = BUDGET_BYTES;
        loop {
            let hears = enabled && link_up;
            if hears && rx.packet.is_some() {
                rx.blocked = true;
                break;
            }
            if budget == 0 {
                rx.more = true;
                break;
            }
            let Some(received) = backend.receive(&mut rx.arriving[..FRAME_BYTES]) else {
                break;
            };
            budget = budget.saturating_sub(OVERHEAD_BYTES + received.frame_bytes as u32);
            if hears {
                rx.take(&mut delivery, received);
            } else {
                unheard += 1;
            }
        }
        let events = delivery.end();
        totals.received.drops += unheard;
        self.interrupts.take(&mut self.regs, bus, events);
    }
}

impl Receiver {
    pub(super) fn new() -> Self {
        // Zeroed by the kernel page by page as they are used.
        let buffer = || vec![0; BUFFER_BYTES].into_boxed_slice();
        Self {
            arriving: buffer(),
            waiting: buffer(),
            packet: None,
            blocked: false,
            more: false,
        }
    }

    pub(super) fn reset(&mut self) {
        let Self {
            arriving: _,
            waiting: _,
            packet,
            blocked,
            more,
        } = self;
        *packet = None;
        *blocked = false;
        *more = false;
    }

    pub(super) fn save(&self) -> state::Receiver {
        let Self {
            arriving: _,
            waiting,
            packet,
            blocked,
            more,
        } = self;
        state::Receiver {
            waiting: packet.as_ref().map(|packet| {
                let Packet { at, stored, report } = packet;
                state::Waiting {
                    data: Bytes(waiting[at.clone()].to_vec()),
                    stored: *stored,
                    checksum: report.checksum,
                    status: report.status.into_bits(),
                    errors: report.errors.into_bits(),
                    special: report.special,
                }
            }),
            blocked: *blocked,
            more: *more,
        }
    }

    pub(super) fn restore(saved: &state::Receiver) -> Result<Self, LoadError> {
        let state::Receiver {
            waiting,
            blocked,
            more,
        } = saved;
        let mut receiver = Self {
            blocked: *blocked,
            more: *more,
            ..Self::new()
        };
        if let Some(waiting) = waiting {
            let Bytes(data) = &waiting.data;
            let within = |field, problem| LoadError::new(field, problem).within("waiting");
            let Some(room) = receiver.waiting.get_mut(..data.len()) else {
                let problem = format!("no frame has {} bytes", data.len());
                return Err(within("data", problem));
            };
            if waiting.stored >= data.len() {
                let field = if data.is_empty() { "data" } else { "stored" };
                return Err(within(field, "nothing of the frame waits".into()));
            }
            room.copy_from_slice(data);
            receiver.packet = Some(Packet {
                at: 0..data.len(),
                stored: waiting.stored,
                report: Report {
                    checksum: waiting.checksum,
                    status: ReceiveStatus::from_bits(waiting.status),
                    errors: ReceiveErrors::from_bits(waiting.errors),
                    special: waiting.special,
                },
            });
        }
        Ok(receiver)
    }

    /// Whether a frame is here for which there are no descriptors.
    pub(super) fn waits(&self) -> bool {
        self.blocked && self.packet.is_some()
    }

    /// A frame that the transmitter sent comes back. It is lost when one waits already.
    pub(super) fn loop_back(
        &mut self,
        regs: &mut Regs,
        bus: &mut Bus<'_>,
        flow: &mut Flow,
        totals: &mut Totals,
        frame: &[u8],
    ) -> Events {
        let Some(room) = self.arriving.get_mut(..frame.len()) else {
            return Events::default();
        };
        if !Rctl::from_bits(regs.get(spec::RCTL)).enable() {
            return Events::default();
        }
        room.copy_from_slice(frame);
        let mut delivery = Delivery::begin(regs, bus, flow, totals);
        self.take(&mut delivery, net::Received::unverified(frame.len()));
        self.blocked = self.packet.is_some();
        delivery.end()
    }

    /// Takes the frame that has arrived.
    fn take(&mut self, delivery: &mut Delivery<'_, '_>, received: net::Received) {
        let is_full = self.packet.is_some();
        if let Some(packet) = delivery.take(&mut self.arriving, received, is_full) {
            std::mem::swap(&mut self.arriving, &mut self.waiting);
            self.packet = Some(packet);
        }
    }

    /// Goes on with the frame that waits.
    fn store_waiting(&mut self, delivery: &mut Delivery<'_, '_>) {
        self.packet
            .take_if(|packet| !delivery.resume(&self.waiting, packet));
    }
}
