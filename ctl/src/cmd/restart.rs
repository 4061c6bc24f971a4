//! `vfuctl restart`

use proto::v1::RestartDeviceRequest;

use super::{device_name, outcome};
use crate::{args::Restart, client::Client, error::Error, output::Output};

/// Starts the process of each device anew.
pub(crate) async fn run(
    args: Restart,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    args.guard.check(&args.ids).map_err(Error::Usage)?;
    let what = match args.validate_only {
        true => "can be restarted; nothing was",
        false => "restarted",
    };
    let mut failures = Vec::new();
    for id in &args.ids {
        let request = client.request(RestartDeviceRequest {
            name: device_name(id),
            etag: args.guard.etag.clone().unwrap_or_default(),
            force: args.force,
            request_id: args.guard.request_id.clone().unwrap_or_default(),
            validate_only: args.validate_only,
        });
        let mut devices = client.devices();
        match client.answer(devices.restart_device(request)).await {
            Ok(device) => output.done(&device.name, what, Some(&device))?,
            Err(error) => failures.push(error),
        }
    }
    outcome(failures)
}
