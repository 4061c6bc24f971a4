//! The changes on the run directory's file system, for the agent after this one.
//!
//! A segment begins with all devices as they were at its version; the changes after that follow. When it has as many as
//! are kept, another one begins and the one before the last goes, so that the two there are hold the whole ring. A segment
//! comes to be under a hidden name. Segments of another boot are of no use: the versions begin anew.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;

use super::{Change, Identity, Snapshot};
use crate::journal::{self, End, Writer};
use crate::steps;

/// No agent counts that far.
const MAX_VERSION: u64 = 1 << 62;
const SUFFIX: &str = ".changes";
const HIDDEN: &str = ".new";

/// How a segment begins.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    epoch: String,
    #[prost(string, tag = "2")]
    boot_id: String,
    /// Of the last change before this segment.
    #[prost(uint64, tag = "3")]
    version: u64,
    /// How many devices follow.
    #[prost(uint64, tag = "4")]
    device_count: u64,
}

/// A device at the beginning of a segment, without a version, or a change of one.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(string, tag = "2")]
    id: String,
    #[prost(string, tag = "3")]
    uid: String,
    /// Empty when it is gone.
    #[prost(bytes = "vec", tag = "4")]
    device: Vec<u8>,
}

impl Entry {
    fn new(version: u64, snapshot: &Snapshot, gone: bool) -> Self {
        let Identity { id, uid } = &*snapshot.identity;
        Self {
            version,
            id: id.clone(),
            uid: uid.clone(),
            device: match gone {
                true => Vec::new(),
                false => snapshot.encoded.to_vec(),
            },
        }
    }
}

/// What earlier agents of this boot have left.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) epoch: String,
    /// As they were before the first change.
    pub(super) devices: BTreeMap<String, Arc<Snapshot>>,
    pub(super) version: u64,
    pub(super) changes: Vec<Change>,
    pub(super) segments: Segments,
}

/// The segments while this agent writes them.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    boot_id: String,
    pub(super) writer: Writer,
    /// Changes in the segment that is being written.
    count: usize,
    change_bytes: usize,
}

impl Segments {
    /// What is there, if it can be gone on with.
    pub(super) fn find(directory: &Path, boot_id: &str) -> io::Result<Option<Left>> {
        let mut names = names(directory)?;
        let Some(last) = names.pop() else {
            return Ok(None);
        };
        let path = directory.join(last);
        let Some(mut read) = Read::new(&path, boot_id)?.filter(|it| it.end != End::Broken) else {
            return Ok(None);
        };
        let segments = Self {
            directory: directory.to_owned(),
            boot_id: boot_id.to_owned(),
            // What is left of the entry that an agent was killed at goes: nobody has seen it.
            writer: Writer::append_to(&path, read.bytes)?,
            count: read.entries.len(),
            change_bytes: read.change_bytes(),
        };
        if let Some(name) = names.pop()
            && let Some(before) = Read::new(&directory.join(name), boot_id)?
            && before.leads_to(&read.head)
        {
            let later = std::mem::replace(&mut read, before);
            read.entries.extend(later.entries);
        }
        let mut devices = read.devices.clone();
        let changes = read.entries.into_iter().map(|it| change(&mut devices, it));
        let changes: Option<Vec<_>> = changes.collect();
        Ok(changes.map(|changes| Left {
            epoch: read.head.epoch,
            devices: read.devices,
            version: read.head.version,
            changes,
            segments,
        }))
    }

