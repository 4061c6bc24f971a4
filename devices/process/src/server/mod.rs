//! The loop: one epoll over the listener, the client, the model's backend, the control socket and signals.
//!
//! ```text
//!   listening --client connects--> connected --client leaves: model reset, DMA and IRQs dropped--> listening
//! ```
//!
//! A second client is accepted and closed at once: left in the backlog it would wait for ever, and hang its VMM. While a
//! client has stopped the device, to move it elsewhere, neither the model nor its backend is looked at.
//!
//! While the client alone has anything to say, the loop sleeps in its connection, and the [`sentry`] in the epoll.
//!
//! With `--spin-us` the loop does not sleep for so long after a request, and looks at the client alone: a client that sends
//! the next one soon is not kept waiting for this process to wake. Everything else waits no longer than that.

mod agent;
mod connected;
mod counts;
mod sentry;
mod start;
mod watch;

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow, Signal, pthread_sigmask},
        signalfd::{SfdFlags, SignalFd},
    },
};
use pci::Function;
use serde_json::Value;
use tracing::{info, warn};
use vfio_user::{Closed, Device as _, Lent, Listener, Session};

use crate::{
    args::Serve,
    control::{Control, Resets},
    failure::Failure,
    stats::Stats,
    throttle::Throttle,
};
use connected::Connected;
use counts::Counts;
use sentry::Sentry;
pub(crate) use start::read_config;
use watch::{Token, Watch};

/// So many events of the client's in a row, and none of anybody else's, send the loop to sleep where it is served soonest.
const TURNS_BEFORE_DOZING: u32 = 64;
/// How long no client is accepted after accept failed, so that the loop does not spin while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// One device and everything that its loop waits for.
pub(crate) struct Server {
    function: Function<Box<dyn pci::Device>>,
    /// What the device was last told to be.
    config: Value,
    listener: Listener,
    session: Option<Connected>,
    /// What a device without a client has to work with: nothing.
    nobody: Lent,
    watch: Watch,
    backend_watched: bool,
    signals: SignalFd,
    accept_again: Option<Instant>,
    /// For how long after a request the next one is looked for without sleeping.
    spin: Duration,
    /// Until when that goes on.
    awake_until: Option<Instant>,
    /// How many events were the client's since the last one that was not.
    client_turns: u32,
    /// Made when it is first needed.
    sentry: Option<Sentry>,
    /// Of sessions that are over.
    resets: Resets,
    /// What the agent knows: whether there is a client, and the resets; and when it was told.
    told: (bool, Resets),
    told_at: Instant,
    counts: Counts,
    stats: Stats,
    log: Log,
}

/// Lines that a client can cause at will.
#[derive(Default)]
struct Log {
    connected: Throttle,
    disconnected: Throttle,
    turned_away: Throttle,
    state_refused: Throttle,
}

impl Server {
    /// Makes everything that can fail before the first client: socket, model, backend.
    pub(crate) fn open(args: &Serve, control: &Control, stats: Stats) -> Result<Self, Failure> {
        let listener = start::listen(args)?;
        let config = start::read_config(&args.config)?;
        let device = start::open_model(&args.model, config.clone(), &listener)?;
        let spin = Duration::from_micros(args.spin_us.into());
        let mut server = Self::with(listener, device, config, spin, control, stats)
            .map_err(|errno| Failure::internal(format!("set up the event loop: {errno}")))?;
        server.publish_stats();
        Ok(server)
    }

