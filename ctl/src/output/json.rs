//! Messages and Structs as JSON, and back.

use std::collections::BTreeMap;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::{Number, Value, json};

use crate::error::Error;

/// `message`, of type `vfu.v1.{name}`, as protobuf's canonical JSON.
pub(crate) fn json(name: &str, message: &impl Message) -> Result<Value, Error> {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(nonsense)?;
    let descriptor = pool
        .get_message_by_name(&format!("vfu.v1.{name}"))
        .ok_or_else(|| Error::Nonsense(format!("no message vfu.v1.{name}")))?;
    let message =
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(nonsense)?;
    Ok(whole(serde_json::to_value(message).map_err(nonsense)?))
}

fn nonsense(error: impl std::fmt::Display) -> Error {
    Error::Nonsense(error.to_string())
}

/// Numbers in a Struct are floating point; those that are whole are written as such.
fn whole(value: Value) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => match number.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
            Some(it) if it.fract() == 0.0 && it.abs() < EXACT => Number::from(it as i64).into(),
            _ => number.into(),
        },
        Value::Array(values) => values.into_iter().map(whole).collect(),
        Value::Object(object) => {
            let object = object.into_iter().map(|(key, value)| (key, whole(value)));
            Value::Object(object.collect())
        }
        value => value,
    }
}

/// A Struct as JSON.
pub(crate) fn from_struct(message: &prost_types::Struct) -> Value {
    let fields = message.fields.iter();
    fields
        .map(|(key, value)| (key.clone(), from_value(value)))
        .collect()
}

fn from_value(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => whole(json!(number)),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::BoolValue(truth)) => (*truth).into(),
        Some(Kind::StructValue(object)) => from_struct(object),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_value).collect(),
    }
}

/// JSON as a Struct.
pub(crate) fn to_struct(object: &serde_json::Map<String, Value>) -> prost_types::Struct {
    let fields = object.iter();
    let fields: BTreeMap<_, _> = fields
        .map(|(key, value)| (key.clone(), to_value(value)))
        .collect();
    prost_types::Struct { fields }
}

fn to_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => Kind::ListValue(prost_types::ListValue {
            values: list.iter().map(to_value).collect(),
        }),
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::device;

    #[test]
    fn json_is_protobufs() {
        assert_eq!(
            json("Device", &device()).unwrap(),
            json!({
                "name": "devices/nic0",
                "uid": "0b1f",
                "generation": "1",
                "createTime": "1970-01-01T00:16:40Z",
                "spec": {
                    "model": "e1000",
                    "config": {"mac": "52:54:00:12:34:56", "queues": 4, "net": {"loopback": {}}}
                },
                "status": {
                    "state": "CONNECTED",
                    "socketPath": "/run/vfu/devices/nic0/vfio-user.sock",
                    "pid": 42,
                    "client": {"pid": 7, "executable": "/usr/bin/qemu-system-x86_64"}
                }
            })
        );
    }

    #[test]
    fn structs_and_json_are_the_same() {
        let value = json!({"a": [1, "x", null, true, 1.5], "b": {"c": {}}});
        let Value::Object(object) = &value else {
            panic!()
        };
        assert_eq!(from_struct(&to_struct(object)), value);
    }
}
