//! Tests of the changes and of who reads them.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// So many changes are kept where a test is not about that.
const KEPT: usize = 8192;

fn changes(kept: usize) -> Arc<Changes> {
    Arc::new(Changes::new(kept))
}

fn publish(changes: &Changes, id: &str, text: &str) {
    changes.publish(id, id, text.as_bytes().to_vec());
}

/// A reader's next changes; that it does not wait for them is part of every test.
async fn next(reader: &mut Reader) -> Result<Vec<Change>, Behind> {
    tokio::time::timeout(Duration::from_secs(10), reader.next())
        .await
        .expect("there is a change to read")
}

fn shown(change: &Change) -> (u64, Option<&str>, Option<&str>) {
    fn text(it: &Option<Arc<Snapshot>>) -> Option<&str> {
        it.as_ref().map(|it| str::from_utf8(&it.encoded).unwrap())
    }
    (change.version, text(&change.before), text(&change.after))
}

#[tokio::test]
async fn each_change_has_the_next_version_and_what_is_equal_is_none() {
    let changes = changes(KEPT);
    let (devices, mut reader) = changes.list_and_follow();
    assert!(devices.is_empty());
    publish(&changes, "a", "1");
    publish(&changes, "a", "1");
    publish(&changes, "a", "2");
    changes.remove("a");
    changes.remove("a");
    let read = next(&mut reader).await.unwrap();
    let read: Vec<_> = read.iter().map(shown).collect();
    assert_eq!(
        read,
        [
            (1, None, Some("1")),
            (2, Some("1"), Some("2")),
            (3, Some("2"), None)
        ]
    );
}

#[tokio::test]
async fn a_device_of_another_uid_is_another_device() {
    let changes = changes(KEPT);
    let (_, mut reader) = changes.list_and_follow();
    changes.publish("a", "first", b"1".to_vec());
    changes.publish("a", "second", b"1".to_vec());
    let read = next(&mut reader).await.unwrap();
    let read: Vec<_> = read.iter().map(shown).collect();
    assert_eq!(
        read,
        [
            (1, None, Some("1")),
            (2, Some("1"), None),
            (3, None, Some("1"))
        ]
    );
}

#[tokio::test]
async fn a_reader_goes_on_after_the_version_that_a_list_had() {
    let changes = changes(KEPT);
    publish(&changes, "a", "1");
    publish(&changes, "b", "1");
    let (page, version) = changes.list(None, 1);
    assert_eq!(page[0].identity.id, "a");
    let (rest, _) = changes.list(Some("a"), 9);
    assert_eq!(rest.len(), 1);
    let mut reader = changes.follow(&version).unwrap();
    publish(&changes, "a", "2");
    let read = next(&mut reader).await.unwrap();
    assert_eq!(shown(&read[0]), (3, Some("1"), Some("2")));
    let mut again = changes.follow(&reader.version()).unwrap();
    publish(&changes, "c", "1");
    assert_eq!(next(&mut again).await.unwrap()[0].version, 4);
}

#[tokio::test]
async fn who_is_slower_than_the_ring_is_told_so_and_nobody_else() {
    let changes = changes(4);
    let (_, mut slow) = changes.list_and_follow();
    let mut fast = changes.follow(&slow.version()).unwrap();
    for number in 0..4 {
        publish(&changes, "a", &number.to_string());
        assert_eq!(next(&mut fast).await.unwrap().len(), 1);
    }
    let mut just = changes.follow(&slow.version()).unwrap();
    assert_eq!(next(&mut just).await.unwrap().len(), 4);
    publish(&changes, "a", "4");
    assert_eq!(next(&mut slow).await.unwrap_err(), Behind { kept: 4 });
    assert_eq!(next(&mut fast).await.unwrap()[0].version, 5);
    let gone = changes.follow(&slow.version()).unwrap_err();
    assert_eq!(gone, VersionError::Gone);
    assert!(changes.follow(&slow.text(1)).is_ok());
}

#[test]
fn versions_of_others_are_refused() {
    let changes = changes(KEPT);
    publish(&changes, "a", "1");
    let (_, version) = changes.list(None, 0);
    let epoch = version.split('-').next().unwrap();
    let error = |version: &str| changes.follow(version).map(|_| ()).unwrap_err();
    assert_eq!(error(&format!("{epoch}-2")), VersionError::Gone);
    assert_eq!(error("0123456789ab-1"), VersionError::Gone);
    assert_eq!(error(&format!("{epoch}-")), VersionError::Malformed);
    assert_eq!(error(&format!("{epoch}--1")), VersionError::Gone);
    assert_eq!(error("1"), VersionError::Malformed);
    assert!(changes.follow(&format!("{epoch}-0")).is_ok());
}

