//! Commands that bring devices into VMMs, out of them, and tell why that can't be.

use std::time::Duration;

use proto::v1::{
    Attachment, Condition, Device, Finding, Vmm, WatchDevicesResponse, attachment, condition,
    device_spec::BackendLossPolicy, device_status::State, finding::Severity,
    unplug_device_request::Method, vmm::Endpoint, watch_devices_response::Type,
};
use tonic::{Code, Status};

use super::Host;
use crate::run;

impl Host {
    /// The device as it is, after `change`, as WatchDevices sends it.
    fn changed(
        &self,
        kind: Type,
        change: impl FnOnce(&mut Device),
    ) -> Result<WatchDevicesResponse, Status> {
        let mut device = self.fake.devices.lock().unwrap()["devices/nic0"].clone();
        change(&mut device);
        Ok(WatchDevicesResponse {
            r#type: kind.into(),
            resource_version: "v2".into(),
            device: Some(device),
        })
    }

    fn script(&self, script: Vec<Result<WatchDevicesResponse, Status>>) {
        self.fake.changes.lock().unwrap().push_back(script);
    }

    fn find(&self, severity: Severity, code: &str) {
        let cure = match severity {
            Severity::Ok => "",
            _ => "do this",
        };
        self.fake.findings.lock().unwrap().push(Finding {
            severity: severity.into(),
            code: code.into(),
            subject: "/run/vm.qmp".into(),
            message: "it is so".into(),
            cure: cure.into(),
        });
    }
}

async fn host() -> Host {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    host
}

fn attach(device: &mut Device, state: attachment::State) {
    let status = device.status.get_or_insert_default();
    status.attachment = Some(Attachment {
        state: state.into(),
        ..Attachment::default()
    });
}

#[tokio::test]
async fn plug_says_which_vmm_and_where_in_it() {
    let host = host().await;
    let sent = || host.fake.asked.lock().unwrap().plug.take().unwrap();
    let text = host
        .good("plug nic0 --qmp /run/vm.qmp --bus rp0 --slot 5.0 --id card --etag e --request-id r")
        .await;
    assert_eq!(
        text,
        "devices/nic0 plugged, bus rp0, address 0000:02:00.0\n"
    );
    let request = sent();
    let qmp = Endpoint::QmpSocketPath("/run/vm.qmp".into());
    assert_eq!(request.vmm.unwrap().endpoint, Some(qmp));
    assert_eq!(
        [
            request.name,
            request.vmm_device_id,
            request.bus,
            request.slot,
            request.etag,
            request.request_id
        ],
        ["devices/nic0", "card", "rp0", "5.0", "e", "r"]
    );
    assert_eq!((request.pci_segment, request.validate_only), (None, false));

    let text = host
        .good("plug nic0 --cloud-hypervisor api.sock --events /run/events --segment 1 --dry-run")
        .await;
    assert_eq!(text, "devices/nic0 can be plugged; nothing was\n");
    let request = sent();
    let api = std::env::current_dir().unwrap().join("api.sock");
    let api = api.to_str().unwrap().to_owned();
    assert_eq!(
        request.vmm,
        Some(Vmm {
            endpoint: Some(Endpoint::CloudHypervisorSocketPath(api)),
            event_monitor_path: "/run/events".into(),
        })
    );
    assert_eq!(
        (request.pci_segment, request.validate_only),
        (Some(1), true)
    );
}

#[tokio::test]
async fn what_fits_no_vmm_is_wrong_usage() {
    let host = host().await;
    for line in [
        "plug nic0",
        "plug --qmp /run/vm.qmp",
        "plug nic0 --qmp a --cloud-hypervisor b",
        "plug nic0 --qmp a --events b",
        "plug nic0 --qmp a --segment 1",
        "plug nic0 --cloud-hypervisor a --bus rp0",
        "plug nic0 --cloud-hypervisor a --slot 5",
        "unplug",
        "unplug nic0 --method force",
        "unplug nic0 nic1 --etag e",
        "doctor",
        "doctor --bus rp0",
        "doctor nic0 --id card",
        "wait nic0",
        "wait nic0 --for state=BUSY",
        "wait --for plugged",
    ] {
        assert_eq!(host.bad(line).await.0, 2, "{line}");
    }
    assert!(host.fake.asked.lock().unwrap().plug.is_none());
}

