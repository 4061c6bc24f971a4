//! `[api]`: the socket of the API, and `[api.tcp]`: the same for other hosts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use serde::{Deserialize, Serialize};

use super::Problem;
use super::text::by_text;
use crate::socket::MAX_PATH_BYTES;

/// Where the API is served on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// The socket; `agent.sock` in the run directory when it is not named.
    pub listen: Option<UnixUri>,
    /// Its mode.
    pub mode: Mode,
    /// Its group, by name or number; the agent's own when it is not named.
    pub group: Option<String>,
    /// Where the API is served to other hosts.
    pub tcp: Tcp,
}

impl Api {
    /// The number of the group, which may take as long as the host's group database does.
    pub(crate) fn gid(&self) -> Result<Option<u32>, String> {
        let Some(name) = &self.group else {
            return Ok(None);
        };
        if let Ok(number) = name.parse() {
            return Ok(Some(number));
        }
        match Group::from_name(name) {
            Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
            Ok(None) => Err(format!("this host has no group {name:?}")),
            Err(error) => Err(format!("look group {name:?} up: {error}")),
        }
    }

    pub(super) fn check(&self, bad: &mut Vec<Problem>) {
        if let Some(UnixUri(path)) = &self.listen
            && path.as_os_str().len() > MAX_PATH_BYTES
        {
            let why = format!(
                "{} has {} bytes and {MAX_PATH_BYTES} is the most that UNIX sockets take",
                path.display(),
                path.as_os_str().len()
            );
            bad.push(Problem::new("api.listen", why));
        }
        if let Err(why) = self.gid() {
            bad.push(Problem::new("api.group", why));
        }
        self.tcp.check(bad);
    }
}

/// The API for other hosts. Whoever connects shows a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tcp {
    /// Address and port; without it there is no TCP.
    pub address: Option<SocketAddr>,
    /// The agent's certificate with the chain to its root, PEM.
    pub certificate: Option<PathBuf>,
    /// The certificate's key, PEM.
    pub key: Option<PathBuf>,
    /// The roots of callers' certificates, PEM.
    pub client_ca: Option<PathBuf>,
}

impl Tcp {
    /// All files.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let files = [&mut self.certificate, &mut self.key, &mut self.client_ca];
        files.into_iter().flatten()
    }

    fn check(&self, bad: &mut Vec<Problem>) {
        for (key, path) in [
            ("api.tcp.certificate", &self.certificate),
            ("api.tcp.key", &self.key),
            ("api.tcp.client_ca", &self.client_ca),
        ] {
            match (self.address, path) {
                (Some(_), None) => {
                    let why =
                        "is needed with api.tcp.address: TCP is for callers with certificates";
                    bad.push(Problem::new(key, why));
                }
                (None, Some(_)) => {
                    let why = "does nothing without api.tcp.address, such as \"[::]:7717\"";
                    bad.push(Problem::new(key, why));
                }
                _ => {}
            }
        }
    }
}

/// `unix://` and an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixUri(PathBuf);

impl UnixUri {
    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl std::str::FromStr for UnixUri {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix://").map(Path::new) {
            Some(path) if path.is_absolute() => Ok(Self(path.to_owned())),
            _ => Err("expected unix:// and an absolute path, as in unix:///run/vfu/agent.sock"),
        }
    }
}

impl std::fmt::Display for UnixUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

by_text!(UnixUri, "unix:// and an absolute path");

/// Who may open a file. As text in octal: a number would be read in decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Default for Mode {
    fn default() -> Self {
        Self(0o660)
    }
}

impl std::str::FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mode = u32::from_str_radix(text, 8).ok();
        let mode = mode.filter(|it| *it <= 0o777 && !text.starts_with('+'));
        mode.map(Self)
            .ok_or("expected a mode in octal, as in \"0660\"")
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

by_text!(Mode, "a mode in octal as a string, as in \"0660\"");
