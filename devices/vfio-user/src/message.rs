//! The messages of the protocol, as they lie in memory: little data, no decisions.
//!
//! All fields are in the host's byte order ("Protocol Specification" in the specification).

use vfio_bindings::bindings::vfio as bindings;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Every message begins with this ("Header").
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Header {
    /// The sender's own; echoed in the reply.
    pub(crate) id: u16,
    pub(crate) command: Command,
    /// The whole message, header included.
    pub(crate) size_bytes: u32,
    pub(crate) flags: u32,
    /// An errno, in a reply with [`Header::ERROR`].
    pub(crate) error: u32,
}

impl Header {
    pub(crate) const TYPE_MASK: u32 = 0xf;
    pub(crate) const TYPE_COMMAND: u32 = 0;
    pub(crate) const TYPE_REPLY: u32 = 1;
    pub(crate) const NO_REPLY: u32 = 1 << 4;
    pub(crate) const ERROR: u32 = 1 << 5;
}

/// What a message asks for. Others than these may arrive.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub(crate) struct Command(pub(crate) u16);

impl Command {
    pub(crate) const VERSION: Self = Self(1);
    pub(crate) const DMA_MAP: Self = Self(2);
    pub(crate) const DMA_UNMAP: Self = Self(3);
    pub(crate) const DEVICE_GET_INFO: Self = Self(4);
    pub(crate) const DEVICE_GET_REGION_INFO: Self = Self(5);
    pub(crate) const DEVICE_GET_IRQ_INFO: Self = Self(7);
    pub(crate) const DEVICE_SET_IRQS: Self = Self(8);
    pub(crate) const REGION_READ: Self = Self(9);
    pub(crate) const REGION_WRITE: Self = Self(10);
    pub(crate) const DEVICE_RESET: Self = Self(13);
    pub(crate) const DEVICE_FEATURE: Self = Self(16);
}

/// VERSION, both ways; JSON follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Version {
    pub(crate) major: u16,
    pub(crate) minor: u16,
}

/// DMA_MAP request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DmaMap {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) size_bytes: u64,
}

impl DmaMap {
    pub(crate) const READABLE: u32 = bindings::VFIO_DMA_MAP_FLAG_READ;
    pub(crate) const WRITEABLE: u32 = bindings::VFIO_DMA_MAP_FLAG_WRITE;
}

/// DMA_UNMAP, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DmaUnmap {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) address: u64,
    pub(crate) size_bytes: u64,
}

impl DmaUnmap {
    pub(crate) const ALL: u32 = 1 << 1;
}

/// DEVICE_GET_INFO, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DeviceInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) region_count: u32,
    pub(crate) irq_count: u32,
}

impl DeviceInfo {
    pub(crate) const RESET: u32 = bindings::VFIO_DEVICE_FLAGS_RESET;
    pub(crate) const PCI: u32 = bindings::VFIO_DEVICE_FLAGS_PCI;
}

/// DEVICE_GET_REGION_INFO, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) cap_offset: u32,
    pub(crate) size_bytes: u64,
    pub(crate) offset: u64,
}

impl RegionInfo {
    pub(crate) const READ: u32 = bindings::VFIO_REGION_INFO_FLAG_READ;
    pub(crate) const WRITE: u32 = bindings::VFIO_REGION_INFO_FLAG_WRITE;
}

/// DEVICE_GET_IRQ_INFO, both ways.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct IrqInfo {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) count: u32,
}

impl IrqInfo {
    pub(crate) const EVENTFD: u32 = bindings::VFIO_IRQ_INFO_EVENTFD;
    pub(crate) const MASKABLE: u32 = bindings::VFIO_IRQ_INFO_MASKABLE;
    pub(crate) const AUTOMASKED: u32 = bindings::VFIO_IRQ_INFO_AUTOMASKED;
    pub(crate) const NORESIZE: u32 = bindings::VFIO_IRQ_INFO_NORESIZE;
}

/// DEVICE_SET_IRQS request; booleans may follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct IrqSet {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) start: u32,
    pub(crate) count: u32,
}

impl IrqSet {
    pub(crate) const DATA_MASK: u32 = bindings::VFIO_IRQ_SET_DATA_TYPE_MASK;
    pub(crate) const DATA_NONE: u32 = bindings::VFIO_IRQ_SET_DATA_NONE;
    pub(crate) const DATA_BOOL: u32 = bindings::VFIO_IRQ_SET_DATA_BOOL;
    pub(crate) const DATA_EVENTFD: u32 = bindings::VFIO_IRQ_SET_DATA_EVENTFD;
    pub(crate) const ACTION_MASK: u32 = bindings::VFIO_IRQ_SET_ACTION_MASK;
    pub(crate) const ACTION_UNMASK: u32 = bindings::VFIO_IRQ_SET_ACTION_UNMASK;
    pub(crate) const ACTION_TRIGGER: u32 = bindings::VFIO_IRQ_SET_ACTION_TRIGGER;
    pub(crate) const ACTIONS: u32 = bindings::VFIO_IRQ_SET_ACTION_TYPE_MASK;
}

/// REGION_READ and REGION_WRITE, both ways; the data follows a read's reply and a write's request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionAccess {
    pub(crate) offset: u64,
    pub(crate) region: u32,
    pub(crate) count: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32);
    assert!(size_of::<DmaUnmap>() == 24);
    assert!(size_of::<DeviceInfo>() == 16);
    assert!(size_of::<RegionInfo>() == 32);
    assert!(size_of::<IrqInfo>() == 16);
    assert!(size_of::<IrqSet>() == 20);
    assert!(size_of::<RegionAccess>() == 16);
};

/// VFIO's own structures, which these are, as types that bytes from a client can be read into.
const _: () = {
    use std::mem::offset_of;

    use bindings::{vfio_device_info, vfio_irq_info, vfio_irq_set, vfio_region_info};
    assert!(offset_of!(DeviceInfo, flags) == offset_of!(vfio_device_info, flags));
    assert!(offset_of!(DeviceInfo, region_count) == offset_of!(vfio_device_info, num_regions));
    assert!(offset_of!(DeviceInfo, irq_count) == offset_of!(vfio_device_info, num_irqs));
    assert!(size_of::<RegionInfo>() == size_of::<vfio_region_info>());
    assert!(offset_of!(RegionInfo, index) == offset_of!(vfio_region_info, index));
    assert!(offset_of!(RegionInfo, cap_offset) == offset_of!(vfio_region_info, cap_offset));
    assert!(offset_of!(RegionInfo, size_bytes) == offset_of!(vfio_region_info, size));
    assert!(offset_of!(RegionInfo, offset) == offset_of!(vfio_region_info, offset));
    assert!(size_of::<IrqInfo>() == size_of::<vfio_irq_info>());
    assert!(offset_of!(IrqInfo, index) == offset_of!(vfio_irq_info, index));
    assert!(offset_of!(IrqInfo, count) == offset_of!(vfio_irq_info, count));
    assert!(size_of::<IrqSet>() == size_of::<vfio_irq_set>());
    assert!(offset_of!(IrqSet, index) == offset_of!(vfio_irq_set, index));
    assert!(offset_of!(IrqSet, start) == offset_of!(vfio_irq_set, start));
    assert!(offset_of!(IrqSet, count) == offset_of!(vfio_irq_set, count));
};
