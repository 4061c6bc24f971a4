//! Device processes: spawned so that they outlive the agent, found again by a later one, and
//! watched by pidfd either way, so that a pid that is used again is never mistaken for them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

use super::birth::{self, Birth, Child};
use super::fd;
use crate::limits::Resources;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// By this signal, and the kernel has made a core of it.
    Core(i32),
    /// It was not this agent's child, its parent was quicker than this agent, and the kernel is older than 6.15, which
    /// tells parents only.
    Unknown,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(number)) if status.core_dumped() => Self::Core(number),
            (None, Some(number)) => Self::Signal(number),
            (None, None) => Self::Unknown,
        }
    }
}

impl Exit {
    /// The signal that ended it.
    pub(crate) fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(number) | Self::Core(number) => Some(number),
            Self::Code(_) | Self::Unknown => None,
        }
    }

    pub(crate) fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(number) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was ended by {}", signal.as_str()),
                Err(_) => write!(f, "was ended by signal {number}"),
            },
            Self::Core(number) => write!(f, "{} and left a core", Self::Signal(number)),
            Self::Unknown => write!(f, "ended"),
        }
    }
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    /// The model, or what else it is to do.
    pub(crate) model: &'a str,
    pub(crate) config_argument: &'a str,
    /// The listening vfio-user socket, unless it makes that.
    pub(crate) socket: Option<&'a OwnedFd>,
    /// The listening control socket.
    pub(crate) control: &'a OwnedFd,
    /// Where it keeps its counters, if it keeps any.
    pub(crate) stats: Option<&'a File>,
    pub(crate) log: File,
    pub(crate) limits: Resources,
    /// The directory of its cgroup, when it has one of its own.
    pub(crate) cgroup: Option<OwnedFd>,
}

/// A running device process. Dropping it leaves it running.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

impl Process {
    /// Starts a process in a session of its own, with nothing of the agent's but the two sockets,
    /// the counters and the log.
    pub(crate) fn spawn(launch: Launch<'_>) -> io::Result<Self> {
        let passed = [
            ("--fd", launch.socket.map(AsFd::as_fd)),
            ("--control-fd", Some(launch.control.as_fd())),
            ("--stats-fd", launch.stats.map(AsFd::as_fd)),
        ];
        let passed = passed
            .into_iter()
            .filter_map(|(flag, fd)| Some((flag, fd?)));
        let (flags, inherited): (Vec<_>, Vec<_>) = passed.unzip();
        let numbers = inherited.iter().map(|fd| fd.as_raw_fd().to_string());
        let numbers: Vec<_> = numbers.collect();
        let mut arguments = vec![launch.model];
        for (flag, number) in flags.into_iter().zip(&numbers) {
            arguments.extend([flag, number]);
        }
        arguments.extend(["--config", launch.config_argument]);
        let arguments: Vec<_> = arguments.into_iter().map(OsStr::new).collect();
        let (child, pidfd) = birth::spawn(&Birth {
            program: launch.program,
            arguments: &arguments,
            output: launch.log.as_fd(),
            inherited: &inherited,
            limits: launch.limits,
            cgroup: launch.cgroup.as_ref().map(AsFd::as_fd),
        })?;
        match fd::watch(pidfd) {
            Ok(pidfd) => Ok(Self {
                pid: child.pid,
                pidfd,
                child: Some(child),
            }),
            Err(error) => {
                // Nobody has waited for it, so that its pid is its own.
                kill(Pid::from_raw(child.pid), Signal::SIGKILL)?;
                birth::wait(&child)?;
                Err(error)
            }
        }
    }

    /// The running process that has this argument on its command line.
    pub(crate) fn search(argument: &str) -> Option<Self> {
        let entries = std::fs::read_dir("/proc").ok()?;
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find_map(|pid| Self::find(pid, argument))
    }

