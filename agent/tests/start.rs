//! Device programs that fail in ways the real one does not: they hang, or die without a word. The
//! agent runs in the test, with patience short enough for one.

#![cfg(test)]

use std::path::Path;
use std::time::Duration;

use agent::config::{Args, Live, Sources};
use clap::Parser;
use proto::v1::device_service_client::DeviceServiceClient;
use proto::v1::{CreateDeviceRequest, Device, DeviceSpec, ListDevicesRequest, ResourceLimits};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

struct Host {
    dir: tempfile::TempDir,
    end: oneshot::Sender<()>,
    agent: JoinSet<Result<(), agent::Error>>,
    devices: DeviceServiceClient<Channel>,
}

impl Host {
    async fn start() -> Self {
        Self::with_patience(Duration::from_millis(300)).await
    }

    async fn with_patience(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/device-program");
        let flag = |name: &str, value: &Path| [name.to_owned(), value.display().to_string()];
        let flags = [
            ["vfu-agent".to_owned(), "--log-format=text".to_owned()],
            flag("--run-dir", &dir.path().join("run")),
            flag("--state-dir", &dir.path().join("state")),
            flag("--device-program", &program),
        ];
        let args = Args::parse_from(flags.as_flattened());
        let mut config = Sources::with_variables(args, []).load().unwrap().config;
        config.timeouts.start = patience;
        config.timeouts.stop = Duration::from_millis(300);
        let lock = agent::lock(&config).unwrap();
        let socket = config.listen();
        let listener = agent::bind_api(&config).unwrap();
        let (end, ended) = oneshot::channel();
        let shutdown = async { ended.await.unwrap() };
        let mut agent = JoinSet::new();
        agent.spawn(agent::run(Live::fixed(config), lock, listener, shutdown));
        let uri = format!("unix://{}", socket.display());
        let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
        Self {
            dir,
            end,
            agent,
            devices: DeviceServiceClient::new(channel),
        }
    }

    /// Asks for a device that can't be had, and checks that nothing is left of it.
    async fn refused(&mut self, model: &str) -> Status {
        let request = device(model);
        let error = self.devices.create_device(request).await.unwrap_err();
        let listed = self.devices.list_devices(ListDevicesRequest::default());
        assert_eq!(listed.await.unwrap().into_inner().devices, []);
        let directory = self.dir.path().join("run/devices/d0");
        assert!(!directory.exists());
        error
    }

    async fn end(mut self) {
        self.end.send(()).unwrap();
        self.agent.join_next().await.unwrap().unwrap().unwrap();
    }
}

/// A request for the device `d0` of this model.
fn device(model: &str) -> CreateDeviceRequest {
    let spec = DeviceSpec {
        model: model.to_owned(),
        limits: Some(ResourceLimits {
            memory_bytes: 32 << 20,
            ..ResourceLimits::default()
        }),
        ..DeviceSpec::default()
    };
    CreateDeviceRequest {
        device: Some(Device {
            spec: Some(spec),
            ..Device::default()
        }),
        device_id: "d0".to_owned(),
        ..CreateDeviceRequest::default()
    }
}

#[tokio::test]
async fn a_program_that_never_gets_ready_is_ended() {
    let mut host = Host::start().await;
    let error = host.refused("hangs").await;
    assert_eq!(error.code(), Code::Unavailable);
    let info = error.get_details_error_info().unwrap();
    assert_eq!(info.reason, "PROCESS_LATE");
    assert!(error.get_details_retry_info().is_some());
    assert!(
        error.message().contains("not ready within 300ms"),
        "{error}"
    );
    let (_, pid) = error.message().rsplit_once("pid ").unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "{pid}");
    host.end().await;
}

#[tokio::test]
async fn a_program_that_dies_without_a_word_on_the_control_socket_is_quoted() {
    let mut host = Host::start().await;
    let error = host.refused("dies").await;
    assert_eq!(error.code(), Code::FailedPrecondition);
    let info = error.get_details_error_info().unwrap();
    assert_eq!(info.reason, "PROCESS_EXITED");
    for word in ["exited with code 7", "what hurt"] {
        assert!(error.message().contains(word), "{error}");
    }
    host.end().await;
}

#[tokio::test]
async fn a_limit_that_a_program_ran_into_is_named() {
    let mut host = Host::start().await;
    let error = host.refused("greedy").await;
    assert_eq!(error.code(), Code::FailedPrecondition);
    let limit = "limits.memory_bytes of 33554432";
    assert!(error.message().contains(limit), "{error}");
    host.end().await;
}

#[tokio::test]
async fn a_call_whose_caller_went_away_is_in_the_audit_log() {
    let mut host = Host::with_patience(Duration::from_secs(2)).await;
    let directory = host.dir.path().join("run/devices/d0");
    let limit = Duration::from_secs(20);
    let is_made = async {
        while !directory.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        answer = host.devices.create_device(device("hangs")) => panic!("{answer:?}"),
        made = tokio::time::timeout(limit, is_made) => made.unwrap(),
    }
    let path = host.dir.path().join("state/audit.log");
    let written = async {
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if !text.is_empty() {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let line = tokio::time::timeout(limit, written).await.unwrap();
    for part in [
        "\"method\":\"vfu.v1.DeviceService/CreateDevice\"",
        "\"resource\":\"devices/d0\"",
        "\"code\":\"CANCELLED\",\"reason\":\"CALLER_GONE\"",
    ] {
        assert!(line.contains(part), "{line}");
    }
    // The agent went on, and has put everything back.
    let is_gone = async {
        while directory.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(limit, is_gone).await.unwrap();
    host.end().await;
}
