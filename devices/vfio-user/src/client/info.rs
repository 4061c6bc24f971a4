//! What the server says of the device.

use std::{ops::Range, os::fd::OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Client, Error, Memory, Reply, connection::Request};
use crate::message::{
    self, CapabilityHeader, Command, RegionIoFds, RegionType, SparseArea, SparseMmap,
};

/// What a region's capabilities or io descriptors may take; thousands of each.
const MAX_REPLY_BYTES: usize = 256 << 10;
/// How often a reply may turn out to be longer than the last one said.
const MAX_TRIES: usize = 4;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// It understands DEVICE_RESET.
    pub reset: bool,
    /// It is a PCI device.
    pub pci: bool,
    /// How many region indexes it has.
    pub region_count: u32,
    /// How many IRQ indexes it has.
    pub irq_count: u32,
}

/// A region.
#[derive(Debug)]
pub struct RegionInfo {
    /// Bytes; 0: there is none.
    pub size_bytes: u64,
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
    /// It, or its `sparse_areas`, can be mapped.
    pub mmap: bool,
    /// Where the region begins in `file`.
    pub offset: u64,
    /// The parts that can be mapped, by offset in the region; `None`: all of it.
    pub sparse_areas: Option<Vec<Range<u64>>>,
    /// Type and subtype of a region that only this device has.
    pub kind: Option<(u32, u32)>,
    /// The ids of all its capabilities.
    pub capabilities: Vec<u16>,
    /// What can be mapped.
    pub file: Option<OwnedFd>,
}

/// An IRQ index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many interrupts it has.
    pub count: u32,
    /// They can be signalled by eventfds.
    pub eventfd: bool,
    /// They can be masked.
    pub maskable: bool,
    /// They mask themselves when they are signalled.
    pub automasked: bool,
    /// They are connected all at once.
    pub noresize: bool,
}

/// The parts of a region that are reached through descriptors.
#[derive(Debug)]
pub struct IoFds {
    /// The parts.
    pub sub_regions: Vec<SubRegion>,
    /// What their `fd_index` counts in.
    pub fds: Vec<OwnedFd>,
}

/// A part of a region that is reached through a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubRegion {
    /// Where in the region.
    pub offset: u64,
    /// Bytes; 0: any.
    pub size_bytes: u64,
    /// Which of [`IoFds::fds`].
    pub fd_index: usize,
    /// An ioregionfd rather than an ioeventfd.
    pub ioregionfd: bool,
    /// The specification's flags.
    pub flags: u32,
    /// The value that is matched, or an ioregionfd's user data.
    pub data: u64,
}

impl<M: Memory> Client<M> {
    /// DEVICE_GET_INFO.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn device_info(&mut self) -> Result<DeviceInfo, Error> {
        let request = message::DeviceInfo {
            argsz: size_of::<message::DeviceInfo>() as u32,
            flags: 0,
            region_count: 0,
            irq_count: 0,
        };
        let reply = self.call(Request {
            parts: [request.as_bytes(), &[], &[]],
            max_reply_bytes: MAX_REPLY_BYTES,
            ..Request::new(Command::DEVICE_GET_INFO)
        })?;
        let (info, _) = parse::<message::DeviceInfo>(&reply.payload)?;
        Ok(DeviceInfo {
            reset: info.flags & message::DeviceInfo::RESET != 0,
            pci: info.flags & message::DeviceInfo::PCI != 0,
            region_count: info.region_count,
            irq_count: info.irq_count,
        })
    }

    /// DEVICE_GET_REGION_INFO, asked again when the answer has capabilities.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn region_info(&mut self, index: u32) -> Result<RegionInfo, Error> {
        let request = message::RegionInfo {
            argsz: 0,
            flags: 0,
            index,
            cap_offset: 0,
            size_bytes: 0,
            offset: 0,
        };
        let argsz = size_of::<message::RegionInfo>();
        let reply = self.ask(Command::DEVICE_GET_REGION_INFO, request.as_bytes(), argsz)?;
        region(index, reply)
    }

    /// DEVICE_GET_REGION_IO_FDS, asked again when the answer has parts.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn region_io_fds(&mut self, index: u32) -> Result<IoFds, Error> {
        let request = RegionIoFds {
            argsz: 0,
            flags: 0,
            index,
            count: 0,
        };
        let argsz = size_of::<RegionIoFds>();
        let reply = self.ask(Command::DEVICE_GET_REGION_IO_FDS, request.as_bytes(), argsz)?;
        io_fds(index, reply)
    }

    /// DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, Error> {
        let request = message::IrqInfo {
            argsz: size_of::<message::IrqInfo>() as u32,
            flags: 0,
            index,
            count: 0,
        };
        let reply = self.call(Request {
            parts: [request.as_bytes(), &[], &[]],
            max_reply_bytes: MAX_REPLY_BYTES,
            ..Request::new(Command::DEVICE_GET_IRQ_INFO)
        })?;
        let (info, _) = parse::<message::IrqInfo>(&reply.payload)?;
        if info.index != index {
            return Err(Error::Protocol("another IRQ index was answered"));
        }
        Ok(IrqInfo {
            count: info.count,
            eventfd: info.flags & message::IrqInfo::EVENTFD != 0,
            maskable: info.flags & message::IrqInfo::MASKABLE != 0,
            automasked: info.flags & message::IrqInfo::AUTOMASKED != 0,
            noresize: info.flags & message::IrqInfo::NORESIZE != 0,
        })
    }

    /// Sends `request`, whose first field is `argsz`, and again with as much as the reply says it needs.
    fn ask(&mut self, command: Command, request: &[u8], mut argsz: usize) -> Result<Reply, Error> {
        let rest = request.get(size_of::<u32>()..).unwrap_or_default();
        for _ in 0..MAX_TRIES {
            let reply = self.call(Request {
                parts: [&(argsz as u32).to_ne_bytes(), rest, &[]],
                max_reply_bytes: MAX_REPLY_BYTES,
                ..Request::new(command)
            })?;
            let needed = parse::<u32>(&reply.payload)?.0 as usize;
            if needed <= argsz {
                return Ok(reply);
            }
            if needed > MAX_REPLY_BYTES {
                return Err(Error::Protocol(
                    "a reply wants to be longer than makes sense",
                ));
            }
            argsz = needed;
        }
        Err(Error::Protocol("a reply never is as long as it says"))
    }
}

