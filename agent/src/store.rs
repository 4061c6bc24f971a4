//! What survives the agent: one record per device, durable before anything else happens.
//!
//! redb, because it is one file without a C library or a server, commits with fsync and all or
//! nothing, and locks the file, so that two agents never share a state directory. A record is JSON:
//! a person can read it, and fields can be added without a migration.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::database::{self, builder};
use crate::limits::Limits;
use crate::patience;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const DEVICES: Table = TableDefinition::new("devices");
/// What is the agent's own, as JSON.
const AGENT: Table = TableDefinition::new("agent");
const DRAIN: &str = "drain";
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const SCHEMA: &str = "schema";
const SCHEMA_VERSION: u64 = 1;

/// A device as its caller wants it, and what identifies it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) uid: String,
    pub(crate) etag: String,
    pub(crate) generation: i64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) create_time: SystemTime,
    pub(crate) update_time: SystemTime,
    /// Set when deletion has begun: the next start goes on with it.
    pub(crate) delete_time: Option<SystemTime>,
    pub(crate) spec: Spec,
    /// The call that created it, when that had a request id.
    pub(crate) created_by: Option<Call>,
    /// The last calls that updated it, of those that had one.
    pub(crate) updated_by: Vec<Call>,
    pub(crate) traceparent: Option<String>,
    #[serde(default)]
    pub(crate) history: History,
}

/// What happened to a device that the next agent has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// How often its process was started again.
    pub(crate) restart_count: i64,
    /// Why it was given up, if it was.
    pub(crate) failure: Option<Failure>,
}

/// Why a device was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) time: SystemTime,
    /// A host that has booted since is another one.
    pub(crate) boot_id: String,
}

/// Whether the agent makes devices, and whether they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drain {
    pub(crate) drained: Option<Drained>,
    pub(crate) shut_down: Option<ShutDown>,
}

/// No devices are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drained {
    pub(crate) time: SystemTime,
    pub(crate) reason: String,
}

/// The devices were shut down, until the host boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShutDown {
    pub(crate) time: SystemTime,
    pub(crate) boot_id: String,
}

/// A call that can be repeated: with the same request id it is the first call again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) request_id: String,
    /// SHA-256 of what was asked for, in hexadecimal.
    content: String,
}

impl Call {
    /// A call that asks for `content`; none without a request id.
    pub(crate) fn new(request_id: &str, content: &impl Serialize) -> Option<Self> {
        let content = serde_json::to_vec(content).expect("contents have string keys only");
        let request_id = request_id.to_owned();
        (!request_id.is_empty()).then(|| Self {
            request_id,
            content: Sha256::digest(content)
                .iter()
                .map(|it| format!("{it:02x}"))
                .collect(),
        })
    }
}

/// What a device shall be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) model: String,
    pub(crate) config: serde_json::Value,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) socket: Option<SocketSpec>,
    #[serde(default)]
    pub(crate) limits: Limits,
}

/// What the agent does when a device's process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// Owner and mode of the vfio-user socket; what is absent is the agent's, or 0600.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketSpec {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mode: Option<u32>,
}

/// What can go wrong with the store.
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
        source: Box<redb::Error>,
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
        source: Box<redb::Error>,
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
        source: Box<redb::Error>,
    },
    /// A newer agent wrote it.
    #[error(
        "{} has schema {found} and this agent knows up to {SCHEMA_VERSION}: run the newer agent \
         again, or give this one another --state-dir",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema it has.
        found: u64,
    },
    /// A record can't be read.
    #[error("read the record of device {id}")]
    Record {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Whether the agent is drained can't be read.
    #[error("read whether the agent is drained")]
    Drain(#[source] serde_json::Error),
    /// Reading or writing failed, of a file that is known to who asked.
    #[error("access the store")]
    Access(#[source] Box<redb::Error>),
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
    fn of_file(operation: &'static str, path: &Path, source: redb::Error) -> Self {
        let kind = match &source {
            redb::Error::Io(error) => Some(error.kind()),
            _ => None,
        };
        let (path, source) = (path.to_owned(), Box::new(source));
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

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Access(Box::new(error.into()))
    }
}

/// Makes an empty file where there is none. Under another name first: a file that was not finished when the agent was
/// killed could not be opened any more.
fn initialize(directory: &Path, path: &Path) -> Result<(), redb::Error> {
    let directory = File::open(directory)?;
    // One agent at a time; the lock ends with this function, and when it is taken the other has finished.
    let directory = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| std::io::Error::from(errno))?;
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("redb.new");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    drop(builder().create(&unfinished)?);
    crate::steps::reached("store.made");
    std::fs::rename(&unfinished, path)?;
    directory.sync_all()?;
    Ok(())
}

/// The records. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    file: Arc<database::File>,
}

/// Does something with the file; what the disk refuses is said of that file.
fn with<T>(
    file: &database::File,
    operation: &'static str,
    action: impl FnOnce(&Database) -> Result<T, Error>,
) -> Result<T, Error> {
    file.with(action).map_err(|error| match error {
        Error::Access(source) => Error::of_file(operation, file.path(), *source),
        error => error,
    })
}

