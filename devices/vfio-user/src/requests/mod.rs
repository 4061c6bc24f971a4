//! The requests of a negotiated session, one function each.
//!
//! A request's payload may be longer than its structure (SPDK's client sends 4 KiB for GET_REGION_INFO); it may not be
//! shorter. Every size, count, offset and number of descriptors is checked here. Descriptors that a request has no use for
//! (SPDK's client sends one with DMA_UNMAP) are closed, and that before anything else is done: as long as they are open, the
//! client can make closing them take its time, and while it is asked for memory it has the time to.
//!
//! The errno of a refusal is `EINVAL`, unless a function says otherwise.

mod access;
mod dma;
mod feature;
mod info;
mod irqs;
mod migration;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Device, Lent, memory::bitmap_bytes, message::Command, migration::Machine,
    negotiate::Negotiated, socket::Reply,
};

/// What a request works on.
pub(crate) struct Context<'a> {
    pub(crate) device: &'a mut dyn Device,
    pub(crate) lent: &'a mut Lent,
    pub(crate) migration: &'a mut Machine,
    pub(crate) reply: &'a mut Reply,
    /// What was agreed on with the client.
    pub(crate) negotiated: &'a Negotiated,
}

/// Serves one request and appends the reply's payload to `context.reply`.
///
/// # Errors
/// The errno for the client; what the reply got is to be dropped. `ENOTSUP` for a command that no server serves.
pub(crate) fn answer(
    context: &mut Context<'_>,
    command: Command,
    payload: &[u8],
    mut fds: Vec<OwnedFd>,
) -> Result<(), Errno> {
    if !matches!(command, Command::DEVICE_SET_IRQS | Command::DMA_MAP) {
        fds.clear();
    }
    match command {
        Command::REGION_WRITE => access::write(context, payload),
        Command::REGION_READ => access::read(context, payload),
        Command::REGION_WRITE_MULTI => access::write_multi(context, payload),
        Command::DEVICE_SET_IRQS => irqs::set(context, payload, fds),
        Command::DMA_MAP => dma::map(context, payload, fds),
        Command::DMA_UNMAP => dma::unmap(context, payload),
        Command::DEVICE_GET_INFO => info::device(context, payload),
        Command::DEVICE_GET_REGION_INFO => info::region(context, payload),
        Command::DEVICE_GET_REGION_IO_FDS => info::io_fds(context, payload),
        Command::DEVICE_GET_IRQ_INFO => irqs::info(context, payload),
        Command::DEVICE_FEATURE => feature::answer(context, payload),
        Command::MIG_DATA_READ => migration::read(context, payload),
        Command::MIG_DATA_WRITE => migration::write(context, payload),
        Command::VERSION => Err(Errno::EINVAL),
        _ => Err(Errno::ENOTSUP),
    }
}

/// The request's structure and what follows it.
fn parse<T: FromBytes + Immutable + KnownLayout>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_| Errno::EINVAL)
}

fn append<T: IntoBytes + Immutable>(out: &mut Vec<u8>, reply: &T) {
    out.extend_from_slice(reply.as_bytes());
}

/// `argsz` of a request says how much reply the client takes; the whole structure is the least.
fn check_argsz<T>(argsz: u32) -> Result<(), Errno> {
    if (argsz as usize) < size_of::<T>() {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

/// How long the bitmap for a range is, if the client takes it in one message.
fn bitmap_room(context: &Context<'_>, size_bytes: u64, page_bytes: u64) -> Result<usize, Errno> {
    let bytes = bitmap_bytes(size_bytes, page_bytes)?;
    if bytes as u64 > context.negotiated.max_bitmap_bytes {
        return Err(Errno::E2BIG);
    }
    Ok(bytes)
}
