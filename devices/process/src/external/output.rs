//! What a program writes, which is in the log that this process writes to as well.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::launch::{Launch, Readiness};
use crate::failure::Failure;

/// How much of the output is searched at once.
const OUTPUT_BYTES: usize = 64 << 10;

/// What the program writes, which is in the log that this process writes to as well.
pub(super) struct Output {
    log: File,
    offset: u64,
    /// The end of what was searched, which may be the beginning of what is searched for.
    rest: Vec<u8>,
}

impl Output {
    pub(super) fn new(launch: &Launch) -> Result<Option<Self>, Failure> {
        if !matches!(launch.readiness, Readiness::Line(_)) {
            return Ok(None);
        }
        let open = || -> io::Result<Self> {
            let log = File::open("/proc/self/fd/2")?;
            if !log.metadata()?.is_file() {
                return Err(io::Error::other(
                    "not a file, which can be read as it is written",
                ));
            }
            let (offset, rest) = (log.metadata()?.len(), Vec::new());
            Ok(Self { log, offset, rest })
        };
        let opened = open();
        opened
            .map(Some)
            .map_err(|error| Failure::invalid(format!("standard error: {error}")))
    }

    /// Whether the text has been written since.
    pub(super) fn has(&mut self, text: &str) -> io::Result<bool> {
        let mut chunk = vec![0; OUTPUT_BYTES];
        let len = self.log.read_at(&mut chunk, self.offset)?;
        self.offset += len as u64;
        self.rest.extend_from_slice(&chunk[..len]);
        let text = text.as_bytes();
        if self.rest.windows(text.len()).any(|it| it == text) {
            return Ok(true);
        }
        let done = self.rest.len().saturating_sub(text.len());
        self.rest.drain(..done);
        Ok(false)
    }
}
