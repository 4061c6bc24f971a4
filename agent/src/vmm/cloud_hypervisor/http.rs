//! One connection to the API socket: requests and answers, one at a time.
//!
//! What answers there may be anything: an answer is bounded, and whoever asks sets how long it may take. The connection is
//! kept between requests, so that its end tells of the VMM's.

use std::fmt;
use std::path::Path;
use std::pin::Pin;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::super::identity::{self, Identity};
use super::super::{Error, Owner};
use crate::chain::chain;

/// The longest answer that is taken. `vm.info` of a machine with hundreds of devices has some hundred kilobytes.
const MAX_BODY_BYTES: usize = 4 << 20;
/// The same for status and headers.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// What the API is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// Its name in the API, such as `vm.info`.
    pub(super) operation: &'static str,
    /// What it is about, in JSON; a question has none.
    pub(super) body: Option<String>,
}

impl Call {
    /// A question, which changes nothing.
    pub(super) fn get(operation: &'static str) -> Self {
        let body = None;
        Self { operation, body }
    }

    /// Something that the VMM shall do.
    pub(super) fn put(operation: &'static str, body: &serde_json::Value) -> Self {
        let body = Some(body.to_string());
        Self { operation, body }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let request = Request::builder()
            .uri(format!("/api/v1/{}", self.operation))
            .header(HOST, "localhost");
        let request = match &self.body {
            Some(_) => request
                .method(Method::PUT)
                .header(CONTENT_TYPE, "application/json"),
            None => request.method(Method::GET),
        };
        let body = self.body.clone().unwrap_or_default();
        request
            .body(Full::from(body))
            .expect("an operation is a path")
    }
}

/// What it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// A connection that takes requests. One that broke off in the middle of one is of no use any more.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// What moves the bytes; nothing when that is over.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the socket.
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).await.map_err(unreachable)?;
        let owner = identity::owner(&stream).map_err(unreachable)?;
        let (sender, driver) = Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| stranger(path, chain(&error)))?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(driver)),
            identity: Identity::of(owner, path),
            owner,
        })
    }

    /// The answer, or why there is none. Must not be asked anything any more when this was not waited for to the end.
    pub(super) async fn ask(&mut self, call: &Call) -> Result<Answer, String> {
        let sender = &mut self.sender;
        let answer = async {
            let response = sender.send_request(call.request()).await;
            let (head, body) = response.map_err(|it| chain(&it))?.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await;
            let body = body.map_err(|it| match it.is::<LengthLimitError>() {
                true => format!("its answer is longer than {MAX_BODY_BYTES} bytes"),
                false => chain(&*it),
            })?;
            Ok(Answer {
                status: head.status,
                body: body.to_bytes(),
            })
        };
        tokio::pin!(answer);
        if let Some(driver) = &mut self.driver {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                // Which can come with the last of the answer.
                _ = driver => self.driver = None,
            }
        }
        answer.await
    }

    /// Whether it takes no request any more.
    pub(super) fn is_over(&self) -> bool {
        self.driver.is_none() || self.sender.is_closed()
    }

    /// Waits until it is over. Cancel safe.
    pub(super) async fn over(&mut self) {
        if let Some(driver) = &mut self.driver {
            // Why does not matter: nothing is under way.
            let _ = driver.await;
            self.driver = None;
        }
    }
}

/// That this is no API socket of cloud-hypervisor.
pub(super) fn stranger(path: &Path, why: String) -> Error {
    Error::Stranger {
        path: path.to_owned(),
        expected: "cloud-hypervisor",
        why,
    }
}
