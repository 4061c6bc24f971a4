//! `cargo xtask bench`: how fast it is, beside what it could be and what others are.
//!
//! Figures of one run are compared with figures of the same run only. The servers take turns, a tenth of a second each,
//! over many rounds, so that whatever else the machine does hits all of them alike; what is shown are medians over the
//! rounds, and ratios are taken within a round first.

mod agent;
mod bound;
mod client;
mod e1000;
mod process;
mod protocol;
mod report;
mod rounds;
pub(crate) mod server;

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::{cargo, step};

/// Niceness would not do: the kernel weighs it within one session only.
const REAL_TIME: [&str; 3] = ["chrt", "--fifo", "10"];

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Messages between a client and a server: this project's, the published crate vfio_user's, and a bare socket's
    ///
    /// Client and server are two processes, pinned to one core and then to two. A region read of 4 bytes with its reply is
    /// measured alone, with spinning client and server, and 16 at a time; posted writes of 4 bytes arrive 16 at a time.
    /// Columns: p50 and p99 of the time from request to reply (16 replies, where 16 are asked for); messages per
    /// second; the server's processor time and system calls per message; and the ratio of p50 (or of messages per
    /// second) to the bare socket's. Takes one minute, three at most, besides the time to build a release. Where it may, it
    /// runs with a real-time priority, so that other programs wait meanwhile.
    Protocol(Protocol),
    /// Frames through `vfu-device e1000`, each way, over every backend that can be measured
    ///
    /// A driver with rings in shared memory sends and receives over the vfio-user socket: doorbells are posted writes, and
    /// it waits for nothing but the interrupt's eventfd. Driver and peer have one core, the server the other. Columns:
    /// frames and bits per second; the server's processor time for a million frames; its system calls per frame; frames
    /// for each interrupt; frames that the peer sent and the guest did not receive; and p50 and p99 where it is one frame
    /// at a time. Limits are what the host does with the same frames on the server's core. TAPs are in a network
    /// namespace of their own (needs root). Takes two minutes besides the time to build a release.
    E1000(e1000::E1000),
    /// A thousand devices under one agent: created, listed, left alone, adopted after the agent was killed, deleted
    ///
    /// The devices are e1000 with the `null` backend. One caller creates 200 and deletes them; many callers create all;
    /// the list is read 50 times; for ten seconds nothing is done, and what agent and devices use of a processor is
    /// measured, and their memory; the agent is killed and started again, and has adopted them when each is READY with
    /// the process that it had. Limits are what the host takes for a record on the disk and for a process. Takes some
    /// forty seconds a round besides the time to build a release.
    Agent(agent::Agent),
}

#[derive(Args)]
pub(crate) struct Protocol {
    /// How often each server has its turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only these [default: all]
    #[arg(long, value_enum, value_name = "NAME")]
    workload: Vec<protocol::Workload>,
    /// Only on so many cores [default: both]
    #[arg(long, value_enum, value_name = "NUMBER")]
    cores: Option<protocol::Cores>,
    /// Do not count system calls (strace is needed for it)
    #[arg(long)]
    skip_system_calls: bool,
    /// Write the figures to a file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a target is missed
    #[arg(long)]
    assert: bool,
    /// This program is a release build already.
    #[arg(long, hide = true)]
    built: bool,
    /// This program has a real-time priority.
    #[arg(long, hide = true)]
    real_time: bool,
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let is_built = match bench {
        Bench::Protocol(options) => options.built,
        Bench::E1000(options) => options.built,
        Bench::Agent(options) => options.built,
    };
    if !is_built {
        // Under the agent many processes share the processors, and with a priority none would.
        let wants_real_time = !matches!(bench, Bench::Agent(_));
        return Err(build_and_become_release(wants_real_time)?);
    }
    crate::stop_by_signal()?;
    match bench {
        Bench::Protocol(options) => run_protocol(options),
        Bench::E1000(options) => e1000::run(options),
        Bench::Agent(options) => agent::run(options),
    }
}

fn run_protocol(options: &Protocol) -> Result<()> {
    let outcome = protocol::run(options)?;
    report::print(&outcome);
    if let Some(path) = &options.json {
        write_json(path, &report::json(&outcome))?;
    }
    report::judge(&outcome, options.assert)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// What is measured is a release build; this program is one for development.
fn build_and_become_release(wants_real_time: bool) -> Result<anyhow::Error> {
    let packages = ["-p", "xtask", "-p", "process", "-p", "agent"];
    step(cargo()?.args(["build", "--release"]).args(packages))?;
    let here = std::env::current_exe()?;
    let target = here.ancestors().nth(2).context("cargo's target folder")?;
    let program = target.join("release").join("xtask");
    let arguments = std::env::args_os().skip(1);
    let mut command = if wants_real_time && may_be_real_time() {
        let mut command = Command::new(REAL_TIME[0]);
        command.args(&REAL_TIME[1..]).arg(&program);
        command.args(arguments).arg("--real-time");
        command
    } else {
        let mut command = Command::new(&program);
        command.args(arguments);
        command
    };
    let failed = command.arg("--built").exec();
    Ok(anyhow::Error::new(failed).context(format!("start {}", program.display())))
}

fn may_be_real_time() -> bool {
    let tried = Command::new(REAL_TIME[0])
        .args(&REAL_TIME[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}
