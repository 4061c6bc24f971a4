//! Which run of a VMM is behind a control socket, and whose process it is.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::net::UnixStream;

use super::{Error, Owner};

/// Who listens at the other end.
pub(super) fn owner(stream: &UnixStream) -> io::Result<Owner> {
    let owner = stream.peer_cred()?;
    Ok(Owner {
        // What has no number in this agent's namespace has the number 0.
        pid: owner.pid().filter(|pid| *pid > 0),
        uid: owner.uid(),
        gid: owner.gid(),
    })
}

/// A process, told from every later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// When it began, in the kernel's ticks.
    began: u64,
}

impl Process {
    /// The one that has this number now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let began = began(pid)?;
        Some(Self { pid, began })
    }

    /// Whether it has not ended.
    pub(crate) fn lives(self) -> bool {
        began(self.pid) == Some(self.began)
    }
}

/// By what one run of a VMM is told from the next on the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    path: PathBuf,
    process: Option<Process>,
    /// Device and inode of the socket, and when it was made: the next one can have the same inode.
    socket: Option<(u64, u64, Option<SystemTime>)>,
}

impl Identity {
    /// Of the VMM that has the socket at `path`.
    pub(super) fn of(owner: Owner, path: &Path) -> Self {
        let process = owner.pid.and_then(Process::of);
        let socket = std::fs::metadata(path).ok();
        Self {
            path: path.to_owned(),
            process,
            socket: socket.map(|it| (it.dev(), it.ino(), it.created().ok())),
        }
    }

    /// Whether nothing speaks against both being the same run.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.is_some() && other.is_some() && one != other
        }
        !differ(self.process, other.process) && !differ(self.socket, other.socket)
    }

    /// Whether this failure to connect says that the VMM is no more.
    pub(super) fn is_disproved_by(&self, error: &Error) -> bool {
        let Error::Unreachable { source, .. } = error else {
            return false;
        };
        match source.kind() {
            // Nobody has the socket open.
            io::ErrorKind::ConnectionRefused => true,
            // A VMM that ends in order removes it; others can remove it, too.
            io::ErrorKind::NotFound => self.process.is_none_or(|it| !it.lives()),
            _ => false,
        }
    }
}

/// When the process with this pid began; nothing if there is none, or it is dead and its parent has not asked yet.
fn began(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it can have anything in it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let time = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(time)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn a_process_is_told_from_another_by_when_it_began() {
        let began_at = began(me()).unwrap();
        assert!(began_at > began(1).unwrap());
        assert_eq!(began(me()), Some(began_at));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while began(pid).is_some() {
            assert!(std::time::Instant::now() < deadline, "a zombie is not seen");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(began(pid), None);
    }

    #[test]
    fn a_removed_path_is_no_end_while_the_process_is_there() {
        let unreachable = |kind: io::ErrorKind| Error::Unreachable {
            path: PathBuf::new(),
            source: kind.into(),
        };
        let owner = Owner {
            pid: Some(me()),
            ..Owner::default()
        };
        let alive = Identity::of(owner, Path::new("/nonexistent"));
        assert!(!alive.is_disproved_by(&unreachable(io::ErrorKind::NotFound)));
        assert!(alive.is_disproved_by(&unreachable(io::ErrorKind::ConnectionRefused)));
        assert!(!alive.is_disproved_by(&unreachable(io::ErrorKind::PermissionDenied)));
        let unknown = Identity::of(Owner::default(), Path::new("/nonexistent"));
        assert!(unknown.is_disproved_by(&unreachable(io::ErrorKind::NotFound)));
        assert!(unknown.may_be(&alive) && alive.may_be(&unknown));
        let other = Owner {
            pid: Some(1),
            ..Owner::default()
        };
        assert!(!alive.may_be(&Identity::of(other, Path::new("/nonexistent"))));
    }
}
