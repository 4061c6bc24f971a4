//! The two timers of a direction, sections 3.2.7.1, 3.3.3.1 and 13.4.44: how long a guest waits to be told of something.
//!
//! ```text
//!                  it happens                    it happens: the packet timer starts again
//!   idle ------------------------------> running <---.
//!    ^      both timers start              |  |      |
//!    |                                     |  '------'
//!    '---- one of them runs out: told -----'
//!    '---- told for another reason --------'
//! ```
//!
//! The packet timer measures how long nothing more has happened, the absolute timer how long the guest has not been told.

use std::time::{Duration, Instant};

use pci::LoadError;

use crate::e1000::state;

/// In this unit registers count.
const UNIT: Duration = Duration::from_nanos(1024);
/// What their 16 bits hold.
const UNITS_MAX: u32 = 0xffff;

/// The packet timer and the absolute timer.
#[derive(Debug, Default)]
pub(super) struct Delay {
    /// When it runs out.
    packet: Option<Instant>,
    /// Runs only while the other one does.
    absolute: Option<Instant>,
}

impl Delay {
    /// Something happened of which the guest is told when a timer runs out. Returns whether one had run out before.
    pub(super) fn start(&mut self, now: Instant, packet: u32, absolute: u32) -> bool {
        let overdue = self.expire(now);
        self.packet = Some(now + UNIT * packet);
        if absolute > 0 {
            self.absolute.get_or_insert(now + UNIT * absolute);
        }
        overdue
    }

    /// When a timer runs out.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.packet, self.absolute].into_iter().flatten().min()
    }

    /// Returns whether a timer has run out, and stops both if one has.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let expired = self.due().is_some_and(|due| due <= now);
        if expired {
            self.halt();
        }
        expired
    }

    /// The guest is told of everything.
    pub(super) fn halt(&mut self) {
        *self = Self::default();
    }

    /// Only the packet timer goes on.
    pub(super) fn halt_absolute(&mut self) {
        self.absolute = None;
    }

    pub(super) fn save(&self, now: Instant) -> state::Delay {
        let left = |due: Option<Instant>| {
            due.map(|due| due.saturating_duration_since(now).as_nanos() as u64)
        };
        state::Delay {
            packet_ns: left(self.packet),
            absolute_ns: left(self.absolute),
        }
    }

    pub(super) fn restore(saved: &state::Delay, now: Instant) -> Result<Self, LoadError> {
        let state::Delay {
            packet_ns,
            absolute_ns,
        } = saved;
        let timer = |field: &str, left: Option<u64>| {
            let left = left.map(Duration::from_nanos);
            match left.filter(|left| *left > UNIT * UNITS_MAX) {
                Some(left) => Err(LoadError::new(field, format!("{left:?} is too long"))),
                None => Ok(left.map(|left| now + left)),
            }
        };
        let delay = Self {
            packet: timer("packet_ns", *packet_ns)?,
            absolute: timer("absolute_ns", *absolute_ns)?,
        };
        if delay.packet.is_none() && delay.absolute.is_some() {
            let problem = "this timer does not run alone";
            return Err(LoadError::new("absolute_ns", problem));
        }
        Ok(delay)
    }
}
