//! QMP, as much of it as tests use: one command, one answer; events in between are passed over.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::lines::Lines;
use crate::command;

/// How long QEMU may take for an answer: its main loop can be busy with a device that answers slowly.
const LIMIT: Duration = Duration::from_secs(20);

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Lines,
}

impl Qmp {
    /// Connects to the socket that a QEMU which is starting will make, and negotiates.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let stream = command::wait_for("QEMU's monitor socket", LIMIT, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        let mut qmp = Self {
            lines: Lines::new(stream)?,
        };
        let greeting = qmp.message()?;
        if greeting.get("QMP").is_none() {
            bail!("no QMP greeting: {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returned.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        // In one piece: QEMU acts on the closing brace, and one that quits does not take the end of the line any more.
        self.lines
            .stream()
            .write_all(format!("{request}\n").as_bytes())
            .with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let mut answer = self.message()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {request}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let deadline = Instant::now() + LIMIT;
        let line = self
            .lines
            .next(deadline)?
            .context("QEMU's monitor: no answer")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line}"))
    }
}
