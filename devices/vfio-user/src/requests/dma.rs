//! DMA_MAP and DMA_UNMAP: which memory of the client the device may reach.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::{Context, append, check_argsz, parse};
use crate::{
    Access,
    message::{DmaMap, DmaUnmap},
};

/// DMA_MAP: what [`Memory::map`](crate::Memory::map) says otherwise, `EEXIST` for an overlap among it.
pub(super) fn map(
    context: &mut Context<'_>,
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<(), Errno> {
    let (request, _) = parse::<DmaMap>(payload)?;
    check_argsz::<DmaMap>(request.argsz)?;
    if request.flags & !(DmaMap::READABLE | DmaMap::WRITEABLE) != 0 || fds.len() > 1 {
        return Err(Errno::EINVAL);
    }
    let access = Access {
        read: request.flags & DmaMap::READABLE != 0,
        write: request.flags & DmaMap::WRITEABLE != 0,
    };
    let file = fds.into_iter().next().map(|fd| (fd, request.offset));
    context
        .lent
        .memory
        .map(request.address, request.size_bytes, access, file)
}

/// DMA_UNMAP: `ENOENT` where nothing is mapped. The reply is the request, as the specification wants it.
pub(super) fn unmap(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<DmaUnmap>(payload)?;
    check_argsz::<DmaUnmap>(request.argsz)?;
    let memory = &mut context.lent.memory;
    match request.flags {
        0 => {
            memory.unmap(request.address, request.size_bytes)?;
        }
        DmaUnmap::ALL if request.address == 0 && request.size_bytes == 0 => {
            memory.unmap_all();
        }
        _ => return Err(Errno::EINVAL),
    }
    append(&mut context.reply.bytes, &request);
    Ok(())
}
