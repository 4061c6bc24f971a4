//! `cargo xtask bench e1000`: frames through `vfu-device e1000`, beside what the host's kernel does with the same frames.

mod driver;
mod frame;
mod limit;
mod memory;
mod peer;
mod plan;
mod report;
mod servers;
mod tap;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use ::tests::command::check_interrupted;
use anyhow::{Context, Result};
use clap::Args;

use super::{process, rounds};
use driver::Source;
use frame::Size;
use peer::Order;
use plan::{Backend, Line, Work};
use servers::{Servers, Station};

/// How long a turn is.
const TURN: Duration = Duration::from_millis(120);
/// No round begins later than this.
const LAST_ROUND: Duration = Duration::from_secs(120);
/// How many times are measured in a turn.
const LATENCIES: usize = 1000;
/// So many are not: caches and the scheduler get used to the new work.
const WARM_UP: usize = 50;
/// Frames that are sent while system calls are counted.
const COUNTED: u64 = 4096;
/// Only frames that are announced so many at a time are counted.
const COUNTED_DOORBELL: u64 = 64;

#[derive(Args)]
pub(crate) struct E1000 {
    /// How often each has its turn
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only these works [default: all]
    #[arg(long, value_enum, value_name = "NAME")]
    work: Vec<Work>,
    /// Only these backends [default: all]
    #[arg(long, value_enum, value_name = "NAME")]
    backend: Vec<Backend>,
    /// Only these sizes [default: all]
    #[arg(long, value_enum, value_name = "BYTES")]
    size: Vec<Size>,
    /// Only a doorbell every so many frames [default: 1, 16 and 64]
    #[arg(long, value_name = "FRAMES")]
    doorbell: Vec<u64>,
    /// Descriptors of each ring, 256 to 4096 by eights. A read of ICR waits until the device has done what was announced
    /// before, so that in a short ring it is often idle
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = ring)]
    ring: u64,
    /// Do not count system calls (strace is needed for it)
    #[arg(long)]
    skip_system_calls: bool,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Fail when a target is missed
    #[arg(long)]
    pub(super) assert: bool,
    /// This program is a release build already.
    #[arg(long, hide = true)]
    pub(super) built: bool,
    /// This program has a real-time priority.
    #[arg(long, hide = true)]
    real_time: bool,
}

/// TDLEN and RDLEN count by eight descriptors; here 64 are announced at a time.
fn ring(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(count) if (256..=4096).contains(&count) && count % 8 == 0 => Ok(count),
        _ => Err("256 to 4096, a multiple of 8".to_owned()),
    }
}

/// What was measured.
struct Outcome {
    lines: Vec<Line>,
    /// What could not be measured, and why.
    skipped: Vec<String>,
    rounds: u16,
    real_time: bool,
    ring: u64,
    /// Whether driver and server had a processor each.
    has_two_cores: bool,
}

/// One turn's.
#[derive(Default)]
struct Figures {
    /// What the driver handed over or received, or what a limit did.
    frames: u64,
    seconds: f64,
    /// The server's.
    processor_seconds: f64,
    /// Times, in works that have them.
    p50_ns: Option<f64>,
    p99_ns: Option<f64>,
    /// Frames that were sent to the device and not received.
    lost: u64,
    interrupts: u64,
    lost_interrupts: u64,
}

/// The processors that take part: the driver's and its peer's, and the server's.
#[derive(Clone, Copy)]
struct Processors {
    driver: usize,
    server: usize,
}

pub(super) fn run(options: &E1000) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("vfu-bench-").tempdir()?;
    let (first, second) = process::processors()?;
    let processors = Processors {
        driver: first,
        server: second.unwrap_or(first),
    };
    // Threads that are started from here on share it.
    process::pin_self(processors.driver)?;
    let mut skipped = Vec::new();
    let mut lines = plan::plan(options);
    let place = servers::Place {
        processor: processors.server,
        ring: options.ring,
    };
    let mut servers = Servers::start(&lines, folder.path(), place, &mut skipped)?;
    lines.retain(|line| servers.has(line));
    let rounds = rounds::measure(options.rounds, LAST_ROUND, &mut skipped, |_| {
        for line in &mut lines {
            check_interrupted()?;
            let figures = turn(line, &mut servers, processors, TURN, u64::MAX);
            let figures = figures
                .with_context(|| format!("{}\n{}", report::name(line), servers.log(line)))?;
            line.rounds.push(figures);
        }
        Ok(())
    })?;
    rounds::count_calls(options.skip_system_calls, &mut skipped, || {
        count_calls(&mut lines, &mut servers, processors)
    })?;
    let outcome = Outcome {
        lines,
        skipped,
        rounds,
        real_time: options.real_time,
        ring: options.ring,
        has_two_cores: second.is_some(),
    };
    report::print(&outcome);
    if let Some(path) = &options.json {
        super::write_json(path, &report::json(&outcome))?;
    }
    report::judge(&outcome, options.assert)
}

