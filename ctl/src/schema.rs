//! From a model's JSON Schema to the fields of its configuration.
//!
//! vfuctl knows no model. It walks the schema that the agent gives it and finds every field that can be given by itself:
//! a path such as `net.tap.ifname`, a type, a default and a description. Flags and `--set` are two spellings of such a
//! field (`config.rs`). The walk understands what schemas of Rust types contain: properties, `$ref`, optional values, enums,
//! and unions of objects with one property each. Whatever else it meets becomes a field that takes JSON. It checks
//! types only; the agent holds the same schema and has the last word.

use serde_json::{Map, Value, json};

/// Schemas may refer to themselves; below this many names a field takes JSON.
const DEPTH: usize = 8;

/// The fields of one model's configuration.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    /// Name of the model.
    pub(crate) model: String,
    /// Every field, in the order of the schema.
    pub(crate) fields: Vec<Field>,
    /// The places where one of several names can be chosen.
    pub(crate) unions: Vec<Union>,
}

/// One field of a configuration.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its names from the top, joined by dots.
    pub(crate) path: String,
    /// What it takes.
    pub(crate) kind: Kind,
    /// What it is, in the words of the model.
    pub(crate) description: String,
    /// What it is when not given.
    pub(crate) default: Option<Value>,
    /// Whether the object that holds it is wrong without it.
    pub(crate) required: bool,
    /// Whether it can change while the device lives.
    pub(crate) mutable: bool,
}

/// What a field takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Any text.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// One of these texts.
    Choice(Vec<Choice>),
    /// Nothing: to name it is to choose it.
    Empty,
    /// An object whose fields are fields too. `bare`: it can be chosen by its name alone.
    Section {
        /// A variant of a union, and none of its fields is required.
        bare: bool,
    },
    /// An object with whatever members: each can be given by itself, as `path.member`.
    Map,
    /// JSON.
    Json,
}

/// A text that a field takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// The text.
    pub(crate) name: String,
    /// What it means, in the words of the model; may be empty.
    pub(crate) description: String,
}

/// A place where exactly one of several names is given.
#[derive(Debug)]
pub(crate) struct Union {
    /// Path of the place; empty for the configuration itself.
    pub(crate) path: String,
    /// The names.
    pub(crate) variants: Vec<String>,
}

impl Schema {
    /// Walks `root`, the JSON Schema of `model`'s configuration.
    pub(crate) fn new(model: &str, root: &Value) -> Self {
        let mut walk = Walk {
            root,
            schema: Self {
                model: model.to_owned(),
                ..Self::default()
            },
        };
        walk.node(&Place::default(), root);
        walk.schema
    }

    /// The field at `path`.
    pub(crate) fn field(&self, path: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.path == path)
    }

    /// Whether `path` is that of a member of a [`Kind::Map`].
    pub(crate) fn is_member(&self, path: &str) -> bool {
        path.rsplit_once('.').is_some_and(|(map, member)| {
            !member.is_empty() && self.field(map).is_some_and(|it| it.kind == Kind::Map)
        })
    }
}

impl Field {
    /// Whether the field has a flag of its own.
    pub(crate) fn has_flag(&self) -> bool {
        self.kind != Kind::Section { bare: false }
    }
}

impl Kind {
    /// Reads a value of this kind.
    pub(crate) fn parse(&self, text: &str) -> Result<Value, String> {
        let bad = |what: &str| Err(format!("`{text}` is not {what}"));
        match self {
            Self::Text => Ok(text.into()),
            Self::Integer => match (text.parse::<i64>(), text.parse::<u64>()) {
                (Ok(number), _) => Ok(number.into()),
                (_, Ok(number)) => Ok(number.into()),
                _ => bad("a whole number"),
            },
            Self::Number => match serde_json::from_str::<serde_json::Number>(text) {
                Ok(number) => Ok(number.into()),
                Err(_) => bad("a number"),
            },
            Self::Boolean => match text {
                "true" => Ok(true.into()),
                "false" => Ok(false.into()),
                _ => bad("true or false"),
            },
            Self::Choice(choices) if choices.iter().any(|it| it.name == text) => Ok(text.into()),
            Self::Choice(choices) => bad(&format!("one of {}", names(choices).join(", "))),
            Self::Empty if text == "{}" => Ok(json!({})),
            Self::Empty => bad("{}: it takes no value"),
            Self::Section { .. } | Self::Map => match serde_json::from_str(text) {
                Ok(Value::Object(object)) => Ok(object.into()),
                _ => bad("a JSON object"),
            },
            Self::Json => match serde_json::from_str(text) {
                Ok(value) => Ok(value),
                Err(error) => bad(&format!("JSON: {error}")),
            },
        }
    }

