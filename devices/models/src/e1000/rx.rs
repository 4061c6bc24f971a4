//! Reception, section 3.2: frames that pass the filters go to the guest's buffers.
//!
//! A frame waits in the backend while the ring has no descriptor; one that needs more descriptors than there are at the
//! moment waits here. While the receiver is off or has no link, frames are lost as they are on a wire.

use pci::{
    Bus,
    regs::Regs,
    saved::{Bytes, LoadError},
};

use super::{
    Controller, checksum,
    filter::{self, Accepted},
    flow::{self, Control, Flow, Pass},
    interrupt::Events,
    parse,
    queue::{Registers, Ring},
    spec::{
        self,
        bits::{Ctrl, Rctl, Rxcsum},
        descriptor::{Receive, ReceiveStatus},
    },
    state,
    statistics::{Cast, FCS_BYTES, Received},
};

const RING: Registers = Registers {
    base_low: spec::RDBAL,
    base_high: spec::RDBAH,
    length: spec::RDLEN,
    head: spec::RDH,
    tail: spec::RDT,
};

/// Frames that one run takes before the loop gets a turn.
const BUDGET_FRAMES: u32 = 128;
/// The longest frame, FCS included, with long packets and without (RCTL.LPE).
const LONG_FRAME_BYTES: usize = 16_384;
const FRAME_BYTES: usize = 1522;
/// The shortest frame, without FCS: what is shorter was padded before it went on a wire.
const FRAME_BYTES_MIN: usize = 60;
const ADDRESSES_BYTES: usize = 12;
const TYPE_AT: usize = 12;
const TAG_BYTES: usize = 4;
/// Where the status is written: the second half of a descriptor, in one piece.
const DESCRIPTOR_STATUS_OFFSET: u64 = 8;

/// The receiver's state between frames.
#[derive(Debug)]
pub(super) struct Receiver {
    /// A frame, and room for its FCS.
    buffer: Box<[u8]>,
    /// Length of a frame in the buffer that waits for descriptors.
    pub(super) held: Option<usize>,
    /// Descriptors are missing: frames are left where they are.
    pub(super) blocked: bool,
    /// The budget ended before the frames did.
    pub(super) more: bool,
}

/// What became of a frame.
enum Fate {
    /// Received, filtered out or lost.
    Done,
    /// It waits for descriptors.
    Waits,
}

impl Controller {
    /// The guest gave descriptors, or switched the receiver.
    pub(super) fn resume_receive(&mut self, bus: &mut Bus<'_>) {
        if self.rx.blocked {
            self.receive(bus);
        }
    }

