//! The loop: one epoll over the listener, the client, the model's backend, the control socket and signals.
//!
//! ```text
//!   listening --client connects--> connected --client leaves: model reset, DMA and IRQs dropped--> listening
//! ```
//!
//! A second client is accepted and closed at once: left in the backlog it would wait for ever, and hang its VMM.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        signal::{SigSet, SigmaskHow, Signal, pthread_sigmask},
        signalfd::{SfdFlags, SignalFd},
    },
};
use pci::Function;
use sha2::{Digest, Sha256};
use tracing::{info, warn};
use vfio_user::{Device as _, Lent, Listener, Session};

use crate::{
    args::Serve,
    control::{Client, Control, Request, Resets, State, Status},
    failure::{self, Failure},
    inherit,
    throttle::Throttle,
};

const MAX_CONFIG_BYTES: usize = 1 << 20;
/// How long no client is accepted after accept failed, so that the loop does not spin while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How often the agent is told at most.
const STATUS_PERIOD: Duration = Duration::from_millis(100);

/// What an epoll event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener,
    Client,
    Backend,
    Signal,
    Control,
    Peer(usize),
}

impl Token {
    const FIRST_PEER: u64 = 5;

    fn to_u64(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Client => 1,
            Self::Backend => 2,
            Self::Signal => 3,
            Self::Control => 4,
            Self::Peer(index) => Self::FIRST_PEER + index as u64,
        }
    }

    fn from_u64(number: u64) -> Self {
        match number {
            0 => Self::Listener,
            1 => Self::Client,
            2 => Self::Backend,
            3 => Self::Signal,
            4 => Self::Control,
            peer => Self::Peer((peer - Self::FIRST_PEER) as usize),
        }
    }
}

/// One device and everything that its loop waits for.
pub(crate) struct Server {
    function: Function<Box<dyn pci::Device>>,
    listener: Listener,
    session: Option<Connected>,
    /// What a device without a client has to work with: nothing.
    nobody: Lent,
    epoll: Epoll,
    signals: SignalFd,
    accept_again: Option<Instant>,
    /// Of sessions that are over.
    resets: Resets,
    /// What the agent knows: whether there is a client, and the resets; and when it was told.
    told: (bool, Resets),
    told_at: Instant,
    log: Log,
}

/// Lines that a client can cause at will.
#[derive(Default)]
struct Log {
    connected: Throttle,
    disconnected: Throttle,
    turned_away: Throttle,
}

struct Connected {
    session: Session,
    client: Option<Client>,
    /// What epoll watches the connection for.
    watched: EpollFlags,
}

impl Server {
    /// Makes everything that can fail before the first client: socket, model, backend.
    pub(crate) fn open(args: &Serve, control: &mut Control) -> Result<Self, Failure> {
        let listener = match (&args.socket_path, args.fd) {
            (Some(path), _) => Listener::bind(path).map_err(failure::listen)?,
            (None, Some(fd)) => {
                Listener::from_fd(inherit::take("fd", fd)?).map_err(failure::listen)?
            }
            (None, None) => {
                return Err(Failure::invalid(
                    "no socket: pass --socket-path or --fd".into(),
                ));
            }
        };
        let seed = seed(&listener);
        let device = models::open(&args.model, read_config(&args.config)?, seed)?;
        Self::with(listener, device, control)
            .map_err(|errno| Failure::internal(format!("set up the event loop: {errno}")))
    }

