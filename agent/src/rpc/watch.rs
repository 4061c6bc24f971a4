//! WatchDevices: what exists, then every change.
//!
//! A reader that is cut off while it gets what exists can't go on there, so these answers have no version: to go on
//! without one is to begin anew. A bookmark ends them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use proto::v1;
use proto::v1::watch_devices_response::Type;
use tokio::time::Instant;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::stream::Bounds;
use super::{Service, status, wire};
use crate::changes::{Change, Reader, Snapshot};
use crate::filter::Filter;

/// A reader hears something at least this often.
const BOOKMARK: Duration = Duration::from_secs(15);

/// Begins to watch.
pub(super) fn watch(
    service: &Service,
    request: &Request<v1::WatchDevicesRequest>,
) -> Result<Response<BoxStream<v1::WatchDevicesResponse>>, Status> {
    let asked = request.get_ref();
    let filter = wire::filter(&asked.filter)?;
    let bounds = service.streams.begin(request.metadata())?;
    let changes = &service.supervisor.shared.changes;
    let (existing, reader) = match &*asked.resource_version {
        "" => {
            let (existing, reader) = changes.list_and_follow();
            (Some(existing), reader)
        }
        version => {
            let reader = changes.follow(version);
            (None, reader.map_err(|it| status::version(version, it))?)
        }
    };
    let watch = Watch {
        existing: existing.map(Vec::into_iter),
        read: Vec::new().into_iter(),
        reader,
        filter,
        bounds,
        quiet_until: Instant::now() + BOOKMARK,
    };
    let answers = stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(answer) => Some((Ok(answer), Some(watch))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(Response::new(Box::pin(answers)))
}

/// One caller that watches.
struct Watch {
    /// What exists and was not sent yet; absent when the caller goes on after a version, or was sent all of it.
    existing: Option<std::vec::IntoIter<Arc<Snapshot>>>,
    /// Changes that were read and not sent yet.
    read: std::vec::IntoIter<Change>,
    reader: Reader,
    filter: Filter,
    bounds: Bounds,
    /// When to send a bookmark.
    quiet_until: Instant,
}

impl Watch {
    async fn next(&mut self) -> Result<v1::WatchDevicesResponse, Status> {
        let answer = self.answer().await?;
        self.quiet_until = Instant::now() + BOOKMARK;
        Ok(answer)
    }

    async fn answer(&mut self) -> Result<v1::WatchDevicesResponse, Status> {
        if let Some(existing) = &mut self.existing {
            if let Some(snapshot) = existing.find(|it| wire::matches(&self.filter, it)) {
                return answer(Type::Added, String::new(), Some(&snapshot));
            }
            self.existing = None;
            return self.bookmark();
        }
        loop {
            while let Some(change) = self.read.next() {
                let version = self.reader.text(change.version);
                // What a reader has not seen because of its filter comes to be when it matches, and is gone when it does
                // not any more.
                let takes = |it: &&Arc<Snapshot>| wire::matches(&self.filter, it);
                let before = change.before.as_ref().filter(takes);
                let after = change.after.as_ref().filter(takes);
                let (what, snapshot) = match (before, after) {
                    (None, None) => continue,
                    (None, Some(after)) => (Type::Added, after),
                    (Some(_), Some(after)) => (Type::Modified, after),
                    (Some(before), None) => {
                        (Type::Deleted, change.after.as_ref().unwrap_or(before))
                    }
                };
                return answer(what, version, Some(snapshot));
            }
            // A filter that takes little is not to keep others from the processor.
            tokio::task::consume_budget().await;
            tokio::select! {
                biased;
                status = self.bounds.ended() => return Err(status),
                read = self.reader.next() => {
                    let read = read.map_err(|it| status::too_slow(it.kept))?;
                    self.read = read.into_iter();
                }
                () = tokio::time::sleep_until(self.quiet_until) => return self.bookmark(),
            }
        }
    }

    /// Nothing else; all that was read has been sent.
    fn bookmark(&self) -> Result<v1::WatchDevicesResponse, Status> {
        answer(Type::Bookmark, self.reader.version(), None)
    }
}

fn answer(
    what: Type,
    resource_version: String,
    snapshot: Option<&Snapshot>,
) -> Result<v1::WatchDevicesResponse, Status> {
    Ok(v1::WatchDevicesResponse {
        r#type: what.into(),
        resource_version,
        device: snapshot.map(wire::decode).transpose()?,
    })
}
