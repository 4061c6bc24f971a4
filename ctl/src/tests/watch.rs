//! What a watch shows, whatever happens to the agent.

use proto::v1::{Device, WatchDevicesResponse, device_status::State, watch_devices_response::Type};
use serde_json::Value;
use tonic::{Code, Status};

use super::Host;

type Item = Result<WatchDevicesResponse, Status>;

impl Host {
    /// A change to a device like those that the agent has.
    fn change(&self, kind: Type, id: &str, state: State, version: &str) -> Item {
        let devices = self.fake.devices.lock().unwrap();
        let mut device = devices.values().next().cloned().unwrap_or_default();
        device.name = format!("devices/{id}");
        device.status.get_or_insert_default().set_state(state);
        Ok(WatchDevicesResponse {
            r#type: kind.into(),
            resource_version: version.into(),
            device: Some(device),
        })
    }

    /// What the next call of WatchDevices sends; after the last the command fails.
    fn send(&self, script: Vec<Item>) {
        self.fake.changes.lock().unwrap().push_back(script);
    }

    /// The versions after which the agent was asked for changes.
    fn versions(&self) -> Vec<String> {
        let asked = self.fake.asked.lock().unwrap();
        let watches = asked.watches.iter();
        watches.map(|it| it.resource_version.clone()).collect()
    }
}

fn bookmark(version: &str) -> Item {
    Ok(WatchDevicesResponse {
        r#type: Type::Bookmark.into(),
        resource_version: version.into(),
        device: None,
    })
}

fn end(code: Code) -> Item {
    Err(Status::new(code, "the reason"))
}

/// The first four columns of each line.
fn columns(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| {
        let words: Vec<_> = line.split_whitespace().take(4).collect();
        words.join(" ")
    });
    lines.collect()
}

async fn host() -> Host {
    let host = Host::new();
    *host.fake.version.lock().unwrap() = "v1".into();
    host.good("create e1000 nic0").await;
    host
}

