//! One device: its directory, its process and the connection to it, owned by one task.
//!
//! The task reports what happens to `state::next` and carries out what that says. It keeps the
//! listening sockets open, so that a client that connects while the process is being started again
//! waits instead of being refused. When the agent ends, the task lets go of everything and the
//! process goes on; the next agent's task finds it by the control socket.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{Instrument, debug, info, info_span, warn};

use super::child::{Exit, Process};
use super::control::{self, Control, Message, Resets, Service};
use super::error::{Error, StartError};
use super::place::Place;
use super::release::Release;
use super::request::{Request, Reset, Restart};
use super::rundir::RunDir;
use super::start::{self, Plan, Running, Sockets};
use super::state::{self, Action, Event, Phase, State, Timeouts};
use super::view::{Configured, Life, View};
use super::{Device, Shared};
use crate::chain::chain;
use crate::events::Severity;
use crate::steps;
use crate::store::Record;

/// Pause before a lost control connection is made again.
const RECONNECT: Duration = Duration::from_millis(200);

/// How a task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// The device is new.
    Create,
    /// The device is an earlier agent's.
    Find,
}

/// One device.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    /// As it is stored.
    pub(super) record: Arc<Record>,
    /// Whether it is, which it is not when that failed.
    pub(super) is_recorded: bool,
    /// As others see it: not before it is certain that it stays.
    pub(super) shown: Arc<Record>,
    pub(super) dir: RunDir,
    pub(super) state: State,
    pub(super) view: View,
    published: watch::Sender<Device>,
    inbox: mpsc::Receiver<Request>,
    pub(super) sockets: Option<Sockets>,
    process: Option<Process>,
    pub(super) control: Option<Control>,
    /// Where in the log the words of this process begin.
    log_offset: u64,
    /// How often the kernel had ended something in its cgroup when the process started.
    memory_ends: u64,
    refusal: Option<control::Refusal>,
    /// Whether a process is to be started, as soon as it is this device's turn.
    waits_for_turn: bool,
    permit: Option<OwnedSemaphorePermit>,
    pub(super) resets: HashMap<u64, Reset>,
    /// The request by which the process was last told its configuration, until it answers.
    pub(super) told: Option<u64>,
    /// What the process is asked about its client.
    pub(super) release: Option<Release>,
    pub(super) next_request: u64,
    pub(super) deleters: Vec<oneshot::Sender<Result<(), Error>>>,
    pub(super) restart: Restart,
    pub(super) place: Place,
}

impl Task {
    /// A task, and where to see how its device is.
    pub(super) fn new(
        shared: Arc<Shared>,
        record: Arc<Record>,
        begin: Begin,
        inbox: mpsc::Receiver<Request>,
    ) -> (Self, watch::Receiver<Device>) {
        let mut hasher = DefaultHasher::new();
        record.uid.hash(&mut hasher);
        let timeouts = timeouts(&shared);
        let policy = record.spec.restart_policy;
        let first = begin == Begin::Create;
        let state = State::starting(policy, timeouts, hasher.finish(), first, Instant::now());
        let mut view = View::new(&record);
        view.update(state.phase);
        let (published, receiver) = watch::channel(Device {
            record: record.clone(),
            view: view.clone(),
        });
        let task = Self {
            dir: shared.dir(&record.id),
            state,
            shared,
            shown: record.clone(),
            record,
            is_recorded: true,
            view,
            published,
            inbox,
            sockets: None,
            process: None,
            control: None,
            log_offset: 0,
            memory_ends: 0,
            refusal: None,
            waits_for_turn: false,
            permit: None,
            resets: HashMap::new(),
            told: None,
            release: None,
            next_request: 0,
            deleters: Vec::new(),
            restart: Restart::default(),
            place: Place::default(),
        };
        (task, receiver)
    }

    /// Owns the device until it is gone or the agent ends.
    pub(super) async fn run(self, begin: Begin, shutdown: watch::Receiver<bool>) {
        let span = info_span!("device", id = %self.record.id);
        self.live(begin, shutdown).instrument(span).await;
    }

    async fn live(mut self, begin: Begin, mut shutdown: watch::Receiver<bool>) {
        match begin {
            Begin::Create => match self.shared.store.put(&self.record).await {
                Ok(()) => {
                    steps::reached("create.recorded");
                    self.shared.events.created(&self.record);
                    self.act(Action::Spawn).await;
                }
                Err(error) => {
                    self.is_recorded = false;
                    self.view.failure = Some(Arc::new(StartError::Store(error)));
                    self.event(Event::Ended { success: false }).await;
                }
            },
            Begin::Find => self.find().await,
        }
        while self.state.phase != Phase::Gone {
            // The time to become ready begins with the process.
            let deadline = self.state.deadline().filter(|_| !self.waits_for_turn);
            let reconnect = self.process.is_some() && self.control.is_none();
            tokio::select! {
                Some(request) = self.inbox.recv() => self.serve(request).await,
                message = receive(self.control.as_ref()) => self.hear(message).await,
                exit = exited(self.process.as_mut()) => self.ended(exit).await,
                turn = turn(self.shared.clone(), self.record.clone()), if self.waits_for_turn => self.start(turn).await,
                news = self.place.news() => self.place_news(news).await,
                () = until(deadline) => self.event(Event::Tick).await,
                () = tokio::time::sleep(RECONNECT), if reconnect => {
                    self.control = Control::connect(&self.dir.control()).ok();
                    // What it was told before may have been lost.
                    self.tell();
                    self.publish();
                }
                () = asked_to_end(&mut shutdown) => return,
            }
            self.settle_late().await;
            self.mend().await;
        }
    }

