//! UpdateDevice: a device becomes another one while it lives, and stays so whatever dies.

use prost_types::FieldMask;
use proto::v1::{Condition, UpdateDeviceRequest, condition};
use vfio_user::client::{Client, Options};

use super::*;
use crate::{control::Control, driver::Registers};

/// A request that changes what the mask names.
fn update(device: Device, paths: &[&str]) -> UpdateDeviceRequest {
    UpdateDeviceRequest {
        device: Some(device),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
        ..UpdateDeviceRequest::default()
    }
}

/// The device with this configuration, and nothing else set.
fn configured(id: &str, config: serde_json::Value) -> Device {
    let mut device = nic(id).device.unwrap();
    device.name = format!("devices/{id}");
    device.spec = Some(DeviceSpec {
        config: Some(to_struct(config)),
        ..DeviceSpec::default()
    });
    device
}

fn link(state: &str) -> UpdateDeviceRequest {
    update(
        configured("nic0", json!({"link": state})),
        &["spec.config.link"],
    )
}

async fn updated(devices: &mut Devices, request: UpdateDeviceRequest) -> Device {
    devices.update_device(request).await.unwrap().into_inner()
}

async fn not_updated(devices: &mut Devices, request: UpdateDeviceRequest) -> Status {
    devices.update_device(request).await.unwrap_err()
}

fn condition(device: &Device) -> Condition {
    let conditions = &device.status.as_ref().unwrap().conditions;
    let found = conditions.iter().find(|it| it.r#type == "Configured");
    found.unwrap().clone()
}

fn is_configured(device: &Device) -> bool {
    condition(device).status() == condition::Status::True
}

/// What `spec.config.link` is.
fn recorded(device: &Device) -> String {
    let config = device.spec.as_ref().unwrap().config.as_ref().unwrap();
    match config.fields.get("link").and_then(|it| it.kind.clone()) {
        Some(Kind::StringValue(link)) => link,
        None => "none".to_owned(),
        other => panic!("{other:?}"),
    }
}

/// Whether a driver sees a link, as whoever connects last.
fn has_link(device: &Device) -> bool {
    let path = device.status.as_ref().unwrap().socket_path.clone();
    let connected = command::wait_for("a connection", LIMIT, || {
        Ok(Client::connect(Path::new(&path), &Options::default()).ok())
    });
    let mut client = connected.unwrap();
    // CTRL: set link up.
    client.write(0x0, 0x40);
    client.read(0x8) & 2 != 0
}

#[tokio::test]
async fn a_link_goes_down_and_stays_so_whatever_is_started_again() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let created = create(&mut devices, nic("nic0")).await;
    assert!(is_configured(&created) && has_link(&created));

    let down = updated(&mut devices, link("down")).await;
    assert_eq!((down.generation, &*recorded(&down)), (2, "down"));
    assert_ne!(down.etag, created.etag);
    assert!(is_configured(&down) && !has_link(&down));
    assert_eq!(pid(&down), pid(&created), "it lived on");
    let again = updated(&mut devices, link("down")).await;
    assert_eq!((again.generation, again.etag), (2, down.etag.clone()));

    send(pid(&down), Signal::SIGKILL);
    let anew = wait_for(&mut devices, "nic0", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&down)
    })
    .await;
    assert!(is_configured(&anew) && !has_link(&anew));

    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert_eq!((adopted.generation, pid(&adopted)), (2, pid(&anew)));
    assert!(!has_link(&adopted));

    let unset = update(configured("nic0", json!({})), &["spec.config.link"]);
    let up = updated(&mut devices, unset).await;
    assert_eq!((up.generation, &*recorded(&up)), (3, "none"));
    assert!(has_link(&up));
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_that_does_not_answer_is_told_when_it_does() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let error = not_updated(&mut devices, link("down")).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::Unavailable, "DEVICE_NO_ANSWER")
    );
    assert!(error.get_details_retry_info().is_some());
    assert!(
        error.message().contains("the change is recorded"),
        "{error}"
    );
    let stopped = get(&mut devices, "nic0").await;
    assert_eq!((stopped.generation, &*recorded(&stopped)), (2, "down"));
    assert_eq!(condition(&stopped).status(), condition::Status::Unknown);
    assert_eq!(condition(&stopped).reason, "DEVICE_NO_ANSWER");
    // It is not said to be done before it is, however often it is asked for.
    let error = not_updated(&mut devices, link("down")).await;
    assert_eq!(error.code(), Code::Unavailable);

    send(pid(&device), Signal::SIGCONT);
    let configured = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert!(!has_link(&configured));
    assert_eq!(updated(&mut devices, link("down")).await.generation, 2);
}

