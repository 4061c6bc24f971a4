//! What goes around every call: whether its caller may make it, a bound on how many there are, a span with what came of
//! it, and the line of the audit log.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderMap};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Layer, Service};
use tracing::{Instrument, debug, info_span};

use super::body::{Arriving, PATIENCE};
use super::{convert, status};
use crate::access::{Access, Peer, Role, Rules, least};
use crate::audit::{Audit, Call, Outcome};
use crate::config::Live;
use crate::supervisor::Error;

/// The layer. Calls over the limit are refused at once, rather than made to wait: a caller that
/// waits without being told so learns nothing.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    live: Live,
    under_way: AtomicUsize,
    closed: AtomicBool,
    less: Notify,
    access: Access,
    audit: Audit,
}

impl Calls {
    pub(crate) fn new(live: Live, access: Access, audit: Audit) -> Self {
        Self {
            shared: Arc::new(Shared {
                live,
                under_way: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
                less: Notify::new(),
                access,
                audit,
            }),
        }
    }

    /// Goes by the configuration as it changes, until the agent ends.
    pub(crate) async fn follow(self, mut ending: watch::Receiver<bool>) {
        let mut live = self.shared.live.clone();
        loop {
            tokio::select! {
                // An error means that the sender is gone, which is as good.
                _ = ending.wait_for(|it| *it) => return,
                () = live.changed() => {}
            }
            let config = live.get();
            self.shared.audit.set_max_bytes(config.audit.max_bytes);
            // The host's user database may be on another host.
            let rules = tokio::task::spawn_blocking(move || Rules::new(&config.access));
            match rules.await {
                Ok(Ok(rules)) => self.shared.access.set(rules),
                Ok(Err(error)) => tracing::error!(%error, "rules of access stay as they were"),
                // The runtime ends.
                Err(_) => return,
            }
        }
    }

    /// Takes no more calls. Those under way go on.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
    }

    /// Waits until no call is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let less = self.shared.less.notified();
            if self.shared.under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            less.await;
        }
    }
}

impl Shared {
    /// A place among the calls under way, unless there are too many.
    fn begin(self: &Arc<Self>) -> Result<Place, Status> {
        // Counted first, so that of two calls at once one is too many.
        let before = self.under_way.fetch_add(1, Ordering::SeqCst);
        let place = Place(self.clone());
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::ShuttingDown.into());
        }
        let limit = self.live.get().limits.concurrent_calls as usize;
        match before < limit {
            true => Ok(place),
            false => Err(status::overloaded(limit)),
        }
    }

    /// Whether this caller may make this call: its role, where it takes one.
    fn check(&self, peer: &Peer, needs: Option<Role>, method: &str) -> Result<(), Status> {
        let Some(needs) = needs else { return Ok(()) };
        let checked = self.access.check(peer, needs);
        checked
            .map(|_| ())
            .map_err(|why| status::denied(peer, &why, method))
    }
}

/// A place among the calls under way; free again when it is dropped.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
        self.0.less.notify_waiters();
    }
}

impl<S> Layer<S> for Calls {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        let calls = self.clone();
        Guarded { inner, calls }
    }
}

/// A service with the layer around it.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    inner: S,
    calls: Calls,
}

impl<S, A> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<A>>,
    S::Future: Send + 'static,
    S::Error: Display + Send + 'static,
    A: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let shared = &self.calls.shared;
        let start = Instant::now();
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let needs = least(&method);
        // The connection's: see `listen`.
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let Some(peer) = peer else {
            let refused = Status::internal("the agent does not know who calls; report this");
            return ready(&refused);
        };
        let call = Call {
            role: shared.access.role(&peer),
            trace_id: convert::trace_id(request.headers()),
            method: method.clone(),
            peer,
            start,
        };
        if let Err(refused) = shared.check(&call.peer, needs, &method) {
            shared.audit.denied(&call, &outcome(&refused));
            return ready(&refused);
        }
        let changes = needs.is_some_and(|it| it > Role::Viewer);
        let pending = changes.then(|| shared.audit.begin(call));
        let place = match shared.begin() {
            Ok(place) => place,
            Err(refused) => {
                if let Some(pending) = pending {
                    pending.end(outcome(&refused));
                }
                return ready(&refused);
            }
        };
        if let Some(pending) = &pending {
            request.extensions_mut().insert(pending.note());
        }
        // Reflection is a conversation, which has no end that one could wait for.
        if needs.is_some() {
            let limit = shared.live.get().limits.request_bytes as usize;
            request = request.map(|body| Body::new(Arriving::new(body, limit, PATIENCE)));
        }
        let span = info_span!("rpc", method);
        let answer = self.inner.call(request);
        let observed = async move {
            let answer = answer.await;
            drop(place);
            let outcome = match &answer {
                Ok(answer) => from_headers(answer.headers()),
                Err(error) => outcome(&Status::unknown(error.to_string())),
            };
            debug!(code = ?outcome.code, elapsed = ?start.elapsed(), "call");
            if let Some(pending) = pending {
                pending.end(outcome);
            }
            answer
        };
        Box::pin(observed.instrument(span))
    }
}

type Ready<A, E> = Pin<Box<dyn Future<Output = Result<http::Response<A>, E>> + Send>>;

fn ready<A, E>(refused: &Status) -> Ready<A, E>
where
    A: Default + Send + 'static,
    E: Send + 'static,
{
    let answer = refused.clone().into_http();
    Box::pin(std::future::ready(Ok(answer)))
}

fn outcome(status: &Status) -> Outcome {
    let reason = status.get_details_error_info().map(|it| it.reason);
    Outcome {
        code: status.code(),
        reason: reason.unwrap_or_default(),
    }
}

/// What the head of an answer says. The code of a call that streams comes in trailers, which is after the fact.
fn from_headers(headers: &HeaderMap) -> Outcome {
    match Status::from_header_map(headers) {
        Some(status) => outcome(&status),
        None => Outcome {
            code: Code::Ok,
            reason: String::new(),
        },
    }
}
