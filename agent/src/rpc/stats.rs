//! WatchStats: the counters of devices at an interval.
//!
//! A stream does nothing until its reader takes what there is: who reads slowly gets samples that were taken when he was
//! ready, and misses the others. The devices of one sample are read some at a time for the same reason.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream;
use prost_types::Duration as ProtoDuration;
use proto::v1;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};
use tonic::codegen::BoxStream;
use tonic::{Request, Status};

use super::Service;
use super::convert::device_id;
use super::span::duration;
use super::status::invalid_field;
use super::stream::Bounds;
use crate::clock;
use crate::stats::{Kind, Reader, Source, Stat};
use crate::supervisor::{Device, Life, Supervisor};

/// The name for all devices.
const ALL: &str = "devices/-";
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3600);
/// Devices that are read at once.
const CHUNK: usize = 64;

/// One stream.
struct Watching {
    supervisor: Arc<Supervisor>,
    reader: Arc<Reader>,
    subject: Subject,
    interval: Interval,
    bounds: Bounds,
    /// Read, and not sent yet.
    ready: std::vec::IntoIter<v1::WatchStatsResponse>,
    is_over: bool,
}

/// Whose counters.
enum Subject {
    One(watch::Receiver<Device>),
    All {
        /// The sample goes on with the devices after this one.
        after: Option<String>,
    },
}

/// What a stream waits for.
enum Event {
    Due,
    Deleted,
    Over(Status),
}

/// A device as a sample has it, before its counters are read.
struct Sampled {
    id: String,
    start_time: Option<SystemTime>,
    source: Option<Source>,
}

impl Service {
    /// Begins a stream.
    pub(super) fn stats(
        &self,
        request: &Request<v1::WatchStatsRequest>,
    ) -> Result<BoxStream<v1::WatchStatsResponse>, Status> {
        let bounds = self.streams.begin(request.metadata())?;
        let request = request.get_ref();
        let subject = match &*request.name {
            ALL => Subject::All { after: None },
            name => Subject::One(self.supervisor.follow(device_id(name)?)?),
        };
        let mut interval = tokio::time::interval(interval(request.interval.as_ref())?);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watching = Watching {
            supervisor: self.supervisor.clone(),
            reader: self.stats.clone(),
            subject,
            interval,
            bounds,
            ready: Vec::new().into_iter(),
            is_over: false,
        };
        Ok(Box::pin(stream::unfold(watching, Watching::next)))
    }
}

/// The interval that a request asks for.
fn interval(asked: Option<&ProtoDuration>) -> Result<Duration, Status> {
    let Some(asked) = asked else {
        return Ok(DEFAULT_INTERVAL);
    };
    duration(asked)
        .filter(|it| (MIN_INTERVAL..=MAX_INTERVAL).contains(it))
        .ok_or_else(|| invalid_field("interval", "must be from 100 ms to 1 h"))
}

impl Watching {
    /// The next answer, when there is one, and what goes on after it.
    async fn next(mut self) -> Option<(Result<v1::WatchStatsResponse, Status>, Self)> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(answer) = self.ready.next() {
                return Some((Ok(answer), self));
            }
            match self.wait().await {
                Event::Due => self.sample().await,
                Event::Deleted => return None,
                Event::Over(why) => {
                    self.is_over = true;
                    return Some((Err(why), self));
                }
            }
        }
    }

    async fn wait(&mut self) -> Event {
        if let Subject::All { after: Some(_) } = self.subject {
            return Event::Due;
        }
        let deleted = async {
            match &mut self.subject {
                // An error means that its task is gone, and with it the device or the agent.
                Subject::One(device) => {
                    drop(device.wait_for(|it| it.view.life == Life::Gone).await);
                }
                Subject::All { .. } => std::future::pending().await,
            }
        };
        // What ends the stream comes first: a device's task ends with the agent, too.
        tokio::select! {
            biased;
            why = self.bounds.ended() => Event::Over(why),
            () = deleted => Event::Deleted,
            _ = self.interval.tick() => Event::Due,
        }
    }

    /// Reads counters of devices: all that were asked for, or some, and the others after those were sent.
    async fn sample(&mut self) {
        let devices = match &mut self.subject {
            Subject::One(device) => vec![device.borrow().clone()],
            Subject::All { after } => {
                let (devices, more) = self.supervisor.list(after.as_deref(), CHUNK);
                let last = devices.last().filter(|_| more);
                *after = last.map(|it| it.record.id.clone());
                devices
            }
        };
        let sampled: Vec<_> = devices.iter().map(|it| self.sampled(it)).collect();
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || {
            let answer = |it| answer(&reader, it);
            sampled.into_iter().map(answer).collect::<Vec<_>>()
        });
        // An error means that the runtime ends.
        self.ready = read.await.unwrap_or_default().into_iter();
    }

    fn sampled(&self, device: &Device) -> Sampled {
        let id = device.record.id.clone();
        let source = device.view.pid.map(|pid| Source {
            path: self.supervisor.shared.stats_path(&id),
            id: id.clone(),
            pid,
        });
        Sampled {
            id,
            start_time: device.view.start_time,
            source,
        }
    }
}

fn answer(reader: &Reader, sampled: Sampled) -> v1::WatchStatsResponse {
    let Sampled {
        id,
        start_time,
        source,
    } = sampled;
    let stats = source.map(|it| reader.read(&it)).unwrap_or_default();
    v1::WatchStatsResponse {
        name: format!("devices/{id}"),
        time: Some(clock::now().into()),
        stats: stats.into_iter().map(stat).collect(),
        start_time: start_time.map(Into::into),
    }
}

fn stat(stat: Stat) -> v1::Stat {
    let Stat {
        name,
        unit,
        kind,
        value,
    } = stat;
    let kind = match kind {
        Kind::Counter => v1::stat::Kind::Counter,
        Kind::Gauge => v1::stat::Kind::Gauge,
    };
    v1::Stat {
        name,
        kind: kind.into(),
        unit,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_from_a_tenth_of_a_second_to_an_hour() {
        let of = |seconds, nanos| interval(Some(&ProtoDuration { seconds, nanos })).ok();
        assert_eq!(interval(None).unwrap(), DEFAULT_INTERVAL);
        assert_eq!(of(0, 100_000_000), Some(MIN_INTERVAL));
        assert_eq!(of(3600, 0), Some(MAX_INTERVAL));
        for (seconds, nanos) in [
            (0, 0),
            (0, 99_999_999),
            (3600, 1),
            (-1, 0),
            (1, i32::MIN),
            (1, 1_000_000_000),
            (i64::MAX, i32::MAX),
            (i64::MIN, 0),
        ] {
            assert_eq!(of(seconds, nanos), None, "{seconds} {nanos}");
        }
    }
}
