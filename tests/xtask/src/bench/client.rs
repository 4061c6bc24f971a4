//! The client that measures: the same bytes and the same system calls towards every server.
//!
//! Messages are written here by the specification, as bytes, and replies are counted, not parsed: what is compared is the
//! servers, so that the client costs as little as a client can.

use std::{
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use ::tests::command::{check_interrupted, wait_for};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};

/// A REGION_READ request, and its reply with 4 bytes of data.
pub(super) const READ_BYTES: usize = 32;
pub(super) const READ_REPLY_BYTES: usize = 36;
/// A REGION_WRITE request with 4 bytes of data.
const WRITE_BYTES: usize = 36;
/// How many messages arrive at once where several do.
pub(super) const GLUED: usize = 16;
/// How often that is before a reply is waited for, where the messages have none.
const BATCHES: usize = 1024;
/// All that goes to the server until it replies, where messages have no reply.
pub(super) const STRETCH_BYTES: usize = BATCHES * GLUED * WRITE_BYTES + READ_BYTES;

const VERSION: u16 = 1;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const NO_REPLY: u32 = 1 << 4;
/// BAR 0 of the 82540EM: STATUS, which only reports, and FCAL, which only keeps what is written (13.4.2 and 13.4.7).
const STATUS: u64 = 0x8;
const FCAL: u64 = 0x28;
/// The flags and the errno of a reply.
const REPLY: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// How often a spinning client looks at the clock.
const SPINS_PER_LOOK: u32 = 1 << 20;

/// How the client waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Block,
    Spin,
}

/// What one stretch of messages took.
pub(super) struct Stretch {
    /// How long each reply was waited for, sorted; none for messages without reply.
    pub(super) waits_ns: Vec<u64>,
    pub(super) messages: usize,
    pub(super) time: Duration,
}

pub(super) struct Client {
    stream: UnixStream,
    wait: Wait,
    buffer: [u8; 4096],
}

impl Client {
    /// Connects as soon as somebody listens.
    pub(super) fn connect(path: &Path, wait: Wait) -> Result<Self> {
        let stream = wait_for("the server's socket", CONNECT_LIMIT, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        Ok(Self {
            stream,
            wait,
            buffer: [0; 4096],
        })
    }

    /// VERSION, with what every server in the comparison takes.
    pub(super) fn negotiate(&mut self) -> Result<()> {
        let mut payload = vec![0; 4];
        payload.extend(b"{\"capabilities\":{\"max_msg_fds\":8}}\0");
        self.send(&message(VERSION, 0, &payload))?;
        self.receive(16).context("reply to VERSION")?;
        let size = u32::from_le_bytes([
            self.buffer[4],
            self.buffer[5],
            self.buffer[6],
            self.buffer[7],
        ]) as usize;
        ensure!(
            self.buffer[8..16] == REPLY,
            "the server refused the version"
        );
        self.receive(size.checked_sub(16).context("size of the reply")?)
    }

    /// One read, and whether it was answered as a read is.
    pub(super) fn check(&mut self) -> Result<()> {
        self.send(&read_request())?;
        self.receive(READ_REPLY_BYTES)?;
        ensure!(
            self.buffer[8..16] == REPLY && self.buffer[4..8] == 36_u32.to_le_bytes(),
            "the server refused a region read: {:02x?}",
            &self.buffer[..READ_REPLY_BYTES]
        );
        Ok(())
    }

    /// `glued` reads at a time, all answered before the next, for as long as `time` or until it was done so often.
    pub(super) fn reads(&mut self, glued: usize, time: Duration, most: usize) -> Result<Stretch> {
        let request = read_request().repeat(glued);
        let reply_bytes = READ_REPLY_BYTES * glued;
        let mut waits_ns = Vec::with_capacity(1 << 16);
        let started = Instant::now();
        let mut before = started;
        loop {
            self.send(&request)?;
            self.receive(reply_bytes)?;
            let now = Instant::now();
            waits_ns.push((now - before).as_nanos() as u64);
            before = now;
            if now - started >= time || waits_ns.len() >= most {
                break;
            }
        }
        let messages = waits_ns.len() * glued;
        waits_ns.sort_unstable();
        Ok(Stretch {
            waits_ns,
            messages,
            time: before - started,
        })
    }

    /// Posted writes, [`GLUED`] at a time, for as long as `time` or until so many stretches are done. A stretch ends with
    /// a read, whose reply says that all were served.
    pub(super) fn writes(&mut self, time: Duration, most: usize) -> Result<Stretch> {
        let request = write_request().repeat(GLUED);
        let (started, mut messages) = (Instant::now(), 0);
        loop {
            for _ in 0..BATCHES {
                self.send(&request)?;
            }
            self.send(&read_request())?;
            self.receive(READ_REPLY_BYTES)?;
            messages += BATCHES * GLUED;
            if started.elapsed() >= time || messages >= most.saturating_mul(BATCHES * GLUED) {
                break;
            }
        }
        Ok(Stretch {
            waits_ns: Vec::new(),
            messages,
            time: started.elapsed(),
        })
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match send(self.stream.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::EINTR) => check_interrupted()?,
                Err(Errno::EAGAIN) => bail!("the server takes nothing any more"),
                Err(errno) => return Err(errno).context("send to the server"),
            }
        }
        Ok(())
    }

    /// Takes exactly so many bytes.
    fn receive(&mut self, count: usize) -> Result<()> {
        let buffer = self
            .buffer
            .get_mut(..count)
            .context("a reply is larger than it may be")?;
        let flags = match self.wait {
            Wait::Block => MsgFlags::empty(),
            Wait::Spin => MsgFlags::MSG_DONTWAIT,
        };
        let (mut filled, mut spins) = (0, 0_u32);
        let mut began = None;
        while filled < count {
            match recv(self.stream.as_raw_fd(), &mut buffer[filled..], flags) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(received) => filled += received,
                Err(Errno::EINTR) => check_interrupted()?,
                Err(Errno::EAGAIN) if self.wait == Wait::Spin => {
                    std::hint::spin_loop();
                    spins += 1;
                    if spins.is_multiple_of(SPINS_PER_LOOK) {
                        check_interrupted()?;
                        if began.get_or_insert_with(Instant::now).elapsed() > REPLY_LIMIT {
                            bail!("no reply within {REPLY_LIMIT:?}");
                        }
                        spins = 0;
                    }
                }
                Err(Errno::EAGAIN) => bail!("no reply within {REPLY_LIMIT:?}"),
                Err(errno) => return Err(errno).context("receive from the server"),
            }
        }
        Ok(())
    }
}

fn read_request() -> Vec<u8> {
    message(REGION_READ, 0, &access(STATUS))
}

fn write_request() -> Vec<u8> {
    message(
        REGION_WRITE,
        NO_REPLY,
        &[&access(FCAL)[..], &[1, 2, 3, 4]].concat(),
    )
}

/// Offset, region 0, 4 bytes.
fn access(offset: u64) -> Vec<u8> {
    [
        &offset.to_le_bytes()[..],
        &0_u32.to_le_bytes(),
        &4_u32.to_le_bytes(),
    ]
    .concat()
}

/// A command with its header; no reply is told apart by its id.
fn message(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    [
        &1_u16.to_le_bytes()[..],
        &command.to_le_bytes(),
        &size.to_le_bytes(),
        &flags.to_le_bytes(),
        &0_u32.to_le_bytes(),
        payload,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_that_the_limit_is_measured_with() {
        assert_eq!(read_request().len(), READ_BYTES);
        assert_eq!(write_request().len(), WRITE_BYTES);
    }
}
