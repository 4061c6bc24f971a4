//! `[timeouts]`: how long things may take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Problem;
use super::text::duration;

const LEAST: Duration = Duration::from_millis(10);
const MOST: Duration = Duration::from_secs(3600);

/// How long things may take, as in `10s` or `500ms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the start of a device's process to its first status.
    #[serde(with = "duration")]
    pub start: Duration,
    /// From SIGTERM to SIGKILL of a device's process.
    #[serde(with = "duration")]
    pub stop: Duration,
    /// For calls under way once the agent has been told to end.
    #[serde(with = "duration")]
    pub shutdown: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(10),
            stop: Duration::from_secs(5),
            shutdown: Duration::from_secs(5),
        }
    }
}

impl Timeouts {
    pub(super) fn check(&self, bad: &mut Vec<Problem>) {
        for (key, value) in [
            ("timeouts.start", self.start),
            ("timeouts.stop", self.stop),
            ("timeouts.shutdown", self.shutdown),
        ] {
            if !(LEAST..=MOST).contains(&value) {
                let why = format!("{value:?} is not from 10ms to 1h");
                bad.push(Problem::new(key, why));
            }
        }
    }
}
