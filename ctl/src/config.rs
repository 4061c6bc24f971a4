//! From flags to a configuration.
//!
//! A field of the schema can be given as a flag of its own (`--net.tap.ifname vfu0`) or through `--set
//! net.tap.ifname=vfu0`; both end as an [`Assignment`]. Assignments are laid over what `--config` gives. Two of them that
//! can't both hold are an error that names both: the order on a command line should not decide what a device is.

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{PossibleValue, PossibleValuesParser},
};
use serde_json::{Map, Value, json};

use crate::{
    error::Error,
    schema::{Field, Kind, Schema, join, scalar},
};

/// How like a known name an unknown one must be to be taken for a slip.
const LIKENESS: f64 = 0.6;

/// One field with its value, and the words of the command line that gave it.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    /// As typed, for messages.
    pub(crate) origin: String,
    /// Path of the field.
    pub(crate) path: String,
    /// Its value.
    pub(crate) value: Value,
}

/// Adds the model's flags to `vfuctl create`.
pub(crate) fn add_flags(command: Command, schema: &Schema) -> Command {
    let heading = format!("Configuration of {}", schema.model);
    let taken: Vec<String> = command
        .get_arguments()
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .chain(["endpoint", "help", "output", "timeout"].map(str::to_owned))
        .collect();
    let fields = schema.fields.iter().filter(|field| field.has_flag());
    // A field named like a flag of vfuctl is left to `--set`.
    let fields = fields.filter(|field| !taken.contains(&field.path));
    command.args(fields.map(|field| flag(field).help_heading(heading.clone())))
}

fn flag(field: &Field) -> Arg {
    let kind = field.kind.clone();
    let arg = Arg::new(id(&field.path)).long(field.path.clone());
    let arg = match &field.kind {
        Kind::Choice(choices) => {
            let values = choices.iter().map(|it| match it.description.as_str() {
                "" => PossibleValue::new(it.name.clone()),
                description => PossibleValue::new(it.name.clone()).help(description.to_owned()),
            });
            arg.value_parser(PossibleValuesParser::new(values))
        }
        Kind::Empty | Kind::Section { .. } => arg.action(ArgAction::SetTrue),
        _ => arg.value_parser(move |text: &str| kind.parse(text).map(|_| text.to_owned())),
    };
    let arg = match &field.kind {
        Kind::Empty | Kind::Section { .. } => arg,
        Kind::Boolean => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Integer | Kind::Number => arg.allow_negative_numbers(true),
        _ => arg,
    };
    let name = match field.kind.name() {
        "" => arg,
        name => arg.value_name(name),
    };
    let short = field.description.split("\n\n").next().unwrap_or_default();
    let long = [field.description.as_str(), &notes(field)].join(" ");
    name.help([short, &notes(field)].join(" ").trim().to_owned())
        .long_help(long.trim().to_owned())
}

/// What there is to know about a field beyond its description.
fn notes(field: &Field) -> String {
    let mut notes = Vec::new();
    match &field.default {
        Some(_) if field.kind == Kind::Empty => notes.push("[default]".to_owned()),
        Some(Value::Object(_)) | None => {}
        Some(default) => notes.push(format!("[default: {}]", plain(default))),
    }
    if field.mutable {
        notes.push("[changes by update]".to_owned());
    }
    match field.path.rsplit_once('.') {
        Some((parent, _)) if field.required => notes.push(format!("[required with {parent}]")),
        None if field.required => notes.push("[required]".to_owned()),
        _ => {}
    }
    notes.join(" ")
}

/// A value as one would type it.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The clap id of a field, apart from those of vfuctl's own flags.
fn id(path: &str) -> String {
    format!("config.{path}")
}

/// What the model's flags say.
pub(crate) fn from_flags(matches: &ArgMatches, schema: &Schema) -> Result<Vec<Assignment>, Error> {
    let mut assignments = Vec::new();
    for field in schema.fields.iter().filter(|field| field.has_flag()) {
        // A field without flag of its own is unknown to clap.
        let Ok(Some(_)) = matches
            .try_contains_id(&id(&field.path))
            .map(|it| it.then_some(()))
        else {
            continue;
        };
        let value = match field.kind {
            Kind::Empty | Kind::Section { .. } => {
                if !matches.get_flag(&id(&field.path)) {
                    continue;
                }
                json!({})
            }
            _ => {
                let Some(text) = matches.get_one::<String>(&id(&field.path)) else {
                    continue;
                };
                field.kind.parse(text).map_err(Error::Usage)?
            }
        };
        assignments.push(Assignment {
            origin: format!("--{}", field.path),
            path: field.path.clone(),
            value,
        });
    }
    Ok(assignments)
}

