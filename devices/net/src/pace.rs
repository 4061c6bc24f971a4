//! Keeps what a peer or a guest can cause at will from filling the log.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one line a second through.
#[derive(Default)]
pub(crate) struct Pace {
    next: Option<Instant>,
    count: u64,
}

impl Pace {
    /// Counts an occurrence. If it is to be logged: how many there were since the last that was.
    pub(crate) fn occurred(&mut self) -> Option<u64> {
        self.count += 1;
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.count))
    }
}