    fn with(
        listener: Listener,
        device: Box<dyn pci::Device>,
        control: &Control,
    ) -> Result<Self, Errno> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&mask), None)?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let server = Self {
            function: Function::new(device),
            listener,
            session: None,
            nobody: Lent::default(),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            signals,
            accept_again: None,
            resets: Resets::default(),
            told: (false, Resets::default()),
            told_at: Instant::now(),
            log: Log::default(),
        };
        server.watch_listeners(control)?;
        server.watch(&server.signals, Token::Signal)?;
        if let Some(fd) = server.function.fd() {
            server.watch(fd, Token::Backend)?;
        }
        Ok(server)
    }

    /// Serves until a signal says to end.
    pub(crate) fn run(mut self, mut control: Control) -> Result<Signal, Errno> {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout(Instant::now())) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno),
            };
            let now = Instant::now();
            let mut backend_ready = false;
            for event in &events[..count] {
                match Token::from_u64(event.data()) {
                    Token::Listener => self.accept(&control, now)?,
                    Token::Client => self.serve(now),
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
            self.watch_client()?;
            self.tell_status(&mut control, now);
        }
    }

    /// Until the next thing is due.
    fn timeout(&self, now: Instant) -> EpollTimeout {
        let session = self
            .session
            .as_ref()
            .and_then(|connected| connected.session.deadline());
        let due = [
            self.function.deadline(),
            session,
            self.accept_again,
            self.status_due(),
        ]
        .into_iter()
        .flatten()
        .min();
        match due.map(|due| due.saturating_duration_since(now)) {
            None => EpollTimeout::NONE,
            Some(Duration::ZERO) => EpollTimeout::ZERO,
            // Rounded up, so that a deadline a fraction of a millisecond away does not spin.
            Some(wait) => u16::try_from(wait.as_millis() + 1)
                .map_or(EpollTimeout::from(u16::MAX), EpollTimeout::from),
        }
    }

    fn keep_deadlines(
        &mut self,
        control: &Control,
        backend_ready: bool,
        now: Instant,
    ) -> Result<(), Errno> {
        if backend_ready || self.function.deadline().is_some_and(|due| due <= now) {
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
        self.epoll.delete(&self.listener)?;
        control
            .listener()
            .map_or(Ok(()), |fd| self.epoll.delete(fd))
    }

    fn watch_listeners(&self, control: &Control) -> Result<(), Errno> {
        self.watch(&self.listener, Token::Listener)?;
        control
            .listener()
            .map_or(Ok(()), |fd| self.watch(fd, Token::Control))
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
            return Ok(());
        }
        let session = Session::new(stream, &self.function, now)
            .and_then(|session| Ok(self.watch(&session, Token::Client).map(|()| session)?));
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                warn!(%error, "a client could not be served, and was closed");
                return Ok(());
            }
        };
        let client = session.credentials().ok().map(|credentials| Client {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
            executable: std::fs::read_link(format!("/proc/{}/exe", credentials.pid()))
                .ok()
                .map(|path| path.to_string_lossy().into_owned()),
        });
        if let Some(suppressed) = self.log.connected.pass(now) {
            info!(?client, suppressed, "client connected");
        }
        self.session = Some(Connected {
            session,
            client,
            watched: EpollFlags::EPOLLIN,
        });
        Ok(())
    }

    fn serve(&mut self, now: Instant) {
        let Some(connected) = &mut self.session else {
            return;
        };
        if let Err(closed) = connected.session.serve(&mut self.function) {
            let source = std::error::Error::source(&closed).map(|source| format!(": {source}"));
            self.disconnect(&format!("{closed}{}", source.unwrap_or_default()), now);
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
                self.serve(now);
            }
        }
    }

    /// The client is gone: its memory is unmapped, its eventfds are closed, and the model is as after power-on.
    fn disconnect(&mut self, why: &str, now: Instant) {
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
        drop(session);
        self.function.reset(&mut self.nobody);
    }

    fn signal(&self) -> Result<Option<Signal>, Errno> {
        let info = self.signals.read_signal()?;
        Ok(info
            .and_then(|info| i32::try_from(info.ssi_signo).ok())
            .and_then(|number| Signal::try_from(number).ok()))
    }

    fn accept_control(&mut self, control: &mut Control, now: Instant) -> Result<(), Errno> {
        let index = match control.accept(&self.status()) {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(()),
            Err(error) => return self.pause_listening(control, &error, now),
        };
        let watched = control
            .peer(index)
            .map_or(Ok(()), |fd| self.watch(fd, Token::Peer(index)));
        if let Err(errno) = watched {
            warn!(%errno, "a control connection could not be served, and was closed");
            control.close(index);
        }
        Ok(())
    }

    fn serve_control(&mut self, control: &mut Control, index: usize, now: Instant) {
        match control.receive(index) {
            Some(Request::Reset { id }) => {
                let (function, lent) = self.function_and_lent();
                function.reset(lent);
                self.resets.api += 1;
                info!("reset through the control socket");
                // First what it led to: who waits for the reply then knows.
                control.send_status_to(index, &self.status());
                control.reply(index, id);
            }
            Some(Request::Status) => {
                self.notice_hang_up(now);
                control.send_status_to(index, &self.status());
            }
            None => {}
        }
    }

    /// Tells the agent what has changed, at most once per [`STATUS_PERIOD`]: a guest that resets its device in a loop must
    /// not flood it.
    fn tell_status(&mut self, control: &mut Control, now: Instant) {
        if self.status_due().is_some_and(|due| due <= now) {
            control.send_status(&self.status());
            self.told = self.news();
            self.told_at = now;
        }
    }

    fn status_due(&self) -> Option<Instant> {
        (self.news() != self.told).then(|| self.told_at + STATUS_PERIOD)
    }

    fn news(&self) -> (bool, Resets) {
        let mut resets = self.resets;
        resets.software = self.function.software_resets();
        resets.device_reset += self
            .session
            .as_ref()
            .map_or(0, |connected| connected.session.device_resets());
        (self.session.is_some(), resets)
    }

    fn status(&self) -> Status {
        let (connected, resets) = self.news();
        Status {
            pid: std::process::id(),
            state: if connected {
                State::Connected
            } else {
                State::Listening
            },
            client: self
                .session
                .as_ref()
                .and_then(|connected| connected.client.clone()),
            resets,
        }
    }

    fn watch(&self, fd: impl AsFd, token: Token) -> Result<(), Errno> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.to_u64()))
    }

    /// Waits for room to write while replies wait, and for requests unless too many replies wait.
    fn watch_client(&mut self) -> Result<(), Errno> {
        let Some(Connected {
            session, watched, ..
        }) = &mut self.session
        else {
            return Ok(());
        };
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLOUT, session.wants_write());
        wanted.set(EpollFlags::EPOLLIN, !session.is_blocked());
        if wanted != *watched {
            self.epoll.modify(
                &*session,
                &mut EpollEvent::new(wanted, Token::Client.to_u64()),
            )?;
            *watched = wanted;
        }
        Ok(())
    }
}

