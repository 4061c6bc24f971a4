//! The command of a runtime: its arguments, with gaps for what differs between devices.
//!
//! A gap is `{socket}`, `{fd}`, `{monitor}`, `{id}`, `{run_dir}` or a value of the configuration, `{config.net.mac}`. What is in square
//! brackets, as in `e1000[,mac={config.mac}]`, is left out when a value in it is absent; `{"when": "config.net", "args":
//! [..]}` instead of an argument does that for whole arguments. `{{ }} {[} {]}` stand for the characters themselves.
//!
//! Who writes the configuration need not be who may run programs. No shell sees the command, a gap never makes two
//! arguments of one, and a value never begins an argument with `-`. What a program reads into an argument beyond that the
//! template has to say: a plain gap takes only characters that nobody reads anything into, `{config.mac|qemu}` doubles the
//! commas of a QEMU option's value, `{config.mac|json}` writes JSON, `{config.properties|options}` writes an object as
//! `,name=value` for each of its members, and `{config.title|raw}` takes what comes.

mod parse;
mod sure;

use serde::Deserialize;
use serde_json::Value;

use crate::schema::{Violation, quoted};

/// The longest command; the kernel takes no longer argument.
pub(super) const MAX_COMMAND_BYTES: usize = 128 << 10;

/// A template as it is written.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Written {
    Argument(String),
    When(When),
}

/// Arguments for when a value of the configuration is there and not false.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct When {
    when: String,
    args: Vec<Written>,
}

/// What the agent says of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Own<'a> {
    pub(crate) socket: &'a str,
    pub(crate) fd: i32,
    pub(crate) id: &'a str,
    pub(crate) run_dir: &'a str,
    pub(crate) monitor: &'a str,
}

/// A command that can be made for any device.
#[derive(Debug)]
pub(crate) struct Template {
    arguments: Vec<Argument>,
}

#[derive(Debug)]
enum Argument {
    One(Vec<Piece>),
    When(Vec<String>, Vec<Argument>),
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Gap(Source, Form),
    Optional(Vec<Piece>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Socket,
    Fd,
    Id,
    RunDir,
    Monitor,
    Config(Vec<String>),
}

/// How a value is written into its argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Raw,
    Qemu,
    Json,
    Options,
}

impl Template {
    /// A template whose gaps the schema knows, or what is wrong with it and what would be right.
    pub(super) fn new(written: &[Written], schema: &Value) -> Result<Self, String> {
        let mut count = 0;
        let arguments = parse::arguments(written, 0, &mut count)?;
        let template = Self { arguments };
        sure::arguments(&template.arguments, schema, &mut Vec::new())?;
        Ok(template)
    }

    /// Whether the socket's path is in it.
    pub(super) fn has_socket(&self) -> bool {
        self.has(&Source::Socket)
    }

    /// Whether the number of the listening socket is in it.
    pub(super) fn has_fd(&self) -> bool {
        self.has(&Source::Fd)
    }

    /// Whether the monitor's path is in it.
    pub(super) fn has_monitor(&self) -> bool {
        self.has(&Source::Monitor)
    }

    fn has(&self, source: &Source) -> bool {
        fn piece(it: &Piece, source: &Source) -> bool {
            match it {
                Piece::Text(_) => false,
                Piece::Gap(it, _) => it == source,
                Piece::Optional(all) => all.iter().any(|it| piece(it, source)),
            }
        }
        // Those in optional arguments don't count: the program needs it always.
        self.arguments.iter().any(|it| match it {
            Argument::One(pieces) => pieces.iter().any(|it| piece(it, source)),
            Argument::When(..) => false,
        })
    }

    /// The arguments for a device, or every value that can't be in them.
    pub(crate) fn expand(
        &self,
        own: Own<'_>,
        config: &Value,
        schema: &Value,
    ) -> Result<Vec<String>, Vec<Violation>> {
        let mut expansion = Expansion {
            own,
            config,
            schema,
            room: MAX_COMMAND_BYTES,
            bad: Vec::new(),
        };
        let mut arguments = Vec::new();
        expansion.arguments(&self.arguments, &mut arguments);
        match expansion.bad {
            bad if bad.is_empty() => Ok(arguments),
            bad => Err(bad),
        }
    }
}

struct Expansion<'a> {
    own: Own<'a>,
    config: &'a Value,
    schema: &'a Value,
    room: usize,
    bad: Vec<Violation>,
}

/// An argument in the making.
#[derive(Default)]
struct Making<'a> {
    text: String,
    /// The value that it begins with, when it does.
    first: Option<(&'a Source, Form)>,
}

impl<'a> Making<'a> {
    fn push(&mut self, text: &str, from: Option<(&'a Source, Form)>) {
        if self.text.is_empty() && !text.is_empty() {
            self.first = from;
        }
        self.text.push_str(text);
    }
}

impl<'a> Expansion<'a> {
    fn arguments(&mut self, template: &[Argument], arguments: &mut Vec<String>) {
        for argument in template {
            match argument {
                Argument::One(pieces) => arguments.extend(self.argument(pieces)),
                Argument::When(path, inner) => {
                    let value = lookup(self.config, self.schema, path);
                    if value.is_some_and(|it| *it != Value::Bool(false)) {
                        self.arguments(inner, arguments);
                    }
                }
            }
        }
    }

