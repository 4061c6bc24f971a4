//! A PCI function: configuration space, BARs, expansion ROM, INTx, and the [`Device`] trait that a model implements.
//!
//! [`Function`] wraps a model and is what the vfio-user server serves. The model sees BAR accesses with offsets inside the
//! BAR, and a [`Bus`] lent for each call; it knows neither the transport nor where its BARs are mapped.

mod bus;
mod config;
mod function;
pub mod regs;
mod rom;
pub mod saved;
pub mod stats;
mod update;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::{os::fd::BorrowedFd, time::Instant};

pub use bus::{Bus, BusError};
pub use config::{Bar, Capability, Command, ConfigSpace, Identity, PowerCapabilities};
pub use function::{Function, NoRequest};
pub use rom::{Rom, RomError};
pub use saved::{LoadError, Saved};
pub use update::UpdateError;

/// A device model: what lies behind the BARs.
///
/// Every method runs on the one loop of the device's process, never blocks, and bounds its work: what is left over is
/// announced through [`Device::deadline`] and done in the next [`Device::run`].
pub trait Device {
    /// Ids, BARs, expansion ROM, interrupt pin and capabilities; asked once, when the function is made.
    fn identity(&self) -> Identity;

    /// The guest reads `data.len()` bytes (1, 2, 4 or 8 when a CPU does it, anything when a client is odd) at `offset` of
    /// a BAR. The range lies inside the BAR.
    fn read(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &mut [u8]);

    /// The guest writes. The range lies inside the BAR.
    fn write(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &[u8]);

    /// All that the guest asked for at once is done: what the device has put off in order to do it once, it does now. Also
    /// called of a function that does not run.
    fn end_batch(&mut self, _bus: &mut Bus<'_>) {}

    /// Back to the power-on state. The interrupt line is already low and the configuration space already reset.
    fn reset(&mut self, bus: &mut Bus<'_>);

    /// Everything by which a driver could tell this device from one in its power-on state, and the work that is left. What
    /// is due at some time is saved as how long that is from `now`.
    fn save(&self, now: Instant) -> Saved;

    /// Becomes the device whose state [`Device::save`] gave, with the backend that it has. When that fails nothing has
    /// changed.
    ///
    /// # Errors
    /// [`LoadError`] for a state that this device could never have been in: it comes from outside.
    fn load(&mut self, saved: &Saved, now: Instant) -> Result<(), LoadError>;

    /// Becomes the device of this configuration, the whole of it, as far as a living device can; without a difference nothing
    /// changes. Also asked of a function that does not run: what the guest is to hear of then, it hears when it runs again.
    ///
    /// # Errors
    /// [`UpdateError`], and nothing has changed. A model that does not say otherwise can change nothing.
    fn update(
        &mut self,
        _bus: &mut Bus<'_>,
        _config: &serde_json::Value,
    ) -> Result<(), UpdateError> {
        Err(UpdateError::immutable(None))
    }

    /// The descriptor that becomes readable when [`Device::run`] should be called: the backend's. The same for life.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When [`Device::run`] should be called at the latest; now or earlier: there is work left.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Does what has become possible: the descriptor is readable or the deadline has passed.
    fn run(&mut self, _bus: &mut Bus<'_>, _now: Instant) {}

    /// What the model has counted since it was made, beside what is counted for every device. A reset is no new beginning.
    /// Asked after each turn of the loop, so that it does no more than tell numbers.
    fn stats(&self, _sink: &mut dyn stats::Sink) {}
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn identity(&self) -> Identity {
        (**self).identity()
    }
    fn read(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        (**self).read(bus, bar, offset, data);
    }
    fn write(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &[u8]) {
        (**self).write(bus, bar, offset, data);
    }
    fn end_batch(&mut self, bus: &mut Bus<'_>) {
        (**self).end_batch(bus);
    }
    fn reset(&mut self, bus: &mut Bus<'_>) {
        (**self).reset(bus);
    }
    fn save(&self, now: Instant) -> Saved {
        (**self).save(now)
    }
    fn load(&mut self, saved: &Saved, now: Instant) -> Result<(), LoadError> {
        (**self).load(saved, now)
    }
    fn update(&mut self, bus: &mut Bus<'_>, config: &serde_json::Value) -> Result<(), UpdateError> {
        (**self).update(bus, config)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }
    fn deadline(&self) -> Option<Instant> {
        (**self).deadline()
    }
    fn run(&mut self, bus: &mut Bus<'_>, now: Instant) {
        (**self).run(bus, now);
    }
    fn stats(&self, sink: &mut dyn stats::Sink) {
        (**self).stats(sink);
    }
}
