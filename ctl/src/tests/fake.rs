//! An agent that keeps devices in a map, and remembers what it was asked.

use std::{
    collections::{BTreeMap, VecDeque},
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

/// What a stream sends before it ends.
type Script<T> = Vec<Result<T, Status>>;

type Scripted<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

type Answer<T> = Result<Response<T>, Status>;

/// How many devices the agent puts in one page.
const PAGE: usize = 2;

#[derive(Clone, Default)]
pub(super) struct Fake {
    pub(super) devices: Arc<Mutex<BTreeMap<String, Device>>>,
    pub(super) agent: Arc<Mutex<Agent>>,
    /// The version that lists have.
    pub(super) version: Arc<Mutex<String>>,
    /// What each call of WatchDevices sends.
    pub(super) changes: Arc<Mutex<VecDeque<Script<WatchDevicesResponse>>>>,
    /// What is found wherever somebody looks.
    pub(super) findings: Arc<Mutex<Vec<Finding>>>,
    /// How long a plug takes.
    pub(super) plugging: Arc<Mutex<Duration>>,
    /// What WatchStats sends.
    pub(super) counters: Arc<Mutex<Script<WatchStatsResponse>>>,
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
    pub(super) plug: Option<PlugDeviceRequest>,
    pub(super) unplug: Option<UnplugDeviceRequest>,
    pub(super) diagnose: Option<DiagnoseDeviceRequest>,
    pub(super) drain: Option<DrainRequest>,
    pub(super) shut_down: Option<ShutDownDevicesRequest>,
    pub(super) list: Option<ListDevicesRequest>,
    pub(super) watches: Vec<WatchDevicesRequest>,
    pub(super) stats: Option<WatchStatsRequest>,
    pub(super) logs: Option<ReadLogsRequest>,
    pub(super) events: Option<ListEventsRequest>,
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
        self.asked.lock().unwrap().list = Some(request.clone());
        let devices = self.devices.lock().unwrap();
        let mut rest = devices.values().filter(|it| it.name > request.page_token);
        let page: Vec<_> = rest.by_ref().take(PAGE).cloned().collect();
        let more = rest.next().and_then(|_| page.last());
        Ok(Response::new(ListDevicesResponse {
            next_page_token: more.map(|it| it.name.clone()).unwrap_or_default(),
            devices: page,
            resource_version: self.version.lock().unwrap().clone(),
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

    type WatchDevicesStream = Scripted<WatchDevicesResponse>;
    type WatchStatsStream = Scripted<WatchStatsResponse>;
    type ReadLogsStream = Scripted<ReadLogsResponse>;

    async fn plug_device(&self, request: Request<PlugDeviceRequest>) -> Answer<Device> {
        let request = request.into_inner();
        self.asked.lock().unwrap().plug = Some(request.clone());
        let time = *self.plugging.lock().unwrap();
        tokio::time::sleep(time).await;
        let mut devices = self.devices.lock().unwrap();
        let Some(device) = devices.get_mut(&request.name) else {
            return Err(Status::not_found(format!(
                "{}: no such device",
                request.name
            )));
        };
        let mut details = ErrorDetails::new();
        for it in self.findings.lock().unwrap().iter() {
            let told = format!("{}; {}", it.message, it.cure);
            details.add_precondition_failure_violation(&it.code, &it.subject, told);
        }
        if details.precondition_failure().is_some() {
            let why = "the VMM can't take the device";
            return Err(Status::with_error_details(
                Code::FailedPrecondition,
                why,
                details,
            ));
        }
        let mut plugged = device.clone();
        plugged.status.get_or_insert_default().attachment = Some(Attachment {
            state: attachment::State::Plugged.into(),
            vmm: request.vmm,
            bus: "rp0".into(),
            address: "0000:02:00.0".into(),
            ..Attachment::default()
        });
        if !request.validate_only {
            *device = plugged.clone();
        }
        Ok(Response::new(plugged))
    }

    async fn unplug_device(&self, request: Request<UnplugDeviceRequest>) -> Answer<Device> {
        let request = request.into_inner();
        self.asked.lock().unwrap().unplug = Some(request.clone());
        let mut device = self.device(&request.name)?;
        device.get_mut().status.get_or_insert_default().attachment = None;
        Ok(device)
    }

    async fn diagnose_device(
        &self,
        request: Request<DiagnoseDeviceRequest>,
    ) -> Answer<DiagnoseDeviceResponse> {
        self.asked.lock().unwrap().diagnose = Some(request.into_inner());
        let findings = self.findings.lock().unwrap().clone();
        Ok(Response::new(DiagnoseDeviceResponse { findings }))
    }

    async fn watch_devices(
        &self,
        request: Request<WatchDevicesRequest>,
    ) -> Answer<Self::WatchDevicesStream> {
        assert!(request.metadata().get("grpc-timeout").is_none());
        let mut asked = self.asked.lock().unwrap();
        asked.watches.push(request.into_inner());
        match self.changes.lock().unwrap().pop_front() {
            // A stream that begins with an error does not begin.
            Some(script) => match script.first() {
                Some(Err(status)) => Err(status.clone()),
                _ => Ok(Response::new(tokio_stream::iter(script))),
            },
            None => Err(Status::internal("the end of the script")),
        }
    }

    async fn watch_stats(
        &self,
        request: Request<WatchStatsRequest>,
    ) -> Answer<Self::WatchStatsStream> {
        self.asked.lock().unwrap().stats = Some(request.into_inner());
        let script = self.counters.lock().unwrap().clone();
        Ok(Response::new(tokio_stream::iter(script)))
    }

    async fn read_logs(&self, request: Request<ReadLogsRequest>) -> Answer<Self::ReadLogsStream> {
        let request = request.into_inner();
        self.device(&request.name)?;
        self.asked.lock().unwrap().logs = Some(request);
        let line = |text: &str| LogLine {
            text: text.into(),
            time: None,
        };
        let answers = [vec![line("one"), line("two\u{7}")], vec![line("three")]];
        let answers = answers.map(|lines| Ok(ReadLogsResponse { lines }));
        Ok(Response::new(tokio_stream::iter(answers.to_vec())))
    }

    async fn list_events(&self, request: Request<ListEventsRequest>) -> Answer<ListEventsResponse> {
        let request = request.into_inner();
        let size = usize::try_from(request.page_size).unwrap().min(PAGE);
        let first: usize = request.page_token.parse().unwrap_or(0);
        self.asked.lock().unwrap().events = Some(request);
        let all = 0..5;
        let page = all.clone().skip(first).take(size);
        let events = page.map(|it| Event {
            name: format!("devices/nic{it}/events/e"),
            reason: "PROCESS_EXITED".into(),
            severity: event::Severity::Warning.into(),
            count: 1,
            ..Event::default()
        });
        let next = first + size;
        Ok(Response::new(ListEventsResponse {
            events: events.collect(),
            next_page_token: match next < all.end {
                true => next.to_string(),
                false => String::new(),
            },
        }))
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
