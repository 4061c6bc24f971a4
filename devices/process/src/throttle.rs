//! Keeps what a client can cause from filling the log.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

/// Lets one line through per second, and counts the rest.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    last: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// `Some(how many were suppressed since)` when a line may be written now.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.duration_since(last) < PERIOD)
        {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}
