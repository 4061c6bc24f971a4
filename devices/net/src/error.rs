//! Why a backend could not be opened: the thing, the cause and the cure, for the person who wrote the configuration.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// What failed. The text names the cure wherever there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "each variant's text says what it is, and its fields are what the text names"
)]
pub enum Error {
    #[error(
        "interface name {ifname:?} is not allowed: use 1 to 15 bytes without '/', ':', '%' and white space"
    )]
    Ifname { ifname: String },
    #[error(
        "/dev/net/tun does not exist: load it with `modprobe tun`, or give the container that device"
    )]
    TunMissing,
    #[error("/dev/net/tun: permission denied: run as root or give CAP_NET_ADMIN")]
    TunPermission,
    #[error("open /dev/net/tun")]
    Tun(#[source] Errno),
    #[error("tap {ifname} is in use by another process: stop it or choose another ifname")]
    TapBusy { ifname: String },
    #[error(
        "{ifname} exists but is not a TAP interface with one queue: choose another ifname or remove it with `ip link del {ifname}`"
    )]
    NotATap { ifname: String },
    #[error("tap {ifname}: {operation}: not permitted: run as root or give CAP_NET_ADMIN")]
    TapPermission {
        ifname: String,
        operation: &'static str,
    },
    #[error("tap {ifname}: {operation}")]
    Tap {
        ifname: String,
        operation: &'static str,
        source: Errno,
    },

    #[error(
        "bridge name {bridge:?} is not allowed: use 1 to 15 bytes without '/', ':', '%' and white space"
    )]
    BridgeName { bridge: String },
    #[error(
        "bridge {bridge} does not exist{}: create it with `{}ip link add {bridge} type bridge`",
        in_namespace(netns),
        enter(netns)
    )]
    BridgeMissing {
        bridge: String,
        netns: Option<PathBuf>,
    },
    #[error(
        "{bridge} is not a bridge: name another or create one with `ip link add NAME type bridge`"
    )]
    NotABridge { bridge: String },
    #[error(
        "tap {ifname} already belongs to another bridge than {bridge}: take it out with `ip link set {ifname} nomaster`"
    )]
    BridgeTaken { bridge: String, ifname: String },
    #[error("bridge {bridge}: add tap {ifname}")]
    Bridge {
        bridge: String,
        ifname: String,
        source: Errno,
    },

    #[error("netns {}: no such file: {}", path.display(), create_netns(path))]
    NetnsMissing { path: PathBuf },
    #[error("netns {} is not a network namespace: name one such as /run/netns/NAME or /proc/PID/ns/net", path.display())]
    NotANetns { path: PathBuf },
    #[error("netns {}: entering it is not permitted: run as root or give CAP_SYS_ADMIN", path.display())]
    NetnsPermission { path: PathBuf },
    #[error("enter netns {}", path.display())]
    Netns { path: PathBuf, source: Errno },

    #[error("socket path {path:?} has {} bytes: choose one of 1 to 107 bytes, none of them zero", path.as_os_str().len())]
    SocketPath { path: PathBuf },
    #[error("a server already listens on {}: stop it or choose another path", path.display())]
    SocketBusy { path: PathBuf },
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("listen on {}: its directory does not exist: create it with `mkdir -p {}`", path.display(), parent(path).display())]
    SocketDirectory { path: PathBuf },
    #[error("listen on {}: permission denied: choose a directory that this user may write to", path.display())]
    SocketPermission { path: PathBuf },
    #[error("listen on {}", path.display())]
    Listen { path: PathBuf, source: Errno },

    #[error("make an epoll instance")]
    Poller(#[source] Errno),
}

