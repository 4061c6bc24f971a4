//! `cargo xtask`: what cargo alone can't do, each with all its set-up.

mod bench;
mod check;
mod demo;
mod fuzz;
mod setup;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tests::command::INTERRUPTED;

/// Set-up, demonstration, tests and measurements of vfu
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The main job from end to end: a Linux guest uses an e1000 that vfuctl created (needs root)
    Demo,
    /// Every check and test, with all that they need
    Test,
    /// Only the set-up: a QEMU and a guest in the cache folder, missing programs on the host
    Setup,
    /// A QEMU that serves its own devices over vfio-user, into the cache folder: about ten minutes the first time. Prints
    /// where it is
    QemuServer,
    /// Measurements, beside what they are to be compared with
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Hostile input, with cargo-fuzz and a nightly compiler
    Fuzz(fuzz::Fuzz),
    /// A server that is measured.
    #[command(hide = true)]
    BenchServer(bench::server::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Demo => demo::run(),
        Task::Test => check::run(),
        Task::Setup => setup::run().map(|_| ()),
        Task::QemuServer => setup::qemu_server(),
        Task::Bench(bench) => bench::run(&bench),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::BenchServer(args) => bench::server::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With all causes in one line, and without a backtrace: it is the user's to mend.
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// From here on Ctrl-C and SIGTERM let every wait fail, so that the fixtures are dropped and clean up. The second one
/// ends the program at once.
fn stop_by_signal() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("\ninterrupted: cleaning up");
        }
    });
    Ok(())
}

/// The workspace's folder.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .ancestors()
        .nth(2)
        .context("the workspace around tests/xtask")?
        .to_owned())
}

/// The cargo that runs this program.
fn cargo() -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()?);
    Ok(command)
}

/// Runs a step whose output the user sees.
fn step(command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    eprintln!("({:.0} s)", started.elapsed().as_secs_f64());
    Ok(())
}

/// A command as a person types it.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
