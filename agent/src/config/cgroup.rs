//! `[cgroup]`: the cgroups of devices.

use std::path::{Component, PathBuf};

use serde::{Deserialize, Serialize};

use super::Problem;

/// Where devices have their cgroups (version 2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// The cgroup under which each device's process has one of its own, such as `vfu.slice`, from the root of the
    /// hierarchy; when it is not named, the agent looks for one where it may write.
    pub path: Option<PathBuf>,
}

impl Cgroup {
    pub(super) fn check(&self, bad: &mut Vec<Problem>) {
        let Some(path) = &self.path else { return };
        let plain = |it| matches!(it, Component::Normal(_) | Component::RootDir);
        if path.as_os_str().is_empty() || !path.components().all(plain) {
            let why = format!("{:?} is not the path of a cgroup, such as vfu.slice", path);
            bad.push(Problem::new("cgroup.path", why));
        }
    }
}
