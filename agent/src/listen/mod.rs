//! Connections on their way in. One task accepts them and finds out who is at the other end; the server takes them from
//! a queue.

mod connection;
mod places;
mod tls;
mod unix;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::wrappers::ReceiverStream;

use self::connection::Connection;
use self::places::{Owner, Place, Places};
pub use self::tls::Error;
use self::tls::{Files, Reloader};
pub use self::unix::bind_api;
use crate::access::{Local, Peer, Remote};
use crate::config::Live;

/// Connections that the server has not taken yet.
const QUEUE: usize = 16;
/// How long to wait when the agent can't accept, as without a free file.
const PAUSE: Duration = Duration::from_millis(100);
/// How often that connections are refused is told of, at most.
const QUIET: Duration = Duration::from_secs(10);
/// How long a caller may take to show its certificate.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once. One more ends the oldest, and with it one of those that nobody means to finish: who does takes
/// milliseconds.
const MAX_HANDSHAKES: usize = 64;

/// What the server takes connections from.
pub(crate) type Incoming = ReceiverStream<io::Result<Connection>>;

/// Who accepts.
#[derive(Debug)]
pub(crate) struct Listener {
    local: UnixListener,
    local_places: Places,
    remote: Option<RemoteListener>,
    sender: mpsc::Sender<io::Result<Connection>>,
    told: Told,
}

/// Who accepts callers from other hosts.
#[derive(Debug)]
struct RemoteListener {
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    places: Places,
    handshakes: JoinSet<Result<Connection, Refused>>,
    /// Those that may be under way still, the oldest first.
    begun: VecDeque<AbortHandle>,
}

/// What has come.
enum Event {
    Ended,
    Local(io::Result<(UnixStream, tokio::net::unix::SocketAddr)>),
    Remote(io::Result<(TcpStream, SocketAddr)>),
    /// The end of a handshake.
    Shaken(Result<Connection, Refused>),
}

/// A caller whose handshake failed.
#[derive(Debug)]
struct Refused {
    address: SocketAddr,
    why: String,
}

