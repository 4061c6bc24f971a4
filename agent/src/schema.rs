//! What is wrong with a configuration, for the person who wrote it: a validator's errors turned
//! into one sentence per field.
//!
//! The hard part is `oneOf`, by which schemas say "one of these variants": "not valid under any of
//! the schemas" helps nobody. Variants are told apart by the property each of them requires, as
//! `{"tap": {..}}` or `{"stream": {..}}`, so that the one which was meant can be found and its own
//! errors shown.

use std::collections::BTreeSet;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use serde_json::Value;

/// More are not shown.
const MAX_VIOLATIONS: usize = 32;
const MAX_SHOWN_BYTES: usize = 80;

/// A text that came from outside, in quotation marks and not too long.
pub(crate) fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(100);
    format!(
        "{:?}{}",
        &text[..end],
        if end < text.len() { "..." } else { "" }
    )
}

/// A field that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Path of the field, such as `net.tap.ifname`. Empty for the whole.
    pub(crate) field: String,
    /// Which rule, and what would be right.
    pub(crate) description: String,
}

impl Violation {
    pub(crate) fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        let field = field.into();
        let description = description.into();
        Self { field, description }
    }

    /// The same of a field of a request's configuration.
    pub(crate) fn in_config(self) -> Self {
        let field = join("device.spec.config", &self.field);
        Self { field, ..self }
    }
}

/// All violations of the schema in `config`, by field.
pub(crate) fn violations(validator: &Validator, schema: &Value, config: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    for error in validator.iter_errors(config).take(MAX_VIOLATIONS) {
        explain(&error, schema, &mut found);
    }
    found.sort_by(|a, b| a.field.cmp(&b.field));
    found.dedup();
    found.truncate(MAX_VIOLATIONS);
    found
}

fn explain(error: &ValidationError<'_>, schema: &Value, found: &mut Vec<Violation>) {
    let field = path(error);
    let value = error.instance();
    let mut say = |field: String, description: String| {
        found.push(Violation::new(field, description));
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let known = known_properties(error, schema);
            for name in unexpected {
                say(
                    join(&field, name),
                    format!("unknown field; known here: {known}"),
                );
            }
        }
        ValidationErrorKind::Required { property } => {
            say(join(&field, &text(property)), "required".to_owned());
        }
        ValidationErrorKind::Type { kind } => {
            let wanted = wanted_types(kind);
            let hint = hint(error, schema);
            say(
                field,
                format!("expected {wanted}, got {}{hint}", shown(value)),
            );
        }
        ValidationErrorKind::Pattern { pattern } => {
            let hint = hint(error, schema);
            say(
                field,
                format!("{} does not match {pattern}{hint}", shown(value)),
            );
        }
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().map(|it| listed(it.iter().map(shown)));
            let options = options.unwrap_or_default();
            say(field, format!("{} is not one of {options}", shown(value)));
        }
        ValidationErrorKind::OneOfNotValid { context }
        | ValidationErrorKind::AnyOf { context }
        | ValidationErrorKind::OneOfMultipleValid { context } => {
            explain_variants(error, context, schema, found);
        }
        _ => {
            let hint = hint(error, schema);
            say(field, format!("{error}{hint}"));
        }
    }
}

