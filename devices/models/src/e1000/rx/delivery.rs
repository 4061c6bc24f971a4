//! One run of the receiver: frames on their way through the filters into one ring.

use std::ops::Range;

use pci::{Bus, regs::Regs};

use super::descriptors::Descriptors;
use crate::e1000::{
    checksum,
    filter::{Accepted, Filter, Header},
    flow::{self, Control, Flow, Pass},
    interrupt::Events,
    parse::Parser,
    spec::{
        self,
        bits::{Ctrl, Pba, Rctl},
        descriptor::{Receive, ReceiveErrors, ReceiveStatus},
    },
    statistics::Received,
    totals::FCS_BYTES,
    totals::Totals,
};

/// The longest frame, FCS included, with long packets and without (RCTL.LPE).
const LONG_FRAME_BYTES: u32 = 16_384;
const FRAME_BYTES: u32 = 1522;
/// The shortest frame, without FCS: what is shorter was padded before it went on a wire.
const FRAME_BYTES_MIN: usize = 60;
const ADDRESSES_BYTES: usize = 12;
const TYPE_AT: usize = 12;
const TAG_BYTES: usize = 4;

/// A frame that passed the filters, as it goes to memory.
#[derive(Debug)]
pub(super) struct Packet {
    /// Where it lies in its buffer.
    pub(super) at: Range<usize>,
    /// So many bytes of it are in memory.
    pub(super) stored: usize,
    pub(super) report: Report,
}

/// What the packet's last descriptor says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) checksum: u16,
    pub(super) status: ReceiveStatus,
    pub(super) errors: ReceiveErrors,
    /// The VLAN tag.
    pub(super) special: u16,
}

/// How much of a packet went to memory.
enum Stored {
    All,
    /// Descriptors are missing.
    Part,
    /// A descriptor or its buffer is not memory.
    Nowhere,
}

/// Frames on their way into one ring.
pub(super) struct Delivery<'a, 'b> {
    regs: &'a mut Regs,
    bus: &'a mut Bus<'b>,
    flow: &'a mut Flow,
    totals: &'a mut Totals,
    /// The type of MAC Control frames, if they are listened to.
    control_type: Option<[u8; 2]>,
    settings: Settings,
    filter: Filter,
    parser: Parser,
    descriptors: Descriptors,
    counts: Received,
    events: Events,
}

/// What registers say for the whole run.
struct Settings {
    /// The longest frame, FCS included.
    frame_bytes: u32,
    /// Room in the packet buffer.
    room_bytes: u32,
    /// RCTL.SBP.
    store_bad: bool,
    /// CTRL.VME.
    strip_tags: bool,
    strip_fcs: bool,
    /// Of each receive buffer.
    buffer_bytes: usize,
    /// RSRPD; 0: nothing is small.
    small_bytes: usize,
    /// Of free descriptors, at which the guest is told.
    threshold: u32,
    /// Free descriptors when the run began.
    available: u32,
}

impl<'a, 'b> Delivery<'a, 'b> {
    pub(super) fn begin(
        regs: &'a mut Regs,
        bus: &'a mut Bus<'b>,
        flow: &'a mut Flow,
        totals: &'a mut Totals,
    ) -> Self {
        let rctl = Rctl::from_bits(regs.get(spec::RCTL));
        let descriptors = Descriptors::load(regs);
        let long = rctl.long_packets();
        let settings = Settings {
            frame_bytes: if long { LONG_FRAME_BYTES } else { FRAME_BYTES },
            room_bytes: Pba::from_bits(regs.get(spec::PBA)).receive_kib() << 10,
            store_bad: rctl.store_bad(),
            strip_tags: Ctrl::from_bits(regs.get(spec::CTRL)).vlan_mode(),
            strip_fcs: rctl.strip_crc(),
            buffer_bytes: rctl.buffer_bytes() as usize,
            small_bytes: regs.get(spec::RSRPD) as usize,
            threshold: descriptors.count() >> (1 + rctl.minimum_threshold()),
            available: descriptors.available(),
        };
        Self {
            control_type: flow::control_type(regs),
            settings,
            filter: Filter::load(regs, rctl),
            parser: Parser::load(regs),
            descriptors,
            counts: Received::default(),
            events: Events::default(),
            regs,
            bus,
            flow,
            totals,
        }
    }

    /// Shows the guest how far it went. Returns what happened.
    pub(super) fn end(mut self) -> Events {
        let head = self.descriptors.write_back(self.bus);
        let (before, after) = (self.settings.available, self.descriptors.available());
        if after < before {
            self.regs.set(spec::RDH, head);
            self.events.received = true;
        }
        let threshold = self.settings.threshold;
        if before > threshold && after <= threshold {
            self.events.causes.set_receive_minimum_threshold(true);
        }
        self.counts.settle(self.regs, self.totals);
        self.events
    }

