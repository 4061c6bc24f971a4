//! The agent through its API, with real device processes: what it makes, what it refuses and why, and what outlives it.

mod doctor;
mod life;
mod loss;
mod plug;
mod plug_ch;
mod release;
mod repeated;
mod requests;
mod rest;
mod update;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost_types::{Struct, Value, value::Kind};
use proto::v1::{
    CreateDeviceRequest, DeleteDeviceRequest, Device, DeviceSpec, GetAgentRequest,
    GetDeviceRequest, GetModelRequest, ListDevicesRequest, ListModelsRequest, ResetDeviceRequest,
    SocketSpec, agent_service_client::AgentServiceClient,
    device_service_client::DeviceServiceClient, device_spec::RestartPolicy, device_status::State,
    model_service_client::ModelServiceClient,
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

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;

pub(crate) type Devices = DeviceServiceClient<Channel>;

/// The directories of an agent, and the agent while it runs. Unlike `tests::Agent` it can lose its agent and get another
/// one.
pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) run_dir: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) flags: Vec<String>,
    /// Of the agents that start from now on.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) user: Option<u32>,
    pub(crate) agent: Option<Child>,
}

impl Host {
    /// A host with an agent.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Self)) -> Self {
        let mut host = Self::new();
        change(&mut host);
        host.start_agent().await;
        host
    }

    /// A host whose agent is still to be started.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vfu-")
            .tempdir_in("/tmp")
            .unwrap();
        Self {
            run_dir: dir.path().join("run"),
            dir,
            program: programs().unwrap().join("vfu-agent"),
            flags: Vec::new(),
            env: Vec::new(),
            user: None,
            agent: None,
        }
    }

    /// Starts the agent and waits until it serves.
    pub(crate) async fn start_agent(&mut self) {
        let ended = self.try_start_agent();
        assert_eq!(ended, None, "the agent ended at once");
    }

    /// Starts the agent and waits until it serves, or has ended.
    pub(crate) fn try_start_agent(&mut self) -> Option<ExitStatus> {
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
        let ended = command::wait_for("the agent's socket", LIMIT, || {
            let ended = agent.try_wait()?;
            let serves = UnixStream::connect(&socket).is_ok();
            Ok((serves || ended.is_some()).then_some(ended))
        })
        .unwrap();
        if ended.is_some() {
            self.agent = None;
        }
        ended
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--run-dir", self.run_dir.to_str().unwrap()])
            .args(["--state-dir", self.path("state").to_str().unwrap()])
            .args(&self.flags)
            .envs(self.env.iter().cloned());
        command
    }

    /// Ends the agent by this signal.
    pub(crate) fn end_agent(&mut self, signal: Signal) {
        let mut agent = self.agent.take().unwrap();
        send(i32::try_from(agent.id()).unwrap(), signal);
        command::wait_for("the end of the agent", LIMIT, || Ok(agent.try_wait()?)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self) -> String {
        command::tail(&self.path("agent.log"), 50)
    }

    pub(crate) async fn channel(&self) -> Channel {
        let uri = format!("unix://{}", self.run_dir.join("agent.sock").display());
        Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn devices(&self) -> Devices {
        DeviceServiceClient::new(self.channel().await)
    }

    /// Fails unless nothing of any device is left.
    pub(crate) async fn assert_empty(&self) {
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
    pub(crate) fn processes(&self) -> Vec<i32> {
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
        tests::cgroup::remove(&self.run_dir);
    }
}

pub(crate) fn send(pid: i32, signal: Signal) {
    // The process may have ended by itself.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// A request for an e1000 with this configuration.
pub(crate) fn e1000(id: &str, config: serde_json::Value) -> CreateDeviceRequest {
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

pub(crate) fn nic(id: &str) -> CreateDeviceRequest {
    e1000(id, json!({"net": {"null": {}}}))
}

pub(crate) fn spec(request: &mut CreateDeviceRequest) -> &mut DeviceSpec {
    request.device.as_mut().unwrap().spec.as_mut().unwrap()
}

pub(crate) fn to_struct(value: serde_json::Value) -> Struct {
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
        serde_json::Value::Bool(it) => Kind::BoolValue(it),
        it @ serde_json::Value::Object(_) => Kind::StructValue(to_struct(it)),
        it => panic!("{it} is not used here"),
    };
    Value { kind: Some(kind) }
}

pub(crate) async fn create(devices: &mut Devices, request: CreateDeviceRequest) -> Device {
    devices.create_device(request).await.unwrap().into_inner()
}

pub(crate) async fn get(devices: &mut Devices, id: &str) -> Device {
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

pub(crate) fn deletion(id: &str) -> DeleteDeviceRequest {
    DeleteDeviceRequest {
        name: format!("devices/{id}"),
        ..DeleteDeviceRequest::default()
    }
}

/// A device program whose catalogue promises that MAC address and network can change, which they can't.
pub(crate) fn liar(host: &Host) -> String {
    let path = host.path("liar");
    let program = host.program.with_file_name("vfu-device");
    let program = program.display();
    let catalogue = std::process::Command::new(host.program.with_file_name("vfu-device"))
        .args(["models", "--json"])
        .output()
        .unwrap();
    let mut catalogue: serde_json::Value = serde_json::from_slice(&catalogue.stdout).unwrap();
    for model in catalogue["models"].as_array_mut().unwrap() {
        if model["name"] == "e1000" {
            for field in ["mac", "net"] {
                model["config_schema"]["properties"][field]["x-vfu-mutable"] = true.into();
            }
        }
    }
    fs::write(host.path("catalogue"), catalogue.to_string()).unwrap();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = models ]; then exec cat {}; fi\nexec {program} \"$@\"\n",
        host.path("catalogue").display()
    );
    fs::write(&path, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    path.display().to_string()
}

pub(crate) fn state(device: &Device) -> State {
    device.status.as_ref().unwrap().state()
}

pub(crate) fn pid(device: &Device) -> i32 {
    device.status.as_ref().unwrap().pid
}

/// Waits until the device is as asked.
pub(crate) async fn wait_for(
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

pub(crate) fn reason(status: &Status) -> String {
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
