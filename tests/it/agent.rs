//! The agent through its API, with real device processes: what it makes, what it refuses and why, and what outlives it.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost_types::{Struct, Value, value::Kind};
use proto::v1::{
    CreateDeviceRequest, DeleteDeviceRequest, Device, DeviceSpec, GetAgentRequest,
    GetDeviceRequest, GetModelRequest, ListDevicesRequest, ListModelsRequest, PlugDeviceRequest,
    ResetDeviceRequest, ResourceLimits, SocketSpec, UpdateDeviceRequest, WatchDevicesRequest,
    agent_service_client::AgentServiceClient, device_service_client::DeviceServiceClient,
    device_spec::RestartPolicy, device_status::State, model_service_client::ModelServiceClient,
};
use serde_json::json;
use tempfile::TempDir;
use tests::{agent::programs, command, require};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt;

const LIMIT: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;

type Devices = DeviceServiceClient<Channel>;

/// The directories of an agent, and the agent while it runs. Unlike `tests::Agent` it can lose its agent and get another
/// one.
struct Host {
    dir: TempDir,
    run_dir: PathBuf,
    program: PathBuf,
    flags: Vec<String>,
    user: Option<u32>,
    agent: Option<Child>,
}

impl Host {
    /// A host with an agent.
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    async fn start_with(change: impl FnOnce(&mut Self)) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vfu-")
            .tempdir_in("/tmp")
            .unwrap();
        let mut host = Self {
            run_dir: dir.path().join("run"),
            dir,
            program: programs().unwrap().join("vfu-agent"),
            flags: Vec::new(),
            user: None,
            agent: None,
        };
        change(&mut host);
        host.start_agent().await;
        host
    }

    /// Starts the agent and waits until it serves.
    async fn start_agent(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let agent = self.agent.insert(command.spawn().unwrap());
        let socket = self.run_dir.join("agent.sock");
        command::wait_for("the agent's socket", LIMIT, || {
            assert!(agent.try_wait()?.is_none(), "the agent ended at once");
            Ok(UnixStream::connect(&socket).ok())
        })
        .unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--run-dir", self.run_dir.to_str().unwrap()])
            .args(["--state-dir", self.path("state").to_str().unwrap()])
            .args(&self.flags);
        command
    }

    /// Ends the agent by this signal.
    fn end_agent(&mut self, signal: Signal) {
        let mut agent = self.agent.take().unwrap();
        send(i32::try_from(agent.id()).unwrap(), signal);
        command::wait_for("the end of the agent", LIMIT, || Ok(agent.try_wait()?)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        command::tail(&self.path("agent.log"), 50)
    }

    async fn channel(&self) -> Channel {
        let uri = format!("unix://{}", self.run_dir.join("agent.sock").display());
        Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    }

    async fn devices(&self) -> Devices {
        DeviceServiceClient::new(self.channel().await)
    }

    /// Fails unless nothing of any device is left.
    async fn assert_empty(&self) {
        let listed = self
            .devices()
            .await
            .list_devices(ListDevicesRequest::default())
            .await
            .unwrap();
        assert_eq!(listed.into_inner().devices, []);
        let left: Vec<_> = fs::read_dir(self.run_dir.join("devices"))
            .unwrap()
            .map(|it| it.unwrap().path())
            .collect();
        assert_eq!(left, Vec::<PathBuf>::new());
        assert_eq!(self.processes(), Vec::<i32>::new());
    }

    /// The device processes, by the log they write to.
    fn processes(&self) -> Vec<i32> {
        let run = &self.run_dir;
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|log| log.starts_with(run))
        })
        .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent ---\n{}", self.log());
        }
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
        for pid in self.processes() {
            send(pid, Signal::SIGKILL);
        }
    }
}

