//! The agent itself: what it is, how it is, and whether it makes devices.

use proto::v1;
use proto::v1::agent_service_server::AgentService;
use tonic::{Request, Response, Status};

use super::status::{invalid_field, unserved};
use super::{MAX_REQUEST_BYTES, Service};
use crate::limits::open_files_of_agent;
use crate::models::MAX_CONFIG_BYTES;
use crate::supervisor::{Life, chain};

/// Name of the runtime that has our own models.
const RUNTIME: &str = "vfu-device";

#[tonic::async_trait]
impl AgentService for Service {
    async fn get_agent(
        &self,
        request: Request<v1::GetAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        if !matches!(&*request.get_ref().name, "" | "agent") {
            return Err(invalid_field("name", "must be agent, or empty"));
        }
        let shared = &self.supervisor.shared;
        let config = &shared.config;
        let runtime = match shared.models.get().await {
            Ok(catalogue) => v1::Runtime {
                name: RUNTIME.to_owned(),
                path: catalogue.program.display().to_string(),
                models: catalogue.models.keys().cloned().collect(),
                error: String::new(),
            },
            Err(error) => v1::Runtime {
                name: RUNTIME.to_owned(),
                error: chain(&error),
                ..v1::Runtime::default()
            },
        };
        let count = |life| to_i32(self.supervisor.count(life));
        let mut device_counts = v1::DeviceCounts {
            total: 0,
            starting: count(Life::Starting),
            ready: count(Life::Ready),
            connected: count(Life::Connected),
            failed: count(Life::Failed),
            deleting: count(Life::Deleting),
            stopped: 0,
        };
        let v1::DeviceCounts {
            total: _,
            starting,
            ready,
            connected,
            failed,
            deleting,
            stopped: _,
        } = device_counts;
        device_counts.total = starting + ready + connected + failed + deleting;
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(Response::new(v1::Agent {
            name: "agent".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            start_time: Some(self.start_time.into()),
            boot_id: shared.boot_id.clone(),
            hostname: hostname.trim().to_owned(),
            run_dir: config.run_dir.display().to_string(),
            state_dir: config.state_dir.display().to_string(),
            runtimes: vec![runtime],
            device_counts: Some(device_counts),
            limits: Some(v1::AgentLimits {
                devices: to_i32(config.max_devices),
                concurrent_calls: to_i32(config.max_calls),
                request_bytes: to_i64(MAX_REQUEST_BYTES),
                config_bytes: to_i64(MAX_CONFIG_BYTES),
                open_files: i64::try_from(open_files_of_agent()).unwrap_or(i64::MAX),
                ..v1::AgentLimits::default()
            }),
            ..v1::Agent::default()
        }))
    }

    async fn drain(&self, _: Request<v1::DrainRequest>) -> Result<Response<v1::Agent>, Status> {
        Err(unserved("Drain", "let no one create devices"))
    }

    async fn undrain(&self, _: Request<v1::UndrainRequest>) -> Result<Response<v1::Agent>, Status> {
        Err(unserved("Undrain", "there is no Drain either"))
    }

    async fn shut_down_devices(
        &self,
        _: Request<v1::ShutDownDevicesRequest>,
    ) -> Result<Response<v1::ShutDownDevicesResponse>, Status> {
        Err(unserved("ShutDownDevices", "delete the devices"))
    }
}

fn to_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn to_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
