//! A cgroup (version 2) for each device's process: `SLICE/AGENT/DEVICE`.
//!
//! SLICE is `vfu.slice` at the root of the hierarchy, beside the slices of the service manager, so that neither a limit nor
//! an end of the agent's own service reaches a device. AGENT stands for the run directory: agents of one host that have
//! different ones do not meet. What a device's cgroup is for: its share of the processors, the end of all that its process
//! has started, and whether the kernel ended it because memory ran out.
//!
//! Where that can't be, devices have no cgroups, and GetAgent says why and what to do.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use sha2::{Digest, Sha256};

use super::birth;
use crate::config::CgroupPath;
use crate::limits::Limits;

const SLICE: &str = "vfu.slice";
/// One processor's time in one period, in microseconds, which is what the kernel takes unless it is told otherwise.
const PERIOD_US: u64 = 100_000;
/// How long what is in a cgroup may take to be gone after it was killed.
const KILL_STEPS: u32 = 50;
const KILL_STEP: Duration = Duration::from_millis(10);

/// Where the cgroups of devices are, if there are any.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// AGENT.
    path: Option<PathBuf>,
    /// Whether processor time can be limited.
    has_cpu: bool,
    error: String,
}

impl Cgroups {
    /// Makes AGENT where `wanted` says, or finds out why that can't be.
    pub(super) fn find(wanted: &CgroupPath, run_dir: &Path) -> Self {
        let slice = match wanted {
            CgroupPath::Off => Err("the configuration turns cgroups off (cgroup.path)".to_owned()),
            CgroupPath::At(path) => Ok(path.clone()),
            CgroupPath::Auto => mount().map(|it| it.join(SLICE)),
        };
        let made = slice.and_then(|slice| {
            if !birth::has_clone3() {
                return Err(
                    "the kernel makes no process in a cgroup (clone3): run Linux 5.7 or newer, and let the container's \
                     seccomp filter pass it"
                        .to_owned(),
                );
            }
            let path = slice.join(name(run_dir));
            prepare(&slice, &path).map(|()| path)
        });
        let path = match made {
            Ok(path) => path,
            Err(why) => {
                return Self {
                    path: None,
                    has_cpu: false,
                    error: format!("devices have no cgroups: {why}; cpu_millis can't be enforced"),
                };
            }
        };
        let controllers = fs::read_to_string(path.join("cgroup.subtree_control"));
        let has_cpu = controllers.is_ok_and(|it| it.split_whitespace().any(|it| it == "cpu"));
        let error = match has_cpu {
            true => String::new(),
            false => format!(
                "cpu_millis can't be enforced: there is no cpu controller in {}; on a host with cgroups of both versions \
                 boot with cgroup_no_v1=all, in a container or a delegated cgroup have cpu delegated to it",
                path.display()
            ),
        };
        Self {
            path: Some(path),
            has_cpu,
            error,
        }
    }

    /// AGENT, if there is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What devices have to do without, why, and what to do. Empty: nothing.
    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    /// Why processor time can't be limited, if it can't.
    pub(super) fn check_cpu(&self) -> Result<(), String> {
        match self.has_cpu {
            true => Ok(()),
            false => Err(self.error.clone()),
        }
    }

    /// Makes a device's cgroup with these limits, and opens it. A new one in any case: the kernel may end at once what
    /// is born into one in which something was killed.
    pub(super) async fn make(&self, id: &str, limits: &Limits) -> io::Result<Option<OwnedFd>> {
        let Some(path) = self.device(id) else {
            return Ok(None);
        };
        self.remove(id).await?;
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&path)?;
        self.set(id, limits)?;
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(&path)?;
        Ok(Some(directory.into()))
    }

    /// Has a device's cgroup, if it has one, enforce these limits from now on.
    pub(super) fn set(&self, id: &str, limits: &Limits) -> io::Result<()> {
        let Some(path) = self.device(id).filter(|it| self.has_cpu && it.exists()) else {
            return Ok(());
        };
        let quota = match limits.cpu_millis {
            None => "max".to_owned(),
            Some(millis) => (u64::from(millis) * PERIOD_US / 1000).to_string(),
        };
        write(&path.join("cpu.max"), &format!("{quota} {PERIOD_US}"))
    }

    /// How often the kernel ended something in a device's cgroup because memory ran out.
    pub(super) fn memory_ends(&self, id: &str) -> u64 {
        let events = self.device(id).map(|it| it.join("memory.events"));
        let events = events.and_then(|it| fs::read_to_string(it).ok());
        let line = |text: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        events.and_then(|it| line(&it)).unwrap_or_default()
    }

    /// Removes a device's cgroup and ends all that is in it.
    pub(super) async fn remove(&self, id: &str) -> io::Result<()> {
        let Some(path) = self.device(id) else {
            return Ok(());
        };
        for _ in 0..KILL_STEPS {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => kill(&path)?,
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => return Ok(()),
            }
            tokio::time::sleep(KILL_STEP).await;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// Removes the cgroups that belong to no device; those in which something lives stay.
    pub(super) fn sweep(&self, is_known: impl Fn(&str) -> bool) {
        let entries = self.path.as_deref().and_then(|it| fs::read_dir(it).ok());
        for entry in entries.into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|id| !is_known(id)) {
                // The files of AGENT itself are no directories.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    /// Removes AGENT and SLICE if there is nothing in them.
    pub(super) fn close(&self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_dir(path);
            if let Some(slice) = path.parent().filter(|it| it.ends_with(SLICE)) {
                let _ = fs::remove_dir(slice);
            }
        }
    }

    fn device(&self, id: &str) -> Option<PathBuf> {
        self.path.as_ref().map(|it| it.join(id))
    }
}

