//! What all calls that stream have in common: how many there may be, and when they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::status;
use crate::config::Live;
use crate::supervisor::Error;

/// The streams of this agent. A stream is no call under way: it may go on for weeks, and the agent does not wait for it
/// when it ends.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    under_way: Arc<AtomicUsize>,
    config: Live,
    shutdown: watch::Receiver<bool>,
}

impl Streams {
    pub(super) fn new(config: Live, shutdown: watch::Receiver<bool>) -> Self {
        Self {
            under_way: Arc::default(),
            config,
            shutdown,
        }
    }

    /// A place for one more stream, unless there are too many.
    pub(super) fn begin(&self, metadata: &MetadataMap) -> Result<Bounds, Status> {
        let limit = self.config.get().limits.watches as usize;
        // Counted first, so that of two streams at once one is too many.
        let before = self.under_way.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.under_way.clone());
        if before >= limit {
            return Err(status::too_many_streams(limit));
        }
        let until = timeout(metadata).and_then(|it| Instant::now().checked_add(it));
        Ok(Bounds {
            until,
            shutdown: self.shutdown.clone(),
            _place: place,
        })
    }
}

/// One stream's bounds. Its place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Bounds {
    until: Option<Instant>,
    shutdown: watch::Receiver<bool>,
    _place: Place,
}

/// A place among the streams; free again when it is dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Bounds {
    /// Waits until the stream has to end, and says why. Cancel safe.
    pub(super) async fn ended(&mut self) -> Status {
        let late = async {
            match self.until {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // An error means that who would ask is gone, which is as good.
            _ = self.shutdown.wait_for(|it| *it) => Error::ShuttingDown.into(),
            () = late => Status::deadline_exceeded("the call's own deadline has passed"),
        }
    }
}

/// The time that the caller gives the call, as gRPC has it: up to eight digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn metadata(timeout: &'static str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", timeout.parse().unwrap());
        metadata
    }

    #[test]
    fn timeouts_are_those_of_grpc() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1X", None),
            ("123456789S", None),
            ("-1S", None),
        ] {
            assert_eq!(timeout(&metadata(text)), expected, "{text}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }

    fn streams(limit: u32, ending: watch::Receiver<bool>) -> Streams {
        let mut config = Config::default();
        config.limits.watches = limit;
        Streams::new(Live::fixed(config), ending)
    }

    #[tokio::test]
    async fn a_stream_over_the_limit_is_refused_until_another_ends() {
        let (_end, ending) = watch::channel(false);
        let streams = streams(1, ending);
        let none = MetadataMap::new();
        let first = streams.begin(&none).unwrap();
        let refused = streams.begin(&none).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("limits.watches"), "{refused}");
        drop(first);
        streams.begin(&none).unwrap();
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_agent_and_at_its_deadline() {
        let (end, ending) = watch::channel(false);
        let streams = streams(9, ending);
        let mut late = streams.begin(&metadata("1n")).unwrap();
        assert_eq!(late.ended().await.code(), tonic::Code::DeadlineExceeded);
        let mut other = streams.begin(&MetadataMap::new()).unwrap();
        end.send_replace(true);
        assert_eq!(other.ended().await.code(), tonic::Code::Unavailable);
    }
}
