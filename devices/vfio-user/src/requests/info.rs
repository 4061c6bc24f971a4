//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO and DEVICE_GET_REGION_IO_FDS: what the device is made of.

use std::{os::fd::OwnedFd, sync::Arc};

use nix::errno::Errno;

use super::{Context, append, check_argsz, parse};
use crate::{
    Device, DeviceType, Mapping, Region,
    message::{
        CapabilityHeader, DeviceInfo, RegionInfo, RegionIoFds, RegionType, SparseArea, SparseMmap,
        SubRegion,
    },
};

/// DEVICE_GET_INFO.
pub(super) fn device(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<DeviceInfo>(payload)?;
    check_argsz::<DeviceInfo>(request.argsz)?;
    append(
        &mut context.reply.bytes,
        &DeviceInfo {
            argsz: size_of::<DeviceInfo>() as u32,
            flags: DeviceInfo::RESET | DeviceInfo::PCI,
            region_count: context.device.regions().len() as u32,
            irq_count: context.device.irqs().len() as u32,
        },
    );
    Ok(())
}

/// DEVICE_GET_REGION_INFO: what dup says when there is a descriptor to send.
///
/// A client whose `argsz` does not take the capabilities learns how much it needs, and nothing of what they or a
/// descriptor would say. The kernel sets `CAPS` without an offset then, which QEMU's client takes for an error.
pub(super) fn region(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<RegionInfo>(payload)?;
    check_argsz::<RegionInfo>(request.argsz)?;
    let region = find(context.device, request.index)?;
    // A client that takes no descriptors can't map anything.
    let takes_fds = context.negotiated.max_message_fds > 0;
    let mapping = region.mapping.as_ref().filter(|_| takes_fds);
    let capabilities = capabilities(mapping, region.device_type);
    let size = size_of::<RegionInfo>();
    let mut info = RegionInfo {
        argsz: (size + capabilities.len()) as u32,
        flags: 0,
        index: request.index,
        cap_offset: 0,
        size_bytes: region.size_bytes,
        offset: 0,
    };
    if region.size_bytes > 0 {
        for (allowed, flag) in [
            (region.access.read, RegionInfo::READ),
            (region.access.write, RegionInfo::WRITE),
        ] {
            info.flags |= if allowed { flag } else { 0 };
        }
    }
    let fits = request.argsz >= info.argsz;
    let out = &mut context.reply;
    if let Some(mapping) = mapping.filter(|_| fits) {
        info.flags |= RegionInfo::MMAP;
        info.offset = mapping.offset_bytes;
        out.fds.push(duplicate(&mapping.file)?);
    }
    if fits && !capabilities.is_empty() {
        info.flags |= RegionInfo::CAPS;
        info.cap_offset = size as u32;
    }
    append(&mut out.bytes, &info);
    if fits {
        out.bytes.extend_from_slice(&capabilities);
    }
    Ok(())
}

/// The chain that follows [`RegionInfo`].
fn capabilities(mapping: Option<&Mapping>, device_type: Option<DeviceType>) -> Vec<u8> {
    let mut chain = Vec::new();
    let areas = mapping.map_or(&[][..], |mapping| &mapping.areas);
    let sparse_bytes = size_of::<SparseMmap>() + areas.len() * size_of::<SparseArea>();
    if !areas.is_empty() {
        let next = device_type.map_or(0, |_| size_of::<RegionInfo>() + sparse_bytes);
        let header = CapabilityHeader {
            id: CapabilityHeader::SPARSE_MMAP,
            version: 1,
            next: next as u32,
        };
        append(
            &mut chain,
            &SparseMmap {
                header,
                area_count: areas.len() as u32,
                reserved: 0,
            },
        );
        for area in areas {
            append(
                &mut chain,
                &SparseArea {
                    offset: area.start,
                    size_bytes: area.end - area.start,
                },
            );
        }
    }
    if let Some(device_type) = device_type {
        let header = CapabilityHeader {
            id: CapabilityHeader::TYPE,
            version: 1,
            next: 0,
        };
        append(
            &mut chain,
            &RegionType {
                header,
                kind: device_type.kind,
                subtype: device_type.subtype,
            },
        );
    }
    chain
}

/// DEVICE_GET_REGION_IO_FDS: what dup says when there is a descriptor to send.
///
/// A region without events has an empty list, as libvfio-user answers it. Events whose descriptors are more than the
/// client takes in one message are left out: a write that no eventfd announces comes as a message.
pub(super) fn io_fds(context: &mut Context<'_>, payload: &[u8]) -> Result<(), Errno> {
    let (request, _) = parse::<RegionIoFds>(payload)?;
    check_argsz::<RegionIoFds>(request.argsz)?;
    if request.flags != 0 || request.count != 0 {
        return Err(Errno::EINVAL);
    }
    let region = find(context.device, request.index)?;
    if region.size_bytes == 0 {
        return Err(Errno::EINVAL);
    }
    let mut eventfds: Vec<&Arc<OwnedFd>> = Vec::new();
    let mut list = Vec::new();
    for event in &region.io_events {
        let known = eventfds
            .iter()
            .position(|fd| Arc::ptr_eq(fd, &event.eventfd));
        let fd_index = known.unwrap_or(eventfds.len());
        if fd_index >= context.negotiated.max_message_fds {
            continue;
        }
        if known.is_none() {
            eventfds.push(&event.eventfd);
        }
        append(
            &mut list,
            &SubRegion {
                offset: event.offset,
                size_bytes: event.size_bytes,
                fd_index: fd_index as u32,
                kind: SubRegion::IOEVENTFD,
                flags: event.value.map_or(0, |_| SubRegion::DATAMATCH),
                padding: 0,
                data: event.value.unwrap_or(0),
            },
        );
    }
    let argsz = (size_of::<RegionIoFds>() + list.len()) as u32;
    let out = &mut context.reply;
    append(
        &mut out.bytes,
        &RegionIoFds {
            argsz,
            flags: 0,
            index: request.index,
            count: (list.len() / size_of::<SubRegion>()) as u32,
        },
    );
    if request.argsz >= argsz {
        out.bytes.extend_from_slice(&list);
        for eventfd in eventfds {
            out.fds.push(duplicate(eventfd)?);
        }
    }
    Ok(())
}

fn find(device: &dyn Device, index: u32) -> Result<&Region, Errno> {
    device.regions().get(index as usize).ok_or(Errno::EINVAL)
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    fd.try_clone()
        .map_err(|error| Errno::try_from(error).unwrap_or(Errno::EMFILE))
}
