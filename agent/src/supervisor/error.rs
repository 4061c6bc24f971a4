//! What can go wrong with devices.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::child::Exit;
use super::control::{Client, Refusal};
use crate::store::{Attachment, Stage};
use crate::vmm::{self, Endpoint};
use crate::{models, socket, store};

/// Why a request about a device can't be met.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("device {id} exists; delete it first, or choose another id")]
    Exists { id: String },
    #[error("there is no device {id}")]
    Missing { id: String },
    #[error(
        "device {id} has changed: its etag is {current}, not {given}; read it again and decide anew"
    )]
    Etag {
        id: String,
        given: String,
        current: String,
    },
    #[error("the change is not valid")]
    Invalid(Vec<crate::schema::Violation>),
    #[error("device {id} is being deleted")]
    Deleting { id: String },
    #[error("device {id} is being created; wait until it is READY")]
    Creating { id: String },
    #[error("device {id} was shut down with all devices of this host; Undrain starts them again")]
    ShutDown { id: String },
    #[error("{0}")]
    Drained(Drained),
    #[error(
        "{}; force ends them all the same, which for their guests are pulled cards",
        in_use(connected)
    )]
    InUse { connected: Vec<String> },
    #[error("write that the agent {change}")]
    DrainNotDurable {
        change: &'static str,
        #[source]
        source: store::Error,
    },
    #[error(
        "device {id} did not answer within {patience:?}; the change is recorded, and the device is told again: see its \
         condition Configured"
    )]
    Unconfirmed { id: String, patience: Duration },
    #[error(
        "request {request_id} made or changed device {id} already, with other content; use a new UUID"
    )]
    RequestReused { request_id: String, id: String },
    #[error(
        "there are {limit} devices, which is this agent's limit (limits.devices): delete one, or raise it"
    )]
    Full { limit: u32 },
    #[error(
        "a process that no record knows serves {}; stop it, or choose another id", path.display()
    )]
    Orphan { id: String, path: PathBuf },
    #[error(transparent)]
    Path(socket::Error),
    #[error("device {id} is in use by {}", user(client.as_ref()))]
    Connected { id: String, client: Option<Client> },
    #[error("device {id} has no process that serves it: {why}")]
    NotServing { id: String, why: String },
    #[error("device {id}: {message}")]
    Refused {
        id: String,
        /// Of the configuration, as a path with dots.
        field: Option<String>,
        message: String,
    },
    #[error("device {id}: {} takes no requests to let go of it: {message}", user(client.as_ref()))]
    TakesNoRequest {
        id: String,
        client: Option<Client>,
        message: String,
    },
    #[error(
        "device {id} is {} {}, as {}; unplug it there first", words(attachment.stage), place(&attachment.vmm),
        attachment.vmm_device_id
    )]
    AlreadyPlugged {
        id: String,
        attachment: Box<Attachment>,
    },
    #[error(
        "device {id} was given to {} by somebody else: take it away there, or use method CLIENT_REQUEST (vfuctl: --method \
         client-request)", user(client.as_ref())
    )]
    NotPlugged { id: String, client: Option<Client> },
    #[error("device {id}")]
    Vmm {
        id: String,
        #[source]
        source: Arc<vmm::Error>,
    },
    #[error("device {id} was unplugged before it was plugged")]
    PlugEnded { id: String },
    #[error(
        "device {id} can't have the name {vmm_device_id} in this VMM, which device {holder} has: choose another one \
         (vmm_device_id; vfuctl: --id)"
    )]
    NameTaken {
        id: String,
        vmm_device_id: String,
        holder: String,
    },
    #[error(
        "device {id}: its guest has not let go of it within {patience:?}; it works on, and may be let go of later"
    )]
    GuestLate { id: String, patience: Duration },
    #[error("{limit}: {why}")]
    Unenforceable { limit: &'static str, why: String },
    #[error("device {id} did not answer within {patience:?}")]
    NoAnswer { id: String, patience: Duration },
    #[error("ask device {id}")]
    Ask {
        id: String,
        #[source]
        source: std::io::Error,
    },
    #[error("device {id}: {failure}")]
    Start {
        id: String,
        failure: Arc<StartError>,
    },
    #[error("device {id}: {change}")]
    NotDurable {
        id: String,
        change: &'static str,
        #[source]
        source: store::Error,
    },
    #[error("device {id}: remove {}", path.display())]
    NotRemoved {
        id: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "device {id} has no process any more, but is not removed wholly, which is tried again: {why}"
    )]
    Left {
        id: String,
        why: String,
        reason: &'static str,
    },
    #[error(
        "the record of device {id} can't be read, see GetAgent: restore the state directory, or choose another id; \
         nothing of the device is touched"
    )]
    Unreadable { id: String },
    #[error("device {id} was deleted while it started")]
    DeletedMeanwhile { id: String },
    #[error("the agent is shutting down")]
    ShuttingDown,
}

