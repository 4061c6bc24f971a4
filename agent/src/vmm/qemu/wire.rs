//! What goes over a QMP socket: lines of JSON.

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// A line of QEMU's.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Message {
    #[serde(rename = "QMP")]
    pub(super) greeting: Option<Greeting>,
    pub(super) event: Option<String>,
    #[serde(default)]
    pub(super) data: EventData,
    /// Of the command that it answers. Ours are numbers; an answer to what QEMU could not read has none.
    pub(super) id: Option<Value>,
    /// Also `null` is an answer.
    #[serde(rename = "return", default, deserialize_with = "present")]
    pub(super) value: Option<Value>,
    pub(super) error: Option<Refusal>,
}

/// The first line on a connection.
#[derive(Debug, Deserialize)]
pub(super) struct Greeting {
    pub(super) version: GreetingVersion,
}

#[derive(Debug, Deserialize)]
pub(super) struct GreetingVersion {
    pub(super) qemu: Version,
}

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// What of the data of an event is looked at.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventData {
    pub(super) device: Option<Value>,
    pub(super) path: Option<Value>,
}

impl EventData {
    /// The name of the device that the event is about; nothing for a part of a device.
    pub(super) fn device_id(&self) -> Option<&str> {
        let path = || self.path.as_ref()?.as_str()?.strip_prefix(PERIPHERAL);
        let id = self.device.as_ref().and_then(Value::as_str).or_else(path)?;
        (!id.contains('/')).then_some(id)
    }
}

/// Where QEMU keeps the devices that have names.
pub(super) const PERIPHERAL: &str = "/machine/peripheral/";

/// That QEMU does not do what it was asked to.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Refusal {
    pub(super) class: String,
    pub(super) desc: String,
}

impl Refusal {
    /// Whether it says that there is no such device, property or path.
    pub(super) fn is_missing(&self) -> bool {
        self.class == "DeviceNotFound"
    }
}

/// A command as QEMU reads it.
pub(super) fn command(operation: &str, arguments: &Value, id: u64) -> Vec<u8> {
    let mut line = json!({"execute": operation, "id": id});
    if !arguments.is_null() {
        line["arguments"] = arguments.clone();
    }
    let mut line = line.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> Message {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn nothing_is_an_answer_too() {
        assert_eq!(
            message(r#"{"return": null, "id": 7}"#).value,
            Some(Value::Null)
        );
        assert_eq!(message(r#"{"id": 7}"#).value, None);
    }

    #[test]
    fn an_event_is_about_a_device_by_name_or_by_path_but_not_about_its_parts() {
        let about = |data: &str| {
            let line = format!(r#"{{"event": "DEVICE_DELETED", "data": {data}}}"#);
            message(&line).data.device_id().map(str::to_owned)
        };
        let nic0 = Some("nic0".to_owned());
        let path = r#""path": "/machine/peripheral/nic0""#;
        assert_eq!(about(&format!(r#"{{"device": "nic0", {path}}}"#)), nic0);
        assert_eq!(about(&format!("{{{path}}}")), nic0);
        assert_eq!(
            about(r#"{"path": "/machine/peripheral/nic0/virtio"}"#),
            None
        );
        assert_eq!(about(r#"{"path": "/machine/unattached/device[3]"}"#), None);
        assert_eq!(about(r#"{"device": 7}"#), None);
        assert_eq!(about("{}"), None);
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |major, minor, micro| Version {
            major,
            minor,
            micro,
        };
        assert!(version(10, 1, 0) < version(10, 1, 1));
        assert!(version(9, 2, 50) < version(10, 1, 1));
        assert!(version(11, 0, 0) > version(10, 1, 1));
    }
}