fn parse<T: FromBytes + Immutable + KnownLayout>(data: &[u8]) -> Result<(T, &[u8]), Error> {
    T::read_from_prefix(data).map_err(|_| Error::Protocol("a reply is too short"))
}

fn region(index: u32, reply: Reply) -> Result<RegionInfo, Error> {
    let (info, _) = parse::<message::RegionInfo>(&reply.payload)?;
    if info.index != index {
        return Err(Error::Protocol("another region was answered"));
    }
    let mut region = RegionInfo {
        size_bytes: info.size_bytes,
        read: info.flags & message::RegionInfo::READ != 0,
        write: info.flags & message::RegionInfo::WRITE != 0,
        mmap: info.flags & message::RegionInfo::MMAP != 0,
        offset: info.offset,
        sparse_areas: None,
        kind: None,
        capabilities: Vec::new(),
        file: None,
    };
    if info.flags & message::RegionInfo::CAPS != 0 {
        capabilities(&mut region, &reply.payload, info.cap_offset)?;
    }
    if region.mmap {
        region.file = reply.fds.into_iter().next();
    }
    Ok(region)
}

/// Follows the chain of capabilities, each of which says where the next is.
fn capabilities(region: &mut RegionInfo, payload: &[u8], first: u32) -> Result<(), Error> {
    let mut next = first as usize;
    while next != 0 {
        if region.capabilities.len() * size_of::<CapabilityHeader>() > payload.len() {
            return Err(Error::Protocol(
                "a region's capabilities go round in a circle",
            ));
        }
        let data = payload
            .get(next..)
            .ok_or(Error::Protocol("a capability lies outside of its reply"))?;
        let (header, _) = parse::<CapabilityHeader>(data)?;
        match header.id {
            // Each is as long as the whole reply may be: a chain of them would take minutes to read.
            CapabilityHeader::SPARSE_MMAP if region.sparse_areas.is_some() => {
                return Err(Error::Protocol("a region has two lists of areas"));
            }
            CapabilityHeader::SPARSE_MMAP => {
                region.sparse_areas = Some(sparse_areas(region.size_bytes, data)?);
            }
            CapabilityHeader::TYPE => {
                let (kind, _) = parse::<RegionType>(data)?;
                region.kind = Some((kind.kind, kind.subtype));
            }
            _ => {}
        }
        region.capabilities.push(header.id);
        next = header.next as usize;
    }
    Ok(())
}

fn sparse_areas(size_bytes: u64, data: &[u8]) -> Result<Vec<Range<u64>>, Error> {
    let (head, rest) = parse::<SparseMmap>(data)?;
    let bytes = (head.area_count as usize).checked_mul(size_of::<SparseArea>());
    let areas = bytes
        .and_then(|bytes| rest.get(..bytes))
        .ok_or(Error::Protocol("a region has fewer areas than it says"))?;
    let areas = areas.chunks_exact(size_of::<SparseArea>());
    areas
        .map(|area| {
            let (area, _) = parse::<SparseArea>(area)?;
            let end = area.offset.checked_add(area.size_bytes);
            end.filter(|end| *end <= size_bytes)
                .map(|end| area.offset..end)
                .ok_or(Error::Protocol("an area lies outside of its region"))
        })
        .collect()
}

fn io_fds(index: u32, reply: Reply) -> Result<IoFds, Error> {
    let (head, rest) = parse::<RegionIoFds>(&reply.payload)?;
    if head.index != index {
        return Err(Error::Protocol("another region was answered"));
    }
    let count = head.count as usize;
    // Entries may become longer than they are today: what the reply says tells by how much.
    let each = rest.len().checked_div(count).unwrap_or(usize::MAX);
    if each < size_of::<message::SubRegion>() {
        return Err(Error::Protocol("a region has fewer parts than it says"));
    }
    let entries = rest.chunks_exact(each).take(count);
    let sub_regions = entries.map(|entry| {
        let (entry, _) = parse::<message::SubRegion>(entry)?;
        let fd_index = entry.fd_index as usize;
        if fd_index >= reply.fds.len() {
            return Err(Error::Protocol("a part's descriptor did not come along"));
        }
        Ok(SubRegion {
            offset: entry.offset,
            size_bytes: entry.size_bytes,
            fd_index,
            ioregionfd: entry.kind == message::SubRegion::IOREGIONFD,
            flags: entry.flags,
            data: entry.data,
        })
    });
    Ok(IoFds {
        sub_regions: sub_regions.collect::<Result<_, _>>()?,
        fds: reply.fds,
    })
}
