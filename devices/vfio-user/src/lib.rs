//! A vfio-user server: the protocol in which a VMM uses a device that lives in another process.
//!
//! The specification is `docs/interop/vfio-user.rst` in QEMU's source tree. A [`Listener`] accepts a client, which becomes
//! a [`Session`]: negotiation, then requests, each answered in order. A session ends with its connection, and the listener
//! takes the next client. This crate knows regions, interrupts and DMA; it does not know PCI.

pub mod client;
mod irq;
mod link;
mod listener;
mod memory;
mod message;
mod migration;
mod negotiate;
mod requests;
mod saved;
mod session;
mod socket;

pub use irq::{IrqAction, IrqInfo, IrqKind, Irqs, SavedIrqs};
pub use listener::{ListenError, Listener, MAX_PATH_BYTES};
pub use memory::{Access, AccessError, Memory, SavedMemory};
pub use message::MigrationState;
pub use saved::{NotRestored, NotSaved, Saved, SavedSession};
pub use session::Session;
pub use socket::Closed;

use std::{ops::Range, os::fd::OwnedFd, sync::Arc};

use link::Link;
use nix::errno::Errno;

/// What a client lends the device for as long as its session lasts: guest memory and interrupts. Without a client there is
/// neither: no address is mapped, and an interrupt reaches nobody.
#[derive(Debug, Default)]
pub struct Lent {
    /// Interrupts.
    pub irqs: Irqs,
    memory: Memory,
    link: Option<Link>,
}

impl Lent {
    /// Copies guest memory from `iova` on into `data`; the range may span adjacent maps.
    ///
    /// # Errors
    /// [`AccessError`]; some of `data` may have been filled.
    pub fn read(&mut self, iova: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.memory.read(&mut self.link, iova, data)
    }

    /// Copies `data` to guest memory at `iova`; the range may span adjacent maps. Two, four or eight bytes at an address
    /// that is a multiple of their number are written at once, and up to 512 bytes that are such words of eight word by
    /// word, in their order: a guest that polls descriptors sees none that is half written.
    ///
    /// # Errors
    /// [`AccessError`]; some of `data` may have been written.
    pub fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), AccessError> {
        self.memory.write(&mut self.link, iova, data)
    }

    /// Writes `byte` at `iova + place * stride` for every place whose bit is set, in ascending order: the status of
    /// descriptors, of which the rest stays as it is.
    ///
    /// # Errors
    /// [`AccessError`]; some may have been written.
    pub fn write_each(
        &mut self,
        iova: u64,
        stride: u16,
        places: u64,
        byte: u8,
    ) -> Result<(), AccessError> {
        let stride = stride.into();
        self.memory
            .write_each(&mut self.link, iova, stride, places, byte)
    }

    /// The DMA maps, for who has no client to make them: tests of models.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

/// What the device offers under one region index.
#[derive(Debug)]
pub struct Region {
    /// Bytes; 0: the device has no such region.
    pub size_bytes: u64,
    /// What a client may do with it.
    pub access: Access,
    /// What of it a client may map into its own address space.
    pub mapping: Option<Mapping>,
    /// Writes that a client may announce by an eventfd instead of a message.
    pub io_events: Vec<IoEvent>,
    /// What it is, if it is none of those that every device of the bus has (PCI: the first nine).
    pub device_type: Option<DeviceType>,
}

impl Region {
    /// A region that is read and written by messages only.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            access: Access {
                read: true,
                write: true,
            },
            mapping: None,
            io_events: Vec::new(),
            device_type: None,
        }
    }
}

/// What a region that only some devices have is for (`VFIO_REGION_INFO_CAP_TYPE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceType {
    /// VFIO's number for the kind of region, or a PCI vendor's id with bit 31 set.
    pub kind: u32,
    /// Which of its kind.
    pub subtype: u32,
}

/// The file behind a region, or behind parts of it.
#[derive(Debug)]
pub struct Mapping {
    /// What a client mmaps; it gets a duplicate.
    pub file: OwnedFd,
    /// Where the region begins in the file.
    pub offset_bytes: u64,
    /// The parts that may be mapped, by offset in the region; page aligned. Empty: all of it.
    pub areas: Vec<Range<u64>>,
}

/// A write that the device wants to be told of by an eventfd (an ioeventfd, as KVM has them).
#[derive(Debug)]
pub struct IoEvent {
    /// Where the register is in its region.
    pub offset: u64,
    /// Its width in bytes; 0: any.
    pub size_bytes: u64,
    /// Only a write of this value counts.
    pub value: Option<u64>,
    /// What is signalled; the client gets a duplicate, and one only for the events that share it.
    pub eventfd: Arc<OwnedFd>,
}

/// A device as a session sees it: regions, interrupts, reset.
///
/// The session has checked that a range lies inside its region, and that the region may be accessed so.
pub trait Device {
    /// The regions, by region index.
    fn regions(&self) -> &[Region];

    /// The interrupts, by IRQ index.
    fn irqs(&self) -> &[IrqInfo];

    /// Reads a region.
    ///
    /// # Errors
    /// What the client is answered.
    fn read(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno>;

    /// Writes a region.
    ///
    /// # Errors
    /// What the client is answered.
    fn write(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno>;

    /// All requests that had arrived together are served, and their replies are about to leave: what the device has put off
    /// in order to do it once for several of them, it does now.
    fn end_batch(&mut self, _lent: &mut Lent) {}

    /// Back to the power-on state, running.
    fn reset(&mut self, lent: &mut Lent);

    /// How the device's state is moved to another process; `None`: not at all.
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        None
    }
}

/// A device whose state can be saved and loaded (VFIO's migration, version 2).
pub trait Migration {
    /// While it does not run, a device changes neither its own state nor guest memory, and raises no interrupt.
    fn set_running(&mut self, lent: &mut Lent, running: bool);

    /// The state of a device that does not run.
    ///
    /// # Errors
    /// What the client is answered.
    fn save(&mut self) -> Result<Vec<u8>, Errno>;

    /// Takes over what [`Migration::save`] gave, here or elsewhere, in a device that does not run. `state` may come from
    /// anywhere. After an error the device is as it was.
    ///
    /// # Errors
    /// What the client is answered.
    fn load(&mut self, lent: &mut Lent, state: &[u8]) -> Result<(), Errno>;
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