#[test]
fn large_devices_make_the_ring_shorter() {
    let changes = changes(KEPT);
    for number in 0..1000_usize {
        changes.publish("a", "a", vec![u8::try_from(number % 256).unwrap(); 1 << 17]);
    }
    let inner = changes.inner();
    assert!(inner.ring_bytes <= KEPT_BYTES && inner.ring.len() > 100);
    let counted: usize = inner.ring.iter().map(Change::bytes).sum();
    assert_eq!(inner.ring_bytes, counted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_reader_sleeps_through_a_change() {
    const COUNT: u64 = 20_000;
    let changes = changes(KEPT);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (_, mut reader) = changes.list_and_follow();
        let changes = changes.clone();
        readers.spawn(async move {
            let mut last = 0;
            while last < COUNT {
                match next(&mut reader).await {
                    Ok(read) => {
                        for change in read {
                            assert_eq!(change.version, last + 1);
                            last = change.version;
                        }
                    }
                    // A machine that is busy elsewhere: the reader begins where the ring does.
                    Err(Behind { .. }) => {
                        last = changes.inner().floor();
                        let version = reader.text(last);
                        if let Ok(other) = changes.follow(&version) {
                            reader = other;
                        }
                    }
                }
            }
        });
    }
    for number in 0..COUNT {
        publish(&changes, "a", &number.to_string());
        if number % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
}

fn opened(directory: &Path) -> Arc<Changes> {
    Arc::new(Changes::open(directory, "boot", 8))
}

/// All that a reader after this version gets now.
fn all_after(changes: &Arc<Changes>, version: &str) -> Vec<(u64, Option<String>, Option<String>)> {
    let mut reader = changes.follow(version).unwrap();
    let mut all = Vec::new();
    loop {
        let read = reader.take().unwrap();
        if read.is_empty() {
            return all;
        }
        all.extend(read.iter().map(shown).map(|(version, before, after)| {
            let text = |it: Option<&str>| it.map(str::to_owned);
            (version, text(before), text(after))
        }));
    }
}

#[test]
fn the_next_agent_has_the_versions_the_ring_and_the_devices() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changes");
    let mut version = opened(&path).list(None, 0).1;
    for number in 0..40 {
        // Each one is another agent.
        let changes = opened(&path);
        publish(&changes, "a", &number.to_string());
        if number % 3 == 0 {
            publish(&changes, "b", &number.to_string());
        }
        let again = opened(&path);
        let (devices, now) = again.list(None, 9);
        assert_eq!(*devices[0].encoded, *number.to_string().as_bytes());
        assert_eq!(all_after(&again, &version), all_after(&changes, &version));
        assert_eq!(now, changes.list(None, 0).1);
        assert_eq!(again.inner().ring.len(), changes.inner().ring.len());
        version = now;
    }
    assert!(std::fs::read_dir(&path).unwrap().count() <= 2);
}

#[test]
fn a_device_that_went_while_no_agent_ran_is_gone_once() {
    let dir = tempfile::tempdir().unwrap();
    let changes = opened(dir.path());
    for id in ["a", "b", "c"] {
        publish(&changes, id, "1");
    }
    let version = changes.list(None, 0).1;
    for _ in 0..3 {
        let next = opened(dir.path());
        next.retain(|it| it.id == "b");
        let gone: Vec<_> = all_after(&next, &version)
            .into_iter()
            .map(|it| it.2)
            .collect();
        assert_eq!(gone, [None, None]);
        assert!(next.has("b", "b") && !next.has("b", "other") && !next.has("a", "a"));
    }
}

#[test]
fn another_boot_and_a_broken_segment_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let changes = opened(path);
    publish(&changes, "a", "1");
    let version = changes.list(None, 0).1;
    let other = Arc::new(Changes::open(path, "other boot", 8));
    assert_eq!(other.follow(&version).unwrap_err(), VersionError::Gone);
    publish(&other, "a", "2");
    let version = other.list(None, 0).1;
    let segment = std::fs::read_dir(path)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&segment).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let next = Arc::new(Changes::open(path, "other boot", 8));
    assert_eq!(next.follow(&version).unwrap_err(), VersionError::Gone);
    assert_eq!(next.list(None, 9).0.len(), 0);
}

