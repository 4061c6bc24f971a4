//! The agent itself: what it is, how it is, and whether it makes devices.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::v1;
use proto::v1::agent_service_server::AgentService;
use tonic::{Request, Response, Status};

use super::convert::OWN_RUNTIME;
use super::span::patience;
use super::status::invalid_field;
use super::{Service, mutation};
use crate::chain::chain;
use crate::limits::open_files_of_agent;
use crate::models::model::MAX_CONFIG_BYTES;
use crate::runtimes::Runtimes;
use crate::supervisor::Life;

const MAX_REASON_BYTES: usize = 256;
/// How long processes may take to end when the caller does not say.
const SHUT_DOWN: Duration = Duration::from_secs(30);
/// So many devices that were not stopped are named.
const MAX_REMAINING: usize = 100;
/// So many devices whose records can't be read are named.
const MAX_UNREADABLE: usize = 100;
/// So much of what is wrong with a record is said: it may quote the record.
const MAX_ERROR_BYTES: usize = 256;

impl Service {
    /// The agent as it is now.
    async fn agent(&self) -> v1::Agent {
        let shared = &self.supervisor.shared;
        let config = shared.config();
        let own = match shared.models.own().await {
            Ok(catalogue) => v1::Runtime {
                name: OWN_RUNTIME.to_owned(),
                path: catalogue.program.display().to_string(),
                models: catalogue.models.keys().cloned().collect(),
                error: String::new(),
            },
            Err(error) => v1::Runtime {
                name: OWN_RUNTIME.to_owned(),
                error: chain(&error),
                ..v1::Runtime::default()
            },
        };
        let others = others(&shared.models.runtimes, &own.models).await;
        let count = |life| to_i32(self.supervisor.count(life));
        let mut device_counts = v1::DeviceCounts {
            total: 0,
            starting: count(Life::Starting),
            ready: count(Life::Ready),
            connected: count(Life::Connected),
            failed: count(Life::Failed),
            deleting: count(Life::Deleting),
            stopped: count(Life::Stopped),
        };
        let v1::DeviceCounts {
            total: _,
            starting,
            ready,
            connected,
            failed,
            deleting,
            stopped,
        } = device_counts;
        device_counts.total = starting + ready + connected + failed + deleting + stopped;
        let drained = shared.drain.drained();
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        v1::Agent {
            name: "agent".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: i32::try_from(std::process::id()).unwrap_or_default(),
            start_time: Some(self.start_time.into()),
            boot_id: shared.boot_id.clone(),
            hostname: hostname.trim().to_owned(),
            run_dir: config.run_dir.display().to_string(),
            state_dir: config.state_dir.display().to_string(),
            runtimes: std::iter::once(own).chain(others).collect(),
            device_counts: Some(device_counts),
            limits: Some(v1::AgentLimits {
                devices: config.limits.devices.try_into().unwrap_or(i32::MAX),
                concurrent_calls: config
                    .limits
                    .concurrent_calls
                    .try_into()
                    .unwrap_or(i32::MAX),
                request_bytes: config.limits.request_bytes.into(),
                config_bytes: to_i64(MAX_CONFIG_BYTES),
                open_files: i64::try_from(open_files_of_agent()).unwrap_or(i64::MAX),
                watches: i32::try_from(config.limits.watches).unwrap_or(i32::MAX),
                watch_changes: i32::try_from(config.limits.watch_changes).unwrap_or(i32::MAX),
                log_bytes: i64::try_from(config.limits.log_bytes).unwrap_or(i64::MAX),
                starting: to_i32(shared.start_limit),
            }),
            drain_time: drained.as_ref().map(|it| it.time.into()),
            drain_reason: drained.map(|it| it.reason).unwrap_or_default(),
            shut_down_time: shared.drain.shut_down_time().map(Into::into),
            cgroup: shared
                .cgroups
                .path()
                .map_or_else(String::new, |it| it.display().to_string()),
            cgroup_error: shared.cgroups.error().to_owned(),
            config_error: shared
                .config_error()
                .map_or_else(String::new, |it| it.to_string()),
            unreadable_devices: unreadable(&shared.unreadable),
        }
    }
}

