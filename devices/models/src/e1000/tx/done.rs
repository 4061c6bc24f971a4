//! Write-back, sections 3.4.2 and 13.4.43: the guest is told which descriptors are done.
//!
//! Of a descriptor with RS the status is written, and nothing of any other: in a burst, too, where a controller writes whole
//! descriptors. The rest would be what was read, and a guest that uses a descriptor again would lose what it put there.
//!
//! Without a threshold (TXDCTL.WTHRESH) descriptors are reported before the run ends, in one write for all that were
//! fetched at once. With one, they wait until there are so many, or TIDV has passed since the first.

use std::time::{Duration, Instant};

use pci::{Bus, LoadError};

use crate::e1000::{
    interrupt::Events,
    queue::Ring,
    spec::descriptor::{DESCRIPTOR_BYTES, TRANSMIT_DONE, TRANSMIT_STATUS_OFFSET},
    state,
};

/// As many descriptors as a controller has room for, section 3.4.1.
pub(super) const CAPACITY: u32 = 64;
/// The unit of TIDV.
const TIDV_TICK: Duration = Duration::from_nanos(1024);

/// Descriptors that are done and not written back: from the first with RS on, since it takes one to begin.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Where in the ring the first is.
    first: u32,
    count: u32,
    /// Which of them have RS.
    reported: u64,
    /// Some have RS without IDE.
    at_once: bool,
    /// Some have RS with IDE.
    delayed: bool,
    /// They are written back then at the latest.
    due: Option<Instant>,
}

impl Done {
    /// The descriptor at the ring's head is done. Returns whether there is no room for another, here or in the ring: a
    /// guest need not wait to be told of a descriptor before it uses it again.
    pub(super) fn add(&mut self, ring: &Ring, reports: bool, delays: bool) -> bool {
        if self.count == 0 && !reports {
            return false;
        }
        if self.count == 0 {
            self.first = ring.head();
        }
        self.reported |= u64::from(reports) << self.count;
        self.at_once |= reports && !delays;
        self.delayed |= reports && delays;
        self.count += 1;
        self.count >= CAPACITY.min(ring.count)
    }

    /// How many wait.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// When they are due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// The run ends and they wait on: the first of them starts the timer. Returns whether they can't wait, because it is
    /// not set.
    pub(super) fn wait(&mut self, ticks: u32, bus: &Bus<'_>) -> bool {
        if self.count > 0 && self.due.is_none() && ticks > 0 {
            self.due = Some(bus.now() + TIDV_TICK * ticks);
        }
        self.count > 0 && ticks == 0
    }

    /// Writes them back.
    pub(super) fn write(&mut self, ring: &Ring, bus: &mut Bus<'_>, events: &mut Events) {
        let Self {
            first,
            count,
            reported,
            at_once,
            delayed,
            due: _,
        } = std::mem::take(self);
        // The guest may have made the ring shorter since.
        if count == 0 || first >= ring.count || count > ring.count {
            return;
        }
        let before_wrap = ring.count - first;
        let mut mark = |index: u32, reported: u64| {
            let status = ring.address_of(index).wrapping_add(TRANSMIT_STATUS_OFFSET);
            // A ring that can be read and not written is the guest's mistake; it waits for this status in vain.
            let _ = bus.write_each(status, DESCRIPTOR_BYTES as u16, reported, TRANSMIT_DONE);
        };
        if count <= before_wrap {
            mark(first, reported);
        } else {
            mark(first, reported & ((1 << before_wrap) - 1));
            mark(0, reported >> before_wrap);
        }
        events.sent_delayed |= delayed;
        if at_once {
            events.causes.set_transmit_written_back(true);
        }
    }

    pub(super) fn save(&self, now: Instant) -> state::Done {
        let Self {
            first,
            count,
            reported,
            at_once,
            delayed,
            due,
        } = self;
        state::Done {
            first: *first as u16,
            count: *count as u8,
            reported: *reported,
            at_once: *at_once,
            delayed: *delayed,
            due_ns: due.map(|due| due.saturating_duration_since(now).as_nanos() as u64),
        }
    }

    pub(super) fn restore(saved: &state::Done, now: Instant) -> Result<Self, LoadError> {
        let state::Done {
            first,
            count,
            reported,
            at_once,
            delayed,
            due_ns,
        } = saved;
        let count = u32::from(*count);
        if count >= CAPACITY {
            let problem = format!("{count} descriptors never wait");
            return Err(LoadError::new("count", problem));
        }
        if reported >> count != 0 {
            return Err(LoadError::new("reported", "has more than there are"));
        }
        let due = due_ns.map(Duration::from_nanos);
        if due.is_some() != (count > 0) || due > Some(TIDV_TICK * 0xffff) {
            return Err(LoadError::new("due_ns", "is no time that TIDV can say"));
        }
        Ok(Self {
            first: (*first).into(),
            count,
            reported: *reported,
            at_once: *at_once,
            delayed: *delayed,
            due: due.map(|left| now + left),
        })
    }
}
