//! What can change about a living device.
//!
//! A model says so twice: to whoever asks for a change, with `x-vfu-mutable` in the schema of its configuration, and here,
//! with what it takes over. A test holds the two together.

use pci::UpdateError;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The configuration `wanted`, which a living device of the configuration `present` can become: the two differ in nothing
/// but what `change` takes over from the second argument into the first.
pub(crate) fn check<T>(
    present: &T,
    wanted: &Value,
    change: impl FnOnce(&mut T, &T),
) -> Result<T, UpdateError>
where
    T: Clone + PartialEq + Serialize + DeserializeOwned,
{
    let wanted: T = crate::error::parse(wanted.clone()).map_err(|error| UpdateError {
        field: error.field,
        message: error.message,
    })?;
    let mut possible = present.clone();
    change(&mut possible, &wanted);
    if possible == wanted {
        return Ok(wanted);
    }
    let json = |config: &T| serde_json::to_value(config).unwrap_or_default();
    Err(UpdateError::immutable(difference(
        &json(&possible),
        &json(&wanted),
    )))
}

/// The path of the first field in which two objects differ, as deep as both have it.
fn difference(a: &Value, b: &Value) -> Option<String> {
    let (a, b) = (a.as_object()?, b.as_object()?);
    let mut names = a.keys().chain(b.keys());
    let name = names.find(|name| a.get(*name) != b.get(*name))?;
    let inner = a.get(name).zip(b.get(name));
    Some(match inner.and_then(|(a, b)| difference(a, b)) {
        Some(inner) => format!("{name}.{inner}"),
        None => name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_is_named_as_deep_as_both_go() {
        let found = |a: Value, b: Value| difference(&a, &b);
        assert_eq!(found(json!({"a": 1}), json!({"a": 1})), None);
        let named = |path: &str| Some(path.to_owned());
        assert_eq!(found(json!({"a": 1}), json!({"b": 1})), named("a"));
        assert_eq!(found(json!({}), json!({"b": {"c": 1}})), named("b"));
        let net = |name: &str| json!({"net": {"tap": {"ifname": name}}});
        assert_eq!(found(net("a"), net("b")), named("net.tap.ifname"));
        let other = json!({"net": {"null": {}}});
        assert_eq!(found(net("a"), other), named("net.tap"));
    }
}