/// Explains a value that is none of several variants.
fn explain_variants(
    error: &ValidationError<'_>,
    variants: &[Vec<ValidationError<'static>>],
    schema: &Value,
    found: &mut Vec<Violation>,
) {
    let field = path(error);
    let value = error.instance();
    let here = error.instance_path();
    let is_own = |it: &&ValidationError<'_>| it.instance_path() == here;

    // `null` as a variant says no more than that the value is optional.
    let is_null = |errors: &&Vec<ValidationError<'static>>| {
        errors.iter().any(|it| {
            matches!(it.kind(), ValidationErrorKind::Type { kind } if wanted_types(kind) == "null")
        })
    };
    let variants: Vec<_> = variants.iter().filter(|it| !is_null(it)).collect();

    // The variants whose outside fits and whose inside does not: one of them was meant.
    let meant = variants
        .iter()
        .filter(|errors| !errors.iter().any(|it| is_own(&it)))
        .min_by_key(|errors| errors.len());
    if let Some(errors) = meant.or(match &*variants {
        [only] => Some(only),
        _ => None,
    }) {
        for error in *errors {
            explain(error, schema, found);
        }
        return;
    }

    let names = variant_names(error, schema);
    let listed_names = listed(names.iter().cloned());
    if names.is_empty() {
        let what: BTreeSet<_> = variants
            .iter()
            .flat_map(|errors| errors.iter())
            .filter_map(|it| match it.kind() {
                ValidationErrorKind::Type { kind } => Some(wanted_types(kind)),
                ValidationErrorKind::Constant { expected_value } => Some(shown(expected_value)),
                ValidationErrorKind::Enum { options } => {
                    let options = options.as_array()?;
                    Some(listed(options.iter().map(shown)))
                }
                _ => None,
            })
            .collect();
        let hint = hint(error, schema);
        let what = listed(what);
        let description = format!("expected one of {what}, got {}{hint}", shown(value));
        found.push(Violation::new(field, description));
        return;
    }
    let Some(object) = value.as_object() else {
        let description = format!(
            "expected an object with one of {listed_names}, got {}",
            shown(value)
        );
        found.push(Violation::new(field, description));
        return;
    };
    let given: Vec<_> = object.keys().filter(|it| names.contains(*it)).collect();
    match *given {
        [] if object.is_empty() => {
            let description = format!("expected one of {listed_names}, got none");
            found.push(Violation::new(field, description));
        }
        [] => found.extend(object.keys().map(|key| {
            let description = format!("unknown; expected one of {listed_names}");
            Violation::new(join(&field, key), description)
        })),
        [name] => {
            // The variant of that name misses nothing; what it does not take is something else.
            let errors = variants.iter().find(|errors| {
                !errors
                    .iter()
                    .any(|it| matches!(it.kind(), ValidationErrorKind::Required { .. }))
            });
            match errors {
                Some(errors) => {
                    for error in *errors {
                        explain(error, schema, found);
                    }
                }
                None => found.push(Violation::new(join(&field, name), error.to_string())),
            }
        }
        _ => {
            let given = listed(given.into_iter().cloned());
            let description = format!("expected exactly one of {listed_names}, got {given}");
            found.push(Violation::new(field, description));
        }
    }
}

/// The properties that the variants of a `oneOf` or `anyOf` require, each its own.
fn variant_names(error: &ValidationError<'_>, schema: &Value) -> BTreeSet<String> {
    let variants = subschema(error, schema)
        .and_then(|it| it.get("oneOf").or_else(|| it.get("anyOf"))?.as_array());
    variants
        .into_iter()
        .flatten()
        .filter_map(|variant| match &**variant.get("required")?.as_array()? {
            [name] => Some(text(name)),
            _ => None,
        })
        .collect()
}

/// The path of an error's value, with dots, as `net.tap.ifname`.
fn path(error: &ValidationError<'_>) -> String {
    let pointer = error.instance_path().as_str();
    let parts: Vec<_> = pointer
        .split('/')
        .skip(1)
        .map(|part| part.replace("~1", "/").replace("~0", "~"))
        .collect();
    parts.join(".")
}

/// `name` below `field`.
pub(crate) fn join(field: &str, name: &str) -> String {
    match (field, name) {
        (one, "") | ("", one) => one.to_owned(),
        (field, name) => format!("{field}.{name}"),
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// A value as JSON, not too long.
pub(crate) fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > MAX_SHOWN_BYTES {
        text.truncate(text.floor_char_boundary(MAX_SHOWN_BYTES));
        text.push_str("...");
    }
    text
}

fn listed(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(", ")
}

fn wanted_types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => one.to_string(),
        TypeKind::Multiple(many) => {
            let names: Vec<_> = many.iter().map(|it| it.to_string()).collect();
            names.join(" or ")
        }
    }
}

/// The schema that has the keyword an error is about.
fn subschema<'a>(error: &ValidationError<'_>, schema: &'a Value) -> Option<&'a Value> {
    let pointer = error.schema_path().as_str();
    let (parent, _keyword) = pointer.rsplit_once('/')?;
    schema.pointer(parent)
}

/// The schema's own words about the value, in brackets.
fn hint(error: &ValidationError<'_>, schema: &Value) -> String {
    subschema(error, schema)
        .and_then(|it| it.get("description")?.as_str())
        .map(|it| {
            it.split("\n\n")
                .next()
                .unwrap_or_default()
                .replace('\n', " ")
        })
        .map_or_else(String::new, |it| format!(" ({it})"))
}

