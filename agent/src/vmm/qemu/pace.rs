//! How fast a QEMU is listened to: one that never stops talking must not have all of the agent's time.
//!
//! Who is not listened to waits: its socket fills up. QEMU itself holds back those events that a guest could cause without
//! end.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What is heard in a span of time, and then nothing until that is over.
const SPAN: Duration = Duration::from_millis(100);
const BYTES: usize = 256 << 10;
/// A line costs its bytes, and no less than this.
const LEAST: usize = 2 << 10;

/// What was heard in this span of time.
#[derive(Debug)]
pub(super) struct Pace {
    begun: Instant,
    bytes: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            bytes: 0,
        }
    }

    /// Waits until more may be heard. Nothing is lost when it is not waited for to the end.
    pub(super) async fn turn(&mut self) {
        if self.bytes >= BYTES {
            sleep_until(self.begun + SPAN).await;
        }
        if self.begun.elapsed() >= SPAN {
            *self = Self::new();
        }
    }

    pub(super) fn heard(&mut self, line: &str) {
        self.bytes += line.len().max(LEAST);
    }
}
