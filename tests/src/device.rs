//! A `vfu-device` that runs alone, without an agent.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{agent::programs, command};

const LIMIT: Duration = Duration::from_secs(10);

/// A device process with a folder of its own. Dropping it kills the process and removes the folder.
#[derive(Debug)]
pub struct Device {
    child: Child,
    dir: TempDir,
}

impl Device {
    /// A folder for a device, and for the sockets of what is behind it.
    pub fn dir() -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix("vfu-")
            .tempdir()
            .context("make a folder")
    }

    /// Serves `model` in `dir`, and waits until it listens.
    pub fn start(dir: TempDir, model: &str, config: &str) -> Result<Self> {
        Self::start_under(&["env"], dir, model, config, &[])
    }

    /// The same under a command that becomes the one it is given, such as `prlimit`, and with more arguments.
    pub fn start_under(
        wrapper: &[&str],
        dir: TempDir,
        model: &str,
        config: &str,
        more: &[&str],
    ) -> Result<Self> {
        let log = File::create(dir.path().join("log")).context("make the log")?;
        let (program, args) = wrapper.split_first().context("a wrapper")?;
        let child = Command::new(program)
            .args(args)
            .arg(programs()?.join("vfu-device"))
            .arg(model)
            .arg("--socket-path")
            .arg(dir.path().join("vfio-user.sock"))
            .args(["--config", config])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start vfu-device")?;
        let mut device = Self { child, dir };
        let serving = command::wait_for("vfu-device to serve", LIMIT, || {
            if let Some(status) = device.child.try_wait()? {
                bail!("vfu-device ended: {status}");
            }
            Ok(device.log().contains("serving").then_some(()))
        });
        serving.with_context(|| device.log())?;
        Ok(device)
    }

    /// The socket that clients connect to.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vfio-user.sock")
    }

    /// The device's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the device has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it, and leaves its folder for another one.
    pub fn into_dir(mut self) -> Result<TempDir> {
        let folder = std::mem::replace(&mut self.dir, Self::dir()?);
        self.stop()?;
        Ok(folder)
    }

    /// Ends it with SIGTERM.
    pub fn stop(mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let ended = || Ok(self.child.try_wait()?);
        let status = command::wait_for("vfu-device to end", LIMIT, ended)?;
        if self.socket().exists() {
            bail!("vfu-device left its socket behind");
        }
        Ok(status)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill, and waiting only reaps it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
