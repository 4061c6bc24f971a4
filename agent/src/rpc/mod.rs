//! The services of `vfu.v1`: requests checked and handed to the supervisor, answers put into
//! messages. What is not served says so, and what to do instead.

mod agent;
mod body;
mod convert;
mod events;
mod layer;
mod limits;
mod list;
mod logs;
mod model;
mod mutation;
mod plug;
mod preflight;
mod span;
mod stats;
mod status;
mod stream;
mod update;
mod watch;
mod wire;

use std::sync::Arc;
use std::time::SystemTime;

use proto::v1;
use proto::v1::device_service_server::DeviceService;
use serde::Serialize;
use tokio::sync::watch::Receiver;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use self::convert::device_id;
pub(crate) use self::layer::Calls;
use self::stream::Streams;
pub(crate) use self::wire::encode;
use crate::clock;
use crate::config::Live;
use crate::models::Catalogue;
use crate::schema::Violation;
use crate::stats::Reader;
use crate::store::{Call, Record};
use crate::supervisor::{Device, Error, Supervisor};

/// All services; clones serve the same devices.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    supervisor: Arc<Supervisor>,
    streams: Streams,
    start_time: SystemTime,
    stats: Arc<Reader>,
}

impl Service {
    /// Streams end when `ending` says so; other calls go on as long as the supervisor does.
    pub(crate) fn new(supervisor: Arc<Supervisor>, config: Live, ending: Receiver<bool>) -> Self {
        let streams = Streams::new(config, ending);
        Self {
            supervisor,
            streams,
            start_time: clock::now(),
            stats: Arc::default(),
        }
    }

    /// Whether the model's program can be run for such a device.
    async fn check_runtime(&self, catalogue: &Catalogue, record: &Record) -> Result<(), Status> {
        let shared = &self.supervisor.shared;
        let model = catalogue.models.get(&record.spec.model);
        let Some((model, external)) = model.and_then(|it| Some((it, it.external.as_ref()?))) else {
            return Ok(());
        };
        let program = shared.models.runtimes.program(external).await;
        let program = program.map_err(|why| status::no_runtime(&model.name, external, &why))?;
        match shared.launch(model, external, &program, record) {
            Ok(_) => Ok(()),
            Err(bad) => {
                let bad = bad.into_iter().map(Violation::in_config).collect();
                Err(status::invalid(bad))
            }
        }
    }

    fn answer(&self, device: Device) -> v1::Device {
        let path = self.supervisor.shared.socket_path(&device.record.id);
        convert::device(device, path)
    }
}

/// A call that can be repeated, if it has an id.
fn call(request_id: &str, content: &impl Serialize) -> Result<Option<Call>, Status> {
    let mut bad = Vec::new();
    convert::check_request_id(request_id, &mut bad);
    match bad.is_empty() {
        true => Ok(Call::new(request_id, content)),
        false => Err(status::invalid(bad)),
    }
}

#[tonic::async_trait]
impl DeviceService for Service {
    async fn create_device(
        &self,
        request: Request<v1::CreateDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let traceparent = convert::traceparent(request.metadata().as_ref());
        let traceparent = traceparent.map(str::to_owned);
        let (request, note) = mutation::open_noted(request);
        let validate_only = request.validate_only;
        let catalogue = self.supervisor.shared.models.get().await?;
        let record = convert::record(request, &catalogue, traceparent)?;
        self.check_runtime(&catalogue, &record).await?;
        self.supervisor.check_limits(&record.spec.limits)?;
        if validate_only {
            self.supervisor.check(&record)?;
            return Ok(Response::new(convert::validated(&record)));
        }
        note.set_resource(format!("devices/{}", record.id));
        let device = self.supervisor.create(record).await?;
        Ok(Response::new(self.answer(device)))
    }

