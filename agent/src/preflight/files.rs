//! What the file system shows of a device's socket, and `/proc` of the process that is to connect to it. Everything here may
//! block, and decides nothing.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Capabilities that let a process pass by the permissions of files and directories, as bits of `CapEff`.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    /// From the root on, the socket last.
    pub(super) way: Result<Vec<Step>, Unseen>,
    /// The VMM's process, if there is a VMM; or why nothing is known of it.
    pub(super) process: Option<Result<Process, String>>,
}

/// Why a socket was not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unseen {
    Missing,
    Other(String),
}

/// A directory on the way to a socket, or the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether there is more to its permissions than the mode.
    pub(super) has_acl: bool,
}

/// A process that is to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// Whether no permission keeps it from anything.
    pub(super) is_almighty: bool,
    pub(super) view: View,
}

/// What a process has at the path of the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// The same socket.
    Same,
    Nothing,
    Another,
    /// It has other mounts, or another root, and the agent may not look there.
    Hidden,
}

impl Files {
    /// Looks. `pid` is the VMM's process, when there is a VMM, as far as it is known.
    pub(super) fn look(socket: &Path, pid: Option<Option<i32>>) -> Self {
        let process = |pid: Option<i32>| {
            let pid = pid.ok_or("it is in another PID namespace")?;
            Process::read(pid, socket).map_err(|error| format!("read /proc/{pid}: {error}"))
        };
        Self {
            way: way(socket).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Unseen::Missing,
                _ => Unseen::Other(error.to_string()),
            }),
            process: pid.map(process),
        }
    }

    /// Nothing, for this reason.
    pub(super) fn unseen(why: String) -> Self {
        Self {
            way: Err(Unseen::Other(why)),
            process: None,
        }
    }
}

fn way(socket: &Path) -> io::Result<Vec<Step>> {
    // Whoever follows a symbolic link has to enter the directories that it leads to.
    let real = socket.canonicalize()?;
    let mut paths: Vec<_> = real.ancestors().collect();
    paths.reverse();
    paths.into_iter().map(Step::read).collect()
}

impl Step {
    fn read(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        let acl = rustix::fs::getxattr(path, "system.posix_acl_access", &mut [0_u8; 4096]);
        Ok(Self {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            has_acl: matches!(acl, Ok(1..) | Err(rustix::io::Errno::RANGE)),
        })
    }
}

impl Process {
    fn read(pid: i32, socket: &Path) -> io::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let parsed = parse(&status, pid).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            // Over the files of this user namespace a process of another one has no power.
            is_almighty: parsed.is_almighty && is_same(pid, "ns/user").unwrap_or(false),
            view: view(pid, socket),
            ..parsed
        })
    }
}

/// What `/proc/PID/status` tells of who a process is for the file system.
fn parse(status: &str, pid: i32) -> Option<Process> {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    // Real, effective, saved, and that of the file system.
    let id = |name| field(name)?.split_whitespace().nth(3)?.parse().ok();
    let groups = field("Groups")?.split_whitespace();
    let capabilities = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
    Some(Process {
        pid,
        uid: id("Uid")?,
        gid: id("Gid")?,
        groups: groups.map_while(|it| it.parse().ok()).collect(),
        is_almighty: capabilities & CAP_DAC_OVERRIDE != 0,
        view: View::Hidden,
    })
}

/// Whether a process and this one have the same there.
fn is_same(pid: i32, link: &str) -> io::Result<bool> {
    let other = std::fs::read_link(format!("/proc/{pid}/{link}"))?;
    Ok(other == std::fs::read_link(format!("/proc/self/{link}"))?)
}

fn view(pid: i32, socket: &Path) -> View {
    let Ok(same_root) = is_same(pid, "root") else {
        return View::Hidden;
    };
    if same_root && is_same(pid, "ns/mnt").unwrap_or(false) {
        return View::Same;
    }
    let Ok(relative) = socket.strip_prefix("/") else {
        return View::Hidden;
    };
    let there = Path::new(&format!("/proc/{pid}/root"))
        .join(relative)
        .metadata();
    let here = socket.metadata();
    match (here, there) {
        (Ok(here), Ok(there)) if (here.dev(), here.ino()) == (there.dev(), there.ino()) => {
            View::Same
        }
        (Ok(_), Ok(_)) => View::Another,
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => View::Nothing,
        _ => View::Hidden,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_a_process_is_for_the_file_system_is_read() {
        let status = "Name:\tqemu\nUid:\t1\t2\t3\t107\nGid:\t1\t2\t3\t108\nGroups:\t36 64055 \n\
                      CapEff:\t0000000000000002\n";
        let process = parse(status, 7).unwrap();
        assert_eq!((process.uid, process.gid), (107, 108));
        assert_eq!(process.groups, [36, 64055]);
        assert!(process.is_almighty);
        let weak = status.replace("0002", "0001");
        assert!(!parse(&weak, 7).unwrap().is_almighty);
        for name in ["Uid", "Gid", "Groups", "CapEff"] {
            assert_eq!(parse(&status.replace(name, "x"), 7), None, "{name}");
        }
    }

    #[test]
    fn this_process_sees_its_own_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let files = Files::look(&path, Some(Some(own)));
        let way = files.way.unwrap();
        assert_eq!(way.first().unwrap().path, Path::new("/"));
        let last = way.last().unwrap();
        assert_eq!((last.mode, last.has_acl), (0o640, false));
        let process = files.process.unwrap().unwrap();
        assert_eq!(process.view, View::Same);
        assert_eq!(process.uid, nix::unistd::geteuid().as_raw());

        let missing = Files::look(&directory.path().join("t"), Some(None));
        assert_eq!(missing.way, Err(Unseen::Missing));
        assert!(missing.process.unwrap().unwrap_err().contains("namespace"));
        assert_eq!(Files::look(&path, None).process, None);
    }

    #[test]
    fn what_another_root_shows_is_told_from_the_same() {
        // Needs no namespace: `view` goes by what is there.
        let directory = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(view(own, directory.path()), View::Same);
        assert_eq!(view(-1, directory.path()), View::Hidden);
    }
}