/// What one `--set` says: `a.b=value`, or `a.b` alone for a field that needs no value.
pub(crate) fn from_set(text: &str, schema: &Schema) -> Result<Assignment, Error> {
    let origin = format!("--set {text}");
    let (path, value) = match text.split_once('=') {
        Some((path, value)) => (path, Some(value)),
        None => (text, None),
    };
    let Some(field) = schema.field(path) else {
        return match value {
            Some(value) if schema.is_member(path) => Ok(Assignment {
                path: path.to_owned(),
                value: scalar(value),
                origin,
            }),
            _ => Err(Error::Usage(unknown(&origin, path, schema))),
        };
    };
    let value = match value {
        Some(value) => field
            .kind
            .parse(value)
            .map_err(|why| Error::Usage(format!("{origin}: {why}")))?,
        None => field.kind.bare().ok_or_else(|| {
            Error::Usage(format!("{origin}: {path} needs a value: --set {path}=..."))
        })?,
    };
    Ok(Assignment {
        origin,
        path: path.to_owned(),
        value,
    })
}

fn unknown(origin: &str, path: &str, schema: &Schema) -> String {
    let model = &schema.model;
    let known = schema.fields.iter().filter(|field| field.has_flag());
    let known: Vec<_> = known.map(|field| field.path.as_str()).collect();
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, path);
    let near = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .filter(|name| likeness(name) > LIKENESS);
    let hint = match near {
        Some(near) => format!("; did you mean {near}?"),
        None => String::new(),
    };
    match known[..] {
        [] => format!("{origin}: model {model} has no configuration"),
        _ => format!(
            "{origin}: model {model} has no field {path}{hint} (it has {})",
            known.join(", ")
        ),
    }
}

/// Lays `assignments` over `base`.
pub(crate) fn assemble(
    base: Map<String, Value>,
    assignments: Vec<Assignment>,
    schema: &Schema,
) -> Result<Map<String, Value>, Error> {
    let mut leaves = Vec::new();
    for assignment in assignments {
        expand(assignment, &mut leaves);
    }
    for (index, later) in leaves.iter().enumerate() {
        for earlier in &leaves[..index] {
            compatible(earlier, later, schema)?;
        }
    }
    let mut config = base;
    for leaf in leaves {
        insert(&mut config, "", &leaf.path, leaf.value, schema);
    }
    Ok(config)
}

/// A changed configuration, and the paths of what is different in it.
#[derive(Debug, PartialEq)]
pub(crate) struct Changed {
    pub(crate) config: Map<String, Value>,
    /// What was set or unset, or the place of the choice that it belongs to: one variant takes the place of another.
    pub(crate) paths: Vec<String>,
}

/// Lays what `--set` and `--unset` say over `base`.
pub(crate) fn change(
    base: Map<String, Value>,
    set: &[String],
    unset: &[String],
    schema: &Schema,
) -> Result<Changed, Error> {
    let set = set.iter().map(|text| from_set(text, schema));
    let set = set.collect::<Result<Vec<_>, _>>()?;
    for path in unset {
        let origin = format!("--unset {path}");
        if schema.field(path).is_none() {
            return Err(Error::Usage(unknown(&origin, path, schema)));
        }
        let overlaps = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}."));
        if let Some(set) = set
            .iter()
            .find(|set| overlaps(&set.path, path) || overlaps(path, &set.path))
        {
            return Err(Error::Usage(format!(
                "{} and {origin} exclude each other",
                set.origin
            )));
        }
    }
    let named = set.iter().map(|it| it.path.as_str());
    let named = named.chain(unset.iter().map(String::as_str));
    let mut paths: Vec<_> = named.map(|path| whole(path, schema).to_owned()).collect();
    paths.sort();
    paths.dedup();
    let mut config = assemble(base, set, schema)?;
    for path in unset {
        remove(&mut config, path);
    }
    Ok(Changed { config, paths })
}

