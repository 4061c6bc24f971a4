//! Lines from a socket, with a deadline.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command;

/// How long one read waits at most, so that an interruption is noticed.
const SLICE: Duration = Duration::from_millis(200);

/// A socket that is read by lines.
#[derive(Debug)]
pub(super) struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// The socket, to write to.
    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// The next whole line without its end; `None` if there is none before the deadline.
    pub(super) fn next(&mut self, deadline: Instant) -> Result<Option<String>> {
        let mut chunk = [0; 16 << 10];
        let mut searched = 0;
        loop {
            if let Some(found) = self.buffer[searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line: Vec<u8> = self.buffer.drain(..=searched + found).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim().to_owned()));
            }
            searched = self.buffer.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            command::check_interrupted()?;
            self.stream.set_read_timeout(Some(left.min(SLICE)))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the other end closed the connection"),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if command::is_pause(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