    /// Takes frames from the backend, as far as descriptors and budget go.
    pub(super) fn receive(&mut self, bus: &mut Bus<'_>) {
        self.rx.more = false;
        self.rx.blocked = false;
        let enabled = Rctl::from_bits(self.regs.get(spec::RCTL)).enable() && self.link_up();
        let holds_back = self.holds_partner_back();
        let mut delivery = Delivery::begin(&mut self.regs, bus, &mut self.flow);
        let mut budget = BUDGET_FRAMES;
        loop {
            // Who holds the partner back has to know whether a frame waits.
            let waits = self.rx.held.is_some() || !holds_back;
            if enabled && waits && delivery.ring.available() == 0 {
                self.rx.blocked = true;
                break;
            }
            if budget == 0 {
                self.rx.more = true;
                break;
            }
            budget -= 1;
            let room = self.rx.buffer.len() - FCS_BYTES as usize;
            let held = self.rx.held.take();
            let Some(length) = held.or_else(|| {
                let received = self.backend.receive(&mut self.rx.buffer[..room])?;
                Some(received.frame_bytes)
            }) else {
                break;
            };
            if !enabled {
                continue;
            }
            let control = delivery.classify(&self.rx.buffer[..length.min(room)]);
            if let Some(control) = control.filter(|_| held.is_none()) {
                delivery
                    .flow
                    .hear(delivery.regs, delivery.bus, control.kind);
            }
            let fate = delivery.deliver(&mut self.rx.buffer, length.min(room), control);
            if let Fate::Waits = fate {
                if held.is_none() {
                    delivery.counts.find_no_buffer();
                }
                self.rx.held = Some(length);
                self.rx.blocked = true;
                break;
            }
        }
        let events = delivery.end();
        self.interrupts.take(&mut self.regs, bus, events);
    }
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; LONG_FRAME_BYTES + FCS_BYTES as usize].into_boxed_slice(),
            held: None,
            blocked: false,
            more: false,
        }
    }

    pub(super) fn reset(&mut self) {
        let Self {
            buffer: _,
            held,
            blocked,
            more,
        } = self;
        *held = None;
        *blocked = false;
        *more = false;
    }

    pub(super) fn save(&self) -> state::Receiver {
        let Self {
            buffer,
            held,
            blocked,
            more,
        } = self;
        state::Receiver {
            held: held.map(|length| Bytes(buffer[..length].to_vec())),
            blocked: *blocked,
            more: *more,
        }
    }

    pub(super) fn restore(saved: &state::Receiver) -> Result<Self, LoadError> {
        let state::Receiver {
            held,
            blocked,
            more,
        } = saved;
        let mut receiver = Self {
            blocked: *blocked,
            more: *more,
            ..Self::new()
        };
        if let Some(Bytes(frame)) = held {
            if frame.is_empty() || frame.len() > LONG_FRAME_BYTES {
                let problem = format!("a frame has not {} bytes", frame.len());
                return Err(LoadError::new("held", problem));
            }
            receiver.buffer[..frame.len()].copy_from_slice(frame);
            receiver.held = Some(frame.len());
        }
        Ok(receiver)
    }

    /// A frame that the transmitter sent comes back. It is lost when it can't be received at once.
    pub(super) fn loop_back(
        &mut self,
        regs: &mut Regs,
        bus: &mut Bus<'_>,
        flow: &mut Flow,
        frame: &[u8],
    ) -> Events {
        if !Rctl::from_bits(regs.get(spec::RCTL)).enable() {
            return Events::default();
        }
        let mut delivery = Delivery::begin(regs, bus, flow);
        let control = delivery.classify(frame);
        if let Some(control) = control {
            delivery
                .flow
                .hear(delivery.regs, delivery.bus, control.kind);
        }
        match self.buffer.get_mut(..frame.len()) {
            Some(room) if self.held.is_none() => {
                room.copy_from_slice(frame);
                if let Fate::Waits = delivery.deliver(&mut self.buffer, frame.len(), control) {
                    delivery.miss();
                }
            }
            _ => delivery.miss(),
        }
        delivery.end()
    }
}

/// Frames on their way into one ring.
struct Delivery<'a, 'b> {
    regs: &'a mut Regs,
    bus: &'a mut Bus<'b>,
    flow: &'a mut Flow,
    /// The type of MAC Control frames, if they are listened to.
    control_type: Option<[u8; 2]>,
    rctl: Rctl,
    /// CTRL.VME: VLAN tags are taken out.
    strip_tags: bool,
    rxcsum: Rxcsum,
    ring: Ring,
    counts: Received,
    events: Events,
}

impl<'a, 'b> Delivery<'a, 'b> {
    fn begin(regs: &'a mut Regs, bus: &'a mut Bus<'b>, flow: &'a mut Flow) -> Self {
        Self {
            control_type: flow::control_type(regs),
            rctl: Rctl::from_bits(regs.get(spec::RCTL)),
            strip_tags: Ctrl::from_bits(regs.get(spec::CTRL)).vlan_mode(),
            rxcsum: Rxcsum::from_bits(regs.get(spec::RXCSUM)),
            ring: Ring::load(regs, &RING),
            counts: Received::default(),
            events: Events::default(),
            regs,
            bus,
            flow,
        }
    }

    /// What a frame is to flow control.
    fn classify(&self, frame: &[u8]) -> Option<Control> {
        let found = frame.get(TYPE_AT..TYPE_AT + 2)?;
        let is_control = self.control_type.is_some_and(|control| control == *found);
        is_control.then(|| flow::classify(self.regs, frame))?
    }

    /// Shows the guest how far it went. Returns what happened.
    fn end(self) -> Events {
        if self.events.received {
            self.regs.set(spec::RDH, self.ring.head());
        }
        self.counts.settle(self.regs);
        self.events
    }

    /// A frame is lost for want of descriptors.
    fn miss(&mut self) {
        self.counts.miss();
        self.events.causes.set_receive_overrun(true);
    }

