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
    let mut failures = Vec::new();
    for id in &args.ids {
        let name = device_name(id);
        let request = client.request(DeleteDeviceRequest {
            name: name.clone(),
            force: args.force,
            allow_missing: args.allow_missing,
            ..DeleteDeviceRequest::default()
        });
        match client.answer(client.devices().delete_device(request)).await {
            Ok(()) => output.done(&name, "deleted", None)?,
            Err(error) => failures.push(error),
        }
    }
    outcome(failures)
}
