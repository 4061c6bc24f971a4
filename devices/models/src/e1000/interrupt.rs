//! Interrupts, section 13.4.17 to 13.4.21: causes, mask, and one level-triggered line.
//!
//! The line is high while a cause is set that the mask lets through. Reading ICR clears every cause, so it lowers the line.

use pci::{Bus, regs::Regs};

use super::spec::{self, bits::Causes};

/// What happened in one batch of work, for which the guest may be interrupted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Events {
    /// Causes that are reported at once.
    pub(super) causes: Causes,
    /// Frames were received, of which the receive timers decide when to tell (RXT0).
    pub(super) received: bool,
    /// Descriptors with IDE were written back, of which the transmit timers decide when to tell (TXDW).
    pub(super) sent_delayed: bool,
}

impl Events {
    pub(super) fn add(&mut self, more: Self) {
        self.causes.add(more.causes);
        self.received |= more.received;
        self.sent_delayed |= more.sent_delayed;
    }
}

/// Causes on their way to the guest.
#[derive(Debug, Default)]
pub(super) struct Interrupts {}

impl Interrupts {
    /// A batch of work is over.
    pub(super) fn take(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, events: Events) {
        let mut causes = events.causes;
        if events.received {
            causes.set_receive_timer(true);
        }
        if events.sent_delayed {
            causes.set_transmit_written_back(true);
        }
        self.raise(regs, bus, causes);
    }

    /// Something happened: its causes are set, and the line follows.
    pub(super) fn raise(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, causes: Causes) {
        if causes != Causes::new() {
            let pending = regs.get(spec::ICR) | causes.into_bits();
            regs.set(spec::ICR, pending);
            self.update(regs, bus);
        }
    }

    /// Brings the line to what causes and mask make of it.
    pub(super) fn update(&mut self, regs: &Regs, bus: &mut Bus<'_>) {
        bus.set_interrupt(regs.get(spec::ICR) & regs.get(spec::IMS) != 0);
    }

    /// Software writes ICS: sets causes.
    pub(super) fn write_set(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, data: u32) {
        self.raise(regs, bus, Causes::from_bits(data & Causes::DEFINED));
    }

    /// Software writes IMS: lets causes through.
    pub(super) fn write_mask_set(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, data: u32) {
        let mask = regs.get(spec::IMS) | data & Causes::DEFINED;
        regs.set(spec::IMS, mask);
        self.update(regs, bus);
    }

    /// Software writes IMC: holds causes back.
    pub(super) fn write_mask_clear(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, data: u32) {
        let mask = regs.get(spec::IMS) & !data;
        regs.set(spec::IMS, mask);
        self.update(regs, bus);
    }
}
