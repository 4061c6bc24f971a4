//! Registers of PCI configuration space, by the names of PCI Local Bus 3.0, PCI Power Management 1.2 and PCI Express 4.0.

use bitfield_struct::bitfield;

/// Command, PCI 3.0 section 6.2.2.
#[bitfield(u16)]
pub(super) struct Command {
    pub(super) io_space: bool,
    pub(super) memory_space: bool,
    pub(super) bus_master: bool,
    pub(super) special_cycles: bool,
    pub(super) memory_write_and_invalidate: bool,
    pub(super) vga_palette_snoop: bool,
    pub(super) parity_error_response: bool,
    pub(super) stepping: bool,
    pub(super) serr: bool,
    pub(super) fast_back_to_back: bool,
    pub(super) interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

/// Status, PCI 3.0 section 6.2.3.
#[bitfield(u16)]
pub(super) struct Status {
    #[bits(3)]
    __: u8,
    pub(super) interrupt: bool,
    pub(super) capabilities: bool,
    pub(super) mhz66: bool,
    pub(super) user_definable: bool,
    pub(super) fast_back_to_back: bool,
    pub(super) master_parity_error: bool,
    #[bits(2)]
    pub(super) devsel: u8,
    pub(super) signaled_target_abort: bool,
    pub(super) received_target_abort: bool,
    pub(super) received_master_abort: bool,
    pub(super) signaled_system_error: bool,
    pub(super) detected_parity_error: bool,
}

/// Base Address Register, PCI 3.0 section 6.2.5.1.
#[bitfield(u32)]
pub(super) struct BarLow {
    pub(super) io_space: bool,
    /// 2: the next register has the upper half of the address.
    #[bits(2)]
    pub(super) kind: u8,
    pub(super) prefetchable: bool,
    #[bits(28)]
    __: u32,
}

impl BarLow {
    pub(super) const KIND_64_BIT: u8 = 2;
    pub(super) const MEMORY_ADDRESS: u32 = 0xffff_fff0;
    pub(super) const IO_ADDRESS: u32 = 0xffff_fffc;
}

/// Expansion ROM Base Address, PCI 3.0 section 6.2.5.2.
#[bitfield(u32)]
pub(super) struct RomAddress {
    pub(super) enabled: bool,
    #[bits(10)]
    __: u16,
    #[bits(21)]
    pub(super) page: u32,
}

impl RomAddress {
    pub(super) const PAGE_BYTES: u64 = 2048;
}

/// Power Management Capabilities, section 3.2.3.
#[bitfield(u16)]
pub(super) struct PowerCapabilities {
    #[bits(3)]
    pub(super) version: u8,
    pub(super) pme_clock: bool,
    __: bool,
    pub(super) device_specific_initialization: bool,
    #[bits(3)]
    pub(super) aux_current: u8,
    pub(super) d1: bool,
    pub(super) d2: bool,
    pub(super) pme_d0: bool,
    pub(super) pme_d1: bool,
    pub(super) pme_d2: bool,
    pub(super) pme_d3hot: bool,
    pub(super) pme_d3cold: bool,
}

/// Power Management Control/Status, section 3.2.4.
#[bitfield(u16)]
pub(super) struct PowerControl {
    #[bits(2)]
    pub(super) state: u8,
    __: bool,
    pub(super) no_soft_reset: bool,
    #[bits(4)]
    __: u8,
    pub(super) pme_enable: bool,
    #[bits(4)]
    pub(super) data_select: u8,
    #[bits(2)]
    pub(super) data_scale: u8,
    pub(super) pme_status: bool,
}

/// Message Control of MSI, PCI 3.0 section 6.8.1.3.
#[bitfield(u16)]
pub(super) struct MsiControl {
    pub(super) enable: bool,
    /// Logarithm of the number of vectors.
    #[bits(3)]
    pub(super) capable: u8,
    #[bits(3)]
    pub(super) enabled: u8,
    pub(super) address64: bool,
    pub(super) maskable: bool,
    #[bits(7)]
    __: u8,
}

/// Message Control of MSI-X, PCI 3.0 section 6.8.2.3.
#[bitfield(u16)]
pub(super) struct MsixControl {
    #[bits(11)]
    pub(super) table_size_z: u16,
    #[bits(3)]
    __: u8,
    pub(super) masked: bool,
    pub(super) enable: bool,
}

/// Where a table of MSI-X is, PCI 3.0 section 6.8.2.4.
#[bitfield(u32)]
pub(super) struct MsixTable {
    #[bits(3)]
    pub(super) bar: u8,
    #[bits(29)]
    pub(super) offset_qwords: u32,
}

impl MsixTable {
    pub(super) fn offset(self) -> u32 {
        self.offset_qwords() * 8
    }
}

/// PCI Express Capabilities, PCI Express 4.0 section 7.5.3.2.
#[bitfield(u16)]
pub(super) struct ExpressCapabilities {
    #[bits(4)]
    pub(super) version: u8,
    #[bits(4)]
    pub(super) kind: u8,
    pub(super) slot: bool,
    #[bits(5)]
    pub(super) message_number: u8,
    #[bits(2)]
    __: u8,
}

impl ExpressCapabilities {
    pub(super) fn kind_name(self) -> &'static str {
        match self.kind() {
            0 => "Endpoint",
            1 => "Legacy Endpoint",
            4 => "Root Port",
            5 => "Upstream Port",
            6 => "Downstream Port",
            7 => "PCI-Express to PCI/PCI-X Bridge",
            8 => "PCI/PCI-X to PCI-Express Bridge",
            9 => "Root Complex Integrated Endpoint",
            10 => "Root Complex Event Collector",
            _ => "Unknown type",
        }
    }
}

