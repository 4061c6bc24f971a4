//! What changes about devices: how each was last shown, the last changes in order, and who reads them.
//!
//! A device's task publishes how the device is; what is equal to the last is no change. Each change has a number, the
//! version, one more than the change before it. The last changes are in a ring, and a reader is a place in it: it has no
//! buffer that could grow, and one that is slow costs the others nothing. Who falls out of the ring is told so.
//!
//! What is kept of a device is its message of the API, encoded once: small, equal when nothing changed, and as good for
//! the list as for all readers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;
use uuid::Uuid;

/// So many changes are kept unless the configuration says otherwise.
pub(crate) const KEPT: usize = 8192;
/// Kept changes have so many bytes at most, however few they are then: one device may have 128 KiB.
const KEPT_BYTES: usize = 16 << 20;
/// What a change costs beside the device's message.
const OVERHEAD_BYTES: usize = 192;
/// A reader gets so many changes at a time.
const BATCH: usize = 64;

/// Which device it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) uid: String,
}

/// How a device was at one time.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) identity: Arc<Identity>,
    /// The message of the API.
    pub(crate) encoded: Box<[u8]>,
}

impl Snapshot {
    fn new(identity: Arc<Identity>, encoded: Box<[u8]>) -> Arc<Self> {
        Arc::new(Self { identity, encoded })
    }
}

/// One change of one device. One of the two snapshots is there always.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    /// Absent when the device came to be.
    pub(crate) before: Option<Arc<Snapshot>>,
    /// Absent when it is gone.
    pub(crate) after: Option<Arc<Snapshot>>,
}

impl Change {
    fn bytes(&self) -> usize {
        let encoded = self.after.as_ref().map_or(0, |it| it.encoded.len());
        OVERHEAD_BYTES + encoded
    }
}

/// Why nobody can read from a version on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VersionError {
    /// No agent gave it.
    Malformed,
    /// What came after it is not kept any more, or was never known to this agent.
    Gone,
}

/// The reader was slower than the changes: some that it has not read are not kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behind {
    /// So many changes are kept.
    pub(crate) kept: usize,
}

#[derive(Debug)]
struct Inner {
    /// Versions are of one epoch: those of another agent's may mean something else.
    epoch: Arc<str>,
    /// The last change.
    version: u64,
    devices: BTreeMap<String, Arc<Snapshot>>,
    /// Up to `version`, without a gap.
    ring: VecDeque<Change>,
    ring_bytes: usize,
    kept: usize,
}

impl Inner {
    /// The version after which all changes are kept.
    fn floor(&self) -> u64 {
        self.version - self.ring.len() as u64
    }

    fn push(&mut self, before: Option<Arc<Snapshot>>, after: Option<Arc<Snapshot>>) {
        let version = self.version + 1;
        let change = Change {
            version,
            before,
            after,
        };
        self.apply(change);
    }

    fn apply(&mut self, change: Change) {
        match (&change.before, &change.after) {
            (_, Some(after)) => {
                let id = after.identity.id.clone();
                self.devices.insert(id, after.clone());
            }
            (Some(before), None) => {
                self.devices.remove(&before.identity.id);
            }
            (None, None) => {}
        }
        self.version = change.version;
        self.ring_bytes += change.bytes();
        self.ring.push_back(change);
        while self.ring.len() > self.kept || self.ring_bytes > KEPT_BYTES {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= oldest.bytes();
        }
    }
}

/// All devices as they were last shown, and the last changes. One for all who publish and all who read.
#[derive(Debug)]
pub(crate) struct Changes {
    inner: Mutex<Inner>,
    /// The last version: what readers wait for.
    latest: watch::Sender<u64>,
}

