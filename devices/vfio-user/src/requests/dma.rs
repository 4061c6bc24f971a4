//! DMA_MAP and DMA_UNMAP: which memory of the client the device may reach.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::{Context, append, bitmap_room, check_argsz, parse};
use crate::{
    Access,
    message::{DirtyBitmap, DmaMap, DmaUnmap},
};

/// DMA_MAP: `ENOSPC` for more maps than were agreed on; what [`Memory::map`](crate::Memory::map) says otherwise, `EEXIST`
/// for an overlap among it.
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
    if context.lent.memory.map_count() >= context.negotiated.max_dma_maps {
        return Err(Errno::ENOSPC);
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

/// DMA_UNMAP: `ENOENT` where nothing is mapped; `E2BIG` for a bitmap that is longer than was negotiated. The reply is the
/// request, as the specification wants it, and the bitmap.
pub(super) fn unmap(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, rest) = parse::<DmaUnmap>(payload)?;
    check_argsz::<DmaUnmap>(request.argsz)?;
    let DmaUnmap {
        flags,
        address,
        size_bytes,
        ..
    } = request;
    append(&mut context.reply.bytes, &request);
    match flags {
        0 => context.lent.memory.unmap(address, size_bytes).map(|_| ()),
        DmaUnmap::ALL if address == 0 && size_bytes == 0 => {
            context.lent.memory.unmap_all();
            Ok(())
        }
        DmaUnmap::GET_DIRTY_BITMAP => unmap_with_bitmap(context, &request, rest),
        _ => Err(Errno::EINVAL),
    }
}

/// As version 0.9.1 of the specification has it, which libvfio-user knows: the last chance to learn what the device
/// wrote. The bitmap may be longer than the range needs, and is zero there.
fn unmap_with_bitmap(
    context: &mut Context<'_>,
    request: &DmaUnmap,
    rest: &[u8],
) -> Result<(), Errno> {
    let (bitmap, _) = parse::<DirtyBitmap>(rest)?;
    let needed = bitmap_room(context, request.size_bytes, bitmap.page_size_bytes)?;
    let size = usize::try_from(bitmap.size_bytes).map_err(|_| Errno::EINVAL)?;
    if bitmap.size_bytes > context.negotiated.max_bitmap_bytes {
        return Err(Errno::E2BIG);
    }
    let reply = size_of::<DmaUnmap>() + size_of::<DirtyBitmap>() + size;
    let memory = &mut context.lent.memory;
    if size < needed || reply > request.argsz as usize || !memory.has_dirty_log() {
        return Err(Errno::EINVAL);
    }
    // Nothing that follows can fail, once the map is gone.
    memory.unmap(request.address, request.size_bytes)?;
    let out = &mut context.reply.bytes;
    append(out, &bitmap);
    let page_bytes = bitmap.page_size_bytes;
    memory.report_dirty(request.address, request.size_bytes, page_bytes, out)?;
    out.resize(reply, 0);
    Ok(())
}
