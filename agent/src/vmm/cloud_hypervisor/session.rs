//! One task that puts requests to one run of cloud-hypervisor, one after the other, while somebody has use for it.
//!
//! ```text
//!             closed                   the same VMM again: Event::Missed
//! connected --------> looking for it -----------------------------------> connected
//!     |  ^                 | nobody listens there, or another VMM does
//!     |  | next request    +---------------------------------------------> gone: Event::Gone
//!     v  |
//!  unconnected (after a request that broke off, or an answer that was the last on its connection)
//! ```
//!
//! The VMM serves its API in one thread that waits for each request's end, which can be long: while a device is added that
//! does not answer, nothing else is. A request that has taken its time is given up, its connection with it. A request whose
//! caller has gone before it was sent is not sent any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument, debug, info, info_span, warn};

use super::super::events::{Event, Feed, Receiver};
use super::super::identity::Identity;
use super::super::{Error, Owner};
use super::http::{Answer, Call, Connection, stranger};
use super::monitor::{self, Monitor};
use super::owner;
use super::wire::{self, Ping, Version};
use crate::chain::chain;
use crate::supervisor::backoff;

/// From connect to the first answer.
const LIMIT: Duration = Duration::from_secs(6);

/// Requests that wait to be sent.
const QUEUE: usize = 16;

/// A connection that held this long is looked for at once when it is closed.
const STABLE: Duration = Duration::from_secs(30);

/// The way to the task. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    path: PathBuf,
    events_path: Option<PathBuf>,
    /// As it tells, and as it is compared; nothing of a build without a number.
    pub(super) version_text: String,
    pub(super) version: Option<Version>,
    pub(super) owner: Owner,
    requests: mpsc::Sender<Request>,
    events: Receiver,
    /// How many wait for something to happen in the VMM.
    waiters: watch::Sender<usize>,
    /// That something may have happened.
    pub(super) hint: Arc<Notify>,
    /// Dropped with this.
    _needed: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Request {
    call: Call,
    limit: Duration,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Answer, Error>>;

impl Session {
    /// Connects, and gives back what must be run for it.
    pub(super) async fn open(
        path: &Path,
        events_path: Option<&Path>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), Error> {
        // Before the first request, so that no event of what comes of it is missed.
        let (waiters, waiting) = watch::channel(0);
        let monitor = match events_path {
            Some(path) => Some(Monitor::open(path, waiting).await),
            None => None,
        };
        let (connection, ping) = timeout(LIMIT, greet(path)).await.unwrap_or({
            Err(Error::Unanswered {
                operation: "vmm.ping",
                waited: LIMIT,
            })
        })?;
        let (requests, inbox) = mpsc::channel(QUEUE);
        let (feed, events) = Feed::new();
        let (needed, unneeded) = oneshot::channel();
        let session = Self {
            path: path.to_owned(),
            events_path: events_path.map(Path::to_owned),
            version: Version::parse(&ping.version),
            version_text: ping.version,
            owner: owner::of(connection.owner, ping.pid),
            requests,
            events,
            waiters,
            hint: Arc::default(),
            _needed: needed,
        };
        let mut task = Task {
            path: path.to_owned(),
            identity: connection.identity.clone(),
            inbox,
            state: State::connected(connection),
            short_count: 0,
        };
        let span = info_span!("cloud-hypervisor", path = %path.display());
        let run = async move {
            let is_gone = tokio::select! {
                () = task.run(&feed) => true,
                // All others can only end.
                () = watch_events(monitor, &feed) => false,
                _ = unneeded => {
                    debug!("nobody needs it any more");
                    false
                }
                _ = shutdown.wait_for(|it| *it) => false,
            };
            if is_gone {
                // Before the task is dropped, and with it the requests in its queue: who waits finds it so.
                feed.gone();
            }
            drop(task);
        };
        Ok((session, run.instrument(span)))
    }

    /// Asks the VMM, which may refuse. What it is asked for may take as long as `limit`, and so may what it is at.
    pub(super) async fn ask(&self, call: Call, limit: Duration) -> Result<Answer, Error> {
        let begun = Instant::now();
        let operation = call.operation;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let request = Request { call, limit, reply };
            self.requests.send(request).await.ok()?;
            answer.await.ok()
        };
        match timeout(limit, asked).await {
            Ok(Some(answer)) => answer,
            Ok(None) if self.is_gone() => Err(Error::Gone {
                path: self.path.clone(),
            }),
            _ => Err(Error::Unanswered {
                operation,
                waited: begun.elapsed(),
            }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What happens from now on.
    pub(super) fn events(&self) -> Receiver {
        self.events.again()
    }

    /// Where its events are to come from, and why they can't be read there.
    pub(super) async fn unheard(&self) -> Option<(PathBuf, String)> {
        let path = self.events_path.as_deref()?;
        let error = monitor::check(path).await.err()?;
        Some((path.to_owned(), error.to_string()))
    }

    /// While this is kept, events are looked for often.
    pub(super) fn attention(&self) -> Attention<'_> {
        self.waiters.send_modify(|it| *it += 1);
        Attention(&self.waiters)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.events.is_gone()
    }

    /// Whether it takes no requests any more.
    pub(super) fn is_over(&self) -> bool {
        self.requests.is_closed()
    }
}

/// That somebody waits for events.
#[derive(Debug)]
pub(super) struct Attention<'a>(&'a watch::Sender<usize>);

impl Drop for Attention<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|it| *it -= 1);
    }
}

async fn watch_events(monitor: Option<Monitor>, feed: &Feed) {
    match monitor {
        Some(monitor) => monitor.run(feed).await,
        None => std::future::pending().await,
    }
}

