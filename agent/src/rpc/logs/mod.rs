//! ReadLogs: what a device's processes have logged, and what they log from now on.
//!
//! The log is a file that outlives processes and agents; reading it asks nobody. Who follows looks at its end some times a
//! second, which costs only while somebody does.

mod reader;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use prost_types::Timestamp;
use proto::v1;
use proto::v1::{LogLine, ReadLogsResponse};
use tonic::codegen::BoxStream;
use tonic::{Request, Status};

use self::reader::Reader;
use super::Service;
use super::convert::device_id;
use super::status::{invalid_field, log_unreadable};
use super::stream::Bounds;
use crate::supervisor::Supervisor;

/// How often somebody who follows looks whether there is more.
const POLL: Duration = Duration::from_millis(200);
/// Lines are wanted from this time on.
#[derive(Debug, Clone, Copy)]
struct Since {
    time: (i64, i32),
    /// A line of that time, or a later one, has come by.
    is_past: bool,
    /// What comes now is new, even if it does not say so.
    is_new: bool,
}

impl Since {
    fn wants(&mut self, line: &LogLine) -> bool {
        let time = line.time.as_ref();
        self.is_past |= time.map_or(self.is_new, |it| (it.seconds, it.nanos) >= self.time);
        self.is_past
    }
}

/// One stream.
struct Reading {
    supervisor: Arc<Supervisor>,
    id: String,
    uid: String,
    path: PathBuf,
    tail: Option<u64>,
    since: Option<Since>,
    reader: Option<Reader>,
    /// Nothing comes after what is in the log now.
    is_last: bool,
}

impl Service {
    /// Begins to read.
    pub(super) fn logs(
        &self,
        request: &Request<v1::ReadLogsRequest>,
    ) -> Result<BoxStream<ReadLogsResponse>, Status> {
        let bounds = self.streams.begin(request.metadata())?;
        let request = request.get_ref();
        let id = device_id(&request.name)?;
        let tail = match request.tail_lines.map(u64::try_from) {
            None => None,
            Some(Ok(tail)) => Some(tail),
            Some(Err(_)) => {
                let why = "is negative; leave it out to get all that is kept";
                return Err(invalid_field("tail_lines", why));
            }
        };
        let reading = Reading {
            uid: self.supervisor.get(id)?.record.uid.clone(),
            supervisor: self.supervisor.clone(),
            id: id.to_owned(),
            path: self.supervisor.shared.log_path(id),
            tail,
            since: request.since.map(|Timestamp { seconds, nanos }| Since {
                time: (seconds, nanos),
                is_past: false,
                is_new: false,
            }),
            reader: None,
            is_last: !request.follow,
        };
        let next = async |state: Option<(Reading, Bounds)>| {
            let (mut reading, mut bounds) = state?;
            let read = tokio::select! {
                status = bounds.ended() => Err(status),
                read = reading.next() => {
                    read.map_err(|error| log_unreadable(&reading.id, &error))
                }
            };
            match read {
                Ok(lines) if lines.is_empty() => None,
                Ok(lines) => Some((Ok(ReadLogsResponse { lines }), Some((reading, bounds)))),
                Err(status) => Some((Err(status), None)),
            }
        };
        Ok(Box::pin(stream::unfold(Some((reading, bounds)), next)))
    }
}

impl Reading {
    /// The next lines, when there are some; none when there will be none.
    async fn next(&mut self) -> io::Result<Vec<LogLine>> {
        loop {
            let (path, tail, reader) = (self.path.clone(), self.tail, self.reader.take());
            let look = move || look(&path, tail, reader);
            let looked = tokio::task::spawn_blocking(look).await?;
            let (reader, mut lines, is_more) = looked?;
            self.reader = reader;
            if self.is_last && !is_more {
                lines.extend(self.reader.as_mut().and_then(Reader::rest));
            }
            if let Some(since) = &mut self.since {
                lines.retain(|line| since.wants(line));
                since.is_new |= !is_more;
            }
            if !lines.is_empty() || (self.is_last && !is_more) {
                return Ok(lines);
            }
            if !is_more {
                tokio::time::sleep(POLL).await;
                // What was logged until then is still there for who has it open.
                let device = self.supervisor.get(&self.id);
                self.is_last = !device.is_ok_and(|it| it.record.uid == self.uid);
            }
        }
    }
}

type Looked = (Option<Reader>, Vec<LogLine>, bool);

/// The next lines, and whether there may be more of them now. Before a device's first process there is no log.
fn look(path: &std::path::Path, tail: Option<u64>, reader: Option<Reader>) -> io::Result<Looked> {
    let opened = match reader {
        Some(reader) => Ok(reader),
        None => Reader::open(path, tail),
    };
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((None, Vec::new(), false));
        }
        Err(error) => return Err(error),
    };
    let mut lines = Vec::new();
    let is_more = reader.read(&mut lines)?;
    Ok((Some(reader), lines, is_more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_time_goes_with_the_one_before_it() {
        let line = |seconds: Option<i64>| LogLine {
            time: seconds.map(|seconds| Timestamp { seconds, nanos: 0 }),
            text: String::new(),
        };
        let mut since = Since {
            time: (5, 0),
            is_past: false,
            is_new: false,
        };
        let lines = [None, Some(4), None, Some(5), None, Some(4)].map(line);
        let wanted = lines.each_ref().map(|line| since.wants(line));
        assert_eq!(wanted, [false, false, false, true, true, true]);
        since.is_past = false;
        since.is_new = true;
        assert_eq!(
            [Some(4), None].map(|it| since.wants(&line(it))),
            [false, true]
        );
    }
}
