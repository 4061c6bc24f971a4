//! A watch from outside: lines as they come, over the death of an agent, until Ctrl-C.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::{Agent, command::wait_for};

const LIMIT: Duration = Duration::from_secs(30);

/// A `vfuctl` that goes on until it is told to stop.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(agent: &Agent, args: &str) -> Result<Self> {
        let mut command = agent.ctl_command();
        command.args(args.split_whitespace());
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        let (sender, lines) = channel();
        // Ends with the program.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The first `count` words of the next line.
    fn words(&mut self, count: usize) -> Result<String> {
        match self.lines.recv_timeout(LIMIT) {
            Ok(line) => {
                let words: Vec<_> = line.split_whitespace().take(count).collect();
                Ok(words.join(" "))
            }
            Err(RecvTimeoutError::Timeout) => bail!("no line in time"),
            Err(RecvTimeoutError::Disconnected) => {
                let (status, told) = self.end()?;
                bail!("no more lines: {status}\n{told}")
            }
        }
    }

    /// Waits for a line that begins so, whatever is before it.
    fn until(&mut self, beginning: &str) -> Result<()> {
        let mut before = Vec::new();
        loop {
            let words = self
                .words(4)
                .with_context(|| format!("wait for `{beginning}` after {before:#?}"))?;
            if words.starts_with(beginning) {
                return Ok(());
            }
            before.push(words);
        }
    }

    /// Ends it as Ctrl-C does; gives how it ended and what it said on standard error.
    fn interrupt(mut self) -> Result<(ExitStatus, String)> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        self.end()
    }

    fn end(&mut self) -> Result<(ExitStatus, String)> {
        let status = wait_for("the end of vfuctl", LIMIT, || Ok(self.child.try_wait()?))?;
        let mut told = String::new();
        let mut stderr = self.child.stderr.take().context("stderr")?;
        stderr.read_to_string(&mut told)?;
        Ok((status, told))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_watch_goes_on_when_the_agent_was_killed() -> Result<()> {
    let mut agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let mut watch = Running::start(&agent, "watch")?;
    ensure!(watch.words(4)? == "EVENT NAME MODEL STATE");
    ensure!(watch.words(4)? == "ADDED nic0 e1000 READY");
    agent.ctl_ok("create e1000 nic1 --net.null")?;
    watch.until("ADDED nic1 e1000")?;
    agent.kill()?;
    agent.start_again()?;
    agent.ctl_ok("delete nic0")?;
    watch.until("DELETED nic0 e1000")?;
    agent.ctl_ok("create e1000 nic2 --net.null")?;
    watch.until("ADDED nic2 e1000")?;

    let (status, told) = watch.interrupt()?;
    ensure!(status.signal() == Some(2), "a shell shows 130: {status}");
    ensure!(told.contains("waiting for the agent"), "{told}");
    ensure!(told.ends_with("vfuctl: the agent is back\n"), "{told}");
    agent.stop()
}

#[test]
fn a_watch_goes_on_when_the_agent_was_stopped_and_replaced() -> Result<()> {
    let mut agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    agent.ctl_ok("create e1000 nic1 --net.null")?;
    let mut watch = Running::start(&agent, "get nic1 --watch -o name")?;
    ensure!(watch.words(1)? == "devices/nic1");
    // What is listed does not tell that the agent has agreed to send changes; a change does.
    agent.ctl_ok("update nic1 --label b=c")?;
    ensure!(watch.words(1)? == "devices/nic1");
    // This also ends the agent that runs.
    agent.start_again()?;
    agent.ctl_ok("delete nic0")?;
    agent.ctl_ok("update nic1 --label a=b")?;
    ensure!(watch.words(1)? == "devices/nic1");
    let (_, told) = watch.interrupt()?;
    ensure!(told.contains("the agent is back"), "{told}");
    agent.stop()
}

#[test]
fn a_filter_chooses_what_is_listed_and_watched() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 blue --label tenant=blue")?;
    agent.ctl_ok("create e1000 red --label tenant=red")?;
    let filter = "labels.tenant=\"blue\"";
    let listed = agent.ctl_ok(&format!("list -o name --filter {filter}"))?;
    ensure!(listed == "devices/blue\n", "{listed}");
    let mut watch = Running::start(&agent, &format!("list --watch --filter {filter}"))?;
    watch.until("ADDED blue e1000 READY")?;
    agent.ctl_ok("update red --label tenant=blue")?;
    watch.until("ADDED red e1000 READY")?;
    // What does not match any more is gone for this reader.
    agent.ctl_ok("update blue --label tenant=red")?;
    watch.until("DELETED blue e1000")?;
    watch.interrupt()?;
    super::fails(&agent, &["list", "--filter", "tenant =="], 2, &["filter"])?;
    agent.stop()
}
