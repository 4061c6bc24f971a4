//! Connections on their way in. One task accepts them and finds out who is at the other end; the server takes them from
//! a queue.

mod connection;
mod places;

use std::io;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use self::connection::Connection;
use self::places::{Owner, Places};
use crate::access::{Local, Peer};

/// Connections that the server has not taken yet.
const QUEUE: usize = 16;
/// How long to wait when the agent can't accept, as without a free file.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that connections are refused is told of, at most.
const QUIET: Duration = Duration::from_secs(10);

/// Who accepts.
#[derive(Debug)]
pub(crate) struct Listener {
    local: UnixListener,
    places: Places,
    sender: mpsc::Sender<io::Result<Connection>>,
    told: Option<Instant>,
}

impl Listener {
    /// Who accepts, and what it accepted.
    pub(crate) fn new(local: UnixListener) -> (Self, ReceiverStream<io::Result<Connection>>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let listener = Self {
            local,
            places: Places::default(),
            sender,
            told: None,
        };
        (listener, ReceiverStream::new(receiver))
    }

    /// Accepts until the agent ends.
    pub(crate) async fn run(mut self, mut ending: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                // An error means that the sender is gone, which is as good.
                _ = ending.wait_for(|it| *it) => return,
                accepted = self.local.accept() => accepted,
            };
            let begun = match accepted {
                Ok((stream, _)) => self.begin(stream),
                Err(error) => {
                    self.tell(|| tracing::error!(%error, "accept a connection"));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            if let Some(connection) = begun
                && self.sender.send(Ok(connection)).await.is_err()
            {
                return;
            }
        }
    }

    /// Finds out who is at the other end. A connection that is refused is closed.
    fn begin(&mut self, stream: UnixStream) -> Option<Connection> {
        let local = match Local::of(&stream) {
            Ok(local) => local,
            Err(error) => {
                self.tell(|| tracing::error!(%error, "ask the kernel who connects"));
                return None;
            }
        };
        let owner = Owner::Uid(local.uid);
        match self.places.take(owner) {
            Ok(place) => Some(Connection::new(stream, Peer::Local(local), place)),
            Err(limit) => {
                self.tell(|| tracing::warn!(%owner, limit, "too many connections; one is closed"));
                None
            }
        }
    }

    fn tell(&mut self, tell: impl FnOnce()) {
        if self.told.is_none_or(|it| it.elapsed() >= QUIET) {
            self.told = Some(Instant::now());
            tell();
        }
    }
}