    /// Brings a frame to memory that has arrived at the start of `buffer`, where there is room for padding and an FCS behind
    /// it. Returns it if it passed the filters and has to wait for descriptors. `is_full`: there is no room to wait.
    pub(super) fn take(
        &mut self,
        buffer: &mut [u8],
        received: net::Received,
        is_full: bool,
    ) -> Option<Packet> {
        let mut end = received.frame_bytes;
        let control = self.classify(&buffer[..end]);
        if let Some(control) = control {
            self.flow.hear(self.regs, self.bus, control.kind);
        }
        if end < FRAME_BYTES_MIN {
            buffer[end..FRAME_BYTES_MIN].fill(0);
            end = FRAME_BYTES_MIN;
        }
        let wire_bytes = end as u32 + FCS_BYTES;
        self.counts.see(wire_bytes);
        let header = Header::of(buffer, self.filter.tag_type())?;
        let accepted = self.accept(&header, control)?;
        let oversized = wire_bytes > self.settings.frame_bytes;
        if oversized {
            self.counts.find_oversized();
            if !self.settings.store_bad {
                return None;
            }
        }
        if is_full || wire_bytes > self.settings.room_bytes {
            self.miss();
            return None;
        }
        if self.descriptors.available() == 0 && control.is_none() {
            self.counts.find_no_buffer();
        }
        let mut packet = self.prepare(&mut buffer[..end + FCS_BYTES as usize], &header, received);
        packet.report.status.set_inexact(accepted.inexact);
        let stored = self.store(buffer, &mut packet);
        match stored {
            Stored::Nowhere => self.miss(),
            Stored::All | Stored::Part if oversized || control.is_some() => {}
            Stored::All | Stored::Part => self.counts.receive(accepted.counts_as, wire_bytes),
        }
        matches!(stored, Stored::Part).then_some(packet)
    }

    /// Goes on with a packet that has waited. Returns whether it has to wait again.
    pub(super) fn resume(&mut self, buffer: &[u8], packet: &mut Packet) -> bool {
        let stored = self.store(buffer, packet);
        if let Stored::Nowhere = stored {
            self.events.causes.set_receive_overrun(true);
        }
        matches!(stored, Stored::Part)
    }

    /// What a frame is to flow control.
    fn classify(&self, frame: &[u8]) -> Option<Control> {
        let found = frame.get(TYPE_AT..TYPE_AT + 2)?;
        let is_control = self.control_type.is_some_and(|control| control == *found);
        is_control.then(|| flow::classify(self.regs, frame))?
    }

    fn accept(&self, header: &Header, control: Option<Control>) -> Option<Accepted> {
        let by_filters = self.filter.accept(self.regs, header);
        match control.map(|control| control.pass) {
            None | Some(Pass::ByFilters) => by_filters,
            Some(Pass::Never) => None,
            Some(Pass::Always) => Some(by_filters.unwrap_or(Accepted::exactly(header))),
        }
    }

    /// Takes out the tag, judges checksums, and puts the FCS into the room for it at the end of the frame.
    fn prepare(&self, frame: &mut [u8], header: &Header, received: net::Received) -> Packet {
        let end = frame.len() - FCS_BYTES as usize;
        // The FCS is that of the frame on the wire, tag and all.
        let fcs = (!self.settings.strip_fcs).then(|| checksum::frame_check_sequence(&frame[..end]));
        let tag = header.tag.filter(|_| self.settings.strip_tags);
        let mut at = 0..end;
        if tag.is_some() {
            at.start = TAG_BYTES;
            frame.copy_within(..ADDRESSES_BYTES, at.start);
        }
        let verdict = self
            .parser
            .judge(&frame[at.clone()], received.checksum_is_right);
        if let Some(fcs) = fcs {
            frame[end..].copy_from_slice(&fcs);
            at.end = frame.len();
        }
        Packet {
            stored: 0,
            report: Report {
                checksum: self.parser.packet_checksum(&frame[at.clone()], &verdict),
                status: verdict.status.with_vlan(tag.is_some()),
                errors: verdict.errors,
                special: tag.unwrap_or(0),
            },
            at,
        }
    }

    /// Stores what is left of a packet, as far as descriptors go.
    fn store(&mut self, buffer: &[u8], packet: &mut Packet) -> Stored {
        let data = &buffer[packet.at.clone()];
        while packet.stored < data.len() {
            let descriptor = match self.descriptors.next(self.bus) {
                Ok(Some(descriptor)) => descriptor,
                Ok(None) => {
                    self.events.causes.set_receive_overrun(true);
                    return Stored::Part;
                }
                Err(_) => return Stored::Nowhere,
            };
            let address = descriptor.address.get();
            if address == 0 {
                // A null descriptor takes no data, and nothing but DD changes (section 3.2.5.2).
                let status = ReceiveStatus::from_bits(descriptor.status).with_done(true);
                descriptor.status = status.into_bits();
                self.descriptors.finish();
                continue;
            }
            let rest = &data[packet.stored..];
            let now = &rest[..rest.len().min(self.settings.buffer_bytes)];
            if self.bus.write(address, now).is_err() {
                return Stored::Nowhere;
            }
            packet.stored += now.len();
            packet
                .report
                .fill(descriptor, now.len(), packet.stored == data.len());
            self.descriptors.finish();
        }
        if data.len() <= self.settings.small_bytes {
            self.events.causes.set_small_receive(true);
        }
        Stored::All
    }

    /// A frame is lost.
    fn miss(&mut self) {
        self.counts.miss();
        self.events.causes.set_receive_overrun(true);
    }
}

impl Report {
    /// Fills in a descriptor for so many bytes. Only a packet's last one tells of the whole packet, but for the packet
    /// checksum, which the first one has (section 3.2.3).
    fn fill(&self, descriptor: &mut Receive, bytes: usize, is_last: bool) {
        descriptor.length = (bytes as u16).into();
        descriptor.checksum = self.checksum.into();
        let (status, errors, special) = if is_last {
            (
                self.status.with_end_of_packet(true),
                self.errors,
                self.special,
            )
        } else {
            (ReceiveStatus::new(), ReceiveErrors::new(), 0)
        };
        descriptor.status = status.with_done(true).into_bits();
        descriptor.errors = errors.into_bits();
        descriptor.special = special.into();
    }
}
