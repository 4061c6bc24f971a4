//! Files that are watched for changes.
//!
//! What is watched is their directories, because editors and Kubernetes do not write to a file but put another in its
//! place, the latter by way of a symbolic link. An event there is only a reason to look whether the files are others
//! than before.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::supervisor::watch_fd;

/// By what a file is told from another: device, inode, size, and the time of its last change.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Files that are watched.
pub(super) struct Files {
    paths: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    /// Absent where the kernel has no more: then a signal is the only way.
    events: Option<Events>,
}

/// The kernel's, and the same once more for the runtime to wait on.
struct Events {
    inotify: Inotify,
    readiness: AsyncFd<OwnedFd>,
}

impl Files {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let mut files = Self {
            stamps: stamps(&paths),
            paths: Vec::new(),
            events: None,
        };
        files.watch(paths);
        files
    }

    /// Watches these from now on. What was noted of them stays, so that no change is lost.
    pub(super) fn watch(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            self.stamps = stamps(&paths);
            self.paths = paths;
            self.events = None;
        }
        let watched = match &self.events {
            Some(events) => add(&events.inotify, &self.paths),
            None => events().and_then(|events| {
                add(&events.inotify, &self.paths)?;
                self.events = Some(events);
                Ok(())
            }),
        };
        if let Err(error) = watched {
            warn!(%error, "changes of the configuration's files are not seen; send SIGHUP after one");
            self.events = None;
        }
    }

    /// Waits until something happened where the files are. Cancel safe.
    pub(super) async fn changed(&mut self) {
        let Some(events) = &self.events else {
            return std::future::pending().await;
        };
        let read = || events.inotify.read_events().map_err(io::Error::from);
        loop {
            let Ok(mut ready) = events.readiness.readable().await else {
                return std::future::pending().await;
            };
            match ready.try_io(|_| read()) {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => {
                    warn!(%error, "changes of the configuration's files are not seen; send SIGHUP after one");
                    break;
                }
                Err(_would_block) => {}
            }
        }
        self.events = None;
        std::future::pending().await
    }

    /// Whether the files are others than when this was asked last.
    pub(super) async fn are_others(&mut self) -> bool {
        // A directory may be another one by now.
        self.watch(self.paths.clone());
        let paths = self.paths.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || stamps(&paths)).await else {
            return false;
        };
        let others = now != self.stamps;
        self.stamps = now;
        others
    }
}

fn events() -> io::Result<Events> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let readiness = watch_fd(inotify.as_fd().try_clone_to_owned()?)?;
    Ok(Events { inotify, readiness })
}

/// Watches the directories of all files, those in which links are and those that they lead to.
fn add(inotify: &Inotify, paths: &[PathBuf]) -> io::Result<()> {
    let real = paths.iter().filter_map(|it| fs::canonicalize(it).ok());
    let paths: Vec<_> = paths.iter().cloned().chain(real).collect();
    let directories: BTreeSet<_> = paths.iter().filter_map(|it| directory(it)).collect();
    let what = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    for directory in directories {
        inotify.add_watch(directory, what)?;
    }
    Ok(())
}

/// The directory of a file, or that in which it would come to be.
fn directory(path: &Path) -> Option<&Path> {
    path.ancestors().skip(1).find(|it| it.is_dir())
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |path: &PathBuf| {
        let it = fs::metadata(path).ok()?;
        Some((it.dev(), it.ino(), it.size(), it.mtime(), it.mtime_nsec()))
    };
    paths.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    /// Waits until the files are others; that they are not in time is an error.
    async fn changed(files: &mut Files) {
        let changed = async {
            loop {
                files.changed().await;
                if files.are_others().await {
                    return;
                }
            }
        };
        let changed = tokio::time::timeout(Duration::from_secs(20), changed).await;
        changed.expect("a change");
    }

    #[tokio::test]
    async fn a_file_is_seen_to_come_to_change_and_to_be_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/agent.toml");
        let mut files = Files::new(vec![path.clone()]);
        fs::create_dir(dir.path().join("made")).unwrap();
        // Where the directory comes between two looks its file's event is the other's.
        files.changed().await;
        files.are_others().await;
        fs::write(&path, "a").unwrap();
        changed(&mut files).await;
        fs::write(&path, "ab").unwrap();
        changed(&mut files).await;
        let other = dir.path().join("made/.other");
        fs::write(&other, "cd").unwrap();
        fs::rename(&other, &path).unwrap();
        changed(&mut files).await;
        fs::remove_file(&path).unwrap();
        changed(&mut files).await;
    }

    #[tokio::test]
    async fn a_link_that_leads_elsewhere_is_seen_as_kubernetes_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["..1", "..2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("agent.toml"), version).unwrap();
        }
        let data = dir.path().join("..data");
        symlink("..1", &data).unwrap();
        symlink("..data/agent.toml", dir.path().join("agent.toml")).unwrap();
        let mut files = Files::new(vec![dir.path().join("agent.toml")]);
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), &data).unwrap();
        changed(&mut files).await;
        // What it leads to now is watched, too.
        fs::write(dir.path().join("..2/agent.toml"), "longer").unwrap();
        changed(&mut files).await;
    }

    #[tokio::test]
    async fn what_happens_to_other_files_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "a").unwrap();
        let mut files = Files::new(vec![path]);
        fs::write(dir.path().join("other"), "b").unwrap();
        files.changed().await;
        assert!(!files.are_others().await);
    }
}