    /// Tells the state machine, and does what it says, until it says no more.
    pub(super) async fn event(&mut self, event: Event) {
        let mut next = Some(event);
        self.state.timeouts = timeouts(&self.shared);
        while let Some(event) = next.take() {
            let before = self.state.phase;
            let (state, action) = state::next(&self.state, event, Instant::now());
            if state.phase != before {
                debug!(?event, phase = ?state.phase, ?action, "phase");
            }
            self.state = state;
            self.remember(before, action).await;
            next = self.carry_out(action).await;
        }
        self.publish();
        self.answer_restarts();
    }

    /// Does what no event led to.
    pub(super) async fn act(&mut self, action: Action) {
        if let Some(event) = self.carry_out(action).await {
            self.event(event).await;
        }
        self.publish();
    }

    async fn carry_out(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::None => {}
            Action::Spawn => {
                self.publish();
                self.waits_for_turn = true;
            }
            // What has not been started has ended.
            Action::Terminate if std::mem::take(&mut self.waits_for_turn) => {
                return Some(Event::Ended { success: true });
            }
            Action::Terminate => {
                self.signal(Signal::SIGTERM);
                steps::reached("delete.terminated");
            }
            Action::Kill => {
                let why = "device process killed: it did not do in time what it was asked to";
                warn!("{why}");
                self.note(Severity::Warning, "KILLED", why);
                self.signal(Signal::SIGKILL);
            }
            Action::CleanUp => {
                if !self.clean_up().await {
                    return Some(Event::Left);
                }
            }
        }
        None
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// It is this device's turn to start a process, or never will be.
    async fn start(&mut self, turn: Result<Turn, StartError>) {
        self.waits_for_turn = false;
        let started = match turn {
            Ok(turn) => self.spawn(turn).await,
            Err(error) => Err(error),
        };
        let Err(error) = started else {
            return self.publish();
        };
        warn!(error = chain(&error), "device not started");
        self.note(Severity::Warning, error.reason(), &chain(&error));
        self.view.failure = Some(Arc::new(error));
        self.permit = None;
        self.event(Event::Ended { success: false }).await;
    }

    async fn spawn(&mut self, Turn { plan, permit }: Turn) -> Result<(), StartError> {
        self.permit = permit;
        let boot_id = &self.shared.boot_id;
        let running = start::spawn(
            &plan,
            &self.record,
            &self.dir,
            boot_id,
            &self.shared.cgroups,
            &mut self.sockets,
        )
        .await?;
        info!(pid = running.process.pid(), "device process started");
        self.note(Severity::Normal, "STARTED", "device process started");
        self.refusal = None;
        self.memory_ends = self.shared.cgroups.memory_ends(&self.record.id);
        self.take(running);
        self.view.configured = Configured::Yes;
        self.state.spawned(Instant::now());
        Ok(())
    }

    /// The process is this task's from now on.
    pub(super) fn take(&mut self, running: Running) {
        let Running {
            process,
            control,
            start_time,
            log_offset,
        } = running;
        self.view.pid = Some(process.pid());
        self.view.start_time = start_time;
        self.log_offset = log_offset;
        self.process = Some(process);
        self.control = Some(control);
    }

