//! What can go wrong between the agent and a VMM.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a VMM did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing was asked for: there is no way to the VMM.
    #[error("connect to {}; check that the VMM runs, that this is its control socket, and that the agent may write to it", path.display())]
    Unreachable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing was asked for: what answers there speaks another language, or another program has the VMM's only place.
    #[error("{} does not answer as {expected} does: {why}", path.display())]
    Stranger {
        path: PathBuf,
        expected: &'static str,
        why: String,
    },
    /// Nothing was done: the VMM has not what it takes.
    #[error("the VMM is {version}, and it takes {needed}")]
    TooOld { version: String, needed: String },
    /// Nothing was done: there is no place for the device.
    #[error("{why}; {cure}")]
    NoPlace { why: String, cure: String },
    /// Nothing was done: the VMM refused, in its own words.
    #[error("the VMM refused {operation}: {message}")]
    Refused {
        operation: &'static str,
        message: String,
    },
    /// The guest does not let go of the device, which works on.
    #[error("the guest refused to let go of the device: {message}")]
    GuestRefused { message: String },
    /// The guest has not let go of the device yet; it may do so later.
    #[error("the guest has not let go of the device within {waited:?}")]
    Late { waited: Duration },
    /// It is not known whether the VMM did it.
    #[error("the VMM has not answered {operation} within {waited:?}")]
    Unanswered {
        operation: &'static str,
        waited: Duration,
    },
    /// The VMM is gone, and with it all its devices.
    #[error("the VMM at {} is gone", path.display())]
    Gone { path: PathBuf },
}
