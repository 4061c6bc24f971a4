//! Which socket a program listens on, and who is connected to it, as the kernel shows it. Nobody connects to find out: these
//! programs take the first who does for the VMM.
//!
//! `/proc/PID/fd` has the numbers of the program's sockets, `/proc/net/unix` says what they are: see proc_pid_fd(5) and
//! proc_net(5). The second is about the whole host, and is read only when the first has changed.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::control::Client;

/// So many open files of a program are looked at.
const MAX_FILES: usize = 65536;
/// About 500 000 sockets.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// A flag in the table: `__SO_ACCEPTCON`.
const ACCEPTS: u32 = 1 << 16;
/// A state in the table: `SS_CONNECTED`.
const CONNECTED: &str = "03";

/// The sockets of one process that have one name.
#[derive(Debug)]
pub(super) struct Sockets {
    pid: u32,
    name: PathBuf,
    /// What the process had open when it was last looked at, and what that was.
    last: (Vec<Open>, Seen),
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The number of the socket that listens.
    pub(super) listener: Option<u64>,
    /// The connection of a client.
    pub(super) client: Option<Open>,
}

/// A socket of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    fd: i32,
    inode: u64,
}

impl Sockets {
    /// The sockets of this process that are bound to this path, or were accepted there.
    pub(super) fn new(pid: u32, name: PathBuf) -> Self {
        let last = Default::default();
        Self { pid, name, last }
    }

    /// What there is now.
    pub(super) fn look(&mut self) -> io::Result<Seen> {
        let open = self.open()?;
        let (before, seen) = &self.last;
        // A socket that is bound only may listen by now.
        let may_change = seen.listener.is_none() && seen.client.is_none();
        if may_change || *before != open {
            let table = File::open("/proc/net/unix")?.take(MAX_TABLE_BYTES);
            let mut text = Vec::new();
            io::BufReader::new(table).read_to_end(&mut text)?;
            let seen = sort(&text, self.name.as_os_str().as_bytes(), &open);
            self.last = (open, seen);
        }
        Ok(self.last.1)
    }

    fn open(&self) -> io::Result<Vec<Open>> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.pid))?;
        let open = directory.take(MAX_FILES).filter_map(|entry| {
            let entry = entry.ok()?;
            // It may have been closed since.
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            Some(Open {
                fd: entry.file_name().to_str()?.parse().ok()?,
                inode: inode.parse().ok()?,
            })
        });
        Ok(open.collect())
    }

    /// Who is at the other end of a connection; `None` where this process may not find out.
    pub(super) fn client(&self, connection: Open) -> Option<Client> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let copy: OwnedFd = pidfd_getfd(process, connection.fd, PidfdGetfdFlags::empty()).ok()?;
        // Closed again at once: as long as it were open, the client would not see that the program closes its own.
        getsockopt(&copy, PeerCredentials).ok().map(Client::from)
    }
}

/// What the process's sockets of this name are.
fn sort(table: &[u8], name: &[u8], open: &[Open]) -> Seen {
    let mut seen = Seen::default();
    for line in table.split(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(name).filter(|it| it.ends_with(b" ")) else {
            continue;
        };
        // Num, RefCount, Protocol, Flags, Type, St, Inode.
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let mut fields = line.split_ascii_whitespace().skip(3);
        let flags = fields
            .next()
            .and_then(|it| u32::from_str_radix(it, 16).ok());
        let state = fields.nth(1);
        let inode = fields.next().and_then(|it| it.parse::<u64>().ok());
        let (Some(flags), Some(inode), None) = (flags, inode, fields.next()) else {
            continue;
        };
        let Some(socket) = open.iter().find(|it| it.inode == inode) else {
            continue;
        };
        if flags & ACCEPTS != 0 {
            seen.listener = Some(inode);
        } else if state == Some(CONNECTED) {
            seen.client = Some(*socket);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_kernel_shows_who_listens_and_who_is_connected() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("a b.sock");
        let mut sockets = Sockets::new(std::process::id(), name.clone());
        assert_eq!(sockets.look().unwrap(), Seen::default());
        let listener = UnixListener::bind(&name).unwrap();
        let other = UnixListener::bind(directory.path().join("b.sock")).unwrap();
        let seen = sockets.look().unwrap();
        assert!(seen.listener.is_some() && seen.client.is_none());
        // Moving it changes nothing for those who know the socket.
        fs::rename(&name, directory.path().join("c.sock")).unwrap();
        let _other = UnixStream::connect(directory.path().join("b.sock")).unwrap();
        let client = UnixStream::connect(directory.path().join("c.sock")).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let seen = sockets.look().unwrap();
        let connection = seen.client.unwrap();
        assert!(seen.listener.is_some());
        let who = sockets.client(connection).unwrap();
        assert_eq!(who.pid.cast_unsigned(), std::process::id());
        drop((client, accepted, other));
        assert_eq!(sockets.look().unwrap().client, None);
        drop(listener);
        assert_eq!(sockets.look().unwrap(), Seen::default());
    }

    #[test]
    fn other_processes_sockets_and_broken_lines_are_nothing() {
        let socket = Open { fd: 4, inode: 12 };
        let table = b"Num RefCount Protocol Flags Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 13 /s\n\
            0: 00000003 00000000 00000000 0001 03 14 /s\n\
            0: 00000003 00000000 00000000 0001 01 12 /s\n\
            0: 00000003 00000000 00000000 0001 03 12 /x/s\n\
            0: 00000003 00000000 00000000 0001 03 12\n\
            0: 00000003 0 zz 0001 03 12 /s\n\xff /s\n /s\n/s";
        assert_eq!(sort(table, b"/s", &[socket]), Seen::default());
        let line = b"0: 00000003 00000000 00000000 0001 03 12 /s";
        assert_eq!(sort(line, b"/s", &[socket]).client, Some(socket));
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        Sockets::new(child.id(), "/s".into()).look().unwrap_err();
    }
}