/// The same for every start on this host with this socket.
fn seed(listener: &Listener) -> models::Seed {
    let read = |path| std::fs::read(path).ok().filter(|text| !text.is_empty());
    let host = read("/etc/machine-id").or_else(|| read("/proc/sys/kernel/hostname"));
    let socket = match listener.path() {
        Some(path) => path.into_os_string().into_encoded_bytes(),
        // Nothing tells a socket without a path from others.
        None => read("/proc/sys/kernel/random/uuid").unwrap_or_default(),
    };
    let hash = Sha256::new()
        .chain_update(host.unwrap_or_default())
        .chain_update(socket)
        .finalize();
    let (first, _) = hash.split_first_chunk().expect("SHA-256 has 32 bytes");
    models::Seed(*first)
}

fn read_config(argument: &str) -> Result<serde_json::Value, Failure> {
    let text = match argument.strip_prefix('@') {
        None => argument.to_owned(),
        Some(path) => {
            let file = std::fs::File::open(path).and_then(|file| {
                let mut text = String::new();
                std::io::Read::read_to_string(
                    &mut std::io::Read::take(file, MAX_CONFIG_BYTES as u64),
                    &mut text,
                )?;
                Ok(text)
            });
            file.map_err(|error| Failure::invalid(format!("configuration file {path}: {error}")))?
        }
    };
    serde_json::from_str(&text)
        .map_err(|error| Failure::invalid(format!("configuration is not JSON: {error}")))
}