    fn with(
        listener: Listener,
        device: Box<dyn pci::Device>,
        config: Value,
        spin: Duration,
        control: &Control,
        stats: Stats,
    ) -> Result<Self, Errno> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut server = Self {
            function: Function::new(device),
            config,
            listener,
            session: None,
            nobody: Lent::default(),
            watch: Watch::new()?,
            backend_watched: false,
            signals,
            accept_again: None,
            spin,
            awake_until: None,
            client_turns: 0,
            sentry: None,
            resets: Resets::default(),
            told: (false, Resets::default()),
            told_at: Instant::now(),
            counts: Counts::default(),
            stats,
            log: Log::default(),
        };
        server.watch_listeners(control)?;
        server.watch.add(&server.signals, Token::Signal)?;
        server.watch_backend()?;
        Ok(server)
    }

    /// Serves until a signal says to end.
    pub(crate) fn run(mut self, mut control: Control) -> Result<Signal, Errno> {
        loop {
            self.stay_awake();
            self.doze()?;
            // Also of what was served just now.
            self.update_watch()?;
            self.publish_stats();
            let ready = self.watch.wait(self.time_left(Instant::now()))?;
            let now = Instant::now();
            let mut backend_ready = false;
            for token in ready {
                self.client_turns = match token {
                    Token::Client => self.client_turns.saturating_add(1),
                    _ => 0,
                };
                match token {
                    Token::Listener => self.accept(&control, now)?,
                    Token::Client => self.serve(),
                    Token::Irqs => self.function_and_lent().1.irqs.serve(),
                    Token::Backend => backend_ready = true,
                    Token::Signal => {
                        if let Some(signal) = self.signal()? {
                            return Ok(signal);
                        }
                    }
                    Token::Control => self.accept_control(&mut control, now)?,
                    Token::Peer(index) => self.serve_control(&mut control, index, now),
                }
            }
            self.keep_deadlines(&control, backend_ready, now)?;
            self.serve_passed_over();
            self.tell_status(&mut control, now);
        }
    }

    /// After a request, looks for the next one instead of sleeping, and at nothing else for at most that long.
    fn stay_awake(&mut self) {
        let begin = Instant::now();
        while let Some(until) = self.awake_until {
            let now = Instant::now();
            if now >= until || self.session.is_none() {
                self.awake_until = None;
            } else if now - begin >= self.spin || self.is_due(now) {
                return;
            } else {
                self.serve();
                std::hint::spin_loop();
            }
        }
    }

    /// Sleeps where the client's next request arrives, for as long as nobody else has anything to say and nothing is due.
    fn doze(&mut self) -> Result<(), Errno> {
        if self.client_turns < TURNS_BEFORE_DOZING || !self.may_doze() {
            return Ok(());
        }
        self.client_turns = 0;
        if self.sentry.is_none() {
            // Without one, the loop goes on as it is.
            self.sentry = Sentry::new(self.watch.epoll()).ok();
        }
        let Some(sentry) = self.sentry.take() else {
            return Ok(());
        };
        if let Some(connected) = &self.session {
            connected.pause_watch(&self.watch)?;
        }
        sentry.watch();
        while !sentry.is_ringing()
            && self.may_doze()
            && let Some(connected) = &mut self.session
        {
            let served = connected.sleep(&mut self.function);
            self.end_turn(served);
        }
        sentry.rest();
        self.sentry = Some(sentry);
        // Unless there is somebody else, the client's next event is enough to lie down again.
        self.client_turns = TURNS_BEFORE_DOZING - 1;
        // A client that has left is not watched any more.
        self.session
            .as_ref()
            .map_or(Ok(()), |connected| connected.resume_watch(&self.watch))
    }

    fn may_doze(&mut self) -> bool {
        let is_backend_watched = self.function.is_running() == self.backend_watched;
        self.spin.is_zero()
            && is_backend_watched
            && self.session.as_mut().is_some_and(Connected::is_quiet)
            && !self.has_work()
            && self.first_due().is_none()
    }

    /// Whether the model has work to do now.
    fn is_due(&self, now: Instant) -> bool {
        self.function.deadline().is_some_and(|due| due <= now)
    }

    /// Until the next thing is due.
    fn time_left(&self, now: Instant) -> Option<Duration> {
        if self.has_work() {
            return Some(Duration::ZERO);
        }
        Some(self.first_due()?.saturating_duration_since(now))
    }

    /// Whether there is something to do that nobody will tell of.
    fn has_work(&self) -> bool {
        let session = self.session.as_ref();
        self.awake_until.is_some() || session.is_some_and(Connected::has_requests)
    }

    fn first_due(&self) -> Option<Instant> {
        let session = self.session.as_ref();
        let due = [
            self.function.deadline(),
            session.and_then(|connected| connected.session.deadline()),
            self.accept_again,
            self.status_due(),
        ];
        due.into_iter().flatten().min()
    }

    fn keep_deadlines(
        &mut self,
        control: &Control,
        backend_ready: bool,
        now: Instant,
    ) -> Result<(), Errno> {
        if backend_ready || self.is_due(now) {
            let (function, lent) = self.function_and_lent();
            function.run(lent, now);
        }
        if self
            .session
            .as_ref()
            .and_then(|connected| connected.session.deadline())
            .is_some_and(|due| due <= now)
        {
            self.disconnect("it did not negotiate in time", now);
        }
        if self.accept_again.is_some_and(|due| due <= now) {
            self.accept_again = None;
            self.watch_listeners(control)?;
        }
        Ok(())
    }

    /// The model, and what it may work with at the moment.
    fn function_and_lent(&mut self) -> (&mut Function<Box<dyn pci::Device>>, &mut Lent) {
        let lent = match &mut self.session {
            Some(connected) => connected.session.lent(),
            None => &mut self.nobody,
        };
        (&mut self.function, lent)
    }

    /// Nothing can be accepted, most likely for want of descriptors. Who waits goes on waiting; to be told of it again and
    /// again would keep the loop busy.
    fn pause_listening(
        &mut self,
        control: &Control,
        error: &std::io::Error,
        now: Instant,
    ) -> Result<(), Errno> {
        if self.accept_again.is_some() {
            return Ok(());
        }
        warn!(%error, "nobody can be accepted for a second");
        self.accept_again = Some(now + ACCEPT_PAUSE);
        self.watch.remove(&self.listener)?;
        control
            .listener()
            .map_or(Ok(()), |fd| self.watch.remove(fd))
    }

    fn watch_listeners(&self, control: &Control) -> Result<(), Errno> {
        self.watch.add(&self.listener, Token::Listener)?;
        control
            .listener()
            .map_or(Ok(()), |fd| self.watch.add(fd, Token::Control))
    }

    /// The backend of a device that does not run is left alone: what it has for the device would be told again and again.
    fn watch_backend(&mut self) -> Result<(), Errno> {
        let wanted = self.function.is_running();
        if wanted == self.backend_watched {
            return Ok(());
        }
        self.backend_watched = wanted;
        match self.function.fd() {
            Some(fd) if wanted => self.watch.add(fd, Token::Backend),
            Some(fd) => self.watch.remove(fd),
            None => Ok(()),
        }
    }

    fn update_watch(&mut self) -> Result<(), Errno> {
        if let Some(connected) = &mut self.session {
            connected.update(&self.watch)?;
        }
        self.watch_backend()
    }

    fn accept(&mut self, control: &Control, now: Instant) -> Result<(), Errno> {
        let stream = match self.listener.accept() {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(()),
            Err(error) => return self.pause_listening(control, &error, now),
        };
        self.notice_hang_up(now);
        if let Some(connected) = &self.session {
            if let Some(suppressed) = self.log.turned_away.pass(now) {
                let user = connected.client.as_ref().map(|client| client.pid);
                warn!(
                    ?user,
                    suppressed, "a second client was closed: the device is in use"
                );
            }
            self.listener.turn_away(stream);
            self.counts.turned_away += 1;
            return Ok(());
        }
        match self.begin(stream, now) {
            Ok(connected) => {
                if let Some(suppressed) = self.log.connected.pass(now) {
                    info!(client = ?connected.client, suppressed, "client connected");
                }
                self.session = Some(connected);
                self.counts.connections += 1;
            }
            Err(error) => warn!(%error, "a client could not be served, and was closed"),
        }
        Ok(())
    }

    fn begin(&self, stream: UnixStream, now: Instant) -> std::io::Result<Connected> {
        let session = Session::new(stream, &self.function, now)?;
        Ok(Connected::new(session, &self.watch)?)
    }

    fn serve(&mut self) {
        if let Some(connected) = &mut self.session {
            let served = connected.serve(&mut self.function);
            self.end_turn(served);
        }
    }

    /// What the client's turn led to. It served something, or nothing had arrived, or the client is gone.
    fn end_turn(&mut self, served: Result<bool, Closed>) {
        self.log_refusal();
        match served {
            Ok(true) if !self.spin.is_zero() => {
                self.awake_until = Some(Instant::now() + self.spin);
            }
            Ok(_) => {}
            Err(closed) => {
                let source = std::error::Error::source(&closed).map(|source| format!(": {source}"));
                let why = format!("{closed}{}", source.unwrap_or_default());
                self.disconnect(&why, Instant::now());
            }
        }
    }

    /// Serves what came while the model used the client's memory: the socket does not tell of that.
    fn serve_passed_over(&mut self) {
        if self.session.as_ref().is_some_and(Connected::has_requests) {
            self.serve();
        }
    }

    /// A client is told an errno only; whoever moves a guest wants to know more.
    fn log_refusal(&mut self) {
        if let Some(error) = self.function.take_refusal()
            && let Some(suppressed) = self.log.state_refused.pass(Instant::now())
        {
            warn!(%error, suppressed, "the client's saved state was not loaded");
        }
    }

    /// Ends the session of a client that has closed its end, which epoll may not have told yet: a client that leaves and
    /// comes back at once (a guest's reboot) is heard of in any order.
    fn notice_hang_up(&mut self, now: Instant) {
        while let Some(Connected { session, .. }) = &self.session
            && session.has_hung_up()
        {
            if session.is_blocked() {
                self.disconnect("it left without taking its replies", now);
            } else {
                self.serve();
            }
        }
    }

    /// The client is gone: its memory is unmapped, its eventfds are closed, and the model is as after power-on.
    fn disconnect(&mut self, why: &str, now: Instant) {
        self.counts.interrupts = self.interrupts_by_now();
        let Some(Connected {
            session, client, ..
        }) = self.session.take()
        else {
            return;
        };
        if let Some(suppressed) = self.log.disconnected.pass(now) {
            info!(?client, why, suppressed, "client disconnected");
        }
        self.resets.device_reset += session.device_resets();
        self.resets.lost_connection += 1;
        session.close();
        self.function.reset(&mut self.nobody);
    }

    fn signal(&self) -> Result<Option<Signal>, Errno> {
        let info = self.signals.read_signal()?;
        Ok(info
            .and_then(|info| i32::try_from(info.ssi_signo).ok())
            .and_then(|number| Signal::try_from(number).ok()))
    }
}
