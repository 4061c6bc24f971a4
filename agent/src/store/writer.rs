//! The thread that writes: what several callers want written at once goes to the disk together, and each is told when it is
//! there.
//!
//! A commit waits for the disk, and the disk takes as long for one record as for a hundred. After a failure redb wants
//! the file to be opened again; the thread does so before it writes the next time, so that an agent whose disk was full
//! goes on by itself when there is space.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use redb::Database;
use tokio::sync::oneshot;

use super::error::Error;
use super::schema::Table;

/// So many writes go to the disk together.
const MAX_JOBS: usize = 256;

/// One change of one table.
pub(super) enum Change {
    Put(Table, String, Vec<u8>),
    Remove(Table, String),
}

/// Changes of which all are made or none, and who waits for them.
struct Job {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), Arc<redb::Error>>>,
}

/// Where to hand in what is to be written. The thread ends when the last clone is dropped, and with it the file is
/// closed.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    jobs: Sender<Job>,
    path: Arc<PathBuf>,
}

impl Writer {
    /// Starts the thread, which has the database from now on.
    pub(super) fn start(database: Database, path: PathBuf) -> Result<Self, Error> {
        let (jobs, waiting) = mpsc::channel();
        let path = Arc::new(path);
        let file = File {
            database: Some(database),
            path: path.clone(),
        };
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || file.serve(&waiting))
            .map_err(Error::Thread)?;
        Ok(Self { jobs, path })
    }

    /// Makes the changes, all or none; they are durable when this returns.
    pub(super) async fn write(&self, changes: Vec<Change>) -> Result<(), Error> {
        let (done, written) = oneshot::channel();
        self.jobs
            .send(Job { changes, done })
            .expect("the thread ends after the last writer");
        let written = written
            .await
            .expect("the thread answers every job that it has taken");
        written.map_err(|source| Error::of_file("write", &self.path, source))
    }
}

/// The database, while it is in order.
struct File {
    database: Option<Database>,
    path: Arc<PathBuf>,
}

impl File {
    fn serve(mut self, waiting: &Receiver<Job>) {
        while let Ok(first) = waiting.recv() {
            let mut jobs = vec![first];
            jobs.extend(waiting.try_iter().take(MAX_JOBS - 1));
            let written = self.commit(&jobs).map_err(|error| {
                self.database = None;
                Arc::new(error)
            });
            for job in jobs {
                // Whoever does not wait any more does not want to know.
                let _ = job.done.send(written.clone());
            }
        }
    }

    fn commit(&mut self, jobs: &[Job]) -> Result<(), redb::Error> {
        if jobs.iter().all(|job| job.changes.is_empty()) {
            return Ok(());
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => super::builder().open(&*self.path)?,
        };
        let database = self.database.insert(database);
        let transaction = database.begin_write()?;
        for change in jobs.iter().flat_map(|job| &job.changes) {
            match change {
                Change::Put(table, key, value) => {
                    transaction.open_table(*table)?.insert(&**key, &**value)?;
                }
                Change::Remove(table, key) => {
                    transaction.open_table(*table)?.remove(&**key)?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}