    /// Takes in what the process says, or that it says no more.
    pub(super) async fn hear(&mut self, message: io::Result<Message>) {
        match message {
            Ok(Message::Status(status)) => {
                let connected = status.state == Service::Connected;
                if matches!(self.state.phase, Phase::Starting { .. }) {
                    steps::reached("start.ready");
                }
                let client = status.client.filter(|_| connected);
                let is_left = self.view.client.is_some() && client.is_none();
                if self.view.client != client {
                    match &client {
                        Some(client) => {
                            info!(%client, "client connected");
                            let text = format!("client connected: {client}");
                            self.note(Severity::Normal, "CLIENT_CONNECTED", &text);
                        }
                        None => {
                            info!("client gone");
                            self.note(Severity::Normal, "CLIENT_GONE", "client gone");
                        }
                    }
                }
                self.permit = None;
                self.view.client = client;
                self.view.resets = status.resets;
                self.event(Event::Status { connected }).await;
                if connected {
                    self.backend_found().await;
                }
                if is_left {
                    self.client_left().await;
                }
            }
            Ok(Message::Failed(refusal)) => self.refusal = Some(refusal),
            Ok(Message::Reply {
                id,
                ok,
                message,
                field,
                reason,
            }) => {
                if self.told == Some(id) {
                    self.answered(ok.then_some(()).ok_or((field, message)));
                } else if let Some(reset) = self.resets.remove(&id) {
                    let answer = ok.then_some(()).ok_or((field, message));
                    self.reset_answered(reset, answer).await;
                } else if let Some(release) = &mut self.release {
                    let answer = ok.then_some(()).ok_or((reason, message));
                    release.answered(id, answer);
                }
            }
            // A program that knows no such request answers so.
            Ok(Message::Error { message }) if self.told.is_some() => {
                self.answered(Err((None, message)));
            }
            Ok(Message::Error { message }) => warn!(message, "device process"),
            Ok(Message::Unknown) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                warn!(%error, "device process sent what is no message");
            }
            // Its end, if this is it, is seen by the pidfd.
            Err(_) => self.control = None,
        }
        if self.view.configured == Configured::Unknown && self.told.is_none() {
            // It took no message when it should have been told, and does now.
            self.tell();
        }
    }

    /// The process is no more.
    async fn ended(&mut self, exit: Exit) {
        let refusal = self.control.as_ref().and_then(Control::last_refusal);
        self.refusal = refusal.or(self.refusal.take());
        let pid = self.process.take().map(|it| it.pid());
        let asked = matches!(
            self.state.phase,
            Phase::Stopping { .. } | Phase::Killed { .. }
        );
        if asked {
            info!(pid, %exit, "device process ended");
            let text = format!("device process ended: {exit}");
            self.note(Severity::Normal, "STOPPED", &text);
            steps::reached("delete.ended");
        } else {
            let log = self.dir.log_tail(self.log_offset);
            let failure = match (self.refusal.take(), self.state.phase) {
                (Some(refusal), _) => StartError::Refused(refusal),
                (None, Phase::Overdue { .. }) => StartError::Late {
                    timeout: self.shared.config().timeouts.start,
                    log,
                },
                (None, _) => StartError::Ended {
                    exit,
                    cause: self.cause(exit, &log),
                    log,
                },
            };
            warn!(pid, %exit, failure = chain(&failure), "device process ended by itself");
            self.note(Severity::Warning, failure.reason(), &chain(&failure));
            steps::reached("process.ended");
            self.view.failure = Some(Arc::new(failure));
        }
        self.control = None;
        self.permit = None;
        self.told = None;
        self.resets_lost();
        self.view.pid = None;
        self.view.start_time = None;
        let had_client = self.view.client.take().is_some();
        self.view.resets = Resets::default();
        self.backend_lost().await;
        match !asked && self.fails_with_backend() {
            true => self.give_up().await,
            false => {
                let success = exit.success();
                self.event(Event::Ended { success }).await;
            }
        }
        if had_client {
            self.client_left().await;
        }
    }

    /// What of the limits, or of the host, may have ended the process.
    pub(super) fn cause(&self, exit: Exit, log: &str) -> Option<String> {
        let memory_ends = self.shared.cgroups.memory_ends(&self.record.id);
        if memory_ends > self.memory_ends {
            return Some("the kernel chose it when memory ran out".to_owned());
        }
        self.record.spec.limits.cause(exit.signal(), log)
    }

    pub(super) fn not_durable(&self, change: &'static str, source: crate::store::Error) -> Error {
        Error::NotDurable {
            id: self.record.id.clone(),
            change,
            source,
        }
    }

    /// Keeps in mind that something has happened to the device.
    pub(super) fn note(&self, severity: Severity, reason: &str, message: &str) {
        self.shared
            .events
            .add(&self.record, severity, reason, message);
    }

    /// Shows how the device is to who wants to know.
    pub(super) fn publish(&mut self) {
        self.view.update(self.state.phase);
        let device = Device {
            record: self.shown.clone(),
            view: self.view.clone(),
        };
        self.published.send_replace(device.clone());
        if self.view.life != Life::Gone {
            self.shared.show(device);
        }
    }
}

/// What it takes to start a process.
struct Turn {
    plan: Plan,
    permit: Option<OwnedSemaphorePermit>,
}

/// Waits for a device's turn to start a process. What programs are asked first takes no turn from others. Cancel safe.
async fn turn(shared: Arc<Shared>, record: Arc<Record>) -> Result<Turn, StartError> {
    let plan = Plan::new(&shared, &record).await?;
    let permit = shared.starts.clone().acquire_owned().await.ok();
    Ok(Turn { plan, permit })
}

/// The next message, or never when there is no connection.
pub(super) async fn receive(control: Option<&Control>) -> io::Result<Message> {
    match control {
        Some(control) => control.receive().await,
        None => std::future::pending().await,
    }
}

/// The end of the process, or never when there is none.
async fn exited(process: Option<&mut Process>) -> Exit {
    match process {
        Some(process) => process.exited().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// They may be others than a moment ago.
fn timeouts(shared: &Shared) -> Timeouts {
    let config = shared.config();
    Timeouts {
        start: config.timeouts.start,
        stop: config.timeouts.stop,
    }
}

async fn asked_to_end(shutdown: &mut watch::Receiver<bool>) {
    // An error means that who would ask is gone, which is as good.
    let _ = shutdown.wait_for(|it| *it).await;
}
