//! Who is at the other end of a connection, as the kernel or its certificate says, not as it says itself.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use tokio::net::UnixStream;

use super::groups;

/// Who is at the other end.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Peer {
    /// A process on this host.
    Local(Local),
    /// Who has a certificate.
    Remote(Remote),
}

/// A process on this host, as it was when it connected.
#[derive(Debug, Serialize)]
pub(crate) struct Local {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    #[serde(skip)]
    pub(crate) groups: Vec<u32>,
    /// Absent when the process is in another PID namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<i32>,
    /// Its program, for people: by the time that it is looked at it may be another. Its path need not be text, and is made
    /// such: nothing may be in the audit log that JSON can't say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) executable: Option<String>,
}

/// Who has a certificate, and connected over TCP.
#[derive(Debug, Serialize)]
pub(crate) struct Remote {
    /// The names in the certificate: of its subject, and its alternative names.
    #[serde(rename = "certificate")]
    pub(crate) names: Vec<String>,
    /// Where from.
    pub(crate) address: SocketAddr,
    /// From when on the certificate is no longer good.
    #[serde(skip)]
    pub(crate) expires: SystemTime,
}

impl Local {
    /// The process that connected to a UNIX socket.
    pub(crate) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().filter(|pid| *pid > 0);
        let executable = pid.and_then(|pid| target(format!("/proc/{pid}/exe").as_ref()));
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups: groups::of_peer(stream)?,
            pid,
            executable,
        })
    }
}

/// Where a link leads, as text.
fn target(link: &Path) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.to_string_lossy().into_owned())
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(Local { uid, gid, pid, .. }) => {
                write!(formatter, "uid {uid} (gid {gid}")?;
                match pid {
                    Some(pid) => write!(formatter, ", pid {pid})"),
                    None => formatter.write_str(")"),
                }
            }
            Self::Remote(Remote { names, address, .. }) => {
                write!(
                    formatter,
                    "certificate {} from {address}",
                    names.join(", ").escape_debug()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_caller_whose_program_has_a_name_that_is_no_text_is_known_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("exe");
        std::os::unix::fs::symlink(OsStr::from_bytes(b"/tmp/\xff/a\n"), &link).unwrap();
        let local = Local {
            uid: 8,
            gid: 9,
            groups: Vec::new(),
            pid: Some(11),
            executable: target(&link),
        };
        let line = serde_json::to_value(Peer::Local(local)).unwrap();
        assert_eq!(line["executable"], "/tmp/\u{fffd}/a\n");
    }
}