/// The programs that description files name, and the files that count for nothing. `own` are the names of vfu's models.
async fn others(runtimes: &Runtimes, own: &[String]) -> Vec<v1::Runtime> {
    let described = runtimes.get().await;
    let mut others: Vec<v1::Runtime> = Vec::new();
    for model in described.models.values() {
        let Some(external) = &model.external else {
            continue;
        };
        let source = external.source.display();
        let (path, error) = match runtimes.program(external).await {
            _ if own.contains(&model.name) => {
                let why = format!(
                    "{source}: name: {} is a model of vfu's; rename it",
                    model.name
                );
                (String::new(), why)
            }
            Ok(path) => (path.display().to_string(), String::new()),
            Err(why) => (String::new(), format!("{source}: {why}")),
        };
        let same = |it: &&mut v1::Runtime| {
            it.name == external.runtime && it.path == path && it.error == error
        };
        match others.iter_mut().find(same) {
            Some(runtime) => runtime.models.push(model.name.clone()),
            None => others.push(v1::Runtime {
                name: external.runtime.clone(),
                path,
                models: vec![model.name.clone()],
                error,
            }),
        }
    }
    let bad = described.bad.iter().map(|(path, why)| {
        let name = path.file_stem().unwrap_or_default();
        v1::Runtime {
            name: name.to_string_lossy().into_owned(),
            error: format!("{}: {why}", path.display()),
            ..v1::Runtime::default()
        }
    });
    others.extend(bad);
    others
}

#[tonic::async_trait]
impl AgentService for Service {
    async fn get_agent(
        &self,
        request: Request<v1::GetAgentRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        if !matches!(&*request.get_ref().name, "" | "agent") {
            return Err(invalid_field("name", "must be agent, or empty"));
        }
        Ok(Response::new(self.agent().await))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        let reason = mutation::open(request).reason;
        if reason.len() > MAX_REASON_BYTES {
            let why = format!(
                "has {} bytes, and {MAX_REASON_BYTES} is the most",
                reason.len()
            );
            return Err(invalid_field("reason", why));
        }
        self.supervisor.drain(reason).await?;
        Ok(Response::new(self.agent().await))
    }

    async fn undrain(
        &self,
        request: Request<v1::UndrainRequest>,
    ) -> Result<Response<v1::Agent>, Status> {
        mutation::open(request);
        self.supervisor.undrain().await?;
        Ok(Response::new(self.agent().await))
    }

    async fn shut_down_devices(
        &self,
        request: Request<v1::ShutDownDevicesRequest>,
    ) -> Result<Response<v1::ShutDownDevicesResponse>, Status> {
        let request = mutation::open(request);
        let timeout = match request.timeout {
            Some(timeout) => patience(&timeout)?,
            None => SHUT_DOWN,
        };
        let came = self.supervisor.shut_down(request.force, timeout).await?;
        let named = came.remaining.into_iter().take(MAX_REMAINING);
        Ok(Response::new(v1::ShutDownDevicesResponse {
            stopped: to_i32(came.stopped),
            remaining: named.map(|id| format!("devices/{id}")).collect(),
        }))
    }
}

/// The devices whose records can't be read, and why.
fn unreadable(errors: &BTreeMap<String, String>) -> Vec<v1::UnreadableDevice> {
    let devices = errors.iter().take(MAX_UNREADABLE);
    let devices = devices.map(|(id, error)| v1::UnreadableDevice {
        name: format!("devices/{id}"),
        error: error[..error.floor_char_boundary(MAX_ERROR_BYTES)].to_owned(),
    });
    devices.collect()
}

fn to_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn to_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