impl Error {
    /// The field of [`crate::Config`] that has to change, as a path with dots; empty where no field is to blame.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Ifname { .. } | Self::TapBusy { .. } | Self::NotATap { .. } => "tap.ifname",
            Self::TunMissing
            | Self::TunPermission
            | Self::Tun(_)
            | Self::TapPermission { .. }
            | Self::Tap { .. } => "tap",
            Self::BridgeName { .. }
            | Self::BridgeMissing { .. }
            | Self::NotABridge { .. }
            | Self::BridgeTaken { .. }
            | Self::Bridge { .. } => "tap.bridge",
            Self::NetnsMissing { .. }
            | Self::NotANetns { .. }
            | Self::NetnsPermission { .. }
            | Self::Netns { .. } => "tap.netns",
            Self::SocketPath { .. }
            | Self::SocketBusy { .. }
            | Self::NotASocket { .. }
            | Self::SocketDirectory { .. }
            | Self::SocketPermission { .. }
            | Self::Listen { .. } => "stream.path",
            Self::Poller(_) => "",
        }
    }

    /// What kind of failure it is, for exit codes and status codes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Ifname { .. }
            | Self::NotATap { .. }
            | Self::BridgeName { .. }
            | Self::NotABridge { .. }
            | Self::NotANetns { .. }
            | Self::SocketPath { .. }
            | Self::NotASocket { .. } => Kind::Invalid,
            Self::TapBusy { .. } | Self::BridgeTaken { .. } | Self::SocketBusy { .. } => {
                Kind::InUse
            }
            Self::BridgeMissing { .. }
            | Self::NetnsMissing { .. }
            | Self::SocketDirectory { .. } => Kind::NotFound,
            Self::TunPermission
            | Self::TapPermission { .. }
            | Self::NetnsPermission { .. }
            | Self::SocketPermission { .. } => Kind::Permission,
            Self::TunMissing => Kind::Unavailable,
            Self::Tun(source)
            | Self::Tap { source, .. }
            | Self::Bridge { source, .. }
            | Self::Netns { source, .. }
            | Self::Listen { source, .. }
            | Self::Poller(source) => match source {
                Errno::EACCES | Errno::EPERM => Kind::Permission,
                Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::ENOSPC => {
                    Kind::Unavailable
                }
                _ => Kind::Internal,
            },
        }
    }
}

/// Kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// The configuration can't be right on any host.
    Invalid,
    /// Somebody else has it.
    InUse,
    /// It has to be created first.
    NotFound,
    /// This user may not.
    Permission,
    /// The host can't provide it, or not now.
    Unavailable,
    /// Not foreseen.
    Internal,
}

fn in_namespace(netns: &Option<PathBuf>) -> String {
    netns
        .as_ref()
        .map(|path| format!(" in the namespace {}", path.display()))
        .unwrap_or_default()
}

/// What to write before an `ip` command so that it works in the namespace.
fn enter(netns: &Option<PathBuf>) -> String {
    netns
        .as_ref()
        .map(|path| format!("nsenter --net={} ", path.display()))
        .unwrap_or_default()
}

fn create_netns(path: &Path) -> String {
    let named = ["/run/netns", "/var/run/netns"]
        .iter()
        .find_map(|directory| path.strip_prefix(directory).ok());
    match named {
        Some(name) if name.components().count() == 1 => {
            format!("create it with `ip netns add {}`", name.display())
        }
        _ => "name a network namespace that exists, such as /run/netns/NAME".to_owned(),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_thing_the_cause_and_the_cure() {
        let netns = Some(PathBuf::from("/run/netns/x"));
        let bridge = "br9".to_owned();
        for (error, text) in [
            (
                Error::TapBusy {
                    ifname: "vfu0".into(),
                },
                "tap vfu0 is in use by another process: stop it or choose another ifname",
            ),
            (
                Error::BridgeMissing {
                    bridge: bridge.clone(),
                    netns,
                },
                "bridge br9 does not exist in the namespace /run/netns/x: create it with `nsenter --net=/run/netns/x ip link add br9 type bridge`",
            ),
            (
                Error::BridgeMissing {
                    bridge,
                    netns: None,
                },
                "bridge br9 does not exist: create it with `ip link add br9 type bridge`",
            ),
            (
                Error::NetnsMissing {
                    path: "/run/netns/x".into(),
                },
                "netns /run/netns/x: no such file: create it with `ip netns add x`",
            ),
            (
                Error::NetnsMissing {
                    path: "/proc/7/ns/net".into(),
                },
                "netns /proc/7/ns/net: no such file: name a network namespace that exists, such as /run/netns/NAME",
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
