//! WatchDevices through the API: what exists, every change in order, and where a reader goes on.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use prost_types::FieldMask;
use proto::v1::{
    Device, ListDevicesRequest, UpdateDeviceRequest, WatchDevicesRequest, WatchDevicesResponse,
    device_status::State, watch_devices_response::Type,
};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::agent::{Devices, Host, LIMIT, create, deletion, nic};

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