    /// What the field is when it is named without a value.
    pub(crate) fn bare(&self) -> Option<Value> {
        match self {
            Self::Empty | Self::Section { bare: true } => Some(json!({})),
            Self::Boolean => Some(true.into()),
            _ => None,
        }
    }

    /// The type's name in help and tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) => "STRING",
            Self::Integer => "INTEGER",
            Self::Number => "NUMBER",
            Self::Boolean => "BOOLEAN",
            Self::Empty | Self::Section { bare: true } => "",
            Self::Section { bare: false } | Self::Map | Self::Json => "JSON",
        }
    }
}

/// A value of which the schema says nothing: a number, true or false, or text.
pub(crate) fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => text.into(),
    }
}

/// Where the walk is.
#[derive(Default)]
struct Place {
    path: String,
    depth: usize,
    default: Option<Value>,
    required: bool,
    variant: bool,
    mutable: bool,
}

impl Place {
    /// The property `name` of the object here, whose default is `object`.
    fn property(&self, name: &str, object: Option<&Value>) -> Self {
        Self {
            path: join(&self.path, name),
            depth: self.depth + 1,
            default: object.and_then(|it| it.get(name)).cloned(),
            required: false,
            variant: false,
            mutable: self.mutable,
        }
    }
}

/// The texts that a field takes.
pub(crate) fn names(choices: &[Choice]) -> Vec<&str> {
    choices.iter().map(|it| it.name.as_str()).collect()
}

/// `name` below `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    match (path, name) {
        (one, "") | ("", one) => one.to_owned(),
        (path, name) => format!("{path}.{name}"),
    }
}

struct Walk<'a> {
    root: &'a Value,
    schema: Schema,
}

