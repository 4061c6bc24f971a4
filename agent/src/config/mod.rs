//! What the agent goes by: built-in defaults, then the file `agent.toml`, then the environment, then flags; the later
//! wins.
//!
//! Each section of the file is a struct with a file of its own here. A key that nobody knows is an error, because a limit
//! that is misspelt is a limit that is not there. What may change while the agent runs is read through [`Live`].

mod access;
mod api;
mod args;
mod audit;
mod cgroup;
mod error;
mod files;
mod keys;
mod layers;
mod limits;
mod live;
mod load;
mod log;
mod reload;
mod text;
mod timeouts;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::api::{Api, Mode, Tcp, UnixUri};
pub use self::args::Args;
pub use self::audit::Audit;
pub use self::cgroup::{Cgroup, Path as CgroupPath};
pub use self::error::{Error, Problem};
pub use self::limits::Limits;
pub(crate) use self::limits::MAX_REQUEST_BYTES;
pub use self::live::Live;
pub use self::load::{Loaded, Sources};
pub use self::log::Format as LogFormat;
pub use self::reload::{Reloader, SetFilter};
pub use self::timeouts::Timeouts;
use crate::access::Rule;
use crate::socket::MAX_PATH_BYTES;

/// The longest that is put behind the run directory for a socket: an id has 63 bytes at most.
const LONGEST_SOCKET: usize = "/devices/".len() + 63 + "/vfio-user.sock".len();
/// The shortest of the same, with an id of one byte.
const SHORTEST_SOCKET: usize = "/devices/a/vfio-user.sock".len();

/// The whole configuration. Its fields are the keys of `agent.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of sockets and of all that goes with a boot. Absolute.
    pub run_dir: PathBuf,
    /// Directory of what survives a boot. Absolute.
    pub state_dir: PathBuf,
    /// The program that serves devices; when it is not named, the `vfu-device` beside the agent's own, else the one in
    /// PATH.
    pub device_program: Option<PathBuf>,
    /// Folders with description files of models that other programs serve. The first counts most.
    pub models_dirs: Vec<PathBuf>,
    /// Form of the logs.
    pub log_format: LogFormat,
    /// How much is logged, such as `debug` or `agent=debug,info`.
    pub log: String,
    /// Where the API is served.
    pub api: Api,
    /// Who may do what.
    pub access: Vec<Rule>,
    /// What is noted of who did what.
    pub audit: Audit,
    /// How much of everything there may be.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// The cgroups of devices.
    pub cgroup: Cgroup,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run_dir: "/run/vfu".into(),
            state_dir: "/var/lib/vfu".into(),
            device_program: None,
            models_dirs: vec!["/etc/vfu/models.d".into(), "/usr/share/vfio-user".into()],
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            api: Api::default(),
            access: Vec::new(),
            audit: Audit::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            cgroup: Cgroup::default(),
        }
    }
}

impl Config {
    /// The API's socket.
    pub fn listen(&self) -> PathBuf {
        match &self.api.listen {
            Some(uri) => uri.path().to_owned(),
            None => self.run_dir.join("agent.sock"),
        }
    }

    /// The audit log.
    pub(crate) fn audit_path(&self) -> PathBuf {
        let named = self.audit.path.clone();
        named.unwrap_or_else(|| self.state_dir.join("audit.log"))
    }

    /// Where devices have their sockets.
    pub(crate) fn devices_dir(&self) -> PathBuf {
        self.run_dir.join("devices")
    }

    /// Where changes are written down for the next agent.
    pub(crate) fn changes_dir(&self) -> PathBuf {
        self.run_dir.join("changes")
    }

    /// Paths are the same wherever the agent is from now on.
    fn make_absolute(&mut self) -> std::io::Result<()> {
        let Self {
            run_dir,
            state_dir,
            device_program,
            models_dirs,
            log_format: _,
            log: _,
            api,
            access: _,
            audit,
            limits: _,
            timeouts: _,
            cgroup: _,
        } = self;
        let mut paths = vec![run_dir, state_dir];
        paths.extend(device_program);
        paths.extend(models_dirs);
        paths.extend(&mut audit.path);
        paths.extend(api.tcp.paths_mut());
        for path in paths {
            *path = std::path::absolute(&*path)?;
        }
        Ok(())
    }

    /// Everything that can't be as it is, in addition to what the types say.
    fn check(&self, bad: &mut Vec<Problem>) {
        let room = MAX_PATH_BYTES.saturating_sub(self.run_dir.as_os_str().len());
        if room < SHORTEST_SOCKET {
            let why = format!(
                "{} has {} bytes; with the {MAX_PATH_BYTES} that a socket's path may have, that leaves no room for those \
                 of devices: at most {} (and {} for ids of any length)",
                self.run_dir.display(),
                self.run_dir.as_os_str().len(),
                MAX_PATH_BYTES - SHORTEST_SOCKET,
                MAX_PATH_BYTES - LONGEST_SOCKET,
            );
            bad.push(Problem::new("run_dir", why));
        }
        log::check(&self.log, bad);
        self.api.check(bad);
        access::check(&self.access, bad);
        self.audit.check(bad);
        self.limits.check(bad);
        self.timeouts.check(bad);
    }
}

#[cfg(test)]
mod tests;
