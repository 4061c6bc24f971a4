//! Transmission, sections 3.3 to 3.5: descriptors become frames.
//!
//! Descriptors are fetched in batches, and reported in batches. Data is gathered in one buffer until a descriptor ends the
//! packet, which is then made ready and sent.
//!
//! A packet that the backend refuses, or for which this run has no budget left, stays in the buffer, and its last
//! descriptor stays at the head of the ring until it is sent. A ring that can't be read is tried again, less and less
//! often: the guest may not have enabled bus mastering yet, or its memory may come back.

mod done;
mod ready;
mod state;

use std::time::{Duration, Instant};

use net::Offloads;
use pci::Bus;
use zerocopy::IntoBytes;

use super::{
    Controller,
    budget::{BUDGET_BYTES, OVERHEAD_BYTES},
    interrupt::Events,
    path::Path,
    queue::{Registers, Ring},
    segment::Context,
    spec::{
        self,
        bits::{Causes, Ctrl, Tctl, Txdctl},
        descriptor::{ContextOffsets, ContextSegments, DESCRIPTOR_BYTES, Data, Legacy, Transmit},
    },
    statistics::Sent,
    wire::{Pause, Way},
};
use done::{CAPACITY, Done};
use ready::Ready;

const RING: Registers = Registers {
    base_low: spec::TDBAL,
    base_high: spec::TDBAH,
    length: spec::TDLEN,
    head: spec::TDH,
    tail: spec::TDT,
};

/// Descriptors fetched at once, and reported at once.
const BATCH: usize = CAPACITY as usize;
/// How long a ring that can't be read is left alone at first, and at most.
const RETRY: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Room before the packet, for a VLAN tag.
const TAG_BYTES: usize = 4;
/// The longest packet to be segmented: 64 KiB and the longest header.
const BUFFER_BYTES: usize = TAG_BYTES + (64 << 10) + 256;

/// The transmitter's state between descriptors.
#[derive(Debug)]
pub(super) struct Transmitter {
    buffer: Box<[u8]>,
    /// End of the packet in the buffer; it begins after the room for the tag.
    end: usize,
    /// What the packet's first descriptor said, while a packet is being gathered.
    packet: Option<Packet>,
    /// The packet can't be sent: too long, or its data is not there.
    spoilt: bool,
    /// The context for checksums, and the one for segmentation (section 3.3.5).
    contexts: [Context; 2],
    /// A packet that is complete.
    ready: Option<Ready>,
    /// The backend refused a frame.
    pub(super) full: bool,
    /// The budget ended before the ring did.
    pub(super) more: bool,
    /// Descriptors could not be read.
    retry: Option<Retry>,
    done: Done,
}

/// When descriptors that could not be read are tried again, unless the tail is written before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Retry {
    at: Instant,
    /// How long that was to wait for.
    after: Duration,
}

/// Options that count in the first descriptor of a packet, section 3.3.7.3.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Legacy {
        checksum_start: u8,
    },
    Data {
        insert_ip_checksum: bool,
        insert_tcp_checksum: bool,
    },
    /// To be cut, which makes the tag one of the first descriptor's options.
    Segments {
        insert_ip_checksum: bool,
        insert_tcp_checksum: bool,
        tag: Option<u16>,
    },
}

/// Options that count in the last descriptor of a packet.
#[derive(Clone, Copy, Debug)]
struct Last {
    insert_fcs: bool,
    /// Where a legacy descriptor's checksum goes, if there is to be one.
    checksum_offset: Option<u8>,
    tag: Option<u16>,
}

impl Controller {
    /// The guest moved the tail.
    pub(super) fn write_transmit_tail(&mut self, bus: &mut Bus<'_>) {
        self.tx.retry = None;
        self.transmit(bus);
    }

    /// The guest switched the transmitter. One that is off has nothing left to write to a ring that may be gone soon.
    pub(super) fn write_transmit_enable(&mut self, bus: &mut Bus<'_>, control: Tctl) {
        if !control.enable() {
            self.write_back(bus, Events::default());
        }
        self.transmit(bus);
    }

    /// The guest changed the threshold by which descriptors are reported.
    pub(super) fn write_transmit_control(&mut self, bus: &mut Bus<'_>) {
        if self.tx.done.count() >= self.write_back_threshold(bus) {
            self.write_back(bus, Events::default());
        }
    }

