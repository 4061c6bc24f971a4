//! What a device's process may use, as its caller set it.
//!
//! Memory and open files are resource limits of the process (setrlimit), so that they hold wherever an agent runs. Memory
//! is RLIMIT_DATA: the private pages that the process can write to, whether it has touched them or not. A cgroup's memory
//! is something else: the kernel charges a page of the guest's memory to whoever touches it first, and a disk that reads
//! into it would be killed for what is the guest's. Processor time has no such limit and takes a cgroup.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use serde::{Deserialize, Serialize};

use crate::schema::Violation;

/// A device program that does nothing yet needs less.
const MIN_MEMORY_BYTES: u64 = 4 << 20;
/// The same, with a client.
const MIN_OPEN_FILES: u32 = 32;
/// More than a process of the kernel's can have unless it is told otherwise (fs.nr_open).
const MAX_OPEN_FILES: u32 = 1 << 20;
/// The kernel takes 1 ms at least, of a period of 100 ms.
const MIN_CPU_MILLIS: u32 = 10;
/// A thousand processors.
const MAX_CPU_MILLIS: u32 = 1_000_000;
/// It is shortened by whole blocks of a file system.
pub(crate) const MIN_LOG_BYTES: u64 = 64 << 10;
/// What a host's memory file system should hold of one device.
pub(crate) const MAX_LOG_BYTES: u64 = 1 << 30;

/// Files that a process may have open when nothing else is said.
const DEFAULT_OPEN_FILES: rlim_t = 4096;

/// What a device's process may use. `None` is without a limit of the device's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_millis: Option<u32>,
    pub(crate) open_files: Option<u32>,
    pub(crate) log_bytes: Option<u64>,
}

/// One of the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Limit {
    Memory(Option<u64>),
    Cpu(Option<u32>),
    OpenFiles(Option<u32>),
    Log(Option<u64>),
}

impl Limit {
    /// The limit of this name in the API.
    pub(crate) fn named(name: &str, limits: Limits) -> Option<Self> {
        match name {
            "memory_bytes" => Some(Self::Memory(limits.memory_bytes)),
            "cpu_millis" => Some(Self::Cpu(limits.cpu_millis)),
            "open_files" => Some(Self::OpenFiles(limits.open_files)),
            "log_bytes" => Some(Self::Log(limits.log_bytes)),
            _ => None,
        }
    }

    /// Puts it among the others.
    pub(crate) fn set(self, limits: &mut Limits) {
        match self {
            Self::Memory(it) => limits.memory_bytes = it,
            Self::Cpu(it) => limits.cpu_millis = it,
            Self::OpenFiles(it) => limits.open_files = it,
            Self::Log(it) => limits.log_bytes = it,
        }
    }
}

impl Limits {
    /// Every limit that is too small to work with, or too large to mean anything.
    pub(crate) fn check(&self, bad: &mut Vec<Violation>) {
        let mut check = |field: &str, value: Option<u64>, min: u64, max: u64| {
            if let Some(value) = value.filter(|it| !(min..=max).contains(it)) {
                let field = format!("device.spec.limits.{field}");
                let why = format!("{value} is not from {min} to {max}; 0 is without a limit");
                bad.push(Violation::new(field, why));
            }
        };
        check("memory_bytes", self.memory_bytes, MIN_MEMORY_BYTES, 1 << 50);
        let (min, max) = (MIN_CPU_MILLIS.into(), MAX_CPU_MILLIS.into());
        check("cpu_millis", self.cpu_millis.map(u64::from), min, max);
        let (min, max) = (MIN_OPEN_FILES.into(), MAX_OPEN_FILES.into());
        check("open_files", self.open_files.map(u64::from), min, max);
        check("log_bytes", self.log_bytes, MIN_LOG_BYTES, MAX_LOG_BYTES);
    }

