//! One connection to a QMP socket, from connect to the end of the negotiation.
//!
//! What answers there may be anything: each line is bounded, and all of it together has one deadline.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::super::identity::{self, Identity};
use super::super::said;
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
        let owner = identity::owner(&stream).map_err(unreachable)?;
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
            let why = format!("its first words are `{}`{hint}", said::text(&line));
            stranger(path, why)
        })?;
        writer
            .write_all(&wire::command("qmp_capabilities", &Value::Null, FIRST_ID))
            .await
            .map_err(unreachable)?;
        loop {
            let line = next_line(&mut lines, path).await?;
            let message: Message = serde_json::from_str(&line)
                .map_err(|_| stranger(path, format!("it says `{}`", said::text(&line))))?;
            if let Some(refusal) = message.error {
                let why = format!("it refuses to begin: {}", said::text(&refusal.desc));
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
