//! Commands that show what goes on.

use clap::Args;

use super::values;

/// Show all devices, then each change of one, until Ctrl-C
///
/// Every line is a change: ADDED, MODIFIED, DELETED. The output is the same whether the agent was restarted meanwhile or
/// not: what has changed since is shown when it is back, which is waited for as long as --timeout says. With -o json every
/// line is an object with `type`, `resourceVersion` and `device`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl watch
  vfuctl watch --filter 'labels.tenant = \"blue\"' -o json")]
pub(crate) struct Watch {
    /// Which devices, as for `vfuctl list`; one that does not match any more is DELETED
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) filter: String,
    /// Show the changes after this version only, a `resourceVersion` of an earlier run
    #[arg(long, value_name = "VERSION")]
    pub(crate) resource_version: Option<String>,
}

/// Show what a device's process has logged
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl logs nic0 --tail 20
  vfuctl logs nic0 -f --since 10m")]
pub(crate) struct Logs {
    /// Id of the device
    pub(crate) id: String,
    /// Go on with what is logged from now on, until Ctrl-C or the end of the device
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this many of the last lines
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) tail: Option<i32>,
    /// Only what is younger than this, as 10m, or was logged since, as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = values::since)]
    pub(crate) since: Option<prost_types::Timestamp>,
}

/// Show what happened to devices, latest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl events
  vfuctl events nic0 --limit 10
  vfuctl events --filter 'severity = \"WARNING\"'")]
pub(crate) struct Events {
    /// Id of a device, which may be gone
    pub(crate) id: Option<String>,
    /// Which events, as `severity = "WARNING" AND reason = "PROCESS_EXITED"`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) filter: String,
    /// Only this many of the latest
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<usize>,
}

/// Show the counters of devices, and how fast they grow
///
/// The counters are read twice for their rates, an interval apart. With -o json or yaml they are read once, or, with
/// --watch, every line is what one device has counted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl stats nic0
  vfuctl stats nic0 --watch --interval 5s")]
pub(crate) struct Stats {
    /// Id of a device
    pub(crate) id: Option<String>,
    /// Time from one reading to the next, 100ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = values::span)]
    pub(crate) interval: prost_types::Duration,
    /// Go on until Ctrl-C
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Show counters that are 0, too
    #[arg(short, long)]
    pub(crate) all: bool,
}
