//! `[limits]`: how much of everything there may be. Who is over a limit is told its name here.

use serde::{Deserialize, Serialize};

use super::Problem;
use crate::limits::{MAX_LOG_BYTES, MIN_LOG_BYTES};

/// The most that `request_bytes` can be.
pub(crate) const MAX_REQUEST_BYTES: usize = 64 << 20;

/// What the agent allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Devices.
    pub devices: u32,
    /// Calls under way, streams aside.
    pub concurrent_calls: u32,
    /// Bytes of a request.
    pub request_bytes: u32,
    /// Changes of devices that are kept for who watches: a reader may be that many behind.
    pub watch_changes: u32,
    /// Streams: who watches, follows a log or reads counters.
    pub watches: u32,
    /// Bytes of a device's log, unless the device says otherwise.
    pub log_bytes: u64,
    /// Processes of devices that are starting at once; four per processor when it is not said.
    pub starting: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            devices: 4096,
            concurrent_calls: 256,
            request_bytes: 4 << 20,
            watch_changes: 8192,
            watches: 256,
            log_bytes: 1 << 20,
            starting: None,
        }
    }
}

impl Limits {
    pub(super) fn check(&self, bad: &mut Vec<Problem>) {
        let Self {
            devices,
            concurrent_calls,
            request_bytes,
            watch_changes,
            watches,
            log_bytes,
            starting,
        } = self;
        let mut check = |key, value: u32, least, most| {
            between(bad, key, value.into(), least, most);
        };
        check("limits.devices", *devices, 1, 1 << 16);
        check("limits.concurrent_calls", *concurrent_calls, 1, 1 << 16);
        let most = MAX_REQUEST_BYTES as u64;
        check("limits.request_bytes", *request_bytes, 64 << 10, most);
        check("limits.watch_changes", *watch_changes, 16, 1 << 20);
        check("limits.watches", *watches, 1, 1 << 16);
        check("limits.starting", starting.unwrap_or(1), 1, 1 << 12);
        let (least, most) = (MIN_LOG_BYTES, MAX_LOG_BYTES);
        between(bad, "limits.log_bytes", *log_bytes, least, most);
    }
}

/// Notes a number that is too small to work with or too large to mean anything.
pub(super) fn between(bad: &mut Vec<Problem>, key: &str, value: u64, least: u64, most: u64) {
    if !(least..=most).contains(&value) {
        let why = format!("{value} is not from {least} to {most}");
        bad.push(Problem::new(key, why));
    }
}
