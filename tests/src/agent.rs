//! A running `vfu-agent` with directories of its own, and `vfuctl` to talk to it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::command::{self, Output};

const START_LIMIT: Duration = Duration::from_secs(20);
const CTL_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// An agent that runs. Dropping it ends it, then the devices it leaves behind, then removes its directories.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    programs: PathBuf,
    // A short path under /tmp: a socket's path has 107 bytes at most.
    dir: tempfile::TempDir,
}

impl Agent {
    /// Starts the agent that was built with the tests and waits until it serves.
    pub fn start() -> Result<Self> {
        Self::start_from(&programs()?)
    }

    /// The same, with a configuration file; what makes it gets the folder of everything this agent has.
    pub fn start_with(config: impl FnOnce(&Path) -> Result<String>) -> Result<Self> {
        Self::start_so(&programs()?, config)
    }

    /// Starts the agent in this folder, where `vfuctl` and `vfu-device` are too.
    pub fn start_from(programs: &Path) -> Result<Self> {
        Self::start_so(programs, |_| Ok(String::new()))
    }

    fn start_so(programs: &Path, config: impl FnOnce(&Path) -> Result<String>) -> Result<Self> {
        for program in ["vfu-agent", "vfuctl", "vfu-device"] {
            let path = programs.join(program);
            if !path.is_file() {
                bail!(
                    "{} is missing: cargo build --workspace makes it",
                    path.display()
                );
            }
        }
        let dir = tempfile::Builder::new().prefix("vfu-").tempdir_in("/tmp")?;
        fs::write(config_file(dir.path()), config(dir.path())?)?;
        // From here on dropping it ends the process.
        let mut agent = Self {
            child: spawn(programs, dir.path())?,
            programs: programs.to_owned(),
            dir,
        };
        agent.wait_until_it_serves()?;
        Ok(agent)
    }

    /// Kills the agent as a crash does: nothing is put in order.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts an agent on what the one before has left.
    pub fn start_again(&mut self) -> Result<()> {
        self.end()?;
        self.child = spawn(&self.programs, self.dir.path())?;
        self.wait_until_it_serves()
    }

    fn wait_until_it_serves(&mut self) -> Result<()> {
        let socket = socket(self.dir.path());
        let child = &mut self.child;
        let served = command::wait_for("vfu-agent's socket", START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("vfu-agent ended at once: {status}");
            }
            Ok(UnixStream::connect(&socket).ok())
        });
        match served {
            Ok(_) => Ok(()),
            Err(error) => Err(anyhow!("{error:#}\n{}", self.log())),
        }
    }

    /// `vfuctl` with the address of this agent.
    pub fn ctl_command(&self) -> Command {
        let mut command = Command::new(self.programs.join("vfuctl"));
        command.env("VFU_ENDPOINT", self.endpoint());
        command
    }

    /// Runs `vfuctl` to its end.
    pub fn ctl<I: AsRef<std::ffi::OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
    ) -> Result<Output> {
        command::output(self.ctl_command().args(args), CTL_LIMIT)
    }

    /// Runs `vfuctl` with arguments separated by blanks and returns its stdout; a failure is an error with the
    /// agent's log.
    pub fn ctl_ok(&self, args: &str) -> Result<String> {
        let output = self.ctl(args.split_whitespace())?;
        if !output.status.success() {
            bail!(
                "vfuctl {args}: {}\n{}--- agent ---\n{}",
                output.status,
                output.stderr,
                self.log()
            );
        }
        Ok(output.stdout)
    }

    /// Where the API is served, as `VFU_ENDPOINT` has it.
    pub fn endpoint(&self) -> String {
        endpoint(self.dir.path())
    }

    /// The folder of everything this agent has: run directory, state, log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The run directory of a device.
    pub fn device_dir(&self, id: &str) -> PathBuf {
        self.dir.path().join("run/devices").join(id)
    }

    /// The vfio-user socket of a device.
    pub fn device_socket(&self, id: &str) -> PathBuf {
        self.device_dir(id).join("vfio-user.sock")
    }

    /// The device processes of this agent: those whose standard error goes to a log in its run directory.
    pub fn device_processes(&self) -> Result<Vec<u32>> {
        let run_dir = self.dir.path().join("run");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process that ends meanwhile has no link any more.
            let log = fs::read_link(format!("/proc/{pid}/fd/2"));
            if log.is_ok_and(|log| log.starts_with(&run_dir)) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The end of the agent's log.
    pub fn log(&self) -> String {
        command::tail(&self.dir.path().join("agent.log"), 30)
    }

    /// Ends the agent as an operator does; that it leaves its socket behind or does not end is an error.
    pub fn stop(mut self) -> Result<()> {
        self.end()?;
        let socket = socket(self.dir.path());
        if socket.exists() {
            bail!("vfu-agent left {}", socket.display());
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            // It is not reaped yet, so the number is still its own.
            terminate(self.child.id(), Signal::SIGTERM);
            let child = &mut self.child;
            let ended = command::wait_to_the_end("the end of vfu-agent", STOP_LIMIT, || {
                Ok(child.try_wait()?)
            });
            if let Err(error) = ended {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{error:#}; killed it\n{}", self.log());
            }
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
        // Devices outlive their agent by design, but not the fixture.
        let gone = command::wait_to_the_end("the end of its devices", STOP_LIMIT, || {
            let devices = self.device_processes()?;
            for pid in &devices {
                terminate(*pid, Signal::SIGKILL);
            }
            Ok(devices.is_empty().then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
        cgroup::remove(&self.dir.path().join("run"));
    }
}

fn spawn(programs: &Path, dir: &Path) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("agent.log"))?;
    let mut command = Command::new(programs.join("vfu-agent"));
    command
        .arg("--run-dir")
        .arg(dir.join("run"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .args(["--listen", &endpoint(dir)])
        .arg("--config")
        .arg(config_file(dir))
        .stdout(log.try_clone()?)
        .stderr(log);
    command
        .spawn()
        .with_context(|| format!("start {command:?}"))
}

fn terminate(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // The process may have ended by itself.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn config_file(dir: &Path) -> PathBuf {
    dir.join("agent.toml")
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("agent.sock")
}

fn endpoint(dir: &Path) -> String {
    format!("unix://{}", socket(dir).display())
}

/// The folder of the programs: `$VFU_BIN_DIR`, else where cargo puts them: a test's executable is in `deps` beside
/// them.
pub fn programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("VFU_BIN_DIR") {
        return Ok(dir.into());
    }
    let test = std::env::current_exe()?;
    let deps = test.parent().context("the test's folder")?;
    Ok(deps.parent().context("cargo's target folder")?.to_owned())
}
