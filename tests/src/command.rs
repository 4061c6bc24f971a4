//! Running other programs: a failure says what was run and what it printed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Set by a program that was told to stop: then every wait ends with an error, and the fixtures clean up as they are
/// dropped.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// An error once [`INTERRUPTED`] is set.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Runs a command to its end and returns its stdout; anything but success is an error with its stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            [stdout.trim_end(), stderr.trim_end()].join("\n").trim()
        );
    }
    Ok(stdout)
}

/// Where a program is, by `PATH` and the system folders that an unprivileged `PATH` lacks.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Asks `condition` until it has an answer; says `what` was awaited when `limit` is over. An interruption ends it.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    wait_to_the_end(what, limit, || {
        check_interrupted()?;
        condition()
    })
}

/// The same, but for cleaning up: an interruption does not end it.
pub fn wait_to_the_end<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = condition()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The last lines of a log, for an error message; a log that can't be read is said to be so.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(no log: {error})"),
    }
}
