//! What a caller wants to be different about a device: edits of its record, each of one field.
//!
//! Pure. A change is looked at as a whole: the edits are made on a copy, and what comes out is checked against the rules,
//! the model's schema, and what of a living device can't change.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::labels::{check_annotations, check_labels};
use crate::limits::{Limit, Limits};
use crate::models::model::Model;
use crate::schema::{Violation, quoted};
use crate::store::{BackendLossPolicy, Record, RestartPolicy, SocketSpec};

/// One field's new value. `None` is without it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum Edit {
    Labels(BTreeMap<String, String>),
    Label(String, Option<String>),
    Annotations(BTreeMap<String, String>),
    Annotation(String, Option<String>),
    Model(String),
    Config(Value),
    /// One field of the configuration, by the names that lead to it.
    ConfigField(Vec<String>, Option<Value>),
    RestartPolicy(RestartPolicy),
    BackendLossPolicy(BackendLossPolicy),
    Socket(Option<SocketSpec>),
    Limits(Limits),
    Limit(Limit),
}

/// All that a call wants changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Change(pub(crate) Vec<Edit>);

impl Change {
    /// Whether it takes the device's model to judge it.
    pub(crate) fn needs_model(&self) -> bool {
        let is_config = |edit: &Edit| matches!(edit, Edit::Config(_) | Edit::ConfigField(..));
        self.0.iter().any(is_config)
    }

    /// The record with the change in it. `model` is the device's, if it is known.
    pub(crate) fn apply(
        &self,
        record: &Record,
        model: Option<&Model>,
    ) -> Result<Record, Vec<Violation>> {
        let mut changed = record.clone();
        for edit in &self.0 {
            edit.make(&mut changed);
        }
        let mut bad = Vec::new();
        check_labels(&changed.labels, &mut bad);
        check_annotations(&changed.annotations, &mut bad);
        let (was, is) = (&record.spec, &changed.spec);
        if was.model != is.model {
            let why = format!(
                "can't change while the device lives (it is {}): delete the device and create it anew",
                quoted(&was.model)
            );
            bad.push(Violation::new("device.spec.model", why));
        }
        if was.socket != is.socket {
            let why = "can't change while the device lives: delete the device and create it anew";
            bad.push(Violation::new("device.spec.socket", why));
        }
        if was.config != is.config {
            let wrong = match (model, Model::check_size(&is.config)) {
                (_, Err(violation)) => vec![violation],
                (Some(model), Ok(())) => match model.check(&is.config) {
                    wrong if wrong.is_empty() => model.check_change(&was.config, &is.config),
                    wrong => wrong,
                },
                (None, Ok(())) => {
                    let why = format!(
                        "can't change: the device program has no model {} any more",
                        quoted(&was.model)
                    );
                    vec![Violation::new("", why)]
                }
            };
            bad.extend(wrong.into_iter().map(Violation::in_config));
        }
        match bad.is_empty() {
            true => Ok(changed),
            false => Err(bad),
        }
    }
}

impl Edit {
    fn make(&self, record: &mut Record) {
        match self.clone() {
            Self::Labels(labels) => record.labels = labels,
            Self::Label(key, value) => set(&mut record.labels, key, value),
            Self::Annotations(annotations) => record.annotations = annotations,
            Self::Annotation(key, value) => set(&mut record.annotations, key, value),
            Self::Model(model) => record.spec.model = model,
            Self::Config(config) => record.spec.config = config,
            Self::ConfigField(names, value) => {
                if let Value::Object(config) = &mut record.spec.config {
                    set_field(config, &names, value);
                }
            }
            Self::RestartPolicy(policy) => record.spec.restart_policy = policy,
            Self::BackendLossPolicy(policy) => record.spec.backend_loss_policy = policy,
            Self::Socket(socket) => record.spec.socket = socket,
            Self::Limits(limits) => record.spec.limits = limits,
            Self::Limit(limit) => limit.set(&mut record.spec.limits),
        }
    }
}

