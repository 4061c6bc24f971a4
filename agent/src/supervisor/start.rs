//! How a device comes by its process: a new one, or the one that an earlier agent started.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::socket::SockType;
use tokio::time::timeout;
use tracing::warn;

use super::cgroup::Cgroups;
use super::child::{Launch, Process};
use super::control::{Control, Message, Status};
use super::error::StartError;
use super::rundir::{Manifest, RunDir};
use crate::clock;
use crate::socket;
use crate::steps;
use crate::store::{Record, SocketSpec};

/// A process, and what goes with it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) control: Control,
    pub(super) start_time: Option<SystemTime>,
    /// Where in the log the words of this process begin.
    pub(super) log_offset: u64,
}

/// The listening sockets, while this agent has them: an adopted device's are the process's alone.
#[derive(Debug)]
pub(super) struct Sockets {
    vfio_user: OwnedFd,
    control: OwnedFd,
}

impl Sockets {
    fn bind(dir: &RunDir, spec: &SocketSpec) -> Result<Self, socket::Error> {
        let agent_only = SocketSpec::default();
        Ok(Self {
            control: socket::bind(&dir.control(), SockType::SeqPacket, &agent_only)?,
            vfio_user: socket::bind(&dir.socket(), SockType::Stream, spec)?,
        })
    }
}

/// Makes what is missing of directory and sockets, and starts a process.
pub(super) async fn spawn(
    program: &Path,
    record: &Record,
    dir: &RunDir,
    boot_id: &str,
    cgroups: &Cgroups,
    sockets: &mut Option<Sockets>,
) -> Result<Running, StartError> {
    let directory = |source| StartError::Directory {
        path: dir.path().to_owned(),
        source,
    };
    let mut manifest = Manifest {
        uid: record.uid.clone(),
        model: record.spec.model.clone(),
        pid: None,
        start_time: None,
        restart_count: record.history.restart_count,
        boot_id: boot_id.to_owned(),
    };
    dir.create(&manifest, &record.spec.config)
        .map_err(directory)?;
    steps::reached("start.directory");
    let limits = &record.spec.limits;
    let cgroup = cgroups.make(&record.id, limits).await;
    let cgroup = cgroup.map_err(StartError::Cgroup)?;
    steps::reached("start.cgroup");
    let (log, log_offset) = dir.open_log().map_err(directory)?;
    let stats = dir.create_stats().map_err(directory)?;
    let bound = match sockets.take() {
        Some(bound) => bound,
        None => {
            let spec = record.spec.socket.unwrap_or_default();
            Sockets::bind(dir, &spec).map_err(StartError::Socket)?
        }
    };
    let bound = sockets.insert(bound);
    steps::reached("start.bound");

    // The connection waits in the socket's queue before the process runs, so that one that fails at
    // once still has somebody to tell why.
    let control = Control::connect(&dir.control()).map_err(StartError::Control)?;
    let launch = Launch {
        program,
        model: &record.spec.model,
        config_argument: &dir.config_argument(),
        socket: &bound.vfio_user,
        control: &bound.control,
        stats: &stats,
        log,
        limits: limits.of_process(),
        cgroup,
    };
    let mut process = Process::spawn(launch).map_err(|source| StartError::Spawn {
        program: program.to_owned(),
        source,
    })?;
    steps::reached("start.spawned");
    manifest.pid = Some(process.pid());
    manifest.start_time = Some(clock::now());
    if let Err(source) = dir.write_manifest(&manifest) {
        process.signal(Signal::SIGKILL);
        process.exited().await;
        return Err(directory(source));
    }
    steps::reached("start.noted");
    Ok(Running {
        process,
        control,
        start_time: manifest.start_time,
        log_offset,
    })
}

/// Finds the process that an earlier agent started, and ends it when it does not answer. Who answers has to be that process:
/// any other can have the same command line.
pub(super) async fn adopt(
    dir: &RunDir,
    manifest: &Manifest,
    patience: Duration,
) -> Option<(Running, Status)> {
    let argument = dir.config_argument();
    let mut process = manifest.pid.and_then(|it| Process::find(it, &argument));
    if let Ok(control) = Control::connect(&dir.control()) {
        steps::reached("adopt.connected");
        let answer = timeout(patience, first_status(&control)).await;
        steps::reached("adopt.answered");
        let (status, sender) = answer.ok().flatten().unzip();
        let sender = sender.flatten();
        // That agent may have died before it wrote the pid down.
        process = process.or_else(|| match sender {
            Some(pid) => Process::find(pid, &argument),
            None => Process::search(&argument),
        });
        if let Some(status) = status
            && let Some(process) = process.take_if(|it| Some(it.pid()) == sender)
        {
            let running = Running {
                process,
                control,
                start_time: manifest.start_time,
                log_offset: 0,
            };
            return Some((running, status));
        }
    }
    if let Some(mut process) = process {
        let pid = process.pid();
        warn!(pid, "device process killed: it does not answer");
        process.signal(Signal::SIGKILL);
        process.exited().await;
    }
    None
}

/// How the device is, and which process says so.
async fn first_status(control: &Control) -> Option<(Status, Option<i32>)> {
    loop {
        match control.receive_from().await {
            Ok((Message::Status(status), sender)) => return Some((status, sender)),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Child, Command};

    use nix::sys::socket::{MsgFlags, accept, send};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A process with this argument on its command line, which does nothing.
    fn idle(argument: &str) -> Child {
        let mut command = Command::new("/bin/sh");
        let script = "while :; do sleep 0.05; done";
        command.args(["-c", script, "sh", argument]);
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn who_answers_for_another_process_is_not_adopted_for_it() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::new(parent.path(), "nic0");
        let mut manifest = Manifest {
            uid: "u".to_owned(),
            model: "e1000".to_owned(),
            pid: None,
            start_time: None,
            restart_count: 0,
            boot_id: "b".to_owned(),
        };
        dir.create(&manifest, &serde_json::json!({})).unwrap();
        let listener =
            socket::bind(&dir.control(), SockType::SeqPacket, &SocketSpec::default()).unwrap();
        let mut process = idle(&dir.config_argument());
        let pid = i32::try_from(process.id()).unwrap();
        // What it says of itself is not what counts.
        let status = format!(r#"{{"type":"status","pid":{pid},"state":"listening"}}"#);
        let answers = std::thread::spawn(move || {
            let peers = [(); 2].map(|()| {
                let peer = accept(listener.as_raw_fd()).unwrap();
                send(peer, status.as_bytes(), MsgFlags::MSG_NOSIGNAL).unwrap();
                peer
            });
            (listener, peers)
        });
        // Without a word of an earlier agent about the pid it is neither adopted nor ended: it has not answered.
        assert!(adopt(&dir, &manifest, LONG).await.is_none());
        assert_eq!(process.try_wait().unwrap(), None);
        // With it, it is the device's, and does not do its work.
        manifest.pid = Some(pid);
        assert!(adopt(&dir, &manifest, LONG).await.is_none());
        let ended = std::os::unix::process::ExitStatusExt::signal(&process.wait().unwrap());
        assert_eq!(ended, Some(Signal::SIGKILL as i32));
        answers.join().unwrap();
    }
}
