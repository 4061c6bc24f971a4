//! How a device comes by its process: a new one, or the one that an earlier agent started.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use nix::sys::socket::SockType;
use tokio::time::timeout;
use tracing::warn;

use super::Shared;
use super::cgroup::Cgroups;
use super::child::{Launch, Process};
use super::control::{Control, Message, Refusal, RefusalKind, Status};
use super::error::StartError;
use super::rundir::{Manifest, RunDir};
use crate::clock;
use crate::schema::Violation;
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
    /// None when the process makes it.
    vfio_user: Option<OwnedFd>,
    control: OwnedFd,
}

/// What serves a device.
#[derive(Debug)]
pub(super) enum Plan {
    /// vfu's own program.
    Own(PathBuf),
    /// Another program, which vfu's runs.
    External {
        own: PathBuf,
        /// What it is told.
        launch: serde_json::Value,
        takes_socket: bool,
    },
}

impl Plan {
    /// What serves such a device now.
    pub(super) async fn new(shared: &Shared, record: &Record) -> Result<Self, StartError> {
        let catalogue = shared.models.get().await.map_err(StartError::Program)?;
        let own = catalogue.program.clone();
        let refused = |kind, field, message| {
            StartError::Refused(Refusal {
                field,
                kind,
                message,
            })
        };
        let name = &record.spec.model;
        let Some(model) = catalogue.models.get(name) else {
            let message = format!(
                "there is no model {name} any more; put its program or its description file back"
            );
            return Err(refused(RefusalKind::NotFound, None, message));
        };
        let Some(external) = &model.external else {
            return Ok(Self::Own(own));
        };
        let program = shared.models.runtimes.program(external).await;
        let program = program.map_err(|why| {
            let message = format!("{}: {why}", external.source.display());
            refused(RefusalKind::Unavailable, None, message)
        })?;
        let launch = shared.launch(model, external, &program, record);
        let launch = launch.map_err(|bad| {
            // The file may have changed since the device was made.
            let first = bad
                .into_iter()
                .next()
                .unwrap_or(Violation::new("", "does not fit"));
            refused(RefusalKind::Invalid, Some(first.field), first.description)
        })?;
        let takes_socket = external.takes_socket();
        Ok(Self::External {
            own,
            launch,
            takes_socket,
        })
    }

    fn takes_socket(&self) -> bool {
        match self {
            Self::Own(_) => true,
            Self::External { takes_socket, .. } => *takes_socket,
        }
    }
}

impl Sockets {
    fn bind(dir: &RunDir, spec: Option<&SocketSpec>) -> Result<Self, socket::Error> {
        let agent_only = SocketSpec::default();
        let vfio_user = |spec| socket::bind(&dir.socket(), SockType::Stream, spec);
        Ok(Self {
            control: socket::bind(&dir.control(), SockType::SeqPacket, &agent_only)?,
            vfio_user: spec.map(vfio_user).transpose()?,
        })
    }
}

/// Makes what is missing of directory and sockets, and starts a process.
pub(super) async fn spawn(
    plan: &Plan,
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
    let (program, model, config) = match plan {
        Plan::Own(program) => (program, &*record.spec.model, &record.spec.config),
        Plan::External { own, launch, .. } => (own, "external", launch),
    };
    dir.create(&manifest, config).map_err(directory)?;
    steps::reached("start.directory");
    let limits = &record.spec.limits;
    let cgroup = cgroups.make(&record.id, limits).await;
    let cgroup = cgroup.map_err(StartError::Cgroup)?;
    steps::reached("start.cgroup");
    let (log, log_offset) = dir.open_log().map_err(directory)?;
    let stats = match plan {
        Plan::Own(_) => Some(dir.create_stats().map_err(directory)?),
        Plan::External { .. } => None,
    };
    let takes_socket = plan.takes_socket();
    // Another description may have it make the socket, or take it, from now on.
    let fits = |it: &Sockets| it.vfio_user.is_some() == takes_socket;
    let bound = match sockets.take().filter(fits) {
        Some(bound) => bound,
        None => {
            let spec = record.spec.socket.unwrap_or_default();
            let spec = Some(&spec).filter(|_| takes_socket);
            Sockets::bind(dir, spec).map_err(StartError::Socket)?
        }
    };
    let bound = sockets.insert(bound);
    steps::reached("start.bound");

    // The connection waits in the socket's queue before the process runs, so that one that fails at
    // once still has somebody to tell why.
    let control = Control::connect(&dir.control()).map_err(StartError::Control)?;
    let launch = Launch {
        program,
        model,
        config_argument: &dir.config_argument(),
        socket: bound.vfio_user.as_ref(),
        control: &bound.control,
        stats: stats.as_ref(),
        log,
        limits: limits.of_process(),
        cgroup,
    };
    let mut process = Process::spawn(launch).map_err(|source| StartError::Spawn {
        program: program.clone(),
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
