//! Who waits for everybody else while the loop sleeps where the client's next request arrives.
//!
//! A request that comes alone is served soonest by a loop that sleeps in recvmsg itself: to sleep in epoll and then to receive
//! makes it a fifth slower. While nobody but the client has had anything to say for a while, the loop does that, and the
//! sentry, a thread, sleeps in epoll in its place. It touches nothing of what it sees there. It rings: by a signal, which
//! ends recvmsg. A signal that comes just before recvmsg ends nothing, and so it rings until the loop is up.
//!
//! It rings also when nothing has happened for [`WATCH_MS`]: what the loop has put off meanwhile, so that it costs a request
//! nothing, it then does. It lies down again when the client sends something, so that an idle device is woken once.
//!
//! ```text
//!            the loop lies down           something is ready, or WATCH_MS  the loop is up
//!   resting ---------------------> watching ---------------------> ringing ---------------> resting
//!                                     |          the loop is up                               ^
//!                                     +-------------------------------------------------------+
//! ```

#![expect(unsafe_code, reason = "a signal handler is installed")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use nix::{
    libc::{c_int, c_uint, close_range},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        epoll::Epoll,
        pthread::{Pthread, pthread_kill, pthread_self},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
};

const RESTING: u8 = 0;
const WATCHING: u8 = 1;
const RINGING: u8 = 2;

/// How long it lets the loop sleep.
const WATCH_MS: u16 = 100;
const BELL: Signal = Signal::SIGUSR1;
/// How soon it rings again, the first time; then half as often each time.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(10);
/// It calls little.
const STACK_BYTES: usize = 64 << 10;

/// The thread, as the loop sees it.
pub(super) struct Sentry {
    state: Arc<AtomicU8>,
    thread: Thread,
}

impl Sentry {
    /// One that rests, and rings for the thread that calls this when a descriptor in the epoll `watched` is ready.
    pub(super) fn new(watched: Arc<Epoll>) -> io::Result<Self> {
        // Without SA_RESTART: a call that sleeps is to end.
        let action = SigAction::new(
            SigHandler::Handler(answer_the_bell),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing, which is always safe.
        unsafe { sigaction(BELL, &action) }?;
        let state = Arc::new(AtomicU8::new(RESTING));
        let shared = Arc::clone(&state);
        let sleeper = pthread_self();
        let handle = thread::Builder::new()
            .name("sentry".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                keep_only(watched.0.as_fd());
                stand(&shared, watched.0.as_fd(), sleeper);
            })?;
        Ok(Self {
            state,
            thread: handle.thread().clone(),
        })
    }

    /// From now on the sentry rings when something is ready.
    pub(super) fn watch(&self) {
        self.state.store(WATCHING, Ordering::Release);
        self.thread.unpark();
    }

    pub(super) fn is_ringing(&self) -> bool {
        self.state.load(Ordering::Acquire) == RINGING
    }

    /// The loop is up.
    pub(super) fn rest(&self) {
        if self.state.swap(RESTING, Ordering::AcqRel) == RINGING {
            self.thread.unpark();
        }
    }
}

extern "C" fn answer_the_bell(_: c_int) {}

/// Gives this thread descriptors of its own, and of those it keeps one. A process whose threads share them pays for that in
/// every system call.
fn keep_only(kept: BorrowedFd<'_>) {
    // Where it can't be had, they stay shared, which costs a little time.
    if unshare(CloneFlags::CLONE_FILES).is_ok() {
        let kept = kept.as_raw_fd().cast_unsigned();
        for (first, last) in [(0, kept.wrapping_sub(1)), (kept + 1, c_uint::MAX)] {
            if first <= last && last != kept {
                // SAFETY: this thread uses none of them, and no other thread has them.
                unsafe { close_range(first, last, 0) };
            }
        }
    }
}

/// The sentry's life, which ends with the process.
fn stand(state: &AtomicU8, watched: BorrowedFd<'_>, sleeper: Pthread) {
    loop {
        while state.load(Ordering::Acquire) != WATCHING {
            thread::park();
        }
        let mut fds = [PollFd::new(watched, PollFlags::POLLIN)];
        // It may be interrupted, or come back when nobody sleeps any more: then the next look at the state puts that right.
        let is_over = poll(&mut fds, PollTimeout::from(WATCH_MS)).is_ok();
        let (ordering, failed) = (Ordering::AcqRel, Ordering::Acquire);
        if !is_over
            || state
                .compare_exchange(WATCHING, RINGING, ordering, failed)
                .is_err()
        {
            continue;
        }
        let mut pause = FIRST_PAUSE;
        while state.load(Ordering::Acquire) == RINGING {
            // It fails for a thread that has ended, and the process with it.
            let _ = pthread_kill(sleeper, BELL);
            thread::park_timeout(pause);
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}
