//! The names of all keys: those of variables are made of them, and who misspells one is told the nearest.

/// When a changed key takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// When the configuration is read again.
    Reload,
    /// When the agent starts.
    Restart,
}
use Effect::{Reload, Restart};

/// Every key. A section is the part before the last dot; `access` is a list.
pub(super) const ALL: &[(&str, Effect)] = &[
    ("run_dir", Restart),
    ("state_dir", Restart),
    ("device_program", Restart),
    ("models_dirs", Restart),
    ("log_format", Restart),
    ("log", Reload),
    ("api.listen", Restart),
    ("api.mode", Restart),
    ("api.group", Restart),
    ("api.tcp.address", Restart),
    ("api.tcp.certificate", Reload),
    ("api.tcp.key", Reload),
    ("api.tcp.client_ca", Reload),
    ("access", Reload),
    ("audit.path", Restart),
    ("audit.max_bytes", Reload),
    ("limits.devices", Reload),
    ("limits.concurrent_calls", Reload),
    ("limits.request_bytes", Reload),
    ("limits.watch_changes", Restart),
    ("limits.watches", Reload),
    ("limits.log_bytes", Reload),
    ("limits.starting", Restart),
    ("timeouts.start", Reload),
    ("timeouts.stop", Reload),
    ("timeouts.shutdown", Reload),
    ("cgroup.path", Restart),
];

/// The key of this variable.
pub(super) fn of_variable(name: &str) -> Option<&'static str> {
    // The name that was there before there was a file.
    if name == "VFU_LISTEN" {
        return Some("api.listen");
    }
    let mut keys = ALL.iter().map(|(key, _)| *key);
    keys.find(|key| variable(key) == name)
}

/// The variable of this key.
pub(super) fn variable(key: &str) -> String {
    format!("VFU_{}", key.replace('.', "_").to_uppercase())
}

/// Whether it is a key.
pub(super) fn is_key(name: &str) -> bool {
    ALL.iter().any(|(key, _)| *key == name)
}

/// Whether keys are in a section of this name.
pub(super) fn is_section(name: &str) -> bool {
    let mut keys = ALL.iter().map(|(key, _)| *key);
    keys.any(|key| key.strip_prefix(name).is_some_and(|it| it.starts_with('.')))
}

/// The name among these that was meant, if one is near enough.
pub(super) fn nearest(name: &str, among: impl Iterator<Item = String>) -> Option<String> {
    let near = among.map(|it| (strsim::jaro_winkler(name, &it), it));
    let best = near.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.8).then_some(best.1)
}

/// What is wrong with a key that is none.
pub(super) fn unknown(name: &str) -> String {
    let section = name.rsplit_once('.').map_or("", |it| it.0);
    let mut siblings: Vec<_> = ALL
        .iter()
        .filter_map(|(key, _)| match section {
            "" => key.split('.').next(),
            section => {
                let inner = key.strip_prefix(section)?.strip_prefix('.')?;
                inner.split('.').next()
            }
        })
        .collect();
    siblings.dedup();
    let full = siblings.iter().map(|it| match section {
        "" => (*it).to_owned(),
        section => format!("{section}.{it}"),
    });
    let all = full.chain(ALL.iter().map(|(key, _)| (*key).to_owned()));
    let meant = nearest(name, all).map_or(String::new(), |it| format!("; did you mean {it}?"));
    if siblings.is_empty() {
        return format!("there is no such key{meant}");
    }
    let section = match section {
        "" => "the top of the file".to_owned(),
        section => format!("[{section}]"),
    };
    let siblings = siblings.join(", ");
    format!("there is no such key{meant} (in {section}: {siblings})")
}
