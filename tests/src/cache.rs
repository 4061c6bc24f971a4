//! The cache folder of set-up: things that take long to make, each made once.
//!
//! A thing is built under a temporary name and renamed when it is whole, so that a killed run leaves nothing half
//! made; one lock keeps two runs apart. The name carries a hash of the recipe, so that a changed recipe builds anew
//! beside the old thing, which another checkout may still use.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::command;

/// How long a run waits for another run's set-up, which may be building a program.
const LOCK_LIMIT: Duration = Duration::from_secs(70 * 60);

/// The folder: `$VFU_CACHE`, else `$XDG_CACHE_HOME/vfu`, else `~/.cache/vfu`.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Finds the folder and makes it where it is missing.
    pub fn open() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = set("VFU_CACHE")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|base| PathBuf::from(base).join("vfu")))
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache/vfu")))
            .context("no cache folder: set VFU_CACHE or HOME")?;
        fs::create_dir_all(&dir).with_context(|| format!("make cache folder {}", dir.display()))?;
        let dir = fs::canonicalize(&dir)?;
        Ok(Self { dir })
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The thing of this name, if it has been made.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.join(name)).filter(|path| path.exists())
    }

    /// The thing of this name; made by `build`, in the empty folder it is given, where it is missing.
    pub fn stage(&self, name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(path) = self.find(name) {
            return Ok(path);
        }
        let _lock = self.lock()?;
        // Another run may have made it while this one waited for the lock.
        if let Some(path) = self.find(name) {
            return Ok(path);
        }
        let unfinished = self.dir.join(format!("unfinished-{name}"));
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .with_context(|| format!("remove {}", unfinished.display()))?;
        }
        fs::create_dir(&unfinished)?;
        build(&unfinished).with_context(|| format!("set up {name}"))?;
        let path = self.dir.join(name);
        fs::rename(&unfinished, &path)?;
        Ok(path)
    }

    fn lock(&self) -> Result<Flock<File>> {
        let path = self.dir.join("lock");
        let mut file =
            Some(File::create(&path).with_context(|| format!("open {}", path.display()))?);
        let mut told = false;
        command::wait_for("the lock of the cache folder", LOCK_LIMIT, || {
            let candidate = file
                .take()
                .ok_or_else(|| anyhow!("the lock file is gone"))?;
            match Flock::lock(candidate, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => Ok(Some(lock)),
                Err((candidate, Errno::EWOULDBLOCK)) => {
                    if !told {
                        eprintln!("setup: another run holds {}, waiting", path.display());
                        told = true;
                    }
                    file = Some(candidate);
                    Ok(None)
                }
                Err((_, errno)) => Err(errno).context("lock the cache folder"),
            }
        })
    }
}

/// A short name for a recipe, from everything that goes into it.
pub fn key<'a>(ingredients: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in ingredients {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
