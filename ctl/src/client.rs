//! The way to the agent: a UNIX socket or TLS over TCP, gRPC over it, and one deadline for every call.

use std::{future::Future, io, time::Duration};

use hyper_util::rt::TokioIo;
use proto::v1::{
    GetModelRequest, Model, agent_service_client::AgentServiceClient,
    device_service_client::DeviceServiceClient, model_service_client::ModelServiceClient,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint as Transport},
};

use crate::{endpoint::Endpoint, error::Error, tls::Tls};

/// The longest answer that is read: a page of devices at the API's limits is longer than the library's default.
const ANSWER_BYTES: usize = 128 << 20;

/// The longest header that is read: details of errors travel in one.
const HEADER_BYTES: u32 = 1 << 20;

/// What carries bytes to the agent.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to the agent.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    endpoint: Endpoint,
    tls: Tls,
    timeout: Duration,
}

impl Client {
    /// Connects; `timeout` holds for this and for every call.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        tls: &Tls,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let connected = async {
            let unreachable = |source| Error::Unreachable {
                endpoint: endpoint.clone(),
                source,
            };
            Ok::<Box<dyn Stream>, Error>(match endpoint {
                Endpoint::Unix(path) => {
                    Box::new(UnixStream::connect(path).await.map_err(unreachable)?)
                }
                Endpoint::Tcp { host, port } => {
                    // Before anybody is asked: its files may be wrong.
                    let config = tls.config()?;
                    let stream = TcpStream::connect((host.as_str(), *port));
                    let stream = stream.await.map_err(unreachable)?;
                    Box::new(tls.handshake(config, stream, endpoint, host).await?)
                }
            })
        };
        let stream = tokio::time::timeout(timeout, connected)
            .await
            .map_err(|_| Error::Late(timeout))??;
        // One command, one connection: a lost one is an error, not a reason to connect to whoever listens now.
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async { stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted)) }
        });
        // The host name is never looked up; HTTP wants one.
        let channel = Transport::from_static("http://vfu-agent")
            .http2_max_header_list_size(HEADER_BYTES)
            .connect_with_connector(connector)
            .await
            .map_err(|error| Error::Broken {
                endpoint: endpoint.clone(),
                why: chain(&error),
            })?;
        Ok(Self {
            channel,
            endpoint: endpoint.clone(),
            tls: tls.clone(),
            timeout,
        })
    }

    /// The calls about devices.
    pub(crate) fn devices(&self) -> DeviceServiceClient<Channel> {
        DeviceServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    /// The calls about models.
    pub(crate) fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    /// The calls about the agent.
    pub(crate) fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    /// Connects anew, to whoever listens now.
    pub(crate) async fn again(&self) -> Result<Self, Error> {
        Self::connect(&self.endpoint, &self.tls, self.timeout).await
    }

    /// How long it waits for an answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same connection, with another deadline for every call.
    pub(crate) fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// `message` as a request that carries the deadline.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// Waits for an answer, no longer than the deadline.
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(self.timeout, call).await {
            Err(_) => Err(Error::Late(self.timeout)),
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(status)),
        }
    }

    /// The next of `stream`, or None at its end; waits no longer than `limit`.
    pub(crate) async fn next<T>(
        &self,
        stream: &mut Streaming<T>,
        limit: Option<Duration>,
    ) -> Result<Option<T>, Error> {
        let message = match limit {
            None => stream.message().await,
            Some(limit) => match tokio::time::timeout(limit, stream.message()).await {
                Err(_) => return Err(Error::Late(limit)),
                Ok(message) => message,
            },
        };
        message.map_err(|status| self.failure(status))
    }

    fn failure(&self, status: Status) -> Error {
        // What has a source did not come from the agent but from the transport below.
        let source = std::error::Error::source(&status);
        let late = std::iter::successors(source, |error| error.source())
            .any(|error| error.is::<tonic::TimeoutExpired>());
        match source {
            _ if late => Error::Late(self.timeout),
            Some(source) => Error::Broken {
                endpoint: self.endpoint.clone(),
                why: chain(source),
            },
            None => status.into(),
        }
    }

    /// One model with its schema.
    pub(crate) async fn model(&self, name: &str) -> Result<Model, Error> {
        let name = name.strip_prefix("models/").unwrap_or(name);
        let request = self.request(GetModelRequest {
            name: format!("models/{name}"),
        });
        self.answer(self.models().get_model(request)).await
    }
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        source = error.source();
    }
    text
}