    async fn get_device(
        &self,
        request: Request<v1::GetDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let device = self.supervisor.get(device_id(&request.get_ref().name)?)?;
        Ok(Response::new(self.answer(device)))
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(list::list(self, &request)?))
    }

    async fn update_device(
        &self,
        request: Request<v1::UpdateDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let request = mutation::open(request);
        let validate_only = request.validate_only;
        let (id, mut update) = update::update(request)?;
        let device = self.supervisor.get(&id)?;
        if update.change.needs_model() {
            update.catalogue = Some(self.supervisor.shared.models.get().await?);
        }
        let planned = device.planned(&update)?;
        self.supervisor.check_limits(&planned.record.spec.limits)?;
        let device = match validate_only {
            true => planned,
            false => self.supervisor.update(&id, update).await?,
        };
        Ok(Response::new(self.answer(device)))
    }

    async fn delete_device(
        &self,
        request: Request<v1::DeleteDeviceRequest>,
    ) -> Result<Response<()>, Status> {
        let request = mutation::open(request);
        let id = device_id(&request.name)?;
        let content = ("delete", id, &request.etag, request.force);
        let call = call(&request.request_id, &content)?;
        let deleted = async {
            if request.validate_only {
                let device = self.supervisor.get(id)?;
                device.record.check_etag(&request.etag)?;
                return device.view.check_use(id, request.force);
            }
            let (etag, force) = (request.etag, request.force);
            self.supervisor.delete(id, etag, force, call).await
        };
        match deleted.await {
            Err(Error::Missing { .. }) if request.allow_missing => {}
            result => result?,
        }
        Ok(Response::new(()))
    }

    async fn reset_device(
        &self,
        request: Request<v1::ResetDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let request = mutation::open(request);
        let id = device_id(&request.name)?;
        let call = call(&request.request_id, &("reset", &request.etag))?;
        let device = self.supervisor.reset(id, request.etag, call).await?;
        Ok(Response::new(self.answer(device)))
    }

    async fn restart_device(
        &self,
        request: Request<v1::RestartDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let request = mutation::open(request);
        let id = device_id(&request.name)?;
        let (etag, force) = (request.etag, request.force);
        let call = call(&request.request_id, &("restart", &etag, force))?;
        let device = match request.validate_only {
            true => self.supervisor.check_restart(id, &etag, force)?,
            false => self.supervisor.restart(id, etag, force, call).await?,
        };
        Ok(Response::new(self.answer(device)))
    }

    async fn plug_device(
        &self,
        request: Request<v1::PlugDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let request = mutation::open(request);
        let id = device_id(&request.name)?;
        let plug = plug::plug(id, &request)?;
        let etag = request.etag;
        let asked = (&etag, &request.vmm_device_id, &plug.vmm, &plug.wanted);
        let call = call(&request.request_id, &("plug", asked))?;
        let device = match request.validate_only {
            true => {
                let device = self.supervisor.check_plug(id, &plug, &etag)?;
                preflight::check(self, &device, &plug, None).await?;
                device
            }
            false => {
                let device = self.supervisor.get(id)?;
                preflight::check(self, &device, &plug, call.as_ref()).await?;
                self.supervisor.plug(id, plug, etag, call).await?
            }
        };
        Ok(Response::new(self.answer(device)))
    }

    async fn unplug_device(
        &self,
        request: Request<v1::UnplugDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let request = mutation::open(request);
        let id = device_id(&request.name)?;
        let (method, patience) = plug::unplug(&request)?;
        let etag = request.etag;
        let call = call(&request.request_id, &("unplug", &etag, request.method))?;
        let device = match request.validate_only {
            true => self.supervisor.check_unplug(id, method, &etag)?,
            false => {
                let unplugged = self.supervisor.unplug(id, method, patience, etag, call);
                unplugged.await?
            }
        };
        Ok(Response::new(self.answer(device)))
    }

    async fn diagnose_device(
        &self,
        request: Request<v1::DiagnoseDeviceRequest>,
    ) -> Result<Response<v1::DiagnoseDeviceResponse>, Status> {
        let found = preflight::diagnose(self, request.into_inner()).await?;
        Ok(Response::new(found))
    }

    type WatchDevicesStream = BoxStream<v1::WatchDevicesResponse>;

    async fn watch_devices(
        &self,
        request: Request<v1::WatchDevicesRequest>,
    ) -> Result<Response<Self::WatchDevicesStream>, Status> {
        watch::watch(self, &request)
    }

    type WatchStatsStream = BoxStream<v1::WatchStatsResponse>;

    async fn watch_stats(
        &self,
        request: Request<v1::WatchStatsRequest>,
    ) -> Result<Response<Self::WatchStatsStream>, Status> {
        self.stats(&request).map(Response::new)
    }

    type ReadLogsStream = BoxStream<v1::ReadLogsResponse>;

    async fn read_logs(
        &self,
        request: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let stream = self.logs(&request)?;
        Ok(Response::new(stream))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        events::list(self, request.get_ref()).map(Response::new)
    }
}
