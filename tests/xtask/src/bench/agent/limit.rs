//! What the host itself takes for the two things a creation can't do without: a record on the disk, and a process.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const RECORD_BYTES: usize = 1024;

/// Writes a record into a file in this directory and waits until the disk has it.
pub(super) fn record(directory: &Path) -> Result<Duration> {
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(directory.join("limit"))?;
    let begun = Instant::now();
    file.write_all(&[b'x'; RECORD_BYTES])?;
    file.sync_data()?;
    Ok(begun.elapsed())
}

/// Starts the device program and waits until it has said its version and ended.
pub(super) fn process() -> Result<Duration> {
    let here = std::env::current_exe()?;
    let program = here.with_file_name("vfu-device");
    let begun = Instant::now();
    let status = Command::new(&program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("start {}", program.display()))?;
    let taken = begun.elapsed();
    if !status.success() {
        bail!("{} --version: {status}", program.display());
    }
    Ok(taken)
}
