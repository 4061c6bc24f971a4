//! The station at the other end of the device's backend: it takes what the device sends, and sends what the device is to
//! receive.
//!
//! Its threads share the driver's processor, and have their turn whenever the driver sleeps or yields. They end with the
//! program.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use ::tests::command::check_interrupted;
use anyhow::{Context, Result, bail};
use nix::sched::sched_yield;

use super::{driver::Source, frame::Size, tap::HEADER_BYTES};

/// Frames that are sent at once.
const BATCH: u64 = 64;
/// What is taken at once.
const TAKEN_BYTES: usize = 256 << 10;
/// How long frames may be on their way to the peer after the device has reported them sent.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);
const UNKNOWN: u64 = u64::MAX;
/// The length before each frame on a stream.
const PREFIX_BYTES: usize = 4;

/// Waits for the device that connects to the other end of its stream.
pub(super) fn accept(listener: &UnixListener) -> Result<(Taker, Giver)> {
    let (stream, _) = listener.accept().context("wait for the device's stream")?;
    let giver = Giver::start(Outlet::Stream(stream.try_clone()?))?;
    Ok((Taker::start(stream)?, giver))
}

/// A frame as it lies on a stream.
pub(super) fn record(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

/// Takes and counts what arrives on a stream.
pub(super) struct Taker {
    state: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    bytes: u64,
    /// What arrives again and again; nothing where it differs.
    record: Vec<u8>,
    /// Why no more is taken.
    problem: Option<String>,
}

impl Taker {
    pub(super) fn start(stream: UnixStream) -> Result<Self> {
        let state = Arc::new(Mutex::new(Taken::default()));
        let shared = Arc::clone(&state);
        thread::Builder::new()
            .name("taker".to_owned())
            .spawn(move || take(stream, &shared))
            .context("start a thread")?;
        Ok(Self { state })
    }

    /// From now on packets of this size are to come.
    pub(super) fn expect(&self, size: Size) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let record = match size {
            // Segments have their own sequence numbers.
            Size::Segments => Vec::new(),
            _ => record(&size.frame()),
        };
        *state = Taken {
            record,
            ..Taken::default()
        };
    }

    /// Waits until so many packets of this size have arrived.
    pub(super) fn wait(&self, size: Size, packets: u64) -> Result<()> {
        let (frames, bytes) = size.on_the_wire();
        let expected = packets * (bytes + frames * PREFIX_BYTES as u64);
        let limit = Instant::now() + ARRIVAL_LIMIT;
        loop {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(problem) = &state.problem {
                bail!("the peer: {problem}");
            }
            if state.bytes == expected {
                return Ok(());
            }
            if state.bytes > expected || Instant::now() > limit {
                bail!("of {expected} bytes {} arrived", state.bytes);
            }
            drop(state);
            check_interrupted()?;
            sched_yield()?;
        }
    }
}

fn take(mut stream: UnixStream, state: &Mutex<Taken>) {
    let mut buffer = vec![0; TAKEN_BYTES];
    loop {
        let taken = stream.read(&mut buffer);
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match taken {
            Ok(0) => return,
            Ok(count) => {
                // The first bytes of each chunk say whether it is still what it is to be.
                if !state.record.is_empty() {
                    let at = state.bytes as usize % state.record.len();
                    let same = state.record[at..].iter().zip(&buffer[..count]);
                    if !same.into_iter().all(|(ours, theirs)| ours == theirs) {
                        state.problem = Some("what arrived is not what was sent".to_owned());
                    }
                }
                state.bytes += count as u64;
            }
            Err(error) => {
                state.problem = Some(error.to_string());
                return;
            }
        }
    }
}

/// Sends frames when it is told to.
pub(super) struct Giver {
    orders: mpsc::Sender<Order>,
    outlet: Arc<Outlet>,
    thread: Thread,
    shared: Arc<Shared>,
    is_lossy: bool,
}

