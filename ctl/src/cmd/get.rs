//! `vfuctl get` and `vfuctl list`

use proto::v1::{Device, GetDeviceRequest, ListDevicesRequest};

use super::{device_name, outcome};
use crate::{args::Get, client::Client, error::Error, output::Output};

/// As many devices as one answer may hold.
const PAGE: i32 = 1000;

/// Shows the devices that are named, or all.
pub(crate) async fn run(args: Get, client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    if args.ids.is_empty() {
        return list(client, output).await;
    }
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for id in &args.ids {
        let request = client.request(GetDeviceRequest {
            name: device_name(id),
        });
        match client.answer(client.devices().get_device(request)).await {
            Ok(device) => found.push(device),
            Err(error) => failures.push(error),
        }
    }
    match &found[..] {
        [] => {}
        // Who asks for one thing gets that thing, not a list of it.
        [only] if args.ids.len() == 1 => output.device(only)?,
        found => output.devices(found)?,
    }
    outcome(failures)
}

/// Shows all devices.
pub(crate) async fn list(client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    output.devices(&all(client).await?)
}

/// All devices, however many pages that takes.
pub(super) async fn all(client: &Client) -> Result<Vec<Device>, Error> {
    let mut devices = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = client.request(ListDevicesRequest {
            page_size: PAGE,
            page_token,
            ..ListDevicesRequest::default()
        });
        let answer = client
            .answer(client.devices().list_devices(request))
            .await?;
        devices.extend(answer.devices);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(devices);
        }
    }
}
