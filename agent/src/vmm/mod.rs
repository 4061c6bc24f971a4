//! VMMs on this host: asked to take a device and to give it up.
//!
//! One task per VMM owns the way to it. Calls to one VMM are made one after the other, because both kinds of VMM take
//! them so, and each has a deadline: a VMM that hangs costs its own callers their time and nobody else anything.
//!
//! What a driver promises, whichever VMM it is for:
//!
//! - [`Vm::plug`] returns when the VMM has the device; an error other than [`Error::Unanswered`] and [`Error::Gone`] means
//!   that it has not. A device that is there already, on the same socket, is as good.
//! - [`Vm::unplug`] returns when the VMM has let go and would not find the device any more. One that is not there is as good.
//! - [`Vm::find`] tells what is there now, for who does not know how an earlier call ended.

use std::path::PathBuf;

mod error;

pub(crate) use error::Error;

/// Where a VMM is controlled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) enum Endpoint {
    /// QEMU's QMP socket.
    Qmp { socket: PathBuf },
    /// cloud-hypervisor's API socket, and the file or FIFO of its events if there is one.
    CloudHypervisor {
        socket: PathBuf,
        events: Option<PathBuf>,
    },
}

/// What a VMM shall take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plug {
    /// The vfio-user socket.
    pub(crate) device_socket: PathBuf,
    /// Its name inside the VMM.
    pub(crate) id: String,
    /// Where the caller wants it.
    pub(crate) wanted: Wanted,
}

/// Where in a VMM a device shall be; what is empty is the driver's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Wanted {
    pub(crate) bus: String,
    pub(crate) slot: String,
    pub(crate) pci_segment: Option<u32>,
}

/// Where in a VMM a device is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Placed {
    pub(crate) bus: String,
    /// `0000:02:00.0`; empty where the VMM does not tell.
    pub(crate) address: String,
}
