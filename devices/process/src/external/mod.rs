//! A device that another program serves: this process starts the program, tells the agent of it through the control socket
//! as a device of ours would, and ends with it.
//!
//! ```text
//!   starting --it serves--> serving --its client has gone, and it ends with that--> starting
//! ```
//!
//! It is to the program what a shim of containerd is to a container: the program outlives the agent, and whatever becomes
//! of this process, the program does not go on alone (PR_SET_PDEATHSIG). An end of the program that its client does not
//! explain is the end of this process, and the agent's to act upon.

mod launch;
mod monitor;
mod output;
mod qemu;
mod sockets;

use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
        signalfd::{SfdFlags, SignalFd},
        socket::{UnixAddr, getsockname},
    },
    unistd::Pid,
};
use tracing::{error, info};

use crate::{
    args::External,
    control::{Client, Control, MAX_PEERS, Reason, Refusal, Request, Resets, State, Status},
    failure::{self, Failure},
    inherit,
    server::read_config,
};
use launch::{Launch, Readiness};
use monitor::Monitor;
use output::Output;
use sockets::{Seen, Sockets};

/// How often is looked whether the program serves by now, and who is its client.
const LOOK_SOON: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_millis(250);
/// A program that takes its socket is taken for ready when it has run for so long.
const SETTLED: Duration = Duration::from_millis(100);
/// How long a program may take to serve again after its client has gone.
const AGAIN: Duration = Duration::from_secs(30);
/// How often it may end with its client in [`AGAIN`]: a client must not keep this host busy with starts.
const MAX_ENDS: usize = 20;
/// An end so soon after the client was last seen is put down to the client's leave.
const WITH_CLIENT: Duration = Duration::from_secs(2);

/// Runs the program until it or the agent has had enough.
pub(crate) fn run(args: &External) -> ExitCode {
    let mut control = match Control::new(Some(args.control_fd)) {
        Ok(control) => control,
        Err(failure) => return give_up(&failure),
    };
    match Shim::open(args) {
        Ok(shim) => shim.run(control),
        Err(failure) => {
            control.send_failure(&failure);
            give_up(&failure)
        }
    }
}

fn give_up(failure: &Failure) -> ExitCode {
    error!(field = failure.field, kind = ?failure.kind, "{}", failure.message);
    failure::exit_code(failure)
}

/// A program, and what is known of it.
struct Shim {
    launch: Launch,
    /// The listening socket of a program that takes it, and what keeps its number free.
    listener: Option<OwnedFd>,
    _reserved: OwnedFd,
    /// What the program's socket is bound to.
    name: PathBuf,
    signals: SignalFd,
    child: Child,
    started: Instant,
    sockets: Sockets,
    /// Where in the output the words begin that have not been searched.
    output: Option<Output>,
    phase: Phase,
    /// The socket that the last client had to find.
    listener_seen: Option<u64>,
    monitor: Option<Monitor>,
    asked: Instant,
    /// The resets whose answers were lost, by their peers of the control socket.
    unmet: Vec<(usize, u64)>,
    /// Whether a client is there, who it is if that can be known, and when there was one last.
    is_connected: bool,
    client: Option<Client>,
    client_seen: Option<Instant>,
    resets: Resets,
    /// When the program ended with its client.
    ends: VecDeque<Instant>,
    /// Whether it was told to end.
    stopping: bool,
}

/// What the program is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It does not serve yet.
    Starting,
    /// Its client has gone, and the next one has to find it serving again, from then on.
    Again(Instant),
    Serving,
}

impl Shim {
    fn open(args: &External) -> Result<Self, Failure> {
        let internal = |what: &str, error: io::Error| Failure::internal(format!("{what}: {error}"));
        let config = read_config(&args.config)?;
        let launch: Launch = serde_json::from_value(config)
            .map_err(|error| Failure::invalid(format!("what is to be started: {error}")))?;
        let listener = args.fd.map(|fd| inherit::take("fd", fd)).transpose()?;
        let name = match (&launch.socket, &listener) {
            (Some(socket), None) => socket.bind.clone(),
            (None, Some(listener)) => {
                let name = bound(listener).map_err(|errno| internal("--fd", errno.into()))?;
                name.ok_or_else(|| Failure::invalid("--fd: not a socket with a path".into()))?
            }
            _ => {
                let why = "either the program makes its socket, or it takes that of --fd";
                return Err(Failure::invalid(why.into()));
            }
        };
        let reserved = launch::reserve().map_err(|error| internal("open /dev/null", error))?;
        let signals = signals().map_err(|errno| internal("wait for signals", errno.into()))?;
        // What is searched for is written after this.
        let output = Output::new(&launch)?;
        let now = Instant::now();
        let child = start(&launch, listener.as_ref())?;
        Ok(Self {
            sockets: Sockets::new(child.id(), name.clone()),
            output,
            launch,
            listener,
            _reserved: reserved,
            name,
            signals,
            child,
            started: now,
            phase: Phase::Starting,
            listener_seen: None,
            monitor: None,
            asked: now,
            unmet: Vec::new(),
            is_connected: false,
            client: None,
            client_seen: None,
            resets: Resets::default(),
            ends: VecDeque::new(),
            stopping: false,
        })
    }

