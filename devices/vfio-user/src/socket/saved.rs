//! What has arrived and what is to leave, as values and descriptors. A process that takes them over may trust neither.

use std::{collections::VecDeque, os::fd::OwnedFd};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{
    Inbox, Outbox,
    inbox::{HEADER_BYTES, MAX_WAITING_FDS},
    raw::FDS_PER_PACKET,
};

/// More than the largest reply, and what may wait before it.
const MAX_OUTBOX_BYTES: usize = 32 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedInbox {
    /// In base64.
    bytes: String,
    /// Where in the bytes the headers are whose messages were too large.
    refused: VecDeque<usize>,
    /// Bytes to drop before the next message.
    skip: usize,
    /// For each descriptor, which of the bytes is the last that came with it.
    fds: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedOutbox {
    /// In base64.
    bytes: String,
    /// Where in the bytes a message begins that takes descriptors along, and how many.
    fds: Vec<(usize, usize)>,
}

impl Inbox {
    /// Appends to `fds` what [`Inbox::restore`] wants.
    pub(crate) fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedInbox> {
        let start = self.filled.start;
        for (_, fd) in &self.fds {
            fds.push(fd.try_clone()?);
        }
        Ok(SavedInbox {
            bytes: BASE64_STANDARD.encode(&self.buffer[self.filled.clone()]),
            refused: self.refused.iter().map(|at| at - start).collect(),
            skip: self.skip,
            fds: self.fds.iter().map(|(last, _)| last - start).collect(),
        })
    }

    /// Fills an empty inbox. Of whole messages only [`Inbox::has_next`] tells: no socket does again.
    ///
    /// # Errors
    /// `EINVAL` for what no inbox can hold.
    pub(crate) fn restore(
        &mut self,
        mut saved: SavedInbox,
        fds: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<(), Errno> {
        let bytes = decode(&saved.bytes, self.buffer.len())?;
        if saved.fds.len() > MAX_WAITING_FDS
            || !saved.fds.is_sorted()
            || saved.fds.last().is_some_and(|last| *last >= bytes.len())
            || u32::try_from(saved.skip).is_err()
        {
            return Err(Errno::EINVAL);
        }
        self.buffer[..bytes.len()].copy_from_slice(&bytes);
        self.filled = 0..bytes.len();
        self.skip = saved.skip;
        for last in saved.fds {
            let fd = fds.next().ok_or(Errno::EINVAL)?;
            self.fds.push_back((last, fd));
        }
        loop {
            if saved.refused.front() != Some(&self.scanned) {
                // Bytes that are no message end the session where they are reached.
                match self.scan() {
                    Ok(true) => continue,
                    Ok(false) | Err(_) => break,
                }
            }
            // Behind such a header there is another message, or nothing yet.
            let body = self.scanned + HEADER_BYTES;
            if body > self.filled.end
                || self.header(self.scanned).size_bytes as usize <= self.max_message_bytes
            {
                return Err(Errno::EINVAL);
            }
            self.refused.extend(saved.refused.pop_front());
            self.scanned = body;
        }
        if saved.refused.is_empty() {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }
}

impl Outbox {
    /// Appends to `fds` what [`Outbox::restore`] wants.
    pub(crate) fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedOutbox> {
        let mut saved = SavedOutbox {
            bytes: BASE64_STANDARD.encode(&self.bytes[self.sent..]),
            fds: Vec::new(),
        };
        for (at, along) in &self.fds {
            saved.fds.push((at - self.sent, along.len()));
            for fd in along {
                fds.push(fd.try_clone()?);
            }
        }
        Ok(saved)
    }

    /// Puts together what [`Outbox::save`] took apart.
    ///
    /// # Errors
    /// `EINVAL` for what no outbox can hold.
    pub(crate) fn restore(
        saved: &SavedOutbox,
        fds: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<Self, Errno> {
        let bytes = decode(&saved.bytes, MAX_OUTBOX_BYTES)?;
        let mut outbox = Self {
            bytes,
            ..Self::default()
        };
        let mut free = 0;
        for &(at, count) in &saved.fds {
            let along: Vec<_> = fds.take(count.min(FDS_PER_PACKET)).collect();
            if at < free || at >= outbox.bytes.len() || count == 0 || along.len() < count {
                return Err(Errno::EINVAL);
            }
            outbox.fds.push_back((at, along));
            free = at + 1;
        }
        Ok(outbox)
    }
}

fn decode(text: &str, max_bytes: usize) -> Result<Vec<u8>, Errno> {
    // Longer text is not decoded.
    if text.len() / 4 > max_bytes / 3 + 1 {
        return Err(Errno::EINVAL);
    }
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| Errno::EINVAL)?;
    if bytes.len() > max_bytes {
        return Err(Errno::EINVAL);
    }
    Ok(bytes)
}