impl Walk<'_> {
    fn node(&mut self, place: &Place, node: &Value) {
        let node = self.resolve(node);
        let default = node.get("default").cloned().or(place.default.clone());
        let default = default.filter(|it| !it.is_null());

        if place.depth > DEPTH {
            return self.field(place, Kind::Json, &node, default);
        }
        if let Some(choices) = texts(&node) {
            return self.field(place, Kind::Choice(choices), &node, default);
        }
        if let Some(variants) = variants(&node) {
            return self.union(place, &node, variants, default);
        }
        let kind = match types(&node)[..] {
            ["string"] => Kind::Text,
            ["integer"] => Kind::Integer,
            ["number"] => Kind::Number,
            ["boolean"] => Kind::Boolean,
            ["object"] => return self.object(place, &node, default),
            _ => Kind::Json,
        };
        self.field(place, kind, &node, default);
    }

    fn object(&mut self, place: &Place, node: &Map<String, Value>, default: Option<Value>) {
        let open = !matches!(
            node.get("additionalProperties"),
            None | Some(Value::Bool(false))
        );
        let properties = match node.get("properties").and_then(Value::as_object) {
            Some(properties) if !properties.is_empty() => properties,
            _ if open => return self.field(place, Kind::Map, node, default),
            _ if place.depth == 0 => return,
            _ => return self.field(place, Kind::Empty, node, default),
        };
        let required: Vec<_> = node
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let bare = place.variant && required.is_empty();
        self.field(place, Kind::Section { bare }, node, default.clone());
        for (name, property) in properties {
            let mut inner = place.property(name, default.as_ref());
            inner.mutable |= is_mutable(node);
            inner.required = required.contains(&name.as_str());
            self.node(&inner, property);
        }
    }

    fn union(
        &mut self,
        place: &Place,
        node: &Map<String, Value>,
        variants: &[Value],
        default: Option<Value>,
    ) {
        let mut choices = Vec::new();
        let mut objects = Vec::new();
        for variant in variants {
            let variant = self.resolve(variant);
            if let Some(texts) = texts(&variant) {
                choices.extend(texts);
            } else if let Some((name, property)) = only_property(&variant) {
                let description = text(&variant, "description").to_owned();
                objects.push((name.clone(), property.clone(), description));
            } else {
                return self.field(place, Kind::Json, node, default);
            }
        }
        let kind = match choices.is_empty() {
            true => Kind::Section { bare: false },
            false => Kind::Choice(choices),
        };
        self.field(place, kind, node, default.clone());
        if objects.is_empty() {
            return;
        }
        self.schema.unions.push(Union {
            path: place.path.clone(),
            variants: objects.iter().map(|(name, ..)| name.clone()).collect(),
        });
        for (name, property, description) in objects {
            let mut inner = place.property(&name, default.as_ref());
            inner.variant = true;
            inner.mutable |= is_mutable(node);
            let mut property = self.resolve(&property);
            if !description.is_empty() {
                property.insert("description".to_owned(), description.into());
            }
            self.node(&inner, &property.into());
        }
    }

    fn field(
        &mut self,
        place: &Place,
        kind: Kind,
        node: &Map<String, Value>,
        default: Option<Value>,
    ) {
        // The configuration itself is what `--config` gives.
        if !place.path.is_empty() {
            self.schema.fields.push(Field {
                path: place.path.clone(),
                kind,
                description: paragraphs(text(node, "description")),
                default,
                required: place.required,
                mutable: place.mutable || is_mutable(node),
            });
        }
    }

    /// `node` with all that it refers to. What stands beside a reference is about this place, and wins.
    fn resolve(&self, node: &Value) -> Map<String, Value> {
        let mut node = node.as_object().cloned().unwrap_or_default();
        for _ in 0..DEPTH {
            let Some(inner) = self.reference(&mut node) else {
                break;
            };
            for (key, value) in inner {
                node.entry(key).or_insert(value);
            }
        }
        node
    }

    /// Takes out of `node` what stands for another node: a `$ref`, all of one, or one or null, since absent says the same
    /// as null. One of one is a union all the same: the name of its variant has to be given.
    fn reference(&self, node: &mut Map<String, Value>) -> Option<Map<String, Value>> {
        if let Some(Value::String(reference)) = node.remove("$ref") {
            let inner = self.root.pointer(reference.strip_prefix('#')?)?;
            return inner.as_object().cloned();
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            let alternatives = node.get(key).and_then(Value::as_array);
            let mut others = alternatives.into_iter().flatten().filter(|it| !is_null(it));
            if let (Some(Value::Object(only)), None) = (others.next(), others.next())
                && (key != "oneOf" || only_property(only).is_none())
            {
                let only = only.clone();
                node.remove(key);
                return Some(only);
            }
        }
        None
    }
}

fn is_null(node: &Value) -> bool {
    node.get("type") == Some(&json!("null")) || node.get("const") == Some(&Value::Null)
}

/// The mark of what can change while the device lives, and all that is below it.
fn is_mutable(node: &Map<String, Value>) -> bool {
    node.get("x-vfu-mutable") == Some(&Value::Bool(true))
}

fn text<'a>(node: &'a Map<String, Value>, key: &str) -> &'a str {
    node.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Joins the lines of each paragraph: they were broken for another width.
fn paragraphs(text: &str) -> String {
    let join = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    text.split("\n\n")
        .map(join)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// The types of a node, without null.
fn types(node: &Map<String, Value>) -> Vec<&str> {
    match node.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .filter(|name| *name != "null")
            .collect(),
        _ if node.contains_key("properties") => vec!["object"],
        _ => Vec::new(),
    }
}

/// The texts that a node allows, when it allows only certain texts.
fn texts(node: &Map<String, Value>) -> Option<Vec<Choice>> {
    let choice = |value: &Value, description: &str| {
        Some(Choice {
            name: value.as_str()?.to_owned(),
            description: paragraphs(description),
        })
    };
    if let Some(only) = node.get("const") {
        return Some(vec![choice(only, text(node, "description"))?]);
    }
    let values = node.get("enum")?.as_array()?;
    let values = values.iter().filter(|it| !it.is_null());
    values.map(|it| choice(it, "")).collect()
}

