//! Putting the layers together, and telling everything that is wrong at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::Deserialize;
use toml::{Table, Value};

use super::layers::{self, Entry};
use super::{Args, Config, Error, Problem, keys};

/// The file that is read when none is named; it need not be there.
const FILE: &str = "/etc/vfu/agent.toml";
/// More than this is no configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Variables of the project's other programs and of its tests.
const OTHERS: &[&str] = &[
    "VFU_BIN_DIR",
    "VFU_CACHE",
    "VFU_CONFIG",
    "VFU_DEBIAN_MIRROR",
    "VFU_DIE_AFTER",
    "VFU_DIE_AT",
    "VFU_ENDPOINT",
    "VFU_HOSTILE_MESSAGES",
    "VFU_REQUIRE",
    "VFU_SEED",
    "VFU_UPDATE",
];

/// Where the configuration comes from. It can be read again.
#[derive(Debug, Clone)]
pub struct Sources {
    args: Args,
    variables: BTreeMap<String, OsString>,
}

/// A configuration that holds together.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is strange, but no reason not to go on.
    pub warnings: Vec<String>,
}

impl Sources {
    /// The flags, and the environment of this process.
    pub fn new(args: Args) -> Self {
        Self::with_variables(args, std::env::vars_os())
    }

    /// The flags, and these variables; only those of the project count.
    pub fn with_variables(
        args: Args,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let variables = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with("VFU_").then_some((name, value))
        });
        let variables = variables.collect();
        Self { args, variables }
    }

    /// The file, and whether it has to be there.
    pub fn file(&self) -> (PathBuf, bool) {
        let named = self.args.config.clone();
        let named = named.or_else(|| Some(self.variables.get("VFU_CONFIG")?.into()));
        match named {
            Some(path) => (path, true),
            None => (FILE.into(), false),
        }
    }

    /// Reads all of it. Touches nothing.
    pub fn load(&self) -> Result<Loaded, Error> {
        let mut bad = Vec::new();
        let mut warnings = Vec::new();
        let mut entries = self.read_file(&mut bad);
        for (name, text) in &self.variables {
            match keys::of_variable(name) {
                Some(key) => entries.extend(layers::variable(name, key, text, &mut bad)),
                None if OTHERS.contains(&&**name) => {}
                // Not an error: Kubernetes makes such variables for each service of the namespace.
                None => {
                    let all = keys::ALL.iter().map(|(key, _)| keys::variable(key));
                    let meant = keys::nearest(name, all);
                    let meant = meant.map_or(String::new(), |it| format!("; did you mean {it}?"));
                    warnings.push(format!("{name} is no variable of the agent's{meant}"));
                }
            }
        }
        entries.extend(layers::flags(&self.args, &mut bad));

        let mut table = Table::new();
        let mut origins = BTreeMap::new();
        for entry in entries {
            match fitting(&entry) {
                Ok(value) => {
                    put(&mut table, &entry.key, Some(value.clone()));
                    origins.insert(entry.key, entry.origin);
                }
                Err(problem) => bad.push(problem),
            }
        }
        let config = Config::deserialize(Value::Table(table));
        let mut config = config.map_err(|error| Error(vec![Problem::new("", error.message())]))?;
        if let Err(error) = config.make_absolute() {
            bad.push(Problem::new(
                "",
                format!("find the current directory: {error}"),
            ));
        }
        let mut unfit = Vec::new();
        config.check(&mut unfit);
        bad.extend(unfit.into_iter().map(|it| {
            let key = it.key.split('[').next().unwrap_or_default();
            match origins.get(key) {
                Some(origin) => it.at(origin.clone()),
                None => it,
            }
        }));
        if !bad.is_empty() {
            return Err(Error(bad));
        }
        Ok(Loaded { config, warnings })
    }

    fn read_file(&self, bad: &mut Vec<Problem>) -> Vec<Entry> {
        let (path, named) = self.file();
        match read(&path) {
            Ok(text) => layers::file(&path, &text, bad),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => Vec::new(),
            Err(error) => {
                bad.push(Problem::new(
                    "",
                    format!("read {}: {error}", path.display()),
                ));
                Vec::new()
            }
        }
    }
}

/// Reads a file that may be anything: a pipe that nobody writes to does not hold the agent up.
fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let why = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::other(why));
    }
    Ok(text)
}

/// The value that the key can have, of those that it may be.
fn fitting(entry: &Entry) -> Result<&Value, Problem> {
    let mut why = None;
    for value in &entry.values {
        let mut table = Table::new();
        put(&mut table, &entry.key, Some(value.clone()));
        match serde_path_to_error::deserialize::<_, Config>(Value::Table(table)) {
            Ok(_) => return Ok(value),
            Err(error) => why = Some((error.path().to_string(), error.into_inner())),
        }
    }
    let (path, why) = why.expect("an entry has a value");
    let mut why = why.message().to_owned();
    let default = Value::try_from(Config::default());
    if let Some(default) = default.ok().as_ref().and_then(|it| get(it, &entry.key))
        && !default.is_array()
    {
        why = format!("{why}; the default is {default}");
    }
    Err(Problem::new(path, why).at(entry.origin.clone()))
}

/// Sets a key, or removes it.
pub(super) fn put(table: &mut Table, key: &str, value: Option<Value>) {
    match key.split_once('.') {
        None => {
            match value {
                Some(value) => table.insert(key.to_owned(), value),
                None => table.remove(key),
            };
        }
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Table::new().into());
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// The value of a key, if it has one.
pub(super) fn get<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.')
        .try_fold(value, |value, name| value.get(name))
}
