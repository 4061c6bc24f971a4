//! A description file: one model that another program serves.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::Value;

use super::external::{External, Readiness};
use super::require::Requirement;
use super::template::{Template, Written};
use crate::models::model::Model;
use crate::mutable;
use crate::schema::quoted;

const MAX_FILE_BYTES: u64 = 256 << 10;
/// The longest text that tells readiness.
const MAX_LINE_BYTES: usize = 256;
const VERSION: u32 = 1;
const NAME_RULE: &str =
    "1 to 63 lower-case letters, digits and hyphens; the first is a letter, the last no hyphen";

/// A file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    name: String,
    description: String,
    #[serde(default)]
    runtime: Option<String>,
    #[serde(default)]
    vendor_id: u16,
    #[serde(default)]
    device_id: u16,
    #[serde(default)]
    class_code: u32,
    command: Vec<Written>,
    config_schema: Value,
    readiness: Readiness,
    #[serde(default)]
    monitor: Option<Protocol>,
    #[serde(default)]
    requires: Vec<Requirement>,
    /// Whether it may end when its client goes. It is started again then, as if that were no end.
    #[serde(default)]
    ends_with_client: bool,
    #[serde(default)]
    cannot: Vec<Ability>,
}

/// What a program's monitor speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Protocol {
    /// The QEMU Machine Protocol.
    Qmp,
}

/// What a device can be asked for that not every program can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ability {
    /// ResetDevice.
    Reset,
    /// UpdateDevice of the configuration.
    Update,
    /// Counters.
    Stats,
    /// UnplugDevice by the client's request.
    RequestUnplug,
}

impl Ability {
    fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Update => "update",
            Self::Stats => "stats",
            Self::RequestUnplug => "request_unplug",
        }
    }
}

/// What no program can do that is not vfu's own.
const NEVER: [Ability; 3] = [Ability::Update, Ability::Stats, Ability::RequestUnplug];

/// The model that a file describes, or what is wrong with the file and what would be right.
pub(super) fn read(path: &Path) -> Result<Model, String> {
    let text = contents(path)?;
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let file: File =
        serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            match error.path().to_string().as_str() {
                "." => error.inner().to_string(),
                place => format!("{place}: {}", error.inner()),
            }
        })?;
    reader.end().map_err(|error| error.to_string())?;
    file.check(path)
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    // What looks like a file may be a pipe that nobody writes to.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| format!("can't be opened: {error}; let the agent's user read it"))?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a regular file; remove it".to_owned());
    }
    // Who can write it chooses what the agent runs.
    let owner = metadata.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(format!(
            "belongs to user {owner}, who could make the agent run anything; chown it to root"
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "has mode {:03o}: others could make the agent run anything; chmod go-w it",
            metadata.mode() & 0o777
        ));
    }
    let mut text = Vec::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text);
    read.map_err(|error| error.to_string())?;
    match text.len() as u64 {
        ..=MAX_FILE_BYTES => Ok(text),
        _ => Err(format!("is longer than {MAX_FILE_BYTES} bytes; shorten it")),
    }
}

impl File {
    fn check(self, path: &Path) -> Result<Model, String> {
        let version = self.version;
        if version != VERSION {
            return Err(format!(
                "version: {version} is unknown to this agent; it reads {VERSION}"
            ));
        }
        if !is_name(&self.name) {
            return Err(format!("name: {} is not {NAME_RULE}", quoted(&self.name)));
        }
        if self.class_code > 0xff_ffff {
            return Err("class_code: has more than 24 bits".to_owned());
        }
        if self.config_schema.get("type") != Some(&Value::from("object")) {
            return Err("config_schema: must have \"type\": \"object\"".to_owned());
        }
        if has_key(&self.config_schema, mutable::KEYWORD) {
            let keyword = mutable::KEYWORD;
            return Err(format!(
                "config_schema: {keyword} promises what the program can't do; leave it out"
            ));
        }
        let Some((Written::Argument(program), written)) = self.command.split_first() else {
            return Err("command: its first element must be the program".to_owned());
        };
        if program.contains(['{', '}', '[', ']', '\0']) || program.is_empty() {
            return Err(
                "command[0]: must be a program's path or name, the same for all devices".to_owned(),
            );
        }
        let template =
            Template::new(written, &self.config_schema).map_err(|why| format!("command: {why}"))?;
        match &self.readiness {
            Readiness::Fd if !template.has_fd() => {
                return Err("readiness: \"fd\" takes an argument with {fd}".to_owned());
            }
            Readiness::Socket | Readiness::Line(_) if !template.has_socket() => {
                return Err(
                    "readiness: a program that binds its socket takes an argument with {socket}"
                        .to_owned(),
                );
            }
            Readiness::Socket | Readiness::Line(_) if template.has_fd() => {
                return Err(
                    "command: {fd} is there with readiness \"fd\" only; use {socket}".to_owned(),
                );
            }
            Readiness::Line(text) if text.is_empty() || text.len() > MAX_LINE_BYTES => {
                return Err(format!(
                    "readiness.line: must have 1 to {MAX_LINE_BYTES} bytes"
                ));
            }
            _ => {}
        }
        let has_monitor = self.monitor.is_some();
        if has_monitor != template.has_monitor() {
            return Err(
                "monitor: goes with an argument that has {monitor}, and the other way round"
                    .to_owned(),
            );
        }
        for (index, requirement) in self.requires.iter().enumerate() {
            let checked = requirement.check();
            checked.map_err(|why| format!("requires[{index}]: {why}"))?;
        }
        let runtime = match self.runtime {
            Some(name) if is_name(&name) => name,
            Some(name) => {
                return Err(format!("runtime: {} is not {NAME_RULE}", quoted(&name)));
            }
            None => self.name.clone(),
        };
        let mut cannot = self.cannot;
        cannot.extend(NEVER);
        cannot.extend((!has_monitor).then_some(Ability::Reset));
        cannot.sort_unstable();
        cannot.dedup();
        let external = External {
            source: path.to_owned(),
            runtime,
            command: program.clone(),
            unsupported: cannot.into_iter().map(Ability::name).collect(),
            readiness: self.readiness,
            has_monitor,
            ends_with_client: self.ends_with_client,
            requires: self.requires,
            template,
        };
        Model::external(
            self.name,
            self.description,
            [
                self.vendor_id.into(),
                self.device_id.into(),
                self.class_code,
            ],
            self.config_schema,
            Arc::new(external),
        )
        .map_err(|why| format!("config_schema: {why}"))
    }
}

/// Whether an object somewhere in the value has this key.
fn has_key(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map.contains_key(key) || map.values().any(|it| has_key(it, key)),
        Value::Array(all) => all.iter().any(|it| has_key(it, key)),
        _ => false,
    }
}

fn is_name(name: &str) -> bool {
    let known = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-';
    name.len() <= 63
        && name.bytes().all(known)
        && name.starts_with(|it: char| it.is_ascii_lowercase())
        && !name.ends_with('-')
}
