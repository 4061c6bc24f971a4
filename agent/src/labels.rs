//! Labels and annotations: what their keys and values may be.

use std::collections::BTreeMap;

use crate::schema::{Violation, quoted};

const MAX_LABELS: usize = 64;
const MAX_NAME_BYTES: usize = 63;
const MAX_ANNOTATION_BYTES: usize = 64 << 10;

const RULE: &str = "1 to 63 letters, digits and ._/-, with a letter or digit at both ends";

fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    text.len() <= MAX_NAME_BYTES
        && text.bytes().all(inner)
        && edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
}

/// Collects what is wrong with a device's labels.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>, bad: &mut Vec<Violation>) {
    if labels.len() > MAX_LABELS {
        let why = format!("{} labels; at most {MAX_LABELS} are allowed", labels.len());
        return bad.push(Violation::new("device.labels", why));
    }
    for (key, value) in labels {
        if !is_name(key) {
            let why = format!("key {} is not {RULE}", quoted(key));
            bad.push(Violation::new("device.labels", why));
        } else if !value.is_empty() && !is_name(value) {
            let why = format!("value {} is not {RULE}, nor empty", quoted(value));
            bad.push(Violation::new(format!("device.labels.{key}"), why));
        }
    }
}

/// Collects what is wrong with a device's annotations.
pub(crate) fn check_annotations(annotations: &BTreeMap<String, String>, bad: &mut Vec<Violation>) {
    let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > MAX_ANNOTATION_BYTES {
        let why = format!("{bytes} bytes; at most {MAX_ANNOTATION_BYTES} are allowed");
        bad.push(Violation::new("device.annotations", why));
        return;
    }
    for key in annotations.keys().filter(|key| !is_name(key)) {
        let why = format!("key {} is not {RULE}", quoted(key));
        bad.push(Violation::new("device.annotations", why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_break_the_rule_are_named() {
        let mut bad = Vec::new();
        let labels = [("app", "x"), ("-bad", "x"), ("k", "a b"), ("empty", "")];
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned()));
        check_labels(&BTreeMap::from(labels), &mut bad);
        let mut fields: Vec<_> = bad.iter().map(|it| &*it.field).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["device.labels", "device.labels.k"]);
    }
}
