//! Keeps the logs of device processes short.
//!
//! A process writes to its log by itself, so that it needs no agent for it, and whatever it is: it appends to a file that
//! only ever grows, and the agent takes the storage of the file's beginning away (a hole). What is kept stays where it is:
//! no writer has to be told, no line is lost between two files, and who reads goes on from the offset that it has. The
//! price is a file whose length is that of all that was ever logged, of which the kept end alone takes storage.
//!
//! Where a file system knows no holes, a log that is too long is emptied.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::Shared;

/// How often all logs are looked at: what a process can write in that time is what it can have beyond its limit.
const PERIOD: Duration = Duration::from_secs(2);
/// What a hole's end is rounded to; blocks of file systems are no larger.
const BLOCK_BYTES: u64 = 4096;
/// What `st_blocks` counts in.
const SECTOR_BYTES: u64 = 512;

/// Looks after the logs of all devices until the agent ends.
pub(super) async fn keep(shared: Arc<Shared>, mut shutdown: watch::Receiver<bool>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = shutdown.wait_for(|it| *it) => return,
        }
        let logs = written(&shared);
        let swept = tokio::task::spawn_blocking(move || {
            for (path, limit) in logs {
                match trim(&path, limit) {
                    // Its device went away meanwhile.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        warn!(%error, path = %path.display(), "shorten log");
                    }
                    _ => {}
                }
            }
        });
        if let Err(error) = swept.await {
            warn!(%error, "logs not looked at");
        }
    }
}

/// The logs that a process may write to, each with its limit.
fn written(shared: &Shared) -> Vec<(PathBuf, u64)> {
    let log_bytes = shared.config().limits.log_bytes;
    let devices = shared.devices();
    devices
        .iter()
        .filter_map(|(id, handle)| {
            let device = handle.device.borrow();
            let limit = device.record.spec.limits.log_bytes;
            let limit = limit.unwrap_or(log_bytes);
            (device.view.pid.is_some()).then(|| (shared.dir(id).log(), limit))
        })
        .collect()
}

/// Takes the beginning of a log away, if it is longer than `limit`, so that the next lines fit.
fn trim(path: &Path, limit: u64) -> io::Result<()> {
    if path.symlink_metadata()?.blocks() * SECTOR_BYTES <= limit {
        return Ok(());
    }
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    cut(&file, limit / 4 * 3)
}

/// Leaves the last `keep` bytes, or a little more.
fn cut(file: &File, keep: u64) -> io::Result<()> {
    let end = file.metadata()?.len().saturating_sub(keep) / BLOCK_BYTES * BLOCK_BYTES;
    if end == 0 {
        return Ok(());
    }
    let end = i64::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, hole, 0, end) {
        Ok(()) => Ok(()),
        // Who appends goes on at the beginning.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => file.set_len(0),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_log_that_is_too_long_keeps_its_end_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        let limit = 64 << 10;
        for round in 0..10_u32 {
            let text = format!("{round:07}\n").repeat(20_000);
            log.write_all(text.as_bytes()).unwrap();
            trim(&path, limit).unwrap();
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.len(), u64::from(round + 1) * 160_000);
            assert!(metadata.blocks() * SECTOR_BYTES <= limit);
            let mut end = [0; 8];
            let read = File::open(&path).unwrap();
            // Three quarters of it are kept.
            read.read_exact_at(&mut end, metadata.len() - limit / 4 * 3)
                .unwrap();
            assert_eq!(end, *format!("{round:07}\n").as_bytes());
        }
    }

    #[test]
    fn a_log_within_its_limit_and_what_is_no_log_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "x".repeat(60_000)).unwrap();
        trim(&path, 64 << 10).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 60_000]);
        let other = directory.path().join("other");
        std::fs::write(&other, "x".repeat(1 << 20)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        trim(&path, 64 << 10).unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), vec![b'x'; 1 << 20]);
        std::fs::remove_file(&path).unwrap();
        let error = trim(&path, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
