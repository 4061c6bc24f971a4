//! `[audit]`: what is noted of who did what.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Problem;
use super::limits::between;

/// The audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Its file; `audit.log` in the state directory when it is not named.
    pub path: Option<PathBuf>,
    /// How large the file may become before it is put aside.
    pub max_bytes: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            path: None,
            max_bytes: 16 << 20,
        }
    }
}

impl Audit {
    pub(super) fn check(&self, bad: &mut Vec<Problem>) {
        between(bad, "audit.max_bytes", self.max_bytes, 64 << 10, 1 << 40);
    }
}
