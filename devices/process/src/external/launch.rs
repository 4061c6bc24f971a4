//! What the agent says of a program, and how it is started.

#![expect(
    unsafe_code,
    reason = "what a child does between fork and exec has no safe interface"
)]

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{getpid, getppid},
};
use serde::Deserialize;
use serde_json::Value;

/// The number under which a program finds its listening socket. Descriptions have it as `{fd}`.
const LISTENER_FD: RawFd = 3;

/// One device's program.
#[derive(Debug, Deserialize)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) readiness: Readiness,
    /// Where it makes its socket, when it makes it itself.
    pub(super) socket: Option<Socket>,
    /// The socket of its QEMU Machine Protocol, when it speaks that.
    pub(super) monitor: Option<PathBuf>,
    /// Whether it ends when its client goes.
    pub(super) ends_with_client: bool,
    /// The device's configuration, of which the arguments are made.
    pub(super) config: Value,
}

/// How it is seen that a program serves.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Readiness {
    /// It listens on the socket that it makes.
    Socket,
    /// It runs, and has the listening socket.
    Fd,
    /// It listens, and its output has this in it.
    Line(String),
}

/// A socket that a program makes.
#[derive(Debug, Deserialize)]
pub(super) struct Socket {
    /// Where the program makes it, in a directory that nobody else enters.
    pub(super) bind: PathBuf,
    /// Where clients find it.
    pub(super) path: PathBuf,
    uid: Option<u32>,
    gid: Option<u32>,
    mode: u32,
}

impl Socket {
    /// Makes room for the socket: the program may fail at one that another process has left.
    pub(super) fn make_room(&self) -> io::Result<()> {
        let directory = self.bind.parent().unwrap_or(Path::new("/"));
        let mut builder = fs::DirBuilder::new();
        match builder.mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match fs::remove_file(&self.bind) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts the socket, with its owner and mode, where clients find it. They never see it with others.
    pub(super) fn publish(&self) -> io::Result<()> {
        if self.uid.is_some() || self.gid.is_some() {
            std::os::unix::fs::chown(&self.bind, self.uid, self.gid)?;
        }
        fs::set_permissions(&self.bind, fs::Permissions::from_mode(self.mode))?;
        fs::rename(&self.bind, &self.path)
    }
}

/// Keeps the listener's number from what is opened between now and a child's `exec`. What has it already is closed there.
pub(super) fn reserve() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}

/// Makes the socket the program's, under its number.
fn pass(listener: RawFd) -> io::Result<()> {
    // SAFETY: of what may have the number nothing is needed in a child that is about to become another program.
    let done = unsafe {
        match listener {
            LISTENER_FD => libc::fcntl(LISTENER_FD, libc::F_SETFD, 0),
            _ => libc::dup2(listener, LISTENER_FD),
        }
    };
    Errno::result(done)?;
    Ok(())
}

impl Launch {
    /// Starts the program, which ends when this process does. `listener` is the socket of one that takes it.
    pub(super) fn start(&self, listener: Option<&OwnedFd>) -> io::Result<Child> {
        if let Some(socket) = &self.socket {
            socket.make_room()?;
        }
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        let listener = listener.map(AsRawFd::as_raw_fd);
        let parent = getpid();
        let prepare = move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // It may have ended before it could be told.
            if getppid() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            SigSet::empty().thread_set_mask()?;
            if let Some(listener) = listener {
                pass(listener)?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        command.spawn()
    }
}
