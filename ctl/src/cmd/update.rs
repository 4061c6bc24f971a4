//! `vfuctl update`

use std::collections::BTreeMap;

use proto::v1::{Device, DeviceSpec, GetDeviceRequest, ResourceLimits, UpdateDeviceRequest};
use serde_json::Value;

use super::{
    create::{self, pairs},
    device_name, models,
};
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
        labels: pairs("--label", &args.label)?,
        annotations: pairs("--annotation", &args.annotation)?,
        ..Device::default()
    };
    let mut paths = keys(
        ("labels", &device.labels, &args.unlabel),
        ["--label", "--unlabel"],
    )?;
    paths.extend(keys(
        ("annotations", &device.annotations, &args.unannotate),
        ["--annotation", "--unannotate"],
    )?);
    let spec = spec(&args, &mut paths);
    let mut schema = Schema::default();
    if !args.set.is_empty() || !args.unset.is_empty() {
        let request = client.request(GetDeviceRequest {
            name: device.name.clone(),
        });
        let present = client.answer(client.devices().get_device(request)).await?;
        let present_spec = present.spec.unwrap_or_default();
        schema = models::schema(&client.model(&present_spec.model).await?);
        let base = match present_spec.config.as_ref().map(from_struct) {
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
            ..spec
        });
    } else if spec != DeviceSpec::default() || paths.iter().any(|path| path.starts_with("spec.")) {
        device.spec = Some(spec);
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

/// The paths of a map's keys that are given or taken away; `flags` are the names of both.
fn keys(
    (map, given, taken): (&str, &BTreeMap<String, String>, &[String]),
    [give, take]: [&str; 2],
) -> Result<Vec<String>, Error> {
    if let Some(key) = taken.iter().find(|key| given.contains_key(*key)) {
        let why = format!("{give} {key}=... and {take} {key} exclude each other");
        return Err(Error::Usage(why));
    }
    let keys = given.keys().chain(taken);
    Ok(keys.map(|key| format!("{map}.`{key}`")).collect())
}

/// What the flags say of the spec but for its configuration; each field's path is added to `paths`, also where the new
/// value is that there is none.
fn spec(args: &Update, paths: &mut Vec<String>) -> DeviceSpec {
    let limits = &args.limits;
    let given = [
        (args.restart_policy.is_some(), "restart_policy"),
        (args.backend_loss_policy.is_some(), "backend_loss_policy"),
        (limits.memory.is_some(), "limits.memory_bytes"),
        (limits.cpu.is_some(), "limits.cpu_millis"),
        (limits.open_files.is_some(), "limits.open_files"),
        (limits.log_bytes.is_some(), "limits.log_bytes"),
    ];
    let given = given.iter().filter(|(given, _)| *given);
    paths.extend(given.map(|(_, path)| join("spec", path)));
    let limits = create::limits(limits);
    DeviceSpec {
        restart_policy: create::policy(args.restart_policy),
        backend_loss_policy: create::loss_policy(args.backend_loss_policy),
        limits: (limits != ResourceLimits::default()).then_some(limits),
        ..DeviceSpec::default()
    }
}
