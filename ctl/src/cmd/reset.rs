//! `vfuctl reset`

use proto::v1::ResetDeviceRequest;

use super::{device_name, outcome};
use crate::{args::Reset, client::Client, error::Error, output::Output};

/// Resets each device.
pub(crate) async fn run(
    args: Reset,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    args.guard.check(&args.ids).map_err(Error::Usage)?;
    let mut failures = Vec::new();
    for id in &args.ids {
        let request = client.request(ResetDeviceRequest {
            name: device_name(id),
            etag: args.guard.etag.clone().unwrap_or_default(),
            request_id: args.guard.request_id.clone().unwrap_or_default(),
        });
        match client.answer(client.devices().reset_device(request)).await {
            Ok(device) => output.done(&device.name, "reset", Some(&device))?,
            Err(error) => failures.push(error),
        }
    }
    outcome(failures)
}
