//! `cargo xtask bench agent`: many devices under one agent, from their creation to their deletion, with the agent killed in
//! between.

mod host;
mod limit;
mod load;
mod report;
mod usage;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ::tests::command::check_interrupted;
use anyhow::{Context, Result};
use clap::Args;

use host::Host;
use load::Times;

/// How long nothing is done while the processor time of doing nothing is measured.
const IDLE: Duration = Duration::from_secs(10);
/// What follows a burst of work, such as bookkeeping that was put off, is not idleness.
const SETTLE: Duration = Duration::from_secs(3);
/// Creations by one caller.
const ALONE: usize = 200;
const LISTS: usize = 50;
const LIMITS: usize = 50;

#[derive(Args)]
pub(crate) struct Agent {
    /// How many devices
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=4096))]
    devices: u16,
    /// How many callers create them together
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    callers: u16,
    /// How often all of it is done
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a target is missed
    #[arg(long)]
    assert: bool,
    /// This program is a release build already.
    #[arg(long, hide = true)]
    pub(super) built: bool,
}

/// What one round came to.
#[derive(Debug, Default)]
struct Round {
    record: Times,
    process: Times,
    create_alone: Times,
    delete_alone: Times,
    create_together: Times,
    delete_together: Times,
    list: Times,
    adoption: Duration,
    /// Processor time over time, of the agent and of all devices.
    idle_agent: f64,
    idle_devices: f64,
    agent_memory: usage::Memory,
    /// The mean of all devices, and the largest private memory of one.
    device_private: f64,
    device_private_most: f64,
    device_proportional: f64,
}

pub(super) fn run(options: &Agent) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let mut rounds = Vec::new();
    for index in 0..options.rounds {
        eprint!("\rround {} of {} ", index + 1, options.rounds);
        rounds.push(runtime.block_on(round(options))?);
    }
    eprintln!();
    let figures = report::figures(&rounds);
    report::print(options, &figures);
    if let Some(path) = &options.json {
        super::write_json(path, &report::json(options, &figures))?;
    }
    report::judge(&figures, options.assert)
}

async fn round(options: &Agent) -> Result<Round> {
    let mut host = Host::start()?;
    measure(options, &mut host)
        .await
        .with_context(|| format!("the agent's log ends with:\n{}", host.log()))
}

async fn measure(options: &Agent, host: &mut Host) -> Result<Round> {
    let mut round = Round::default();
    for _ in 0..LIMITS {
        round.record.each.push(limit::record(host.dir())?);
        round.process.each.push(limit::process()?);
    }

    let few = ids("one", ALONE);
    round.create_alone = load::create(host, &few, 1).await?;
    round.delete_alone = load::delete(host, &few, 1).await?;

    let many = ids("many", options.devices.into());
    let callers = options.callers.into();
    round.create_together = load::create(host, &many, callers).await?;
    let mut client = load::caller(host).await?;
    let devices = load::list(&mut client).await?;
    for _ in 0..LISTS {
        let begun = Instant::now();
        load::list(&mut client).await?;
        round.list.each.push(begun.elapsed());
    }
    drop(client);

    let pids: Vec<u32> = devices.iter().map(load::process).collect::<Result<_>>()?;
    wait(SETTLE)?;
    (round.idle_agent, round.idle_devices) = idle(host.agent_pid()?, &pids)?;
    round.agent_memory = usage::memory(host.agent_pid()?)?;
    for pid in &pids {
        let memory = usage::memory(*pid)?;
        let count = pids.len() as f64;
        round.device_private += memory.private as f64 / count;
        round.device_proportional += memory.proportional as f64 / count;
        round.device_private_most = round.device_private_most.max(memory.private as f64);
    }

    host.kill_agent()?;
    let begun = host.start_agent()?;
    round.adoption = load::adopted(host, begun, &devices).await?;
    round.delete_together = load::delete(host, &many, callers).await?;
    Ok(round)
}

/// How much of a processor the agent and all devices use while nobody asks for anything.
fn idle(agent: u32, devices: &[u32]) -> Result<(f64, f64)> {
    let used = || -> Result<(Duration, Duration)> {
        let of_devices = devices.iter().map(|pid| usage::processor_time(*pid));
        let of_devices = of_devices.sum::<Result<Duration>>()?;
        Ok((usage::processor_time(agent)?, of_devices))
    };
    let begun = Instant::now();
    let before = used()?;
    wait(IDLE)?;
    let after = used()?;
    let taken = begun.elapsed().as_secs_f64();
    let share = |before: Duration, after: Duration| (after - before).as_secs_f64() / taken;
    Ok((share(before.0, after.0), share(before.1, after.1)))
}

/// Sleeps, but not through an interruption.
fn wait(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check_interrupted()?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|index| format!("{prefix}-{index:04}"))
        .collect()
}