/// The outermost choice that `path` is in, or `path`.
fn whole<'a>(path: &'a str, schema: &'a Schema) -> &'a str {
    let places = schema.unions.iter().map(|union| union.path.as_str());
    let holds = |place: &&str| {
        let rest = path.strip_prefix(place);
        rest.is_some_and(|rest| place.is_empty() || rest.starts_with('.'))
    };
    places
        .filter(holds)
        .min_by_key(|it| it.len())
        .unwrap_or(path)
}

fn remove(object: &mut Map<String, Value>, path: &str) {
    match path.split_once('.') {
        None => {
            object.remove(path);
        }
        Some((name, rest)) => {
            if let Some(Value::Object(inner)) = object.get_mut(name) {
                remove(inner, rest);
            }
        }
    }
}

/// Splits an object into its fields, so that `--set net={"tap":{}}` meets `--net.null` where it contradicts it.
fn expand(assignment: Assignment, leaves: &mut Vec<Assignment>) {
    match assignment.value {
        Value::Object(object) if !object.is_empty() => {
            for (name, value) in object {
                let inner = Assignment {
                    origin: assignment.origin.clone(),
                    path: join(&assignment.path, &name),
                    value,
                };
                expand(inner, leaves);
            }
        }
        _ => leaves.push(assignment),
    }
}

fn compatible(a: &Assignment, b: &Assignment, schema: &Schema) -> Result<(), Error> {
    if a.path == b.path {
        return match a.value == b.value {
            true => Ok(()),
            false => Err(Error::Usage(format!(
                "{} and {} give {} two values",
                a.origin, b.origin, a.path
            ))),
        };
    }
    for union in &schema.unions {
        let chosen = |path: &str| {
            let path = match union.path.as_str() {
                "" => Some(path),
                place => path.strip_prefix(place)?.strip_prefix('.'),
            };
            let name = path?.split('.').next()?;
            union.variants.iter().position(|it| it == name)
        };
        if let (Some(one), Some(other)) = (chosen(&a.path), chosen(&b.path))
            && one != other
        {
            return Err(Error::Usage(format!(
                "{} and {} exclude each other: {} is one of {}",
                a.origin,
                b.origin,
                if union.path.is_empty() {
                    "the configuration"
                } else {
                    &union.path
                },
                union.variants.join(", ")
            )));
        }
    }
    let holds = |outer: &Assignment, inner: &Assignment| {
        let rest = inner.path.strip_prefix(&outer.path);
        rest.is_some_and(|rest| rest.starts_with('.')) && !outer.value.is_object()
    };
    if holds(a, b) || holds(b, a) {
        return Err(Error::Usage(format!(
            "{} and {} exclude each other",
            a.origin, b.origin
        )));
    }
    Ok(())
}

