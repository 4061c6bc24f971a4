//! What changes about devices: how each was last shown, the last changes in order, and who reads them.
//!
//! A device's task publishes how the device is; what is equal to the last is no change. Each change has a number, the
//! version, one more than the change before it. The last changes are in a ring, and a reader is a place in it: it has no
//! buffer that could grow, and one that is slow costs the others nothing. Who falls out of the ring is told so.
//!
//! What is kept of a device is its message of the API, encoded once: small, equal when nothing changed, and as good for
//! the list as for all readers.
//!
//! Changes are written down before anybody sees them (`segments.rs`), so that the next agent goes on where this one ends,
//! whichever way that ends. When they can't be written any more, devices are not to suffer: the versions get another epoch
//! at once, so that what the file system still has of the first one stays true, and the next agent begins anew.

mod segments;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use self::segments::{Left, Segments};
use crate::filter::Facts;

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
    facts: OnceLock<Facts>,
}

impl Snapshot {
    fn new(identity: Arc<Identity>, encoded: Box<[u8]>) -> Arc<Self> {
        Arc::new(Self {
            identity,
            encoded,
            facts: OnceLock::new(),
        })
    }

    /// What a filter can ask for, read from the message when the first one asks.
    pub(crate) fn facts(&self, read: impl FnOnce(&[u8]) -> Facts) -> &Facts {
        self.facts.get_or_init(|| read(&self.encoded))
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
    /// The epoch that this one took the place of, and its last change.
    former: Option<(Arc<str>, u64)>,
    /// The last change.
    version: u64,
    devices: BTreeMap<String, Arc<Snapshot>>,
    /// Up to `version`, without a gap.
    ring: VecDeque<Change>,
    ring_bytes: usize,
    kept: usize,
    segments: Option<Segments>,
}

impl Inner {
    fn new(kept: usize) -> Self {
        Self {
            epoch: new_epoch(),
            former: None,
            version: 0,
            devices: BTreeMap::new(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            kept,
            segments: None,
        }
    }

    fn go_on(kept: usize, left: Left) -> Self {
        let mut inner = Self {
            epoch: left.epoch.into(),
            version: left.version,
            devices: left.devices,
            segments: Some(left.segments),
            ..Self::new(kept)
        };
        for change in left.changes {
            inner.apply(change);
        }
        inner
    }

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
        if let Some(segments) = &mut self.segments
            && let Err(error) = segments.append(&change)
        {
            self.give_up(&error);
        }
        self.apply(change);
        if let Some(segments) = &mut self.segments
            && segments.is_full(self.kept, KEPT_BYTES)
            && let Err(error) = segments.next(&self.epoch, self.version, self.devices.values())
        {
            self.give_up(&error);
        }
    }

    /// Goes on without segments. Who reads does not notice.
    fn give_up(&mut self, error: &io::Error) {
        let Some(segments) = self.segments.take() else {
            return;
        };
        let path = segments.directory().display();
        warn!(%error, %path, "changes can't be written down: watches can't be resumed after the next start of the agent");
        // What can't be removed does no harm.
        let _ = Segments::remove(segments.directory());
        let former = std::mem::replace(&mut self.epoch, new_epoch());
        self.former = Some((former, self.version));
    }

    /// Whether a version of this epoch was of this agent's or of one that it goes on from.
    fn knows(&self, epoch: &str, version: u64) -> bool {
        let is_former = |(former, last): &(Arc<str>, u64)| **former == *epoch && version <= *last;
        *epoch == *self.epoch || self.former.as_ref().is_some_and(is_former)
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
    /// Goes on where an earlier agent of this boot ended, if there was one. This many changes are kept.
    pub(crate) fn open(directory: &Path, boot_id: &str, kept: usize) -> Self {
        let found = Segments::find(directory, boot_id).unwrap_or_else(|error| {
            let path = directory.display();
            warn!(%error, %path, "changes of earlier agents can't be read: watches begin anew");
            None
        });
        let inner = match found {
            Some(left) => Inner::go_on(kept, left),
            None => {
                let mut inner = Inner::new(kept);
                match Segments::remove(directory)
                    .and_then(|()| Segments::begin(directory, boot_id, &inner.epoch, 0, [].iter()))
                {
                    Ok(segments) => inner.segments = Some(segments),
                    Err(error) => {
                        let path = directory.display();
                        warn!(%error, %path, "changes can't be written down: watches can't be resumed after the next start of the agent");
                    }
                }
                inner
            }
        };
        Self {
            latest: watch::Sender::new(inner.version),
            inner: Mutex::new(inner),
        }
    }

    /// Without a place to write changes down.
    #[cfg(test)]
    pub(crate) fn new(kept: usize) -> Self {
        Self {
            inner: Mutex::new(Inner::new(kept)),
            latest: watch::Sender::new(0),
        }
    }

    /// Shows that all devices are gone that are not among these: they went while no agent ran.
    pub(crate) fn retain(&self, mut exists: impl FnMut(&Identity) -> bool) {
        let mut inner = self.inner();
        let gone = |it: &&Arc<Snapshot>| !exists(&it.identity);
        let gone: Vec<_> = inner.devices.values().filter(gone).cloned().collect();
        for last in gone {
            inner.push(Some(last), None);
        }
        self.latest.send_replace(inner.version);
    }

    /// Whether this device was shown.
    pub(crate) fn has(&self, id: &str, uid: &str) -> bool {
        let inner = self.inner();
        inner
            .devices
            .get(id)
            .is_some_and(|it| it.identity.uid == uid)
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
        let kept = (inner.floor()..=inner.version).contains(&number);
        match kept && inner.knows(epoch, number) {
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

/// Differs from all others.
fn new_epoch() -> Arc<str> {
    Uuid::new_v4().simple().to_string()[..12].into()
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