impl Listener {
    /// Who accepts, and what it accepted. When callers from other hosts may come, a task in `tasks` keeps the
    /// certificates fresh until the agent ends.
    pub(crate) async fn new(
        local: UnixListener,
        live: &Live,
        tasks: &mut JoinSet<()>,
        ending: &watch::Receiver<bool>,
    ) -> Result<(Self, Incoming), Error> {
        let tcp = &live.get().api.tcp;
        let remote = match tcp.address.zip(Files::of(tcp)) {
            None => None,
            Some((address, files)) => {
                let (reloader, tls) = Reloader::new(live.clone(), files)?;
                tasks.spawn(reloader.run(ending.clone()));
                Some(RemoteListener::bind(address, tls).await?)
            }
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let listener = Self {
            local,
            local_places: Places::default(),
            remote,
            sender,
            told: Told(None),
        };
        Ok((listener, ReceiverStream::new(receiver)))
    }

    /// Accepts until the agent ends.
    pub(crate) async fn run(mut self, mut ending: watch::Receiver<bool>) {
        loop {
            let begun = match self.next(&mut ending).await {
                Event::Ended => return,
                Event::Shaken(Ok(connection)) => Some(connection),
                Event::Shaken(Err(Refused { address, why })) => {
                    self.told.tell(
                        || tracing::warn!(%address, why, "a caller without a good certificate"),
                    );
                    None
                }
                Event::Local(Ok((stream, _))) => self.begin(stream),
                Event::Remote(Ok((stream, address))) => {
                    if let Some(remote) = &mut self.remote {
                        remote.begin(stream, address, &mut self.told);
                    }
                    None
                }
                Event::Local(Err(error)) | Event::Remote(Err(error)) => {
                    self.told
                        .tell(|| tracing::error!(%error, "accept a connection"));
                    tokio::time::sleep(PAUSE).await;
                    None
                }
            };
            if let Some(connection) = begun
                && self.sender.send(Ok(connection)).await.is_err()
            {
                return;
            }
        }
    }

    async fn next(&mut self, ending: &mut watch::Receiver<bool>) -> Event {
        let remote = async {
            match &mut self.remote {
                Some(remote) => remote.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An error means that the sender is gone, which is as good.
            _ = ending.wait_for(|it| *it) => Event::Ended,
            accepted = self.local.accept() => Event::Local(accepted),
            event = remote => event,
        }
    }

    /// Finds out who is at the other end. A connection that is refused is closed.
    fn begin(&mut self, stream: UnixStream) -> Option<Connection> {
        let local = match Local::of(&stream) {
            Ok(local) => local,
            Err(error) => {
                self.told
                    .tell(|| tracing::error!(%error, "ask the kernel who connects"));
                return None;
            }
        };
        let place = self.told.place(&self.local_places, Owner::Uid(local.uid))?;
        Some(Connection::new(stream, Peer::Local(local), place))
    }
}

impl RemoteListener {
    async fn bind(
        address: SocketAddr,
        tls: watch::Receiver<Arc<ServerConfig>>,
    ) -> Result<Self, Error> {
        let at = |source| Error::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(at)?;
        let address = listener.local_addr().map_err(at)?;
        tracing::info!(%address, "listening for callers with certificates");
        Ok(Self {
            listener,
            tls,
            places: Places::default(),
            handshakes: JoinSet::new(),
            begun: VecDeque::new(),
        })
    }

    /// Cancel safe.
    async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => return Event::Remote(accepted),
                Some(shaken) = self.handshakes.join_next() => {
                    // An error is a handshake that made room for another.
                    if let Ok(shaken) = shaken {
                        return Event::Shaken(shaken);
                    }
                }
            }
        }
    }

    /// Begins a handshake.
    fn begin(&mut self, stream: TcpStream, address: SocketAddr, told: &mut Told) {
        let owner = Owner::Address(address.ip().to_canonical());
        let Some(place) = told.place(&self.places, owner) else {
            return;
        };
        self.begun.retain(|it| !it.is_finished());
        if self.begun.len() >= MAX_HANDSHAKES
            && let Some(oldest) = self.begun.pop_front()
        {
            oldest.abort();
        }
        let tls = self.tls.borrow().clone();
        let handshake = handshake(stream, address, tls, place);
        self.begun.push_back(self.handshakes.spawn(handshake));
    }
}

/// Has a caller show its certificate. One that does not is told what TLS has for that, and no more.
async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    place: Place,
) -> Result<Connection, Refused> {
    let refused = |why: String| Refused { address, why };
    let failed = |error: io::Error| refused(error.to_string());
    stream.set_nodelay(true).map_err(failed)?;
    let stream = timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await;
    let late = |_| refused(format!("the handshake took longer than {HANDSHAKE:?}"));
    let stream = stream.map_err(late)?.map_err(failed)?;
    let certificates = stream.get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|it| it.first());
    let remote = certificate.and_then(|it| Remote::of(it, address));
    let remote = remote.ok_or_else(|| refused("its certificate can't be read".to_owned()))?;
    Ok(Connection::new(stream, Peer::Remote(remote), place))
}

/// When connections that were refused were told of last.
#[derive(Debug)]
struct Told(Option<Instant>);

impl Told {
    fn tell(&mut self, tell: impl FnOnce()) {
        if self.0.is_none_or(|it| it.elapsed() >= QUIET) {
            self.0 = Some(Instant::now());
            tell();
        }
    }

    /// A place for a connection, unless there are too many.
    fn place(&mut self, places: &Places, owner: Owner) -> Option<Place> {
        match places.take(owner) {
            Ok(place) => Some(place),
            Err(limit) => {
                self.tell(|| tracing::warn!(%owner, limit, "too many connections; one is closed"));
                None
            }
        }
    }
}
