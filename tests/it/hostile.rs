//! A `vfu-device` under a client that sends messages without sense, quickly and for long.

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peer_vfio_user::Client;
use tests::{Device, command};

use crate::{
    device::{drive, open_files},
    driver::{self, e1000_with_peer},
};

/// Messages in one session, and in one write.
const SESSION: usize = 10_000;
const GLUED: usize = 50;
const LIMIT: Duration = Duration::from_secs(10);
/// What the allocator, the log and the kernel's accounts may differ by.
const GROWTH_BYTES: u64 = 4 << 20;

/// xorshift64*: enough to be everywhere, and the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    /// A word as the structures of the protocol have them: sizes, flags, indexes, pages.
    fn word(&mut self) -> u32 {
        match self.below(8) {
            0 | 1 => 0,
            2 => self.below(10) as u32,
            3 => 16 + 8 * self.below(6) as u32,
            4 => 1 << self.below(32),
            5 => 0x1000 * self.below(64) as u32,
            6 => 4,
            _ => self.next() as u32,
        }
    }

    /// A whole message.
    fn message(&mut self, bytes: &mut Vec<u8>) {
        let len = match self.below(64) {
            0 => self.below(5000),
            1 => self.below(20),
            _ => 4 * self.below(14),
        };
        // 1 to 18 are the commands; DMA_READ and DMA_WRITE among them are the server's to send.
        let command = self.below(20) as u16;
        // A reply, a request without reply, an error: seldom.
        let flags = [0, 0, 0, 0, 0x10, 0x1, 0x21, 0xffff_ffe0][self.below(8) as usize];
        bytes.extend((self.next() as u16).to_le_bytes());
        bytes.extend(command.to_le_bytes());
        bytes.extend((16 + len as u32).to_le_bytes());
        bytes.extend(u32::to_le_bytes(flags));
        bytes.extend([0; 4]);
        let end = bytes.len() + len as usize;
        while bytes.len() < end {
            bytes.extend(self.word().to_le_bytes());
        }
        bytes.truncate(end);
    }
}

/// One session. It may end early, when something is sent that is not to be forgiven; returns how many messages were sent.
fn session(device: &Device, random: &mut Random, messages: usize, fds: &[RawFd]) -> usize {
    let connected = command::wait_for("a session", LIMIT, || {
        let mut stream = UnixStream::connect(device.socket())?;
        stream.set_read_timeout(Some(LIMIT))?;
        // VERSION 0.1, without more.
        let version = [7, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        if stream.write_all(&version).is_err() {
            return Ok(None);
        }
        Ok(stream.read_exact(&mut [0; 20]).ok().map(|()| stream))
    });
    let stream = connected.unwrap();
    let mut replies = stream.try_clone().unwrap();
    // Whether it ends or breaks is the same here.
    let reader = std::thread::spawn(move || drop(io::copy(&mut replies, &mut io::sink())));
    let mut bytes = Vec::new();
    let mut sent_messages = 0;
    while sent_messages < messages {
        sent_messages += GLUED;
        bytes.clear();
        for _ in 0..GLUED {
            random.message(&mut bytes);
        }
        let count = random.below(1 + fds.len() as u64) as usize;
        let rights = [ControlMessage::ScmRights(&fds[..count])];
        let rights = if count > 0 { &rights[..] } else { &[] };
        let iov = [IoSlice::new(&bytes)];
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &iov,
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        let rest = sent.ok().and_then(|sent| bytes.get(sent..));
        if rest.is_none_or(|rest| (&stream).write_all(rest).is_err()) {
            break;
        }
    }
    // What the device has not read is served before it finds the end.
    stream.shutdown(std::net::Shutdown::Write).unwrap_or(());
    reader.join().unwrap();
    sent_messages
}

fn abuse(device: &Device, random: &mut Random, messages: usize) {
    let file: File = driver::memory();
    let eventfd = driver::eventfd();
    let fds = [file.as_raw_fd(), eventfd.as_fd().as_raw_fd()];
    let mut left = messages;
    while left > 0 {
        let sent = session(device, random, left.min(SESSION), &fds);
        left = left.saturating_sub(sent);
    }
}

/// Memory of the device's that is resident.
fn resident_bytes(device: &Device) -> u64 {
    let path = format!("/proc/{}/status", device.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

/// 100 000 of them, or as many as `VFU_HOSTILE_MESSAGES` says.
#[test]
fn memory_is_what_it_was_after_many_hostile_messages() {
    let count = std::env::var("VFU_HOSTILE_MESSAGES");
    let count = count.map_or(100_000, |count| count.parse().unwrap());
    let (device, mut peer) = e1000_with_peer();
    let mut random = Random(7);
    // What is there once: buffers, and what the allocator keeps.
    abuse(&device, &mut random, 2 * SESSION);
    // A session that was served shows that those before are over.
    drop(Client::new(&device.socket()));
    let (files, before) = (open_files(&device), resident_bytes(&device));
    abuse(&device, &mut random, count);
    let gone = command::wait_for("descriptors to be closed", LIMIT, || {
        Ok((open_files(&device) <= files).then_some(()))
    });
    gone.unwrap();
    let after = resident_bytes(&device);
    println!("{count} messages: {before} bytes resident before, {after} after");
    assert!(after < before + GROWTH_BYTES, "{before} -> {after}");
    drive(&device).exchange(&mut peer);
    assert!(device.stop().unwrap().success());
}
