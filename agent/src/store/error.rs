//! What can go wrong with the store.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::schema::VERSION;

/// What can go wrong with the store. Several callers may share one failure of the disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory can't be made.
    #[error("make state directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another agent has the file open.
    #[error(
        "{} is in use by another agent: stop it, or give this one another --state-dir",
        path.display()
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error(
        "there is no space left for {}: make some on that file system, and try again",
        path.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The disk can only be read.
    #[error(
        "{} is on a read-only file system: mount that writable again, or start the agent with another --state-dir",
        path.display()
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The file can't be made, opened, read or written.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<redb::Error>,
    },
    /// A newer agent wrote it.
    #[error(
        "{} has schema {found} and this agent knows up to {VERSION}: run the newer agent again, or \
         give this one another --state-dir",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema it has.
        found: u64,
    },
    /// What it says of the agent itself can't be read.
    #[error(
        "{} says of the agent itself what can't be read: restore it, or give this one another \
         --state-dir",
        path.display()
    )]
    Agent {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The thread that writes can't be started.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}

impl Error {
    /// Why, for programs.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Full { .. } => "STORAGE_FULL",
            Self::ReadOnly { .. } => "STORAGE_READ_ONLY",
            _ => "HOST_STORAGE",
        }
    }

    /// Why the disk did not do it, with the cure where there is one.
    pub(super) fn of_file(operation: &'static str, path: &Path, source: Arc<redb::Error>) -> Self {
        let kind = match &*source {
            redb::Error::Io(error) => Some(error.kind()),
            _ => None,
        };
        let path = path.to_owned();
        match kind {
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Self::Full { path, source },
            Some(ErrorKind::ReadOnlyFilesystem) => Self::ReadOnly { path, source },
            _ => Self::File {
                operation,
                path,
                source,
            },
        }
    }
}