    /// Begins anew, with all devices as they are at this version.
    pub(super) fn begin<'a>(
        directory: &Path,
        boot_id: &str,
        epoch: &str,
        version: u64,
        devices: impl ExactSizeIterator<Item = &'a Arc<Snapshot>>,
    ) -> io::Result<Self> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(directory)?;
        let hidden = directory.join(HIDDEN);
        let mut writer = Writer::create(&hidden)?;
        let head = Head {
            epoch: epoch.to_owned(),
            boot_id: boot_id.to_owned(),
            version,
            device_count: devices.len() as u64,
        };
        let head = std::iter::once(head.encode_to_vec());
        let devices = devices.map(|it| Entry::new(0, it, false).encode_to_vec());
        writer.append_all(head.chain(devices))?;
        steps::reached("changes.hidden");
        fs::rename(hidden, directory.join(format!("{version:020}{SUFFIX}")))?;
        steps::reached("changes.begun");
        Ok(Self {
            directory: directory.to_owned(),
            boot_id: boot_id.to_owned(),
            writer,
            count: 0,
            change_bytes: 0,
        })
    }

    /// Writes a change, which nobody may see before.
    pub(super) fn append(&mut self, change: &Change) -> io::Result<()> {
        let gone = change.after.is_none();
        if let Some(snapshot) = change.after.as_ref().or(change.before.as_ref()) {
            let entry = Entry::new(change.version, snapshot, gone);
            self.writer.append(&entry.encode_to_vec())?;
            self.change_bytes += entry.device.len();
        }
        self.count += 1;
        steps::reached("changes.appended");
        Ok(())
    }

    /// Whether the segment holds all changes that are kept, so that another one may begin.
    pub(super) fn is_full(&self, kept: usize, kept_bytes: usize) -> bool {
        self.count >= kept || self.change_bytes >= kept_bytes
    }

    /// Begins the next segment. The one before this one goes.
    pub(super) fn next<'a>(
        &mut self,
        epoch: &str,
        version: u64,
        devices: impl ExactSizeIterator<Item = &'a Arc<Snapshot>>,
    ) -> io::Result<()> {
        let next = Self::begin(&self.directory, &self.boot_id, epoch, version, devices)?;
        *self = next;
        let names = names(&self.directory)?;
        for name in names.iter().rev().skip(2) {
            fs::remove_file(self.directory.join(name))?;
        }
        Ok(())
    }

    /// Removes all segments.
    pub(super) fn remove(directory: &Path) -> io::Result<()> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The names of the segments, from the oldest on.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().into_string();
        names.extend(name.ok().filter(|it| it.ends_with(SUFFIX)));
    }
    names.sort();
    Ok(names)
}

/// A segment that was read.
struct Read {
    head: Head,
    devices: BTreeMap<String, Arc<Snapshot>>,
    entries: Vec<Entry>,
    end: End,
    bytes: u64,
}

impl Read {
    /// `None` when it does not even begin as a segment of this boot.
    fn new(path: &Path, boot_id: &str) -> io::Result<Option<Self>> {
        let mut head: Option<Head> = None;
        let mut devices = BTreeMap::new();
        let mut entries: Vec<Entry> = Vec::new();
        let (end, bytes) = journal::read(path, |entry| {
            let Some(head) = &head else {
                head = Head::decode(entry).ok();
                return head
                    .as_ref()
                    .is_some_and(|it| it.boot_id == boot_id && it.version < MAX_VERSION);
            };
            let Ok(entry) = Entry::decode(entry) else {
                return false;
            };
            if (devices.len() as u64) < head.device_count {
                let snapshot = snapshot(entry, None);
                let id = snapshot.identity.id.clone();
                return devices.insert(id, snapshot).is_none();
            }
            let expected = head.version.checked_add(1 + entries.len() as u64);
            let follows = Some(entry.version) == expected;
            entries.push(entry);
            follows
        })?;
        let is_whole = |head: &Head| devices.len() as u64 == head.device_count;
        Ok(head.filter(is_whole).map(|head| Self {
            head,
            devices,
            entries,
            end,
            bytes,
        }))
    }

    fn change_bytes(&self) -> usize {
        self.entries.iter().map(|it| it.device.len()).sum()
    }

    /// Whether the segment with this head goes on where this one ends.
    fn leads_to(&self, next: &Head) -> bool {
        let last = self.head.version.checked_add(self.entries.len() as u64);
        self.end == End::Whole && self.head.epoch == next.epoch && last == Some(next.version)
    }
}

fn snapshot(entry: Entry, before: Option<&Arc<Snapshot>>) -> Arc<Snapshot> {
    let Entry { id, uid, .. } = entry;
    let identity = Identity { id, uid };
    let identity = match before {
        Some(before) if *before.identity == identity => before.identity.clone(),
        _ => Arc::new(identity),
    };
    Snapshot::new(identity, entry.device.into())
}

/// The change that an entry is of devices that are so; `None` when it can't be one.
fn change(devices: &mut BTreeMap<String, Arc<Snapshot>>, entry: Entry) -> Option<Change> {
    let version = entry.version;
    let before = devices.remove(&entry.id);
    let after = (!entry.device.is_empty()).then(|| snapshot(entry, before.as_ref()));
    if let Some(after) = &after {
        devices.insert(after.identity.id.clone(), after.clone());
    }
    (before.is_some() || after.is_some()).then_some(Change {
        version,
        before,
        after,
    })
}
