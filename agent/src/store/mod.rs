//! What survives the agent: one record per device, durable before anything else happens.
//!
//! redb, because it is one file without a C library or a server, commits with fsync and all or
//! nothing, and locks the file, so that two agents never share a state directory.

mod error;
mod record;
mod schema;
mod writer;

use std::collections::VecDeque;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use nix::fcntl::{Flock, FlockArg};
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable};

pub use self::error::Error;
pub(crate) use self::record::{
    Attachment, BackendLossPolicy, Call, Drain, Drained, Failure, History, Previous, Record,
    RestartPolicy, ShutDown, SocketSpec, Spec, Stage,
};
use self::schema::{AGENT, DELETIONS, DEVICES, DRAIN};
use self::writer::{Change, Writer};
use crate::{patience, steps};

/// The store holds some hundred bytes per device; redb would take up to 1 GiB.
const CACHE_BYTES: usize = 4 << 20;
/// So many calls that deleted devices are remembered.
const MAX_DELETIONS: usize = 1024;

/// What the store has when an agent begins.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) records: Vec<Record>,
    /// Records that can't be read, by their ids. They stay where they are.
    pub(crate) unreadable: Vec<(String, serde_json::Error)>,
    pub(crate) drain: Drain,
}

/// What writes and remembers. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    writer: Writer,
    deletions: Arc<Mutex<Deletions>>,
}

/// The last calls that deleted devices, oldest first, and the number under which the last is stored.
#[derive(Debug, Default)]
struct Deletions {
    calls: VecDeque<Call>,
    last: u64,
}

impl Store {
    /// Opens the store in `directory`, or makes both.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Contents), Error> {
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
        let failed_to = |operation| {
            let path = &path;
            move |source: redb::Error| Error::of_file(operation, path, source.into())
        };
        initialize(directory, &path).map_err(failed_to("make"))?;
        let failed = failed_to("open");
        let open = || builder().open(&path);
        let is_held = |error: &_| matches!(error, redb::DatabaseError::DatabaseAlreadyOpen);
        let opened = patience::unless_held(open, is_held);
        let database = opened.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::Locked { path: path.clone() },
            error => failed(error.into()),
        })?;
        bring_up_to_date(&database)
            .map_err(failed_to("write"))?
            .map_err(|found| Error::Newer {
                path: path.clone(),
                found,
            })?;
        steps::reached("store.opened");

        let transaction = database.begin_read().map_err(|it| failed(it.into()))?;
        let (records, unreadable) = records(&transaction).map_err(failed)?;
        let corrupt = |source| Error::Agent {
            path: path.clone(),
            source,
        };
        let drain = drain(&transaction).map_err(failed)?.map_err(corrupt)?;
        let deletions = deletions(&transaction).map_err(failed)?;
        drop(transaction);
        let store = Self {
            writer: Writer::start(database, path.clone())?,
            deletions: Arc::new(Mutex::new(deletions)),
        };
        let contents = Contents {
            records,
            unreadable,
            drain,
        };
        Ok((store, contents))
    }

    /// Writes a record; it is durable when this returns.
    pub(crate) async fn put(&self, record: &Record) -> Result<(), Error> {
        let bytes = serde_json::to_vec(record).expect("a record has string keys only");
        let put = Change::Put(DEVICES, record.id.clone(), bytes);
        self.writer.write(vec![put]).await
    }

    /// Removes a record, if there is one, and remembers the call that wanted it so.
    pub(crate) async fn remove(&self, record: &Record) -> Result<(), Error> {
        let mut changes = vec![Change::Remove(DEVICES, record.id.clone())];
        let Some(call) = &record.deleted_by else {
            return self.writer.write(changes).await;
        };
        let number = {
            let mut deletions = self.deletions();
            deletions.last += 1;
            deletions.last
        };
        let bytes = serde_json::to_vec(call).expect("a call has string keys only");
        changes.push(Change::Put(DELETIONS, key(number), bytes));
        let forgotten = number.checked_sub(MAX_DELETIONS as u64);
        changes.extend(forgotten.map(|it| Change::Remove(DELETIONS, key(it))));
        self.writer.write(changes).await?;
        let mut deletions = self.deletions();
        deletions.calls.push_back(call.clone());
        if deletions.calls.len() > MAX_DELETIONS {
            deletions.calls.pop_front();
        }
        Ok(())
    }

    /// Whether this call has deleted its device already. The same request id with other content is an error.
    pub(crate) fn has_deleted(&self, call: &Call) -> Result<bool, ()> {
        let deletions = self.deletions();
        call.is_among(&deletions.calls).map_err(drop)
    }

    /// Writes whether the agent is drained; it is durable when this returns.
    pub(crate) async fn put_drain(&self, drain: &Drain) -> Result<(), Error> {
        let bytes = serde_json::to_vec(drain).expect("it has string keys only");
        let put = Change::Put(AGENT, DRAIN.to_owned(), bytes);
        self.writer.write(vec![put]).await
    }

    /// Comes to an end when what was to be written before has been, or could not be.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        self.writer.write(Vec::new()).await
    }

    fn deletions(&self) -> std::sync::MutexGuard<'_, Deletions> {
        self.deletions.lock().expect("no holder panics")
    }
}

fn key(number: u64) -> String {
    format!("{number:020}")
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
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
    steps::reached("store.made");
    std::fs::rename(&unfinished, path)?;
    directory.sync_all()?;
    Ok(())
}

fn bring_up_to_date(database: &Database) -> Result<Result<(), u64>, redb::Error> {
    let transaction = database.begin_write()?;
    let done = schema::bring_up_to_date(&transaction)?;
    if done.is_ok() {
        transaction.commit()?;
    }
    Ok(done)
}

type Records = (Vec<Record>, Vec<(String, serde_json::Error)>);

fn records(transaction: &ReadTransaction) -> Result<Records, redb::Error> {
    let mut records = Records::default();
    for row in transaction.open_table(DEVICES)?.iter()? {
        let (id, bytes) = row?;
        match serde_json::from_slice(bytes.value()) {
            Ok(record) => records.0.push(record),
            Err(error) => records.1.push((id.value().to_owned(), error)),
        }
    }
    Ok(records)
}

fn drain(transaction: &ReadTransaction) -> Result<Result<Drain, serde_json::Error>, redb::Error> {
    let table = transaction.open_table(AGENT)?;
    let found = table.get(DRAIN)?;
    Ok(found.map_or_else(
        || Ok(Drain::default()),
        |bytes| serde_json::from_slice(bytes.value()),
    ))
}

/// What can't be read is forgotten: at worst a call that is repeated finds that there is no device.
fn deletions(transaction: &ReadTransaction) -> Result<Deletions, redb::Error> {
    let mut deletions = Deletions::default();
    for row in transaction.open_table(DELETIONS)?.iter()? {
        let (number, bytes) = row?;
        let call = serde_json::from_slice(bytes.value());
        if let (Ok(number), Ok(call)) = (number.value().parse(), call) {
            deletions.calls.push_back(call);
            deletions.last = number;
        }
    }
    Ok(deletions)
}

#[cfg(test)]
pub(crate) mod tests;
