//! DEVICE_FEATURE: migration, by the rules that the kernel has for features.

use nix::errno::Errno;

use super::{Context, append, check_argsz, parse};
use crate::message::{DeviceFeature as Feature, FeatureDeviceState, FeatureMigration};

/// What FeatureDeviceState has for a descriptor where there is none.
const NO_FD: u32 = u32::MAX;

/// DEVICE_FEATURE: `ENOTTY` for a feature that the device does not have, and that is each one unless it can be migrated;
/// what the device says where a client asks for another state.
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
        Feature::MIGRATION => Feature::GET,
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
        Feature::GET => get(context, &request, index),
        Feature::SET => {
            echo(context, &request, payload)?;
            set(context, data)
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

fn get(context: &mut Context<'_>, request: &Feature, index: u32) -> Result<(), Errno> {
    let out = &mut context.reply.bytes;
    append(out, request);
    match index {
        Feature::MIGRATION => append(
            out,
            &FeatureMigration {
                flags: FeatureMigration::STOP_COPY | FeatureMigration::PRE_COPY,
            },
        ),
        _ => append(
            out,
            &FeatureDeviceState {
                state: context.migration.state(),
                data_fd: NO_FD,
            },
        ),
    }
    let argsz = out.len() as u32;
    if argsz > request.argsz {
        return Err(Errno::EINVAL);
    }
    out[..4].copy_from_slice(&argsz.to_ne_bytes());
    Ok(())
}

fn set(context: &mut Context<'_>, data: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<FeatureDeviceState>(data)?;
    let device = context.device.migration().ok_or(Errno::ENOTTY)?;
    context.migration.go(device, context.lent, request.state)
}
