//! Devices as the agent has them.

use proto::v1::{Device, GetDeviceRequest, ListDevicesRequest};

use crate::{client::Client, error::Error};

/// As many devices as one answer may hold.
const PAGE: i32 = 1000;

/// Devices as they were at one version.
pub(super) struct Listed {
    pub(super) devices: Vec<Device>,
    /// From where a watch goes on. Empty where the agent can't resume one.
    pub(super) resource_version: String,
}

/// One device.
pub(super) async fn one(client: &Client, name: &str) -> Result<Device, Error> {
    let request = client.request(GetDeviceRequest {
        name: name.to_owned(),
    });
    client.answer(client.devices().get_device(request)).await
}

/// The present version, from which a watch sends what changes and nothing of what is.
pub(super) async fn version(client: &Client) -> Result<String, Error> {
    let request = client.request(ListDevicesRequest {
        page_size: 1,
        ..ListDevicesRequest::default()
    });
    let answer = client
        .answer(client.devices().list_devices(request))
        .await?;
    Ok(answer.resource_version)
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