    fn argument(&mut self, pieces: &[Piece]) -> Option<String> {
        let mut making = Making::default();
        self.pieces(pieces, &mut making);
        let Making { text, first } = making;
        if let Some((source, form)) = first {
            if text.starts_with('-') {
                self.refuse(
                    source,
                    "must not begin with -: it would be taken for an option",
                );
            }
            if form == Form::Qemu && text.starts_with('{') {
                self.refuse(source, "must not begin with {: it would be taken for JSON");
            }
        }
        // The zero byte that ends an argument counts too.
        match self.room.checked_sub(text.len() + 1) {
            Some(room) => self.room = room,
            None => {
                let why = format!("makes a command of more than {MAX_COMMAND_BYTES} bytes");
                self.bad.push(Violation::new("", why));
                return None;
            }
        }
        Some(text)
    }

    fn pieces<'t>(&mut self, pieces: &'t [Piece], making: &mut Making<'t>) {
        for piece in pieces {
            match piece {
                Piece::Text(text) => making.push(text, None),
                Piece::Optional(inner) => {
                    if self.is_there(inner) {
                        self.pieces(inner, making);
                    }
                }
                Piece::Gap(source, form) => {
                    if making.text.len() > MAX_COMMAND_BYTES {
                        return;
                    }
                    match self.gap(source, *form) {
                        Ok(text) => making.push(&text, Some((source, *form))),
                        Err(why) => self.refuse(source, &why),
                    }
                }
            }
        }
    }

    /// Whether every value of an optional part is there. Optional parts in it are on their own.
    fn is_there(&self, pieces: &[Piece]) -> bool {
        pieces.iter().all(|piece| match piece {
            Piece::Gap(Source::Config(path), _) => lookup(self.config, self.schema, path).is_some(),
            _ => true,
        })
    }

    fn gap(&self, source: &Source, form: Form) -> Result<String, String> {
        let number;
        let own = match source {
            Source::Socket => self.own.socket,
            Source::Id => self.own.id,
            Source::RunDir => self.own.run_dir,
            Source::Monitor => self.own.monitor,
            Source::Fd => {
                number = self.own.fd.to_string();
                &number
            }
            Source::Config(path) => {
                let value = lookup(self.config, self.schema, path);
                return written(value.ok_or("required")?, form);
            }
        };
        match form {
            // Nobody but the operator of the host has a hand in it.
            Form::Plain => Ok(own.to_owned()),
            form => written(&Value::from(own), form),
        }
    }

    fn refuse(&mut self, source: &Source, why: &str) {
        let field = match source {
            Source::Config(path) => path.join("."),
            _ => String::new(),
        };
        self.bad.push(Violation::new(field, why));
    }
}

/// A value as it is in an argument.
fn written(value: &Value, form: Form) -> Result<String, String> {
    let text = match (value, form) {
        (value, Form::Json) => return Ok(value.to_string()),
        (Value::Object(members), Form::Options) => return options(members),
        (_, Form::Options) => return Err("must be an object".to_owned()),
        (Value::String(text), _) => text.clone(),
        (Value::Number(number), _) => number.to_string(),
        (Value::Bool(yes), _) => yes.to_string(),
        (Value::Null | Value::Array(_) | Value::Object(_), _) => {
            return Err("must be a text, a number or a boolean".to_owned());
        }
    };
    if let Some(bad) = text.chars().find(|it| it.is_control()) {
        return Err(format!("must not have the control character {bad:?}"));
    }
    let plain = |it: char| it.is_alphanumeric() || "._:/+-".contains(it);
    match form {
        Form::Plain => match text.chars().find(|it| !plain(*it)) {
            Some(bad) => Err(format!(
                "must not have {bad:?}: letters, digits and ._:/+- are what the program's command takes"
            )),
            None => Ok(text),
        },
        Form::Qemu => Ok(text.replace(',', ",,")),
        Form::Raw | Form::Json | Form::Options => Ok(text),
    }
}

/// An object as QEMU's options that follow another.
fn options(members: &serde_json::Map<String, Value>) -> Result<String, String> {
    let mut text = String::new();
    for (name, value) in members {
        let known = |it: char| it.is_ascii_alphanumeric() || "._-".contains(it);
        if name.is_empty() || !name.chars().all(known) {
            return Err(format!(
                "{} must have letters, digits and ._- only",
                quoted(name)
            ));
        }
        let value = written(value, Form::Qemu).map_err(|why| format!("{name}: {why}"))?;
        text.push_str(&format!(",{name}={value}"));
    }
    Ok(text)
}

/// A value of the configuration, else the one that the schema has for when it is absent.
fn lookup<'a>(config: &'a Value, schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    let given = path.iter().try_fold(config, |it, key| it.get(key));
    let given = given.filter(|it| !it.is_null());
    given.or_else(|| property(schema, path)?.get("default"))
}

fn property<'a>(schema: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter()
        .try_fold(schema, |it, key| it.get("properties")?.get(key))
}

#[cfg(test)]
mod tests;