/// Measures one line, for so long or until there were `most` frames.
fn turn(
    line: &Line,
    servers: &mut Servers,
    processors: Processors,
    time: Duration,
    most: u64,
) -> Result<Figures> {
    let on = processors.server;
    match line.work {
        Work::Copy => limit::copy(on, line.size, time).map(Figures::from),
        Work::Socket => limit::socket(on, line.size, time).map(Figures::from),
        Work::Tap => limit::tap(on, servers.raw_tap()?, line.size, time).map(Figures::from),
        Work::Wake => limit::interrupt(on, WARM_UP + LATENCIES).map(|waits| times(&waits)),
        Work::Send | Work::Receive | Work::ReceiveWindow | Work::SendOne | Work::ReceiveOne => {
            let station = servers.station(line)?;
            let before = station.process.processor_time()?;
            let interrupts = station.driver.interrupts;
            let lost_interrupts = station.driver.lost_interrupts;
            let figures = through_device(line, station, time, most)?;
            let processor = station.process.processor_time()?.saturating_sub(before);
            Ok(Figures {
                processor_seconds: processor.as_secs_f64(),
                interrupts: station.driver.interrupts - interrupts,
                lost_interrupts: station.driver.lost_interrupts - lost_interrupts,
                ..figures
            })
        }
    }
}

fn through_device(
    line: &Line,
    station: &mut Station,
    time: Duration,
    most: u64,
) -> Result<Figures> {
    let Station {
        driver,
        taker,
        giver,
        ..
    } = station;
    match line.work {
        Work::SendOne => {
            let waits = driver.latencies_of_sending(WARM_UP + LATENCIES)?;
            Ok(times(&waits))
        }
        Work::ReceiveOne => {
            let giver = giver.as_ref().context("a peer that sends")?;
            let record = giver.record(line.size);
            let waits =
                driver.latencies_of_receiving(WARM_UP + LATENCIES, || giver.give_one(&record))?;
            Ok(times(&waits))
        }
        Work::Send => {
            if let Some(taker) = taker {
                taker.expect(line.size);
            }
            let started = Instant::now();
            let frames = driver.send(line.size, line.doorbell, time, most)?;
            if let Some(taker) = taker {
                taker.wait(line.size, frames)?;
            }
            Ok(Figures {
                frames,
                seconds: started.elapsed().as_secs_f64(),
                ..Figures::default()
            })
        }
        _ => {
            let giver = giver.as_ref().context("a peer that sends")?;
            let order = Order {
                size: line.size,
                time,
                most,
                has_window: line.work == Work::ReceiveWindow,
            };
            giver.prepare();
            let mut started = Instant::now();
            let received = driver.receive(giver, line.doorbell, || {
                started = Instant::now();
                giver.order(order)
            });
            let seconds = started.elapsed().as_secs_f64();
            let received = match giver.problem() {
                Some(problem) => received.context(format!("the peer: {problem}"))?,
                None => received?,
            };
            let total = giver.total().unwrap_or(received);
            Ok(Figures {
                frames: received,
                seconds,
                lost: total.saturating_sub(received),
                ..Figures::default()
            })
        }
    }
}

/// What a turn of single frames comes to.
fn times(waits_ns: &[u64]) -> Figures {
    let mut sorted = waits_ns.get(WARM_UP..).unwrap_or_default().to_vec();
    sorted.sort_unstable();
    let percentile = |percent: usize| {
        let last = sorted.len().checked_sub(1)?;
        sorted.get(last * percent / 100).map(|ns| *ns as f64)
    };
    Figures {
        frames: waits_ns.len() as u64,
        p50_ns: percentile(50),
        p99_ns: percentile(99),
        ..Figures::default()
    }
}

impl From<limit::Done> for Figures {
    fn from(done: limit::Done) -> Self {
        Self {
            frames: done.frames,
            seconds: done.time.as_secs_f64(),
            ..Self::default()
        }
    }
}

/// In a pass of its own, because whoever is traced is slow.
fn count_calls(lines: &mut [Line], servers: &mut Servers, processors: Processors) -> Result<()> {
    for line in lines {
        let is_counted = matches!(line.work, Work::Send | Work::ReceiveWindow)
            && line.doorbell == COUNTED_DOORBELL;
        if !is_counted {
            continue;
        }
        check_interrupted()?;
        let tracer = servers.station(line)?.process.tracer();
        let most = match line.size {
            Size::Segments => COUNTED / 16,
            _ => COUNTED,
        };
        let mut frames = 0;
        let calls = tracer.system_calls(|| {
            frames = turn(line, servers, processors, Duration::MAX, most)?.frames;
            Ok(())
        })?;
        line.calls = Some(calls as f64 / frames as f64);
    }
    Ok(())
}
