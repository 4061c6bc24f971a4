//! MIG_DATA_READ and MIG_DATA_WRITE: the saved state in pieces.

use nix::errno::Errno;

use super::{Context, append, parse};
use crate::{message::MigrationData, negotiate::MAX_TRANSFER_BYTES};

/// MIG_DATA_READ. The stream ends with a reply that has less than was asked for.
pub(super) fn read(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<MigrationData>(payload)?;
    let size = request.size_bytes as usize;
    let needed = size_of::<MigrationData>().saturating_add(size);
    if size > MAX_TRANSFER_BYTES || needed > request.argsz as usize {
        return Err(Errno::EINVAL);
    }
    let data = context.migration.read(size)?;
    append(
        &mut context.reply.bytes,
        &MigrationData {
            argsz: (size_of::<MigrationData>() + data.len()) as u32,
            size_bytes: data.len() as u32,
        },
    );
    context.reply.bytes.extend_from_slice(data);
    Ok(())
}

/// MIG_DATA_WRITE: `ENOMEM` when the state becomes too long. There is no reply that `argsz` could limit.
pub(super) fn write(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, data) = parse::<MigrationData>(payload)?;
    let size = request.size_bytes as usize;
    if size > MAX_TRANSFER_BYTES {
        return Err(Errno::EINVAL);
    }
    context
        .migration
        .write(data.get(..size).ok_or(Errno::EINVAL)?)
}
