//! `vfuctl reset`

use proto::v1::ResetDeviceRequest;

use super::device_name;
use crate::{args::Reset, client::Client, error::Error, output::Output};

/// Resets the device.
pub(crate) async fn run(
    args: Reset,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let request = client.request(ResetDeviceRequest {
        name: device_name(&args.id),
        ..ResetDeviceRequest::default()
    });
    let device = client
        .answer(client.devices().reset_device(request))
        .await?;
    output.done(&device.name, "reset", Some(&device))
}
