//! QMP, as much of it as tests use: one command, one answer; the last events in between are kept.

use std::collections::VecDeque;
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
/// How many events are kept until somebody asks for them.
const EVENTS: usize = 256;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Lines,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to the socket that a QEMU which is starting will make, and negotiates.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let stream = command::wait_for("QEMU's monitor socket", LIMIT, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        let mut qmp = Self {
            lines: Lines::new(stream)?,
            events: VecDeque::new(),
        };
        let greeting = qmp.answer()?;
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
            let mut answer = self.answer()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {request}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Takes the first event of this name, which may have come already; `None` if there is none in time.
    pub(super) fn event(&mut self, name: &str, limit: Duration) -> Result<Option<Value>> {
        let deadline = Instant::now() + limit;
        loop {
            let mut events = self.events.iter();
            if let Some(index) = events.position(|event| event["event"] == name) {
                return Ok(self.events.remove(index));
            }
            if let Some(message) = self.message(deadline)? {
                self.keep(message);
            } else {
                return Ok(None);
            }
        }
    }

    /// The next message that is no event.
    fn answer(&mut self) -> Result<Value> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let message = self.message(deadline)?;
            let message = message.context("QEMU's monitor: no answer")?;
            match message.get("event") {
                Some(_) => self.keep(message),
                None => return Ok(message),
            }
        }
    }

    fn keep(&mut self, event: Value) {
        self.events.push_back(event);
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    fn message(&mut self, deadline: Instant) -> Result<Option<Value>> {
        let line = self.lines.next(deadline)?;
        let parse = |line: String| {
            serde_json::from_str(&line).with_context(|| format!("QEMU's monitor said {line}"))
        };
        line.map(parse).transpose()
    }
}
