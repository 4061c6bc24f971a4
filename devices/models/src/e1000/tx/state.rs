//! The transmitter's part of a saved state.

use pci::saved::{Bytes, LoadError};

use super::{
    Packet, TAG_BYTES, Transmitter,
    ready::{Checksum, Ready},
};
use crate::e1000::{
    segment::{Context, Segmenter},
    spec::{
        FRAME_BYTES_MAX,
        descriptor::{ContextOffsets, ContextSegments},
    },
    state,
};

impl Transmitter {
    pub(in crate::e1000) fn save(&self) -> state::Transmitter {
        let Self {
            buffer,
            end,
            packet,
            spoilt,
            contexts,
            ready,
            full,
            more,
            stalled,
        } = self;
        let packet = match (ready, packet) {
            (Some(Ready::Frame { at, checksum }), _) => Some(state::Packet::Frame(state::Frame {
                data: Bytes(buffer[at.clone()].to_vec()),
                checksum: checksum.map(|Checksum { start, at }| state::Checksum {
                    start: start as u16,
                    at: at as u16,
                }),
            })),
            (Some(Ready::Segments(segmenter)), _) => {
                Some(state::Packet::Segments(segmenter.save(buffer)))
            }
            (None, Some(packet)) => Some(state::Packet::Gathering(state::Gathering {
                options: packet.save(),
                spoilt: *spoilt,
                data: Bytes(buffer[TAG_BYTES..*end].to_vec()),
            })),
            (None, None) => None,
        };
        state::Transmitter {
            contexts: contexts.map(|Context { offsets, segments }| state::Context {
                offsets: offsets.into_bits(),
                segments: segments.into_bits(),
            }),
            packet,
            full: *full,
            more: *more,
            stalled: *stalled,
        }
    }

    pub(in crate::e1000) fn restore(saved: &state::Transmitter) -> Result<Self, LoadError> {
        let state::Transmitter {
            contexts,
            packet,
            full,
            more,
            stalled,
        } = saved;
        let mut transmitter = Self {
            contexts: [&contexts[0], &contexts[1]].map(|context| Context {
                offsets: ContextOffsets::from_bits(context.offsets),
                segments: ContextSegments::from_bits(context.segments),
            }),
            full: *full,
            more: *more,
            stalled: *stalled,
            ..Self::new()
        };
        if let Some(packet) = packet {
            let restored = transmitter.restore_packet(packet);
            restored.map_err(|error| error.within("packet"))?;
        }
        Ok(transmitter)
    }

    fn restore_packet(&mut self, saved: &state::Packet) -> Result<(), LoadError> {
        match saved {
            state::Packet::Gathering(gathering) => self
                .restore_gathering(gathering)
                .map_err(|error| error.within("gathering")),
            state::Packet::Frame(frame) => self
                .restore_frame(frame)
                .map_err(|error| error.within("frame")),
            state::Packet::Segments(segments) => {
                let segmenter = Segmenter::restore(segments, self.contexts[1], &mut self.buffer);
                self.ready = Some(Ready::Segments(
                    segmenter.map_err(|error| error.within("segments"))?,
                ));
                Ok(())
            }
        }
    }

    fn restore_gathering(&mut self, saved: &state::Gathering) -> Result<(), LoadError> {
        let state::Gathering {
            options,
            spoilt,
            data: Bytes(data),
        } = saved;
        let end = TAG_BYTES + data.len();
        let Some(room) = self.buffer.get_mut(TAG_BYTES..end) else {
            let problem = format!("{} bytes are more than a packet can have", data.len());
            return Err(LoadError::new("data", problem));
        };
        room.copy_from_slice(data);
        self.end = end;
        self.packet = Some(Packet::restore(options));
        self.spoilt = *spoilt;
        Ok(())
    }

    fn restore_frame(&mut self, saved: &state::Frame) -> Result<(), LoadError> {
        let state::Frame {
            data: Bytes(data),
            checksum,
        } = saved;
        if data.is_empty() || data.len() > FRAME_BYTES_MAX + TAG_BYTES {
            let problem = format!("a frame has not {} bytes", data.len());
            return Err(LoadError::new("data", problem));
        }
        let checksum = checksum.as_ref().map(|checksum| Checksum {
            start: checksum.start.into(),
            at: checksum.at.into(),
        });
        if checksum.is_some_and(|sum| sum.start > sum.at || sum.at + 2 > data.len()) {
            return Err(LoadError::new("checksum", "lies outside of the frame"));
        }
        self.buffer[..data.len()].copy_from_slice(data);
        self.ready = Some(Ready::Frame {
            at: 0..data.len(),
            checksum,
        });
        Ok(())
    }
}

impl Packet {
    fn save(self) -> state::Options {
        match self {
            Self::Legacy {
                checksum_start,
                checksum_offset,
            } => state::Options::Legacy {
                checksum_start,
                checksum_offset,
            },
            Self::Data {
                segment,
                insert_ip_checksum,
                insert_tcp_checksum,
            } => state::Options::Data {
                segment,
                insert_ip_checksum,
                insert_tcp_checksum,
            },
        }
    }

    fn restore(saved: &state::Options) -> Self {
        match *saved {
            state::Options::Legacy {
                checksum_start,
                checksum_offset,
            } => Self::Legacy {
                checksum_start,
                checksum_offset,
            },
            state::Options::Data {
                segment,
                insert_ip_checksum,
                insert_tcp_checksum,
            } => Self::Data {
                segment,
                insert_ip_checksum,
                insert_tcp_checksum,
            },
        }
    }
}
