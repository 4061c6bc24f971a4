//! `cargo xtask fuzz`: cargo-fuzz with the targets of `tests/fuzz`, within a time and within the target folder.
//!
//! Inputs that reach something new are collected in the target folder, and the next run goes on from there. Those kept in
//! `tests/fuzz/corpus` are read and never changed: libFuzzer's `-merge=1` chooses from the others what is worth it.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use tests::command::run as run_command;

use crate::step;

/// Far more than any input needs.
const MEMORY_MIB: u32 = 1024;

#[derive(Args)]
pub(crate) struct Fuzz {
    /// What is fuzzed [default: all, one after the other]
    #[arg(value_enum)]
    target: Vec<Target>,
    /// For how long, each
    #[arg(long, value_name = "NUMBER", default_value_t = 60)]
    seconds: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// Bytes on the socket, with descriptors
    Socket,
    /// Sequences of messages
    Messages,
    /// Configuration space and registers of a model
    Configuration,
    /// DMA maps and accesses
    Dma,
}

pub(crate) fn run(options: &Fuzz) -> Result<()> {
    let needed = "cargo-fuzz and a nightly compiler are needed: rustup toolchain install nightly && \
                  cargo install --locked cargo-fuzz";
    run_command(Command::new("cargo").args(["+nightly", "fuzz", "--version"])).context(needed)?;
    let root = crate::root()?;
    let here = std::env::current_exe()?;
    let target_dir = here.ancestors().nth(2).context("cargo's target folder")?;
    let targets = if options.target.is_empty() {
        Target::value_variants()
    } else {
        &options.target
    };
    let mut failed = Vec::new();
    for target in targets {
        let name = target.to_possible_value().context("a target's name")?;
        let name = name.get_name();
        eprintln!("\n=== {name}, {} s", options.seconds);
        if let Err(error) = fuzz(name, options.seconds, &root, &target_dir.join("fuzz")) {
            eprintln!("{error:#}");
            failed.push(name.to_owned());
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn fuzz(name: &str, seconds: u32, root: &Path, work: &Path) -> Result<()> {
    let (found, failures) = (work.join("corpus").join(name), work.join("failures"));
    for folder in [&found, &failures] {
        std::fs::create_dir_all(folder)?;
    }
    step(
        Command::new("cargo")
            .current_dir(root.join("tests/fuzz"))
            .args(["+nightly", "fuzz", "run", "--fuzz-dir", ".", "--target-dir"])
            .arg(work)
            .arg(name)
            .arg(found)
            .arg(root.join("tests/fuzz/corpus").join(name))
            .arg("--")
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-artifact_prefix={}/{name}-", failures.display())),
    )
}
