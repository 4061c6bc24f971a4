//! The file of the store, while it is open. redb takes nothing more once the disk has failed it, whatever becomes of the
//! disk: a file that failed is closed, and opened again by who needs it next.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use redb::{Builder, Database, DatabaseError};

/// A store holds some hundred bytes per device; redb would take up to 1 GiB.
const CACHE_BYTES: usize = 4 << 20;

pub(crate) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// A file, which is open unless it has failed.
#[derive(Debug)]
pub(crate) struct File {
    path: PathBuf,
    database: Mutex<Option<Database>>,
}

impl File {
    /// Opens a file that is there.
    pub(crate) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let database = builder().open(path)?;
        Ok(Self {
            path: path.to_owned(),
            database: Mutex::new(Some(database)),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something with the open file. One at a time, as redb has one writer at a time anyway.
    pub(crate) fn with<T, E>(&self, action: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, E>
    where
        E: From<DatabaseError>,
    {
        // Who panicked took the file out and closed it.
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => builder().open(&self.path)?,
        };
        let result = action(&database);
        if result.is_ok() {
            *slot = Some(database);
        }
        result
    }
}
