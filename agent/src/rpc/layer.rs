//! What goes around every call: a bound on how many there are, and a span with what came of it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::Semaphore;
use tonic::Code;
use tonic::codegen::http;
use tower::{Layer, Service};
use tracing::{Instrument, debug, info_span};

use super::status;

/// The layer. Calls over the limit are refused at once, rather than made to wait: a caller that
/// waits without being told so learns nothing.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    permits: Arc<Semaphore>,
    limit: usize,
}

impl Calls {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Waits until no call is under way.
    pub(crate) async fn idle(&self) {
        let all = u32::try_from(self.limit).expect("the limit is a count of calls, not of bytes");
        // An error would mean that the semaphore is closed, which nobody does.
        let _ = self.permits.acquire_many(all).await;
    }
}

impl<S> Layer<S> for Calls {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Bounded<S> {
        let calls = self.clone();
        Bounded { inner, calls }
    }
}

/// A service with the layer around it.
#[derive(Debug, Clone)]
pub(crate) struct Bounded<S> {
    inner: S,
    calls: Calls,
}

impl<S, Q, A> Service<http::Request<Q>> for Bounded<S>
where
    S: Service<http::Request<Q>, Response = http::Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    A: Default + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let Ok(permit) = self.calls.permits.clone().try_acquire_owned() else {
            let refused = status::overloaded(self.calls.limit).into_http();
            return Box::pin(std::future::ready(Ok(refused)));
        };
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let span = info_span!("rpc", method);
        let start = Instant::now();
        let answer = self.inner.call(request);
        let observed = async move {
            let answer = answer.await;
            drop(permit);
            if let Ok(answer) = &answer {
                // The code of a call that streams comes in trailers, which is after the fact.
                let code = answer.headers().get("grpc-status");
                let code = code.map_or(Code::Ok, |it| Code::from_bytes(it.as_bytes()));
                debug!(?code, elapsed = ?start.elapsed(), "call");
            }
            answer
        };
        Box::pin(observed.instrument(span))
    }
}