    /// The running process with this pid, if it has this argument on its command line.
    pub(crate) fn find(pid: i32, argument: &str) -> Option<Self> {
        // Open first and look then: what is looked at is what was opened, or the pidfd is of a
        // process that has ended, which its watcher will see.
        let pidfd = fd::pidfd_open(pid).ok()?;
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let found = command_line
            .split(|byte| *byte == 0)
            .any(|it| it == argument.as_bytes());
        if !found {
            return None;
        }
        let pidfd = fd::watch(pidfd).ok()?;
        let child = None;
        Some(Self { pid, pidfd, child })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end of the process. Cancel safe.
    pub(crate) async fn exited(&mut self) -> Exit {
        // An error here is one of the reactor, which ends with the agent.
        let _readable = self.pidfd.readable().await;
        let status = match &self.child {
            Some(child) => birth::wait(child).ok(),
            None => self.told(),
        };
        status.map_or(Exit::Unknown, Exit::from)
    }

    /// How a process ended that is somebody else's child. Whether its parent waits for it, and when, makes no difference.
    fn told(&self) -> Option<ExitStatus> {
        let pidfd = self.pidfd.get_ref().as_fd();
        let zombie = zombie_status(self.pid);
        // Until its parent has waited for it the pid is its own, so that what was read is about it.
        match fd::pidfd_signal(pidfd, None) {
            true => zombie,
            false => fd::pidfd_exit(pidfd).ok().flatten(),
        }
    }

    /// Sends a signal; to a process that has ended it does nothing.
    pub(crate) fn signal(&self, signal: Signal) {
        fd::pidfd_signal(self.pidfd.get_ref().as_fd(), Some(signal));
    }
}

/// How the process with this pid ended, if its parent has not waited for it yet.
fn zombie_status(pid: i32) -> Option<ExitStatus> {
    exit_status(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The status in the text of `/proc/PID/stat`, see proc_pid_stat(5).
fn exit_status(stat: &str) -> Option<ExitStatus> {
    // The name, which is second, may have brackets and blanks itself.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let status = fields.nth(48)?.parse().ok()?;
    (state == "Z").then(|| ExitStatus::from_raw(status))
}

#[cfg(test)]
mod tests {
    use std::os::fd::RawFd;

    use super::*;
    use crate::limits::Limits;

    /// Runs a script that notes its arguments, its session and its open fds, then does as told. It
    /// stands in the place of the model, and a shell in the place of the device program.
    fn spawn(directory: &Path, then: &str) -> (Process, [RawFd; 3]) {
        spawn_limited(directory, then, Limits::default())
    }

    fn spawn_limited(directory: &Path, then: &str, limits: Limits) -> (Process, [RawFd; 3]) {
        let script = directory.join("script");
        let text = format!(
            "echo \"$@\"\necho session $(cut -d' ' -f6 /proc/$$/stat) of $$\n\
             ls -l /proc/$$/fd\n{then}\n"
        );
        std::fs::write(&script, text).unwrap();
        let socket = OwnedFd::from(File::open("/dev/null").unwrap());
        let control = OwnedFd::from(File::open("/dev/null").unwrap());
        let stats = File::open("/dev/null").unwrap();
        let log = File::create(directory.join("log")).unwrap();
        let process = Process::spawn(Launch {
            program: Path::new("/bin/sh"),
            model: script.to_str().unwrap(),
            config_argument: "@/some/file",
            socket: Some(&socket),
            control: &control,
            stats: Some(&stats),
            log,
            limits: limits.of_process(),
            cgroup: None,
        });
        let fds = [socket.as_raw_fd(), control.as_raw_fd(), stats.as_raw_fd()];
        (process.unwrap(), fds)
    }

    #[tokio::test]
    async fn a_process_has_its_session_its_two_sockets_and_its_counters_only() {
        let directory = tempfile::tempdir().unwrap();
        let _secret = File::create(directory.path().join("secret")).unwrap();
        let (mut process, [socket, control, stats]) = spawn(directory.path(), "exit 7");
        let pid = process.pid();
        assert_eq!(process.exited().await, Exit::Code(7));
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(
            lines[0],
            format!("--fd {socket} --control-fd {control} --stats-fd {stats} --config @/some/file")
        );
        assert_eq!(lines[1], format!("session {pid} of {pid}"));
        for passed in [socket, control, stats] {
            assert!(log.contains(&format!(" {passed} -> /dev/null")), "{log}");
        }
        assert!(!log.contains("secret"), "{log}");
    }

    #[tokio::test]
    async fn a_process_has_its_limits_before_it_runs() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            memory_bytes: Some(64 << 20),
            open_files: Some(77),
            ..Limits::default()
        };
        let then = "cat /proc/$$/limits; exit 0";
        let (mut process, _) = spawn_limited(directory.path(), then, limits);
        assert_eq!(process.exited().await, Exit::Code(0));
        let log = std::fs::read_to_string(directory.path().join("log")).unwrap();
        for (name, value) in [
            ("Max open files", "77"),
            ("Max data size", "67108864"),
            ("Max core file size", "0"),
        ] {
            let line = log.lines().find(|line| line.starts_with(name)).unwrap();
            let values: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
            assert_eq!(values, [value; 2], "{line}");
        }
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_argument_and_ends_by_signal() {
        let directory = tempfile::tempdir().unwrap();
        let (mut process, _) = spawn(directory.path(), "while :; do sleep 0.05; done");
        assert!(Process::find(process.pid(), "@/some/other").is_none());
        assert!(Process::search("@/some/third").is_none());
        let mut found = Process::find(process.pid(), "@/some/file").unwrap();
        found.signal(Signal::SIGKILL);
        // Its parent has not waited for it.
        assert_eq!(found.exited().await, Exit::Signal(9));
        assert_eq!(process.exited().await, Exit::Signal(9));
        assert!(Process::find(process.pid(), "@/some/file").is_none());
        process.signal(Signal::SIGKILL);
    }

    /// Whether the kernel tells those who are no parents.
    fn tells_others() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release
            .split(['.', '-'])
            .map_while(|it| it.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }

    #[tokio::test]
    async fn an_end_by_itself_is_told_to_who_is_no_parent() {
        let directory = tempfile::tempdir().unwrap();
        let (mut process, _) = spawn(directory.path(), "read line < $0.go; exit 7");
        let go = directory.path().join("script.go");
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut found = Process::find(process.pid(), "@/some/file").unwrap();
        std::fs::write(&go, "go\n").unwrap();
        assert_eq!(process.exited().await, Exit::Code(7));
        let told = match tells_others() {
            true => Exit::Code(7),
            false => Exit::Unknown,
        };
        assert_eq!(found.exited().await, told);
    }

    #[test]
    fn the_status_of_a_zombie_is_the_last_field() {
        let others = "1 ".repeat(48);
        let stat = |state: &str| format!("7 (a) Z (b) {state} {others}1792\n");
        assert_eq!(exit_status(&stat("Z")), Some(ExitStatus::from_raw(7 << 8)));
        assert_eq!(exit_status(&stat("S")), None);
        for broken in ["", "7 (a)", "7 (a) Z 1 2", "7 (a) Z"] {
            assert_eq!(exit_status(broken), None, "{broken}");
        }
    }

    #[test]
    fn ends_are_told_in_words() {
        let told = |status: i32| Exit::from(ExitStatus::from_raw(status)).to_string();
        assert_eq!(told(78 << 8), "exited with code 78");
        assert_eq!(told(libc::SIGKILL), "was ended by SIGKILL");
        // As wait(2) has it: the highest bit of the signal's byte.
        let core = libc::SIGSEGV | 0x80;
        assert_eq!(told(core), "was ended by SIGSEGV and left a core");
        assert_eq!(Exit::Core(libc::SIGABRT).signal(), Some(libc::SIGABRT));
        assert_eq!(told(40), "was ended by signal 40");
    }
}
