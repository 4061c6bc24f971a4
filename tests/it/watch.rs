//! WatchDevices through the API: what exists, every change in order, and where a reader goes on.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use prost_types::FieldMask;
use proto::v1::{
    Device, GetAgentRequest, GetDeviceRequest, ListDevicesRequest, ListEventsRequest,
    UpdateDeviceRequest, WatchDevicesRequest, WatchDevicesResponse,
    agent_service_client::AgentServiceClient, device_status::State, watch_devices_response::Type,
};
use tests::command;
use tokio::task::JoinSet;
use tonic::{Code, Request, Status, Streaming, transport::Endpoint};
use tonic_types::StatusExt;

use crate::agent::{Devices, Host, LIMIT, create, deletion, nic, pid, reason, send};

type Answers = Streaming<WatchDevicesResponse>;

async fn watch(devices: &mut Devices, resource_version: &str) -> Answers {
    let request = WatchDevicesRequest {
        resource_version: resource_version.to_owned(),
        ..WatchDevicesRequest::default()
    };
    devices.watch_devices(request).await.unwrap().into_inner()
}

async fn next(answers: &mut Answers) -> Result<WatchDevicesResponse, Status> {
    let answer = tokio::time::timeout(LIMIT, answers.message()).await;
    let answer = answer.expect("an answer in time")?;
    Ok(answer.expect("a watch ends with an error"))
}

/// Type, id and state; empty when the answer has no device.
fn seen(answer: &WatchDevicesResponse) -> (Type, &str, State) {
    let device = answer.device.as_ref();
    let id = device.map_or("", |it| it.name.strip_prefix("devices/").unwrap());
    let state = device.and_then(|it| it.status.as_ref());
    let state = state.map_or(State::Unspecified, |it| it.state());
    (answer.r#type(), id, state)
}

/// Reads until there was what is `wanted`.
async fn read_until(
    answers: &mut Answers,
    wanted: (Type, &str, State),
) -> Vec<WatchDevicesResponse> {
    let mut read = Vec::new();
    loop {
        let answer = next(answers).await.unwrap();
        let found = seen(&answer) == wanted;
        read.push(answer);
        if found {
            return read;
        }
    }
}

async fn label(devices: &mut Devices, id: &str, value: &str) -> Result<Device, Status> {
    let device = Device {
        name: format!("devices/{id}"),
        labels: BTreeMap::from([("count".to_owned(), value.to_owned())]),
        ..Device::default()
    };
    let request = UpdateDeviceRequest {
        device: Some(device),
        update_mask: Some(FieldMask {
            paths: vec!["labels".to_owned()],
        }),
        ..UpdateDeviceRequest::default()
    };
    Ok(devices.update_device(request).await?.into_inner())
}

#[tokio::test]
async fn a_watch_begins_with_what_exists_and_goes_on_with_what_changes() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("a")).await;
    let mut answers = watch(&mut devices, "").await;
    let first = next(&mut answers).await.unwrap();
    assert_eq!(seen(&first), (Type::Added, "a", State::Ready));
    assert_eq!(first.resource_version, "");
    let listed = next(&mut answers).await.unwrap();
    assert_eq!(seen(&listed), (Type::Bookmark, "", State::Unspecified));
    assert_ne!(listed.resource_version, "");

    create(&mut devices, nic("b")).await;
    devices.delete_device(deletion("b")).await.unwrap();
    let read = read_until(&mut answers, (Type::Deleted, "b", State::Deleting)).await;
    let read: Vec<_> = read.iter().map(seen).filter(|it| it.1 == "b").collect();
    assert_eq!(read[0], (Type::Added, "b", State::Starting));
    assert!(
        read.contains(&(Type::Modified, "b", State::Ready)),
        "{read:?}"
    );
    assert!(
        read.contains(&(Type::Modified, "b", State::Deleting)),
        "{read:?}"
    );
    label(&mut devices, "a", "1").await.unwrap();
    let changed = read_until(&mut answers, (Type::Modified, "a", State::Ready)).await;
    let device = changed.last().unwrap().device.clone().unwrap();
    assert_eq!(device.labels["count"], "1");
}

