//! The requests of a negotiated session, one function each.
//!
//! A request's payload may be longer than its structure (SPDK's client sends 4 KiB for GET_REGION_INFO); it may not be
//! shorter. Every size, count, offset and number of descriptors is checked here.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{SFlag, fstat},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Device, Lent,
    memory::Access,
    message::{Command, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, IrqSet, RegionAccess, RegionInfo},
    negotiate::{MAX_MESSAGE_FDS, MAX_TRANSFER_BYTES},
    socket::Reply,
};

/// What a request works on.
pub(crate) struct Context<'a> {
    pub(crate) device: &'a mut dyn Device,
    pub(crate) lent: &'a mut Lent,
    pub(crate) reply: &'a mut Reply,
}

/// Serves one request and appends the reply's payload to `context.reply`.
///
/// # Errors
/// The errno for the client; what the reply got is to be dropped.
pub(crate) fn answer(
    context: &mut Context<'_>,
    command: Command,
    payload: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<(), Errno> {
    let Context {
        device,
        lent,
        reply,
    } = context;
    let (device, out) = (&mut **device, &mut reply.bytes);
    if fds.len() > MAX_MESSAGE_FDS {
        return Err(Errno::EINVAL);
    }
    match command {
        Command::REGION_WRITE => region_write(device, lent, payload, out),
        Command::REGION_READ => region_read(device, lent, payload, out),
        Command::DEVICE_SET_IRQS => set_irqs(lent, payload, fds),
        Command::DMA_MAP => dma_map(lent, payload, fds),
        Command::DMA_UNMAP => dma_unmap(lent, payload, out),
        Command::DEVICE_GET_INFO => device_info(device, payload, out),
        Command::DEVICE_GET_REGION_INFO => region_info(device, payload, out),
        Command::DEVICE_GET_IRQ_INFO => irq_info(device, payload, out),
        Command::VERSION => Err(Errno::EINVAL),
        // As the kernel says it of a feature that a device does not have.
        Command::DEVICE_FEATURE => Err(Errno::ENOTTY),
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

fn region_read(
    device: &mut dyn Device,
    lent: &mut Lent,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Errno> {
    let (access, _) = parse::<RegionAccess>(payload)?;
    let count = check_access(device, &access)?;
    append(out, &access);
    let start = out.len();
    out.resize(start + count, 0);
    device.read(lent, access.region, access.offset, &mut out[start..])
}

fn region_write(
    device: &mut dyn Device,
    lent: &mut Lent,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Errno> {
    let (access, data) = parse::<RegionAccess>(payload)?;
    let count = check_access(device, &access)?;
    let data = data.get(..count).ok_or(Errno::EINVAL)?;
    device.write(lent, access.region, access.offset, data)?;
    append(out, &access);
    Ok(())
}

/// The number of bytes, once the range is known to lie in its region.
fn check_access(device: &dyn Device, access: &RegionAccess) -> Result<usize, Errno> {
    let region = device
        .regions()
        .get(access.region as usize)
        .ok_or(Errno::EINVAL)?;
    let count = access.count as usize;
    let end = access
        .offset
        .checked_add(u64::from(access.count))
        .ok_or(Errno::EINVAL)?;
    if count == 0 || count > MAX_TRANSFER_BYTES || end > region.size_bytes {
        return Err(Errno::EINVAL);
    }
    Ok(count)
}

fn device_info(device: &dyn Device, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
    let (request, _) = parse::<DeviceInfo>(payload)?;
    check_argsz::<DeviceInfo>(request.argsz)?;
    append(
        out,
        &DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: DeviceInfo::RESET | DeviceInfo::PCI,
            region_count: device.regions().len() as u32,
            irq_count: device.irqs().len() as u32,
        },
    );
    Ok(())
}

fn region_info(device: &dyn Device, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
    let (request, _) = parse::<RegionInfo>(payload)?;
    check_argsz::<RegionInfo>(request.argsz)?;
    let region = device
        .regions()
        .get(request.index as usize)
        .ok_or(Errno::EINVAL)?;
    let flags = if region.size_bytes == 0 {
        0
    } else {
        RegionInfo::READ | RegionInfo::WRITE
    };
    append(
        out,
        &RegionInfo {
            argsz: size_of::<RegionInfo>() as u32,
            flags,
            index: request.index,
            cap_offset: 0,
            size_bytes: region.size_bytes,
            offset: 0,
        },
    );
    Ok(())
}

fn irq_info(device: &dyn Device, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
    let (request, _) = parse::<IrqInfo>(payload)?;
    check_argsz::<IrqInfo>(request.argsz)?;
    let irq = device
        .irqs()
        .get(request.index as usize)
        .ok_or(Errno::EINVAL)?;
    let flags = match (irq.count, irq.level) {
        (0, _) => 0,
        (_, true) => IrqInfo::EVENTFD | IrqInfo::MASKABLE | IrqInfo::AUTOMASKED,
        (_, false) => IrqInfo::EVENTFD | IrqInfo::NORESIZE,
    };
    let argsz = size_of::<IrqInfo>() as u32;
    append(
        out,
        &IrqInfo {
            argsz,
            flags,
            index: request.index,
            count: irq.count,
        },
    );
    Ok(())
}

fn set_irqs(lent: &mut Lent, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
    let (request, rest) = parse::<IrqSet>(payload)?;
    let IrqSet {
        flags,
        index,
        start,
        count,
        ..
    } = request;
    if flags & !(IrqSet::DATA_MASK | IrqSet::ACTIONS) != 0 {
        return Err(Errno::EINVAL);
    }
    let irqs = &mut lent.irqs;
    let count = count as usize;
    let booleans = || rest.get(..count).ok_or(Errno::EINVAL);
    match (flags & IrqSet::DATA_MASK, flags & IrqSet::ACTIONS) {
        (IrqSet::DATA_NONE, IrqSet::ACTION_TRIGGER) if count == 0 => irqs.disconnect(index),
        (IrqSet::DATA_NONE, IrqSet::ACTION_TRIGGER) => irqs.try_out(index, start, count, |_| true),
        (IrqSet::DATA_NONE, IrqSet::ACTION_MASK) => {
            irqs.set_mask(index, start, count, true, |_| true)
        }
        (IrqSet::DATA_NONE, IrqSet::ACTION_UNMASK) => {
            irqs.set_mask(index, start, count, false, |_| true)
        }
        (IrqSet::DATA_BOOL, action) => {
            let chosen = booleans()?;
            let chosen = |i: usize| chosen[i] != 0;
            match action {
                IrqSet::ACTION_TRIGGER => irqs.try_out(index, start, count, chosen),
                IrqSet::ACTION_MASK => irqs.set_mask(index, start, count, true, chosen),
                IrqSet::ACTION_UNMASK => irqs.set_mask(index, start, count, false, chosen),
                _ => Err(Errno::EINVAL),
            }
        }
        (IrqSet::DATA_EVENTFD, IrqSet::ACTION_TRIGGER) => {
            // No descriptors at all: the interrupts of the range are taken away.
            if fds.is_empty() {
                return irqs.connect(index, start, (0..count).map(|_| None));
            }
            if fds.len() != count {
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

fn dma_map(lent: &mut Lent, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Errno> {
    let (request, _) = parse::<DmaMap>(payload)?;
    if request.flags & !(DmaMap::READABLE | DmaMap::WRITEABLE) != 0 || fds.len() > 1 {
        return Err(Errno::EINVAL);
    }
    let access = Access {
        read: request.flags & DmaMap::READABLE != 0,
        write: request.flags & DmaMap::WRITEABLE != 0,
    };
    let file = fds.into_iter().next().map(|fd| (fd, request.offset));
    lent.memory
        .map(request.address, request.size_bytes, access, file)
}

fn dma_unmap(lent: &mut Lent, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Errno> {
    let (mut request, _) = parse::<DmaUnmap>(payload)?;
    match request.flags {
        0 => {
            lent.memory.unmap(request.address, request.size_bytes)?;
        }
        DmaUnmap::ALL if request.address == 0 && request.size_bytes == 0 => {
            request.size_bytes = lent.memory.unmap_all();
        }
        _ => return Err(Errno::EINVAL),
    }
    append(out, &request);
    Ok(())
}
