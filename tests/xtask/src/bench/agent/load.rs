//! What callers ask of the agent, and how long they wait for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use proto::v1::{
    CreateDeviceRequest, DeleteDeviceRequest, Device, DeviceSpec, ListDevicesRequest,
    device_service_client::DeviceServiceClient, device_status::State,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::host::Host;

/// A page of 1000 devices is larger than callers take unless they are told otherwise.
const ANSWER_BYTES: usize = 64 << 20;
const ADOPTION_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at whether all devices are there again.
const LOOK: Duration = Duration::from_millis(5);

/// Times of calls of one kind.
#[derive(Debug, Default)]
pub(super) struct Times {
    pub(super) each: Vec<Duration>,
    pub(super) total: Duration,
}

impl Times {
    /// The time that so many of a hundred stay below.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.each.clone();
        sorted.sort();
        let index = (sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?);
        sorted.get(index).copied()
    }
}

/// A caller with a connection of its own.
pub(super) async fn caller(host: &Host) -> Result<DeviceServiceClient<Channel>> {
    let client = DeviceServiceClient::new(host.channel().await?);
    Ok(client.max_decoding_message_size(ANSWER_BYTES))
}

/// Creates devices, `callers` at a time, each waiting until its device is READY.
pub(super) async fn create(host: &Host, ids: &[String], callers: usize) -> Result<Times> {
    spread(host, ids, callers, |mut client, id| async move {
        let spec = DeviceSpec {
            model: "e1000".to_owned(),
            config: Some(null_backend()),
            ..DeviceSpec::default()
        };
        let device = Device {
            spec: Some(spec),
            ..Device::default()
        };
        let request = CreateDeviceRequest {
            device: Some(device),
            device_id: id,
            ..CreateDeviceRequest::default()
        };
        client.create_device(request).await?;
        Ok(())
    })
    .await
}

/// Deletes devices, `callers` at a time.
pub(super) async fn delete(host: &Host, ids: &[String], callers: usize) -> Result<Times> {
    spread(host, ids, callers, |mut client, id| async move {
        let request = DeleteDeviceRequest {
            name: format!("devices/{id}"),
            ..DeleteDeviceRequest::default()
        };
        client.delete_device(request).await?;
        Ok(())
    })
    .await
}

async fn spread<F, R>(host: &Host, ids: &[String], callers: usize, call: F) -> Result<Times>
where
    F: Fn(DeviceServiceClient<Channel>, String) -> R + Copy + Send + 'static,
    R: Future<Output = Result<()>> + Send + 'static,
{
    let mut clients = Vec::new();
    for _ in 0..callers {
        clients.push(caller(host).await?);
    }
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for (index, client) in clients.into_iter().enumerate() {
        let mine: Vec<String> = ids.iter().skip(index).step_by(callers).cloned().collect();
        tasks.spawn(async move {
            let mut each = Vec::with_capacity(mine.len());
            for id in mine {
                ::tests::command::check_interrupted()?;
                let begun = Instant::now();
                call(client.clone(), id).await?;
                each.push(begun.elapsed());
            }
            Ok::<_, anyhow::Error>(each)
        });
    }
    let mut each = Vec::with_capacity(ids.len());
    while let Some(ended) = tasks.join_next().await {
        each.extend(ended??);
    }
    let total = begun.elapsed();
    Ok(Times { each, total })
}

/// Reads all devices, in as many pages as it takes.
pub(super) async fn list(client: &mut DeviceServiceClient<Channel>) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    let mut request = ListDevicesRequest {
        page_size: 1000,
        ..ListDevicesRequest::default()
    };
    loop {
        let page = client.list_devices(request.clone()).await?.into_inner();
        devices.extend(page.devices);
        if page.next_page_token.is_empty() {
            return Ok(devices);
        }
        request.page_token = page.next_page_token;
    }
}

/// Waits until every one of `before` is READY with the process that it had, and says how long that took.
pub(super) async fn adopted(host: &Host, begun: Instant, before: &[Device]) -> Result<Duration> {
    let mut client = caller(host).await?;
    loop {
        let now = list(&mut client).await?;
        let taken = begun.elapsed();
        if now.iter().all(|device| state(device) == State::Ready) {
            let same = now.len() == before.len()
                && now.iter().zip(before).all(|(now, before)| {
                    now.uid == before.uid && process(now).ok() == process(before).ok()
                });
            if !same {
                bail!("the devices are not those that there were before");
            }
            return Ok(taken);
        }
        if taken > ADOPTION_LIMIT {
            let error = anyhow!("not all devices were READY within {ADOPTION_LIMIT:?}");
            return Err(error.context(host.log()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn state(device: &Device) -> State {
    device
        .status
        .as_ref()
        .map_or(State::Unspecified, |status| status.state())
}

/// The process of a device.
pub(super) fn process(device: &Device) -> Result<u32> {
    let pid = device.status.as_ref().context("a status")?.pid;
    u32::try_from(pid)
        .ok()
        .filter(|pid| *pid != 0)
        .with_context(|| format!("{} has no process", device.name))
}

/// `{"net": {"null": {}}}`.
fn null_backend() -> prost_types::Struct {
    let object = |name: &str, fields: prost_types::Struct| {
        let kind = prost_types::value::Kind::StructValue(fields);
        let value = prost_types::Value { kind: Some(kind) };
        prost_types::Struct {
            fields: [(name.to_owned(), value)].into(),
        }
    };
    object("net", object("null", prost_types::Struct::default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let each = (1..=200).rev().map(Duration::from_millis).collect();
        let times = Times {
            each,
            ..Times::default()
        };
        assert_eq!(times.percentile(50), Some(Duration::from_millis(101)));
        assert_eq!(times.percentile(99), Some(Duration::from_millis(199)));
        assert_eq!(times.percentile(100), Some(Duration::from_millis(200)));
        assert_eq!(Times::default().percentile(50), None);
    }
}
