//! The commands against an agent that keeps devices in a map.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::v1::{
    agent_service_server::{AgentService, AgentServiceServer},
    device_service_server::{DeviceService, DeviceServiceServer},
    model_service_server::{ModelService, ModelServiceServer},
    *,
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, task::JoinSet};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{cmd::models::tests::card, error::Error, output::from_struct, run};

type Answer<T> = Result<Response<T>, Status>;

/// How many devices the agent puts in one page.
const PAGE: usize = 2;

#[derive(Clone, Default)]
struct Fake {
    devices: Arc<Mutex<BTreeMap<String, Device>>>,
    /// The last update.
    update: Arc<Mutex<Option<UpdateDeviceRequest>>>,
    /// The last `grpc-timeout` header.
    deadline: Arc<Mutex<Option<String>>>,
}

impl Fake {
    fn device(&self, name: &str) -> Answer<Device> {
        let devices = self.devices.lock().unwrap();
        match devices.get(name) {
            Some(device) => Ok(Response::new(device.clone())),
            None => Err(Status::not_found(format!("{name}: no such device"))),
        }
    }
}

fn unserved<T>() -> Answer<T> {
    Err(Status::unimplemented("not served"))
}

#[tonic::async_trait]
impl DeviceService for Fake {
    async fn create_device(&self, request: Request<CreateDeviceRequest>) -> Answer<Device> {
        let deadline = request.metadata().get("grpc-timeout");
        let deadline = deadline.map(|it| it.to_str().unwrap().to_owned());
        *self.deadline.lock().unwrap() = deadline;
        let request = request.into_inner();
        let mut device = request.device.unwrap();
        device.name = format!("devices/{}", request.device_id);
        let config = device.spec.as_ref().and_then(|it| it.config.as_ref());
        if config.is_some_and(|it| from_struct(it)["mac"] == "bad") {
            let mut details = ErrorDetails::new();
            details.add_bad_request_violation("device.spec.config.mac", "not a MAC address");
            return Err(Status::with_error_details(
                Code::InvalidArgument,
                "the configuration is wrong",
                details,
            ));
        }
        if request.device_id == "slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        device.status = Some(DeviceStatus {
            state: device_status::State::Ready.into(),
            socket_path: format!("/run/vfu/{}/vfio-user.sock", device.name),
            pid: 42,
            ..DeviceStatus::default()
        });
        let mut devices = self.devices.lock().unwrap();
        if devices.contains_key(&device.name) {
            return Err(Status::already_exists(format!("{}: exists", device.name)));
        }
        if !request.validate_only {
            devices.insert(device.name.clone(), device.clone());
        }
        Ok(Response::new(device))
    }

    async fn get_device(&self, request: Request<GetDeviceRequest>) -> Answer<Device> {
        self.device(&request.into_inner().name)
    }

    async fn list_devices(
        &self,
        request: Request<ListDevicesRequest>,
    ) -> Answer<ListDevicesResponse> {
        let request = request.into_inner();
        let devices = self.devices.lock().unwrap();
        let mut rest = devices.values().filter(|it| it.name > request.page_token);
        let page: Vec<_> = rest.by_ref().take(PAGE).cloned().collect();
        let more = rest.next().and_then(|_| page.last());
        Ok(Response::new(ListDevicesResponse {
            next_page_token: more.map(|it| it.name.clone()).unwrap_or_default(),
            devices: page,
            ..ListDevicesResponse::default()
        }))
    }

    async fn update_device(&self, request: Request<UpdateDeviceRequest>) -> Answer<Device> {
        let request = request.into_inner();
        let wanted = request.device.clone().unwrap();
        let device = self.device(&wanted.name)?;
        let mask = request.update_mask.clone().unwrap().paths;
        *self.update.lock().unwrap() = Some(request);
        if mask.contains(&"spec.config.mac".to_owned()) {
            let mut details = ErrorDetails::new();
            details.add_bad_request_violation("device.spec.config.mac", "can't change");
            return Err(Status::with_error_details(
                Code::InvalidArgument,
                "device.spec.config.mac: can't change",
                details,
            ));
        }
        match &*wanted.etag {
            "" | "now" => Ok(device),
            _ => Err(Status::aborted("it has changed")),
        }
    }

    async fn delete_device(&self, request: Request<DeleteDeviceRequest>) -> Answer<()> {
        let request = request.into_inner();
        let removed = self.devices.lock().unwrap().remove(&request.name);
        match removed {
            None if !request.allow_missing => Err(Status::not_found(format!(
                "{}: no such device",
                request.name
            ))),
            _ => Ok(Response::new(())),
        }
    }

    async fn reset_device(&self, request: Request<ResetDeviceRequest>) -> Answer<Device> {
        self.device(&request.into_inner().name)
    }

    type WatchDevicesStream = tokio_stream::Empty<Result<WatchDevicesResponse, Status>>;
    type WatchStatsStream = tokio_stream::Empty<Result<WatchStatsResponse, Status>>;
    type ReadLogsStream = tokio_stream::Empty<Result<ReadLogsResponse, Status>>;

    async fn restart_device(&self, _: Request<RestartDeviceRequest>) -> Answer<Device> {
        unserved()
    }
    async fn plug_device(&self, _: Request<PlugDeviceRequest>) -> Answer<Device> {
        unserved()
    }
    async fn unplug_device(&self, _: Request<UnplugDeviceRequest>) -> Answer<Device> {
        unserved()
    }
    async fn watch_devices(
        &self,
        _: Request<WatchDevicesRequest>,
    ) -> Answer<Self::WatchDevicesStream> {
        unserved()
    }
    async fn watch_stats(&self, _: Request<WatchStatsRequest>) -> Answer<Self::WatchStatsStream> {
        unserved()
    }
    async fn read_logs(&self, _: Request<ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        unserved()
    }
    async fn list_events(&self, _: Request<ListEventsRequest>) -> Answer<ListEventsResponse> {
        unserved()
    }
}

