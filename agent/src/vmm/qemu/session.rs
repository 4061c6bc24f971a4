//! A QMP session: one task that keeps the connection to one run of QEMU while somebody has use for it.
//!
//! ```text
//!             lost                     the same QEMU again: Event::Missed
//! connected --------> looking for it -------------------------------------> connected
//!                          | nobody listens there, or another QEMU does
//!                          +-----------------------------------------------> gone: Event::Gone
//! ```
//!
//! A command whose caller has gone before it was sent is not sent any more. An answer that comes too late, or that nobody
//! asked for, is passed over, as is every event that this agent does not know.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt;
use tracing::{Instrument, debug, info, info_span, warn};

use super::super::events::{Event, Feed, Receiver};
use super::super::identity::Identity;
use super::super::said;
use super::super::{Error, Owner};
use super::connection::{Connection, end_of_lines};
use super::pace::Pace;
use super::wire::{self, Message, Refusal, Version};
use crate::chain::chain;
use crate::supervisor::backoff;

/// Commands that wait to be sent.
const QUEUE: usize = 16;

/// A connection that held this long is looked for at once when it is lost.
const STABLE: Duration = Duration::from_secs(30);

/// The way to the task. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    path: PathBuf,
    pub(super) version: Version,
    pub(super) owner: Owner,
    commands: mpsc::Sender<Command>,
    events: Receiver,
    /// Dropped with this.
    _needed: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Command {
    operation: &'static str,
    arguments: Value,
    reply: oneshot::Sender<Result<Value, Refusal>>,
}

impl Session {
    /// Connects, and gives back what must be run for it.
    pub(super) async fn open(
        path: &Path,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), Error> {
        let connection = Connection::open(path).await?;
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (feed, events) = Feed::new();
        let (needed, unneeded) = oneshot::channel();
        let session = Self {
            path: path.to_owned(),
            version: connection.version,
            owner: connection.owner,
            commands,
            events,
            _needed: needed,
        };
        let task = Task {
            path: path.to_owned(),
            identity: connection.identity.clone(),
            inbox,
            feed,
            pending: HashMap::new(),
            next_id: 1,
        };
        let span = info_span!("qmp", path = %path.display());
        let run = async move {
            tokio::select! {
                () = task.run(connection) => {}
                // Both can only end: nothing is sent.
                _ = unneeded => debug!("nobody needs it any more"),
                _ = shutdown.wait_for(|it| *it) => {}
            }
        };
        Ok((session, run.instrument(span)))
    }

    /// Asks QEMU, which may refuse.
    pub(super) async fn ask(
        &self,
        operation: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Result<Value, Refusal>, Error> {
        let begun = Instant::now();
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let command = Command {
                operation,
                arguments,
                reply,
            };
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        match timeout(limit, asked).await {
            Ok(Some(answer)) => Ok(answer),
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

    pub(super) fn is_gone(&self) -> bool {
        self.events.is_gone()
    }

    /// Whether it takes no commands any more.
    pub(super) fn is_over(&self) -> bool {
        self.commands.is_closed()
    }
}

#[derive(Debug)]
struct Task {
    path: PathBuf,
    identity: Identity,
    inbox: mpsc::Receiver<Command>,
    feed: Feed,
    /// Who waits for which answer. They wait on while the connection is made again, and then learn that theirs is lost.
    pending: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>,
    next_id: u64,
}

impl Task {
    async fn run(mut self, mut connection: Connection) {
        let mut short_count = 0;
        loop {
            let begun = Instant::now();
            let why = self.serve(connection).await;
            info!(why, "connection to QEMU lost");
            if begun.elapsed() > STABLE {
                short_count = 0;
            } else {
                // One that lets in and throws out must not be asked all the time.
                short_count += 1;
                tokio::time::sleep(backoff::pause(short_count, 0)).await;
            }
            let Some(found) = self.find_again().await else {
                info!("QEMU is gone");
                // Who waits finds it so.
                self.feed.gone();
                return;
            };
            connection = found;
            self.pending.clear();
            self.feed.tell(Event::Missed);
        }
    }

    /// Passes commands, answers and events until the connection ends, and says why it did.
    async fn serve(&mut self, connection: Connection) -> String {
        let Connection {
            mut lines,
            mut writer,
            ..
        } = connection;
        let mut pace = Pace::new();
        let mut unsent = Cursor::new(Vec::new());
        loop {
            let is_sent = unsent.position() == unsent.get_ref().len() as u64;
            let line = async {
                pace.turn().await;
                lines.next().await
            };
            tokio::select! {
                line = line => match line {
                    Some(Ok(line)) => match serde_json::from_str::<Message>(&line) {
                        Ok(message) => {
                            pace.heard(&line);
                            self.hear(message);
                        }
                        Err(_) => return format!("it says `{}`", said::text(&line)),
                    },
                    end => return end_of_lines(end.and_then(Result::err)),
                },
                Some(command) = self.inbox.recv(), if is_sent => {
                    if !command.reply.is_closed() {
                        unsent = Cursor::new(self.number(command));
                    }
                }
                sent = writer.write_buf(&mut unsent), if !is_sent => {
                    if let Err(error) = sent {
                        return error.to_string();
                    }
                }
            }
        }
    }

    fn number(&mut self, command: Command) -> Vec<u8> {
        // Those who wait no more are forgotten, so that a QEMU that never answers costs nothing in the end.
        self.pending.retain(|_, reply| !reply.is_closed());
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, command.reply);
        wire::command(command.operation, &command.arguments, id)
    }

    fn hear(&mut self, message: Message) {
        if let Some(event) = &message.event {
            let device = message.data.device_id().map(said::text);
            let event = match (event.as_str(), device) {
                ("DEVICE_DELETED", Some(id)) => Event::Unplugged { id },
                ("DEVICE_UNPLUG_GUEST_ERROR", Some(id)) => Event::GuestRefused {
                    id,
                    message: "it answered the request with an error".to_owned(),
                },
                ("RESET", _) => Event::Reset,
                ("SHUTDOWN", _) => Event::Shutdown,
                _ => return,
            };
            debug!(?event, "event");
            self.feed.tell(event);
            return;
        }
        let answer = match (message.value, message.error) {
            (Some(value), None) => Ok(value),
            (_, Some(refusal)) => Err(refusal),
            (None, None) => return,
        };
        let id = message.id.and_then(|id| id.as_u64());
        match id.and_then(|id| self.pending.remove(&id)) {
            // Who asked may be gone.
            Some(reply) => drop(reply.send(answer)),
            None => debug!("an answer that nobody waits for"),
        }
    }

    /// Connects to the same QEMU again; nothing when it is no more.
    async fn find_again(&mut self) -> Option<Connection> {
        let mut failures = 0;
        loop {
            match Connection::open(&self.path).await {
                Ok(connection) if self.identity.may_be(&connection.identity) => {
                    info!("connected to QEMU again");
                    return Some(connection);
                }
                Ok(_) => return None,
                Err(error) if self.identity.is_disproved_by(&error) => return None,
                Err(error) => {
                    failures += 1;
                    warn!(error = chain(&error), failures, "connect to QEMU again");
                    tokio::time::sleep(backoff::pause(failures, 0)).await;
                }
            }
        }
    }
}
