//! What processes use, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use nix::{
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// Memory of one process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Pages that no other process has.
    pub(super) private: u64,
    /// Its share of all pages that it has.
    pub(super) proportional: u64,
    pub(super) resident: u64,
}

/// The memory of a process.
pub(super) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse(&text).with_context(|| format!("{path} has not the lines that are known:\n{text}"))
}

fn parse(text: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        private: bytes("Private_Clean:")? + bytes("Private_Dirty:")?,
        proportional: bytes("Pss:")?,
        resident: bytes("Rss:")?,
    })
}

/// Processor time that a process has used so far.
pub(super) fn processor_time(pid: u32) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?))
        .with_context(|| format!("clock of process {pid}"))?;
    let time = clock_gettime(clock).with_context(|| format!("processor time of {pid}"))?;
    Ok(time.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rollup_is_read() {
        let text = "5580-7ffd ---p 00000000 00:00 0    [rollup]\nRss:    1500 kB\nPss:  700 kB\n\
                    Pss_Dirty: 1 kB\nPrivate_Clean:  20 kB\nPrivate_Dirty: 300 kB\n";
        let expected = Memory {
            private: 320 * 1024,
            proportional: 700 * 1024,
            resident: 1500 * 1024,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("Rss: 1 kB\n"), None);
        assert!(memory(std::process::id()).unwrap().private > 0);
        assert!(processor_time(std::process::id()).unwrap() > Duration::ZERO);
    }
}
