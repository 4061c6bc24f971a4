//! What happened to devices, kept for a while: some events of each device, and not too many in all.
//!
//! Events outlive their device and the agent. They are in a file in the state directory that grows by every event and is
//! written anew when it has become several times what is kept. Nothing is synced: a host that goes down at once may lose
//! the last ones. What can't be written is still known until the agent ends.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::journal::{self, Writer};
use crate::store::Record;
use crate::{clock, steps};

/// So many events of one device are kept.
const PER_DEVICE: usize = 100;
/// So many of all devices.
const KEPT: usize = 10_000;
/// And so many bytes.
const KEPT_BYTES: usize = 4 << 20;
/// What an event costs beside its texts.
const OVERHEAD_BYTES: usize = 256;
const MAX_MESSAGE_BYTES: usize = 1024;
/// What a guest or its VMM can do over and over again is not recorded more often than this, per device.
const PER_WINDOW: usize = 30;
const WINDOW: Duration = Duration::from_secs(60);
/// The file is written anew when it has so many times the entries that are kept, and this many at least.
const GARBAGE: usize = 3;
const MIN_GARBAGE: usize = 1000;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Severity {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// Something that happened to a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// The device's id.
    pub(crate) device: String,
    pub(crate) uid: String,
    /// Its name: microseconds of the time when it first happened, or a little more.
    pub(crate) name: u64,
    /// The same for when it last happened: the order of the list.
    pub(crate) order: u64,
    pub(crate) time: SystemTime,
    pub(crate) severity: Severity,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) count: u64,
    pub(crate) trace_id: String,
}

impl Event {
    fn bytes(&self) -> usize {
        let texts = [&self.device, &self.uid, &self.reason, &self.message];
        OVERHEAD_BYTES + texts.iter().map(|it| it.len()).sum::<usize>()
    }
}

#[derive(Debug, Default)]
struct Inner {
    events: BTreeMap<u64, Event>,
    /// The orders of each device's events, by its id.
    devices: BTreeMap<String, Vec<u64>>,
    bytes: usize,
    writer: Option<Writer>,
    /// Entries in the file.
    written: usize,
}

impl Inner {
    /// Takes an event in; one that it repeats goes.
    fn insert(&mut self, event: Event) {
        let repeated = self.of(&event.device).find(|it| it.name == event.name);
        if let Some(order) = repeated.map(|it| it.order) {
            self.remove(order);
        }
        let orders = self.devices.entry(event.device.clone()).or_default();
        orders.push(event.order);
        let oldest = (orders.len() > PER_DEVICE).then(|| orders.first().copied());
        self.bytes += event.bytes();
        if let Some(replaced) = self.events.insert(event.order, event) {
            self.bytes -= replaced.bytes();
        }
        if let Some(oldest) = oldest.flatten() {
            self.remove(oldest);
        }
        while self.events.len() > KEPT || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.events.first_key_value().map(|(order, _)| *order) else {
                break;
            };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, order: u64) {
        let Some(event) = self.events.remove(&order) else {
            return;
        };
        self.bytes -= event.bytes();
        if let Some(orders) = self.devices.get_mut(&event.device) {
            orders.retain(|it| *it != order);
            if orders.is_empty() {
                self.devices.remove(&event.device);
            }
        }
    }

    /// The events of a device, the latest first.
    fn of(&self, device: &str) -> impl Iterator<Item = &Event> {
        let orders = self.devices.get(device).map_or(&[][..], Vec::as_slice);
        orders.iter().rev().filter_map(|it| self.events.get(it))
    }

    fn write(&mut self, path: &Path, event: &Event) -> io::Result<()> {
        if self.written > MIN_GARBAGE.max(GARBAGE * self.events.len()) {
            return self.rewrite(path);
        }
        let Some(writer) = &mut self.writer else {
            return self.rewrite(path);
        };
        self.written += 1;
        writer.append(&serde_json::to_vec(event)?)?;
        steps::reached("events.appended");
        Ok(())
    }

    /// Writes all events into a file that takes the place of the one there is.
    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let hidden = path.with_extension("new");
        let mut writer = Writer::create(&hidden)?;
        let entries: Result<Vec<_>, _> = self.events.values().map(serde_json::to_vec).collect();
        writer.append_all(entries?.into_iter())?;
        steps::reached("events.hidden");
        std::fs::rename(hidden, path)?;
        self.writer = Some(writer);
        self.written = self.events.len();
        Ok(())
    }
}

/// The events of all devices.
#[derive(Debug)]
pub(crate) struct Events {
    path: PathBuf,
    inner: Mutex<Inner>,
}

