//! REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: accesses to the device's regions by message.

use nix::errno::Errno;
use zerocopy::FromBytes;

use super::{Context, append, parse};
use crate::{
    Access, Device,
    message::{MultiWrite, RegionAccess, RegionWriteMulti},
    negotiate::MAX_TRANSFER_BYTES,
};

/// REGION_READ: what the device says otherwise.
pub(super) fn read(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (access, _) = parse::<RegionAccess>(payload)?;
    let count = check(context.device, &access, |allowed| allowed.read)?;
    let out = &mut context.reply.bytes;
    append(out, &access);
    let start = out.len();
    out.resize(start + count, 0);
    context.device.read(
        context.lent,
        access.region,
        access.offset,
        &mut out[start..],
    )
}

/// REGION_WRITE: what the device says otherwise.
pub(super) fn write(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (access, data) = parse::<RegionAccess>(payload)?;
    write_one(context, &access, data)?;
    append(&mut context.reply.bytes, &access);
    Ok(())
}

/// REGION_WRITE_MULTI. As write(2) does it, a write that fails ends the request: the reply says how many were done before,
/// and is that write's error when there were none. A client need not have negotiated `write_multiple`, which tells it
/// that it may.
pub(super) fn write_multi(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, rest) = parse::<RegionWriteMulti>(payload)?;
    let size = usize::try_from(request.write_count)
        .ok()
        .and_then(|count| count.checked_mul(size_of::<MultiWrite>()))
        .ok_or(Errno::EINVAL)?;
    let writes = rest.get(..size).ok_or(Errno::EINVAL)?;
    let mut write_count = 0;
    for write in writes.chunks_exact(size_of::<MultiWrite>()) {
        let write = MultiWrite::read_from_bytes(write).map_err(|_| Errno::EINVAL)?;
        let access = RegionAccess {
            offset: write.offset,
            region: write.region,
            count: write.count,
        };
        match write_one(context, &access, &write.data) {
            Ok(()) => write_count += 1,
            Err(errno) if write_count == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    append(&mut context.reply.bytes, &RegionWriteMulti { write_count });
    Ok(())
}

fn write_one(context: &mut Context<'_>, access: &RegionAccess, data: &[u8]) -> Result<(), Errno> {
    let count = check(context.device, access, |allowed| allowed.write)?;
    let data = data.get(..count).ok_or(Errno::EINVAL)?;
    context
        .device
        .write(context.lent, access.region, access.offset, data)
}

/// The number of bytes, once the range is known to lie in its region, and the region to allow this.
fn check(
    device: &dyn Device,
    access: &RegionAccess,
    allows: impl Fn(Access) -> bool,
) -> Result<usize, Errno> {
    let region = device
        .regions()
        .get(access.region as usize)
        .ok_or(Errno::EINVAL)?;
    let count = access.count as usize;
    let end = access
        .offset
        .checked_add(u64::from(access.count))
        .ok_or(Errno::EINVAL)?;
    if count == 0 || count > MAX_TRANSFER_BYTES || end > region.size_bytes || !allows(region.access)
    {
        return Err(Errno::EINVAL);
    }
    Ok(count)
}