    /// Brings `buffer[..length]` through the filters to memory. The buffer has room for padding and an FCS behind it.
    fn deliver(&mut self, buffer: &mut [u8], length: usize, control: Option<Control>) -> Fate {
        let mut end = length;
        if end < FRAME_BYTES_MIN {
            buffer[end..FRAME_BYTES_MIN].fill(0);
            end = FRAME_BYTES_MIN;
        }
        let wire_bytes = end as u32 + FCS_BYTES;
        let longest = if self.rctl.long_packets() {
            LONG_FRAME_BYTES
        } else {
            FRAME_BYTES
        };
        let frame = &buffer[..end];
        let cast = Cast::of(frame);
        let tag = filter::vlan_tag(self.regs, frame);
        let accepted = if wire_bytes as usize > longest {
            self.counts.find_oversized();
            None
        } else {
            let by_filters = filter::accept(self.regs, self.rctl, frame, cast, tag);
            match control.map(|control| control.pass) {
                None | Some(Pass::ByFilters) => by_filters,
                Some(Pass::Never) => None,
                Some(Pass::Always) => Some(by_filters.unwrap_or(Accepted { inexact: false })),
            }
        };
        let Some(accepted) = accepted else {
            self.counts.see(wire_bytes);
            return Fate::Done;
        };

        let mut start = 0;
        let tag = tag.filter(|_| self.strip_tags);
        let stripped = if tag.is_some() { TAG_BYTES } else { 0 };
        let fcs = if self.rctl.strip_crc() { 0 } else { FCS_BYTES };
        let buffer_bytes = self.rctl.buffer_bytes();
        let stored = (end - stripped) as u32 + fcs;
        let needed = stored.div_ceil(buffer_bytes);
        if needed > self.ring.available() {
            if needed < self.ring.count {
                return Fate::Waits;
            }
            self.counts.see(wire_bytes);
            self.miss();
            return Fate::Done;
        }
        // The FCS is that of the frame on the wire, tag and all.
        let sequence = (fcs > 0).then(|| checksum::frame_check_sequence(&buffer[..end]));
        if tag.is_some() {
            start = TAG_BYTES;
            buffer.copy_within(..ADDRESSES_BYTES, start);
        }
        let verdict = parse::verdict(&buffer[start..end], self.rxcsum);
        if let Some(sequence) = sequence {
            buffer[end..end + FCS_BYTES as usize].copy_from_slice(&sequence);
        }
        let data = &buffer[start..end + fcs as usize];
        let status = verdict
            .status
            .with_vlan(tag.is_some())
            .with_inexact(accepted.inexact);
        let mut last = Receive {
            checksum: parse::packet_checksum(data, self.rxcsum).into(),
            status: status.into_bits(),
            errors: verdict.errors.into_bits(),
            special: tag.unwrap_or(0).into(),
            ..Receive::default()
        };
        self.counts.see(wire_bytes);
        if self.store(data, &mut last, buffer_bytes) {
            if control.is_none() {
                self.counts.receive(cast, wire_bytes);
            }
            let small = self.regs.get(spec::RSRPD);
            if stored <= small {
                self.events.causes.set_small_receive(true);
            }
        } else {
            self.miss();
        }
        Fate::Done
    }

    /// Spreads data over buffers and hands their descriptors to the guest; `last` has what the last of them says. Returns
    /// false when memory is not there or null descriptors, which take no data, used up the ring.
    fn store(&mut self, data: &[u8], last: &mut Receive, buffer_bytes: u32) -> bool {
        let before = self.ring.available();
        let mut rest = data;
        let stored = loop {
            if self.ring.available() == 0 {
                break false;
            }
            let at = self.ring.address();
            let Ok(descriptor) = self.bus.load::<Receive>(at) else {
                break false;
            };
            let address = descriptor.address.get();
            let (now, later) = match address {
                0 => rest.split_at(0),
                _ => rest.split_at(rest.len().min(buffer_bytes as usize)),
            };
            if self.bus.write(address, now).is_err() {
                break false;
            }
            rest = later;
            let status = ReceiveStatus::from_bits(last.status)
                .with_done(true)
                .with_end_of_packet(rest.is_empty());
            last.length = (now.len() as u16).into();
            last.status = status.into_bits();
            let half = &zerocopy::IntoBytes::as_bytes(last)[DESCRIPTOR_STATUS_OFFSET as usize..];
            if self
                .bus
                .write(at.wrapping_add(DESCRIPTOR_STATUS_OFFSET), half)
                .is_err()
            {
                break false;
            }
            self.ring.advance();
            if rest.is_empty() {
                break true;
            }
        };
        self.events.received = true;
        let threshold = self.ring.count >> (1 + self.rctl.minimum_threshold());
        if before > threshold && self.ring.available() <= threshold {
            self.events.causes.set_receive_minimum_threshold(true);
        }
        stored
    }
}
