//! A connection as the server gets it: bytes, who is at the other end, and no patience with one that says nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use super::places::Place;
use crate::access::Peer;

/// How long a client may take to begin. HTTP/2 looks whether it lives only after that.
const PATIENCE: Duration = Duration::from_secs(10);
/// What every client of HTTP/2 sends first.
const PREFACE_BYTES: usize = 24;

/// What carries bytes: a UNIX socket, or TLS over TCP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    peer: Arc<Peer>,
    beginning: Option<Beginning>,
    _place: Place,
}

#[derive(Debug)]
struct Beginning {
    missing: usize,
    patience: Pin<Box<Sleep>>,
}

impl Connection {
    pub(super) fn new(stream: impl Stream + 'static, peer: Peer, place: Place) -> Self {
        Self {
            stream: Box::new(stream),
            peer: Arc::new(peer),
            beginning: Some(Beginning {
                missing: PREFACE_BYTES,
                patience: Box::pin(sleep(PATIENCE)),
            }),
            _place: place,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(beginning) = &mut self.beginning {
            let count = buffer.filled().len() - before;
            beginning.missing = beginning.missing.saturating_sub(count);
            if beginning.missing == 0 {
                self.beginning = None;
            } else if read.is_pending() && beginning.patience.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