#[tokio::test]
async fn a_reader_hears_a_bookmark_while_nothing_changes() {
    let host = Host::start().await;
    let mut answers = watch(&mut host.devices().await, "").await;
    let listed = next(&mut answers).await.unwrap();
    assert_eq!(seen(&listed), (Type::Bookmark, "", State::Unspecified));
    // The next is due after 15 s.
    let quiet = tokio::time::timeout(3 * LIMIT, answers.message()).await;
    let quiet = quiet.expect("a bookmark").unwrap().unwrap();
    assert_eq!(quiet, listed);
}

#[tokio::test]
async fn a_watch_goes_on_after_a_list_or_an_answer() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("a")).await;
    create(&mut devices, nic("b")).await;
    let page = |page_token: String| ListDevicesRequest {
        page_size: 1,
        page_token,
        ..ListDevicesRequest::default()
    };
    let first = devices.list_devices(page(String::new())).await.unwrap();
    let first = first.into_inner();
    label(&mut devices, "a", "1").await.unwrap();
    let second = devices.list_devices(page(first.next_page_token)).await;
    let second = second.unwrap().into_inner();
    assert_eq!(second.devices[0].name, "devices/b");
    assert_eq!(first.resource_version, second.resource_version);
    assert_eq!(second.next_page_token, "");

    let mut answers = watch(&mut devices, &second.resource_version).await;
    let change = next(&mut answers).await.unwrap();
    assert_eq!(seen(&change), (Type::Modified, "a", State::Ready));
    label(&mut devices, "b", "2").await.unwrap();
    let mut again = watch(&mut devices, &change.resource_version).await;
    for answers in [&mut answers, &mut again] {
        let change = next(answers).await.unwrap();
        assert_eq!(seen(&change), (Type::Modified, "b", State::Ready));
    }
    let nonsense = WatchDevicesRequest {
        resource_version: "7".to_owned(),
        ..WatchDevicesRequest::default()
    };
    let error = devices.watch_devices(nonsense).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let unknown = WatchDevicesRequest {
        resource_version: "0123456789ab-1".to_owned(),
        ..WatchDevicesRequest::default()
    };
    let error = devices.watch_devices(unknown).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    assert_eq!(
        error.get_details_error_info().unwrap().reason,
        "VERSION_TOO_OLD"
    );
}

