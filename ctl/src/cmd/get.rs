//! `vfuctl get` and `vfuctl list`

use proto::v1::{Device, GetDeviceRequest, ListDevicesRequest};

use super::{device_name, outcome, watch};
use crate::{
    args::{Get, List},
    client::Client,
    error::Error,
    output::Output,
};

/// As many devices as one answer may hold.
const PAGE: i32 = 1000;

/// Devices as they were at one version.
pub(super) struct Listed {
    pub(super) devices: Vec<Device>,
    /// From where a watch goes on. Empty where the agent can't resume one.
    pub(super) resource_version: String,
}

/// Shows the devices that are named, or all.
pub(crate) async fn run(args: Get, client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    if args.watch {
        let names = args.ids.iter().map(|id| device_name(id)).collect();
        return watch::names(names, client, output).await;
    }
    if args.ids.is_empty() {
        return output.devices(&all(client, "").await?.devices);
    }
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for id in &args.ids {
        match one(client, &device_name(id)).await {
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

/// Shows all devices that the filter chooses.
pub(crate) async fn list(
    args: List,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    match args.watch {
        true => watch::filter(args.filter, client, output).await,
        false => output.devices(&all(client, &args.filter).await?.devices),
    }
}

/// One device.
pub(super) async fn one(client: &Client, name: &str) -> Result<Device, Error> {
    let request = client.request(GetDeviceRequest {
        name: name.to_owned(),
    });
    client.answer(client.devices().get_device(request)).await
}

/// All devices that `filter` chooses, however many pages that takes.
pub(super) async fn all(client: &Client, filter: &str) -> Result<Listed, Error> {
    let mut listed = Listed {
        devices: Vec::new(),
        resource_version: String::new(),
    };
    let mut page_token = String::new();
    loop {
        let request = client.request(ListDevicesRequest {
            page_size: PAGE,
            page_token: page_token.clone(),
            filter: filter.to_owned(),
        });
        let answer = client
            .answer(client.devices().list_devices(request))
            .await?;
        if page_token.is_empty() {
            // What changes while the pages are read comes after the first of them.
            listed.resource_version = answer.resource_version;
        }
        listed.devices.extend(answer.devices);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(listed);
        }
    }
}
