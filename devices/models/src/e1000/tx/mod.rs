//! Transmission, sections 3.3 to 3.5: descriptors become frames.
//!
//! Descriptors are fetched in batches. Data is gathered in one buffer until a descriptor ends the packet, which is then
//! made ready and sent.
//!
//! A packet that the backend refuses, or for which this run has no budget left, stays in the buffer, and its last
//! descriptor stays at the head of the ring until it is sent.

mod ready;
mod state;

use net::Offloads;
use pci::Bus;
use zerocopy::IntoBytes;

use super::{
    Controller,
    interrupt::Events,
    queue::{Registers, Ring},
    segment::Context,
    spec::{
        self,
        bits::{Tctl, Txdctl},
        descriptor::{
            ContextOffsets, ContextSegments, Data, Legacy, TRANSMIT_DONE, TRANSMIT_STATUS_OFFSET,
            Transmit,
        },
    },
    statistics::Sent,
    wire::{BUDGET_BYTES, OVERHEAD_BYTES, Path, Pause, Way},
};
use ready::Ready;

const RING: Registers = Registers {
    base_low: spec::TDBAL,
    base_high: spec::TDBAH,
    length: spec::TDLEN,
    head: spec::TDH,
    tail: spec::TDT,
};

/// Descriptors fetched at once.
const BATCH: usize = 32;

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
    /// Descriptors could not be read; the next write of the tail tries again.
    stalled: bool,
}

/// Options that count in the first descriptor of a packet, section 3.3.7.3.
#[derive(Clone, Copy, Debug)]
enum Packet {
    Legacy {
        checksum_start: u8,
        checksum_offset: u8,
    },
    Data {
        segment: bool,
        insert_ip_checksum: bool,
        insert_tcp_checksum: bool,
    },
}

/// Options that count in the last descriptor of a packet.
#[derive(Clone, Copy, Debug)]
struct Last {
    insert_fcs: bool,
    insert_checksum: bool,
    tag: Option<u16>,
}

impl Controller {
    /// The guest moved the tail.
    pub(super) fn write_transmit_tail(&mut self, bus: &mut Bus<'_>) {
        self.tx.stalled = false;
        self.transmit(bus);
    }

    /// Works through the ring from head to tail, as far as backend and budget go.
    pub(super) fn transmit(&mut self, bus: &mut Bus<'_>) {
        self.tx.more = false;
        // While nothing is offered to the backend, its room is not waited for either.
        self.tx.full = false;
        let enabled = Tctl::from_bits(self.regs.get(spec::TCTL)).enable();
        let mut ring = Ring::load(&self.regs, &RING);
        let before = ring.available();
        if !enabled || self.tx.stalled || before == 0 || self.flow.is_paused(&mut self.regs, bus) {
            return;
        }
        let path = self.path();
        let mut way = Way {
            path,
            offloads: match path {
                Path::Backend => self.backend.offloads(),
                Path::Loopback | Path::Nowhere => Offloads::default(),
            },
            backend: &mut *self.backend,
            receiver: &mut self.rx,
            flow: &mut self.flow,
            regs: &mut self.regs,
            bus,
            budget: BUDGET_BYTES,
            sent: Sent::default(),
            events: Events::default(),
        };
        self.tx.drain(&mut ring, &mut way);
        way.backend.flush();
        way.sent.settle(way.regs);
        let mut events = way.events;
        let after = ring.available();
        if after == 0 {
            events.causes.set_transmit_queue_empty(true);
        }
        let low = 8 * Txdctl::from_bits(self.regs.get(spec::TXDCTL)).low_threshold();
        if low > 0 && before > low && after <= low {
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
            stalled: false,
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
            stalled,
        } = self;
        *end = TAG_BYTES;
        *packet = None;
        *spoilt = false;
        *contexts = [Context::default(); 2];
        *ready = None;
        *full = false;
        *more = false;
        *stalled = false;
    }

    fn drain(&mut self, ring: &mut Ring, way: &mut Way<'_, '_>) {
        let mut batch = [Transmit::default(); BATCH];
        while ring.available() > 0 {
            let fetched = (ring.contiguous() as usize).min(BATCH);
            let batch = &mut batch[..fetched];
            if way.bus.read(ring.address(), batch.as_mut_bytes()).is_err() {
                self.stalled = true;
                return;
            }
            for descriptor in batch {
                match self.process(*descriptor, ring.address(), way) {
                    Ok(()) => ring.advance(),
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
    }

    /// Does what the descriptor at `address` says, and reports it done if it asks for that.
    fn process(
        &mut self,
        descriptor: Transmit,
        address: u64,
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
        if legacy.report_status() {
            if legacy.delay_interrupt() {
                way.events.sent_delayed = true;
            } else {
                way.events.causes.set_transmit_written_back(true);
            }
            let status = address.wrapping_add(TRANSMIT_STATUS_OFFSET);
            // A ring that can be read and not written is the guest's mistake; it waits for this status in vain.
            let _ = way.bus.write(status, &[TRANSMIT_DONE]);
        }
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
            checksum_offset: legacy.checksum_offset(),
        });
        self.gather(address, legacy.length().into(), way);
        if legacy.end_of_packet() {
            let last = Last {
                insert_fcs: legacy.insert_fcs(),
                insert_checksum: legacy.insert_checksum(),
                tag: legacy.vlan().then_some(legacy.special()),
            };
            self.finish(packet, last, way);
        }
    }

    fn take_data(&mut self, address: u64, data: Data, way: &mut Way<'_, '_>) {
        let packet = *self.packet.get_or_insert(Packet::Data {
            segment: data.segment(),
            insert_ip_checksum: data.insert_ip_checksum(),
            insert_tcp_checksum: data.insert_tcp_checksum(),
        });
        self.gather(address, data.length(), way);
        if data.end_of_packet() {
            let last = Last {
                insert_fcs: data.insert_fcs(),
                insert_checksum: false,
                tag: data.vlan().then_some(data.special()),
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
