//! `cargo xtask test`: the checks of CI, one after the other, and a summary. All of them run, whatever fails.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tests::QemuServer;
use tests::published::CARGO_DENY;
use tests::require;

use crate::{cargo, setup, shown, step};

enum Outcome {
    Passed,
    Failed,
    /// Why it could not be tried.
    Skipped(String),
}

pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    setup::run()?;
    let mut checks = Checks::default();

    checks.cargo(&["fmt", "--all", "--check"])?;
    // A workspace of its own, which only a nightly compiler builds.
    checks.cargo(&[
        "fmt",
        "--manifest-path",
        "tests/fuzz/Cargo.toml",
        "--",
        "--check",
    ])?;
    checks.cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    // The tests start the programs, which cargo does not build for tests of another package.
    checks.cargo(&["build", "--workspace"])?;
    checks.tests()?;
    let mut doc = cargo()?;
    doc.args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-D warnings");
    checks.check(&mut doc);
    checks.deny()?;

    checks.summary(started.elapsed())
}

#[derive(Default)]
struct Checks {
    done: Vec<(String, Outcome, Duration)>,
}

impl Checks {
    fn cargo(&mut self, args: &[&str]) -> Result<()> {
        self.check(cargo()?.args(args));
        Ok(())
    }

    fn check(&mut self, command: &mut Command) {
        let started = Instant::now();
        let name = shown(command);
        eprintln!("\n=== {name}");
        let outcome = match step(command) {
            Ok(()) => Outcome::Passed,
            Err(error) => {
                eprintln!("{error:#}");
                Outcome::Failed
            }
        };
        self.done.push((name, outcome, started.elapsed()));
    }

    fn skip(&mut self, name: String, reason: String) {
        eprintln!("\n=== {name}\nSKIPPED: {reason}");
        self.done
            .push((name, Outcome::Skipped(reason), Duration::ZERO));
    }

    /// As root and in CI nothing that set-up makes may be missing, else the tests that need it are skipped aloud. QEMU's
    /// server takes long to build: who has built it wants its tests, as does who names a cloud-hypervisor.
    fn tests(&mut self) -> Result<()> {
        let mut test = cargo()?;
        test.args(["test", "--workspace", "--no-fail-fast"]);
        if std::env::var_os("VFU_REQUIRE").is_none() {
            if require::is_root() || std::env::var_os("CI").is_some() {
                let mut required = "all".to_owned();
                if QemuServer::find()?.is_none() {
                    required.push_str(",-qemu-server");
                }
                if std::env::var_os("CLOUD_HYPERVISOR").is_none() {
                    required.push_str(",-cloud-hypervisor");
                }
                test.env("VFU_REQUIRE", required);
            } else {
                eprintln!("\nnot root: tests with TAP devices are skipped");
            }
        }
        self.check(&mut test);
        Ok(())
    }

    /// Licenses, bans and sources need no network; advisories need a database that may be out of reach.
    fn deny(&mut self) -> Result<()> {
        let program = match CARGO_DENY.prepare() {
            Ok(program) => program,
            Err(error) => {
                eprintln!("{error:#}");
                self.done.push((
                    "cargo-deny check".to_owned(),
                    Outcome::Failed,
                    Duration::ZERO,
                ));
                return Ok(());
            }
        };
        let deny = || -> Result<Command> {
            let mut command = Command::new(&program);
            command.current_dir(crate::root()?);
            Ok(command)
        };
        self.check(deny()?.args(["check", "licenses", "bans", "sources"]));
        if deny()?.args(["fetch", "db"]).status()?.success() {
            self.check(deny()?.args(["check", "--disable-fetch", "advisories"]));
        } else {
            let reason = "the advisory database can't be fetched".to_owned();
            self.skip("cargo-deny check advisories".to_owned(), reason);
        }
        Ok(())
    }

    fn summary(&self, time: Duration) -> Result<()> {
        eprintln!("\n=== summary, {:.0} s", time.as_secs_f64());
        let mut failed = 0;
        for (name, outcome, time) in &self.done {
            let (word, reason) = match outcome {
                Outcome::Passed => ("passed", String::new()),
                Outcome::Failed => {
                    failed += 1;
                    ("FAILED", String::new())
                }
                Outcome::Skipped(reason) => ("SKIPPED", format!(": {reason}")),
            };
            eprintln!("{word:8}{:4.0} s  {name}{reason}", time.as_secs_f64());
        }
        if failed > 0 {
            bail!("{failed} of {} failed", self.done.len());
        }
        Ok(())
    }
}
