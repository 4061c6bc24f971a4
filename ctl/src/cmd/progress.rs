//! What becomes of a device while a call about it lasts, for somebody who watches a terminal.
//!
//! It comes from a watch beside the call. A watch that fails takes the progress away and nothing else: the call tells how
//! things end.

use std::{future::Future, pin::pin};

use proto::v1::{Device, WatchDevicesRequest, WatchDevicesResponse};
use tonic::Streaming;

use super::read;
use crate::{
    client::Client,
    error::Error,
    output::{Output, situation},
};

/// Waits for `call`, and tells how the device goes on meanwhile, if standard error is a terminal.
pub(super) async fn during<T>(
    call: impl Future<Output = Result<T, Error>>,
    name: &str,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<T, Error> {
    if !output.terminal {
        return call.await;
    }
    // Before the call, so that nothing is missed.
    let mut changes = changes(client).await.ok();
    let mut call = pin!(call);
    let mut shown = String::new();
    loop {
        let Some(stream) = &mut changes else {
            return call.await;
        };
        tokio::select! {
            biased;
            result = &mut call => return result,
            change = stream.message() => match change {
                Ok(Some(change)) => tell(change.device, name, &mut shown, output),
                Ok(None) | Err(_) => changes = None,
            },
        }
    }
}

/// What changes from now on.
async fn changes(client: &Client) -> Result<Streaming<WatchDevicesResponse>, Error> {
    let request = WatchDevicesRequest {
        resource_version: read::version(client).await?,
        filter: String::new(),
    };
    let mut devices = client.devices();
    client.answer(devices.watch_devices(request)).await
}

fn tell(device: Option<Device>, name: &str, shown: &mut String, output: &mut Output<'_>) {
    let Some(device) = device.filter(|it| it.name == name) else {
        return;
    };
    let now = situation(&device);
    if *shown != now {
        output.note(&format!("{name} is {now}"));
        *shown = now;
    }
}
