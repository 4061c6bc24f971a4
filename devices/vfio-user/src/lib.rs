//! A vfio-user server: the protocol in which a VMM uses a device that lives in another process.
//!
//! The specification is `docs/interop/vfio-user.rst` in QEMU's source tree. A [`Listener`] accepts a client, which becomes
//! a [`Session`]: negotiation, then requests, each answered in order. A session ends with its connection, and the listener
//! takes the next client. This crate knows regions, interrupts and DMA; it does not know PCI.

mod irq;
mod listener;
mod memory;
mod message;
mod negotiate;
mod requests;
mod session;
mod socket;

pub use irq::{IrqInfo, Irqs};
pub use listener::{ListenError, Listener, MAX_PATH_BYTES};
pub use memory::{Access, AccessError, Memory};
pub use message::MigrationState;
pub use session::Session;
pub use socket::Closed;

use nix::errno::Errno;

/// What a client lends the device for as long as its session lasts.
#[derive(Debug, Default)]
pub struct Lent {
    /// Guest memory.
    pub memory: Memory,
    /// Interrupts.
    pub irqs: Irqs,
}

/// What the device offers under one region index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0: the device has no such region.
    pub size_bytes: u64,
}

/// A device as a session sees it: regions, interrupts, reset.
///
/// The session has checked that a range lies inside its region.
pub trait Device {
    /// The regions, by region index.
    fn regions(&self) -> &[RegionInfo];

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

    /// Back to the power-on state.
    fn reset(&mut self, lent: &mut Lent);
}
