//! A device as the message that others keep and compare without a look into it, and what a filter can ask of it.

use prost::Message;
use proto::v1;
use tonic::Status;

use super::convert;
use super::status::invalid_field;
use crate::changes::Snapshot;
use crate::filter::{Facts, Field, Filter, Schema};
use crate::supervisor::Device;

/// What a filter can ask of a device; `facts` has the values in this order.
const SCHEMA: Schema = Schema {
    fields: &[
        Field::name("name", "devices/"),
        Field::text("uid"),
        Field::one_of(
            "state",
            &[
                "STARTING",
                "READY",
                "CONNECTED",
                "FAILED",
                "DELETING",
                "STOPPED",
            ],
        ),
        Field::text("model"),
        Field::one_of("restart_policy", &["ALWAYS", "ON_FAILURE", "NEVER"]),
    ],
    has_labels: true,
};

/// The message of a device. Equal devices have equal messages.
pub(crate) fn encode(device: Device, socket_path: String) -> Vec<u8> {
    convert::device(device, socket_path).encode_to_vec()
}

/// What was encoded, by this agent or one before it.
pub(super) fn decode(snapshot: &Snapshot) -> Result<v1::Device, Status> {
    v1::Device::decode(&*snapshot.encoded).map_err(|error| {
        let id = &snapshot.identity.id;
        Status::data_loss(format!(
            "device {id} can't be read from the changes that an earlier agent wrote down: {error}"
        ))
    })
}

/// Reads a filter of devices.
pub(super) fn filter(text: &str) -> Result<Filter, Status> {
    Filter::parse(text, &SCHEMA).map_err(|error| invalid_field("filter", error.to_string()))
}

/// Whether a filter takes a device as it was then.
pub(super) fn matches(filter: &Filter, snapshot: &Snapshot) -> bool {
    filter.is_empty() || filter.matches(snapshot.facts(facts))
}

fn facts(encoded: &[u8]) -> Facts {
    let device = v1::Device::decode(encoded).unwrap_or_default();
    let spec = device.spec.unwrap_or_default();
    let state = device.status.unwrap_or_default().state();
    let policy = spec.restart_policy().as_str_name().to_owned();
    Facts {
        fields: vec![
            device.name,
            device.uid,
            state.as_str_name().to_owned(),
            spec.model,
            policy,
        ],
        labels: device.labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_device_can_be_asked_for() {
        use v1::device_spec::RestartPolicy;
        use v1::device_status::State;
        let device = |state: State, policy: RestartPolicy| v1::Device {
            name: "devices/a".to_owned(),
            uid: "u".to_owned(),
            labels: [("app".to_owned(), "x".to_owned())].into(),
            spec: Some(v1::DeviceSpec {
                model: "e1000".to_owned(),
                restart_policy: policy.into(),
                ..v1::DeviceSpec::default()
            }),
            status: Some(v1::DeviceStatus {
                state: state.into(),
                ..v1::DeviceStatus::default()
            }),
            ..v1::Device::default()
        };
        for (state, text) in [
            (State::Starting, "STARTING"),
            (State::Ready, "READY"),
            (State::Connected, "CONNECTED"),
            (State::Failed, "FAILED"),
            (State::Deleting, "DELETING"),
            (State::Stopped, "STOPPED"),
        ] {
            let facts = facts(&device(state, RestartPolicy::Always).encode_to_vec());
            let text = format!("state = {text} AND restart_policy = ALWAYS");
            assert!(filter(&text).unwrap().matches(&facts), "{text}");
        }
        for (policy, text) in [
            (RestartPolicy::OnFailure, "ON_FAILURE"),
            (RestartPolicy::Never, "NEVER"),
        ] {
            let facts = facts(&device(State::Ready, policy).encode_to_vec());
            let text = format!("restart_policy = {text}");
            assert!(filter(&text).unwrap().matches(&facts), "{text}");
        }
        let facts = facts(&device(State::Ready, RestartPolicy::Never).encode_to_vec());
        let text = "name = devices/a AND uid = u AND model = e1000 AND labels.app = x";
        assert!(filter(text).unwrap().matches(&facts));
        assert!(!filter("uid = v").unwrap().matches(&facts));
    }
}
