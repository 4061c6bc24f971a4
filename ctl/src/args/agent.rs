//! Commands about the agent itself.

use clap::Args;

/// Show the agent: what it can serve and allows, how many devices it has, and what is wrong with this host
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl agent
  vfuctl agent -o json")]
pub(crate) struct ShowAgent {}

/// Make no new devices from now on, until `vfuctl undrain`; those that exist are not touched
///
/// Holds over restarts of the agent and of the host.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vfuctl drain --reason 'new kernel at 22:00'")]
pub(crate) struct Drain {
    /// Why, for people who find the agent drained
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) reason: String,
}

/// Make new devices again, and start what `vfuctl shutdown-devices` has stopped
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vfuctl undrain")]
pub(crate) struct Undrain {}

/// End the processes of all devices, for a host that goes down; drains the agent first
///
/// The devices stay recorded. They start again when the host has booted, or with `vfuctl undrain`. Waits for the processes
/// as long as --timeout says; where some are left then the exit code is 8, and the same command goes on with them.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vfuctl shutdown-devices --timeout 60")]
pub(crate) struct ShutDownDevices {
    /// Go on although VMMs are connected: their guests lose the cards
    #[arg(long)]
    pub(crate) force: bool,
}