#[tokio::test]
async fn an_agent_that_dies_before_the_device_has_answered_is_followed_by_one_that_tells_it() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let store = host.path("state/agent.redb");
    let written = fs::metadata(&store).unwrap().modified().unwrap();
    let mut calls = tokio::task::JoinSet::new();
    let mut caller = devices.clone();
    calls.spawn(async move { caller.update_device(link("down")).await });
    // The record is durable, and the device, which does not run, knows nothing yet.
    let recorded_meanwhile = async {
        while fs::metadata(&store).unwrap().modified().unwrap() == written {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, recorded_meanwhile)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    host.end_agent(Signal::SIGKILL);
    assert!(calls.join_next().await.unwrap().unwrap().is_err());

    send(pid(&device), Signal::SIGCONT);
    // As if that agent had died before the device was told.
    let control = Control::connect(&host.path("run/devices/nic0/control.sock"));
    assert_eq!(control.update(&json!({"link": "up"})), Ok(()));
    assert!(has_link(&device));
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert_eq!(
        (&*recorded(&adopted), pid(&adopted)),
        ("down", pid(&device))
    );
    assert!(!has_link(&adopted));
}

#[tokio::test]
async fn a_device_without_a_process_starts_as_it_was_changed() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let device = create(&mut devices, request).await;
    let mut always = configured("nic0", json!({"link": "down"}));
    always
        .spec
        .as_mut()
        .unwrap()
        .set_restart_policy(RestartPolicy::Always);
    let paths = ["spec.config.link", "spec.restart_policy"];
    let changed = updated(&mut devices, update(always, &paths)).await;
    assert_eq!(changed.generation, 2, "one change");
    send(pid(&device), Signal::SIGKILL);
    let anew = wait_for(&mut devices, "nic0", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&device)
    })
    .await;
    assert!(!has_link(&anew), "and the policy of now holds");

    let mut never = configured("nic0", json!({}));
    never
        .spec
        .as_mut()
        .unwrap()
        .set_restart_policy(RestartPolicy::Never);
    updated(&mut devices, update(never, &["spec.restart_policy"])).await;
    send(pid(&anew), Signal::SIGKILL);
    let failed = wait_for(&mut devices, "nic0", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    assert_eq!(condition(&failed).reason, "NOT_SERVED");
    let up = updated(&mut devices, link("up")).await;
    assert_eq!((&*recorded(&up), state(&up)), ("up", State::Failed));
}

#[tokio::test]
async fn what_can_not_change_is_named_and_nothing_changes() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let config = |config, path: &str| update(configured("nic0", config), &[path]);
    let mut model = configured("nic0", json!({}));
    model.spec.as_mut().unwrap().model = "e1001".to_owned();
    let mut socket = configured("nic0", json!({}));
    socket.spec.as_mut().unwrap().socket = Some(SocketSpec {
        mode: Some(0o666),
        ..SocketSpec::default()
    });
    let anew = "create it anew";
    let mac = json!({"link": "down", "mac": "52:54:00:12:34:56"});
    let cases = [
        (config(mac, "spec.config"), "device.spec.config.mac", anew),
        (
            config(json!({"net": {"loopback": {}}}), "spec.config"),
            "device.spec.config.net.loopback",
            anew,
        ),
        (
            config(json!({"link": "left"}), "spec.config.link"),
            "device.spec.config.link",
            "\"down\", \"up\"",
        ),
        (
            config(json!({"mtu": 1}), "spec.config.mtu"),
            "device.spec.config.mtu",
            "known here",
        ),
        (update(model, &["spec.model"]), "device.spec.model", anew),
        (update(socket, &["spec.socket"]), "device.spec.socket", anew),
        (config(json!({}), "colour"), "update_mask", "labels"),
        (UpdateDeviceRequest::default(), "device", "required"),
    ];
    for (request, field, cure) in cases {
        let error = not_updated(&mut devices, request).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        let bad = error.get_details_bad_request().unwrap().field_violations;
        let named = bad.iter().find(|it| it.field == field);
        let why = &named
            .unwrap_or_else(|| panic!("{field}: {error}"))
            .description;
        assert!(why.contains(cure), "{field}: {why}");
    }
    let mut stale = link("down");
    stale.device.as_mut().unwrap().etag = "old".to_owned();
    let error = not_updated(&mut devices, stale).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    let missing = update(configured("nic9", json!({})), &["labels"]);
    assert_eq!(
        not_updated(&mut devices, missing).await.code(),
        Code::NotFound
    );
    assert_eq!(get(&mut devices, "nic0").await, device);
}