#[tokio::test]
async fn a_plug_that_is_refused_says_every_cause_and_cure() {
    let host = host().await;
    host.find(Severity::Error, "VMM_MEMORY_NOT_SHARED");
    assert_eq!(
        host.bad("plug nic0 --qmp /run/vm.qmp").await,
        (
            5,
            "vfuctl: the VMM can't take the device\n  /run/vm.qmp: it is so; do this".into()
        )
    );
    assert_eq!(host.bad("plug nic9 --qmp /run/vm.qmp").await.0, 3);
}

#[tokio::test]
async fn unplug_asks_the_vmm_or_the_client() {
    let host = host().await;
    let asked = || host.fake.asked.lock().unwrap().unplug.take().unwrap();
    let text = host.good("unplug nic0 --timeout 90").await;
    assert_eq!(text, "devices/nic0 unplugged\n");
    let request = asked();
    assert_eq!(request.method(), Method::Vmm);
    assert_eq!(request.timeout.map(|it| it.seconds), Some(90));
    let text = host
        .good("unplug nic0 --method client-request --dry-run")
        .await;
    assert_eq!(text, "devices/nic0 can be unplugged; nothing was\n");
    let request = asked();
    assert_eq!(request.method(), Method::ClientRequest);
    assert!(request.validate_only);
    let (text, result) = host.vfuctl("unplug nic9 nic0").await;
    assert_eq!(text, "devices/nic0 unplugged\n", "goes on after a failure");
    assert_eq!(result.unwrap_err().exit_code(), 3);
}

#[tokio::test]
async fn a_terminal_sees_how_a_plug_goes_on() {
    let host = host().await;
    *host.fake.plugging.lock().unwrap() = Duration::from_millis(300);
    let script = || {
        let plugging = |device: &mut Device| attach(device, attachment::State::Plugging);
        let other = |device: &mut Device| device.name = "devices/nic1".into();
        host.script(vec![
            host.changed(Type::Modified, plugging),
            host.changed(Type::Modified, other),
            host.changed(Type::Modified, plugging),
            Err(Status::new(Code::Unavailable, "no matter")),
        ]);
    };
    for (terminal, told) in [
        (true, "vfuctl: devices/nic0 is READY, PLUGGING\n"),
        (false, ""),
    ] {
        script();
        let (mut sink, mut notes) = (Vec::new(), Vec::new());
        let words = host.words("plug nic0 --qmp /run/vm.qmp");
        run(&words, &mut sink, &mut notes, terminal).await.unwrap();
        assert_eq!(String::from_utf8(notes).unwrap(), told);
        assert!(String::from_utf8(sink).unwrap().contains("plugged"));
    }
    let watches = host.fake.asked.lock().unwrap().watches.len();
    assert_eq!(watches, 1, "nobody looks, nothing is asked for");
}

#[tokio::test]
async fn wait_ends_when_it_is_so() {
    let host = host().await;
    for what in ["state=ready", "unplugged"] {
        let text = host.good(&format!("wait nic0 --for {what}")).await;
        assert_eq!(text, "devices/nic0 is READY\n", "at once");
    }
    host.script(vec![
        host.changed(Type::Modified, |it| attach(it, attachment::State::Plugging)),
        host.changed(Type::Modified, |it| {
            attach(it, attachment::State::Plugged);
            it.status.as_mut().unwrap().set_state(State::Connected);
        }),
    ]);
    let text = host.good("wait nic0 --for plugged").await;
    assert_eq!(text, "devices/nic0 is CONNECTED, PLUGGED\n");
    host.script(vec![host.changed(Type::Modified, |it| {
        it.status.as_mut().unwrap().conditions = vec![Condition {
            r#type: "Ready".into(),
            status: condition::Status::False.into(),
            ..Condition::default()
        }];
    })]);
    host.good("wait nic0 --for condition=ready=false").await;
    host.script(vec![host.changed(Type::Deleted, |_| {})]);
    let text = host.good("wait nic0 --for deleted").await;
    assert_eq!(text, "devices/nic0 is deleted\n");
    host.good("wait nic9 --for deleted").await;
}

