//! Ethernet backends: what lies behind an emulated NIC.
//!
//! A NIC model sends and receives whole frames (without FCS) through [`Backend`] and never blocks on it. A backend has one
//! file descriptor for its whole life, however often it reconnects inside, so that the event loop registers it once.

mod config;
mod error;
mod loopback;
mod null;
mod pace;
mod poller;
mod queue;
mod stream;
mod tap;
mod virtio;

#[cfg(test)]
mod conformance;

use std::{os::fd::BorrowedFd, time::Instant};

pub use config::{Config, Mode, Stream, Tap};
pub use error::{Error, Kind};

/// The longest frame that a backend takes: an IP packet of 65535 bytes behind an Ethernet header with one VLAN tag.
pub const MAX_FRAME_BYTES: usize = 65_535 + 14 + 4;

/// Opens the backend that the configuration names.
///
/// # Errors
/// What it names is not there, is in use, may not be used, or is no such thing. A `stream` to connect to need not be there.
pub fn open(config: &Config) -> Result<Box<dyn Backend>, Error> {
    Ok(match config {
        Config::Tap(config) => Box::new(tap::Tap::open(config)?),
        Config::Stream(config) => Box::new(stream::Stream::open(config)?),
        Config::Loopback {} => Box::new(loopback::Loopback::new()?),
        Config::Null {} => Box::new(null::Null::default()),
    })
}

/// A link to send frames to and receive frames from.
///
/// Nothing here blocks. A backend that has no peer at the moment (a stream that is reconnecting) takes frames and drops
/// them, as a cable without a partner does.
pub trait Backend: Send {
    /// The descriptor that becomes readable when [`Backend::run`] should be called, and after it what was waited for be
    /// done: `run` alone need not make it quiet. The same for the backend's life. `None`: never anything to wait for.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// When [`Backend::run`] should be called even if the descriptor stays quiet (a reconnect that is due).
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what has become possible: accept, connect, read ahead, write what is queued.
    fn run(&mut self, _now: Instant) {}

    /// Says what the model waits for, so that the descriptor does not report the rest. Nothing, at first.
    fn wait_for(&mut self, interest: Interest);

    /// What the backend can do that the model then need not.
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    /// Takes one frame, or refuses it because its queue is full. It may be sent later: [`Backend::flush`] ends a batch.
    /// A frame that the backend can't send at all, such as one above [`MAX_FRAME_BYTES`], is dropped. `offload` may ask
    /// only for what [`Backend::offloads`] names.
    ///
    /// # Errors
    /// [`Full`] when the frame has to be offered again after the descriptor became readable with
    /// [`Interest::send`] set.
    fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Full>;

    /// Ends a batch of [`Backend::send`]s: what is queued goes out now, as far as the peer takes it.
    fn flush(&mut self) {}

    /// Copies the next frame into `buffer`, whole as it would be on a wire, or returns `None` when there is none now. A
    /// frame longer than the buffer is dropped and counted by the backend.
    fn receive(&mut self, buffer: &mut [u8]) -> Option<Received>;
}

/// A frame that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How long it is.
    pub frame_bytes: usize,
    /// Whether somebody who was there before us vouches for its TCP or UDP checksum, so that the model need not add it up
    /// again. Says nothing of an IPv4 header's checksum, and nothing at all when it is false.
    pub checksum_is_right: bool,
}

impl Received {
    /// A frame of which nothing is known but its length.
    pub fn unverified(frame_bytes: usize) -> Self {
        Self {
            frame_bytes,
            checksum_is_right: false,
        }
    }
}

/// What a model waits for. As long as it can be had at once the descriptor stays readable: what is not wanted now, such as
/// frames for which the guest has given no buffers, has to be switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// A frame to receive.
    pub receive: bool,
    /// Room for a frame that was refused as [`Full`].
    pub send: bool,
}

/// The backend's queue has no room for this frame now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Work that a backend takes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Takes [`Offload::Checksum`].
    pub checksum: bool,
    /// Takes [`Offload::Segment`].
    pub segment: bool,
}

/// What is still to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: the frame is as it goes on the wire.
    #[default]
    None,
    /// Put the Internet checksum of the bytes from `start` on at `start + offset`, where the pseudo-header's sum stands.
    Checksum {
        /// First byte summed, from the start of the frame.
        start: u16,
        /// Where the sum goes, from `start`.
        offset: u16,
    },
    /// Cut a TCP packet into segments; implies the checksum. The lengths in the IP header and in the pseudo-header's sum,
    /// which stands in the checksum's place, are those of the whole packet.
    Segment {
        /// The IP version, 4 or 6.
        ip_version: u8,
        /// Bytes of the frame up to the TCP payload.
        header_bytes: u16,
        /// Payload bytes of each segment.
        segment_bytes: u16,
        /// First byte of the TCP header.
        start: u16,
        /// Where the checksum goes, from `start`.
        offset: u16,
    },
}