#[tokio::test]
async fn a_full_file_system_is_no_concern_of_readers() {
    let dir = tempfile::tempdir().unwrap();
    let changes = opened(dir.path());
    publish(&changes, "a", "1");
    let (_, mut reader) = changes.list_and_follow();
    let version = reader.version();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    changes.inner().segments.as_mut().unwrap().writer = crate::journal::Writer::to(full);
    publish(&changes, "a", "2");
    publish(&changes, "a", "3");
    assert_eq!(next(&mut reader).await.unwrap().len(), 2);
    // With what it had before, and with what it has now.
    assert_eq!(all_after(&changes, &version).len(), 2);
    publish(&changes, "a", "4");
    assert_eq!(all_after(&changes, &reader.version()).len(), 1);
    assert_eq!(all_after(&changes, &version).len(), 3);
    let old_epoch = version.split_once('-').unwrap().0;
    assert!(changes.follow(&format!("{old_epoch}-3")).is_err());
    // The next agent can't know what came last, and says so.
    let next = opened(dir.path());
    assert!(next.follow(&version).is_err() && next.follow(&reader.version()).is_err());
}

#[test]
fn what_can_not_be_removed_when_the_file_system_is_full_stays_true() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changes");
    let changes = opened(&path);
    publish(&changes, "a", "1");
    let version = changes.list(None, 0).1;
    let copy = dir.path().join("copy");
    std::fs::rename(&path, &copy).unwrap();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    changes.inner().segments.as_mut().unwrap().writer = crate::journal::Writer::to(full);
    publish(&changes, "a", "2");
    let unwritten = changes.list(None, 0).1;
    let next = opened(&copy);
    publish(&next, "a", "3");
    assert!(next.follow(&unwritten).is_err());
    let text = |it: &str| Some(it.to_owned());
    assert_eq!(all_after(&next, &version), [(2, text("1"), text("3"))]);
}

proptest! {
    #[test]
    fn a_segment_that_is_cut_anywhere_is_what_was_shown_up_to_there(
        steps in prop::collection::vec((0_u8..4, 0_u8..4), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let changes = opened(dir.path());
        let start = changes.list(None, 0).1;
        let begun = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let head = std::fs::metadata(&begun).unwrap().len();
        for (device, value) in steps {
            match value {
                0 => changes.remove(&device.to_string()),
                value => publish(&changes, &device.to_string(), &value.to_string()),
            }
        }
        let all = all_after(&changes, &start);
        let file = std::fs::File::options().write(true).open(&begun).unwrap();
        let bytes = file.metadata().unwrap().len() - head;
        file.set_len(head + cut.index(usize::try_from(bytes).unwrap() + 1) as u64).unwrap();
        let next = opened(dir.path());
        let left = all_after(&next, &start);
        prop_assert!(all.starts_with(&left));
        publish(&next, "new", "1");
        let again = all_after(&opened(dir.path()), &start);
        prop_assert_eq!(again.len(), left.len() + 1);
        prop_assert!(again.starts_with(&left));
    }

    #[test]
    fn a_list_and_the_changes_after_it_are_all_there_is(
        before in prop::collection::vec((0_u8..6, 0_u8..4), 0..60),
        after in prop::collection::vec((0_u8..6, 0_u8..4), 0..60),
    ) {
        let changes = changes(KEPT);
        let play = |steps: &[(u8, u8)]| for (device, value) in steps {
            let id = device.to_string();
            match value {
                0 => changes.remove(&id),
                value => publish(&changes, &id, &value.to_string()),
            }
        };
        play(&before);
        let (listed, version) = changes.list(None, usize::MAX);
        play(&after);
        let mut reader = changes.follow(&version).unwrap();
        let mut devices: BTreeMap<_, _> = listed
            .into_iter()
            .map(|it| (it.identity.id.clone(), it.encoded.clone()))
            .collect();
        loop {
            let read = reader.take().unwrap();
            if read.is_empty() { break; }
            for change in read {
                let any = change.after.as_ref().or(change.before.as_ref()).unwrap();
                let id = any.identity.id.clone();
                let known = devices.get(&id);
                prop_assert_eq!(known, change.before.as_ref().map(|it| &it.encoded));
                match change.after {
                    Some(after) => devices.insert(id, after.encoded.clone()),
                    None => devices.remove(&id),
                };
            }
        }
        let now: BTreeMap<_, _> = changes.inner().devices
            .iter()
            .map(|(id, it)| (id.clone(), it.encoded.clone()))
            .collect();
        prop_assert_eq!(devices, now);
    }
}
