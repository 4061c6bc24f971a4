//! What a device counts, for whoever watches it from outside.
//!
//! Counting is adding to a number of one's own: nobody is called, and nothing is shared. Whoever wants the numbers asks for
//! all of them at once, and gives a [`Sink`] to put them into.

use std::ops::Add;

use vfio_bindings::bindings::vfio as bindings;
use vfio_user::Irqs;

/// How a number behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Takes the numbers of a device.
pub trait Sink {
    /// Takes one number. `name` is as in the metrics, without a prefix: lower case, words joined by `_`, parts by `.`, at most
    /// 40 bytes, and used once in a device. `unit` is UCUM (`By`, `{packet}`), at most 16 bytes.
    ///
    /// A device puts the same names in the same order each time.
    fn put(&mut self, name: &'static str, unit: &'static str, kind: Kind, value: u64);

    /// Takes a number that only grows.
    fn count(&mut self, name: &'static str, unit: &'static str, value: u64) {
        self.put(name, unit, Kind::Counter, value);
    }
}

/// How often a client was interrupted, by the kind of interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    intx: u64,
    msi: u64,
    msix: u64,
}

impl Interrupts {
    /// Of one session.
    #[must_use]
    pub fn of(irqs: &Irqs) -> Self {
        Self {
            intx: irqs.signalled(bindings::VFIO_PCI_INTX_IRQ_INDEX),
            msi: irqs.signalled(bindings::VFIO_PCI_MSI_IRQ_INDEX),
            msix: irqs.signalled(bindings::VFIO_PCI_MSIX_IRQ_INDEX),
        }
    }

    /// Tells the numbers.
    pub fn tell(self, sink: &mut dyn Sink) {
        let Self { intx, msi, msix } = self;
        sink.count("interrupts.intx", "{interrupt}", intx);
        sink.count("interrupts.msi", "{interrupt}", msi);
        sink.count("interrupts.msix", "{interrupt}", msix);
    }
}

impl Add for Interrupts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            intx: self.intx + other.intx,
            msi: self.msi + other.msi,
            msix: self.msix + other.msix,
        }
    }
}
