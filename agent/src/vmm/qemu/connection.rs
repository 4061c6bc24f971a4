//! One connection to a QMP socket, from connect to the end of the negotiation.
//!
//! What answers there may be anything: each line is bounded, and all of it together has one deadline.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::super::{Error, Owner};
use super::wire::{self, Message, Version};

/// From connect to commands. QEMU's loop can be busy for a while with a device that answers slowly.
const LIMIT: Duration = Duration::from_secs(6);

/// The longest line that is taken. QEMU's longest is what `query-pci` says of a machine with hundreds of devices.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The negotiation's command; later ones have other numbers.
const FIRST_ID: u64 = 0;

/// A connection that takes commands.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) lines: FramedRead<OwnedReadHalf, LinesCodec>,
    pub(super) writer: OwnedWriteHalf,
    pub(super) version: Version,
    pub(super) owner: Owner,
    pub(super) identity: Identity,
}

impl Connection {
    /// Connects to the socket and begins.
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        let silent = || {
            let why = format!(
                "nothing came from it within {LIMIT:?}: either it hangs, or another program is connected to it, for QEMU \
                 talks to one at a time; give the agent a socket of its own (-qmp unix:PATH,server=on,wait=off)"
            );
            stranger(path, why)
        };
        timeout(LIMIT, Self::negotiate(path))
            .await
            .unwrap_or_else(|_| Err(silent()))
    }

    async fn negotiate(path: &Path) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable {
            path: path.to_owned(),
            source,
        };
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            // Nobody takes connections from the queue, and it is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let why = "others wait for it already: another program is connected to it, for QEMU talks to one at a \
                           time; give the agent a socket of its own (-qmp unix:PATH,server=on,wait=off)";
                return Err(stranger(path, why.to_owned()));
            }
            Err(error) => return Err(unreachable(error)),
        };
        let owner = stream.peer_cred().map_err(unreachable)?;
        let owner = Owner {
            // What has no number in this agent's namespace has the number 0.
            pid: owner.pid().filter(|pid| *pid > 0),
            uid: owner.uid(),
            gid: owner.gid(),
        };
        let (reader, mut writer) = stream.into_split();
        let codec = LinesCodec::new_with_max_length(MAX_LINE_BYTES);
        let mut lines = FramedRead::new(reader, codec);

        let line = next_line(&mut lines, path).await?;
        let greeting = serde_json::from_str::<Message>(&line).ok();
        let greeting = greeting.and_then(|it| it.greeting).ok_or_else(|| {
            let hint = if line.contains("monitor") {
                "; that is QEMU's monitor for people, give the agent one made with -qmp"
            } else {
                ""
            };
            let why = format!("its first words are `{}`{hint}", wire::text(&line));
            stranger(path, why)
        })?;
        writer
            .write_all(&wire::command("qmp_capabilities", &Value::Null, FIRST_ID))
            .await
            .map_err(unreachable)?;
        loop {
            let line = next_line(&mut lines, path).await?;
            let message: Message = serde_json::from_str(&line)
                .map_err(|_| stranger(path, format!("it says `{}`", wire::text(&line))))?;
            if let Some(refusal) = message.error {
                let why = format!("it refuses to begin: {}", wire::text(&refusal.desc));
                return Err(stranger(path, why));
            }
            if message.value.is_some() && message.id == Some(FIRST_ID.into()) {
                break;
            }
        }
        Ok(Self {
            lines,
            writer,
            version: greeting.version.qemu,
            identity: Identity::of(owner, path),
            owner,
        })
    }
}

/// That this is no QMP socket, or none that can be used.
pub(super) fn stranger(path: &Path, why: String) -> Error {
    Error::Stranger {
        path: path.to_owned(),
        expected: "QMP",
        why,
    }
}

/// Why there are no more lines.
pub(super) fn end_of_lines(end: Option<LinesCodecError>) -> String {
    match end {
        None => "it closed the connection".to_owned(),
        Some(LinesCodecError::MaxLineLengthExceeded) => {
            format!("it sent a line longer than {MAX_LINE_BYTES} bytes")
        }
        Some(LinesCodecError::Io(error)) => error.to_string(),
    }
}

async fn next_line(
    lines: &mut FramedRead<OwnedReadHalf, LinesCodec>,
    path: &Path,
) -> Result<String, Error> {
    match lines.next().await {
        Some(Ok(line)) => Ok(line),
        end => {
            let why = end_of_lines(end.and_then(Result::err));
            Err(stranger(path, format!("{why} before it was ready")))
        }
    }
}

/// By what one run of QEMU is told from the next on the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    path: PathBuf,
    /// The pid, and when the process with it began, in the kernel's ticks.
    process: Option<(i32, u64)>,
    /// Device and inode of the socket.
    socket: Option<(u64, u64)>,
}

impl Identity {
    fn of(owner: Owner, path: &Path) -> Self {
        let process = owner.pid.and_then(|pid| Some((pid, began(pid)?)));
        let socket = std::fs::metadata(path).ok();
        Self {
            path: path.to_owned(),
            process,
            socket: socket.map(|it| (it.dev(), it.ino())),
        }
    }

    /// Whether nothing speaks against both being the same run.
    pub(super) fn may_be(&self, other: &Self) -> bool {
        fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.is_some() && other.is_some() && one != other
        }
        !differ(self.process, other.process) && !differ(self.socket, other.socket)
    }

    /// Whether this failure to connect says that QEMU is no more.
    pub(super) fn is_disproved_by(&self, error: &Error) -> bool {
        let Error::Unreachable { source, .. } = error else {
            return false;
        };
        match source.kind() {
            // Nobody has the socket open.
            io::ErrorKind::ConnectionRefused => true,
            // QEMU removes it when it ends in order; others can remove it, too.
            io::ErrorKind::NotFound => {
                (self.process).is_none_or(|(pid, time)| began(pid) != Some(time))
            }
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