    /// Which limit may have ended a process that left these words.
    pub(crate) fn cause(&self, signal: Option<i32>, log: &str) -> Option<String> {
        let says = |words: &[&str]| words.iter().any(|it| log.contains(it));
        let violent = [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS].map(Some);
        let memory = says(&[
            "memory allocation of",
            "memory exhausted",
            "Cannot allocate memory",
            "ENOMEM",
        ]);
        let files = says(&["Too many open files", "EMFILE"]);
        match (self.memory_bytes, self.open_files) {
            (Some(bytes), _) if memory || violent.contains(&signal) => Some(format!(
                "its limits.memory_bytes of {bytes} may be too little"
            )),
            (_, Some(count)) if files => {
                Some(format!("its limits.open_files of {count} may be too few"))
            }
            _ => None,
        }
    }

    /// The resource limits of a process, in the order in which they are to be set.
    pub(crate) fn of_process(&self) -> Resources {
        let files = open_files_of_agent();
        let files = self
            .open_files
            .map_or(DEFAULT_OPEN_FILES.min(files), rlim_t::from);
        Resources([
            (Resource::RLIMIT_NOFILE, Some(files)),
            // What a core would have in it is a guest's. A handler that core_pattern pipes to gets it all the same.
            (Resource::RLIMIT_CORE, Some(0)),
            (Resource::RLIMIT_DATA, self.memory_bytes),
        ])
    }
}

/// Resource limits, soft and hard alike; `None` is as the agent's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resources(pub(crate) [(Resource, Option<rlim_t>); 3]);

/// Lets the agent have as many files open as it may: each device takes some.
pub(crate) fn raise_open_files() {
    let hard = open_files_of_agent();
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        tracing::warn!(%error, hard, "open files stay as limited as they are");
    }
}

/// How many files this process could have open, and so the most that one of its devices can.
pub(crate) fn open_files_of_agent() -> rlim_t {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(DEFAULT_OPEN_FILES, |(_, hard)| hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(limits: Limits) -> Vec<String> {
        let mut bad = Vec::new();
        limits.check(&mut bad);
        bad.into_iter().map(|it| it.field).collect()
    }

    #[test]
    fn what_is_too_small_or_too_large_is_refused_by_name() {
        assert_eq!(refused(Limits::default()), [""; 0]);
        let least = Limits {
            memory_bytes: Some(MIN_MEMORY_BYTES),
            cpu_millis: Some(MIN_CPU_MILLIS),
            open_files: Some(MIN_OPEN_FILES),
            log_bytes: Some(MIN_LOG_BYTES),
        };
        assert_eq!(refused(least), [""; 0]);
        let less = Limits {
            memory_bytes: Some(1),
            cpu_millis: Some(1),
            open_files: Some(1),
            log_bytes: Some(1),
        };
        let all = ["memory_bytes", "cpu_millis", "open_files", "log_bytes"];
        let all = all.map(|it| format!("device.spec.limits.{it}"));
        assert_eq!(refused(less), all);
        let more = Limits {
            memory_bytes: Some(u64::MAX),
            cpu_millis: Some(u32::MAX),
            open_files: Some(u32::MAX),
            log_bytes: Some(u64::MAX),
        };
        assert_eq!(refused(more), all);
    }

    #[test]
    fn a_limit_that_may_have_ended_a_process_is_named() {
        let limits = Limits {
            memory_bytes: Some(5 << 20),
            open_files: Some(33),
            ..Limits::default()
        };
        let cause = |signal, log| limits.cause(signal, log).unwrap_or_default();
        let failed = "memory allocation of 4096 bytes failed";
        assert!(cause(Some(libc::SIGABRT), failed).contains("memory_bytes of 5242880"));
        assert!(cause(None, "e: Too many open files (os error 24)").contains("open_files of 33"));
        assert_eq!(cause(Some(libc::SIGKILL), ""), "");
        assert_eq!(Limits::default().cause(Some(libc::SIGABRT), failed), None);
    }

    #[test]
    fn a_record_from_before_there_were_limits_has_none() {
        let limits: Limits = serde_json::from_str("{}").unwrap();
        assert_eq!(limits, Limits::default());
    }
}
