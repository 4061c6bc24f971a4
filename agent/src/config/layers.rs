//! What the file, the environment and the flags say, as a list of keys with their values.

use std::ffi::OsStr;
use std::path::Path;

use serde::Deserialize;
use toml::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::error::Origin;
use super::{Args, Problem, keys};

/// One key that somebody set.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// What it may be: text that is not in a file may be meant as a number or as text.
    pub(super) values: Vec<Value>,
    pub(super) origin: Origin,
}

/// What a file says.
pub(super) fn file(path: &Path, text: &str, bad: &mut Vec<Problem>) -> Vec<Entry> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        bad.extend(errors.iter().map(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            Problem::new("", error.message()).at(position(path, text, offset))
        }));
        return Vec::new();
    }
    let mut entries = Vec::new();
    walk(path, text, "", table.get_ref(), &mut entries, bad);
    entries
}

fn walk(
    path: &Path,
    text: &str,
    section: &str,
    table: &DeTable<'_>,
    entries: &mut Vec<Entry>,
    bad: &mut Vec<Problem>,
) {
    for (name, value) in table {
        let origin = position(path, text, name.span().start);
        let key = match section {
            "" => name.get_ref().to_string(),
            section => format!("{section}.{}", name.get_ref()),
        };
        if keys::is_key(&key) {
            match Value::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(value) => {
                    let values = vec![value];
                    entries.push(Entry {
                        key,
                        values,
                        origin,
                    });
                }
                Err(error) => bad.push(Problem::new(key, error.message()).at(origin)),
            }
        } else if !keys::is_section(&key) {
            let why = keys::unknown(&key);
            bad.push(Problem::new(key, why).at(origin));
        } else if let DeValue::Table(inner) = value.get_ref() {
            walk(path, text, &key, inner, entries, bad);
        } else {
            let why = format!("is a section: expected [{key}] and its keys");
            bad.push(Problem::new(key, why).at(origin));
        }
    }
}

/// Where in a file the byte at `offset` is.
fn position(path: &Path, text: &str, offset: usize) -> Origin {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |it| it + 1);
    let column = before[start..].chars().count() + 1;
    let path = path.to_owned();
    Origin::File { path, line, column }
}

/// What a variable says.
pub(super) fn variable(
    name: &str,
    key: &str,
    text: &OsStr,
    bad: &mut Vec<Problem>,
) -> Option<Entry> {
    let origin = Origin::Variable(name.to_owned());
    match text.to_str() {
        Some(text) => Some(entry(key, text, origin)),
        None => {
            bad.push(Problem::new(key, "is not UTF-8").at(origin));
            None
        }
    }
}

/// What the flags say.
pub(super) fn flags(args: &Args, bad: &mut Vec<Problem>) -> Vec<Entry> {
    let Args {
        config: _,
        set,
        check_config: _,
        run_dir,
        state_dir,
        listen,
        device_program,
        log_format,
        log,
        #[cfg(debug_assertions)]
            steps: _,
    } = args;
    let mut entries = Vec::new();
    for pair in set {
        let origin = Origin::Flag(format!("--set {pair}"));
        match pair.split_once('=') {
            Some((key, text)) if keys::is_key(key) => entries.push(entry(key, text, origin)),
            Some((key, _)) => bad.push(Problem::new(key, keys::unknown(key)).at(origin)),
            None => {
                let why = "expected KEY=VALUE, such as limits.devices=10";
                bad.push(Problem::new("", why).at(origin));
            }
        }
    }
    for (flag, key, path) in [
        ("--run-dir", "run_dir", run_dir),
        ("--state-dir", "state_dir", state_dir),
        ("--device-program", "device_program", device_program),
    ] {
        let Some(path) = path else { continue };
        let origin = Origin::Flag(flag.to_owned());
        match path.to_str() {
            Some(text) => entries.push(as_text(key, text, origin)),
            None => bad.push(Problem::new(key, "is not UTF-8").at(origin)),
        }
    }
    let format = log_format.map(|it| match it {
        super::LogFormat::Text => "text",
        super::LogFormat::Json => "json",
    });
    for (flag, key, text) in [
        ("--listen", "api.listen", listen.as_deref()),
        ("--log-format", "log_format", format),
        ("--log", "log", log.as_deref()),
    ] {
        let origin = Origin::Flag(flag.to_owned());
        entries.extend(text.map(|text| as_text(key, text, origin)));
    }
    entries
}

fn as_text(key: &str, text: &str, origin: Origin) -> Entry {
    Entry {
        key: key.to_owned(),
        values: vec![Value::String(text.to_owned())],
        origin,
    }
}

fn entry(key: &str, text: &str, origin: Origin) -> Entry {
    let mut entry = as_text(key, text, origin);
    let value = ValueDeserializer::parse(text).and_then(Value::deserialize);
    entry.values.extend(value.ok().filter(|it| !it.is_str()));
    entry
}