#[derive(Default)]
struct Shared {
    /// How many frames the driver has given buffers for.
    granted: AtomicU64,
    total: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Shared {
    /// Waits until there are buffers for more than the frames `sent`, and says for how many.
    fn wait_for_grant(&self, sent: u64) -> Result<u64> {
        loop {
            let granted = self.granted.load(Ordering::SeqCst) - sent;
            if granted > 0 {
                return Ok(granted);
            }
            check_interrupted()?;
            thread::park_timeout(ARRIVAL_LIMIT);
        }
    }
}

/// Frames of this size for so long, or until there were so many.
pub(super) struct Order {
    pub(super) size: Size,
    pub(super) time: Duration,
    pub(super) most: u64,
    /// No more than the driver has given buffers for.
    pub(super) has_window: bool,
}

pub(super) enum Outlet {
    Stream(UnixStream),
    /// An interface in the same bridge as the device's.
    Tap(File),
}

impl Giver {
    pub(super) fn start(outlet: Outlet) -> Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        let shared = Arc::new(Shared::default());
        let is_lossy = matches!(outlet, Outlet::Tap(_));
        let outlet = Arc::new(outlet);
        let (theirs, outlet_of_theirs) = (Arc::clone(&shared), Arc::clone(&outlet));
        let thread = thread::Builder::new()
            .name("giver".to_owned())
            .spawn(move || {
                for order in queue {
                    if let Err(error) = outlet_of_theirs.give(&order, &theirs) {
                        let problem = theirs.problem.lock();
                        *problem.unwrap_or_else(PoisonError::into_inner) =
                            Some(format!("{error:#}"));
                    }
                }
            })
            .context("start a thread")?;
        Ok(Self {
            orders,
            outlet,
            thread: thread.thread().clone(),
            shared,
            is_lossy,
        })
    }

    /// Before a driver begins: nothing is granted, and nothing known.
    pub(super) fn prepare(&self) {
        self.shared.granted.store(0, Ordering::SeqCst);
        self.shared.total.store(UNKNOWN, Ordering::SeqCst);
    }

    pub(super) fn order(&self, order: Order) -> Result<()> {
        self.orders.send(order).context("the peer's thread is gone")
    }

    /// A frame as it leaves.
    pub(super) fn record(&self, size: Size) -> Vec<u8> {
        self.outlet.record(size)
    }

    /// Sends one frame from this thread.
    pub(super) fn give_one(&self, record: &[u8]) -> Result<()> {
        self.outlet.write(record)
    }

    /// Why it could not send.
    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.shared.problem.lock();
        problem.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for Giver {
    fn grant(&self, buffers: u64) {
        self.shared.granted.fetch_add(buffers, Ordering::SeqCst);
        self.thread.unpark();
    }

    fn total(&self) -> Option<u64> {
        let total = self.shared.total.load(Ordering::SeqCst);
        (total != UNKNOWN).then_some(total)
    }

    fn is_lossy(&self) -> bool {
        self.is_lossy
    }
}

impl Outlet {
    fn record(&self, size: Size) -> Vec<u8> {
        let frame = size.arriving_frame();
        match self {
            Self::Stream(_) => record(&frame),
            // Without any offload.
            Self::Tap(_) => [&[0; HEADER_BYTES][..], &frame].concat(),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stream(stream) => (&*stream).write_all(bytes).context("send to the device"),
            Self::Tap(file) => (&*file).write_all(bytes).context("write to a TAP"),
        }
    }

    fn give(&self, order: &Order, shared: &Shared) -> Result<()> {
        let record = self.record(order.size);
        let batch = record.repeat(BATCH as usize);
        let (started, mut sent) = (Instant::now(), 0);
        loop {
            let mut count = BATCH.min(order.most - sent);
            if order.has_window {
                count = count.min(shared.wait_for_grant(sent)?);
            }
            let is_last = sent + count == order.most || started.elapsed() >= order.time;
            if is_last {
                // The driver has to know before it waits for the last interrupt.
                shared.total.store(sent + count, Ordering::SeqCst);
            }
            let bytes = &batch[..count as usize * record.len()];
            match self {
                Self::Stream(_) => self.write(bytes)?,
                Self::Tap(_) => {
                    for record in bytes.chunks(record.len()) {
                        self.write(record)?;
                    }
                }
            }
            sent += count;
            if is_last {
                return Ok(());
            }
            sched_yield()?;
        }
    }
}
