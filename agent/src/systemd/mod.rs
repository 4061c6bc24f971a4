//! What the agent and systemd tell each other: that it is ready, reloads, ends and lives, and the socket that systemd
//! listens on for it. Without systemd all of it does nothing.

mod activation;
mod notify;
mod watchdog;

use std::ffi::OsString;

pub use self::activation::{Error as ActivationError, api_listener};
pub(crate) use self::notify::{ready, reloading, stopping};
pub(crate) use self::watchdog::watch;

/// What systemd tells this process alone.
const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// The environment for other programs. A device that spoke for the agent would be believed.
pub(crate) fn environment_of_others() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !VARIABLES.iter().any(|it| name == it))
}
