//! An agent that keeps devices in a map, and remembers what it was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::v1::{
    agent_service_server::AgentService, device_service_server::DeviceService,
    model_service_server::ModelService, *,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{cmd::models::tests::card, output::from_struct};

type Answer<T> = Result<Response<T>, Status>;

/// How many devices the agent puts in one page.
const PAGE: usize = 2;

#[derive(Clone, Default)]
pub(super) struct Fake {
    pub(super) devices: Arc<Mutex<BTreeMap<String, Device>>>,
    pub(super) agent: Arc<Mutex<Agent>>,
    /// What is left when all devices are to be stopped.
    pub(super) remaining: Arc<Mutex<Vec<String>>>,
    pub(super) asked: Arc<Mutex<Asked>>,
}

/// The last request of each kind.
#[derive(Default)]
pub(super) struct Asked {
    /// The `grpc-timeout` header of the last create.
    pub(super) deadline: Option<String>,
    pub(super) create: Option<CreateDeviceRequest>,
    pub(super) update: Option<UpdateDeviceRequest>,
    pub(super) delete: Option<DeleteDeviceRequest>,
    pub(super) reset: Option<ResetDeviceRequest>,
    pub(super) restart: Option<RestartDeviceRequest>,
    pub(super) drain: Option<DrainRequest>,
    pub(super) shut_down: Option<ShutDownDevicesRequest>,
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
        let request = request.into_inner();
        self.asked.lock().unwrap().deadline = deadline;
        self.asked.lock().unwrap().create = Some(request.clone());
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
        self.asked.lock().unwrap().update = Some(request);
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
        self.asked.lock().unwrap().delete = Some(request.clone());
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
        let request = request.into_inner();
        self.asked.lock().unwrap().reset = Some(request.clone());
        self.device(&request.name)
    }

    async fn restart_device(&self, request: Request<RestartDeviceRequest>) -> Answer<Device> {
        let request = request.into_inner();
        self.asked.lock().unwrap().restart = Some(request.clone());
        let device = self.device(&request.name)?;
        let status = device.get_ref().status.clone().unwrap_or_default();
        if status.state() == device_status::State::Connected && !request.force {
            let why = "a client is connected; force (vfuctl: --force) does it all the same";
            return Err(Status::failed_precondition(why));
        }
        Ok(device)
    }

    type WatchDevicesStream = tokio_stream::Empty<Result<WatchDevicesResponse, Status>>;
    type WatchStatsStream = tokio_stream::Empty<Result<WatchStatsResponse, Status>>;
    type ReadLogsStream = tokio_stream::Empty<Result<ReadLogsResponse, Status>>;

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
            ..self.agent.lock().unwrap().clone()
        }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Answer<Agent> {
        let request = request.into_inner();
        self.asked.lock().unwrap().drain = Some(request.clone());
        let mut agent = self.agent.lock().unwrap().clone();
        agent.drain_time = Some(prost_types::Timestamp::default());
        agent.drain_reason = request.reason;
        *self.agent.lock().unwrap() = agent;
        self.get_agent(Request::new(GetAgentRequest::default()))
            .await
    }

    async fn undrain(&self, _: Request<UndrainRequest>) -> Answer<Agent> {
        *self.agent.lock().unwrap() = Agent::default();
        self.get_agent(Request::new(GetAgentRequest::default()))
            .await
    }

    async fn shut_down_devices(
        &self,
        request: Request<ShutDownDevicesRequest>,
    ) -> Answer<ShutDownDevicesResponse> {
        let request = request.into_inner();
        self.asked.lock().unwrap().shut_down = Some(request);
        let mut devices = self.devices.lock().unwrap();
        for device in devices.values_mut() {
            let status = device.status.get_or_insert_default();
            status.set_state(device_status::State::Stopped);
            status.pid = 0;
        }
        Ok(Response::new(ShutDownDevicesResponse {
            stopped: 2,
            remaining: self.remaining.lock().unwrap().clone(),
        }))
    }
}
