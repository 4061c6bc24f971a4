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
    pub(crate) const DEVICE_GET_REGION_IO_FDS: Self = Self(6);
    pub(crate) const DEVICE_GET_IRQ_INFO: Self = Self(7);
    pub(crate) const DEVICE_SET_IRQS: Self = Self(8);
    pub(crate) const REGION_READ: Self = Self(9);
    pub(crate) const REGION_WRITE: Self = Self(10);
    /// From the server to the client, as is the next.
    pub(crate) const DMA_READ: Self = Self(11);
    pub(crate) const DMA_WRITE: Self = Self(12);
    pub(crate) const DEVICE_RESET: Self = Self(13);
    pub(crate) const REGION_WRITE_MULTI: Self = Self(15);
    pub(crate) const DEVICE_FEATURE: Self = Self(16);
    pub(crate) const MIG_DATA_READ: Self = Self(17);
    pub(crate) const MIG_DATA_WRITE: Self = Self(18);
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
    /// A [`DirtyBitmap`] follows, and its bits in the reply.
    pub(crate) const GET_DIRTY_BITMAP: u32 = bindings::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    pub(crate) const ALL: u32 = bindings::VFIO_DMA_UNMAP_FLAG_ALL;
}

/// Behind [`DmaUnmap`], both ways, when its flags say so; in a reply the bits follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DirtyBitmap {
    pub(crate) page_size_bytes: u64,
    /// Of the bits, in whole 64-bit words.
    pub(crate) size_bytes: u64,
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
    /// A descriptor comes along, to be mapped from `offset`.
    pub(crate) const MMAP: u32 = bindings::VFIO_REGION_INFO_FLAG_MMAP;
    /// `cap_offset` is where the first [`CapabilityHeader`] is.
    pub(crate) const CAPS: u32 = bindings::VFIO_REGION_INFO_FLAG_CAPS;
}

/// What each capability of a region begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct CapabilityHeader {
    pub(crate) id: u16,
    pub(crate) version: u16,
    /// Where the next is, from the beginning of [`RegionInfo`]; 0: there is none.
    pub(crate) next: u32,
}

impl CapabilityHeader {
    pub(crate) const SPARSE_MMAP: u16 = bindings::VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16;
    pub(crate) const TYPE: u16 = bindings::VFIO_REGION_INFO_CAP_TYPE as u16;
}

/// The capability of a region of which only parts can be mapped; [`SparseArea`]s follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SparseMmap {
    pub(crate) header: CapabilityHeader,
    pub(crate) area_count: u32,
    pub(crate) reserved: u32,
}

/// A part of a region that can be mapped.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SparseArea {
    /// From the beginning of the region; [`RegionInfo::offset`] is added for mmap.
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
}

/// The capability of a region that only this device has.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionType {
    pub(crate) header: CapabilityHeader,
    pub(crate) kind: u32,
    pub(crate) subtype: u32,
}

/// DEVICE_GET_REGION_IO_FDS, both ways; [`SubRegion`]s follow the reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionIoFds {
    pub(crate) argsz: u32,
    pub(crate) flags: u32,
    pub(crate) index: u32,
    pub(crate) count: u32,
}

/// A part of a region that is reached through a descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SubRegion {
    pub(crate) offset: u64,
    pub(crate) size_bytes: u64,
    /// Which of the descriptors that came along.
    pub(crate) fd_index: u32,
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) padding: u32,
    /// What is written for the event to be signalled, or what an ioregionfd sends along.
    pub(crate) data: u64,
}

impl SubRegion {
    pub(crate) const IOEVENTFD: u32 = 0;
    pub(crate) const IOREGIONFD: u32 = 1;
    /// `KVM_IOEVENTFD_FLAG_DATAMATCH`: only a write of `data` signals.
    pub(crate) const DATAMATCH: u32 = 1 << 0;
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

/// REGION_WRITE_MULTI, both ways; [`MultiWrite`]s follow the request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RegionWriteMulti {
    pub(crate) write_count: u64,
}

/// One of the writes of REGION_WRITE_MULTI.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MultiWrite {
    pub(crate) offset: u64,
    pub(crate) region: u32,
    /// Bytes of `data`: at most 8.
    pub(crate) count: u32,
    pub(crate) data: [u8; 8],
}