fn known_properties(error: &ValidationError<'_>, schema: &Value) -> String {
    let known = subschema(error, schema)
        .and_then(|it| it.get("properties")?.as_object())
        .map(|it| listed(it.keys().cloned()))
        .unwrap_or_default();
    if known.is_empty() {
        "none".to_owned()
    } else {
        known
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What schemars makes of a struct with an enum of backends in it.
    fn schema() -> Value {
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "mac": {
                    "description": "MAC address, six bytes in hexadecimal.\n\nMore about it.",
                    "type": ["string", "null"],
                    "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$"
                },
                "queues": {"type": "integer", "minimum": 1, "maximum": 8},
                "net": {"$ref": "#/$defs/Net", "default": {"null": {}}},
                "second": {"anyOf": [{"$ref": "#/$defs/Net"}, {"type": "null"}]}
            },
            "$defs": {
                "Net": {
                    "oneOf": [
                        {
                            "type": "object", "required": ["tap"], "additionalProperties": false,
                            "properties": {"tap": {"$ref": "#/$defs/Tap"}}
                        },
                        {
                            "type": "object", "required": ["stream"], "additionalProperties": false,
                            "properties": {"stream": {"$ref": "#/$defs/Stream"}}
                        },
                        {
                            "type": "object", "required": ["null"], "additionalProperties": false,
                            "properties": {"null": {"type": "object", "additionalProperties": false}}
                        }
                    ]
                },
                "Tap": {
                    "type": "object", "additionalProperties": false,
                    "properties": {
                        "ifname": {"type": ["string", "null"], "description": "Name of the TAP."},
                        "bridge": {"type": ["string", "null"]}
                    }
                },
                "Stream": {
                    "type": "object", "additionalProperties": false, "required": ["path", "mode"],
                    "properties": {
                        "path": {"type": "string"},
                        "mode": {"oneOf": [
                            {"const": "connect", "type": "string"},
                            {"const": "listen", "type": "string"}
                        ]}
                    }
                }
            }
        })
    }

    fn check(config: Value) -> Vec<(String, String)> {
        let schema = schema();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        violations(&validator, &schema, &config)
            .into_iter()
            .map(|it| (it.field, it.description))
            .collect()
    }

    fn assert_says(config: Value, expected: &[(&str, &str)]) {
        let found = check(config.clone());
        let found: Vec<_> = found
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(found, expected, "{config}");
    }

    #[test]
    fn what_is_right_has_no_violation() {
        for config in [
            json!({}),
            json!({"mac": "52:54:00:12:34:56", "net": {"tap": {"ifname": "vfu0"}}, "queues": 2}),
            json!({"net": {"stream": {"path": "/x", "mode": "listen"}}, "second": {"null": {}}}),
        ] {
            assert_says(config, &[]);
        }
    }

    #[test]
    fn every_bad_field_is_named_with_the_rule() {
        assert_says(
            json!({"mac": "zz", "queues": 9, "mtu": 1500}),
            &[
                (
                    "mac",
                    "\"zz\" does not match ^([0-9a-f]{2}:){5}[0-9a-f]{2}$ \
                     (MAC address, six bytes in hexadecimal.)",
                ),
                ("mtu", "unknown field; known here: mac, net, queues, second"),
                ("queues", "9 is greater than the maximum of 8"),
            ],
        );
        assert_says(
            json!({"mac": 12}),
            &[(
                "mac",
                "expected null or string, got 12 (MAC address, six bytes in hexadecimal.)",
            )],
        );
        assert_says(json!([]), &[("", "expected object, got []")]);
    }

    #[test]
    fn an_unknown_variant_is_told_the_known_ones() {
        assert_says(
            json!({"net": {"taap": {}}}),
            &[("net.taap", "unknown; expected one of null, stream, tap")],
        );
        assert_says(
            json!({"net": {}}),
            &[("net", "expected one of null, stream, tap, got none")],
        );
        assert_says(
            json!({"net": "tap"}),
            &[(
                "net",
                "expected an object with one of null, stream, tap, got \"tap\"",
            )],
        );
    }

    #[test]
    fn two_variants_are_one_too_many() {
        assert_says(
            json!({"net": {"tap": {}, "null": {}}}),
            &[(
                "net",
                "expected exactly one of null, stream, tap, got null, tap",
            )],
        );
        assert_says(
            json!({"net": {"tap": {}, "mtu": 1}}),
            &[("net.mtu", "unknown field; known here: tap")],
        );
    }

    #[test]
    fn what_is_wrong_inside_a_variant_is_told_there() {
        assert_says(
            json!({"net": {"tap": {"ifname": 7}}}),
            &[(
                "net.tap.ifname",
                "expected null or string, got 7 (Name of the TAP.)",
            )],
        );
        assert_says(
            json!({"net": {"tap": {"ifnam": "x"}}}),
            &[("net.tap.ifnam", "unknown field; known here: bridge, ifname")],
        );
        assert_says(
            json!({"net": {"stream": {"path": 1, "mode": "both"}}}),
            &[
                (
                    "net.stream.mode",
                    "expected one of \"connect\", \"listen\", got \"both\"",
                ),
                ("net.stream.path", "expected string, got 1"),
            ],
        );
        assert_says(
            json!({"net": {"stream": {}}}),
            &[
                ("net.stream.mode", "required"),
                ("net.stream.path", "required"),
            ],
        );
        assert_says(
            json!({"second": {"tap": {"bridge": 1}}}),
            &[("second.tap.bridge", "expected null or string, got 1")],
        );
    }
}