    /// How many descriptors are reported at once; 0: each as soon as it is done.
    fn write_back_threshold(&self, bus: &Bus<'_>) -> u32 {
        let control = Txdctl::from_bits(self.regs.get(spec::TXDCTL));
        let unit = match control.by_descriptor() {
            true => 1,
            false => bus.cache_line_bytes() / DESCRIPTOR_BYTES,
        };
        control.write_back_threshold() * unit
    }

    /// Reports all descriptors that are done.
    fn write_back(&mut self, bus: &mut Bus<'_>, mut events: Events) {
        let ring = Ring::load(&self.regs, &RING);
        self.tx.done.write(&ring, bus, &mut events);
        self.interrupts.take(&mut self.regs, bus, events);
    }

    /// Works through the ring from head to tail, as far as backend and budget go.
    pub(super) fn transmit(&mut self, bus: &mut Bus<'_>) {
        self.tx.more = false;
        // While nothing is offered to the backend, its room is not waited for either.
        self.tx.full = false;
        if self.tx.done.deadline().is_some_and(|due| due <= bus.now()) {
            let causes = Causes::new().with_transmit_written_back(true);
            let events = Events {
                causes,
                ..Events::default()
            };
            self.write_back(bus, events);
        }
        let is_paused = self.flow.is_paused(&mut self.regs, bus);
        let tctl = Tctl::from_bits(self.regs.get(spec::TCTL));
        let mut ring = Ring::load(&self.regs, &RING);
        let before = ring.available();
        if is_paused || !tctl.enable() || before == 0 {
            // What ends this tries the ring again.
            self.tx.retry = None;
            return;
        }
        if self.tx.retry.is_some_and(|retry| bus.now() < retry.at) {
            return;
        }
        let path = self.path();
        let vlan_mode = Ctrl::from_bits(self.regs.get(spec::CTRL)).vlan_mode();
        let tag_type = vlan_mode.then(|| self.regs.get(spec::VET) as u16);
        let write_back_threshold = self.write_back_threshold(bus);
        let mut way = Way {
            path,
            offloads: match path {
                Path::Backend => self.backend.offloads(),
                Path::Loopback | Path::Nowhere => Offloads::default(),
            },
            backend: &mut *self.backend,
            receiver: &mut self.rx,
            flow: &mut self.flow,
            totals: &mut self.totals,
            regs: &mut self.regs,
            bus,
            budget: BUDGET_BYTES,
            tag_type,
            pads: tctl.pad_short(),
            write_back_threshold,
            sent: Sent::default(),
            events: Events::default(),
        };
        self.tx.drain(&mut ring, &mut way);
        way.sent.settle(way.regs, way.totals);
        let mut events = way.events;
        if self.tx.done.wait(self.regs.get(spec::TIDV), bus) {
            self.tx.done.write(&ring, bus, &mut events);
        }
        let after = ring.available();
        if after == 0 {
            events.causes.set_transmit_queue_empty(true);
        }
        let low = 8 * Txdctl::from_bits(self.regs.get(spec::TXDCTL)).low_threshold();
        if before > low && after <= low {
            events.causes.set_transmit_low(true);
        }
        self.regs.set(spec::TDH, ring.head());
        self.interrupts.take(&mut self.regs, bus, events);
    }
}

