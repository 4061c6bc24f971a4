//! Why a call to a server failed.

use std::{io, path::PathBuf, time::Duration};

use nix::errno::Errno;

use crate::{message::Command, socket::Closed};

/// Why a call to a server failed. After [`Error::Refused`], [`Error::Late`] and [`Error::Argument`] the client is as
/// usable as before; the others end the session, or show a server that is not worth another call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody can be connected to there.
    #[error("connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection failed")]
    Failed(#[source] Errno),
    /// The server did not do in time what was waited for.
    #[error(
        "{what} did not come within {within:?}: the server hangs, is stopped, or needs a longer timeout"
    )]
    Late {
        /// What was waited for.
        what: &'static str,
        /// How long.
        within: Duration,
    },
    /// The server answered with an error.
    #[error("the server refused {command}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
    /// The server sent what the specification does not allow.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// What answered to VERSION is no vfio-user server.
    #[error("what answers does not speak vfio-user")]
    NotVfioUser {
        /// The first bytes that it sent.
        first: Vec<u8>,
    },
    /// The server speaks another version.
    #[error("the server speaks vfio-user {major}.{minor}, which was not proposed")]
    Version {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// An earlier error ended the session.
    #[error("the connection is not used any more after an earlier error")]
    Over,
    /// The caller asked for what can't be sent.
    #[error("{0}")]
    Argument(&'static str),
}

impl From<Closed> for Error {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::ByClient | Closed::Unanswered(_) => Self::Closed,
            Closed::Failed(errno) => Self::Failed(errno),
            Closed::Protocol(why) => Self::Protocol(why),
        }
    }
}

/// The specification's name of a command, without its prefix.
pub(super) fn name(command: Command) -> &'static str {
    match command {
        Command::VERSION => "VERSION",
        Command::DMA_MAP => "DMA_MAP",
        Command::DMA_UNMAP => "DMA_UNMAP",
        Command::DEVICE_GET_INFO => "DEVICE_GET_INFO",
        Command::DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
        Command::DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
        Command::DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
        Command::DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
        Command::REGION_READ => "REGION_READ",
        Command::REGION_WRITE => "REGION_WRITE",
        Command::DMA_READ => "DMA_READ",
        Command::DMA_WRITE => "DMA_WRITE",
        Command::DEVICE_RESET => "DEVICE_RESET",
        Command::REGION_WRITE_MULTI => "REGION_WRITE_MULTI",
        Command::DEVICE_FEATURE => "DEVICE_FEATURE",
        Command::MIG_DATA_READ => "MIG_DATA_READ",
        Command::MIG_DATA_WRITE => "MIG_DATA_WRITE",
        _ => "an unknown command",
    }
}
