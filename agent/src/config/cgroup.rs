//! `[cgroup]`: the cgroups of devices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Cgroups (version 2), of which each device's process has one of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Where they are.
    pub path: Path,
}

/// `auto`, `off`, or the absolute path of a cgroup's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Path {
    /// In `vfu.slice` at the root of the hierarchy, if the agent may write there.
    #[default]
    Auto,
    /// Nowhere: devices are in the agent's.
    Off,
    /// In this one, which is delegated to the agent. Absolute.
    At(PathBuf),
}

impl TryFrom<String> for Path {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match &*text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::At(path.into())),
            _ => Err("expected auto, off, or the absolute path of a cgroup's directory".into()),
        }
    }
}

impl From<Path> for String {
    fn from(path: Path) -> Self {
        match path {
            Path::Auto => "auto".to_owned(),
            Path::Off => "off".to_owned(),
            Path::At(path) => path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_somewhere_absolute_or_nowhere() {
        for text in ["auto", "off", "/sys/fs/cgroup/vfu.slice"] {
            let path = Path::try_from(text.to_owned()).unwrap();
            assert_eq!(String::from(path), text);
        }
        for text in ["", "vfu.slice", "Auto"] {
            Path::try_from(text.to_owned()).unwrap_err();
        }
    }
}
