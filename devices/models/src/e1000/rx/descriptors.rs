//! Receive descriptors of one run: fetched and written back in batches, section 3.2.4 and 3.2.5.

use pci::{Bus, BusError, regs::Regs};
use zerocopy::IntoBytes;

use crate::e1000::{
    queue::{Registers, Ring},
    spec::{self, descriptor::Receive},
};

const RING: Registers = Registers {
    base_low: spec::RDBAL,
    base_high: spec::RDBAH,
    length: spec::RDLEN,
    head: spec::RDH,
    tail: spec::RDT,
};

/// Descriptors fetched at once: as many bytes as are written back so that the guest sees no half of one.
const BATCH: usize = 32;

/// The descriptors between head and tail.
pub(super) struct Descriptors {
    /// Its head is at the batch's first descriptor.
    ring: Ring,
    batch: [Receive; BATCH],
    /// So many of the batch were fetched, and so many of these are finished.
    fetched: usize,
    finished: usize,
}

impl Descriptors {
    pub(super) fn load(regs: &Regs) -> Self {
        Self {
            ring: Ring::load(regs, &RING),
            batch: [Receive::default(); BATCH],
            fetched: 0,
            finished: 0,
        }
    }

    /// Descriptors in the ring.
    pub(super) fn count(&self) -> u32 {
        self.ring.count
    }

    /// Descriptors that are left.
    pub(super) fn available(&self) -> u32 {
        self.ring.available() - self.finished as u32
    }

    /// The next descriptor, or `None` when there is none left.
    pub(super) fn next(&mut self, bus: &mut Bus<'_>) -> Result<Option<&mut Receive>, BusError> {
        if self.finished == self.fetched && !self.fetch(bus)? {
            return Ok(None);
        }
        Ok(Some(&mut self.batch[self.finished]))
    }

    /// The guest may have the descriptor that [`Descriptors::next`] gave.
    pub(super) fn finish(&mut self) {
        self.finished += 1;
    }

    /// Hands what is finished to the guest. Returns where the ring's head is then.
    pub(super) fn write_back(&mut self, bus: &mut Bus<'_>) -> u32 {
        let finished = &self.batch[..self.finished];
        if !finished.is_empty() {
            // A ring that can be read and not written is the guest's mistake; it waits in vain.
            let _ = bus.write(self.ring.address(), finished.as_bytes());
            self.ring.advance_by(finished.len() as u32);
        }
        (self.fetched, self.finished) = (0, 0);
        self.ring.head()
    }

    /// Fetches the next batch, or what of it lies together. Returns whether there is one.
    fn fetch(&mut self, bus: &mut Bus<'_>) -> Result<bool, BusError> {
        self.write_back(bus);
        let address = self.ring.address();
        let mut count = (self.ring.contiguous() as usize).min(BATCH);
        if count > 0
            && bus
                .read(address, self.batch[..count].as_mut_bytes())
                .is_err()
        {
            // Where memory ends within the batch, there may still be one.
            count = 1;
            bus.read(address, self.batch[..count].as_mut_bytes())?;
        }
        self.fetched = count;
        Ok(count > 0)
    }
}
