//! `log` and `log_format`.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use super::Problem;

/// Form of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// For machines, one object per line.
    Json,
}

pub(super) fn check(filter: &str, bad: &mut Vec<Problem>) {
    if let Err(error) = EnvFilter::try_new(filter) {
        let why = format!("{filter:?}: {error}; expected such as \"info\" or \"agent=debug,info\"");
        bad.push(Problem::new("log", why));
    }
}
