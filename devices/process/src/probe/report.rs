//! What a probe found out, as `--json` prints it.

use std::path::PathBuf;

use serde::Serialize;
use vfio_user::client::{Capabilities, IrqInfo, MigrationFlags, Negotiated, RegionInfo};

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) socket: PathBuf,
    pub(super) protocol: Protocol,
    /// It understands DEVICE_RESET.
    pub(super) resettable: bool,
    /// What of migration it can do; `None`: nothing.
    pub(super) migration: Option<Vec<&'static str>>,
    /// It can log which pages it writes.
    pub(super) dma_logging: bool,
    /// `None`: no PCI device, or one without a configuration space.
    pub(super) function: Option<Function>,
    pub(super) regions: Vec<Region>,
    pub(super) irqs: Vec<Irq>,
}

/// What was negotiated.
#[derive(Debug, Serialize)]
pub(super) struct Protocol {
    pub(super) version: String,
    pub(super) capabilities: Capabilities,
}

/// The PCI function, as its configuration space shows it.
#[derive(Debug, Serialize)]
pub(super) struct Function {
    pub(super) vendor_id: u16,
    pub(super) device_id: u16,
    pub(super) subsystem_vendor_id: u16,
    pub(super) subsystem_id: u16,
    pub(super) revision_id: u8,
    /// Base class, subclass and programming interface.
    pub(super) class_code: u32,
    /// The class in words.
    pub(super) class: String,
    pub(super) command: u16,
    pub(super) status: u16,
    /// The two registers as lspci writes them.
    #[serde(skip)]
    pub(super) control_flags: String,
    #[serde(skip)]
    pub(super) status_flags: String,
    /// A to D.
    pub(super) interrupt_pin: Option<char>,
    pub(super) interrupt_line: u8,
    pub(super) bars: Vec<Bar>,
    pub(super) expansion_rom: Option<Rom>,
    pub(super) capabilities: Vec<Capability>,
    pub(super) extended_capabilities: Vec<Capability>,
}

/// A Base Address Register, with the size of its region.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Bar {
    pub(super) index: u32,
    #[serde(flatten)]
    pub(super) kind: BarKind,
    pub(super) address: u64,
    pub(super) size_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum BarKind {
    Io,
    Memory { bits: u8, prefetchable: bool },
}

/// The expansion ROM.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rom {
    pub(super) address: u64,
    pub(super) size_bytes: u64,
    pub(super) enabled: bool,
}

/// A capability of configuration space.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Capability {
    pub(super) offset: u16,
    pub(super) id: u16,
    pub(super) name: String,
    /// What it says, in lines for people.
    pub(super) details: Vec<String>,
}

/// A region.
#[derive(Debug, Serialize)]
pub(super) struct Region {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) mmap: bool,
    /// Parts that can be mapped; `None` where all of it can, or nothing.
    pub(super) sparse_areas: Option<Vec<Area>>,
    /// Type and subtype, where only this device has such a region.
    pub(super) kind: Option<(u32, u32)>,
}

/// A part of a region.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Area {
    pub(super) offset: u64,
    pub(super) size_bytes: u64,
}

/// An IRQ index.
#[derive(Debug, Serialize)]
pub(super) struct Irq {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) count: u32,
    pub(super) eventfd: bool,
    pub(super) maskable: bool,
    pub(super) automasked: bool,
    pub(super) noresize: bool,
}

impl Protocol {
    pub(super) fn new(negotiated: &Negotiated) -> Self {
        Self {
            version: format!("{}.{}", negotiated.major, negotiated.minor),
            capabilities: negotiated.capabilities.clone(),
        }
    }
}

impl Region {
    pub(super) fn new(index: u32, pci: bool, region: &RegionInfo) -> Self {
        let name = match index {
            0..=5 if pci => format!("BAR{index}"),
            6 if pci => "ROM".into(),
            7 if pci => "config".into(),
            8 if pci => "VGA".into(),
            _ => format!("region {index}"),
        };
        let areas = region.sparse_areas.as_ref().filter(|_| region.mmap);
        let areas = areas.map(|areas| {
            let areas = areas.iter().map(|area| Area {
                offset: area.start,
                size_bytes: area.end - area.start,
            });
            areas.collect()
        });
        Self {
            index,
            name,
            size_bytes: region.size_bytes,
            read: region.read,
            write: region.write,
            mmap: region.mmap,
            sparse_areas: areas,
            kind: region.kind,
        }
    }
}

impl Irq {
    pub(super) fn new(index: u32, pci: bool, irq: IrqInfo) -> Self {
        let name = match index {
            0 if pci => "INTx".into(),
            1 if pci => "MSI".into(),
            2 if pci => "MSI-X".into(),
            3 if pci => "error".into(),
            4 if pci => "request".into(),
            _ => format!("irq {index}"),
        };
        Self {
            index,
            name,
            count: irq.count,
            eventfd: irq.eventfd,
            maskable: irq.maskable,
            automasked: irq.automasked,
            noresize: irq.noresize,
        }
    }
}

/// The words for what of migration a device can do.
pub(super) fn migration(flags: MigrationFlags) -> Vec<&'static str> {
    let words = [
        (flags.stop_copy, "stop-copy"),
        (flags.p2p, "p2p"),
        (flags.pre_copy, "pre-copy"),
    ];
    let words = words.into_iter().filter(|(can, _)| *can);
    words.map(|(_, word)| word).collect()
}