/// Connects, and asks who is there.
async fn greet(path: &Path) -> Result<(Connection, Ping), Error> {
    let mut connection = Connection::open(path).await?;
    let answer = connection.ask(&Call::get("vmm.ping")).await;
    let answer = answer.map_err(|why| stranger(path, why))?;
    if !answer.status.is_success() {
        let why = format!(
            "it answers vmm.ping with status {}: {}",
            answer.status.as_u16(),
            wire::refusal(&answer)
        );
        return Err(stranger(path, why));
    }
    let ping = serde_json::from_slice(&answer.body).map_err(|_| {
        let why = format!("it answers vmm.ping with `{}`", wire::refusal(&answer));
        stranger(path, why)
    })?;
    Ok((connection, ping))
}

#[derive(Debug)]
struct Task {
    path: PathBuf,
    identity: Identity,
    inbox: mpsc::Receiver<Request>,
    state: State,
    /// Connections in a row that did not hold.
    short_count: usize,
}

#[derive(Debug)]
enum State {
    Connected {
        connection: Connection,
        since: Instant,
    },
    /// It is looked for at this time.
    Looking { at: Instant },
    /// The next request connects.
    Unconnected,
}

impl State {
    fn connected(connection: Connection) -> Self {
        let since = Instant::now();
        Self::Connected { connection, since }
    }

    /// Waits until there is something to be done without a request. Cancel safe.
    async fn over(&mut self) {
        match self {
            Self::Connected { connection, .. } => connection.over().await,
            Self::Looking { at } => sleep_until(*at).await,
            Self::Unconnected => std::future::pending().await,
        }
    }
}

/// That the VMM is no more.
struct Gone;

impl Task {
    /// Ends when the VMM is gone, or nobody can ask any more.
    async fn run(&mut self, feed: &Feed) {
        loop {
            let done = tokio::select! {
                request = self.inbox.recv() => match request {
                    Some(request) => self.carry_out(request).await,
                    None => return,
                },
                () = self.state.over() => self.look(feed).await,
            };
            if let Err(Gone) = done {
                info!("cloud-hypervisor is gone");
                return;
            }
        }
    }

    /// The connection was closed, or the time to look for the VMM has come.
    async fn look(&mut self, feed: &Feed) -> Result<(), Gone> {
        if let State::Connected { since, .. } = self.state {
            let pause = match since.elapsed() > STABLE {
                true => Duration::ZERO,
                // One that lets in and throws out must not be asked all the time.
                false => backoff::pause(self.short_count, 0),
            };
            self.short_count = match pause {
                Duration::ZERO => 0,
                _ => self.short_count + 1,
            };
            let at = Instant::now() + pause;
            self.state = State::Looking { at };
            return Ok(());
        }
        match connect(&self.path, &self.identity).await? {
            Ok(connection) => {
                info!("connected to cloud-hypervisor again");
                self.state = State::connected(connection);
                feed.tell(Event::Missed);
            }
            Err(error) => {
                warn!(error = chain(&error), "connect to cloud-hypervisor again");
                self.short_count += 1;
                let at = Instant::now() + backoff::pause(self.short_count, 0);
                self.state = State::Looking { at };
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, request: Request) -> Result<(), Gone> {
        let Request {
            call,
            limit,
            mut reply,
        } = request;
        if reply.is_closed() {
            return Ok(());
        }
        let state = std::mem::replace(&mut self.state, State::Unconnected);
        let (mut connection, since) = match state {
            State::Connected { connection, since } if !connection.is_over() => (connection, since),
            _ => match connect(&self.path, &self.identity).await {
                Ok(Ok(connection)) => (connection, Instant::now()),
                Ok(Err(error)) => return answer(reply, Err(error)),
                Err(Gone) => return self.gone(reply),
            },
        };
        let begun = Instant::now();
        let asked = timeout(limit, connection.ask(&call));
        let asked = match call.body {
            Some(_) => asked.await,
            // A question that nobody wants the answer to any more need not keep others waiting.
            None => tokio::select! {
                asked = asked => asked,
                () = reply.closed() => return Ok(()),
            },
        };
        let why = match asked {
            Ok(Ok(told)) => {
                if !connection.is_over() {
                    self.state = State::Connected { connection, since };
                }
                return answer(reply, Ok(told));
            }
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {limit:?}"),
        };
        let operation = call.operation;
        warn!(operation, why, "cloud-hypervisor");
        drop(connection);
        // Perhaps because the VMM is no more; then that is what the caller is told.
        match connect(&self.path, &self.identity).await {
            Ok(Ok(connection)) => self.state = State::connected(connection),
            Ok(Err(error)) => debug!(error = chain(&error), "connect"),
            Err(Gone) => return self.gone(reply),
        }
        let waited = begun.elapsed();
        answer(reply, Err(Error::Unanswered { operation, waited }))
    }

    fn gone(&self, reply: Reply) -> Result<(), Gone> {
        let path = self.path.clone();
        answer(reply, Err(Error::Gone { path }))?;
        Err(Gone)
    }
}

/// Connects to the same VMM.
async fn connect(path: &Path, identity: &Identity) -> Result<Result<Connection, Error>, Gone> {
    match Connection::open(path).await {
        Ok(connection) if identity.may_be(&connection.identity) => Ok(Ok(connection)),
        Ok(_) => Err(Gone),
        Err(error) if identity.is_disproved_by(&error) => Err(Gone),
        Err(error) => Ok(Err(error)),
    }
}

/// The caller may have gone meanwhile.
fn answer(reply: Reply, answer: Result<Answer, Error>) -> Result<(), Gone> {
    let _ = reply.send(answer);
    Ok(())
}