fn set(map: &mut BTreeMap<String, String>, key: String, value: Option<String>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// Sets a field below `object`, and the objects on the way to it; or takes it out, if it is there.
fn set_field(object: &mut Map<String, Value>, names: &[String], value: Option<Value>) {
    match (names, value) {
        ([], _) => {}
        ([name], Some(value)) => {
            object.insert(name.clone(), value);
        }
        ([name], None) => {
            object.remove(name);
        }
        ([name, rest @ ..], None) => {
            if let Some(Value::Object(inner)) = object.get_mut(name) {
                set_field(inner, rest, None);
            }
        }
        ([name, rest @ ..], value) => {
            let inner = object.entry(name.clone()).or_insert(Value::Null);
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            if let Value::Object(inner) = inner {
                set_field(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::model::tests::model;
    use crate::store::tests::record;

    fn card() -> Model {
        model(json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "mac": {"type": "string"},
                "link": {"type": "string", "enum": ["up", "down"], "x-vfu-mutable": true},
                "net": {"type": "object"}
            }
        }))
    }

    fn names(path: &str) -> Vec<String> {
        path.split('.').map(str::to_owned).collect()
    }

    fn field(path: &str, value: Value) -> Edit {
        Edit::ConfigField(names(path), Some(value))
    }

    fn config(edits: Vec<Edit>) -> Result<Value, Vec<Violation>> {
        let changed = Change(edits).apply(&record("nic0"), Some(&card()));
        changed.map(|it| it.spec.config)
    }

    fn refused(edits: Vec<Edit>) -> Vec<String> {
        let bad = Change(edits).apply(&record("nic0"), Some(&card()));
        bad.unwrap_err().into_iter().map(|it| it.field).collect()
    }

    #[test]
    fn one_field_of_the_configuration_changes_alone() {
        let present = record("nic0").spec.config;
        let down = config(vec![field("link", json!("down"))]).unwrap();
        assert_eq!(down, json!({"link": "down", "net": present["net"]}));
        let gone = config(vec![
            field("link", json!("down")),
            Edit::ConfigField(names("link"), None),
            Edit::ConfigField(names("net.tap.ifname"), None),
        ]);
        assert_eq!(gone.unwrap(), present);
    }

    #[test]
    fn what_is_wrong_or_can_not_change_is_named() {
        let mac = field("mac", json!("a"));
        assert_eq!(refused(vec![mac]), ["device.spec.config.mac"]);
        let inside = field("net.null.x", json!(1));
        assert_eq!(refused(vec![inside]), ["device.spec.config.net.null.x"]);
        let sideways = field("link", json!("sideways"));
        assert_eq!(refused(vec![sideways]), ["device.spec.config.link"]);
        let long = Edit::Config(json!({"mac": "x".repeat(70_000)}));
        assert_eq!(refused(vec![long]), ["device.spec.config"]);
        let rest = vec![
            Edit::Model("e1001".to_owned()),
            Edit::Socket(Some(SocketSpec::default())),
            Edit::Label("-".to_owned(), Some(String::new())),
            Edit::Annotations(BTreeMap::from([("/".to_owned(), String::new())])),
        ];
        assert_eq!(
            refused(rest),
            [
                "device.labels",
                "device.annotations",
                "device.spec.model",
                "device.spec.socket"
            ]
        );
    }

    #[test]
    fn what_is_as_it_was_is_no_change() {
        let record = record("nic0");
        let edits = vec![
            Edit::Labels(record.labels.clone()),
            Edit::Model(record.spec.model.clone()),
            Edit::Config(record.spec.config.clone()),
            Edit::Socket(record.spec.socket),
        ];
        assert_eq!(Change(edits).apply(&record, None), Ok(record));
    }

    #[test]
    fn labels_change_one_by_one_and_without_a_model() {
        let set =
            |key: &str, value: Option<&str>| Edit::Label(key.to_owned(), value.map(str::to_owned));
        let change = Change(vec![
            set("app", None),
            set("tier", Some("1")),
            set("none", None),
        ]);
        assert!(!change.needs_model());
        let labels = change.apply(&record("nic0"), None).unwrap().labels;
        assert_eq!(
            labels,
            BTreeMap::from([("tier".to_owned(), "1".to_owned())])
        );
        let unknown = Change(vec![field("link", json!("down"))]);
        let bad = unknown.apply(&record("nic0"), None).unwrap_err();
        assert!(bad[0].description.contains("no model \"e1000\""));
    }
}