/// Device Capabilities, section 7.5.3.3.
#[bitfield(u32)]
pub(super) struct DeviceCapabilities {
    /// Logarithm, from 128 bytes on.
    #[bits(3)]
    pub(super) max_payload: u8,
    #[bits(2)]
    pub(super) phantom_functions: u8,
    pub(super) extended_tag: bool,
    #[bits(22)]
    __: u32,
    pub(super) function_level_reset: bool,
    #[bits(3)]
    __: u8,
}

/// Device Control, section 7.5.3.4.
#[bitfield(u16)]
pub(super) struct DeviceControl {
    pub(super) correctable_errors: bool,
    pub(super) non_fatal_errors: bool,
    pub(super) fatal_errors: bool,
    pub(super) unsupported_requests: bool,
    pub(super) relaxed_ordering: bool,
    #[bits(3)]
    pub(super) max_payload: u8,
    #[bits(4)]
    __: u8,
    #[bits(3)]
    pub(super) max_read_request: u8,
    __: bool,
}

/// Link Capabilities (section 7.5.3.6), and the same fields of Link Status (7.5.3.8).
#[bitfield(u32)]
pub(super) struct Link {
    #[bits(4)]
    pub(super) speed: u8,
    #[bits(6)]
    pub(super) width: u8,
    #[bits(22)]
    __: u32,
}

impl Link {
    pub(super) fn speed_name(self) -> &'static str {
        match self.speed() {
            1 => "2.5GT/s",
            2 => "5GT/s",
            3 => "8GT/s",
            4 => "16GT/s",
            5 => "32GT/s",
            _ => "unknown",
        }
    }
}

/// Header of an extended capability, section 7.6.3.
#[bitfield(u32)]
pub(super) struct ExtendedHeader {
    pub(super) id: u16,
    #[bits(4)]
    pub(super) version: u8,
    #[bits(12)]
    pub(super) next: u16,
}

/// The names of capabilities, by id (PCI Code and ID Assignment Specification).
pub(super) fn capability_name(id: u8) -> String {
    let name = match id {
        0x01 => "Power Management",
        0x02 => "AGP",
        0x03 => "Vital Product Data",
        0x04 => "Slot Identification",
        0x05 => "MSI",
        0x06 => "CompactPCI Hot Swap",
        0x07 => "PCI-X",
        0x08 => "HyperTransport",
        0x09 => "Vendor Specific Information",
        0x0a => "Debug Port",
        0x0c => "Hot-Plug",
        0x0d => "Bridge Subsystem Vendor ID",
        0x0f => "Secure Device",
        0x10 => "Express",
        0x11 => "MSI-X",
        0x12 => "SATA",
        0x13 => "Advanced Features",
        0x14 => "Enhanced Allocation",
        _ => return format!("Unknown capability {id:#04x}"),
    };
    name.into()
}

/// The names of extended capabilities.
pub(super) fn extended_name(id: u16) -> String {
    let name = match id {
        0x01 => "Advanced Error Reporting",
        0x02 => "Virtual Channel",
        0x03 => "Device Serial Number",
        0x04 => "Power Budgeting",
        0x0b => "Vendor Specific Information",
        0x0d => "Access Control Services",
        0x0e => "Alternative Routing-ID Interpretation",
        0x0f => "Address Translation Service",
        0x10 => "Single Root I/O Virtualization",
        0x13 => "Page Request Interface",
        0x15 => "Resizable BAR",
        0x18 => "Latency Tolerance Reporting",
        0x19 => "Secondary PCI Express",
        0x1b => "Process Address Space ID",
        0x1e => "L1 PM Substates",
        _ => return format!("Unknown extended capability {id:#06x}"),
    };
    name.into()
}

/// Base class and subclass in words.
pub(super) fn class_name(class_code: u32) -> &'static str {
    let [_, base, subclass, interface] = class_code.to_be_bytes();
    match (base, subclass, interface) {
        (0x01, 0x00, _) => "SCSI storage controller",
        (0x01, 0x01, _) => "IDE interface",
        (0x01, 0x04, _) => "RAID bus controller",
        (0x01, 0x06, _) => "SATA controller",
        (0x01, 0x07, _) => "Serial Attached SCSI controller",
        (0x01, 0x08, _) => "Non-Volatile memory controller",
        (0x01, ..) => "Mass storage controller",
        (0x02, 0x00, _) => "Ethernet controller",
        (0x02, ..) => "Network controller",
        (0x03, 0x00, _) => "VGA compatible controller",
        (0x03, 0x02, _) => "3D controller",
        (0x03, ..) => "Display controller",
        (0x04, 0x01, _) => "Multimedia audio controller",
        (0x04, 0x03, _) => "Audio device",
        (0x04, ..) => "Multimedia controller",
        (0x05, 0x00, _) => "RAM memory",
        (0x05, ..) => "Memory controller",
        (0x06, 0x00, _) => "Host bridge",
        (0x06, 0x01, _) => "ISA bridge",
        (0x06, 0x04, _) => "PCI bridge",
        (0x06, ..) => "Bridge",
        (0x07, 0x00, _) => "Serial controller",
        (0x07, ..) => "Communication controller",
        (0x08, ..) => "System peripheral",
        (0x09, ..) => "Input device controller",
        (0x0c, 0x03, 0x30) => "USB controller (xHCI)",
        (0x0c, 0x03, _) => "USB controller",
        (0x0c, 0x05, _) => "SMBus",
        (0x0c, ..) => "Serial bus controller",
        (0x0d, ..) => "Wireless controller",
        (0x10, ..) => "Encryption controller",
        (0x11, ..) => "Signal processing controller",
        (0x12, ..) => "Processing accelerators",
        (0xff, ..) => "Unassigned class",
        _ => "Unclassified device",
    }
}