fn variants(node: &Map<String, Value>) -> Option<&[Value]> {
    let list = node.get("oneOf").or_else(|| node.get("anyOf"))?;
    list.as_array().map(Vec::as_slice)
}

fn only_property(node: &Map<String, Value>) -> Option<(&String, &Value)> {
    let properties = node.get("properties")?.as_object()?;
    properties.iter().next().filter(|_| properties.len() == 1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The schema of a card as Rust types make it.
    pub(crate) fn card() -> Schema {
        Schema::new("e1000", &document())
    }

    pub(crate) fn document() -> Value {
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Config",
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "mac": {
                    "description": "Address of the card.\nMade from the\nid when absent.\n\nLocally administered.",
                    "type": ["string", "null"],
                    "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$",
                    "default": null
                },
                "net": {
                    "description": "What is at the other end of the cable.",
                    "$ref": "#/$defs/Net",
                    "default": {"null": {}}
                },
                "queues": {"type": "integer", "default": 4, "description": "Queues.", "x-vfu-mutable": true},
                "fast": {"type": "boolean", "default": false},
                "limit": {"anyOf": [{"$ref": "#/$defs/Limit"}, {"type": "null"}], "x-vfu-mutable": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "rest": {"type": "array", "items": {"type": "string"}}
            },
            "$defs": {
                "Net": {
                    "oneOf": [
                        {
                            "description": "A TAP interface of the host.",
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["tap"],
                            "properties": {"tap": {"$ref": "#/$defs/Tap"}}
                        },
                        {
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["stream"],
                            "properties": {"stream": {
                                "type": "object",
                                "required": ["path", "mode"],
                                "properties": {
                                    "path": {"type": "string", "description": "Path of the socket."},
                                    "mode": {"$ref": "#/$defs/Mode"}
                                }
                            }}
                        },
                        {
                            "description": "Sends every frame back.",
                            "type": "object",
                            "required": ["loopback"],
                            "properties": {"loopback": {"type": "object", "additionalProperties": false}}
                        },
                        {
                            "description": "Drops every frame.",
                            "type": "object",
                            "required": ["null"],
                            "properties": {"null": {"type": "object"}}
                        }
                    ]
                },
                "Tap": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "ifname": {"type": ["string", "null"], "description": "Name of the interface."},
                        "bridge": {"type": ["string", "null"]}
                    }
                },
                "Mode": {"oneOf": [
                    {"const": "connect", "type": "string", "description": "Connects."},
                    {"const": "listen", "type": "string"}
                ]},
                "Limit": {
                    "type": "object",
                    "properties": {"rate": {"type": "number"}, "burst": {"type": ["integer", "null"]}}
                }
            }
        })
    }

    fn choice(name: &str, description: &str) -> Choice {
        Choice {
            name: name.to_owned(),
            description: description.to_owned(),
        }
    }

    fn kinds(schema: &Schema) -> Vec<(&str, &Kind)> {
        let fields = schema.fields.iter();
        fields.map(|it| (it.path.as_str(), &it.kind)).collect()
    }

    #[test]
    fn every_field_is_found_with_its_kind() {
        let modes = Kind::Choice(vec![choice("connect", "Connects."), choice("listen", "")]);
        assert_eq!(
            kinds(&card()),
            [
                ("fast", &Kind::Boolean),
                ("labels", &Kind::Map),
                ("limit", &Kind::Section { bare: false }),
                ("limit.burst", &Kind::Integer),
                ("limit.rate", &Kind::Number),
                ("mac", &Kind::Text),
                ("net", &Kind::Section { bare: false }),
                ("net.tap", &Kind::Section { bare: true }),
                ("net.tap.bridge", &Kind::Text),
                ("net.tap.ifname", &Kind::Text),
                ("net.stream", &Kind::Section { bare: false }),
                ("net.stream.mode", &modes),
                ("net.stream.path", &Kind::Text),
                ("net.loopback", &Kind::Empty),
                ("net.null", &Kind::Empty),
                ("queues", &Kind::Integer),
                ("rest", &Kind::Json),
            ]
        );
    }

    #[test]
    fn unions_know_their_variants() {
        let card = card();
        assert_eq!(card.unions.len(), 1);
        assert_eq!(card.unions[0].path, "net");
        assert_eq!(
            card.unions[0].variants,
            ["tap", "stream", "loopback", "null"]
        );
    }

    #[test]
    fn descriptions_defaults_and_requirements_come_along() {
        let card = card();
        let field = |path| card.field(path).unwrap();
        assert_eq!(
            field("mac").description,
            "Address of the card. Made from the id when absent.\n\nLocally administered."
        );
        assert_eq!(field("mac").default, None);
        assert_eq!(field("net.tap").description, "A TAP interface of the host.");
        assert_eq!(field("net.null").default, Some(json!({})));
        assert_eq!(field("net.loopback").default, None);
        assert_eq!(field("queues").default, Some(json!(4)));
        assert!(field("net.stream.path").required);
        assert!(!field("net.tap.ifname").required);
    }

    #[test]
    fn what_can_change_is_known_and_all_below_it() {
        let card = card();
        let mutable = card.fields.iter().filter(|it| it.mutable);
        let paths: Vec<_> = mutable.map(|it| it.path.as_str()).collect();
        assert_eq!(paths, ["limit", "limit.burst", "limit.rate", "queues"]);
    }

    #[test]
    fn names_without_fields_beside_names_with_fields_are_choices() {
        let schema = Schema::new(
            "m",
            &json!({"type": "object", "properties": {"disk": {"oneOf": [
                {"type": "string", "enum": ["memory", "none"]},
                {"type": "object", "properties": {"file": {"type": "object", "properties": {"path": {"type": "string"}}}}}
            ]}}}),
        );
        let choice = Kind::Choice(vec![choice("memory", ""), choice("none", "")]);
        assert_eq!(
            kinds(&schema),
            [
                ("disk", &choice),
                ("disk.file", &Kind::Section { bare: true }),
                ("disk.file.path", &Kind::Text),
            ]
        );
    }

    #[test]
    fn a_union_of_one_keeps_its_name() {
        let schema = Schema::new(
            "m",
            &json!({"type": "object", "properties": {"disk": {"oneOf": [
                {"type": "object", "properties": {"file": {"type": "object", "properties": {"path": {"type": "string"}}}}}
            ]}}}),
        );
        assert!(schema.field("disk.file.path").is_some());
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = Schema::new(
            "m",
            &json!({
                "$ref": "#/$defs/Node",
                "$defs": {"Node": {"type": "object", "properties": {
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
                }}}
            }),
        );
        assert_eq!(schema.fields.len(), DEPTH + 1);
        assert_eq!(schema.fields[DEPTH].kind, Kind::Json);
        Schema::new("m", &json!({"$ref": "#"}));
    }

    #[test]
    fn what_is_no_schema_has_no_fields() {
        assert!(Schema::new("m", &Value::Null).fields.is_empty());
        assert!(
            Schema::new("m", &json!({"type": "object"}))
                .fields
                .is_empty()
        );
    }

    #[test]
    fn values_are_typed() {
        assert_eq!(Kind::Text.parse("12"), Ok(json!("12")));
        assert_eq!(Kind::Integer.parse("-12"), Ok(json!(-12)));
        assert_eq!(Kind::Number.parse("1.5"), Ok(json!(1.5)));
        assert_eq!(Kind::Json.parse("[1]"), Ok(json!([1])));
        assert_eq!(
            Kind::Integer.parse("many"),
            Err("`many` is not a whole number".into())
        );
        let choice = Kind::Choice(vec![choice("connect", ""), choice("listen", "")]);
        assert_eq!(
            choice.parse("call"),
            Err("`call` is not one of connect, listen".into())
        );
        assert_eq!(
            Kind::Boolean.parse("yes"),
            Err("`yes` is not true or false".into())
        );
    }
}
