//! A program that is not vfu's and serves devices of a model.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::require::Requirement;
use super::template::Template;

/// How it is seen that the program serves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Readiness {
    /// It binds the socket itself and listens on it.
    Socket,
    /// It takes the listening socket.
    Fd,
    /// It writes a line to stdout or stderr that has this in it.
    Line(String),
}

/// How a model is served by a program that is not vfu's.
#[derive(Debug)]
pub(crate) struct External {
    /// The file it is described in.
    pub(crate) source: PathBuf,
    /// What people call the program.
    pub(crate) runtime: String,
    /// The program's path, or its name in PATH.
    pub(super) command: String,
    /// What the API can't do with its devices.
    pub(crate) unsupported: Vec<&'static str>,
    pub(super) readiness: Readiness,
    pub(super) has_monitor: bool,
    pub(super) ends_with_client: bool,
    /// What the program has to be able to.
    pub(super) requires: Vec<Requirement>,
    pub(super) template: Template,
}

impl External {
    /// The program as it is there now, or why it is not.
    pub(super) fn program(&self) -> Result<PathBuf, String> {
        find(&self.command)
    }
}

/// The program of this path or, without a slash, of this name in PATH.
fn find(program: &str) -> Result<PathBuf, String> {
    let candidates: Vec<PathBuf> = match program {
        path if path.starts_with('/') => vec![path.into()],
        path if path.contains('/') => {
            return Err(format!("{path} is a relative path; write it from the root"));
        }
        name => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let directories = std::env::split_paths(&path);
            directories
                .filter(|it| it.is_absolute())
                .map(|it| it.join(name))
                .collect()
        }
    };
    let runs = |it: &PathBuf| {
        it.metadata()
            .is_ok_and(|it| it.is_file() && it.mode() & 0o111 != 0)
    };
    candidates
        .into_iter()
        .find(runs)
        .ok_or_else(|| format!("there is no program {program}; install it, or change command[0]"))
}
