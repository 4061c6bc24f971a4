//! What is written is there again, whatever was in between.

use std::collections::BTreeMap;
use std::time::SystemTime;

use redb::TableDefinition;

use super::*;
use crate::limits::Limits;

pub(crate) fn record(id: &str) -> Record {
    Record {
        id: id.to_owned(),
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        etag: "1".to_owned(),
        generation: 1,
        labels: BTreeMap::from([("app".to_owned(), "x".to_owned())]),
        annotations: BTreeMap::new(),
        create_time: SystemTime::UNIX_EPOCH,
        update_time: SystemTime::UNIX_EPOCH,
        delete_time: None,
        spec: Spec {
            model: "e1000".to_owned(),
            config: serde_json::json!({"net": {"null": {}}}),
            restart_policy: RestartPolicy::Always,
            backend_loss_policy: BackendLossPolicy::default(),
            socket: None,
            limits: Limits::default(),
        },
        created_by: None,
        calls: Vec::new(),
        deleted_by: None,
        traceparent: None,
        history: History::default(),
        undo: None,
        attachment: None,
    }
}

fn open(directory: &Path) -> (Store, Contents) {
    Store::open(directory).unwrap()
}

#[test]
fn a_file_that_was_not_finished_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("agent.redb.new"), [0; 100]).unwrap();
    let _store = open(directory.path());
    let names: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["agent.redb"]);
}

#[tokio::test]
async fn records_survive_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path());
    store.put(&record("a")).await.unwrap();
    store.put(&record("b")).await.unwrap();
    store.remove(&record("a")).await.unwrap();
    store.remove(&record("never-there")).await.unwrap();
    drop(store);
    assert_eq!(open(directory.path()).1.records, [record("b")]);
}

#[tokio::test]
async fn a_drain_survives_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let (store, contents) = open(directory.path());
    assert_eq!(contents.drain, Drain::default());
    let drain = Drain {
        drained: Some(Drained {
            time: SystemTime::UNIX_EPOCH,
            reason: "new disks".to_owned(),
        }),
        shut_down: None,
    };
    store.put_drain(&drain).await.unwrap();
    drop(store);
    assert_eq!(open(directory.path()).1.drain, drain);
}

#[tokio::test]
async fn the_last_deletions_are_remembered_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path());
    let call = |index: usize, content: &str| Call::new(&index.to_string(), &content).unwrap();
    let mut removals = tokio::task::JoinSet::new();
    for index in 0..MAX_DELETIONS + 10 {
        let deleted_by = Some(call(index, "x"));
        let store = store.clone();
        let record = Record {
            deleted_by,
            ..record("a")
        };
        removals.spawn(async move { store.remove(&record).await.unwrap() });
    }
    removals.join_all().await;
    drop(store);
    let (store, _) = open(directory.path());
    let remembered =
        (0..MAX_DELETIONS + 10).filter(|it| store.has_deleted(&call(*it, "x")) == Ok(true));
    assert_eq!(remembered.count(), MAX_DELETIONS);
    let some = (0..MAX_DELETIONS + 10).find(|it| store.has_deleted(&call(*it, "x")) == Ok(true));
    assert_eq!(store.has_deleted(&call(some.unwrap(), "y")), Err(()));
}

#[tokio::test]
async fn what_many_write_at_once_is_all_there() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path());
    let mut puts = tokio::task::JoinSet::new();
    for index in 0..500 {
        let store = store.clone();
        puts.spawn(async move { store.put(&record(&format!("d{index:03}"))).await.unwrap() });
    }
    puts.join_all().await;
    drop(store);
    assert_eq!(open(directory.path()).1.records.len(), 500);
}

#[test]
fn a_second_agent_is_told_about_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path());
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
}

/// A store as an agent of another version has written it.
fn written(directory: &Path, schema: u64, devices: &[(&str, &str)]) {
    let database = Database::create(directory.join("agent.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("devices");
    transaction
        .open_table(meta)
        .unwrap()
        .insert("schema", schema)
        .unwrap();
    {
        let mut table = transaction.open_table(table).unwrap();
        for (id, record) in devices {
            table.insert(*id, record.as_bytes()).unwrap();
        }
    }
    transaction.commit().unwrap();
}

#[test]
fn a_store_from_a_newer_agent_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 3, &[("a", "from the future")]);
    for _ in 0..2 {
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, Error::Newer { found: 3, .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("schema 3 and this agent knows up to 2"),
            "{text}"
        );
    }
}

/// What version 1 wrote for a device, before there were limits and histories.
const FROM_1: &str = r#"{
    "id": "a", "uid": "00000000-0000-4000-8000-000000000000", "etag": "1", "generation": 1,
    "labels": {"app": "x"}, "annotations": {},
    "create_time": {"secs_since_epoch": 0, "nanos_since_epoch": 0},
    "update_time": {"secs_since_epoch": 0, "nanos_since_epoch": 0},
    "delete_time": null,
    "spec": {"model": "e1000", "config": {"net": {"null": {}}}, "restart_policy": "Always", "socket": null},
    "created_by": null,
    "updated_by": [{"request_id": "r", "content": "c"}],
    "traceparent": null
}"#;

#[test]
fn a_store_of_version_1_becomes_one_of_version_2() {
    let directory = tempfile::tempdir().unwrap();
    written(directory.path(), 1, &[("a", FROM_1)]);
    for _ in 0..2 {
        let (_, contents) = open(directory.path());
        let [migrated] = &contents.records[..] else {
            panic!("{contents:?}");
        };
        let calls = migrated.calls.clone();
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].request_id, "r");
        assert_eq!(
            *migrated,
            Record {
                calls,
                ..record("a")
            }
        );
    }
}

#[tokio::test]
async fn a_record_that_cant_be_read_is_set_aside_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    written(
        directory.path(),
        1,
        &[("a", FROM_1), ("b", "{\"id\": \"b\"}"), ("c", "not JSON")],
    );
    for _ in 0..2 {
        let (store, contents) = open(directory.path());
        assert_eq!(contents.records.len(), 1);
        let ids: Vec<_> = contents.unreadable.iter().map(|(id, _)| &**id).collect();
        assert_eq!(ids, ["b", "c"]);
        store.put(&contents.records[0]).await.unwrap();
    }
}