    fn run(mut self, mut control: Control) -> ExitCode {
        // Who asks for the status before the first client could be served waits.
        let mut is_ready = false;
        loop {
            let wait = if self.phase == Phase::Serving {
                LOOK
            } else {
                LOOK_SOON
            };
            let ready = match self.wait(&control, is_ready, wait) {
                Ok(ready) => ready,
                Err(errno) => return give_up(&Failure::internal(format!("wait: {errno}"))),
            };
            let before = (self.phase, self.is_connected);
            for token in ready {
                match token {
                    Token::Signal => self.signal(),
                    Token::Monitor => self.hear_monitor(&mut control),
                    Token::Control => {
                        // An error is one of this connection, which is lost.
                        let _ = control.accept(&self.status());
                    }
                    Token::Peer(index) => self.serve(&mut control, index),
                }
            }
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => match self.ended(status) {
                    None => {}
                    Some(code) => return code,
                },
                Err(error) => return give_up(&Failure::internal(format!("wait: {error}"))),
            }
            let now = Instant::now();
            if let Err(failure) = self.look(now) {
                return give_up(&failure);
            }
            self.keep_monitor(now);
            self.refuse_unmet(&mut control);
            let is_serving = self.phase == Phase::Serving;
            if is_serving && before != (self.phase, self.is_connected) {
                is_ready = true;
                control.send_status(&self.status());
            }
        }
    }

    /// Waits until somebody has something to say, or it is time to look again.
    fn wait(&self, control: &Control, is_ready: bool, time: Duration) -> Result<Vec<Token>, Errno> {
        let mut tokens = vec![(Token::Signal, self.signals.as_fd())];
        tokens.extend(self.monitor.as_ref().map(|it| (Token::Monitor, it.fd())));
        if is_ready {
            tokens.extend(control.listener().map(|it| (Token::Control, it)));
            let peers = (0..MAX_PEERS).filter_map(|it| Some((Token::Peer(it), control.peer(it)?)));
            tokens.extend(peers);
        }
        let watched = tokens
            .iter()
            .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN));
        let mut fds: Vec<_> = watched.collect();
        let time = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, time) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = fds.iter().map(|it| it.any().unwrap_or(false));
        Ok(tokens
            .iter()
            .zip(ready)
            .filter_map(|((token, _), ready)| ready.then_some(*token))
            .collect())
    }

    fn signal(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if i32::try_from(info.ssi_signo) == Ok(Signal::SIGCHLD as i32) {
                continue;
            }
            self.stopping = true;
            self.end_child(Signal::SIGTERM);
        }
    }

    /// The pid is the program's own: nobody has waited for it.
    fn end_child(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// The program has ended. `None`: it was started again.
    fn ended(&mut self, status: ExitStatus) -> Option<ExitCode> {
        let program = self.launch.program.display();
        let told = match (status.code(), status.signal()) {
            (Some(code), _) => format!("{program} exited with code {code}"),
            (None, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => format!("{program} was ended by {signal}"),
                Err(_) => format!("{program} was ended by signal {number}"),
            },
            (None, None) => format!("{program} ended"),
        };
        if self.stopping {
            info!("{told}");
            return Some(ExitCode::SUCCESS);
        }
        let now = Instant::now();
        if self.is_by_client(status, now) {
            match start(&self.launch, self.listener.as_ref()) {
                Ok(child) => {
                    info!("{told} as its client left, and was started again");
                    self.sockets = Sockets::new(child.id(), self.name.clone());
                    self.child = child;
                    self.started = now;
                    self.forget_monitor();
                    self.client_left();
                    self.phase = Phase::Again(now);
                    return None;
                }
                Err(failure) => return Some(give_up(&failure)),
            }
        }
        match status.success() {
            true => {
                info!("{told}");
                Some(ExitCode::SUCCESS)
            }
            false => Some(give_up(&Failure::internal(told))),
        }
    }

    /// Whether the program ended because its client has left. Some crash when that is at a bad moment.
    fn is_by_client(&mut self, status: ExitStatus, now: Instant) -> bool {
        let recent = |since: Option<Instant>, time| {
            since.is_some_and(|it| now.saturating_duration_since(it) < time)
        };
        let had_client = recent(self.client_seen, WITH_CLIENT);
        let is_served = self.phase != Phase::Starting;
        while self
            .ends
            .front()
            .is_some_and(|it| !recent(Some(*it), AGAIN))
        {
            self.ends.pop_front();
        }
        let may_start = self.ends.len() < MAX_ENDS;
        // A client can come and go between two looks.
        let is_by_client = is_served && (status.success() || had_client);
        if !self.launch.ends_with_client || !is_by_client || !may_start {
            return false;
        }
        self.ends.push_back(now);
        true
    }

    fn client_left(&mut self) {
        if std::mem::take(&mut self.is_connected) {
            info!(client = ?self.client.take(), "client disconnected");
            self.resets.lost_connection += 1;
        }
    }

    /// Sees what the program is doing by now.
    fn look(&mut self, now: Instant) -> Result<(), Failure> {
        // It may be gone, which is heard of in another way.
        let Ok(seen) = self.sockets.look() else {
            return Ok(());
        };
        if self.phase != Phase::Serving {
            if self.serves(seen, now)? {
                if let Some(socket) = &self.launch.socket {
                    let path = socket.path.display();
                    socket.publish().map_err(|error| {
                        Failure::internal(format!("put the socket at {path}: {error}"))
                    })?;
                }
                info!(pid = self.child.id(), "serving");
                self.listener_seen = seen.listener;
                self.phase = Phase::Serving;
            } else if let Phase::Again(since) = self.phase
                && now.saturating_duration_since(since) > AGAIN
            {
                let why =
                    format!("the program does not serve again {AGAIN:?} after its client has left");
                return Err(Failure::internal(why));
            }
            return Ok(());
        }
        match seen.client {
            Some(connection) => {
                if !self.is_connected {
                    self.is_connected = true;
                    self.client = self.sockets.client(connection);
                    info!(client = ?self.client, "client connected");
                }
                self.client_seen = Some(now);
            }
            None => {
                self.client_left();
                if seen.listener != self.listener_seen {
                    self.phase = Phase::Again(now);
                }
            }
        }
        Ok(())
    }

    /// Whether a client could be served.
    fn serves(&mut self, seen: Seen, now: Instant) -> Result<bool, Failure> {
        let Some(listener) = seen.listener else {
            return Ok(false);
        };
        let is_back = matches!(self.phase, Phase::Again(_));
        // The socket of the last client may not be closed yet.
        let is_new = Some(listener) != self.listener_seen;
        // What was asked for is to be done before the next client comes.
        let is_renewed = self.monitor.as_ref().is_none_or(Monitor::is_idle);
        Ok(match &self.launch.readiness {
            Readiness::Fd => now.saturating_duration_since(self.started) >= SETTLED,
            Readiness::Line(text) if !is_back => {
                let found = self.output.as_mut().map(|it| it.has(text)).transpose();
                let found = found.map_err(|error| {
                    Failure::internal(format!("read the program's output: {error}"))
                })?;
                found == Some(true)
            }
            Readiness::Socket | Readiness::Line(_) => is_new && (!is_back || is_renewed),
        })
    }

    fn status(&self) -> Status {
        Status {
            pid: std::process::id(),
            state: if self.is_connected {
                State::Connected
            } else {
                State::Listening
            },
            client: self.client.clone(),
            resets: self.resets,
        }
    }

    fn serve(&mut self, control: &mut Control, index: usize) {
        let refuse = |why: &str| Err(Refusal::from(why.to_owned()));
        match control.receive(index) {
            Some(Request::Status) => control.send_status_to(index, &self.status()),
            Some(Request::Reset { id }) => {
                if let Err(why) = self.reset(index, id) {
                    control.reply(index, id, Err(Refusal::from(why)));
                }
            }
            Some(Request::Update { id, config }) => {
                let updated = match config == self.launch.config {
                    true => Ok(()),
                    false => refuse(
                        "its program takes its configuration when it starts; restart the device",
                    ),
                };
                control.reply(index, id, updated);
            }
            Some(Request::Release { id }) => {
                let why = "its program does not pass on that the client is to let go; unplug the device through the VMM's \
                           own control socket or monitor";
                let refusal = Refusal::from((Reason::TakesNoRequest, why.to_owned()));
                control.reply(index, id, Err(refusal));
            }
            None => {}
        }
    }
}

/// Who has something to say.
#[derive(Clone, Copy)]
enum Token {
    Signal,
    Monitor,
    Control,
    Peer(usize),
}

fn start(launch: &Launch, listener: Option<&OwnedFd>) -> Result<Child, Failure> {
    launch.start(listener).map_err(|error| {
        let program = launch.program.display();
        Failure::internal(format!("start {program}: {error}"))
    })
}

/// The path that a socket is bound to.
fn bound(socket: &OwnedFd) -> Result<Option<PathBuf>, Errno> {
    use std::os::fd::AsRawFd;
    let address: UnixAddr = getsockname(socket.as_raw_fd())?;
    Ok(address
        .path()
        .map(|it| std::ffi::OsStr::from_bytes(it.as_os_str().as_bytes()).into()))
}

fn signals() -> Result<SignalFd, Errno> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        mask.add(signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}
