//! The commands, a file for each, or for those about one thing.

pub(crate) mod agent;
pub(crate) mod cmdline;
pub(crate) mod completion;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod get;
pub(crate) mod logs;
pub(crate) mod models;
pub(crate) mod plug;
pub(crate) mod probe;
mod progress;
mod read;
pub(crate) mod reset;
pub(crate) mod restart;
pub(crate) mod stats;
pub(crate) mod update;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod watch;

use crate::error::Error;

/// The resource name of the device that the user calls `id`; `-o name` prints resource names, so they are fine too.
fn device_name(id: &str) -> String {
    match id.starts_with("devices/") {
        true => id.to_owned(),
        false => format!("devices/{id}"),
    }
}

/// The outcome of doing several things, each whatever became of the others.
fn outcome(mut failures: Vec<Error>) -> Result<(), Error> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(Error::Several(failures)),
    }
}