#[tokio::test]
async fn a_watch_ends_with_the_agent_and_does_not_hold_it_up() {
    let mut host = Host::start().await;
    let mut answers = watch(&mut host.devices().await, "").await;
    let bookmark = next(&mut answers).await.unwrap();
    assert_eq!(bookmark.r#type(), Type::Bookmark);
    host.end_agent(Signal::SIGTERM);
    let error = next(&mut answers).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert_eq!(
        error.get_details_error_info().unwrap().reason,
        "SHUTTING_DOWN"
    );
}

/// So many changes in all; a device that is relabelled is one.
const CHANGES: u64 = 10_000;
const WRITERS: u64 = 40;
/// Of the reader's reconnects.
const SEED: u64 = 0x5eed;

/// Numbers that look random: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// A connection to the agent, or to the one after it.
async fn reconnected(uri: &str) -> Devices {
    let endpoint = Endpoint::from_shared(uri.to_owned()).unwrap();
    let connected = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return Devices::new(channel),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(LIMIT, connected).await.unwrap()
}

/// Labels its device with each number in turn, whoever the agent is. A label that was not answered is set again.
async fn write(uri: String, id: String, count: u64) {
    let mut devices = reconnected(&uri).await;
    for number in 1..=count {
        while let Err(error) = label(&mut devices, &id, &number.to_string()).await {
            let passing = matches!(
                error.code(),
                Code::Unavailable | Code::Unknown | Code::Cancelled
            );
            assert!(passing, "{error:?}");
            devices = reconnected(&uri).await;
        }
    }
}

/// What a reader has come to know.
#[derive(Default)]
struct Known {
    devices: BTreeMap<String, Device>,
    /// The number with which each device was labelled last.
    numbers: BTreeMap<String, u64>,
    changes: u64,
    versions: HashSet<String>,
}

impl Known {
    /// Takes a change in, and fails if it is one that came already, or if one is missing.
    fn take(&mut self, answer: WatchDevicesResponse) {
        let Some(device) = answer.device.clone() else {
            return;
        };
        let name = device.name.clone();
        let known = self.devices.insert(name.clone(), device.clone());
        let is_known = known.is_some();
        match answer.r#type() {
            Type::Added => assert!(!is_known, "{name} is added twice"),
            Type::Modified => assert!(is_known, "{name} changed before it came"),
            other => panic!("{other:?} of {name}, which nobody deletes"),
        }
        assert_ne!(known.as_ref(), Some(&device), "the same of {name} twice");
        if !answer.resource_version.is_empty() {
            assert!(
                self.versions.insert(answer.resource_version),
                "a version twice"
            );
        }
        let number = device
            .labels
            .get("count")
            .map_or(0, |it| it.parse().unwrap());
        let last = self.numbers.insert(name.clone(), number).unwrap_or(0);
        // What exists when the reader comes may have been labelled several times by then.
        assert!(
            !is_known || number == last || number == last + 1,
            "{name}: {number} after {last}"
        );
        self.changes += number - last;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_resumes_sees_every_change_exactly_once_over_agents_that_are_killed() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let uri = format!("unix://{}", host.run_dir.join("agent.sock").display());
    let mut writers = JoinSet::new();
    for index in 0..WRITERS {
        let id = format!("nic{index}");
        create(&mut devices, nic(&id)).await;
    }
    for index in 0..WRITERS {
        writers.spawn(write(uri.clone(), format!("nic{index}"), CHANGES / WRITERS));
    }
    let mut random = Random(SEED);
    let mut known = Known::default();
    let mut version = String::new();
    let mut kills = 0;
    let mut reconnects = 0;
    'connect: while known.changes < CHANGES {
        let mut answers = watch(&mut reconnected(&uri).await, &version).await;
        let read = random.below(600);
        for _ in 0..read {
            if known.changes * 6 / CHANGES > kills {
                kills += 1;
                host.end_agent(Signal::SIGKILL);
                host.start_agent().await;
                continue 'connect;
            }
            let answer = next(&mut answers).await.unwrap();
            // What exists comes anew when that was not read to its end.
            if version.is_empty()
                && answer.r#type() == Type::Added
                && known.versions.is_empty()
                && answer
                    .device
                    .as_ref()
                    .is_some_and(|it| it.name == "devices/nic0")
            {
                known = Known::default();
            }
            version.clone_from(&answer.resource_version);
            known.take(answer);
            if known.changes == CHANGES {
                break;
            }
        }
        reconnects += 1;
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    assert!(
        kills == 5 && reconnects > 10,
        "{kills} kills, {reconnects} reconnects"
    );
    for (name, device) in &known.devices {
        assert_eq!(
            device.labels["count"],
            (CHANGES / WRITERS).to_string(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_device_that_is_deleted_when_the_agent_is_killed_is_sent_as_gone_once() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    for id in ["a", "b"] {
        create(&mut devices, nic(id)).await;
    }
    let listed = devices.list_devices(ListDevicesRequest::default()).await;
    let version = listed.unwrap().into_inner().resource_version;
    // The record is gone then, and nobody was told.
    host.end_agent(Signal::SIGTERM);
    host.env = vec![("VFU_DIE_AT".to_owned(), "delete.forgotten".to_owned())];
    host.start_agent().await;
    let error = host.devices().await.delete_device(deletion("b")).await;
    assert!(error.is_err(), "the agent died at that step");
    let mut agent = host.agent.take().unwrap();
    command::wait_for("the end of the agent", LIMIT, || Ok(agent.try_wait()?)).unwrap();
    host.env.clear();
    for _ in 0..2 {
        host.start_agent().await;
        let mut devices = host.devices().await;
        let mut answers = watch(&mut devices, &version).await;
        let mut read = read_until(&mut answers, (Type::Deleted, "b", State::Deleting)).await;
        let label = label(
            &mut devices,
            "a",
            &format!("{:?}", host.agent.as_ref().unwrap().id()),
        )
        .await
        .unwrap();
        while read.last().unwrap().device.as_ref() != Some(&label) {
            read.push(next(&mut answers).await.unwrap());
        }
        let gone = read
            .iter()
            .filter(|it| it.r#type() == Type::Deleted)
            .count();
        assert_eq!(gone, 1);
        host.end_agent(Signal::SIGKILL);
    }
}

#[tokio::test]
async fn a_device_whose_record_can_t_be_read_is_said_to_be_so_and_not_to_be_gone() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("a")).await;
    create(&mut devices, nic("b")).await;
    let list = ListDevicesRequest::default();
    let version = devices.list_devices(list).await.unwrap().into_inner();
    let version = version.resource_version;
    host.end_agent(Signal::SIGTERM);
    {
        const DEVICES: redb::TableDefinition<'_, &str, &[u8]> =
            redb::TableDefinition::new("devices");
        let store = redb::Database::open(host.path("state/agent.redb")).unwrap();
        let change = store.begin_write().unwrap();
        let mut table = change.open_table(DEVICES).unwrap();
        table.insert("a", &b"{\"id\":7}"[..]).unwrap();
        drop(table);
        change.commit().unwrap();
    }
    host.start_agent().await;
    let mut agents = AgentServiceClient::new(host.channel().await);
    let agent = agents.get_agent(GetAgentRequest::default()).await.unwrap();
    let agent = agent.into_inner();
    let [unreadable] = &*agent.unreadable_devices else {
        panic!("{agent:?}");
    };
    assert_eq!(unreadable.name, "devices/a");
    assert!(unreadable.error.contains("invalid type"), "{unreadable:?}");
    let mut devices = host.devices().await;
    let request = GetDeviceRequest {
        name: "devices/a".to_owned(),
    };
    let refusals = [
        devices.get_device(request).await.unwrap_err(),
        devices.delete_device(deletion("a")).await.unwrap_err(),
        devices.create_device(nic("a")).await.unwrap_err(),
    ];
    for refusal in refusals {
        assert_eq!(reason(&refusal), "RECORD_UNREADABLE", "{refusal:?}");
    }
    // Who goes on hears of the others only; who begins anew sees it as it was.
    let mut resumed = watch(&mut devices, &version).await;
    label(&mut devices, "b", "1").await.unwrap();
    let read = read_until(&mut resumed, (Type::Modified, "b", State::Ready)).await;
    let of_a: Vec<_> = read.iter().map(seen).filter(|it| it.1 == "a").collect();
    assert_eq!(of_a, []);
    let mut anew = watch(&mut devices, "").await;
    let first = next(&mut anew).await.unwrap();
    assert_eq!(first.device, Some(device.clone()));
    assert!(host.processes().contains(&pid(&device)), "it was touched");
}

#[tokio::test]
async fn a_filter_makes_devices_come_and_go() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("a")).await;
    create(&mut devices, nic("b")).await;
    label(&mut devices, "b", "1").await.unwrap();
    let filter = "labels.count = \"1\" AND state = READY";
    let request = ListDevicesRequest {
        filter: filter.to_owned(),
        ..ListDevicesRequest::default()
    };
    let listed = devices.list_devices(request).await.unwrap().into_inner();
    let names: Vec<_> = listed.devices.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["devices/b"]);
    let request = WatchDevicesRequest {
        resource_version: listed.resource_version,
        filter: filter.to_owned(),
    };
    let answers = devices.watch_devices(request).await;
    let mut answers = answers.unwrap().into_inner();
    for (id, value, what) in [
        ("a", "1", Type::Added),
        ("b", "2", Type::Deleted),
        ("b", "3", Type::Unspecified),
        ("b", "1", Type::Added),
    ] {
        label(&mut devices, id, value).await.unwrap();
        if what != Type::Unspecified {
            let answer = next(&mut answers).await.unwrap();
            assert_eq!(seen(&answer), (what, id, State::Ready));
        }
    }
    let nonsense = WatchDevicesRequest {
        filter: "state = REDAY".to_owned(),
        ..WatchDevicesRequest::default()
    };
    let error = devices.watch_devices(nonsense).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("at position 9"), "{error}");
}

