//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS: which interrupts the device has, and what becomes of them.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{SFlag, fstat},
};

use super::{Context, append, check_argsz, parse};
use crate::message::{IrqInfo, IrqSet};

/// DEVICE_GET_IRQ_INFO.
pub(super) fn info(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<IrqInfo>(payload)?;
    check_argsz::<IrqInfo>(request.argsz)?;
    let irq = context
        .device
        .irqs()
        .get(request.index as usize)
        .ok_or(Errno::EINVAL)?;
    let flags = match (irq.count, irq.level) {
        (0, _) => 0,
        (_, true) => IrqInfo::EVENTFD | IrqInfo::MASKABLE | IrqInfo::AUTOMASKED,
        (_, false) => IrqInfo::EVENTFD | IrqInfo::NORESIZE,
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
        (IrqSet::DATA_EVENTFD, IrqSet::ACTION_TRIGGER) => {
            // No descriptors at all: the interrupts of the range are taken away.
            if fds.is_empty() {
                return irqs.connect(index, start, (0..number).map(|_| None));
            }
            if fds.len() != number {
                return Err(Errno::EINVAL);
            }
            for fd in &fds {
                check_eventfd(fd)?;
            }
            irqs.connect(index, start, fds.into_iter().map(Some))
        }
        // To be told of masking by eventfd, as KVM's resampling wants it, is not offered; QEMU falls back.
        (IrqSet::DATA_EVENTFD, IrqSet::ACTION_MASK | IrqSet::ACTION_UNMASK) => Err(Errno::ENOTSUP),
        _ => Err(Errno::EINVAL),
    }
}

/// Takes only what signalling need not wait for: an eventfd, which has no file type, and not for one that is full.
fn check_eventfd(fd: &OwnedFd) -> Result<(), Errno> {
    if fstat(fd)?.st_mode & SFlag::S_IFMT.bits() != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(|_| ())
}