/// The agent's name among others of this host.
fn name(run_dir: &Path) -> String {
    let hash = Sha256::digest(run_dir.as_os_str().as_encoded_bytes());
    hash[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the hierarchy is mounted.
fn mount() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    mounts.lines().find_map(mounted).ok_or_else(|| {
        "the cgroup2 file system is not mounted: mount it, as in mount -t cgroup2 none /sys/fs/cgroup".to_owned()
    })
}

/// The path of a line of mountinfo that is about cgroups of version 2.
fn mounted(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    if file_system.split(' ').next()? != "cgroup2" {
        return None;
    }
    let path = mount.split(' ').nth(4)?;
    // Blanks and the like are written as octal numbers; a hierarchy at such a path has to be configured.
    (!path.contains('\\')).then(|| path.into())
}

/// Makes SLICE and AGENT, and hands the controllers down as far as that goes.
fn prepare(slice: &Path, agent: &Path) -> Result<(), String> {
    let at = |path: &Path, error: io::Error| {
        let cure =
            "run the agent as root, or let cgroup.path name a cgroup that is delegated to it";
        format!("make {}: {error}; {cure}", path.display())
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(agent)
        .map_err(|error| at(agent, error))?;
    let kind = statfs(agent).map_err(|errno| at(agent, errno.into()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        let why = format!(
            "{} is in no hierarchy of cgroups of version 2",
            agent.display()
        );
        let _ = fs::remove_dir(agent);
        return Err(why);
    }
    let hand_down = [slice.parent(), Some(slice), Some(agent)];
    for directory in hand_down.into_iter().flatten() {
        for controller in ["+cpu", "+memory"] {
            // What is missing in the end is told then.
            let _ = write(&directory.join("cgroup.subtree_control"), controller);
        }
    }
    File::open(agent.join("cgroup.procs")).map_err(|error| at(agent, error))?;
    Ok(())
}

fn kill(path: &Path) -> io::Result<()> {
    match write(&path.join("cgroup.kill"), "1") {
        // Linux 5.13 and older has none: what is there ends by the signals that it is sent.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        killed => killed,
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_on_hosts_of_either_kind() {
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(mounted(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mounted(pure), Some("/sys/fs/cgroup".into()));
        let old = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        for other in [old, "", "cgroup2", " - ", "1 2 3 - cgroup2"] {
            assert_eq!(mounted(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn what_keeps_devices_from_cgroups_is_told_with_a_cure() {
        let directory = tempfile::tempdir().unwrap();
        let none = Cgroups::find(&CgroupPath::At(directory.path().join("x")), Path::new("/r"));
        assert_eq!(none.path(), None);
        assert!(none.error().contains("no hierarchy"), "{}", none.error());
        assert!(
            none.make("nic0", &Limits::default())
                .await
                .unwrap()
                .is_none()
        );
        let off = Cgroups::find(&CgroupPath::Off, Path::new("/r"));
        assert!(off.check_cpu().unwrap_err().contains("cgroup.path"));
        assert_ne!(name(Path::new("/a")), name(Path::new("/b")));
    }

    /// A directory that takes what is written as the kernel's would.
    #[test]
    fn processor_time_is_written_as_the_kernel_takes_it() {
        let directory = tempfile::tempdir().unwrap();
        let cgroups = Cgroups {
            path: Some(directory.path().to_owned()),
            has_cpu: true,
            error: String::new(),
        };
        fs::create_dir(directory.path().join("nic0")).unwrap();
        let file = directory.path().join("nic0/cpu.max");
        for (cpu_millis, expected) in [(Some(10), "1000 100000"), (None, "max 100000")] {
            fs::write(&file, "").unwrap();
            let limits = Limits {
                cpu_millis,
                ..Limits::default()
            };
            cgroups.set("nic0", &limits).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), expected);
        }
        let events = directory.path().join("nic0/memory.events");
        assert_eq!(cgroups.memory_ends("nic0"), 0);
        fs::write(events, "low 0\noom 3\noom_kill 2\noom_group_kill 0\n").unwrap();
        assert_eq!(cgroups.memory_ends("nic0"), 2);
    }
}