fn send(pid: i32, signal: Signal) {
    // The process may have ended by itself.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// A request for an e1000 with this configuration.
fn e1000(id: &str, config: serde_json::Value) -> CreateDeviceRequest {
    CreateDeviceRequest {
        device: Some(Device {
            spec: Some(DeviceSpec {
                model: "e1000".to_owned(),
                config: Some(to_struct(config)),
                ..DeviceSpec::default()
            }),
            ..Device::default()
        }),
        device_id: id.to_owned(),
        ..CreateDeviceRequest::default()
    }
}

fn nic(id: &str) -> CreateDeviceRequest {
    e1000(id, json!({"net": {"null": {}}}))
}

fn spec(request: &mut CreateDeviceRequest) -> &mut DeviceSpec {
    request.device.as_mut().unwrap().spec.as_mut().unwrap()
}

fn to_struct(value: serde_json::Value) -> Struct {
    let serde_json::Value::Object(fields) = value else {
        panic!("{value} is no object");
    };
    Struct {
        fields: fields
            .into_iter()
            .map(|(key, value)| (key, to_value(value)))
            .collect(),
    }
}

fn to_value(value: serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Number(it) => Kind::NumberValue(it.as_f64().unwrap()),
        serde_json::Value::String(it) => Kind::StringValue(it),
        it @ serde_json::Value::Object(_) => Kind::StructValue(to_struct(it)),
        it => panic!("{it} is not used here"),
    };
    Value { kind: Some(kind) }
}

async fn create(devices: &mut Devices, request: CreateDeviceRequest) -> Device {
    devices.create_device(request).await.unwrap().into_inner()
}

async fn get(devices: &mut Devices, id: &str) -> Device {
    let name = format!("devices/{id}");
    devices
        .get_device(GetDeviceRequest { name })
        .await
        .unwrap()
        .into_inner()
}

async fn refused(devices: &mut Devices, request: CreateDeviceRequest) -> Status {
    devices.create_device(request).await.unwrap_err()
}

fn deletion(id: &str) -> DeleteDeviceRequest {
    DeleteDeviceRequest {
        name: format!("devices/{id}"),
        ..DeleteDeviceRequest::default()
    }
}

fn state(device: &Device) -> State {
    device.status.as_ref().unwrap().state()
}

fn pid(device: &Device) -> i32 {
    device.status.as_ref().unwrap().pid
}

