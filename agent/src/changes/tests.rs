//! Tests of the changes and of who reads them.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

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

proptest! {
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
