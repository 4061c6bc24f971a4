//! DEVICE_FEATURE: migration and the log of DMA, by the rules that the kernel has for features.

use nix::errno::Errno;
use zerocopy::FromBytes;

use super::{Context, append, bitmap_room, check_argsz, parse};
use crate::message::{
    DeviceFeature as Feature, FeatureDeviceState, FeatureMigration, LoggingControl, LoggingRange,
    LoggingReport,
};

/// What FeatureDeviceState has for a descriptor where there is none.
const NO_FD: u32 = u32::MAX;

/// DEVICE_FEATURE: `ENOTTY` for a feature that the device does not have, and that is each one unless it can be migrated;
/// what the device says where a client asks for another state; `E2BIG` for more ranges to log than the kernel takes, and for
/// a bitmap that is longer than was negotiated.
///
/// As from the kernel, `argsz` that is too small for the answer is an error, not a question for the size that is needed.
pub(super) fn answer(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, data) = parse::<Feature>(payload)?;
    check_argsz::<Feature>(request.argsz)?;
    let operations = request.flags & !Feature::INDEX_MASK;
    let methods = operations & (Feature::GET | Feature::SET);
    let is_probe = operations & Feature::PROBE != 0;
    let is_both = methods == Feature::GET | Feature::SET;
    if operations & !(Feature::GET | Feature::SET | Feature::PROBE) != 0 || is_both && !is_probe {
        return Err(Errno::EINVAL);
    }
    let index = request.flags & Feature::INDEX_MASK;
    let offered = match index {
        _ if context.device.migration().is_none() => 0,
        Feature::MIGRATION | Feature::DMA_LOGGING_REPORT => Feature::GET,
        Feature::DMA_LOGGING_START | Feature::DMA_LOGGING_STOP => Feature::SET,
        Feature::MIG_DEVICE_STATE => Feature::GET | Feature::SET,
        _ => 0,
    };
    if offered == 0 {
        return Err(Errno::ENOTTY);
    }
    if methods & !offered != 0 {
        return Err(Errno::EINVAL);
    }
    if is_probe {
        return echo(context, &request, payload);
    }
    match methods {
        Feature::GET => get(context, &request, index, data),
        Feature::SET => {
            echo(context, &request, payload)?;
            set(context, index, data)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Replies what was asked, which is the whole reply to SET and PROBE.
fn echo(context: &mut Context<'_>, request: &Feature, payload: &[u8]) -> Result<(), Errno> {
    if payload.len() > request.argsz as usize {
        return Err(Errno::EINVAL);
    }
    context.reply.bytes.extend_from_slice(payload);
    Ok(())
}

fn get(context: &mut Context<'_>, request: &Feature, index: u32, data: &[u8]) -> Result<(), Errno> {
    let room = request.argsz as usize - size_of::<Feature>();
    append(&mut context.reply.bytes, request);
    match index {
        Feature::MIGRATION if room >= size_of::<FeatureMigration>() => append(
            &mut context.reply.bytes,
            &FeatureMigration {
                flags: FeatureMigration::STOP_COPY | FeatureMigration::PRE_COPY,
            },
        ),
        Feature::MIG_DEVICE_STATE if room >= size_of::<FeatureDeviceState>() => append(
            &mut context.reply.bytes,
            &FeatureDeviceState {
                state: context.migration.state(),
                data_fd: NO_FD,
            },
        ),
        Feature::DMA_LOGGING_REPORT => report(context, data, room)?,
        _ => return Err(Errno::EINVAL),
    }
    let out = &mut context.reply.bytes;
    let argsz = out.len() as u32;
    out[..size_of_val(&argsz)].copy_from_slice(&argsz.to_ne_bytes());
    Ok(())
}

/// What is reported is forgotten: everything that could be wrong is looked at before.
fn report(context: &mut Context<'_>, data: &[u8], room: usize) -> Result<(), Errno> {
    let (request, _) = parse::<LoggingReport>(data)?;
    let LoggingReport {
        iova,
        size_bytes,
        page_size_bytes,
    } = request;
    let bytes = bitmap_room(context, size_bytes, page_size_bytes)?;
    if size_of::<LoggingReport>() + bytes > room {
        return Err(Errno::EINVAL);
    }
    let out = &mut context.reply.bytes;
    append(out, &request);
    let memory = &mut context.lent.memory;
    memory.report_dirty(iova, size_bytes, page_size_bytes, out)
}

fn set(context: &mut Context<'_>, index: u32, data: &[u8]) -> Result<(), Errno> {
    match index {
        Feature::DMA_LOGGING_START => start_logging(context, data),
        Feature::DMA_LOGGING_STOP => {
            // Also where nothing was logged: so do the kernel's drivers and libvfio-user.
            context.lent.memory.stop_dirty_log();
            Ok(())
        }
        _ => {
            let (request, _) = parse::<FeatureDeviceState>(data)?;
            let device = context.device.migration().ok_or(Errno::ENOTTY)?;
            context.migration.go(device, context.lent, request.state)
        }
    }
}

/// The reply, which is the request so far, gets the page size that was chosen.
fn start_logging(context: &mut Context<'_>, data: &[u8]) -> Result<(), Errno> {
    let (control, rest) = parse::<LoggingControl>(data)?;
    let size = (control.range_count as usize).checked_mul(size_of::<LoggingRange>());
    let ranges: Vec<LoggingRange> = size
        .and_then(|size| rest.get(..size))
        .ok_or(Errno::EINVAL)?
        .chunks_exact(size_of::<LoggingRange>())
        .map(|range| LoggingRange::read_from_bytes(range).map_err(|_| Errno::EINVAL))
        .collect::<Result<_, _>>()?;
    let memory = &mut context.lent.memory;
    let page_bytes = memory.start_dirty_log(control.page_size_bytes, &ranges)?;
    let at = size_of::<Feature>();
    context.reply.bytes[at..at + 8].copy_from_slice(&page_bytes.to_ne_bytes());
    Ok(())
}