#[tokio::test]
async fn a_device_that_was_read_can_be_sent_back_with_a_change_in_it() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    let labels = &mut request.device.as_mut().unwrap().labels;
    labels.extend([("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    let mut device = create(&mut devices, request).await;
    device.labels.remove("a");
    let whole = UpdateDeviceRequest {
        device: Some(device.clone()),
        ..UpdateDeviceRequest::default()
    };
    let dry = UpdateDeviceRequest {
        validate_only: true,
        ..whole.clone()
    };
    let planned = updated(&mut devices, dry).await;
    assert_eq!((planned.labels.len(), &planned.etag), (1, &device.etag));
    assert_eq!(get(&mut devices, "nic0").await.labels.len(), 2);

    let changed = updated(&mut devices, whole.clone()).await;
    assert_eq!((changed.labels.len(), changed.generation), (1, 1));
    assert_ne!(changed.etag, device.etag);
    let error = not_updated(&mut devices, whole).await;
    assert_eq!(error.code(), Code::Aborted, "the etag of then");
    let mut one = changed.clone();
    one.labels.insert("c.d".to_owned(), "3".to_owned());
    let one = updated(&mut devices, update(one, &["labels.`c.d`", "labels.b"])).await;
    assert_eq!((&*one.labels["b"], &*one.labels["c.d"]), ("2", "3"));
    let none = update(
        Device {
            name: "devices/nic0".to_owned(),
            ..Device::default()
        },
        &["labels"],
    );
    assert_eq!(updated(&mut devices, none).await.labels.len(), 0);
}

#[tokio::test]
async fn a_call_that_is_repeated_changes_nothing_and_creation_is_still_known() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let mut creation = nic("nic0");
    creation.request_id = "3c6e0b8a-9c15-424a-a8a0-5ea8a1b9a9a1".to_owned();
    let created = create(&mut devices, creation.clone()).await;
    let mut down = link("down");
    down.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
    down.device.as_mut().unwrap().etag = created.etag.clone();
    updated(&mut devices, down.clone()).await;
    let up = updated(&mut devices, link("up")).await;
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "configured", is_configured).await;
    let repeated = updated(&mut devices, down.clone()).await;
    assert_eq!((&repeated.etag, &*recorded(&repeated)), (&up.etag, "up"));
    let mut other = link("up");
    other.request_id = down.request_id;
    let error = not_updated(&mut devices, other).await;
    assert_eq!(violation(&error).0, "request_id");
    let again = create(&mut devices, creation).await;
    assert_eq!(again.uid, created.uid);
}

/// A host whose catalogue says that its processes can change what they can't.
async fn lying_host() -> Host {
    let mut host = Host::new();
    host.flags = vec!["--device-program".to_owned(), liar(&host)];
    host.start_agent().await;
    host
}

/// A label, and what the process refuses.
fn refusable(config: serde_json::Value, path: &str) -> UpdateDeviceRequest {
    let mut device = configured("nic0", config);
    device.labels.insert("app".to_owned(), "new".to_owned());
    update(device, &["labels.app", path])
}

fn mac() -> UpdateDeviceRequest {
    refusable(json!({"mac": "52:54:00:12:34:56"}), "spec.config.mac")
}