impl Events {
    /// Goes on with the events in this directory.
    pub(crate) fn open(directory: &Path) -> Self {
        let path = directory.join("events");
        let mut inner = Inner::default();
        let read = journal::read(&path, |entry| {
            // From another version of the agent, perhaps; the others are as good.
            if let Ok(event) = serde_json::from_slice(entry) {
                inner.insert(event);
            }
            true
        });
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, path = %path.display(), "events of earlier agents can't be read");
            }
            _ => {}
        }
        // What is at the end of the file may be the half of an event.
        if let Err(error) = inner.rewrite(&path) {
            warn!(%error, path = %path.display(), "events can't be written down");
        }
        let inner = Mutex::new(inner);
        Self { path, inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Something has happened to a device: what, for programs and for people.
    pub(crate) fn add(&self, record: &Record, severity: Severity, reason: &str, message: &str) {
        self.add_at(clock::now(), record, severity, reason, message);
    }

    /// The same, caused by the call that made the device.
    pub(crate) fn created(&self, record: &Record) {
        let trace_id = record.traceparent.as_deref();
        let trace_id = trace_id
            .and_then(|it| it.split('-').nth(1))
            .unwrap_or_default();
        let now = clock::now();
        let event = event(now, record, Severity::Normal, "CREATED", "device created");
        self.insert(Event {
            trace_id: trace_id.to_owned(),
            ..event
        });
    }

    fn add_at(
        &self,
        now: SystemTime,
        record: &Record,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        self.insert(event(now, record, severity, reason, message));
    }

    fn insert(&self, mut event: Event) {
        let mut inner = self.inner();
        let same = |it: &&Event| {
            it.uid == event.uid
                && it.reason == event.reason
                && it.severity == event.severity
                && it.message == event.message
        };
        let repeated = inner.of(&event.device).next().filter(same);
        if let Some(last) = repeated {
            event.count = last.count.saturating_add(1);
            event.name = last.name;
            event.trace_id.clone_from(&last.trace_id);
        } else if event.severity == Severity::Normal {
            let since = event.time.checked_sub(WINDOW);
            let recent = inner.of(&event.device).filter(|it| Some(it.time) > since);
            if recent.count() >= PER_WINDOW {
                return;
            }
        }
        // The clock may have been set back.
        let last = inner.events.last_key_value().map_or(0, |(last, _)| *last);
        event.order = event.order.max(last.saturating_add(1));
        if event.count == 1 {
            event.name = event.order;
        }
        inner.insert(event.clone());
        if let Err(error) = inner.write(&self.path, &event) {
            // The next one tries to write all of them.
            inner.writer = None;
            warn!(%error, path = %self.path.display(), "events can't be written down");
        }
    }

    /// At most `count` events before this order, the latest first, and whether there are more: of one device or of all,
    /// and such as are taken.
    pub(crate) fn list(
        &self,
        device: Option<&str>,
        before: u64,
        count: usize,
        take: impl Fn(&Event) -> bool,
    ) -> (Vec<Event>, bool) {
        let inner = self.inner();
        let all = device.is_none().then(|| inner.events.range(..before).rev());
        let all = all.into_iter().flatten().map(|(_, event)| event);
        let of_one = device.into_iter().flat_map(|it| inner.of(it));
        let mut found = all
            .chain(of_one.filter(|it| it.order < before))
            .filter(|it| take(it));
        let page = found.by_ref().take(count).cloned().collect();
        (page, found.next().is_some())
    }
}

