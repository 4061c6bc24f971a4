//! `vfuctl create`

use std::{collections::BTreeMap, io::Read, path::Path};

use proto::v1::{CreateDeviceRequest, Device, DeviceSpec, ResourceLimits, SocketSpec, device_spec};
use serde_json::{Map, Value};

use crate::{
    args::{BackendLossPolicy, Create, Limits, RestartPolicy},
    client::Client,
    config::{self, Assignment},
    error::Error,
    output::{Output, to_struct},
    schema::Schema,
};

/// Creates the device; `flags` is what the model's flags say.
pub(crate) async fn run(
    args: Create,
    flags: Vec<Assignment>,
    schema: &Schema,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let mut assignments = flags;
    for set in &args.set {
        assignments.push(config::from_set(set, schema)?);
    }
    let base = args.config.as_deref().map(read).transpose()?;
    let config = config::assemble(base.unwrap_or_default(), assignments, schema)?;
    let socket = SocketSpec {
        uid: args.socket_uid,
        gid: args.socket_gid,
        mode: args.socket_mode,
    };
    let limits = limits(&args.limits);
    let request = client.request(CreateDeviceRequest {
        device: Some(Device {
            labels: pairs("--label", &args.label)?,
            annotations: pairs("--annotation", &args.annotation)?,
            spec: Some(DeviceSpec {
                model: schema.model.clone(),
                config: Some(to_struct(&config)),
                restart_policy: policy(args.restart_policy),
                socket: (socket != SocketSpec::default()).then_some(socket),
                limits: (limits != ResourceLimits::default()).then_some(limits),
                backend_loss_policy: loss_policy(args.backend_loss_policy),
            }),
            ..Device::default()
        }),
        device_id: args.id.unwrap_or_default(),
        request_id: args.request_id.unwrap_or_default(),
        validate_only: args.validate_only,
    });
    let answer = client.answer(client.devices().create_device(request)).await;
    let device = answer.map_err(|error| error.knowing(schema))?;
    let socket = device.status.as_ref().map(|it| it.socket_path.as_str());
    let what = match socket.filter(|path| !path.is_empty()) {
        _ if args.validate_only => "is valid; nothing was created".to_owned(),
        Some(path) => format!("created, socket {path}"),
        None => "created".to_owned(),
    };
    output.done(&device.name, &what, Some(&device))
}

/// The configuration that `--config` gives.
fn read(text: &str) -> Result<Map<String, Value>, Error> {
    let content = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some("-") => {
            let mut content = String::new();
            let read = std::io::stdin().read_to_string(&mut content);
            read.map(|_| content).map_err(|source| Error::Read {
                path: "standard input".into(),
                source,
            })?
        }
        Some(path) => std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: Path::new(path).into(),
            source,
        })?,
    };
    match serde_json::from_str(&content) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::Usage("--config: not a JSON object".into())),
        Err(why) => Err(Error::Usage(format!(
            "--config: not JSON: {why} (a file is given as @FILE)"
        ))),
    }
}

/// What a flag that takes pairs, such as `--label`, says.
pub(super) fn pairs(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, Error> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Error::Usage(format!("{flag} {text}: must be KEY=VALUE")));
        };
        let before = pairs.insert(key.to_owned(), value.to_owned());
        if let Some(before) = before.filter(|before| before != value) {
            return Err(Error::Usage(format!(
                "{flag} {key}={before} and {flag} {text} give {key} two values"
            )));
        }
    }
    Ok(pairs)
}

/// What the flags for limits say; what is not given is not limited.
pub(super) fn limits(args: &Limits) -> ResourceLimits {
    ResourceLimits {
        memory_bytes: args.memory.unwrap_or_default(),
        cpu_millis: args.cpu.unwrap_or_default(),
        open_files: args.open_files.unwrap_or_default(),
        log_bytes: args.log_bytes.unwrap_or_default(),
    }
}

/// What `--restart-policy` says.
pub(super) fn policy(policy: Option<RestartPolicy>) -> i32 {
    let policy = policy.map(device_spec::RestartPolicy::from);
    policy.unwrap_or_default().into()
}

/// What `--backend-loss-policy` says.
pub(super) fn loss_policy(policy: Option<BackendLossPolicy>) -> i32 {
    let policy = policy.map(device_spec::BackendLossPolicy::from);
    policy.unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_a_json_object() {
        assert_eq!(read(r#"{"mac":"x"}"#).unwrap().len(), 1);
        assert!(
            read("[]")
                .unwrap_err()
                .to_string()
                .contains("not a JSON object")
        );
        assert!(read("nic0.json").unwrap_err().to_string().contains("@FILE"));
        assert_eq!(read("@/nonexistent").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn labels_are_pairs_and_agree() {
        let labels = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|it| (*it).to_owned()).collect();
            pairs("--label", &texts).map_err(|error| error.to_string())
        };
        assert_eq!(labels(&["a=b=c", "e="]).unwrap()["a"], "b=c");
        assert!(labels(&["a"]).unwrap_err().contains("KEY=VALUE"));
        assert!(labels(&["a=1", "a=2"]).unwrap_err().contains("two values"));
    }
}