/// DMA_READ and DMA_WRITE, both ways; the data follows a read's reply and a write's request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DmaAccess {
    pub(crate) address: u64,
    pub(crate) count: u64,
}

/// DEVICE_FEATURE, both ways; what the feature says follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DeviceFeature {
    pub(crate) argsz: u32,
    /// The feature's index and what to do.
    pub(crate) flags: u32,
}

impl DeviceFeature {
    pub(crate) const INDEX_MASK: u32 = bindings::VFIO_DEVICE_FEATURE_MASK;
    pub(crate) const GET: u32 = bindings::VFIO_DEVICE_FEATURE_GET;
    pub(crate) const SET: u32 = bindings::VFIO_DEVICE_FEATURE_SET;
    pub(crate) const PROBE: u32 = bindings::VFIO_DEVICE_FEATURE_PROBE;
    pub(crate) const MIGRATION: u32 = bindings::VFIO_DEVICE_FEATURE_MIGRATION;
    pub(crate) const MIG_DEVICE_STATE: u32 = bindings::VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
    pub(crate) const DMA_LOGGING_START: u32 = bindings::VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
    pub(crate) const DMA_LOGGING_STOP: u32 = bindings::VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP;
    pub(crate) const DMA_LOGGING_REPORT: u32 = bindings::VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT;
}

/// What the feature MIGRATION says.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FeatureMigration {
    pub(crate) flags: u64,
}

impl FeatureMigration {
    pub(crate) const STOP_COPY: u64 = bindings::VFIO_MIGRATION_STOP_COPY as u64;
    pub(crate) const P2P: u64 = bindings::VFIO_MIGRATION_P2P as u64;
    pub(crate) const PRE_COPY: u64 = bindings::VFIO_MIGRATION_PRE_COPY as u64;
}

/// What the feature MIG_DEVICE_STATE says, and is told.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct FeatureDeviceState {
    pub(crate) state: MigrationState,
    /// Unused in vfio-user.
    pub(crate) data_fd: u32,
}

/// A state of the device's migration. Others than these may arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MigrationState(pub u32);

impl MigrationState {
    /// The device failed and has to be reset.
    pub const ERROR: Self = Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR);
    /// Nothing in the device or by the device changes.
    pub const STOP: Self = Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP);
    /// The device works.
    pub const RUNNING: Self = Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING);
    /// The device is stopped and its state can be read.
    pub const STOP_COPY: Self = Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY);
    /// The device is stopped and takes a state.
    pub const RESUMING: Self = Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING);
    /// Not used in vfio-user.
    pub const RUNNING_P2P: Self =
        Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P);
    /// The device works and its state can be read meanwhile.
    pub const PRE_COPY: Self = Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY);
    /// Not used in vfio-user.
    pub const PRE_COPY_P2P: Self =
        Self(bindings::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P);
}

/// What the feature DMA_LOGGING_START is told and answers; [`LoggingRange`]s follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LoggingControl {
    pub(crate) page_size_bytes: u64,
    pub(crate) range_count: u32,
    pub(crate) reserved: u32,
}

/// Addresses to log writes to.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LoggingRange {
    pub(crate) iova: u64,
    pub(crate) size_bytes: u64,
}

/// What the feature DMA_LOGGING_REPORT is asked; in a reply the bits follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct LoggingReport {
    pub(crate) iova: u64,
    pub(crate) size_bytes: u64,
    pub(crate) page_size_bytes: u64,
}

/// MIG_DATA_READ, both ways, and MIG_DATA_WRITE's request; the data follows a read's reply and a write's request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MigrationData {
    pub(crate) argsz: u32,
    pub(crate) size_bytes: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Version>() == 4);
    assert!(size_of::<DmaMap>() == 32);
    assert!(size_of::<DmaUnmap>() == 24);
    assert!(size_of::<DirtyBitmap>() == 16);
    assert!(size_of::<DeviceInfo>() == 16);
    assert!(size_of::<RegionInfo>() == 32);
    assert!(size_of::<CapabilityHeader>() == 8);
    assert!(size_of::<SparseMmap>() == 16);
    assert!(size_of::<SparseArea>() == 16);
    assert!(size_of::<RegionType>() == 16);
    assert!(size_of::<RegionIoFds>() == 16);
    assert!(size_of::<SubRegion>() == 40);
    assert!(size_of::<IrqInfo>() == 16);
    assert!(size_of::<IrqSet>() == 20);
    assert!(size_of::<RegionAccess>() == 16);
    assert!(size_of::<RegionWriteMulti>() == 8);
    assert!(size_of::<MultiWrite>() == 24);
    assert!(size_of::<DmaAccess>() == 16);
    assert!(size_of::<DeviceFeature>() == 8);
    assert!(size_of::<FeatureMigration>() == 8);
    assert!(size_of::<FeatureDeviceState>() == 8);
    assert!(size_of::<LoggingControl>() == 16);
    assert!(size_of::<LoggingRange>() == 16);
    assert!(size_of::<LoggingReport>() == 24);
    assert!(size_of::<MigrationData>() == 8);
};

