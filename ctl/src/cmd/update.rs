//! `vfuctl update`

use proto::v1::{Device, DeviceSpec, GetDeviceRequest, UpdateDeviceRequest};
use serde_json::Value;

use super::{create::labels, device_name, models};
use crate::{
    args::Update,
    client::Client,
    config,
    error::Error,
    output::{Output, from_struct, to_struct},
    schema::{Schema, join},
};

/// Changes the device.
pub(crate) async fn run(
    args: Update,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let mut device = Device {
        name: device_name(&args.id),
        labels: labels(&args.label)?,
        ..Device::default()
    };
    let keys = device.labels.keys().chain(&args.unlabel);
    let mut paths: Vec<_> = keys.map(|key| format!("labels.`{key}`")).collect();
    if let Some(key) = args
        .unlabel
        .iter()
        .find(|key| device.labels.contains_key(*key))
    {
        let why = format!("--label {key}=... and --unlabel {key} exclude each other");
        return Err(Error::Usage(why));
    }
    let mut schema = Schema::default();
    if !args.set.is_empty() || !args.unset.is_empty() {
        let request = client.request(GetDeviceRequest {
            name: device.name.clone(),
        });
        let present = client.answer(client.devices().get_device(request)).await?;
        let spec = present.spec.unwrap_or_default();
        schema = models::schema(&client.model(&spec.model).await?);
        let base = match spec.config.as_ref().map(from_struct) {
            Some(Value::Object(config)) => config,
            _ => serde_json::Map::new(),
        };
        let changed = config::change(base, &args.set, &args.unset, &schema)?;
        if changed
            .paths
            .iter()
            .any(|path| schema.unions.iter().any(|it| it.path == *path))
        {
            // What was read goes back with what was asked for: nobody's change in between may be lost.
            device.etag = present.etag;
        }
        paths.extend(changed.paths.iter().map(|path| join("spec.config", path)));
        device.spec = Some(DeviceSpec {
            config: Some(to_struct(&changed.config)),
            ..DeviceSpec::default()
        });
    }
    if let Some(etag) = args.etag {
        device.etag = etag;
    }
    let request = client.request(UpdateDeviceRequest {
        device: Some(device),
        update_mask: Some(prost_types::FieldMask { paths }),
        request_id: args.request_id.unwrap_or_default(),
        validate_only: args.validate_only,
    });
    let answer = client.answer(client.devices().update_device(request)).await;
    let device = answer.map_err(|error| error.knowing_sets(&schema))?;
    let what = match args.validate_only {
        true => "is valid; nothing was changed",
        false => "updated",
    };
    output.done(&device.name, what, Some(&device))
}