fn has_field(device: &Device, field: &str) -> bool {
    let config = device.spec.as_ref().unwrap().config.as_ref().unwrap();
    config.fields.contains_key(field)
}

#[tokio::test]
async fn what_the_process_refuses_leaves_no_trace_and_can_be_asked_again() {
    let mut host = lying_host().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let mut request = mac();
    request.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
    for _ in 0..2 {
        let error = not_updated(&mut devices, request.clone()).await;
        assert!(error.message().contains("create it anew"), "{error}");
        assert_eq!(get(&mut devices, "nic0").await, device);
    }
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert_eq!(
        (&adopted.spec, &adopted.etag, adopted.generation),
        (&device.spec, &device.etag, 1)
    );
    assert_eq!(adopted.labels, device.labels);
    assert_eq!(pid(&adopted), pid(&device));
    assert_eq!(updated(&mut devices, link("down")).await.generation, 2);
}

#[tokio::test]
async fn a_refusal_that_comes_late_takes_the_change_back() {
    let host = lying_host().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let error = not_updated(&mut devices, mac()).await;
    assert_eq!(reason(&error), "DEVICE_NO_ANSWER");
    let seen = get(&mut devices, "nic0").await;
    assert!(has_field(&seen, "mac"));
    assert_eq!((seen.generation, &*seen.labels["app"]), (2, "new"));

    send(pid(&device), Signal::SIGCONT);
    let back = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert_eq!((&back.spec, &back.labels), (&device.spec, &device.labels));
    assert_eq!(back.generation, 3, "others have seen the second");
    assert!(back.etag != device.etag && back.etag != seen.etag);
    assert_eq!(pid(&back), pid(&device));
    assert_eq!(updated(&mut devices, link("down")).await.generation, 4);
}

#[tokio::test]
async fn a_refusal_that_the_next_agent_hears_takes_the_change_back() {
    let mut host = lying_host().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let error = not_updated(&mut devices, mac()).await;
    assert_eq!(reason(&error), "DEVICE_NO_ANSWER");
    host.end_agent(Signal::SIGKILL);
    send(pid(&device), Signal::SIGCONT);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let back = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert_eq!((&back.spec, &back.labels), (&device.spec, &device.labels));
    assert_eq!(pid(&back), pid(&device));
}

#[tokio::test]
async fn a_change_that_waits_is_agreed_to_by_a_process_that_starts_with_it() {
    let mut host = lying_host().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let error = not_updated(&mut devices, mac()).await;
    assert_eq!(reason(&error), "DEVICE_NO_ANSWER");
    send(pid(&device), Signal::SIGKILL);
    let is_anew = |it: &Device| is_configured(it) && pid(it) != pid(&device);
    let anew = wait_for(&mut devices, "nic0", "another process", is_anew).await;
    assert!(has_field(&anew, "mac"));
    assert_eq!((anew.generation, &*anew.labels["app"]), (2, "new"));
    // From now on it is this configuration that a refusal leads back to.
    let other = refusable(json!({"mac": "52:54:00:12:34:57"}), "spec.config.mac");
    not_updated(&mut devices, other).await;
    assert_eq!(get(&mut devices, "nic0").await.spec, anew.spec);
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "configured", is_configured).await;
    assert_eq!((adopted.spec, adopted.generation), (anew.spec, 2));
}

#[tokio::test]
async fn a_change_that_waits_is_taken_back_when_no_process_starts_with_it() {
    let host = lying_host().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    send(pid(&device), Signal::SIGSTOP);
    let tap = json!({"net": {"tap": {"ifname": "vfu0", "netns": "/absent"}}});
    let error = not_updated(&mut devices, refusable(tap, "spec.config.net")).await;
    assert_eq!(reason(&error), "DEVICE_NO_ANSWER");
    send(pid(&device), Signal::SIGKILL);
    let is_anew = |it: &Device| is_configured(it) && pid(it) != pid(&device);
    let anew = wait_for(&mut devices, "nic0", "another process", is_anew).await;
    assert_eq!((&anew.spec, &anew.labels), (&device.spec, &device.labels));
    assert_eq!(anew.generation, 3);
}
