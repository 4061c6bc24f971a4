//! A network namespace on the host: a test's own network, away from the machine's and from other tests.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command::run;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace that lives as long as the value, with its loopback interface up.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one with a name that no other process uses.
    pub fn new() -> Result<Self> {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vfu-{}-{count}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Where it is bound, for those that enter it by path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` in it; the arguments are separated by blanks.
    pub fn ip(&self, args: &str) -> Result<String> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(args.split_whitespace()))
    }

    /// A command that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Calls `action` on a thread that is in it. Sockets made there stay in it wherever they are used.
    pub fn inside<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
                action()
            });
            inside
                .join()
                .map_err(|_| anyhow!("the thread in the network namespace panicked"))?
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Not by a wait that an interrupted program gives up.
        let deleted = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
        if !deleted.as_ref().is_ok_and(ExitStatus::success) {
            eprintln!(
                "can't delete the network namespace {}: {deleted:?}",
                self.name
            );
        }
    }
}