impl Changes {
    /// No devices; this many changes are kept.
    pub(crate) fn new(kept: usize) -> Self {
        let epoch = Uuid::new_v4().simple().to_string();
        let inner = Inner {
            epoch: epoch[..12].into(),
            version: 0,
            devices: BTreeMap::new(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            kept,
        };
        Self {
            inner: Mutex::new(inner),
            latest: watch::Sender::new(0),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Shows how a device is. Nothing may take back what is shown, not even a crash.
    pub(crate) fn publish(&self, id: &str, uid: &str, encoded: Vec<u8>) {
        let mut inner = self.inner();
        let mut before = inner.devices.get(id).cloned();
        if before.as_ref().is_some_and(|it| it.identity.uid != uid) {
            inner.push(before.take(), None);
        }
        let identity = match &before {
            Some(before) if *before.encoded == *encoded => return,
            Some(before) => before.identity.clone(),
            None => Arc::new(Identity {
                id: id.to_owned(),
                uid: uid.to_owned(),
            }),
        };
        inner.push(before, Some(Snapshot::new(identity, encoded.into())));
        self.latest.send_replace(inner.version);
    }

    /// Shows that a device is gone. One that was never shown is not.
    pub(crate) fn remove(&self, id: &str) {
        let mut inner = self.inner();
        if let Some(last) = inner.devices.get(id).cloned() {
            inner.push(Some(last), None);
            self.latest.send_replace(inner.version);
        }
    }

    /// The devices after this id, ordered by id, at most `count`; and the version at which they are so.
    pub(crate) fn list(&self, after: Option<&str>, count: usize) -> (Vec<Arc<Snapshot>>, String) {
        let inner = self.inner();
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let devices = inner.devices.range::<str, _>((after, Bound::Unbounded));
        let devices = devices.take(count).map(|(_, it)| it.clone()).collect();
        (devices, text(&inner.epoch, inner.version))
    }

    /// All devices, and a reader of what changes after that.
    pub(crate) fn list_and_follow(self: &Arc<Self>) -> (Vec<Arc<Snapshot>>, Reader) {
        let inner = self.inner();
        let devices = inner.devices.values().cloned().collect();
        (devices, self.reader(&inner, inner.version))
    }

    /// A reader of what changed after this version.
    pub(crate) fn follow(self: &Arc<Self>, version: &str) -> Result<Reader, VersionError> {
        let (epoch, number) = version.rsplit_once('-').ok_or(VersionError::Malformed)?;
        let number: u64 = number.parse().map_err(|_| VersionError::Malformed)?;
        let inner = self.inner();
        let known = *epoch == *inner.epoch && (inner.floor()..=inner.version).contains(&number);
        match known {
            true => Ok(self.reader(&inner, number)),
            false => Err(VersionError::Gone),
        }
    }

    fn reader(self: &Arc<Self>, inner: &Inner, cursor: u64) -> Reader {
        Reader {
            changes: self.clone(),
            cursor,
            epoch: inner.epoch.clone(),
            latest: self.latest.subscribe(),
        }
    }
}

/// A version as callers see it.
fn text(epoch: &str, version: u64) -> String {
    format!("{epoch}-{version}")
}

/// Who reads the changes, one after the other.
#[derive(Debug)]
pub(crate) struct Reader {
    changes: Arc<Changes>,
    /// The last change that it has.
    cursor: u64,
    /// As it was when it read last.
    epoch: Arc<str>,
    latest: watch::Receiver<u64>,
}

impl Reader {
    /// The next changes, as soon as there are some. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Behind> {
        loop {
            // First this, then the look at the ring: a change in between wakes the wait below.
            self.latest.borrow_and_update();
            let changes = self.take()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            // The sender lives as long as this reader, which holds it.
            let _ = self.latest.changed().await;
        }
    }

    fn take(&mut self) -> Result<Vec<Change>, Behind> {
        let inner = self.changes.inner();
        let floor = inner.floor();
        let read = self.cursor.checked_sub(floor).ok_or(Behind {
            kept: inner.ring.len(),
        })?;
        let read = usize::try_from(read).expect("it is less than the ring's length");
        let end = inner.ring.len().min(read + BATCH);
        let changes: Vec<_> = inner.ring.range(read..end).cloned().collect();
        if let Some(last) = changes.last() {
            self.cursor = last.version;
            self.epoch = inner.epoch.clone();
        }
        Ok(changes)
    }

    /// A version of this agent's as callers see it.
    pub(crate) fn text(&self, version: u64) -> String {
        text(&self.epoch, version)
    }

    /// The version of the last change that it has, as callers see it.
    pub(crate) fn version(&self) -> String {
        self.text(self.cursor)
    }
}

#[cfg(test)]
mod tests;
