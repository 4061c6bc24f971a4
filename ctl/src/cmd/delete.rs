//! `vfuctl delete`

use proto::v1::DeleteDeviceRequest;

use super::{device_name, outcome};
use crate::{args::Delete, client::Client, error::Error, output::Output};

/// Deletes each device.
pub(crate) async fn run(
    args: Delete,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    args.guard.check(&args.ids).map_err(Error::Usage)?;
    let what = match args.validate_only {
        true => "can be deleted; nothing was",
        false => "deleted",
    };
    let mut failures = Vec::new();
    for id in &args.ids {
        let name = device_name(id);
        let request = client.request(DeleteDeviceRequest {
            name: name.clone(),
            etag: args.guard.etag.clone().unwrap_or_default(),
            force: args.force,
            allow_missing: args.allow_missing,
            request_id: args.guard.request_id.clone().unwrap_or_default(),
            validate_only: args.validate_only,
        });
        match client.answer(client.devices().delete_device(request)).await {
            Ok(()) => output.done(&name, what, None)?,
            Err(error) => failures.push(error),
        }
    }
    outcome(failures)
}
