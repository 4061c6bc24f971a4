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
    spec,
    totals::FCS_BYTES,
    wire::{FRAME_BYTES_MIN, Pause, Way},
};

const ADDRESSES_BYTES: usize = 12;

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
        self.packet = None;
        if self.ready.is_none() {
            way.sent.fail();
            self.end = TAG_BYTES;
            if let Packet::Segments { .. } = packet {
                way.regs.count(spec::TSCTFC, 1);
            }
        }
    }

    fn make_ready(&mut self, packet: Packet, last: Last, way: &Way<'_, '_>) -> Option<Ready> {
        if let Packet::Segments {
            insert_ip_checksum,
            insert_tcp_checksum,
            tag,
        } = packet
        {
            let start = self.insert_tag(tag, way);
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
        // A tag makes the guest's own FCS wrong, so that the device's is behind it in any case.
        let tagged = way.tag_type.is_some() && last.tag.is_some();
        if !last.insert_fcs && !tagged {
            self.take_off_fcs()?;
        }
        let bytes = self.end - TAG_BYTES;
        if bytes == 0 || bytes > spec::FRAME_BYTES_MAX {
            return None;
        }
        let mut checksum = self.insert_checksums(packet, last);
        let start = self.insert_tag(last.tag, way);
        if let Some(checksum) = &mut checksum {
            checksum.start += TAG_BYTES - start;
            checksum.at += TAG_BYTES - start;
        }
        if way.pads && self.end < start + FRAME_BYTES_MIN {
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
            Packet::Legacy { checksum_start } => {
                let at = usize::from(last.checksum_offset?);
                (usize::from(checksum_start)..frame.len(), at)
            }
            Packet::Data {
                insert_ip_checksum,
                insert_tcp_checksum,
            } => {
                let context = &self.contexts[0];
                if insert_ip_checksum {
                    let covered = context.ip_range(frame.len());
                    let at = usize::from(context.offsets.ip_offset());
                    checksum::insert(frame, covered.start, covered.end, at);
                }
                if !insert_tcp_checksum {
                    return None;
                }
                let at = usize::from(context.offsets.tcp_offset());
                (context.tcp_range(frame.len()), at)
            }
            Packet::Segments { .. } => return None,
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

    /// Puts the VLAN tag behind the addresses, if there is one and tags are inserted. Returns where the packet begins then.
    fn insert_tag(&mut self, tag: Option<u16>, way: &Way<'_, '_>) -> usize {
        match tag.zip(way.tag_type) {
            Some((tag, tag_type)) if self.end >= TAG_BYTES + ADDRESSES_BYTES => {
                self.buffer
                    .copy_within(TAG_BYTES..TAG_BYTES + ADDRESSES_BYTES, 0);
                let field = &mut self.buffer[ADDRESSES_BYTES..ADDRESSES_BYTES + TAG_BYTES];
                field[..2].copy_from_slice(&tag_type.to_be_bytes());
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
                let counter = match segmenter.is_as_long_as_said() {
                    true => spec::TSCTC,
                    false => spec::TSCTFC,
                };
                match segmenter.offload().filter(|_| way.offloads.segment) {
                    Some(offload) => {
                        let at = segmenter.build_whole(&mut self.buffer);
                        way.send(&self.buffer[at], offload)?;
                    }
                    None => loop {
                        let at = segmenter.build(&mut self.buffer);
                        let segment = &self.buffer[at];
                        // What follows in the buffer is the next one's payload: padding is put to a copy.
                        let mut padded = [0; FRAME_BYTES_MIN];
                        match padded.get_mut(..segment.len()).filter(|_| way.pads) {
                            Some(start) => {
                                start.copy_from_slice(segment);
                                way.send(&padded, Offload::None)?;
                            }
                            None => way.send(segment, Offload::None)?,
                        }
                        if segmenter.advance() {
                            break;
                        }
                    },
                }
                way.regs.count(counter, 1);
            }
        }
        self.ready = None;
        self.end = TAG_BYTES;
        Ok(())
    }
}
