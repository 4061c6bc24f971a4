//! The services of `vfu.v1`: requests checked and handed to the supervisor, answers put into
//! messages. What is not served says so, and what to do instead.

mod agent;
mod convert;
mod layer;
mod limits;
mod model;
mod stats;
mod status;
mod update;

use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use proto::v1;
use proto::v1::device_service_server::DeviceService;
use tokio::sync::Semaphore;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use self::convert::device_id;
pub(crate) use self::layer::Calls;
use self::status::{unserved, unserved_fields};
use crate::schema::Violation;
use crate::stats::Reader;
use crate::supervisor::{Device, Error, Supervisor};

/// What tonic takes in one message unless it is told otherwise.
pub(crate) const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Streams of counters at once.
const MAX_STATS_STREAMS: usize = 64;

/// A page ends early when it has this many bytes: with the largest of devices after it, it still
/// fits into the 4 MiB that callers take unless they are told otherwise.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// All services; clones serve the same devices.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    supervisor: Arc<Supervisor>,
    start_time: SystemTime,
    stats: Arc<Reader>,
    stats_streams: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(supervisor: Arc<Supervisor>) -> Self {
        Self {
            supervisor,
            start_time: SystemTime::now(),
            stats: Arc::default(),
            stats_streams: Arc::new(Semaphore::new(MAX_STATS_STREAMS)),
        }
    }

    fn answer(&self, device: Device) -> v1::Device {
        let path = self.supervisor.shared.socket_path(&device.record.id);
        convert::device(device, path)
    }
}

/// Refuses a `request_id` where it would not be remembered.
fn refuse_request_id(request_id: &str, instead: &str) -> Result<(), Status> {
    if request_id.is_empty() {
        return Ok(());
    }
    let why = format!("not remembered for this call by this version of the agent; {instead}");
    Err(unserved_fields(vec![Violation::new("request_id", why)]))
}

#[tonic::async_trait]
impl DeviceService for Service {
    async fn create_device(
        &self,
        request: Request<v1::CreateDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let traceparent = convert::traceparent(request.metadata());
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let catalogue = self.supervisor.shared.models.get().await?;
        let record = convert::record(request, &catalogue, traceparent)?;
        Supervisor::check_limits(&record.spec.limits)?;
        if validate_only {
            self.supervisor.check(&record)?;
            return Ok(Response::new(convert::validated(&record)));
        }
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
        if !request.filter.is_empty() {
            let why = "filters are not served by this version of the agent; list all and choose";
            return Err(unserved_fields(vec![Violation::new("filter", why)]));
        }
        let count = convert::page_size(request.page_size)?;
        let after = convert::page_after(&request.page_token)?;
        let (found, mut more) = self.supervisor.list(after, count);
        let mut answer = v1::ListDevicesResponse::default();
        let mut last = String::new();
        let mut bytes = 0;
        for device in found {
            if bytes > MAX_PAGE_BYTES {
                more = true;
                break;
            }
            last.clone_from(&device.record.id);
            let device = self.answer(device);
            bytes += device.encoded_len();
            answer.devices.push(device);
        }
        if more {
            answer.next_page_token = convert::page_token(&last);
        }
        Ok(Response::new(answer))
    }

    async fn update_device(
        &self,
        request: Request<v1::UpdateDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let (id, mut update) = update::update(request)?;
        let device = self.supervisor.get(&id)?;
        if update.change.needs_model() {
            update.catalogue = Some(self.supervisor.shared.models.get().await?);
        }
        let planned = device.planned(&update)?;
        Supervisor::check_limits(&planned.record.spec.limits)?;
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
        let request = request.into_inner();
        let id = device_id(&request.name)?;
        refuse_request_id(&request.request_id, "allow_missing makes a repetition safe")?;
        let deleted = async {
            if request.validate_only {
                let device = self.supervisor.get(id)?;
                device.record.check_etag(&request.etag)?;
                return Supervisor::check_delete(&device, request.force);
            }
            let (etag, force) = (request.etag, request.force);
            self.supervisor.delete(id, etag, force).await
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
        let request = request.into_inner();
        let id = device_id(&request.name)?;
        refuse_request_id(&request.request_id, "a second reset does no harm")?;
        let device = self.supervisor.reset(id, request.etag).await?;
        Ok(Response::new(self.answer(device)))
    }

    async fn restart_device(
        &self,
        _: Request<v1::RestartDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let instead = "end the device's process (its pid is in the status), and the agent starts \
                       it again";
        Err(unserved("RestartDevice", instead))
    }

    async fn plug_device(
        &self,
        _: Request<v1::PlugDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        let instead = "ask the VMM itself: vfuctl cmdline prints what to tell it";
        Err(unserved("PlugDevice", instead))
    }

    async fn unplug_device(
        &self,
        _: Request<v1::UnplugDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        Err(unserved("UnplugDevice", "ask the VMM itself"))
    }

    type WatchDevicesStream = BoxStream<v1::WatchDevicesResponse>;

    async fn watch_devices(
        &self,
        _: Request<v1::WatchDevicesRequest>,
    ) -> Result<Response<Self::WatchDevicesStream>, Status> {
        Err(unserved("WatchDevices", "call ListDevices again and again"))
    }

    type WatchStatsStream = BoxStream<v1::WatchStatsResponse>;

    async fn watch_stats(
        &self,
        request: Request<v1::WatchStatsRequest>,
    ) -> Result<Response<Self::WatchStatsStream>, Status> {
        self.stats(request.get_ref()).map(Response::new)
    }

    type ReadLogsStream = BoxStream<v1::ReadLogsResponse>;

    async fn read_logs(
        &self,
        _: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let instead = "read the file `log` beside the device's socket";
        Err(unserved("ReadLogs", instead))
    }

    async fn list_events(
        &self,
        _: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let instead =
            "GetDevice has the last failure in its conditions, and the agent's log has all";
        Err(unserved("ListEvents", instead))
    }
}