#[tokio::test]
async fn wait_goes_on_when_the_agent_is_back() {
    let host = host().await;
    host.script(vec![
        host.changed(Type::Modified, |_| {}),
        Err(Status::unavailable("it stops")),
    ]);
    host.script(vec![host.changed(Type::Modified, |_| {})]);
    host.script(vec![Err(Status::out_of_range("too old"))]);
    host.script(vec![host.changed(Type::Modified, |it| {
        it.status.as_mut().unwrap().set_state(State::Connected);
    })]);
    let text = host.good("wait nic0 --for state=CONNECTED").await;
    assert_eq!(text, "devices/nic0 is CONNECTED\n");
    assert!(host.fake.changes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_does_not_come_ends_a_wait_with_its_own_code() {
    let host = host().await;
    assert_eq!(host.bad("wait nic9 --for plugged").await.0, 3);
    host.script(vec![host.changed(Type::Deleted, |_| {})]);
    let (code, text) = host.bad("wait nic0 --for plugged").await;
    assert_eq!(
        (code, &*text),
        (3, "vfuctl: devices/nic0 was deleted, and is not plugged")
    );
    host.script(vec![
        host.changed(Type::Modified, |it| it.uid = "another".into()),
    ]);
    assert_eq!(host.bad("wait nic0 --for plugged").await.0, 3);
    // Each end of a stream leads to another look, until the time is over.
    for _ in 0..100 {
        host.script(vec![host.changed(Type::Modified, |_| {})]);
    }
    assert_eq!(
        host.bad("wait nic0 --for state=CONNECTED --timeout 0.3")
            .await,
        (
            8,
            "vfuctl: devices/nic0 is not CONNECTED within 0.3 s (see --timeout); it is READY"
                .into()
        )
    );
}

#[tokio::test]
async fn doctor_shows_what_is_wrong_first_and_fails_by_it() {
    let host = host().await;
    host.find(Severity::Ok, "VMM_VERSION");
    let text = host.good("doctor --qmp /run/vm.qmp").await;
    assert_eq!(
        text,
        "\
SEVERITY   CODE          SUBJECT       MESSAGE
OK         VMM_VERSION   /run/vm.qmp   it is so
"
    );
    assert_eq!(
        host.fake
            .asked
            .lock()
            .unwrap()
            .diagnose
            .take()
            .unwrap()
            .name,
        ""
    );
    host.find(Severity::Warning, "MOUNTS_DIFFER");
    host.good("doctor nic0").await;
    host.find(Severity::Error, "VMM_MEMORY_NOT_SHARED");
    let (text, result) = host.vfuctl("doctor nic0 --qmp vm.qmp --bus rp0").await;
    let error = result.unwrap_err();
    assert_eq!(
        (error.exit_code(), error.to_string()),
        (1, "errors found: 1".into())
    );
    let severities: Vec<_> = text
        .lines()
        .map(|it| it.split(' ').next().unwrap())
        .collect();
    assert_eq!(severities, ["SEVERITY", "ERROR", "WARNING", "OK"]);
    assert!(text.lines().nth(1).unwrap().ends_with("it is so; do this"));
    let request = host.fake.asked.lock().unwrap().diagnose.take().unwrap();
    assert_eq!((&*request.name, &*request.bus), ("devices/nic0", "rp0"));

    let (json, result) = host.vfuctl("doctor nic0 -o json").await;
    assert_eq!(result.unwrap_err().exit_code(), 1);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["findings"][2]["severity"], "ERROR");
    assert_eq!(json["findings"][2]["cure"], "do this");
}

#[tokio::test]
async fn what_a_lost_backend_leads_to_is_asked_for() {
    let host = host().await;
    host.good("create e1000 nic1 --backend-loss-policy replug")
        .await;
    let spec = |id: &str| host.fake.devices.lock().unwrap()[id].spec.clone().unwrap();
    let replug = BackendLossPolicy::Replug;
    assert_eq!(spec("devices/nic1").backend_loss_policy(), replug);
    assert_eq!(
        spec("devices/nic0").backend_loss_policy(),
        BackendLossPolicy::Unspecified
    );
    host.good("update nic0 --backend-loss-policy fail").await;
    let request = host.fake.asked.lock().unwrap().update.take().unwrap();
    assert_eq!(
        request.update_mask.unwrap().paths,
        ["spec.backend_loss_policy"]
    );
    let spec = request.device.unwrap().spec.unwrap();
    assert_eq!(spec.backend_loss_policy(), BackendLossPolicy::Fail);
}
