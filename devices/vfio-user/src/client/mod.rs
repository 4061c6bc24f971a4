//! A vfio-user client: what a VMM does with a server, one call per command.
//!
//! It blocks, and every wait has a deadline. While it waits for a reply it answers the server's DMA_READ and DMA_WRITE
//! from a [`Memory`] that the caller provides, in band and on the twin socket; [`Client::serve`] does only that. The
//! server is not trusted: what it says is checked, what it sends is bounded, and descriptors that nobody asked for are
//! closed.
//!
//! Several requests may be on their way: `queue_` calls collect them, [`Client::flush`] sends them together, and
//! [`Client::next_reply`] returns the replies in their order. A request that came too late for its deadline is given up,
//! and the client stays usable.

mod access;
mod channel;
mod connection;
mod dma;
mod error;
mod info;
mod irqs;
mod memory;
mod migration;
mod negotiate;

pub use access::MultiWrite;
pub use error::Error;
pub use info::{DeviceInfo, IoFds, IrqInfo, RegionInfo, SubRegion};
pub use irqs::{Action, Interrupts};
pub use memory::{Buffer, Memory, NoMemory};
pub use migration::{Feature, Method, MigrationFlags};
pub use negotiate::{Capabilities, MigrationCapability, Negotiated, TwinSocket};

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

use self::connection::{Connection, Request};
use crate::message::{Command, Header};

/// Data in one message, both ways. Replies that are longer are a breach of the protocol.
pub const MAX_TRANSFER_BYTES: usize = 1 << 20;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for a reply, and for a server that does not read.
    pub timeout: Duration,
    /// How long to look for a reply again and again before waiting for it asleep.
    pub spin: Duration,
    /// The version to propose.
    pub version: (u16, u16),
    /// The capabilities to propose; `None`: no version data at all.
    pub capabilities: Option<Capabilities>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            spin: Duration::ZERO,
            version: (0, 1),
            capabilities: Some(Capabilities::all()),
        }
    }
}

impl Options {
    /// How much data the server may send or ask for at once: what is proposed, or the specification's default.
    fn max_transfer_bytes(&self) -> usize {
        let proposed = self.capabilities.as_ref();
        let proposed = proposed.and_then(|it| it.max_data_xfer_size);
        proposed.map_or(MAX_TRANSFER_BYTES, |it| {
            usize::try_from(it).map_or(MAX_TRANSFER_BYTES, |it| it.min(MAX_TRANSFER_BYTES))
        })
    }
}

/// What the server answered to one request.
#[derive(Debug)]
pub struct Reply {
    /// Why it refused.
    pub error: Option<Errno>,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a server, negotiated.
pub struct Client<M = NoMemory> {
    connection: Connection<M>,
    negotiated: Negotiated,
}

impl Client {
    /// Connects to the socket at `path`, and negotiates. The server can't reach memory by messages.
    ///
    /// # Errors
    /// Why there is no session.
    pub fn connect(path: &Path, options: &Options) -> Result<Self, Error> {
        Self::with_memory(connect_to(path, options.timeout)?, options, NoMemory)
    }
}

impl<M: Memory> Client<M> {
    /// Negotiates on a connection; `memory` is what the server reaches by messages.
    ///
    /// # Errors
    /// Why there is no session.
    pub fn with_memory(stream: UnixStream, options: &Options, memory: M) -> Result<Self, Error> {
        let mut connection = Connection::new(stream, options, memory)?;
        let negotiated = negotiate::negotiate(&mut connection, options)?;
        Ok(Self {
            connection,
            negotiated,
        })
    }

    /// What both sides agreed on.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// What the server reaches by messages.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.connection.memory
    }

    /// What the server reaches by messages.
    pub fn memory_mut(&mut self) -> &mut M {
        &mut self.connection.memory
    }

    /// How long to wait for a reply from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.connection.timeout = timeout;
    }

    /// DEVICE_RESET: back to the power-on state.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn reset(&mut self) -> Result<(), Error> {
        self.call(Request::new(Command::DEVICE_RESET)).map(drop)
    }

    /// Sends a request of any command, payload and descriptors, and returns the reply, also one that refuses. For tests,
    /// and for what this client does not know.
    ///
    /// # Errors
    /// What the connection says.
    pub fn call_raw(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply, Error> {
        self.connection.call(&Request {
            parts: [payload, &[], &[]],
            fds,
            max_reply_bytes: usize::MAX,
            ..Request::new(Command(command))
        })
    }

    /// Sends a request of any command and payload that is to have no reply (No_reply).
    ///
    /// # Errors
    /// What the connection says.
    pub fn post_raw(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        self.connection.queue(&Request {
            flags: Header::NO_REPLY,
            parts: [payload, &[], &[]],
            fds,
            ..Request::new(Command(command))
        })?;
        self.connection.flush()
    }

    /// Sends what the `queue_` calls collected.
    ///
    /// # Errors
    /// What the connection says; a server that does not read is one that is late.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.connection.flush()
    }

    /// The reply to the oldest queued request that was not collected yet, after [`Client::flush`]; also one that refuses.
    ///
    /// # Errors
    /// What the connection says.
    pub fn next_reply(&mut self) -> Result<Reply, Error> {
        self.connection.next_reply()
    }

    /// How many requests have replies that [`Client::next_reply`] did not return yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.connection.outstanding()
    }

    /// Answers the server's requests for `duration`, and says how many there were.
    ///
    /// # Errors
    /// What the connection says.
    pub fn serve(&mut self, duration: Duration) -> Result<u64, Error> {
        self.connection.serve(duration)
    }

    /// Sends a request, and takes a reply that grants it.
    fn call(&mut self, request: Request<'_>) -> Result<Reply, Error> {
        let reply = self.connection.call(&request)?;
        granted(request.command, reply)
    }
}

impl<M> AsFd for Client<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.stream().as_fd()
    }
}

impl<M> std::fmt::Debug for Client<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("stream", self.connection.stream())
            .field("negotiated", &self.negotiated)
            .finish_non_exhaustive()
    }
}

/// `reply`, unless it refuses.
fn granted(command: Command, reply: Reply) -> Result<Reply, Error> {
    match reply.error {
        None => Ok(reply),
        Some(errno) => Err(Error::Refused {
            command: error::name(command),
            errno,
        }),
    }
}

/// A connection to the socket at `path`: a full backlog keeps nobody longer than `timeout`.
fn connect_to(path: &Path, timeout: Duration) -> Result<UnixStream, Error> {
    let connecting = || -> Result<OwnedFd, Errno> {
        let address = UnixAddr::new(path)?;
        let stream = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // Zero would be for ever.
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let micros = i64::from(timeout.subsec_micros()).max(1);
        setsockopt(
            &stream,
            sockopt::SendTimeout,
            &TimeVal::new(seconds, micros),
        )?;
        connect(stream.as_raw_fd(), &address)?;
        Ok(stream)
    };
    match connecting() {
        Ok(stream) => Ok(stream.into()),
        Err(errno) => Err(Error::Connect {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}
