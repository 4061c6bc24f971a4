//! What no device can be faster than, on the server's processor: copying, writing to the backend, and waking the driver.

use std::{
    fs::File,
    hint::black_box,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{
    frame::Size,
    peer::{self, Taker},
    tap,
};
use crate::bench::process;

/// Frames in memory, as many as a ring has.
const FRAMES: usize = 256;
/// Frames written to a socket at once.
const BATCH: usize = 64;
/// Bytes of a doorbell.
const DOORBELL_BYTES: usize = 36;

/// How many frames were done in which time.
pub(super) struct Done {
    pub(super) frames: u64,
    pub(super) time: Duration,
}

/// Runs `work` on another processor.
fn on<T: Send>(processor: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            process::pin_self(processor)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

/// Calls `round`, which does so many frames, until the time is over.
fn repeat(time: Duration, frames: usize, mut round: impl FnMut() -> Result<()>) -> Result<Done> {
    let (started, mut done) = (Instant::now(), 0);
    loop {
        round()?;
        done += frames as u64;
        let elapsed = started.elapsed();
        if elapsed >= time {
            return Ok(Done {
                frames: done,
                time: elapsed,
            });
        }
    }
}

/// Copies each frame to another place, once.
pub(super) fn copy(processor: usize, size: Size, time: Duration) -> Result<Done> {
    on(processor, || {
        let frame = size.frame();
        let count = if size == Size::Segments { 1 } else { FRAMES };
        let from = frame.repeat(count);
        let mut to = vec![0; from.len()];
        repeat(time, count, || {
            for (to, from) in to.chunks_mut(frame.len()).zip(from.chunks(frame.len())) {
                to.copy_from_slice(black_box(from));
            }
            black_box(&mut to);
            Ok(())
        })
    })
}

/// Writes frames to a UNIX stream socket, many at once, whose other end takes them on this processor.
pub(super) fn socket(processor: usize, size: Size, time: Duration) -> Result<Done> {
    let (mut ours, theirs) = UnixStream::pair().context("make a socket pair")?;
    let taker = Taker::start(theirs)?;
    taker.expect(size);
    let (frames, bytes) = size.on_the_wire();
    let frames_at_once = BATCH.div_ceil(frames as usize) * frames as usize;
    let record = peer::record(&vec![0; (bytes / frames) as usize]);
    let record = if size == Size::Segments {
        record
    } else {
        peer::record(&size.frame())
    };
    let batch = record.repeat(frames_at_once);
    let packets = frames_at_once / frames as usize;
    let started = Instant::now();
    let done = on(processor, || {
        repeat(time, packets, || {
            ours.write_all(&batch).context("write to a socket")
        })
    })?;
    taker.wait(size, done.frames)?;
    Ok(Done {
        time: started.elapsed(),
        ..done
    })
}

/// Writes frames to a TAP, one by one, as it has to be.
pub(super) fn tap(processor: usize, mut tap: &File, size: Size, time: Duration) -> Result<Done> {
    let record = tap::record(size);
    on(processor, || {
        let count = if size == Size::Segments { 1 } else { FRAMES };
        let all = record.repeat(count);
        repeat(time, count, || {
            for record in all.chunks(record.len()) {
                tap.write_all(record).context("write to a TAP")?;
            }
            Ok(())
        })
    })
}

/// From a message's leaving to the eventfd that its receiver signals. Returns how long that was each time.
pub(super) fn interrupt(processor: usize, count: usize) -> Result<Vec<u64>> {
    let (mut ours, mut theirs) = UnixStream::pair().context("make a socket pair")?;
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let interrupt = EventFd::from_flags(flags).context("make an eventfd")?;
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            process::pin_self(processor)?;
            let mut doorbell = [0; DOORBELL_BYTES];
            while theirs.read(&mut doorbell)? > 0 {
                interrupt.write(1)?;
            }
            Ok(())
        });
        let mut waits = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            ours.write_all(&[0; DOORBELL_BYTES])?;
            while interrupt.read().is_err() {
                let mut fds = [PollFd::new(interrupt.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE)?;
            }
            waits.push(began.elapsed().as_nanos() as u64);
        }
        drop(ours);
        server.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok(waits)
    })
}