/// Waits until the device is as asked.
async fn wait_for(
    devices: &mut Devices,
    id: &str,
    what: &str,
    is: impl Fn(&Device) -> bool,
) -> Device {
    let wait = async {
        loop {
            let device = get(devices, id).await;
            if is(&device) {
                return device;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .unwrap_or_else(|_| panic!("device {id} never: {what}"))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

/// The only field an error complains about, and why.
fn violation(status: &Status) -> (String, String) {
    let bad = status.get_details_bad_request().unwrap();
    let [violation] = &bad.field_violations[..] else {
        panic!("not one violation: {bad:?}");
    };
    (violation.field.clone(), violation.description.clone())
}

#[tokio::test]
async fn a_device_lives_from_create_to_delete() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    request
        .device
        .as_mut()
        .unwrap()
        .labels
        .insert("app".to_owned(), "x".to_owned());
    spec(&mut request).socket = Some(SocketSpec {
        mode: Some(0o640),
        ..SocketSpec::default()
    });
    let mut request = Request::new(request);
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request
        .metadata_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    let device = devices.create_device(request).await.unwrap().into_inner();

    assert_eq!(device.name, "devices/nic0");
    assert_eq!(device.labels["app"], "x");
    assert_eq!(device.generation, 1);
    assert_eq!(state(&device), State::Ready);
    let status = device.status.clone().unwrap();
    assert_eq!(status.traceparent, traceparent);
    let path = Path::new(&status.socket_path);
    assert_eq!(path, host.path("run/devices/nic0/vfio-user.sock"));
    let metadata = path.metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    assert_eq!(host.processes(), [status.pid]);
    assert_eq!(get(&mut devices, "nic0").await, device);

    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
    let missing = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(
        (missing.code(), &*reason(&missing)),
        (Code::NotFound, "DEVICE_NOT_FOUND")
    );
    let resource = missing.get_details_resource_info().unwrap();
    assert_eq!(resource.resource_name, "devices/nic0");
    let allowed = DeleteDeviceRequest {
        allow_missing: true,
        ..deletion("nic0")
    };
    devices.delete_device(allowed).await.unwrap();
}

#[tokio::test]
async fn bad_requests_name_the_field_and_the_cure_and_leave_nothing() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut unknown_model = nic("nic0");
    spec(&mut unknown_model).model = "e1001".to_owned();
    let mut mode = nic("nic0");
    spec(&mut mode).socket = Some(SocketSpec {
        mode: Some(0o1777),
        ..SocketSpec::default()
    });
    let mut output_only = nic("nic0");
    output_only.device.as_mut().unwrap().uid = "mine".to_owned();
    let mut request_id = nic("nic0");
    request_id.request_id = "again".to_owned();
    let config = |config| e1000("nic0", config);
    let cases = [
        (unknown_model, "device.spec.model", "there are: e1000"),
        (nic("Nic0"), "device_id", "begins with a letter"),
        (nic("../nic0"), "device_id", "a-z, 0-9 and -"),
        (mode, "device.spec.socket.mode", "at most 0777"),
        (output_only, "device.uid", "leave it out"),
        (request_id, "request_id", "UUID"),
        (
            config(json!({"mtu": 1})),
            "device.spec.config.mtu",
            "known here: mac, net",
        ),
        (
            config(json!({"mac": "52:54:zz"})),
            "device.spec.config.mac",
            "52:54:00:12:34:56",
        ),
        (
            config(json!({"mac": 7})),
            "device.spec.config.mac",
            "expected",
        ),
        (
            config(json!({"net": {"taap": {}}})),
            "device.spec.config.net.taap",
            "stream, tap",
        ),
        (
            config(json!({"net": {"tap": {"ifname": 7}}})),
            "device.spec.config.net.tap.ifname",
            "expected",
        ),
        (
            config(json!({"net": {"stream": {"path": "/x"}}})),
            "device.spec.config.net.stream.mode",
            "required",
        ),
        (CreateDeviceRequest::default(), "device", "required"),
    ];
    for (request, field, cure) in cases {
        let error = refused(&mut devices, request).await;
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        let (named, why) = violation(&error);
        assert_eq!(named, field, "{error}");
        assert!(why.contains(cure), "{field}: {why}");
        assert!(error.message().contains(&why), "{error}");
    }
    let several = refused(&mut devices, e1000("NIC", json!({"mac": "x", "mtu": 1}))).await;
    let fields: Vec<_> = several
        .get_details_bad_request()
        .unwrap()
        .field_violations
        .into_iter()
        .map(|it| it.field)
        .collect();
    assert_eq!(
        fields,
        [
            "device_id",
            "device.spec.config.mac",
            "device.spec.config.mtu"
        ]
    );
    host.assert_empty().await;
}

#[tokio::test]
async fn a_socket_path_too_long_is_refused_before_anything_is_made() {
    let host =
        Host::start_with(|host| host.run_dir = host.path("a-run-directory-that-is-not-short"))
            .await;
    let mut devices = host.devices().await;
    let around = host.run_dir.join("devices//vfio-user.sock");
    let room = 107 - around.as_os_str().len();
    let error = refused(&mut devices, nic(&"n".repeat(room + 1))).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    let (field, why) = violation(&error);
    assert_eq!(field, "device_id");
    for word in [
        "vfio-user.sock",
        "108 bytes",
        "107",
        "shorter id",
        "--run-dir",
    ] {
        assert!(why.contains(word), "{why}");
    }
    host.assert_empty().await;
    create(&mut devices, nic(&"n".repeat(room))).await;
}

#[tokio::test]
async fn a_tap_in_use_is_a_failed_precondition_that_names_it() {
    require!(Tap);
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let ifname = format!("vfut{}", std::process::id() % 100_000);
    let tap = |id| e1000(id, json!({"net": {"tap": {"ifname": ifname}}}));
    create(&mut devices, tap("nic0")).await;
    let error = refused(&mut devices, tap("nic1")).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "IN_USE")
    );
    assert!(error.message().contains(&ifname), "{error}");
    let info = error.get_details_error_info().unwrap();
    assert_eq!(info.metadata["field"], "device.spec.config.net.tap.ifname");
    let precondition = error.get_details_precondition_failure().unwrap();
    assert_eq!(precondition.violations[0].r#type, "IN_USE");
    assert!(!host.path("run/devices/nic1").exists());

    let interface = Path::new("/sys/class/net").join(&ifname);
    assert!(interface.exists());
    devices.delete_device(deletion("nic0")).await.unwrap();
    assert!(!interface.exists());
    host.assert_empty().await;
}

#[tokio::test]
async fn an_agent_that_may_not_make_taps_says_so() {
    require!(Tap);
    let host = Host::start_with(|host| {
        // Nobody may not enter the folder the tests were built in.
        let folder = host.path("bin");
        fs::create_dir(&folder).unwrap();
        for name in ["vfu-agent", "vfu-device"] {
            fs::copy(programs().unwrap().join(name), folder.join(name)).unwrap();
        }
        host.program = folder.join("vfu-agent");
        std::os::unix::fs::chown(host.dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        host.user = Some(NOBODY);
    })
    .await;
    let mut devices = host.devices().await;
    let error = refused(&mut devices, e1000("nic0", json!({"net": {"tap": {}}}))).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "PERMISSION"),
        "{error}"
    );
    let mut root = nic("nic1");
    spec(&mut root).socket = Some(SocketSpec {
        uid: Some(0),
        ..SocketSpec::default()
    });
    let error = refused(&mut devices, root).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "PERMISSION"),
        "{error}"
    );
    host.assert_empty().await;
    create(&mut devices, nic("nic2")).await;
}