impl Transmitter {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            end: TAG_BYTES,
            packet: None,
            spoilt: false,
            contexts: [Context::default(); 2],
            ready: None,
            full: false,
            more: false,
            retry: None,
            done: Done::default(),
        }
    }

    pub(super) fn reset(&mut self) {
        let Self {
            buffer: _,
            end,
            packet,
            spoilt,
            contexts,
            ready,
            full,
            more,
            retry,
            done,
        } = self;
        *end = TAG_BYTES;
        *packet = None;
        *spoilt = false;
        *contexts = [Context::default(); 2];
        *ready = None;
        *full = false;
        *more = false;
        *retry = None;
        *done = Done::default();
    }

    /// When the transmitter has to be run, even if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let retry = self.retry.map(|retry| retry.at);
        [retry, self.done.deadline()].into_iter().flatten().min()
    }

    fn drain(&mut self, ring: &mut Ring, way: &mut Way<'_, '_>) {
        let mut batch = [Transmit::default(); BATCH];
        while ring.available() > 0 {
            let Some(fetched) = fetch(ring, way.bus, &mut batch) else {
                self.try_later(way.bus);
                return;
            };
            self.retry = None;
            let end = fetched
                .iter()
                .try_for_each(|descriptor| self.work(*descriptor, ring, way));
            if self.done.count() >= way.write_back_threshold {
                self.done.write(ring, way.bus, &mut way.events);
            }
            match end {
                Ok(()) => {}
                Err(Pause::Full) => {
                    self.full = true;
                    return;
                }
                Err(Pause::Budget) => {
                    self.more = true;
                    return;
                }
            }
        }
    }

    /// The ring can't be read now.
    fn try_later(&mut self, bus: &Bus<'_>) {
        let after = match self.retry {
            None => RETRY,
            Some(retry) => (2 * retry.after).min(RETRY_MAX),
        };
        let at = bus.now() + after;
        self.retry = Some(Retry { at, after });
    }

    /// Does what the descriptor at the ring's head says, and moves the head on.
    fn work(
        &mut self,
        descriptor: Transmit,
        ring: &mut Ring,
        way: &mut Way<'_, '_>,
    ) -> Result<(), Pause> {
        way.spend(OVERHEAD_BYTES)?;
        let legacy = Legacy::from_bits(descriptor.high.get());
        if self.ready.is_none() {
            if !legacy.extended() {
                self.take_legacy(descriptor.low.get(), legacy, way);
            } else {
                match Data::from_bits(descriptor.high.get()) {
                    data if data.kind() == 1 => self.take_data(descriptor.low.get(), data, way),
                    data if data.kind() == 0 => self.take_context(descriptor),
                    _ => {}
                }
            }
        }
        self.send_ready(way)?;
        let (reports, delays) = (legacy.report_status(), legacy.delay_interrupt());
        if self.done.add(ring, reports, delays) {
            self.done.write(ring, way.bus, &mut way.events);
        }
        ring.advance();
        Ok(())
    }

    fn take_context(&mut self, descriptor: Transmit) {
        let context = Context {
            offsets: ContextOffsets::from_bits(descriptor.low.get()),
            segments: ContextSegments::from_bits(descriptor.high.get()),
        };
        self.contexts[usize::from(context.segments.segment())] = context;
    }

    fn take_legacy(&mut self, address: u64, legacy: Legacy, way: &mut Way<'_, '_>) {
        let packet = *self.packet.get_or_insert(Packet::Legacy {
            checksum_start: legacy.checksum_start(),
        });
        self.gather(address, legacy.length().into(), way);
        if legacy.end_of_packet() {
            let last = Last {
                insert_fcs: legacy.insert_fcs(),
                checksum_offset: legacy.insert_checksum().then(|| legacy.checksum_offset()),
                tag: legacy.vlan().then_some(legacy.special()),
            };
            self.finish(packet, last, way);
        }
    }

    fn take_data(&mut self, address: u64, data: Data, way: &mut Way<'_, '_>) {
        let tag = data.vlan().then_some(data.special());
        let packet = *self.packet.get_or_insert_with(|| match data.segment() {
            true => Packet::Segments {
                insert_ip_checksum: data.insert_ip_checksum(),
                insert_tcp_checksum: data.insert_tcp_checksum(),
                tag,
            },
            false => Packet::Data {
                insert_ip_checksum: data.insert_ip_checksum(),
                insert_tcp_checksum: data.insert_tcp_checksum(),
            },
        });
        self.gather(address, data.length(), way);
        if data.end_of_packet() {
            let last = Last {
                insert_fcs: data.insert_fcs(),
                checksum_offset: None,
                tag,
            };
            self.finish(packet, last, way);
        }
    }

    /// Adds a descriptor's data to the packet. A null address or length transfers nothing (section 3.3.3.1, note 3).
    fn gather(&mut self, address: u64, length: u32, way: &mut Way<'_, '_>) {
        let length = length as usize;
        if address == 0 || length == 0 || self.spoilt {
            return;
        }
        let room = self.buffer.get_mut(self.end..self.end + length);
        if room.is_some_and(|room| way.bus.read(address, room).is_ok()) {
            self.end += length;
            way.budget = way.budget.saturating_sub(length as u32);
        } else {
            self.spoilt = true;
        }
    }
}

/// Fetches the descriptors from the head on that lie behind one another. Where not all of them are memory, just the first.
fn fetch<'a>(
    ring: &Ring,
    bus: &mut Bus<'_>,
    batch: &'a mut [Transmit; BATCH],
) -> Option<&'a [Transmit]> {
    let most = (ring.contiguous() as usize).min(BATCH);
    let count = [most, 1].into_iter().find(|count| {
        let place = batch[..*count].as_mut_bytes();
        bus.read(ring.address(), place).is_ok()
    })?;
    Some(&batch[..count])
}
