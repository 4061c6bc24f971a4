//! Other programs as device servers: each model that one of them serves is described by a file in one of the agent's
//! folders, and joins the catalogue.
//!
//! A file with a mistake costs its own model only. Of files with the same name in several folders the first folder's
//! counts, so that an administrator's replaces a package's. The folders are looked at whenever the catalogue is asked for,
//! and read again when something in them has changed.
//!
//! `vfu-device external` runs these programs, and is to the supervisor what the process of a model of vfu's is.

mod description;
pub(crate) mod external;
mod launch;
mod require;
mod template;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use self::external::External;
pub(crate) use self::launch::For;
use self::require::Said;
use crate::models::model::Model;

/// So many files are read; more are named as too many.
const MAX_FILES: usize = 256;
/// So many names of a folder are looked at.
const MAX_ENTRIES: usize = 4096;

/// What the files describe.
#[derive(Debug, Default)]
pub(crate) struct Described {
    pub(crate) models: BTreeMap<String, Model>,
    /// The files and folders that count for nothing, and why.
    pub(crate) bad: Vec<(PathBuf, String)>,
}

/// What tells one version of a file from the next. The number of the node and the time of its change also see a file that
/// was put into the place of another one, or got another owner.
type Stamp = (u64, i64, i64, i64, i64, u64);

/// What there is to read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    files: Vec<(PathBuf, Option<Stamp>)>,
    bad: Vec<(PathBuf, String)>,
}

/// The folders, and what was last read from them.
#[derive(Debug)]
pub(crate) struct Runtimes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folders: Vec<PathBuf>,
    last: Mutex<(Found, Arc<Described>)>,
    said: Said,
}

impl Runtimes {
    /// What these folders have; the first counts most.
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        let inner = Inner {
            folders,
            last: Mutex::default(),
            said: Said::default(),
        };
        let inner = Arc::new(inner);
        Self { inner }
    }

    /// The program of a model, or why it can't serve devices, and the cure.
    pub(crate) async fn program(&self, external: &External) -> Result<PathBuf, String> {
        let program = external.program()?;
        self.inner.said.ask(&program, &external.requires).await?;
        Ok(program)
    }

    /// What the files describe now: the same value as long as they don't change.
    pub(crate) async fn get(&self) -> Arc<Described> {
        let inner = self.inner.clone();
        let read = tokio::task::spawn_blocking(move || inner.get()).await;
        read.expect("nothing in it panics, and it is not cancelled")
    }
}

impl Inner {
    fn get(&self) -> Arc<Described> {
        // Held while files are read: who comes meanwhile wants the same.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let found = find(&self.folders);
        if found != last.0 {
            let described = read(&found);
            for (path, why) in &described.bad {
                tracing::warn!(path = %path.display(), why, "description file not used");
            }
            *last = (found, Arc::new(described));
        }
        last.1.clone()
    }
}

fn find(folders: &[PathBuf]) -> Found {
    let mut bad = Vec::new();
    let mut files: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for folder in folders {
        let names = match names(folder) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let why = format!("can't be read: {error}; let the agent's user read it");
                bad.push((folder.clone(), why));
                continue;
            }
        };
        for name in names {
            let path = folder.join(&name);
            files.entry(name).or_insert(path);
        }
    }
    let too_many = files.len().saturating_sub(MAX_FILES);
    if let Some(first) = folders.first().filter(|_| too_many > 0) {
        let why = format!("{too_many} files beyond the {MAX_FILES} that are read; remove some");
        bad.push((first.clone(), why));
    }
    let files = files.into_values().take(MAX_FILES);
    let files = files.map(|it| (stamp(&it), it)).map(|(a, b)| (b, a));
    Found {
        files: files.collect(),
        bad,
    }
}

fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in folder.read_dir()?.take(MAX_ENTRIES) {
        let name = entry?.file_name();
        let path = Path::new(&name);
        // Editors keep their half-written files under names that begin with a dot.
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && path.extension().is_some_and(|it| it == "json") {
            names.push(name);
        }
    }
    Ok(names)
}

fn stamp(path: &Path) -> Option<Stamp> {
    let it = path.metadata().ok()?;
    Some((
        it.ino(),
        it.mtime(),
        it.mtime_nsec(),
        it.ctime(),
        it.ctime_nsec(),
        it.len(),
    ))
}

fn read(found: &Found) -> Described {
    let mut described = Described {
        models: BTreeMap::new(),
        bad: found.bad.clone(),
    };
    for (path, _) in &found.files {
        let model = match description::read(path) {
            Ok(model) => model,
            Err(why) => {
                described.bad.push((path.clone(), why));
                continue;
            }
        };
        let other = described.models.get(&model.name);
        match other.and_then(|it| it.external.as_ref()) {
            None => {
                described.models.insert(model.name.clone(), model);
            }
            Some(other) => {
                let other = other.source.display();
                let why = format!("name: {} is that of {other}; rename one", model.name);
                described.bad.push((path.clone(), why));
            }
        }
    }
    described
}

#[cfg(test)]
mod tests;
