//! UpdateDevice: which fields of a device a request wants changed, by its mask (AIP-134, AIP-161).
//!
//! A path is one of a device's fields, down to the keys of labels and annotations and to the fields of the configuration:
//! `labels.app`, `spec.config.link`. Names with a dot in them are put in backticks. What the agent sets itself is passed
//! over, so that a device that was read can be sent back with a change in it.

use proto::v1;
use serde_json::Value;
use tonic::Status;

use super::convert::{
    backend_loss_policy, check_request_id, config, device_id_in, restart_policy, socket_spec,
};
use super::limits;
use super::status::invalid;
use crate::change::{Change, Edit};
use crate::limits::Limit;
use crate::schema::{Violation, quoted};
use crate::store::Call;
use crate::supervisor::Update;

const MAX_PATHS: usize = 256;
const SPEC: [&str; 6] = [
    "model",
    "config",
    "restart_policy",
    "backend_loss_policy",
    "socket",
    "limits",
];

/// A field, by the names that lead to it.
type Path = Vec<String>;

/// The id of the device, and what is wanted of it.
pub(super) fn update(request: v1::UpdateDeviceRequest) -> Result<(String, Update), Status> {
    let mut bad = Vec::new();
    let Some(device) = request.device else {
        return Err(invalid(vec![Violation::new("device", "required")]));
    };
    let id = device_id_in("device.name", &device.name)?.to_owned();
    let etag = device.etag.clone();
    check_request_id(&request.request_id, &mut bad);
    let paths = match request.update_mask.unwrap_or_default().paths {
        mask if mask.is_empty() => populated(&device),
        mask => parse(&mask, &mut bad),
    };
    let change = Change(edits(&paths, device, &mut bad)?);
    if !bad.is_empty() {
        return Err(invalid(bad));
    }
    let update = Update {
        etag,
        call: Call::new(&request.request_id, &change),
        change,
        catalogue: None,
    };
    Ok((id, update))
}

