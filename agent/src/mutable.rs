//! What can't change about a living device, by its model's schema: everything that is not marked with `x-vfu-mutable`.
//!
//! Two configurations are compared field by field. A field that is left out is what the schema says it is then, so that a
//! caller may spell out a default. A mark holds for all that is below it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::schema::{Violation, join, shown};

/// The mark.
pub(crate) const KEYWORD: &str = "x-vfu-mutable";
/// Schemas may refer to themselves: so many references lead from one field to the next at most.
const REFERENCES: usize = 16;

/// The fields in which `wanted` differs from `present` and must not.
pub(crate) fn violations(schema: &Value, present: &Value, wanted: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    compare(schema, Some(schema), "", present, wanted, &mut found);
    found
}

fn compare(
    root: &Value,
    node: Option<&Value>,
    path: &str,
    present: &Value,
    wanted: &Value,
    found: &mut Vec<Violation>,
) {
    let (Some(before), Some(after)) = (present.as_object(), wanted.as_object()) else {
        if present != wanted {
            found.push(violation(path.to_owned(), Some(present)));
        }
        return;
    };
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for name in names {
        let node = node.and_then(|node| property(root, node, name, REFERENCES));
        let default = node.and_then(|node| node.get("default"));
        let was = before.get(name).or(default);
        let is = after.get(name).or(default);
        if was == is || node.is_some_and(|node| node.get(KEYWORD) == Some(&Value::Bool(true))) {
            continue;
        }
        let path = join(path, name);
        match (was, is) {
            (Some(was), Some(is)) => compare(root, node, &path, was, is, found),
            _ => found.push(violation(path, was)),
        }
    }
}

fn violation(field: String, present: Option<&Value>) -> Violation {
    let is = match present {
        Some(value) => format!("it is {}", shown(value)),
        None => "it is not set".to_owned(),
    };
    let why =
        format!("can't change while the device lives ({is}): delete the device and create it anew");
    Violation::new(field, why)
}

/// The schema of the property `name` of what `node` describes.
fn property<'a>(
    root: &'a Value,
    node: &'a Value,
    name: &str,
    references: usize,
) -> Option<&'a Value> {
    if let Some(found) = node.get("properties").and_then(|it| it.get(name)) {
        return Some(found);
    }
    let references = references.checked_sub(1)?;
    let target = node.get("$ref").and_then(Value::as_str);
    let target = target.and_then(|it| root.pointer(it.strip_prefix('#')?));
    let several = ["allOf", "anyOf", "oneOf"].map(|key| node.get(key).and_then(Value::as_array));
    let mut inner = target
        .into_iter()
        .chain(several.into_iter().flatten().flatten());
    inner.find_map(|node| property(root, node, name, references))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "mac": {"type": "string"},
                "link": {"$ref": "#/$defs/Link", "default": "up", "x-vfu-mutable": true},
                "net": {"$ref": "#/$defs/Net", "default": {"null": {}}},
                "self": {"$ref": "#/$defs/Self"}
            },
            "$defs": {
                "Link": {"type": "string", "enum": ["up", "down"]},
                "Net": {"oneOf": [
                    {"properties": {"tap": {"properties": {
                        "ifname": {"type": "string"},
                        "rate": {"type": "object", "x-vfu-mutable": true}
                    }}}},
                    {"properties": {"null": {"type": "object"}}}
                ]},
                "Self": {"anyOf": [{"$ref": "#/$defs/Self"}, {"$ref": "#/$defs/Self"}]}
            }
        })
    }

    fn fields(present: Value, wanted: Value) -> Vec<String> {
        let found = violations(&schema(), &present, &wanted);
        found.into_iter().map(|it| it.field).collect()
    }

    #[test]
    fn what_is_marked_may_change_and_what_is_below_it() {
        let none = Vec::<String>::new();
        assert_eq!(fields(json!({}), json!({"link": "down"})), none);
        assert_eq!(fields(json!({"link": "down"}), json!({})), none);
        let tap = |rate: Value| json!({"net": {"tap": {"ifname": "a", "rate": rate}}});
        assert_eq!(fields(tap(json!({"a": {"b": 1}})), tap(json!({}))), none);
    }

    #[test]
    fn everything_else_is_named_as_deep_as_it_goes() {
        let mac = json!({"mac": "a", "link": "down"});
        assert_eq!(fields(json!({}), mac.clone()), ["mac"]);
        assert_eq!(fields(mac, json!({"mac": "b"})), ["mac"]);
        let tap = |name: &str| json!({"net": {"tap": {"ifname": name}}});
        assert_eq!(fields(tap("a"), tap("b")), ["net.tap.ifname"]);
        assert_eq!(
            fields(tap("a"), json!({"x": 1})),
            ["net.null", "net.tap", "x"]
        );
        assert_eq!(fields(json!({}), json!({"self": {"a": 1}})), ["self"]);
        assert_eq!(
            fields(json!({"self": {"a": 1}}), json!({"self": {"a": 2}})),
            ["self.a"]
        );
    }

    #[test]
    fn a_default_that_is_spelled_out_is_no_change() {
        let none = Vec::<String>::new();
        let net = json!({"net": {"null": {}}});
        assert_eq!(fields(json!({}), net.clone()), none);
        assert_eq!(fields(net, json!({})), none);
    }

    #[test]
    fn the_present_value_and_the_cure_are_told() {
        let found = violations(&schema(), &json!({"mac": "a"}), &json!({}));
        assert_eq!(
            found[0].description,
            "can't change while the device lives (it is \"a\"): delete the device and create it anew"
        );
    }
}