#[tokio::test]
async fn a_missing_device_program_is_told_and_the_agent_runs() {
    let host = Host::start_with(|host| {
        host.flags
            .extend(["--device-program".into(), "/nowhere/vfu-device".into()])
    })
    .await;
    let mut devices = host.devices().await;
    let error = refused(&mut devices, nic("nic0")).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "DEVICE_PROGRAM_MISSING")
    );
    for word in ["/nowhere/vfu-device", "install", "--device-program"] {
        assert!(error.message().contains(word), "{error}");
    }
    host.assert_empty().await;
    let mut agent = AgentServiceClient::new(host.channel().await);
    let agent = agent
        .get_agent(GetAgentRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(
        agent
            .device_program
            .unwrap()
            .error
            .contains("/nowhere/vfu-device")
    );
}

#[tokio::test]
async fn a_killed_agent_is_followed_by_one_that_adopts() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let kept = create(&mut devices, nic("kept")).await;
    let lost = create(&mut devices, nic("lost")).await;
    host.end_agent(Signal::SIGKILL);
    assert_eq!(host.processes().len(), 2);
    send(pid(&lost), Signal::SIGKILL);
    host.start_agent().await;

    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "kept", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!(pid(&adopted), pid(&kept));
    assert_eq!((&adopted.uid, &adopted.etag), (&kept.uid, &kept.etag));
    assert_eq!(
        adopted.status.unwrap().start_time,
        kept.status.as_ref().unwrap().start_time
    );
    let anew = wait_for(&mut devices, "lost", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_ne!(pid(&anew), pid(&lost));
    UnixStream::connect(&anew.status.unwrap().socket_path).unwrap();

    // An adopted process is watched and can be deleted as any other.
    send(pid(&kept), Signal::SIGKILL);
    let again = wait_for(&mut devices, "kept", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&kept)
    })
    .await;
    assert_eq!(again.status.unwrap().restart_count, 1);
    for id in ["kept", "lost"] {
        devices.delete_device(deletion(id)).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn an_agent_that_ends_removes_its_socket_and_leaves_devices() {
    let mut host = Host::start().await;
    let device = create(&mut host.devices().await, nic("nic0")).await;
    host.end_agent(Signal::SIGTERM);
    assert!(!host.path("run/agent.sock").exists());
    assert_eq!(host.processes(), [pid(&device)]);
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn a_second_agent_is_refused_and_the_first_serves_on() {
    let host = Host::start().await;
    let second = host.command().output().unwrap();
    assert!(!second.status.success());
    let told = String::from_utf8(second.stderr).unwrap();
    assert!(told.contains("in use by another agent"), "{told}");
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_process_that_ends_is_started_again_or_not_by_policy() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let always = create(&mut devices, nic("always")).await;
    let mut request = nic("never");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let never = create(&mut devices, request).await;

    send(pid(&always), Signal::SIGKILL);
    // Whoever connects while there is no process waits in the queue of the socket that the agent holds.
    let path = always.status.clone().unwrap().socket_path;
    UnixStream::connect(path).unwrap();
    let again = wait_for(&mut devices, "always", "another process", |it| {
        state(it) == State::Ready && pid(it) != pid(&always)
    })
    .await;
    assert_eq!(again.status.unwrap().restart_count, 1);

    send(pid(&never), Signal::SIGKILL);
    let failed = wait_for(&mut devices, "never", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    let condition = failed.status.unwrap().conditions.remove(0);
    assert_eq!(condition.reason, "PROCESS_EXITED");
    for word in ["SIGKILL", "serving", "create it anew"] {
        assert!(condition.message.contains(word), "{}", condition.message);
    }
    let reset = ResetDeviceRequest {
        name: "devices/never".to_owned(),
        ..ResetDeviceRequest::default()
    };
    let error = devices.reset_device(reset).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "DEVICE_NOT_SERVED")
    );
    for id in ["always", "never"] {
        devices.delete_device(deletion(id)).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn a_device_in_use_is_deleted_by_force_only() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let mut client = UnixStream::connect(device.status.unwrap().socket_path).unwrap();
    let connected = wait_for(&mut devices, "nic0", "connected", |it| {
        state(it) == State::Connected
    })
    .await;
    let me = connected.status.unwrap().client.unwrap();
    assert_eq!(u32::try_from(me.pid).unwrap(), std::process::id());
    assert_eq!(Path::new(&me.executable), std::env::current_exe().unwrap());

    let error = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::FailedPrecondition, "CLIENT_CONNECTED")
    );
    for word in [&me.pid.to_string(), &me.executable, "force"] {
        assert!(error.message().contains(word), "{error}");
    }
    let reset = ResetDeviceRequest {
        name: "devices/nic0".to_owned(),
        ..ResetDeviceRequest::default()
    };
    devices.reset_device(reset).await.unwrap();
    wait_for(&mut devices, "nic0", "one reset", |it| {
        it.status.as_ref().unwrap().resets.unwrap().api == 1
    })
    .await;

    let force = DeleteDeviceRequest {
        force: true,
        ..deletion("nic0")
    };
    devices.delete_device(force).await.unwrap();
    host.assert_empty().await;
    client.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn mutations_are_guarded_and_safe_to_repeat() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("");
    request.validate_only = true;
    let planned = create(&mut devices, request.clone()).await;
    assert!(planned.uid.is_empty() && planned.status.is_none());
    host.assert_empty().await;

    request.validate_only = false;
    request.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
    let mut also = devices.clone();
    let (first, second) = tokio::join!(
        create(&mut devices, request.clone()),
        create(&mut also, request.clone())
    );
    assert_eq!(first, second);
    assert!(first.name.starts_with("devices/e1000-"), "{}", first.name);
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let error = refused(&mut devices, request).await;
    assert_eq!(violation(&error).0, "request_id");

    let id = first.name.strip_prefix("devices/").unwrap();
    let error = refused(&mut devices, nic(id)).await;
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::AlreadyExists, "DEVICE_EXISTS")
    );
    assert_eq!(
        error.get_details_resource_info().unwrap().resource_name,
        first.name
    );
    let mut delete = deletion(id);
    delete.etag = "old".to_owned();
    let error = devices.delete_device(delete.clone()).await.unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    delete.etag = first.etag.clone();
    delete.validate_only = true;
    devices.delete_device(delete.clone()).await.unwrap();
    assert_eq!(get(&mut devices, id).await, first);
    delete.validate_only = false;
    devices.delete_device(delete).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn lists_come_in_pages_ordered_by_name() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    for id in ["c", "a", "b"] {
        create(&mut devices, nic(id)).await;
    }
    let mut request = ListDevicesRequest {
        page_size: 2,
        ..ListDevicesRequest::default()
    };
    let page = devices
        .list_devices(request.clone())
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = page.devices.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["devices/a", "devices/b"]);
    request.page_token = page.next_page_token;
    let page = devices
        .list_devices(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (page.devices.len(), &*page.devices[0].name),
        (1, "devices/c")
    );
    assert_eq!(page.next_page_token, "");
    request.page_token = "c".to_owned();
    let error = devices.list_devices(request.clone()).await.unwrap_err();
    assert_eq!(violation(&error).0, "page_token");
    request.page_size = -1;
    let error = devices.list_devices(request).await.unwrap_err();
    assert_eq!(violation(&error).0, "page_size");
}

