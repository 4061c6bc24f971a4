//! Interrupt throttling, section 13.4.18: from one assertion of the interrupt to the next, ITR's interval passes.
//!
//! The interval is measured back from the present with the ITR of the present: a driver that changes it is heard at once.

use std::time::{Duration, Instant};

use pci::LoadError;

use crate::e1000::state;

/// In this unit ITR counts.
const UNIT: Duration = Duration::from_nanos(256);
/// What its 16 bits hold.
const INTERVAL_MAX: Duration = Duration::from_nanos(256 * 0xffff);

/// When the interrupt may be asserted.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// When it last was, unless nothing was throttled then.
    asserted_at: Option<Instant>,
    /// When one that waits will be.
    due: Option<Instant>,
}

impl Throttle {
    /// The interrupt is to be asserted: returns whether it is, or waits. `now` is asked for when there is an interval.
    pub(super) fn admits(&mut self, itr: u32, now: impl FnOnce() -> Instant) -> bool {
        if itr == 0 {
            *self = Self::default();
            return true;
        }
        let now = now();
        let next = self.asserted_at.map(|at| at + UNIT * itr);
        self.due = next.filter(|next| *next > now);
        if self.due.is_none() {
            self.asserted_at = Some(now);
        }
        self.due.is_none()
    }

    /// The interrupt that waited is not wanted any more, or is asserted.
    pub(super) fn stop_waiting(&mut self) {
        self.due = None;
    }

    /// When the interrupt that waits is to be asserted.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn save(&self, now: Instant) -> state::Throttle {
        let passed = |at| now.saturating_duration_since(at).min(INTERVAL_MAX);
        let waiting = self.due.is_some();
        state::Throttle {
            passed_ns: self
                .asserted_at
                .map(passed)
                // Longer ago is as good as never.
                .filter(|passed| *passed < INTERVAL_MAX || waiting)
                .map(|passed| passed.as_nanos() as u64),
            waiting,
        }
    }

    pub(super) fn restore(
        saved: &state::Throttle,
        itr: u32,
        now: Instant,
    ) -> Result<Self, LoadError> {
        let state::Throttle { passed_ns, waiting } = saved;
        let passed = passed_ns.map(Duration::from_nanos);
        if let Some(passed) = passed.filter(|passed| *passed > INTERVAL_MAX) {
            let problem = format!("{passed:?} is longer than any interval");
            return Err(LoadError::new("passed_ns", problem));
        }
        if *waiting && passed.is_none() {
            return Err(LoadError::new("waiting", "there is nothing to wait for"));
        }
        // A host that has just started has no such time: the interval begins again.
        let asserted_at = passed.map(|passed| now.checked_sub(passed).unwrap_or(now));
        Ok(Self {
            asserted_at,
            due: asserted_at.filter(|_| *waiting).map(|at| at + UNIT * itr),
        })
    }
}