fn event(
    time: SystemTime,
    record: &Record,
    severity: Severity,
    reason: &str,
    message: &str,
) -> Event {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let order = u64::try_from(since.as_micros()).unwrap_or(u64::MAX / 2);
    Event {
        device: record.id.clone(),
        uid: record.uid.clone(),
        name: order,
        order,
        time,
        severity,
        reason: reason.to_owned(),
        message: message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned(),
        count: 1,
        trace_id: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    fn opened(dir: &tempfile::TempDir) -> Events {
        Events::open(dir.path())
    }

    fn all(events: &Events) -> Vec<Event> {
        events.list(None, u64::MAX, usize::MAX, |_| true).0
    }

    fn reasons(events: &[Event]) -> Vec<(&str, u64)> {
        events.iter().map(|it| (&*it.reason, it.count)).collect()
    }

    #[test]
    fn repetitions_are_one_event_and_the_latest_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let events = opened(&dir);
        let (a, b) = (record("a"), record("b"));
        events.add(&a, Severity::Normal, "STARTED", "m");
        events.add(&a, Severity::Warning, "ENDED", "m");
        events.add(&b, Severity::Normal, "STARTED", "m");
        events.add(&a, Severity::Warning, "ENDED", "m");
        events.add(&a, Severity::Warning, "ENDED", "other");
        let kept = all(&events);
        let expected = [("ENDED", 1), ("ENDED", 2), ("STARTED", 1), ("STARTED", 1)];
        assert_eq!(reasons(&kept), expected);
        assert!(kept.is_sorted_by(|a, b| a.order > b.order));
        let of_a = events.list(Some("a"), u64::MAX, 2, |it| it.message == "m");
        assert_eq!(reasons(&of_a.0), [("ENDED", 2), ("STARTED", 1)]);
        assert!(!of_a.1);
        let (page, more) = events.list(None, kept[1].order, 1, |_| true);
        assert_eq!((&page[0], more), (&kept[2], true));
    }

    #[test]
    fn events_outlive_the_agent_however_the_file_ends() {
        let dir = tempfile::tempdir().unwrap();
        let events = opened(&dir);
        let mut traced = record("a");
        traced.traceparent = Some(format!("00-{}-00f067aa0ba902b7-01", "4b".repeat(16)));
        events.created(&traced);
        events.add(&traced, Severity::Normal, "STARTED", "m");
        events.add(&traced, Severity::Normal, "STARTED", "m");
        let kept = all(&events);
        assert_eq!(kept[1].trace_id, "4b".repeat(16));
        assert_eq!(all(&opened(&dir)), kept);
        let path = dir.path().join("events");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend([1, 2, 3]);
        std::fs::write(&path, bytes).unwrap();
        let next = opened(&dir);
        assert_eq!(all(&next), kept);
        next.add(&traced, Severity::Warning, "ENDED", "m");
        assert_eq!(all(&opened(&dir)).len(), 3);
    }

    #[test]
    fn a_device_and_all_devices_have_so_many_events_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let events = opened(&dir);
        let long = "é".repeat(5000);
        for index in 0..300 {
            let device = record(&format!("d{}", index % 2));
            events.add(&device, Severity::Warning, &index.to_string(), &long);
        }
        let kept = all(&events);
        assert_eq!(kept.len(), 2 * PER_DEVICE);
        assert_eq!(kept[0].reason, "299");
        assert!(kept.iter().all(|it| it.message.len() <= MAX_MESSAGE_BYTES));
        for index in 0..6000 {
            let device = record(&format!("e{}", index / 50));
            events.add(&device, Severity::Warning, &index.to_string(), &long);
        }
        let inner = events.inner();
        assert!(inner.bytes <= KEPT_BYTES && inner.events.len() > 1000);
        let counted: usize = inner.events.values().map(Event::bytes).sum();
        assert_eq!(counted, inner.bytes);
        let listed: usize = inner.devices.values().map(Vec::len).sum();
        assert_eq!(listed, inner.events.len());
        assert!(inner.written <= MIN_GARBAGE.max(GARBAGE * inner.events.len()) + 1);
    }

    #[test]
    fn what_a_guest_does_over_and_over_is_not_recorded_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let events = opened(&dir);
        let device = record("a");
        let begin = SystemTime::now();
        for index in 0..200 {
            let reason = ["CLIENT_CONNECTED", "CLIENT_GONE"][index % 2];
            events.add_at(begin, &device, Severity::Normal, reason, "m");
        }
        assert_eq!(all(&events).len(), PER_WINDOW);
        events.add_at(begin, &device, Severity::Warning, "ENDED", "m");
        assert_eq!(all(&events).len(), PER_WINDOW + 1);
        events.add_at(
            begin + 2 * WINDOW,
            &device,
            Severity::Normal,
            "STARTED",
            "m",
        );
        assert_eq!(all(&events).len(), PER_WINDOW + 2);
    }

    #[test]
    fn a_clock_that_is_set_back_changes_no_order() {
        let dir = tempfile::tempdir().unwrap();
        let events = opened(&dir);
        let device = record("a");
        events.add_at(UNIX_EPOCH + 9 * WINDOW, &device, Severity::Normal, "A", "m");
        events.add_at(UNIX_EPOCH, &device, Severity::Normal, "B", "m");
        events.add_at(UNIX_EPOCH + WINDOW, &device, Severity::Normal, "C", "m");
        assert_eq!(reasons(&all(&events)), [("C", 1), ("B", 1), ("A", 1)]);
    }

    #[test]
    fn a_full_file_system_takes_no_event_away() {
        let dir = tempfile::tempdir().unwrap();
        let events = opened(&dir);
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        events.inner().writer = Some(Writer::to(full));
        events.add(&record("a"), Severity::Normal, "A", "m");
        assert_eq!(all(&events).len(), 1);
        events.add(&record("a"), Severity::Normal, "B", "m");
        assert_eq!(all(&opened(&dir)).len(), 2);
    }
}
