//! A complete packet becomes frames: checksums, padding and the VLAN tag are put in, or it is cut into segments.
//!
//! What the backend can do itself is left to it, and that is decided anew each time the packet is offered: the path may
//! change meanwhile, or the packet be in another process, with another backend.

use std::ops::Range;

use net::Offload;

use super::{Last, Packet, TAG_BYTES, Transmitter};
use crate::e1000::{
    checksum,
    segment::Segmenter,
    spec::{
        self,
        bits::{Ctrl, Tctl},
    },
    statistics::FCS_BYTES,
    wire::{Pause, Way},
};

const ADDRESSES_BYTES: usize = 12;
/// The shortest frame on the wire, without FCS.
const FRAME_BYTES_MIN: usize = 60;

/// A packet that is complete, in the transmitter's buffer.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, and it is not moved about"
)]
pub(super) enum Ready {
    Frame {
        at: Range<usize>,
        /// What is still to be summed.
        checksum: Option<Checksum>,
    },
    Segments(Segmenter),
}

/// The checksum of a frame from `start` to its end, which goes to `at`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checksum {
    pub(super) start: usize,
    pub(super) at: usize,
}

impl Transmitter {
    /// The packet is complete: makes it ready to be sent, unless it can't be.
    pub(super) fn finish(&mut self, packet: Packet, last: Last, way: &mut Way<'_, '_>) {
        self.ready = if std::mem::take(&mut self.spoilt) {
            None
        } else {
            self.make_ready(packet, last, way)
        };
        let segment = matches!(packet, Packet::Data { segment: true, .. });
        match (&self.ready, segment) {
            (Some(_), true) => way.regs.count(spec::TSCTC, 1),
            (None, true) => way.regs.count(spec::TSCTFC, 1),
            (_, false) => {}
        }
        self.packet = None;
        self.end = match &self.ready {
            Some(_) => self.end,
            None => TAG_BYTES,
        };
    }

    fn make_ready(&mut self, packet: Packet, last: Last, way: &mut Way<'_, '_>) -> Option<Ready> {
        let ctrl = Ctrl::from_bits(way.regs.get(spec::CTRL));
        let tag = last.tag.filter(|_| ctrl.vlan_mode());
        if let Packet::Data {
            segment: true,
            insert_ip_checksum,
            insert_tcp_checksum,
        } = packet
        {
            let start = self.insert_tag(tag, way.regs.get(spec::VET) as u16);
            let segmenter = Segmenter::new(
                self.contexts[1],
                insert_ip_checksum,
                insert_tcp_checksum,
                &self.buffer,
                start..self.end,
                TAG_BYTES - start,
            )?;
            return Some(Ready::Segments(segmenter));
        }
        if !last.insert_fcs {
            self.take_off_fcs()?;
        }
        let bytes = self.end - TAG_BYTES;
        if bytes == 0 || bytes > spec::FRAME_BYTES_MAX {
            return None;
        }
        let mut checksum = self.insert_checksums(packet, last);
        let start = self.insert_tag(tag, way.regs.get(spec::VET) as u16);
        if let Some(checksum) = &mut checksum {
            checksum.start += TAG_BYTES - start;
            checksum.at += TAG_BYTES - start;
        }
        let pad = Tctl::from_bits(way.regs.get(spec::TCTL)).pad_short();
        if pad && self.end < start + FRAME_BYTES_MIN {
            self.buffer[self.end..start + FRAME_BYTES_MIN].fill(0);
            self.end = start + FRAME_BYTES_MIN;
        }
        Some(Ready::Frame {
            at: start..self.end,
            checksum,
        })
    }

    /// The guest's own FCS ends the packet, and backends carry none. `None`: it is wrong, so the next station would drop
    /// the frame.
    fn take_off_fcs(&mut self) -> Option<()> {
        let packet = self.buffer.get(TAG_BYTES..self.end)?;
        let (frame, sequence) = packet.split_last_chunk()?;
        self.end -= FCS_BYTES as usize;
        (checksum::frame_check_sequence(frame) == *sequence).then_some(())
    }

    /// Inserts the checksums of a packet that is one frame, except one that a backend could do: that goes to the frame's
    /// end, to which padding adds nothing but zeros.
    fn insert_checksums(&mut self, packet: Packet, last: Last) -> Option<Checksum> {
        let frame = &mut self.buffer[TAG_BYTES..self.end];
        let (covered, at) = match packet {
            Packet::Legacy {
                checksum_start,
                checksum_offset,
            } if last.insert_checksum => {
                (checksum_start.into()..frame.len(), checksum_offset.into())
            }
            Packet::Data {
                insert_ip_checksum,
                insert_tcp_checksum,
                ..
            } => {
                let context = &self.contexts[0];
                if insert_ip_checksum {
                    let covered = context.ip_range();
                    let at = usize::from(context.offsets.ip_offset());
                    checksum::insert(frame, covered.start, covered.end, at);
                }
                if !insert_tcp_checksum {
                    return None;
                }
                let at = usize::from(context.offsets.tcp_offset());
                (context.tcp_range(frame.len()), at)
            }
            Packet::Legacy { .. } => return None,
        };
        let inside = covered.start <= at && at + 2 <= frame.len();
        if covered.end == frame.len() && inside {
            Some(Checksum {
                start: covered.start,
                at,
            })
        } else {
            checksum::insert(frame, covered.start, covered.end, at);
            None
        }
    }

    /// Puts the VLAN tag behind the addresses, if there is one. Returns where the packet begins then.
    fn insert_tag(&mut self, tag: Option<u16>, ether_type: u16) -> usize {
        match tag {
            Some(tag) if self.end >= TAG_BYTES + ADDRESSES_BYTES => {
                self.buffer
                    .copy_within(TAG_BYTES..TAG_BYTES + ADDRESSES_BYTES, 0);
                let field = &mut self.buffer[ADDRESSES_BYTES..ADDRESSES_BYTES + TAG_BYTES];
                field[..2].copy_from_slice(&ether_type.to_be_bytes());
                field[2..].copy_from_slice(&tag.to_be_bytes());
                0
            }
            _ => TAG_BYTES,
        }
    }

    /// Sends what is ready. What remains unsent on an error stays ready.
    pub(super) fn send_ready(&mut self, way: &mut Way<'_, '_>) -> Result<(), Pause> {
        match &mut self.ready {
            None => return Ok(()),
            Some(Ready::Frame { at, checksum }) => {
                let frame = &mut self.buffer[at.clone()];
                if !way.offloads.checksum
                    && let Some(Checksum { start, at }) = checksum.take()
                {
                    checksum::insert(frame, start, frame.len(), at);
                }
                let offload = checksum.map_or(Offload::None, |checksum| Offload::Checksum {
                    start: checksum.start as u16,
                    offset: (checksum.at - checksum.start) as u16,
                });
                way.send(frame, offload)?;
            }
            Some(Ready::Segments(segmenter)) => {
                match segmenter.offload().filter(|_| way.offloads.segment) {
                    Some(offload) => {
                        let at = segmenter.build_whole(&mut self.buffer);
                        way.send(&self.buffer[at], offload)?;
                    }
                    None => loop {
                        let at = segmenter.build(&mut self.buffer);
                        way.send(&self.buffer[at], Offload::None)?;
                        if segmenter.advance() {
                            break;
                        }
                    },
                }
            }
        }
        self.ready = None;
        self.end = TAG_BYTES;
        Ok(())
    }
}