fn path(names: &[&str]) -> Path {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn whole_spec() -> impl Iterator<Item = Path> {
    SPEC.into_iter().map(|name| path(&["spec", name]))
}

/// The fields that are set, which are meant when there is no mask.
fn populated(device: &v1::Device) -> Vec<Path> {
    let spec = device.spec.clone().unwrap_or_default();
    let set = [
        (&["labels"][..], !device.labels.is_empty()),
        (&["annotations"], !device.annotations.is_empty()),
        (&["spec", "model"], !spec.model.is_empty()),
        (&["spec", "config"], spec.config.is_some()),
        (&["spec", "restart_policy"], spec.restart_policy != 0),
        (
            &["spec", "backend_loss_policy"],
            spec.backend_loss_policy != 0,
        ),
        (&["spec", "socket"], spec.socket.is_some()),
        (&["spec", "limits"], spec.limits.is_some()),
    ];
    let set = set.into_iter().filter(|(_, set)| *set);
    set.map(|(names, _)| path(names)).collect()
}

/// The fields that a mask names.
fn parse(mask: &[String], bad: &mut Vec<Violation>) -> Vec<Path> {
    if mask.len() > MAX_PATHS {
        let why = format!("{} paths; at most {MAX_PATHS} are allowed", mask.len());
        bad.push(Violation::new("update_mask", why));
        return Vec::new();
    }
    let mut paths = Vec::new();
    for text in mask {
        let names = split(text).unwrap_or_default();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        match names[..] {
            ["*"] => {
                paths.extend([path(&["labels"]), path(&["annotations"])]);
                paths.extend(whole_spec());
            }
            ["spec"] => paths.extend(whole_spec()),
            ["spec", name, ..] if SPEC.contains(&name) => paths.push(path(&names)),
            ["labels" | "annotations", ..] => paths.push(path(&names)),
            // The agent sets these, and the name says which device it is.
            [
                "name" | "uid" | "etag" | "generation" | "create_time" | "update_time"
                | "delete_time" | "status",
                ..,
            ] => {}
            _ => {
                let why = format!(
                    "{} is no field of a device; there are: labels, annotations, spec.{}, and *",
                    quoted(text),
                    SPEC.join(", spec.")
                );
                bad.push(Violation::new("update_mask", why));
            }
        }
    }
    paths
}

/// The names of a path, which dots separate; a name in backticks may have dots in it.
fn split(text: &str) -> Option<Path> {
    let mut names = Vec::new();
    let mut rest = text;
    loop {
        let (name, after) = match rest.strip_prefix('`') {
            Some(quoted) => quoted.split_once('`')?,
            None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
        };
        if name.is_empty() {
            return None;
        }
        names.push(name.to_owned());
        rest = match after {
            "" => return Some(names),
            after => after.strip_prefix('.')?,
        };
    }
}

/// The fields at `paths` as they are in `device`.
fn edits(
    paths: &[Path],
    device: v1::Device,
    bad: &mut Vec<Violation>,
) -> Result<Vec<Edit>, Status> {
    let spec = device.spec.unwrap_or_default();
    let is_below = |names: &[&str]| paths.iter().any(|it| it.starts_with(&path(names)));
    let config = match is_below(&["spec", "config"]) {
        true => config(spec.config.unwrap_or_default(), bad).unwrap_or_default(),
        false => Value::Null,
    };
    let mut edits = Vec::new();
    for path in paths {
        let names: Vec<_> = path.iter().map(String::as_str).collect();
        edits.push(match names[..] {
            ["labels"] => Edit::Labels(device.labels.clone().into_iter().collect()),
            // A label's key may have dots in it, backticks or not: nothing is below it.
            ["labels", ..] => {
                let key = names[1..].join(".");
                let value = device.labels.get(&key).cloned();
                Edit::Label(key, value)
            }
            ["annotations"] => Edit::Annotations(device.annotations.clone().into_iter().collect()),
            ["annotations", ..] => {
                let key = names[1..].join(".");
                let value = device.annotations.get(&key).cloned();
                Edit::Annotation(key, value)
            }
            ["spec", "model"] => Edit::Model(spec.model.clone()),
            ["spec", "config"] => Edit::Config(config.clone()),
            ["spec", "config", ref names @ ..] => {
                let value = names
                    .iter()
                    .try_fold(&config, |value, name| value.get(name));
                Edit::ConfigField(path[2..].to_vec(), value.cloned())
            }
            ["spec", "restart_policy"] => {
                Edit::RestartPolicy(restart_policy(spec.restart_policy, bad))
            }
            ["spec", "backend_loss_policy"] => {
                Edit::BackendLossPolicy(backend_loss_policy(spec.backend_loss_policy, bad))
            }
            ["spec", "socket", ..] => Edit::Socket(spec.socket.map(|it| socket_spec(it, bad))),
            ["spec", "limits"] => Edit::Limits(limits::limits(spec.limits, bad)),
            ["spec", "limits", name] => {
                let wanted = limits::limits(spec.limits, bad);
                match Limit::named(name, wanted) {
                    Some(limit) => Edit::Limit(limit),
                    None => {
                        let why = format!("{} is no limit", quoted(name));
                        bad.push(Violation::new("update_mask", why));
                        continue;
                    }
                }
            }
            _ => {
                let why = format!(
                    "nothing is below {} that could be named",
                    quoted(&path[..2].join("."))
                );
                bad.push(Violation::new("update_mask", why));
                continue;
            }
        });
    }
    Ok(edits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost_types::{FieldMask, Struct, value::Kind};
    use serde_json::json;
    use tonic_types::StatusExt;

    use super::*;
    use crate::limits::Limits;
    use crate::store::{BackendLossPolicy, RestartPolicy, SocketSpec};

    fn device() -> v1::Device {
        let link = prost_types::Value {
            kind: Some(Kind::StringValue("down".to_owned())),
        };
        v1::Device {
            name: "devices/nic0".to_owned(),
            etag: "e".to_owned(),
            uid: "read".to_owned(),
            generation: 7,
            labels: BTreeMap::from([("a.b".to_owned(), "1".to_owned())]),
            spec: Some(v1::DeviceSpec {
                model: "e1000".to_owned(),
                config: Some(Struct {
                    fields: BTreeMap::from([("link".to_owned(), link)]),
                }),
                ..v1::DeviceSpec::default()
            }),
            status: Some(v1::DeviceStatus::default()),
            ..v1::Device::default()
        }
    }

    fn request(paths: &[&str]) -> v1::UpdateDeviceRequest {
        v1::UpdateDeviceRequest {
            device: Some(device()),
            update_mask: Some(FieldMask { paths: path(paths) }),
            ..v1::UpdateDeviceRequest::default()
        }
    }

    fn wanted(paths: &[&str]) -> Vec<Edit> {
        update(request(paths)).unwrap().1.change.0
    }

    fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([("a.b".to_owned(), "1".to_owned())])
    }

    #[test]
    fn without_a_mask_what_is_set_is_meant() {
        let edits = vec![
            Edit::Labels(labels()),
            Edit::Model("e1000".to_owned()),
            Edit::Config(json!({"link": "down"})),
        ];
        assert_eq!(wanted(&[]), edits);
        let (id, update) = update(request(&[])).unwrap();
        assert_eq!((&*id, &*update.etag), ("nic0", "e"));
    }

    #[test]
    fn a_star_is_everything_that_a_caller_sets() {
        let edits = vec![
            Edit::Labels(labels()),
            Edit::Annotations(BTreeMap::new()),
            Edit::Model("e1000".to_owned()),
            Edit::Config(json!({"link": "down"})),
            Edit::RestartPolicy(RestartPolicy::Always),
            Edit::BackendLossPolicy(BackendLossPolicy::default()),
            Edit::Socket(None),
            Edit::Limits(Limits::default()),
        ];
        assert_eq!(wanted(&["*"]), edits);
        assert_eq!(wanted(&["spec"]), edits[2..]);
    }

    #[test]
    fn paths_go_into_maps_and_configurations() {
        let cpu = Edit::Limit(Limit::Cpu(None));
        assert_eq!(wanted(&["spec.limits.cpu_millis"]), [cpu]);
        let label = Edit::Label("a.b".to_owned(), Some("1".to_owned()));
        assert_eq!(wanted(&["labels.`a.b`"]), std::slice::from_ref(&label));
        assert_eq!(wanted(&["labels.a.b"]), [label]);
        assert_eq!(
            wanted(&["annotations.x"]),
            [Edit::Annotation("x".to_owned(), None)]
        );
        assert_eq!(
            wanted(&["spec.config.link", "spec.config.net.tap"]),
            [
                Edit::ConfigField(path(&["link"]), Some(json!("down"))),
                Edit::ConfigField(path(&["net", "tap"]), None)
            ]
        );
        assert_eq!(wanted(&["spec.socket.mode"]), [Edit::Socket(None)]);
        let socket = Edit::Socket(Some(SocketSpec::default()));
        let mut request = request(&["spec.socket"]);
        let spec = request.device.as_mut().unwrap().spec.as_mut().unwrap();
        spec.socket = Some(v1::SocketSpec::default());
        assert_eq!(update(request).unwrap().1.change.0, [socket]);
    }

    #[test]
    fn what_the_agent_sets_is_passed_over() {
        assert_eq!(wanted(&["uid", "status.pid", "name", "etag"]), []);
    }

    #[test]
    fn what_is_no_field_is_refused() {
        for text in [
            "",
            ".",
            "spec.",
            ".spec",
            "spec..config",
            "colour",
            "spec.colour",
            "`labels",
            "spec.model.x",
            "spec.restart_policy.x",
            "`*",
            "*.labels",
            "spec.`config`x",
        ] {
            let error = update(request(&[text])).unwrap_err();
            let bad = error.get_details_bad_request().unwrap();
            assert_eq!(bad.field_violations[0].field, "update_mask", "{text}");
        }
        let many = vec!["labels"; MAX_PATHS + 1];
        assert!(update(request(&many)).is_err());
    }

    #[test]
    fn a_device_and_its_name_are_needed() {
        let field = |request| {
            let error = update(request).unwrap_err();
            let bad = error.get_details_bad_request().unwrap();
            bad.field_violations[0].field.clone()
        };
        assert_eq!(field(v1::UpdateDeviceRequest::default()), "device");
        let mut unnamed = request(&[]);
        unnamed.device.as_mut().unwrap().name.clear();
        assert_eq!(field(unnamed), "device.name");
        let mut id = request(&[]);
        id.request_id = "again".to_owned();
        assert_eq!(field(id), "request_id");
    }

    #[test]
    fn the_same_request_is_known_again_and_another_is_not() {
        let call = |paths: &[&str]| {
            let mut request = request(paths);
            request.request_id = "8f14e45f-ceea-467f-a0e6-0b1f2a3c4d5e".to_owned();
            update(request).unwrap().1.call.unwrap()
        };
        assert_eq!(call(&["labels"]), call(&["labels"]));
        assert_ne!(call(&["labels"]), call(&["spec.config"]));
        assert_eq!(update(request(&[])).unwrap().1.call, None);
    }
}