#[tokio::test]
async fn events_outlive_their_device_and_the_agent() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = Request::new(nic("a"));
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    let device = devices.create_device(request).await.unwrap().into_inner();
    send(device.status.unwrap().pid, Signal::SIGKILL);
    let events = |parent: &str, filter: &str| ListEventsRequest {
        parent: parent.to_owned(),
        filter: filter.to_owned(),
        ..ListEventsRequest::default()
    };
    let ended = events(
        "devices/a",
        "severity = WARNING AND reason = PROCESS_EXITED",
    );
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = devices
            .list_events(ended.clone())
            .await
            .unwrap()
            .into_inner()
            .events;
        if let [event] = &found[..] {
            assert!(event.message.contains("SIGKILL"), "{event:?}");
            assert_eq!((event.count, &event.device_uid), (1, &device.uid));
            break;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    devices.delete_device(deletion("a")).await.unwrap();
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let all = devices.list_events(events("devices/-", "")).await.unwrap();
    let all = all.into_inner().events;
    let reasons: Vec<_> = all.iter().map(|it| &*it.reason).collect();
    assert_eq!(
        (reasons[0], *reasons.last().unwrap()),
        ("DELETED", "CREATED")
    );
    assert_eq!(all.last().unwrap().trace_id, trace_id);
    assert!(all.iter().is_sorted_by(|a, b| a.name > b.name));
    let error = devices
        .list_events(events("devices/b", ""))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[tokio::test]
async fn a_slow_reader_gets_the_error_and_others_do_not_notice() {
    const COUNT: u64 = 300;
    let keep_few = |host: &mut Host| {
        host.env = vec![("VFU_LIMITS_WATCH_CHANGES".to_owned(), "64".to_owned())];
    };
    let host = Host::start_with(keep_few).await;
    let mut devices = host.devices().await;
    // Large, and with a small window: little is on its way to who does not read.
    let mut large = nic("a");
    let annotations = &mut large.device.as_mut().unwrap().annotations;
    annotations.insert("large".to_owned(), "x".repeat(16 << 10));
    create(&mut devices, large).await;
    let uri = format!("unix://{}", host.run_dir.join("agent.sock").display());
    let endpoint = Endpoint::from_shared(uri.clone()).unwrap();
    let endpoint = endpoint.initial_stream_window_size(Some(65_535));
    let mut slow = Devices::new(endpoint.connect().await.unwrap());
    let mut slow = watch(&mut slow, "").await;
    let mut fast = watch(&mut host.devices().await, "").await;
    let mut writer = JoinSet::new();
    writer.spawn(write(uri, "a".to_owned(), COUNT));
    let mut last = 0;
    while last < COUNT {
        let answer = next(&mut fast).await.unwrap();
        let number = answer
            .device
            .and_then(|it| it.labels.get("count")?.parse().ok());
        if let Some(number) = number {
            assert!(
                number == last || number == last + 1,
                "{number} after {last}"
            );
            last = number;
        }
    }
    writer.join_next().await.unwrap().unwrap();
    // What was on its way when it did not read comes first.
    let mut read = 0;
    let error = loop {
        match next(&mut slow).await {
            Ok(_) => read += 1,
            Err(error) => break error,
        }
        assert!(read < COUNT, "it has got everything");
    };
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let details = error.get_details_error_info().unwrap();
    assert_eq!(details.reason, "WATCH_TOO_SLOW");
    assert!(error.message().contains("limits.watch_changes"), "{error}");
}
