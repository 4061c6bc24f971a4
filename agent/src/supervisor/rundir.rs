//! A device's directory under the run directory: sockets, configuration, log, and a manifest by
//! which a later agent recognises what it finds.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::socket::SockType;
use serde::{Deserialize, Serialize};

use crate::plain;
use crate::socket;
use crate::stats;

/// How much of the end of a log goes into a message.
const TAIL_LINES: usize = 5;
const TAIL_BYTES: u64 = 2048;
/// A manifest is much shorter.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;

/// Which device a directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) uid: String,
    pub(crate) model: String,
    /// Absent between the making of the directory and the start of the process.
    pub(crate) pid: Option<i32>,
    pub(crate) start_time: Option<SystemTime>,
    /// `History::restart_count` of the start. A record with a higher one wants another process, which its agent has not
    /// lived to start.
    #[serde(default)]
    pub(crate) restart_count: i64,
    /// Nothing in a directory from another boot can be alive.
    pub(crate) boot_id: String,
}

/// The directory of one device.
#[derive(Debug, Clone)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    pub(crate) fn new(devices_dir: &Path, id: &str) -> Self {
        let path = devices_dir.join(id);
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The vfio-user socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("vfio-user.sock")
    }

    /// The control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The configuration as the process is told it, `@FILE`. No other program has this argument.
    pub(crate) fn config_argument(&self) -> String {
        format!("@{}", self.config().display())
    }

    fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The counters of the process.
    pub(crate) fn stats(&self) -> PathBuf {
        self.path.join("stats")
    }

    fn manifest(&self) -> PathBuf {
        self.path.join("manifest.json")
    }

    /// Makes the directory. Others may pass through it, because the socket's own mode says who may
    /// connect; the files in it are the agent's alone.
    pub(crate) fn create(&self, manifest: &Manifest, config: &serde_json::Value) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&self.path)?;
        self.write(&self.config(), &serde_json::to_vec(config)?)?;
        self.write_manifest(manifest)
    }

    pub(crate) fn write_manifest(&self, manifest: &Manifest) -> io::Result<()> {
        self.write(&self.manifest(), &serde_json::to_vec(manifest)?)
    }

    /// The manifest, when there is one that can be read.
    pub(crate) fn read_manifest(&self) -> Option<Manifest> {
        let file = plain::open(OpenOptions::new().read(true), &self.manifest()).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Opens the log to append to it, and says how long it is.
    pub(crate) fn open_log(&self) -> io::Result<(File, u64)> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        let file = plain::open(&mut options, &self.log())?;
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    }

    /// Makes the file in which a new process keeps its counters, and which is not that of the process before it: it may
    /// still be writing there.
    pub(crate) fn create_stats(&self) -> io::Result<File> {
        let hidden = self.path.join(".stats");
        let file = create(&hidden)?;
        file.set_len(stats::FILE_BYTES as u64)?;
        fs::rename(hidden, self.stats())?;
        Ok(file)
    }

    /// The last lines of the log after `offset`.
    pub(crate) fn log_tail(&self, offset: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = plain::open(OpenOptions::new().read(true), &self.log())?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(offset.max(end.saturating_sub(TAIL_BYTES))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Whether a process may live that serves the device: only who certainly does not listen is dead. A VMM's place at the
    /// device's own socket is taken only where there is no control socket to ask at.
    pub(crate) fn is_served(&self) -> bool {
        let (control, vfio_user) = (self.control(), self.socket());
        match socket::is_served(&control, SockType::SeqPacket) {
            Ok(false) => socket::is_served(&vfio_user, SockType::Stream).unwrap_or(true),
            Ok(true) | Err(_) => true,
        }
    }

    /// Removes the directory with all that is in it; one that is not there is as good.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let hidden = self.path.join(".new");
        let mut file = create(&hidden)?;
        file.write_all(bytes)?;
        crate::steps::reached("file.hidden");
        fs::rename(hidden, path)
    }
}

/// Makes a file that comes to its place under another name. What is under that one is of an agent that died before it had
/// put it there, a socket perhaps, or a device's process made it.
fn create(hidden: &Path) -> io::Result<File> {
    socket::remove_file(hidden)?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(&parent.path().join("devices"), "nic0");
        assert_eq!(dir.read_manifest(), None);
        let manifest = Manifest {
            uid: "u".to_owned(),
            model: "e1000".to_owned(),
            pid: Some(1),
            start_time: Some(SystemTime::UNIX_EPOCH),
            restart_count: 0,
            boot_id: "b".to_owned(),
        };
        dir.create(&manifest, &serde_json::json!({})).unwrap();
        assert_eq!(dir.read_manifest(), Some(manifest));
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn what_a_process_has_put_in_place_of_a_file_holds_nobody_up() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path(), "nic0");
        fs::create_dir(dir.path()).unwrap();
        let hidden = [".new", ".stats"].map(|it| dir.path().join(it));
        for path in [&dir.log(), &dir.manifest(), &hidden[1]] {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let other = parent.path().join("other");
        fs::write(&other, "x").unwrap();
        std::os::unix::fs::symlink(&other, &hidden[0]).unwrap();
        assert_eq!(dir.log_tail(0), "");
        assert_eq!(dir.read_manifest(), None);
        dir.open_log().unwrap_err();
        dir.create_stats().unwrap();
        dir.write(&dir.config(), b"y").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"x");
    }

    #[test]
    fn what_an_agent_that_died_has_left_under_a_hidden_name_is_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path(), "nic0");
        fs::create_dir(dir.path()).unwrap();
        let hidden = dir.path().join(".new");
        let socket = std::os::unix::net::UnixListener::bind(&hidden).unwrap();
        dir.write(&dir.config(), b"longer").unwrap();
        drop(socket);
        fs::write(&hidden, "much longer").unwrap();
        dir.write(&dir.config(), b"short").unwrap();
        assert_eq!(fs::read(dir.config()).unwrap(), b"short");
        assert!(!hidden.exists());
    }

    #[test]
    fn the_tail_is_the_last_lines_of_this_run() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path(), "nic0");
        assert_eq!(dir.log_tail(0), "");
        fs::create_dir(dir.path()).unwrap();
        dir.open_log().unwrap().0.write_all(b"old\n").unwrap();
        let (mut log, offset) = dir.open_log().unwrap();
        log.write_all(b"new\xff\n").unwrap();
        assert_eq!(dir.log_tail(offset), "new\u{fffd}");
        log.write_all("line\n".repeat(10_000).as_bytes()).unwrap();
        assert_eq!(dir.log_tail(offset), ["line"; TAIL_LINES].join("\n"));
    }
}
