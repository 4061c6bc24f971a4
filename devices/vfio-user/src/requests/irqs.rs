//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS: which interrupts the device has, and what becomes of them.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use super::{Context, append, check_argsz, parse};
use crate::{
    irq::{IrqAction, IrqKind},
    message::{IrqInfo, IrqSet},
};

/// DEVICE_GET_IRQ_INFO.
pub(super) fn info(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<IrqInfo>(payload)?;
    check_argsz::<IrqInfo>(request.argsz)?;
    let irq = context
        .device
        .irqs()
        .get(request.index as usize)
        .ok_or(Errno::EINVAL)?;
    let flags = match (irq.count, irq.kind) {
        (0, _) => 0,
        (_, IrqKind::Level) => IrqInfo::EVENTFD | IrqInfo::MASKABLE | IrqInfo::AUTOMASKED,
        (_, IrqKind::Message) => IrqInfo::EVENTFD | IrqInfo::MASKABLE | IrqInfo::NORESIZE,
        (_, IrqKind::Notice) => IrqInfo::EVENTFD | IrqInfo::NORESIZE,
    };
    append(
        &mut context.reply.bytes,
        &IrqInfo {
            argsz: size_of::<IrqInfo>() as u32,
            flags,
            index: request.index,
            count: irq.count,
        },
    );
    Ok(())
}

/// DEVICE_SET_IRQS.
pub(super) fn set(
    context: &mut Context<'_>,
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<(), Errno> {
    let (request, data) = parse::<IrqSet>(payload)?;
    check_argsz::<IrqSet>(request.argsz)?;
    let IrqSet {
        argsz,
        flags,
        index,
        start,
        count,
    } = request;
    if flags & !(IrqSet::DATA_MASK | IrqSet::ACTIONS) != 0 {
        return Err(Errno::EINVAL);
    }
    let (data_type, action) = (flags & IrqSet::DATA_MASK, flags & IrqSet::ACTIONS);
    if !fds.is_empty() && data_type != IrqSet::DATA_EVENTFD {
        return Err(Errno::EINVAL);
    }
    let info = context.device.irqs().get(index as usize);
    let available = info.ok_or(Errno::EINVAL)?.count;
    if start >= available || count > available - start {
        return Err(Errno::EINVAL);
    }
    let irqs = &mut context.lent.irqs;
    let number = count as usize;
    if count == 0 {
        return match (data_type, action, start) {
            (IrqSet::DATA_NONE, IrqSet::ACTION_TRIGGER, 0) => irqs.disconnect(index),
            _ => Err(Errno::EINVAL),
        };
    }
    // An absent list of booleans stands for all true.
    let booleans = match data_type {
        // Here argsz is of the request, the booleans included.
        IrqSet::DATA_BOOL if (argsz as usize) < size_of::<IrqSet>() + number => {
            return Err(Errno::EINVAL);
        }
        IrqSet::DATA_BOOL => Some(data.get(..number).ok_or(Errno::EINVAL)?),
        _ => None,
    };
    let chosen = |i: usize| booleans.is_none_or(|list| list[i] != 0);
    match (data_type, action) {
        (IrqSet::DATA_NONE | IrqSet::DATA_BOOL, IrqSet::ACTION_TRIGGER) => {
            irqs.try_out(index, start, number, chosen)
        }
        (IrqSet::DATA_NONE | IrqSet::DATA_BOOL, IrqSet::ACTION_MASK) => {
            irqs.set_mask(index, start, number, true, chosen)
        }
        (IrqSet::DATA_NONE | IrqSet::DATA_BOOL, IrqSet::ACTION_UNMASK) => {
            irqs.set_mask(index, start, number, false, chosen)
        }
        (IrqSet::DATA_EVENTFD, action) => {
            let action = match action {
                IrqSet::ACTION_TRIGGER => IrqAction::Trigger,
                IrqSet::ACTION_MASK => IrqAction::Mask,
                IrqSet::ACTION_UNMASK => IrqAction::Unmask,
                _ => return Err(Errno::EINVAL),
            };
            // No descriptors at all: those of the range are taken away.
            if fds.is_empty() {
                return irqs.connect(index, action, start, (0..number).map(|_| None));
            }
            if fds.len() != number {
                return Err(Errno::EINVAL);
            }
            irqs.connect(index, action, start, fds.into_iter().map(Some))
        }
        _ => Err(Errno::EINVAL),
    }
}
