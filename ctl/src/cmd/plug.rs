//! `vfuctl plug` and `vfuctl unplug`

use std::time::Duration;

use proto::v1::{PlugDeviceRequest, UnplugDeviceRequest, unplug_device_request};

use super::{device_name, outcome, progress};
use crate::{
    args::{Plug, Unplug},
    client::Client,
    error::Error,
    output::{Output, place},
};

/// An agent that has waited for a guest as long as it should says how that went.
const PATIENCE: Duration = Duration::from_secs(5);

/// Gives the device to the VMM.
pub(crate) async fn run(args: Plug, client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    let name = device_name(&args.id);
    let request = client.request(PlugDeviceRequest {
        name: name.clone(),
        vmm: args.place.vmm(),
        vmm_device_id: args.place.vmm_device_id.unwrap_or_default(),
        bus: args.place.bus.unwrap_or_default(),
        slot: args.place.slot.unwrap_or_default(),
        pci_segment: args.place.segment,
        etag: args.guard.etag.unwrap_or_default(),
        request_id: args.guard.request_id.unwrap_or_default(),
        validate_only: args.validate_only,
    });
    let mut devices = client.devices();
    let call = client.answer(devices.plug_device(request));
    let device = progress::during(call, &name, client, output).await?;
    let attachment = device.status.as_ref().and_then(|it| it.attachment.as_ref());
    let what = match attachment.map(place).filter(|place| !place.is_empty()) {
        _ if args.validate_only => "can be plugged; nothing was".to_owned(),
        Some(place) => format!("plugged, {place}"),
        None => "plugged".to_owned(),
    };
    output.done(&device.name, &what, Some(&device))
}

/// Takes each device out of its VMM.
pub(crate) async fn unplug(
    args: Unplug,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    args.guard.check(&args.ids).map_err(Error::Usage)?;
    let what = match args.validate_only {
        true => "can be unplugged; nothing was",
        false => "unplugged",
    };
    let wait = client.timeout();
    let client = &client.with_timeout(wait.saturating_add(PATIENCE));
    let mut failures = Vec::new();
    for id in &args.ids {
        let name = device_name(id);
        let request = client.request(UnplugDeviceRequest {
            name: name.clone(),
            timeout: prost_types::Duration::try_from(wait).ok(),
            etag: args.guard.etag.clone().unwrap_or_default(),
            request_id: args.guard.request_id.clone().unwrap_or_default(),
            validate_only: args.validate_only,
            method: unplug_device_request::Method::from(args.method).into(),
        });
        let mut devices = client.devices();
        let call = client.answer(devices.unplug_device(request));
        match progress::during(call, &name, client, output).await {
            Ok(device) => output.done(&device.name, what, Some(&device))?,
            Err(error) => failures.push(error),
        }
    }
    outcome(failures)
}
