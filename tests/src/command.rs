//! Running other programs: a failure says what was run and what it printed.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

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

/// How long a program may take that nobody gave another limit: downloads are among them.
const RUN_LIMIT: Duration = Duration::from_secs(15 * 60);

/// How a program ended and what it printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Whether a socket with a timeout has only let the time pass, or a signal came: the wait may go on.
pub(crate) fn is_pause(error: &io::Error) -> bool {
    [
        ErrorKind::WouldBlock,
        ErrorKind::TimedOut,
        ErrorKind::Interrupted,
    ]
    .contains(&error.kind())
}

/// Runs a command to its end and returns its stdout; anything but success is an error with what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command, RUN_LIMIT)?;
    if !output.status.success() {
        let printed = [output.stdout.trim_end(), output.stderr.trim_end()].join("\n");
        bail!("{command:?}: {}\n{}", output.status, printed.trim());
    }
    Ok(output.stdout)
}

/// Runs a command to its end, however that is; kills it when `limit` is over.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // Both are read while it runs, so that a full pipe can't stop it.
        let stdout = scope.spawn(|| text(stdout));
        let stderr = scope.spawn(|| text(stderr));
        let ended = wait_for(&format!("the end of {command:?}"), limit, || {
            Ok(child.try_wait()?)
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let [stdout, stderr] = [stdout, stderr].map(|reader| {
            reader
                .join()
                .map_err(|_| anyhow!("the reader of a pipe panicked"))
        });
        let (stdout, stderr) = (stdout?, stderr?);
        match ended {
            Ok(status) => Ok(Output {
                status,
                stdout,
                stderr,
            }),
            Err(error) => Err(anyhow!("{error:#}\n{stdout}{stderr}")),
        }
    })
}

fn text(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    // A pipe that breaks ends the text.
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
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
        thread::sleep(Duration::from_millis(5));
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
