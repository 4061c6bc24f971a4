//! A server's process: started, put on a processor, watched, ended.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use ::tests::command::{self, wait_for};
use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

const STRACE_LIMIT: Duration = Duration::from_secs(20);

/// A process that is killed when it is dropped.
pub(super) struct Process {
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts this program again, with a hidden command.
    pub(super) fn start(args: &[String], log: PathBuf) -> Result<Self> {
        let output = File::create(&log).context("make a server's log")?;
        let child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .context("start a server")?;
        let pid = Pid::from_raw(child.id().try_into()?);
        Ok(Self { child, pid, log })
    }

    /// What it printed, for an error message.
    pub(super) fn log(&self) -> String {
        command::tail(&self.log, 10)
    }

    /// Lets it run on one processor only.
    pub(super) fn pin(&self, processor: usize) -> Result<()> {
        pin(self.pid, processor)
    }

    /// Processor time that it has used so far.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let clock = ClockId::pid_cpu_clock_id(self.pid).context("clock of a server")?;
        Ok(clock_gettime(clock)
            .context("processor time of a server")?
            .into())
    }

    /// How many system calls it makes while `work` is done.
    pub(super) fn system_calls(&self, work: impl FnOnce() -> Result<()>) -> Result<u64> {
        self.tracer().system_calls(work)
    }

    /// What counts its system calls, for work that needs this value.
    pub(super) fn tracer(&self) -> Tracer {
        Tracer {
            pid: self.pid,
            output: self.log.with_extension("strace"),
        }
    }
}

/// Counts a process's system calls.
pub(super) struct Tracer {
    pid: Pid,
    output: PathBuf,
}

impl Tracer {
    /// How many the process makes while `work` is done.
    pub(super) fn system_calls(&self, work: impl FnOnce() -> Result<()>) -> Result<u64> {
        let output = &self.output;
        let mut strace = Command::new("strace")
            .args(["-f", "-c", "-p", &self.pid.to_string(), "-o"])
            .arg(output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start strace")?;
        let traced = wait_for("strace to attach", STRACE_LIMIT, || {
            if let Some(status) = strace.try_wait()? {
                bail!("strace ended: {status}");
            }
            tracer(self.pid)
        });
        let worked = traced.and_then(|()| work());
        // It ends in any case; asked by this signal, it lets the process go on and prints what it has counted.
        let asked = kill(Pid::from_raw(strace.id().try_into()?), Signal::SIGINT);
        let ended = command::wait_to_the_end("strace to end", STRACE_LIMIT, || {
            Ok(strace.try_wait()?.map(|_| ()))
        });
        if ended.is_err() {
            strace.kill()?;
            strace.wait()?;
        }
        worked?;
        asked.context("end strace")?;
        ended?;
        let text = fs::read_to_string(output).context("read what strace counted")?;
        total_calls(&text).with_context(|| format!("strace printed no total:\n{text}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill, and waiting only reaps it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The column "calls" of the line "total".
fn total_calls(text: &str) -> Option<u64> {
    let line = text.lines().rfind(|line| line.ends_with(" total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// Whether somebody traces the process.
fn tracer(pid: Pid) -> Result<Option<()>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))
        .map(str::trim);
    Ok((tracer != Some("0")).then_some(()))
}

/// Lets this process run on one processor only.
pub(super) fn pin_self(processor: usize) -> Result<()> {
    pin(Pid::from_raw(0), processor)
}

fn pin(pid: Pid, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(pid, &set).with_context(|| format!("use processor {processor} only"))
}

/// The processors that this process may use: the first, and the next that is another core, or at least another.
pub(super) fn processors() -> Result<(usize, Option<usize>)> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask for the processors")?;
    let mut all = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    let first = all.next().context("no processor")?;
    let others: Vec<usize> = all.collect();
    let siblings = siblings(first);
    let second = others.iter().find(|cpu| siblings != self::siblings(**cpu));
    Ok((first, second.or(others.first()).copied()))
}

/// Which processors share a core with this one; nothing where the kernel does not tell.
pub(super) fn siblings(processor: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
    fs::read_to_string(Path::new(&path)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_of_strace_is_found_with_and_without_errors() {
        let head = "% time     seconds  usecs/call     calls    errors syscall\n";
        let with = format!("{head}100.00    0.001000           1      4002         1 total\n");
        let without = format!("{head}100.00    0.001000           1       400           total\n");
        assert_eq!(total_calls(&with), Some(4002));
        assert_eq!(total_calls(&without), Some(400));
        assert_eq!(total_calls(head), None);
    }
}
