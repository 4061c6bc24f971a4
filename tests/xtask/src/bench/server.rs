//! The servers that are compared, each in a process of its own: this program, started again with a hidden command.

use std::{
    convert::Infallible,
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::Signal,
        socket::{MsgFlags, recv, send},
    },
};
use peer_vfio_user::{DmaMapFlags, DmaUnmapFlags, Server, ServerBackend, ServerRegion};
use vfio_bindings::bindings::vfio::vfio_region_info;
use vfio_user::{Device, IrqInfo, Lent, Region, Session};

/// Room for a register or two that the client uses.
const REGION_BYTES: u64 = 0x1000;
/// Larger than what the socket holds, so that a stream is taken with as few calls as can be.
const STREAM_BYTES: usize = 1 << 20;
/// How long who spins does so before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Kind {
    /// recv and send: what no server can be faster than.
    Limit,
    /// This project's crate, and a device that does nothing.
    Library,
    /// `vfu-device e1000`.
    Device,
    /// The published crate `vfio_user`, and a backend that does nothing.
    Crate,
}

#[derive(Debug, Parser)]
pub(crate) struct Args {
    kind: Kind,
    /// Where to listen.
    #[arg(long)]
    socket: PathBuf,
    /// The limit only: for each so many bytes that arrive ...
    #[arg(long, default_value_t = 1)]
    take: usize,
    /// ... so many are sent.
    #[arg(long, default_value_t = 0)]
    give: usize,
    /// The device only: its configuration.
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// Look for messages for a while before sleeping.
    #[arg(long)]
    spin: bool,
}

/// Serves one client to its end.
pub(crate) fn run(args: &Args) -> Result<()> {
    // Whatever becomes of the program that compares, its servers do not outlive it.
    prctl::set_pdeathsig(Signal::SIGKILL).context("follow the parent")?;
    match args.kind {
        Kind::Limit => limit(args),
        Kind::Library => library(accept(&args.socket)?, args.spin),
        Kind::Device => device(args).map(|never| match never {}),
        Kind::Crate => published(&args.socket),
    }
}

fn accept(path: &Path) -> Result<UnixStream> {
    let listener = UnixListener::bind(path).context("listen")?;
    Ok(listener.accept().context("accept")?.0)
}

fn limit(args: &Args) -> Result<()> {
    let stream = accept(&args.socket)?;
    let mut buffer = vec![0; STREAM_BYTES];
    let reply = vec![0; STREAM_BYTES];
    let mut taken = 0;
    loop {
        match receive(&stream, &mut buffer, args.spin) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(()),
            Ok(count) => taken += count,
            Err(errno) => return Err(errno).context("receive"),
        }
        let mut due = taken / args.take * args.give;
        taken %= args.take;
        while due > 0 {
            due -= send(stream.as_raw_fd(), &reply[..due], MsgFlags::MSG_NOSIGNAL)?;
        }
    }
}

/// Spinning has an end, or a server whose turn is over would take the processor from the others.
fn receive(stream: &UnixStream, buffer: &mut [u8], spin: bool) -> nix::Result<usize> {
    let fd = stream.as_raw_fd();
    let started = Instant::now();
    while spin && started.elapsed() < SPIN {
        match recv(fd, buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => std::hint::spin_loop(),
            received => return received,
        }
    }
    recv(fd, buffer, MsgFlags::empty())
}

/// A device of one region that keeps what was written last.
struct Trivial {
    regions: [Region; 1],
    kept: [u8; 4],
}

impl Device for Trivial {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[IrqInfo] {
        &[]
    }

    fn read(&mut self, _: &mut Lent, _: u32, _: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.copy_from_slice(self.kept.get(..data.len()).ok_or(Errno::EINVAL)?);
        Ok(())
    }

    fn write(&mut self, _: &mut Lent, _: u32, _: u64, data: &[u8]) -> Result<(), Errno> {
        self.kept = data.try_into().map_err(|_| Errno::EINVAL)?;
        Ok(())
    }

    fn reset(&mut self, _: &mut Lent) {
        self.kept = [0; 4];
    }
}

fn library(stream: UnixStream, spin: bool) -> Result<()> {
    let mut device = Trivial {
        regions: [Region::new(REGION_BYTES)],
        kept: [0; 4],
    };
    let mut session = Session::new(stream, &device, Instant::now())?;
    if spin {
        session.set_spin(SPIN);
    }
    loop {
        match session.wait(&mut device) {
            Ok(()) => {}
            Err(vfio_user::Closed::ByClient) => return Ok(()),
            Err(error) => return Err(error).context("serve"),
        }
    }
}

/// Becomes `vfu-device`, so that the process that was started is the one that serves.
fn device(args: &Args) -> Result<Infallible> {
    let program = std::env::current_exe()?.with_file_name("vfu-device");
    let mut command = Command::new(&program);
    command.arg("e1000").arg("--socket-path").arg(&args.socket);
    if let Some(config) = &args.config {
        command.arg("--config").arg(config);
    }
    if args.spin {
        command.arg(format!("--spin-us={}", SPIN.as_micros()));
    }
    Err(command.exec()).with_context(|| format!("start {}", program.display()))
}

/// A backend of one region that keeps what was written last.
struct Backend([u8; 4]);

impl ServerBackend for Backend {
    fn region_read(&mut self, _: u32, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.copy_from_slice(&self.0);
        Ok(())
    }

    fn region_write(&mut self, _: u32, _: u64, data: &[u8]) -> io::Result<()> {
        self.0.copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        _: u64,
        _: u64,
        _: u64,
        _: Option<File>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}

fn published(socket: &Path) -> Result<()> {
    let region = ServerRegion {
        region_info: vfio_region_info {
            size: REGION_BYTES,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let server = Server::new(socket, true, Vec::new(), vec![region]);
    let server = match server {
        Ok(server) => server,
        Err(error) => bail!("listen: {error}"),
    };
    match server.run(&mut Backend([0; 4])) {
        Ok(()) => Ok(()),
        Err(error) => bail!("serve: {error}"),
    }
}