/// Puts `value` at `path` below `object`, which is at `place`. A variant replaces the one that `--config` chose.
fn insert(object: &mut Map<String, Value>, place: &str, path: &str, value: Value, schema: &Schema) {
    let (name, rest) = match path.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (path, None),
    };
    if let Some(union) = schema.unions.iter().find(|it| it.path == place)
        && union.variants.iter().any(|it| it == name)
    {
        object.retain(|key, _| key == name || !union.variants.contains(key));
    }
    let slot = object.entry(name).or_insert(Value::Null);
    let place = join(place, name);
    match rest {
        None if value == json!({}) && slot.is_object() => {}
        None => *slot = value,
        Some(rest) => {
            if !slot.is_object() {
                *slot = json!({});
            }
            if let Value::Object(inner) = slot {
                insert(inner, &place, rest, value, schema);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::card;

    fn parse(words: &[&str]) -> Result<Vec<Assignment>, String> {
        let schema = card();
        let command = add_flags(Command::new("create").no_binary_name(true), &schema);
        let matches = command
            .try_get_matches_from(words)
            .map_err(|error| error.to_string())?;
        from_flags(&matches, &schema).map_err(|error| error.to_string())
    }

    fn config(base: Value, flags: &[&str], sets: &[&str]) -> Result<Value, String> {
        let schema = card();
        let mut assignments = parse(flags)?;
        for set in sets {
            assignments.push(from_set(set, &schema).map_err(|error| error.to_string())?);
        }
        let Value::Object(base) = base else { panic!() };
        assemble(base, assignments, &schema)
            .map(Value::Object)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn flags_make_the_configuration() {
        let flags = [
            "--mac",
            "52:54:00:12:34:56",
            "--net.tap.ifname=vfu0",
            "--queues",
            "-1",
            "--fast",
        ];
        assert_eq!(
            config(json!({}), &flags, &[]).unwrap(),
            json!({
                "mac": "52:54:00:12:34:56",
                "net": {"tap": {"ifname": "vfu0"}},
                "queues": -1,
                "fast": true
            })
        );
    }

    #[test]
    fn nothing_given_is_nothing() {
        assert_eq!(config(json!({}), &[], &[]).unwrap(), json!({}));
    }

    #[test]
    fn set_means_the_same_as_the_flag() {
        let sets = [
            "net.stream.path=/x.sock",
            "net.stream.mode=listen",
            "fast",
            "queues=2",
        ];
        let flags = [
            "--net.stream.path=/x.sock",
            "--net.stream.mode=listen",
            "--fast",
            "--queues=2",
        ];
        assert_eq!(
            config(json!({}), &[], &sets).unwrap(),
            config(json!({}), &flags, &[]).unwrap()
        );
    }

    #[test]
    fn a_variant_without_fields_is_chosen_by_its_name() {
        let loopback = json!({"net": {"loopback": {}}});
        assert_eq!(
            config(json!({}), &["--net.loopback"], &[]).unwrap(),
            loopback
        );
        assert_eq!(config(json!({}), &[], &["net.loopback"]).unwrap(), loopback);
        assert_eq!(
            config(json!({}), &[], &["net.loopback={}"]).unwrap(),
            loopback
        );
    }

    #[test]
    fn a_variant_with_optional_fields_is_chosen_by_its_name() {
        let flags = ["--net.tap", "--net.tap.bridge", "br0"];
        assert_eq!(
            config(json!({}), &["--net.tap"], &[]).unwrap(),
            json!({"net": {"tap": {}}})
        );
        assert_eq!(
            config(json!({}), &flags, &[]).unwrap(),
            json!({"net": {"tap": {"bridge": "br0"}}})
        );
    }

    #[test]
    fn sections_and_the_rest_take_json() {
        assert_eq!(
            config(
                json!({}),
                &["--rest", r#"["a"]"#],
                &[r#"net={"tap":{"ifname":"vfu0"}}"#]
            )
            .unwrap(),
            json!({"net": {"tap": {"ifname": "vfu0"}}, "rest": ["a"]})
        );
    }

    #[test]
    fn members_of_an_open_object_are_given_by_themselves() {
        let set = ["labels.a=x,y", "labels.b=7", "labels.c=true", "labels.d=07"];
        assert_eq!(
            config(json!({}), &[], &set).unwrap(),
            json!({"labels": {"a": "x,y", "b": 7, "c": true, "d": "07"}})
        );
        let error = config(json!({}), &[], &["labels.=x"]).unwrap_err();
        assert!(error.contains("no field labels."), "{error}");
        let error = config(json!({}), &["--labels={\"a\":1}"], &["labels.a=2"]).unwrap_err();
        assert!(error.contains("labels"), "{error}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let base =
            json!({"mac": "52:54:00:00:00:01", "net": {"stream": {"path": "/x"}}, "queues": 8});
        assert_eq!(
            config(base, &["--net.tap.ifname=vfu0"], &["queues=2"]).unwrap(),
            json!({"mac": "52:54:00:00:00:01", "net": {"tap": {"ifname": "vfu0"}}, "queues": 2})
        );
    }

    #[test]
    fn two_variants_exclude_each_other() {
        assert_eq!(
            config(json!({}), &["--net.tap.ifname=vfu0", "--net.loopback"], &[]).unwrap_err(),
            "--net.tap.ifname and --net.loopback exclude each other: net is one of tap, stream, loopback, null"
        );
        assert_eq!(
            config(json!({}), &["--net.tap"], &[r#"net={"null":{}}"#]).unwrap_err(),
            "--net.tap and --set net={\"null\":{}} exclude each other: net is one of tap, stream, loopback, null"
        );
    }

    #[test]
    fn one_field_has_one_value() {
        assert_eq!(
            config(json!({}), &["--queues=1"], &["queues=2"]).unwrap_err(),
            "--queues and --set queues=2 give queues two values"
        );
        assert_eq!(
            config(json!({}), &["--queues=1"], &["queues=1"]).unwrap(),
            json!({"queues": 1})
        );
    }

    #[test]
    fn an_unknown_field_is_named_with_the_known_ones() {
        let error = config(json!({}), &[], &["net.tap.ifnam=vfu0"]).unwrap_err();
        assert!(
            error.starts_with(
                "--set net.tap.ifnam=vfu0: model e1000 has no field net.tap.ifnam; did you mean net.tap.ifname? (it has "
            ),
            "{error}"
        );
        let error = config(json!({}), &[], &["colour=red"]).unwrap_err();
        assert!(error.contains("no field colour (it has fast, "), "{error}");
        let error = config(json!({}), &["--net.tap.ifnam=vfu0"], &[]).unwrap_err();
        assert!(error.contains("'--net.tap.ifname'"), "{error}");
    }

    #[test]
    fn a_wrong_type_is_named() {
        let error = config(json!({}), &[], &["queues=many"]).unwrap_err();
        assert_eq!(error, "--set queues=many: `many` is not a whole number");
        let error = config(json!({}), &["--queues=many"], &[]).unwrap_err();
        assert!(
            error.contains("--queues") && error.contains("whole number"),
            "{error}"
        );
        let error = config(json!({}), &["--net.stream.mode=call"], &[]).unwrap_err();
        assert!(
            error.contains("possible values: connect, listen"),
            "{error}"
        );
        let error = config(json!({}), &[], &["mac"]).unwrap_err();
        assert_eq!(error, "--set mac: mac needs a value: --set mac=...");
    }

    #[test]
    fn help_lists_the_fields() {
        let command = add_flags(Command::new("create"), &card());
        let help = command.term_width(100).render_help().to_string();
        for line in [
            "Configuration of e1000:",
            "      --mac <STRING>              Address of the card. Made from the id when absent.",
            "      --net.tap                   A TAP interface of the host.",
            "      --net.stream.path <STRING>  Path of the socket. [required with net.stream]",
            "      --net.null                  Drops every frame. [default]",
            "      --queues <INTEGER>          Queues. [default: 4] [changes by update]",
            "      --fast[=<BOOLEAN>]          [default: false]",
        ] {
            assert!(help.lines().any(|it| it == line), "no `{line}` in\n{help}");
        }
    }

    #[test]
    fn a_field_named_like_a_flag_of_ours_is_left_to_set() {
        let schema = Schema::new(
            "m",
            &json!({"type": "object", "properties": {"output": {"type": "string"}}}),
        );
        let command = add_flags(Command::new("create"), &schema);
        let matches = command.try_get_matches_from(["create"]).unwrap();
        assert!(from_flags(&matches, &schema).unwrap().is_empty());
        assert!(from_set("output=x", &schema).is_ok());
    }

    fn changed(set: &[&str], unset: &[&str]) -> Result<(Value, Vec<String>), String> {
        let Value::Object(base) =
            json!({"queues": 2, "net": {"tap": {"ifname": "a", "bridge": "b"}}})
        else {
            panic!()
        };
        let texts = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let changed = change(base, &texts(set), &texts(unset), &card());
        changed
            .map(|it| (it.config.into(), it.paths))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_change_says_what_is_different_and_keeps_the_rest() {
        let tap = json!({"ifname": "a", "bridge": "b"});
        let (config, paths) = changed(&["queues=3"], &["mac"]).unwrap();
        assert_eq!(config, json!({"queues": 3, "net": {"tap": tap}}));
        assert_eq!(paths, ["mac", "queues"]);
        let (config, _) = changed(&[], &["queues"]).unwrap();
        assert_eq!(config, json!({"net": {"tap": tap}}));
    }

    #[test]
    fn a_choice_changes_as_a_whole() {
        let (config, paths) = changed(&["net.loopback"], &[]).unwrap();
        assert_eq!(config, json!({"queues": 2, "net": {"loopback": {}}}));
        assert_eq!(paths, ["net"]);
        let (config, paths) = changed(&["net.tap.ifname=c"], &["net.tap.bridge"]).unwrap();
        assert_eq!(
            config,
            json!({"queues": 2, "net": {"tap": {"ifname": "c"}}})
        );
        assert_eq!(paths, ["net"]);
    }

    #[test]
    fn what_is_unset_is_known_and_not_set_too() {
        assert!(
            changed(&[], &["queue"])
                .unwrap_err()
                .contains("did you mean queues?")
        );
        for (set, unset) in [
            ("queues=3", "queues"),
            ("net.tap.ifname=c", "net"),
            ("net={\"tap\":{}}", "net.tap.ifname"),
        ] {
            let why = changed(&[set], &[unset]).unwrap_err();
            assert!(why.contains("exclude each other"), "{why}");
        }
    }
}