impl Store {
    /// Opens the store in `directory`, or makes both.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        // For the agent's eyes only: configurations may name what others need not know.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| Error::Directory {
                path: directory.to_owned(),
                source,
            })?;
        let path = directory.join("agent.redb");
        initialize(directory, &path).map_err(|source| Error::of_file("make", &path, source))?;
        let open = || database::File::open(&path);
        let is_held = |error: &_| matches!(error, DatabaseError::DatabaseAlreadyOpen);
        let opened = patience::unless_held(open, is_held);
        let file = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Error::Locked { path: path.clone() },
            error => Error::of_file("open", &path, error.into()),
        })?;
        let store = Self {
            file: Arc::new(file),
        };
        store.migrate()?;
        crate::steps::reached("store.opened");
        Ok(store)
    }

    /// Makes what this version has and the one that wrote the file had not.
    fn migrate(&self) -> Result<(), Error> {
        with(&self.file, "write", |database| {
            let transaction = database.begin_write()?;
            {
                transaction.open_table(DEVICES)?;
                transaction.open_table(AGENT)?;
                let mut meta = transaction.open_table(META)?;
                let found = meta.get(SCHEMA)?.map(|it| it.value());
                match found {
                    Some(found) if found > SCHEMA_VERSION => {
                        let path = self.file.path().to_owned();
                        return Err(Error::Newer { path, found });
                    }
                    Some(_) => {}
                    None => {
                        meta.insert(SCHEMA, SCHEMA_VERSION)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// All records.
    pub(crate) fn all(&self) -> Result<Vec<Record>, Error> {
        with(&self.file, "read", |database| {
            let transaction = database.begin_read()?;
            let table = transaction.open_table(DEVICES)?;
            let records = table.iter()?.map(|row| {
                let (id, bytes) = row?;
                serde_json::from_slice(bytes.value()).map_err(|source| Error::Record {
                    id: id.value().to_owned(),
                    source,
                })
            });
            records.collect()
        })
    }

    /// Writes a record; it is durable when this returns.
    pub(crate) async fn put(&self, record: &Record) -> Result<(), Error> {
        let id = record.id.clone();
        let bytes = serde_json::to_vec(record).expect("a record has string keys only");
        self.write(DEVICES, move |table| table.insert(&*id, &*bytes).map(drop))
            .await
    }

    /// Removes a record, if there is one.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.write(DEVICES, move |table| table.remove(&*id).map(drop))
            .await
    }

    /// Whether the agent is drained.
    pub(crate) fn drain(&self) -> Result<Drain, Error> {
        with(&self.file, "read", |database| {
            let transaction = database.begin_read()?;
            let table = transaction.open_table(AGENT)?;
            match table.get(DRAIN)? {
                Some(bytes) => serde_json::from_slice(bytes.value()).map_err(Error::Drain),
                None => Ok(Drain::default()),
            }
        })
    }

    /// Writes whether the agent is drained; it is durable when this returns.
    pub(crate) async fn put_drain(&self, drain: &Drain) -> Result<(), Error> {
        let bytes = serde_json::to_vec(drain).expect("it has string keys only");
        self.write(AGENT, move |table| table.insert(DRAIN, &*bytes).map(drop))
            .await
    }

    async fn write<F>(&self, table: Table, change: F) -> Result<(), Error>
    where
        F: FnOnce(&mut redb::Table<'_, &str, &[u8]>) -> Result<(), StorageError> + Send + 'static,
    {
        let file = self.file.clone();
        let write = move || {
            with(&file, "write", |database| {
                let transaction = database.begin_write()?;
                change(&mut transaction.open_table(table)?)?;
                transaction.commit()?;
                Ok(())
            })
        };
        tokio::task::spawn_blocking(write)
            .await
            .expect("the closure does not panic, and the runtime outlives its tasks")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            uid: "00000000-0000-4000-8000-000000000000".to_owned(),
            etag: "1".to_owned(),
            generation: 1,
            labels: BTreeMap::from([("app".to_owned(), "x".to_owned())]),
            annotations: BTreeMap::new(),
            create_time: SystemTime::UNIX_EPOCH,
            update_time: SystemTime::UNIX_EPOCH,
            delete_time: None,
            spec: Spec {
                model: "e1000".to_owned(),
                config: serde_json::json!({"net": {"null": {}}}),
                restart_policy: RestartPolicy::Always,
                socket: None,
                limits: Limits::default(),
            },
            created_by: None,
            updated_by: Vec::new(),
            traceparent: None,
            history: History::default(),
        }
    }

    #[test]
    fn a_file_that_was_not_finished_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("agent.redb.new"), [0; 100]).unwrap();
        Store::open(directory.path()).unwrap();
        let names: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["agent.redb"]);
    }

    #[tokio::test]
    async fn a_drain_survives_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.drain().unwrap(), Drain::default());
        let drain = Drain {
            drained: Some(Drained {
                time: SystemTime::UNIX_EPOCH,
                reason: "new disks".to_owned(),
            }),
            shut_down: None,
        };
        store.put_drain(&drain).await.unwrap();
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.drain().unwrap(), drain);
    }

    #[tokio::test]
    async fn records_survive_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(&record("a")).await.unwrap();
        store.put(&record("b")).await.unwrap();
        store.remove("a").await.unwrap();
        store.remove("never-there").await.unwrap();
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.all().unwrap(), [record("b")]);
    }

    #[test]
    fn a_second_agent_is_told_about_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Store::open(directory.path()).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    }

    #[test]
    fn a_store_from_a_newer_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let transaction = store
            .file
            .with(|it| Ok::<_, Error>(it.begin_write()?))
            .unwrap();
        transaction
            .open_table(META)
            .unwrap()
            .insert(SCHEMA, SCHEMA_VERSION + 1)
            .unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 2, .. }), "{error:?}");
    }
}