/// VFIO's own structures, which these are, as types that bytes from a client can be read into.
const _: () = {
    use std::mem::offset_of;

    use bindings::{
        vfio_device_feature, vfio_device_feature_dma_logging_control,
        vfio_device_feature_dma_logging_range, vfio_device_feature_dma_logging_report,
        vfio_device_feature_mig_state, vfio_device_feature_migration, vfio_device_info,
        vfio_info_cap_header, vfio_irq_info, vfio_irq_set, vfio_region_info,
        vfio_region_info_cap_sparse_mmap, vfio_region_info_cap_type, vfio_region_sparse_mmap_area,
    };
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
    assert!(offset_of!(CapabilityHeader, version) == offset_of!(vfio_info_cap_header, version));
    assert!(offset_of!(CapabilityHeader, next) == offset_of!(vfio_info_cap_header, next));
    assert!(
        offset_of!(SparseMmap, area_count)
            == offset_of!(vfio_region_info_cap_sparse_mmap, nr_areas)
    );
    assert!(size_of::<SparseMmap>() == offset_of!(vfio_region_info_cap_sparse_mmap, areas));
    assert!(size_of::<SparseArea>() == size_of::<vfio_region_sparse_mmap_area>());
    assert!(offset_of!(SparseArea, size_bytes) == offset_of!(vfio_region_sparse_mmap_area, size));
    assert!(offset_of!(RegionType, kind) == offset_of!(vfio_region_info_cap_type, type_));
    assert!(offset_of!(RegionType, subtype) == offset_of!(vfio_region_info_cap_type, subtype));
    assert!(offset_of!(DeviceFeature, flags) == offset_of!(vfio_device_feature, flags));
    assert!(size_of::<DeviceFeature>() == offset_of!(vfio_device_feature, data));
    assert!(size_of::<FeatureMigration>() == size_of::<vfio_device_feature_migration>());
    assert!(size_of::<FeatureDeviceState>() == size_of::<vfio_device_feature_mig_state>());
    assert!(
        offset_of!(FeatureDeviceState, data_fd)
            == offset_of!(vfio_device_feature_mig_state, data_fd)
    );
    assert!(
        offset_of!(LoggingControl, range_count)
            == offset_of!(vfio_device_feature_dma_logging_control, num_ranges)
    );
    assert!(
        size_of::<LoggingControl>() == offset_of!(vfio_device_feature_dma_logging_control, ranges)
    );
    assert!(size_of::<LoggingRange>() == size_of::<vfio_device_feature_dma_logging_range>());
    assert!(
        offset_of!(LoggingRange, size_bytes)
            == offset_of!(vfio_device_feature_dma_logging_range, length)
    );
    assert!(
        offset_of!(LoggingReport, size_bytes)
            == offset_of!(vfio_device_feature_dma_logging_report, length)
    );
    assert!(
        offset_of!(LoggingReport, page_size_bytes)
            == offset_of!(vfio_device_feature_dma_logging_report, page_size)
    );
    assert!(
        size_of::<LoggingReport>() == offset_of!(vfio_device_feature_dma_logging_report, bitmap)
    );
    assert!(
        offset_of!(DmaUnmap, address) == offset_of!(bindings::vfio_iommu_type1_dma_unmap, iova)
    );
    assert!(size_of::<DmaUnmap>() == offset_of!(bindings::vfio_iommu_type1_dma_unmap, data));
    assert!(offset_of!(DirtyBitmap, size_bytes) == offset_of!(bindings::vfio_bitmap, size));
    assert!(size_of::<DirtyBitmap>() == offset_of!(bindings::vfio_bitmap, data));
};
