//! A request on its way in: no longer than the limit, and not slower than a deadline. A call has its place among those
//! under way from its first byte on, and would keep it from others for as long as it likes to send the rest.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::codegen::Bytes;
use tonic::{Status, body};

use super::status;

/// How long a request may take from its head to its end.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// What gRPC puts before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The body of a request of one message.
pub(super) struct Arriving {
    inner: body::Body,
    limit: usize,
    prefix: Vec<u8>,
    patience: Duration,
    late: Pin<Box<Sleep>>,
}

impl Arriving {
    pub(super) fn new(inner: body::Body, limit: usize, patience: Duration) -> Self {
        Self {
            inner,
            limit,
            prefix: Vec::with_capacity(PREFIX_BYTES),
            patience,
            late: Box::pin(sleep(patience)),
        }
    }

    /// Looks at what has come for the length of the message. That is before room is made for it.
    fn check(&mut self, bytes: &[u8]) -> Result<(), Status> {
        if self.prefix.len() == PREFIX_BYTES {
            return Ok(());
        }
        let missing = (PREFIX_BYTES - self.prefix.len()).min(bytes.len());
        self.prefix.extend_from_slice(&bytes[..missing]);
        let Ok([_, length @ ..]) = <[u8; PREFIX_BYTES]>::try_from(&*self.prefix) else {
            return Ok(());
        };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        match length > self.limit {
            true => Err(status::too_long(length, self.limit)),
            false => Ok(()),
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let checked = match frame.data_ref() {
                    Some(bytes) => self.check(bytes),
                    None => Ok(()),
                };
                Poll::Ready(Some(checked.map(|()| frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending => {
                let late = self.late.as_mut().poll(context);
                late.map(|()| Some(Err(status::slow_request(self.patience))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tonic::Code;

    use super::*;

    /// A body that sends these pieces, and then nothing for ever.
    struct Pieces(std::vec::IntoIter<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.0.next() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None => Poll::Pending,
            }
        }
    }

    async fn end_of(pieces: &[&'static [u8]], limit: usize) -> (usize, Status) {
        let pieces: Vec<_> = pieces.iter().map(|it| Bytes::from_static(it)).collect();
        let inner = body::Body::new(Pieces(pieces.into_iter()));
        let mut body = Box::pin(Arriving::new(inner, limit, Duration::from_millis(1)));
        let mut count = 0;
        loop {
            match poll_fn(|context| body.as_mut().poll_frame(context)).await {
                Some(Ok(_)) => count += 1,
                Some(Err(status)) => return (count, status),
                None => unreachable!("the pieces have no end"),
            }
        }
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_at_its_fifth_byte() {
        let (count, status) = end_of(&[b"\0\0", b"\0\x01", b"\x01", b"x"], 256).await;
        assert_eq!(count, 2);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("257 bytes"), "{status}");
        assert!(
            status.message().contains("limits.request_bytes"),
            "{status}"
        );
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_given_up() {
        let (count, status) = end_of(&[b"\0\0\0\x01", b"\0x"], 256).await;
        assert_eq!(count, 2);
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
}