#[tonic::async_trait]
impl ModelService for Fake {
    async fn list_models(&self, _: Request<ListModelsRequest>) -> Answer<ListModelsResponse> {
        Ok(Response::new(ListModelsResponse {
            models: vec![card()],
            ..ListModelsResponse::default()
        }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Answer<Model> {
        match request.into_inner().name.as_str() {
            "models/e1000" => Ok(Response::new(card())),
            name => Err(Status::not_found(format!("{name}: no such model"))),
        }
    }
}

#[tonic::async_trait]
impl AgentService for Fake {
    async fn get_agent(&self, _: Request<GetAgentRequest>) -> Answer<Agent> {
        Ok(Response::new(Agent {
            name: "agent".into(),
            version: "9.9.9".into(),
            ..Agent::default()
        }))
    }

    async fn drain(&self, _: Request<DrainRequest>) -> Answer<Agent> {
        Err(Status::unimplemented("Drain"))
    }

    async fn undrain(&self, _: Request<UndrainRequest>) -> Answer<Agent> {
        Err(Status::unimplemented("Undrain"))
    }

    async fn shut_down_devices(
        &self,
        _: Request<ShutDownDevicesRequest>,
    ) -> Answer<ShutDownDevicesResponse> {
        Err(Status::unimplemented("ShutDownDevices"))
    }
}

/// A running agent, until it is dropped.
struct Host {
    dir: tempfile::TempDir,
    fake: Fake,
    _server: JoinSet<()>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::default();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let server = Server::builder()
            .add_service(DeviceServiceServer::new(fake.clone()))
            .add_service(ModelServiceServer::new(fake.clone()))
            .add_service(AgentServiceServer::new(fake.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async { server.await.unwrap() });
        Self {
            dir,
            fake,
            _server: tasks,
        }
    }

    /// Runs `vfuctl` with `line` and gives what it printed and how it ended.
    async fn vfuctl(&self, line: &str) -> (String, Result<(), Error>) {
        let endpoint = format!("--endpoint=unix://{}/agent.sock", self.dir.path().display());
        let words = ["vfuctl", endpoint.as_str()]
            .into_iter()
            .chain(line.split(' '));
        let words: Vec<_> = words.map(OsString::from).collect();
        let mut sink = Vec::new();
        let result = run(&words, &mut sink).await;
        (String::from_utf8(sink).unwrap(), result)
    }

    async fn good(&self, line: &str) -> String {
        let (text, result) = self.vfuctl(line).await;
        match result {
            Ok(()) => text,
            Err(error) => panic!("vfuctl {line}: {:?}", error.lines()),
        }
    }

    async fn bad(&self, line: &str) -> (u8, String) {
        let (_, result) = self.vfuctl(line).await;
        let error = result.expect_err(line);
        (error.exit_code(), error.lines().join("\n"))
    }

    fn config(&self, id: &str) -> Value {
        let devices = self.fake.devices.lock().unwrap();
        let spec = devices[&format!("devices/{id}")].spec.clone().unwrap();
        from_struct(&spec.config.unwrap())
    }
}

#[tokio::test]
async fn create_sends_the_configuration() {
    let host = Host::new();
    let text = host
        .good("create e1000 nic0 --mac 52:54:00:12:34:56 --set net.tap.ifname=vfu0 --label a=b")
        .await;
    assert_eq!(
        text,
        "devices/nic0 created, socket /run/vfu/devices/nic0/vfio-user.sock\n"
    );
    assert_eq!(
        host.config("nic0"),
        json!({"mac": "52:54:00:12:34:56", "net": {"tap": {"ifname": "vfu0"}}})
    );
    assert_eq!(
        host.fake.devices.lock().unwrap()["devices/nic0"].labels["a"],
        "b"
    );
    let deadline = host.fake.deadline.lock().unwrap().clone();
    assert_eq!(deadline.unwrap(), "30000000u");
}

#[tokio::test]
async fn create_takes_a_file_and_flags_over_it() {
    let host = Host::new();
    let file = host.dir.path().join("nic.json");
    std::fs::write(&file, r#"{"queues":8,"net":{"null":{}}}"#).unwrap();
    let line = format!(
        "create e1000 nic0 --config @{} --net.loopback -o name",
        file.display()
    );
    assert_eq!(host.good(&line).await, "devices/nic0\n");
    assert_eq!(
        host.config("nic0"),
        json!({"queues": 8, "net": {"loopback": {}}})
    );
}

#[tokio::test]
async fn validation_creates_nothing() {
    let host = Host::new();
    let text = host.good("create e1000 nic0 --validate-only").await;
    assert_eq!(text, "devices/nic0 is valid; nothing was created\n");
    assert!(host.fake.devices.lock().unwrap().is_empty());
}

#[tokio::test]
async fn create_says_what_is_wrong() {
    let host = Host::new();
    assert_eq!(
        host.bad("create e1000 nic0 --mac bad").await,
        (
            2,
            "vfuctl: the configuration is wrong\n  device.spec.config.mac (--mac): not a MAC address".into()
        )
    );
    assert_eq!(
        host.bad("create e1001 nic0").await,
        (3, "vfuctl: models/e1001: no such model".into())
    );
    host.good("create e1000 nic0").await;
    assert_eq!(
        host.bad("create e1000 nic0").await,
        (4, "vfuctl: devices/nic0: exists".into())
    );
    for line in [
        "create e1000 nic1 --colour red",
        "create e1000 nic1 --queues many",
        "create e1000 nic1 --set colour=red",
        "create e1000 nic1 --net.tap --net.null",
        "create e1000 nic1 --config []",
        "create e1000 nic1 --label a",
        "create --mac 52:54:00:12:34:56 e1000 nic1",
        "create",
    ] {
        assert_eq!(host.bad(line).await.0, 2, "{line}");
    }
    assert_eq!(host.fake.devices.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn update_sends_what_changes_and_names_it() {
    let host = Host::new();
    host.good("create e1000 nic0 --queues 2 --net.tap.ifname vfu0")
        .await;
    let sent = || host.fake.update.lock().unwrap().take().unwrap();
    let text = host
        .good("update nic0 --set queues=3 --label a/b.c=d --unlabel e --etag now")
        .await;
    assert_eq!(text, "devices/nic0 updated\n");
    let request = sent();
    let mask = request.update_mask.unwrap().paths;
    assert_eq!(mask, ["labels.`a/b.c`", "labels.`e`", "spec.config.queues"]);
    let device = request.device.unwrap();
    assert_eq!((&*device.etag, &*device.labels["a/b.c"]), ("now", "d"));
    let config = from_struct(&device.spec.unwrap().config.unwrap());
    assert_eq!(config["queues"], 3);

    let text = host.good("update nic0 --unset queues --dry-run").await;
    assert_eq!(text, "devices/nic0 is valid; nothing was changed\n");
    let request = sent();
    assert!(request.validate_only);
    let config = from_struct(&request.device.unwrap().spec.unwrap().config.unwrap());
    assert_eq!(config, json!({"net": {"tap": {"ifname": "vfu0"}}}));
    let json = host.good("update nic0 --label a=b -o json").await;
    assert!(json.contains("\"devices/nic0\""), "{json}");
    assert_eq!(sent().device.unwrap().spec, None, "only labels");
}

#[tokio::test]
async fn update_says_what_is_wrong() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    assert_eq!(
        host.bad("update nic0 --set mac=x").await,
        (
            2,
            "vfuctl: device.spec.config.mac (--set mac): can't change".into()
        )
    );
    assert_eq!(
        host.bad("update nic0 --set net.stream.mode=both").await.1,
        "vfuctl: --set net.stream.mode=both: `both` is not one of connect, listen"
    );
    for (line, code) in [
        ("update nic0", 2),
        ("update", 2),
        ("update nic0 --set queues=many", 2),
        ("update nic0 --set colour=red", 2),
        ("update nic0 --unset colour", 2),
        ("update nic0 --label a", 2),
        ("update nic0 --label a=b --unlabel a", 2),
        ("update nic9 --set queues=1", 3),
        ("update nic9 --label a=b", 3),
        ("update nic0 --label a=b --etag then", 4),
    ] {
        assert_eq!(host.bad(line).await.0, code, "{line}");
    }
}

#[tokio::test]
async fn help_of_create_lists_the_models_flags() {
    let host = Host::new();
    let (code, text) = host.bad("create e1000 --help").await;
    assert_eq!(code, 0);
    for word in [
        "Configuration of e1000:",
        "--net.tap.ifname <STRING>",
        "--validate-only",
        "Examples:",
    ] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[tokio::test]
async fn help_of_create_works_without_an_agent() {
    let words = [
        "vfuctl",
        "create",
        "e1000",
        "--help",
        "--endpoint",
        "unix:///nonexistent.sock",
    ];
    let words = words.map(OsString::from);
    let error = run(&words, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.exit_code(), 0);
    let text = error.to_string();
    for word in [
        "flags of model e1000 are not shown",
        "/nonexistent.sock does not exist",
        "--endpoint",
        "--set",
    ] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[tokio::test]
async fn without_an_agent_commands_fail_with_the_cure() {
    let words = ["vfuctl", "list", "--endpoint", "unix:///nonexistent.sock"].map(OsString::from);
    let error = run(&words, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.lines()[0].contains("start vfu-agent"));
}

#[tokio::test]
async fn get_and_list_print_devices() {
    let host = Host::new();
    for id in ["nic0", "nic1", "nic2"] {
        host.good(&format!("create e1000 {id} --label {id}=x"))
            .await;
    }
    let json: Value = serde_json::from_str(&host.good("get nic1 -o json").await).unwrap();
    assert_eq!(json["name"], "devices/nic1");
    let json: Value = serde_json::from_str(&host.good("get nic1 nic0 -o json").await).unwrap();
    assert_eq!(json["devices"][1]["name"], "devices/nic0");
    let names = "devices/nic0\ndevices/nic1\ndevices/nic2\n";
    assert_eq!(host.good("list -o name").await, names);
    assert_eq!(host.good("get -o name").await, names);
    assert!(
        host.good("get devices/nic0")
            .await
            .starts_with("NAME   MODEL   STATE")
    );
    assert!(
        host.good("list -o wide")
            .await
            .contains("/run/vfu/devices/nic2/vfio-user.sock")
    );

    let (text, result) = host.vfuctl("get nic0 nic9 nic2 -o name").await;
    assert_eq!(text, "devices/nic0\ndevices/nic2\n");
    assert_eq!(result.unwrap_err().exit_code(), 3);
}

#[tokio::test]
async fn delete_goes_on_after_a_failure() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    let (text, result) = host.vfuctl("delete nic8 nic0 nic9").await;
    assert_eq!(text, "devices/nic0 deleted\n");
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert_eq!(
        error.lines(),
        [
            "vfuctl: devices/nic8: no such device",
            "vfuctl: devices/nic9: no such device"
        ]
    );
    host.good("delete nic0 --allow-missing").await;
}

#[tokio::test]
async fn reset_models_version_and_cmdline_answer() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    assert_eq!(host.good("reset nic0").await, "devices/nic0 reset\n");
    assert!(host.good("models").await.contains("8086:100e"));
    assert!(host.good("models e1000").await.contains("net.tap.ifname"));
    assert_eq!(host.bad("models e1001").await.0, 3);
    assert_eq!(
        host.good("version").await,
        format!("vfuctl {}\nvfu-agent 9.9.9\n", env!("CARGO_PKG_VERSION"))
    );
    let argv: Value = serde_json::from_str(
        &host
            .good("cmdline nic0 --vmm cloud-hypervisor -o json")
            .await,
    )
    .unwrap();
    assert_eq!(
        argv,
        json!([
            "--memory",
            "size=512M,shared=on",
            "--user-device",
            "socket=/run/vfu/devices/nic0/vfio-user.sock"
        ])
    );
    assert_eq!(host.bad("cmdline nic9 --vmm qemu").await.0, 3);
}

#[tokio::test]
async fn version_is_told_without_an_agent() {
    let words = ["vfuctl", "version", "--endpoint", "/nonexistent.sock"].map(OsString::from);
    let mut sink = Vec::new();
    let error = run(&words, &mut sink).await.unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(String::from_utf8(sink).unwrap().starts_with("vfuctl "));
}

#[tokio::test]
async fn a_late_answer_is_not_waited_for() {
    let host = Host::new();
    let (code, text) = host.bad("create e1000 slow --timeout 0.2").await;
    assert_eq!(
        (code, text.as_str()),
        (
            8,
            "vfuctl: no answer from the agent within 0.2 s (see --timeout)"
        )
    );
}

#[tokio::test]
async fn what_is_not_an_agent_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 hello\r\n").await;
        }
    });
    let words = ["vfuctl", "list", "--endpoint", path.to_str().unwrap()].map(OsString::from);
    let error = run(&words, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.exit_code(), 7, "{error}");
    assert!(
        error.to_string().contains("no vfu agent listens there"),
        "{error}"
    );
}
