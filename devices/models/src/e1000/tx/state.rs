//! The transmitter's part of a saved state.

use std::time::{Duration, Instant};

use pci::saved::{Bytes, LoadError};

use super::{
    Done, Packet, RETRY_MAX, Retry, TAG_BYTES, Transmitter,
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
    pub(in crate::e1000) fn save(&self, now: Instant) -> state::Transmitter {
        let Self {
            buffer,
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
            retry: retry.map(|Retry { at, after }| state::Retry {
                due_ns: at.saturating_duration_since(now).as_nanos() as u64,
                after_ns: after.as_nanos() as u64,
            }),
            done: done.save(now),
        }
    }

    pub(in crate::e1000) fn restore(
        saved: &state::Transmitter,
        now: Instant,
    ) -> Result<Self, LoadError> {
        let state::Transmitter {
            contexts,
            packet,
            full,
            more,
            retry,
            done,
        } = saved;
        let mut transmitter = Self {
            contexts: [&contexts[0], &contexts[1]].map(|context| Context {
                offsets: ContextOffsets::from_bits(context.offsets),
                segments: ContextSegments::from_bits(context.segments),
            }),
            full: *full,
            more: *more,
            retry: restore_retry(retry.as_ref(), now)?,
            done: Done::restore(done, now).map_err(|error| error.within("done"))?,
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

fn restore_retry(saved: Option<&state::Retry>, now: Instant) -> Result<Option<Retry>, LoadError> {
    let Some(state::Retry { due_ns, after_ns }) = saved else {
        return Ok(None);
    };
    let (due, after) = (
        Duration::from_nanos(*due_ns),
        Duration::from_nanos(*after_ns),
    );
    if due > after || after > RETRY_MAX {
        return Err(LoadError::new("retry", "is no time that is waited for"));
    }
    let at = now + due;
    Ok(Some(Retry { at, after }))
}

impl Packet {
    fn save(self) -> state::Options {
        match self {
            Self::Legacy { checksum_start } => state::Options::Legacy { checksum_start },
            Self::Data {
                insert_ip_checksum,
                insert_tcp_checksum,
            } => state::Options::Data {
                insert_ip_checksum,
                insert_tcp_checksum,
            },
            Self::Segments {
                insert_ip_checksum,
                insert_tcp_checksum,
                tag,
            } => state::Options::Segments {
                insert_ip_checksum,
                insert_tcp_checksum,
                tag,
            },
        }
    }

    fn restore(saved: &state::Options) -> Self {
        match *saved {
            state::Options::Legacy { checksum_start } => Self::Legacy { checksum_start },
            state::Options::Data {
                insert_ip_checksum,
                insert_tcp_checksum,
            } => Self::Data {
                insert_ip_checksum,
                insert_tcp_checksum,
            },
            state::Options::Segments {
                insert_ip_checksum,
                insert_tcp_checksum,
                tag,
            } => Self::Segments {
                insert_ip_checksum,
                insert_tcp_checksum,
                tag,
            },
        }
    }
}
