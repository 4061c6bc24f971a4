//! An agent that is killed and started again over the same directories.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ::tests::{
    cgroup,
    command::{self, wait_for, wait_to_the_end},
};
use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::transport::{Channel, Endpoint};

const START_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(20);

/// The directories of an agent, and the agent while it runs. Dropping it ends the agent and every device.
pub(super) struct Host {
    program: PathBuf,
    // A short path: a socket's path has 107 bytes at most.
    dir: tempfile::TempDir,
    agent: Option<Child>,
}

impl Host {
    /// Starts the agent that lies beside this program, with its state on disk.
    pub(super) fn start() -> Result<Self> {
        let here = std::env::current_exe()?;
        let programs = here.parent().context("the folder of this program")?;
        let mut host = Self {
            program: programs.join("vfu-agent"),
            dir: tempfile::Builder::new().prefix("vfu-").tempdir_in("/tmp")?,
            agent: None,
        };
        host.start_agent()?;
        Ok(host)
    }

    /// Starts the agent and returns when its socket is there. What it takes then is the caller's to measure: the clock
    /// that is returned began just before.
    pub(super) fn start_agent(&mut self) -> Result<Instant> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .env("VFU_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let begun = Instant::now();
        let agent = command
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let agent = self.agent.insert(agent);
        let socket = self.dir.path().join("run/agent.sock");
        wait_for("vfu-agent's socket", START_LIMIT, || {
            if let Some(status) = agent.try_wait()? {
                bail!("vfu-agent ended at once: {status}");
            }
            Ok(std::os::unix::net::UnixStream::connect(&socket).ok())
        })?;
        Ok(begun)
    }

    /// Ends the agent as a crash does.
    pub(super) fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("an agent to kill")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    pub(super) fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("a running agent")?.id())
    }

    /// A connection of its own to the agent.
    pub(super) async fn channel(&self) -> Result<Channel> {
        let socket = self.path("run/agent.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        endpoint.connect().await.context("connect to vfu-agent")
    }

    /// The end of the agent's log, for an error message.
    pub(super) fn log(&self) -> String {
        command::tail(&self.path("agent.log"), 20)
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The device processes, by the log they write to.
    fn devices(&self) -> Result<Vec<Pid>> {
        let run_dir = self.path("run");
        let entries = std::fs::read_dir("/proc")?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let ours = |pid: &i32| {
            let log = std::fs::read_link(format!("/proc/{pid}/fd/2"));
            log.is_ok_and(|log| log.starts_with(&run_dir))
        };
        Ok(pids.filter(ours).map(Pid::from_raw).collect())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill, and waiting only reaps it.
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let gone = wait_to_the_end("the end of the devices", END_LIMIT, || {
            let devices = self.devices()?;
            for pid in &devices {
                // It may end by itself.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            Ok(devices.is_empty().then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
        cgroup::remove(&self.path("run"));
    }
}