impl Error {
    /// What the host's disk has to do with it, for programs.
    pub(super) fn storage_reason(&self) -> &'static str {
        match self {
            Self::NotDurable { source, .. } => source.reason(),
            _ => "HOST_STORAGE",
        }
    }
}

/// So many devices are named.
const NAMED: usize = 8;

fn in_use(connected: &[String]) -> String {
    let named = connected[..connected.len().min(NAMED)].join(", ");
    match connected.len().checked_sub(NAMED) {
        None | Some(0) => format!("clients are connected to {named}"),
        Some(more) => format!("clients are connected to {named} and {more} more"),
    }
}

fn place(vmm: &Endpoint) -> String {
    format!("the VMM at {}", vmm.path().display())
}

fn words(stage: Stage) -> &'static str {
    match stage {
        Stage::Plugging => "on its way into",
        Stage::Plugged => "in",
        Stage::Unplugging => "on its way out of",
    }
}

fn user(client: Option<&Client>) -> String {
    client.map_or_else(|| "a client".to_owned(), Client::to_string)
}

/// Why no devices are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Somebody said so.
    Asked { reason: String },
    /// Those that there are have been shut down.
    ShutDown,
}

impl Drained {
    /// Why, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Asked { .. } => "DRAINED",
            Self::ShutDown => "DEVICES_SHUT_DOWN",
        }
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked { reason } if reason.is_empty() => {
                write!(
                    f,
                    "the agent is drained; Undrain lets it make devices again"
                )
            }
            Self::Asked { reason } => write!(
                f,
                "the agent is drained ({reason}); Undrain lets it make devices again"
            ),
            Self::ShutDown => write!(
                f,
                "the devices of this host were shut down; Undrain starts them again and lets the agent make others"
            ),
        }
    }
}

/// Why a device's process does not serve it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Store(store::Error),
    #[error(transparent)]
    Program(models::Error),
    #[error("write {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Socket(socket::Error),
    #[error("start {}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("connect to the control socket")]
    Control(#[source] std::io::Error),
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("make the device's cgroup")]
    Cgroup(#[source] std::io::Error),
    #[error("the device's process {exit}{}{}", because(cause.as_ref()), logged(log))]
    Ended {
        exit: Exit,
        /// What of its limits or the host's may have ended it.
        cause: Option<String>,
        log: String,
    },
    #[error("the device's process was not ready within {timeout:?}{}", logged(log))]
    Late { timeout: Duration, log: String },
    /// As an earlier agent has seen it.
    #[error("{}", .0.message)]
    Earlier(store::Failure),
}

impl StartError {
    /// Why, for programs.
    pub(crate) fn reason(&self) -> &str {
        use super::control::RefusalKind;
        match self {
            Self::Store(source) => source.reason(),
            Self::Program(models::Error::Missing { .. }) => "DEVICE_PROGRAM_MISSING",
            Self::Program(_) | Self::Spawn { .. } => "DEVICE_PROGRAM_FAILED",
            Self::Directory { source, .. }
            | Self::Socket(socket::Error::Io { source, .. })
            | Self::Control(source) => match source.kind() {
                std::io::ErrorKind::PermissionDenied => "PERMISSION",
                std::io::ErrorKind::StorageFull => "STORAGE_FULL",
                _ => "RUN_DIRECTORY",
            },
            Self::Socket(_) => "RUN_DIRECTORY",
            Self::Refused(refusal) => match refusal.kind {
                RefusalKind::Invalid => "INVALID",
                RefusalKind::InUse => "IN_USE",
                RefusalKind::NotFound => "NOT_FOUND",
                RefusalKind::Permission => "PERMISSION",
                RefusalKind::Unavailable => "UNAVAILABLE",
                RefusalKind::Internal => "DEVICE_PROGRAM_FAILED",
            },
            Self::Cgroup(_) => "CGROUP",
            Self::Ended { .. } => "PROCESS_EXITED",
            Self::Late { .. } => "PROCESS_LATE",
            Self::Earlier(failure) => &failure.reason,
        }
    }
}

fn because(cause: Option<&String>) -> String {
    cause.map_or_else(String::new, |it| format!(" ({it})"))
}

fn logged(log: &str) -> String {
    match log {
        "" => "; it logged nothing".to_owned(),
        log => format!("; its log ends with:\n{log}"),
    }
}