#[tokio::test]
async fn the_largest_of_requests_have_answers_that_callers_can_take() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let long = "x".repeat(500);
    let fields = (0..100).map(|it| (format!("{it}{long}"), json!({})));
    let error = refused(&mut devices, e1000("nic0", fields.collect())).await;
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().len() + error.details().len() < 8000);

    for index in 0..50 {
        let mut request = nic(&format!("nic{index:02}"));
        let annotations = &mut request.device.as_mut().unwrap().annotations;
        annotations.insert("large".to_owned(), "x".repeat(64_000));
        create(&mut devices, request).await;
    }
    let mut request = ListDevicesRequest::default();
    let mut names = Vec::new();
    loop {
        let page = devices.list_devices(request.clone()).await;
        let page = page.unwrap().into_inner();
        names.extend(page.devices.into_iter().map(|it| it.name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let all: Vec<_> = (0..50).map(|it| format!("devices/nic{it:02}")).collect();
    assert_eq!(names, all);
}

#[tokio::test]
async fn a_caller_that_does_not_wait_gets_the_device_by_its_request_id() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    request.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
    let mut hasty = Request::new(request.clone());
    hasty.set_timeout(Duration::from_micros(1));
    let gone = devices.create_device(hasty).await.unwrap_err();
    assert!(
        matches!(gone.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{gone}"
    );
    let device = create(&mut devices, request).await;
    assert_eq!(state(&device), State::Ready);
    assert_eq!(host.processes(), [pid(&device)]);
}

#[tokio::test]
async fn what_is_not_served_says_so_and_what_to_do() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut limits = nic("nic0");
    spec(&mut limits).limits = Some(ResourceLimits {
        memory_bytes: 1 << 20,
        ..ResourceLimits::default()
    });
    let filter = ListDevicesRequest {
        filter: "model = \"e1000\"".to_owned(),
        ..ListDevicesRequest::default()
    };
    let delete = DeleteDeviceRequest {
        request_id: "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned(),
        ..deletion("nic0")
    };
    for (error, word) in [
        (refused(&mut devices, limits).await, "device.spec.limits"),
        (devices.list_devices(filter).await.unwrap_err(), "filter"),
        (
            devices.delete_device(delete).await.unwrap_err(),
            "request_id",
        ),
        (
            devices
                .update_device(UpdateDeviceRequest::default())
                .await
                .unwrap_err(),
            "UpdateDevice",
        ),
        (
            devices
                .plug_device(PlugDeviceRequest::default())
                .await
                .unwrap_err(),
            "PlugDevice",
        ),
        (
            devices
                .watch_devices(WatchDevicesRequest::default())
                .await
                .unwrap_err(),
            "ListDevices",
        ),
    ] {
        assert_eq!(
            (error.code(), &*reason(&error)),
            (Code::Unimplemented, "UNSERVED"),
            "{error}"
        );
        assert!(error.message().contains(word), "{error}");
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn models_and_the_agent_describe_themselves() {
    let host = Host::start().await;
    let mut models = ModelServiceClient::new(host.channel().await);
    let all = models
        .list_models(ListModelsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .models;
    let e1000 = all.iter().find(|it| it.name == "models/e1000").unwrap();
    assert_eq!(
        (e1000.vendor_id, e1000.device_id, e1000.class_code),
        (0x8086, 0x100e, 0x2_0000)
    );
    assert!(
        e1000
            .config_schema
            .as_ref()
            .unwrap()
            .fields
            .contains_key("properties")
    );
    let name = "models/e1000".to_owned();
    assert_eq!(
        &models
            .get_model(GetModelRequest { name })
            .await
            .unwrap()
            .into_inner(),
        e1000
    );
    let name = "models/e1001".to_owned();
    let error = models
        .get_model(GetModelRequest { name })
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::NotFound, "MODEL_NOT_FOUND")
    );

    create(&mut host.devices().await, nic("nic0")).await;
    let mut agent = AgentServiceClient::new(host.channel().await);
    let agent = agent
        .get_agent(GetAgentRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(agent.run_dir, host.path("run").to_str().unwrap());
    let counts = agent.device_counts.unwrap();
    assert_eq!((counts.total, counts.ready), (1, 1));
    assert!(
        agent
            .device_program
            .unwrap()
            .models
            .contains(&"e1000".to_owned())
    );
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let host = Host::start().await;
    let mut health = HealthClient::new(host.channel().await);
    for service in ["", "vfu.v1.DeviceService"] {
        let service = service.to_owned();
        let answer = health
            .check(HealthCheckRequest { service })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let mut reflection = ServerReflectionClient::new(host.channel().await);
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("not a list: {answer:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|it| it.name).collect();
    for name in [
        "vfu.v1.DeviceService",
        "vfu.v1.ModelService",
        "vfu.v1.AgentService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name.to_owned()), "{names:?}");
    }
}

#[tokio::test]
async fn many_devices_are_made_at_once() {
    let host = Host::start().await;
    let devices = host.devices().await;
    let mut creations = tokio::task::JoinSet::new();
    for index in 0..24 {
        let mut devices = devices.clone();
        creations.spawn(async move { create(&mut devices, nic(&format!("nic{index}"))).await });
    }
    let made = creations.join_all().await;
    assert!(made.iter().all(|it| state(it) == State::Ready));
    let mut deletions = tokio::task::JoinSet::new();
    for index in 0..24 {
        let mut devices = devices.clone();
        deletions.spawn(async move {
            devices
                .delete_device(deletion(&format!("nic{index}")))
                .await
        });
    }
    assert!(deletions.join_all().await.iter().all(Result::is_ok));
    host.assert_empty().await;
}

#[tokio::test]
async fn what_a_dead_agent_left_behind_is_cleaned() {
    let mut host = Host::start().await;
    host.end_agent(Signal::SIGTERM);
    let stale = host.path("run/devices/stale");
    fs::create_dir(&stale).unwrap();
    drop(UnixListener::bind(stale.join("vfio-user.sock")).unwrap());
    host.start_agent().await;
    host.assert_empty().await;
    create(&mut host.devices().await, nic("stale")).await;
}

#[tokio::test]
async fn a_device_that_shall_not_be_restarted_is_not_by_the_next_agent_either() {
    let mut host = Host::start().await;
    let mut request = nic("nic0");
    spec(&mut request).set_restart_policy(RestartPolicy::Never);
    let device = create(&mut host.devices().await, request).await;
    host.end_agent(Signal::SIGTERM);
    send(pid(&device), Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let failed = wait_for(&mut devices, "nic0", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    assert!(
        failed.status.unwrap().conditions[0]
            .message
            .contains("serving")
    );
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_loses_and_leaks_nothing() {
    let mut host = Host::start().await;
    for round in 0..12_u64 {
        let devices = host.devices().await;
        let mut calls = tokio::task::JoinSet::new();
        for index in 0..6 {
            let mut devices = devices.clone();
            calls.spawn(async move {
                let id = format!("nic{index}");
                loop {
                    let made = devices.create_device(nic(&id)).await;
                    let deleted = devices.delete_device(deletion(&id)).await;
                    // The agent is gone.
                    if made.is_err() && deleted.is_err() {
                        break;
                    }
                }
            });
        }
        // Moments spread over what a creation takes, the same in every run.
        tokio::time::sleep(Duration::from_millis(3 + round * 7 % 40)).await;
        host.end_agent(Signal::SIGKILL);
        calls.join_all().await;
        host.start_agent().await;

        let mut devices = host.devices().await;
        let settled = async {
            loop {
                let request = ListDevicesRequest::default();
                let list = devices
                    .list_devices(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .devices;
                if list.iter().all(|it| state(it) == State::Ready) {
                    return list;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let list = tokio::time::timeout(LIMIT, settled).await.unwrap();
        let mut named: Vec<_> = list.iter().map(pid).collect();
        let mut running = host.processes();
        named.sort_unstable();
        running.sort_unstable();
        assert_eq!(named, running, "round {round}");
        let left = fs::read_dir(host.path("run/devices")).unwrap().count();
        assert_eq!(left, list.len(), "round {round}");
        for device in list {
            let id = device.name.strip_prefix("devices/").unwrap();
            devices.delete_device(deletion(id)).await.unwrap();
        }
        host.assert_empty().await;
    }
}