#[tokio::test]
async fn a_watch_shows_what_is_and_then_what_changes() {
    let host = host().await;
    for line in ["watch", "list --watch", "get -w"] {
        host.send(vec![
            host.change(Type::Modified, "nic0", State::Connected, "v2"),
            bookmark("v3"),
            host.change(Type::Added, "nic1", State::Starting, "v4"),
            host.change(Type::Deleted, "nic0", State::Deleting, "v5"),
            end(Code::Internal),
        ]);
        let (text, notes, error) = host.noted(line).await;
        assert_eq!(
            columns(&text),
            [
                "EVENT NAME MODEL STATE",
                "ADDED nic0 e1000 READY",
                "MODIFIED nic0 e1000 CONNECTED",
                "ADDED nic1 e1000 STARTING",
                "DELETED nic0 e1000 DELETING",
            ],
            "{line}"
        );
        let starts: Vec<_> = text.lines().map(|it| it.find("e1000")).collect();
        assert!(starts[1..].iter().all(|it| *it == starts[1]), "{text}");
        assert_eq!((&*notes, error.exit_code()), ("", 1));
    }
    assert_eq!(host.versions(), ["v1", "v1", "v1"]);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_when_the_agent_is_back() {
    let host = host().await;
    let modified = |version| host.change(Type::Modified, "nic0", State::Connected, version);
    host.send(vec![modified("v2"), end(Code::Unavailable)]);
    // The same again is no change.
    host.send(vec![modified("v2"), bookmark("v3")]);
    host.send(vec![end(Code::ResourceExhausted)]);
    let (text, notes, error) = host.noted("watch").await;
    assert_eq!(
        columns(&text)[1..],
        ["ADDED nic0 e1000 READY", "MODIFIED nic0 e1000 CONNECTED"]
    );
    assert_eq!(host.versions(), ["v1", "v2", "v3"]);
    assert_eq!(
        notes.lines().collect::<Vec<_>>(),
        [
            "vfuctl: the reason; waiting for the agent",
            "vfuctl: the agent is back",
            "vfuctl: the agent stops; waiting for the agent",
            "vfuctl: the agent is back",
        ]
    );
    assert_eq!(error.exit_code(), 9, "no stream, no progress");
}

#[tokio::test]
async fn a_slow_reader_goes_on_after_its_last_version() {
    let host = host().await;
    host.send(vec![bookmark("v2"), end(Code::ResourceExhausted)]);
    host.send(vec![end(Code::Internal)]);
    let (_, notes, error) = host.noted("watch").await;
    assert_eq!(host.versions(), ["v1", "v2"]);
    assert_eq!(notes, "vfuctl: the reason; going on from there\n");
    assert_eq!(error.exit_code(), 1);
}

#[tokio::test]
async fn what_has_changed_is_shown_when_the_version_is_too_old() {
    let host = host().await;
    host.good("create e1000 nic1").await;
    host.good("create e1000 nic2").await;
    host.send(vec![
        host.change(Type::Deleted, "nic1", State::Deleting, "v2"),
        host.change(Type::Modified, "nic2", State::Connected, "v3"),
        host.change(Type::Added, "nic3", State::Ready, "v4"),
        end(Code::OutOfRange),
    ]);
    host.send(vec![end(Code::Internal)]);
    *host.fake.version.lock().unwrap() = "w1".into();
    let (text, notes, _) = host.noted("watch --resource-version v1").await;
    assert_eq!(
        columns(&text),
        [
            "EVENT NAME MODEL STATE",
            "DELETED nic1 e1000 DELETING",
            "MODIFIED nic2 e1000 CONNECTED",
            "ADDED nic3 e1000 READY",
            // The agent has nic0, nic1, and nic2 with no client.
            "DELETED nic3 e1000 READY",
            "ADDED nic0 e1000 READY",
            "ADDED nic1 e1000 READY",
            "MODIFIED nic2 e1000 READY",
        ]
    );
    assert_eq!(host.versions(), ["v1", "w1"]);
    assert_eq!(notes, "vfuctl: the reason; listing the devices again\n");
}

#[tokio::test]
async fn a_device_that_was_made_anew_is_another() {
    let host = host().await;
    host.send(vec![end(Code::OutOfRange)]);
    let other = Device {
        uid: "other".into(),
        name: "devices/nic0".into(),
        ..Device::default()
    };
    host.send(vec![
        Ok(WatchDevicesResponse {
            r#type: Type::Added.into(),
            resource_version: "v2".into(),
            device: Some(other.clone()),
        }),
        end(Code::OutOfRange),
    ]);
    let (text, _, _) = host.noted("watch -o name").await;
    assert_eq!(
        text,
        "devices/nic0\n".repeat(4),
        "ADDED, ADDED, DELETED, ADDED"
    );
}

#[tokio::test]
async fn a_watch_of_some_shows_only_those() {
    let host = host().await;
    host.good("create e1000 nic1").await;
    host.send(vec![
        host.change(Type::Modified, "nic0", State::Connected, "v2"),
        host.change(Type::Modified, "nic1", State::Connected, "v3"),
        host.change(Type::Deleted, "nic0", State::Deleting, "v4"),
    ]);
    let (text, _, _) = host.noted("get nic1 --watch -o json").await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown: Vec<_> = lines
        .iter()
        .map(|it| (it["type"].as_str(), it["resourceVersion"].as_str()))
        .collect();
    assert_eq!(
        shown,
        [(Some("ADDED"), Some("v1")), (Some("MODIFIED"), Some("v3"))]
    );
    assert_eq!(lines[1]["device"]["name"], "devices/nic1");
    assert_eq!(host.bad("get nic9 --watch").await.0, 3);
}

#[tokio::test]
async fn a_filter_is_the_agents() {
    let host = host().await;
    for line in [
        "watch --filter x=y",
        "list -w --filter x=y",
        "list --filter x=y",
    ] {
        *host.fake.asked.lock().unwrap() = Default::default();
        let _ = host.vfuctl(line).await;
        let asked = host.fake.asked.lock().unwrap();
        assert_eq!(asked.list.as_ref().unwrap().filter, "x=y", "{line}");
        assert!(asked.watches.iter().all(|it| it.filter == "x=y"), "{line}");
    }
}

#[tokio::test]
async fn an_agent_that_does_not_come_back_ends_a_watch() {
    let host = host().await;
    host.send(vec![bookmark("v2"), end(Code::Unavailable)]);
    for _ in 0..1000 {
        host.send(vec![end(Code::Unavailable)]);
    }
    let (_, _, error) = host.noted("watch --timeout 0.5").await;
    assert_eq!(error.exit_code(), 7);
    assert_eq!(error.lines(), ["vfuctl: the reason"]);
}

#[tokio::test]
async fn a_watch_that_is_refused_fails_at_once() {
    let host = host().await;
    host.send(vec![end(Code::ResourceExhausted)]);
    let (_, notes, error) = host.noted("watch").await;
    assert_eq!((&*notes, error.exit_code()), ("", 9));
}
