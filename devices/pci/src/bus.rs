//! What a model may touch during one call: guest memory and its interrupt.

use std::time::Instant;

use vfio_bindings::bindings::vfio as bindings;
use vfio_user::{AccessError, Lent};
use zerocopy::{FromBytes, IntoBytes};

use crate::config::ConfigSpace;

/// The IRQ index of INTx.
pub(crate) const INTX: u32 = bindings::VFIO_PCI_INTX_IRQ_INDEX;
/// The IRQ index of MSI.
pub(crate) const MSI: u32 = bindings::VFIO_PCI_MSI_IRQ_INDEX;
/// The IRQ index of the error that the device can't recover from by itself.
pub(crate) const ERROR: u32 = bindings::VFIO_PCI_ERR_IRQ_INDEX;

/// The bus, lent to a model for the length of a call.
///
/// It applies the function's Command register: no DMA without Bus Master Enable, which messages are as well, no INTx with
/// Interrupt Disable; and neither while the function does not run.
pub struct Bus<'a> {
    pub(crate) lent: &'a mut Lent,
    pub(crate) config: &'a mut ConfigSpace,
    pub(crate) software_resets: &'a mut u64,
    pub(crate) dma: &'a mut Dma,
    pub(crate) running: bool,
    /// The interrupt that is asserted was told by a message.
    pub(crate) message_sent: &'a mut bool,
    /// The client was told of memory that is gone.
    pub(crate) error_told: &'a mut bool,
    pub(crate) clock: Clock,
}

/// What the model has moved to and from guest memory. What failed on its way does not count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dma {
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

/// What time it is for a model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    Host,
    /// A test says.
    #[cfg(any(test, feature = "testing"))]
    At(Instant),
}

impl Clock {
    pub(crate) fn now(self) -> Instant {
        match self {
            Self::Host => Instant::now(),
            #[cfg(any(test, feature = "testing"))]
            Self::At(now) => now,
        }
    }
}

/// Why an access to guest memory failed. On a real bus: master abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The guest has not set Bus Master Enable, or the function does not run.
    #[error("bus mastering is off")]
    NotMaster,
    /// The address is not the guest's memory, or not with this access.
    #[error(transparent)]
    Memory(#[from] AccessError),
}

impl Bus<'_> {
    /// What time it is. It costs a look at the clock: a model asks when it has something to wait for.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Copies guest memory at bus address `address` into `data`.
    ///
    /// # Errors
    /// [`BusError`]; `data` may be partly filled.
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), BusError> {
        self.require_master()?;
        let result = self.lent.read(address, data);
        self.check_lost(result)?;
        self.dma.read_bytes += data.len() as u64;
        Ok(())
    }

    /// Copies `data` to guest memory at bus address `address`. Words of up to eight bytes are never seen half written where
    /// [`Lent::write`] says so.
    ///
    /// # Errors
    /// [`BusError`]; `data` may be partly written.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), BusError> {
        self.require_master()?;
        let result = self.lent.write(address, data);
        self.check_lost(result)?;
        self.dma.written_bytes += data.len() as u64;
        Ok(())
    }

    /// Writes `byte` at `address + place * stride` for every place whose bit is set, in ascending order: the status of
    /// descriptors, of which the rest stays as it is.
    ///
    /// # Errors
    /// [`BusError`]; some may have been written.
    pub fn write_each(
        &mut self,
        address: u64,
        stride: u16,
        places: u64,
        byte: u8,
    ) -> Result<(), BusError> {
        self.require_master()?;
        let result = self.lent.write_each(address, stride, places, byte);
        self.check_lost(result)?;
        self.dma.written_bytes += u64::from(places.count_ones());
        Ok(())
    }

    /// Reads a structure, such as a descriptor.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn load<T: FromBytes + IntoBytes>(&mut self, address: u64) -> Result<T, BusError> {
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Bytes of a cache line, as the guest's firmware says in Cache Line Size; 0: it said nothing.
    #[must_use]
    pub fn cache_line_bytes(&self) -> u32 {
        self.config.cache_line_bytes()
    }

    /// Whether the guest allows PME# (PME_En in configuration space), which some functions show in a register of their own.
    #[must_use]
    pub fn is_pme_enabled(&self) -> bool {
        self.config.is_pme_enabled()
    }

    /// Writes PME_En for the guest, if the function says that PME# can come from it.
    pub fn enable_pme(&mut self, enable: bool) {
        self.config.enable_pme(enable);
    }

    /// Asserts or deasserts the function's interrupt. How the guest hears of it is its own choice: with MSI enabled by one
    /// message when the interrupt is asserted, otherwise by the line, which is up for as long.
    pub fn set_interrupt(&mut self, asserted: bool) {
        if asserted != self.interrupt() {
            self.config.set_interrupt_status(asserted);
            self.update_interrupt();
        }
    }

    /// Whether the function's interrupt is asserted.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.config.interrupt_status()
    }

    /// Counts a reset that the guest's driver asked for through a register.
    pub fn count_software_reset(&mut self) {
        *self.software_resets += 1;
    }

    /// Brings line and message to what Interrupt Status, Command and the MSI capability make of them (PCI 3.0, 6.2.2, 6.2.3
    /// and 6.8.1). A message is owed from the assertion on, whatever holds it up: that MSI is not enabled yet, or bus
    /// mastering.
    pub(crate) fn update_interrupt(&mut self) {
        let asserted = self.running && self.interrupt() && self.config.is_on();
        let by_message = self.config.is_msi_enabled();
        let by_line = !by_message && !self.config.command().interrupt_disable();
        self.lent.irqs.set_level(INTX, asserted && by_line);
        if !asserted || !by_message {
            *self.message_sent = false;
        } else if self.config.command().bus_master() && !*self.message_sent {
            *self.message_sent = true;
            self.lent.irqs.trigger(MSI, 0);
        }
    }

    /// Takes the interrupt back, and what was not sent of it: the function is being reset.
    pub(crate) fn forget_interrupt(&mut self) {
        self.config.set_interrupt_status(false);
        self.update_interrupt();
        self.lent.irqs.forget_messages();
    }

    /// Memory that the client has mapped and then taken the file from is nothing that a guest's driver could have caused or
    /// could mend: the client is told, once until the next reset.
    fn check_lost(&mut self, result: Result<(), AccessError>) -> Result<(), BusError> {
        if let Err(AccessError::Lost { .. }) = result
            && !std::mem::replace(self.error_told, true)
        {
            self.lent.irqs.trigger(ERROR, 0);
        }
        Ok(result?)
    }

    fn require_master(&self) -> Result<(), BusError> {
        if self.running && self.config.command().bus_master() && self.config.is_on() {
            Ok(())
        } else {
            Err(BusError::NotMaster)
        }
    }
}
