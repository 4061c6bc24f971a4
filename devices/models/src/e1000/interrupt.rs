//! Interrupts, section 13.4.17 to 13.4.21: causes, mask, and one level-triggered line.
//!
//! The line is high while a cause is set that the mask lets through. Reading ICR clears every cause, so it lowers the line.

use pci::{Bus, regs::Regs};

use super::spec::{self, bits::Causes};

/// Something happened: its causes are set, and the line follows.
pub(super) fn raise(regs: &mut Regs, bus: &mut Bus<'_>, causes: Causes) {
    if causes != Causes::new() {
        let pending = regs.get(spec::ICR) | causes.into_bits();
        regs.set(spec::ICR, pending);
        update(regs, bus);
    }
}

/// Brings the line to what causes and mask make of it.
pub(super) fn update(regs: &Regs, bus: &mut Bus<'_>) {
    bus.set_intx(regs.get(spec::ICR) & regs.get(spec::IMS) != 0);
}

/// Software writes ICS: sets causes.
pub(super) fn write_set(regs: &mut Regs, bus: &mut Bus<'_>, data: u32) {
    raise(regs, bus, Causes::from_bits(data & Causes::DEFINED));
}

/// Software writes IMS: lets causes through.
pub(super) fn write_mask_set(regs: &mut Regs, bus: &mut Bus<'_>, data: u32) {
    let mask = regs.get(spec::IMS) | data & Causes::DEFINED;
    regs.set(spec::IMS, mask);
    update(regs, bus);
}

/// Software writes IMC: holds causes back.
pub(super) fn write_mask_clear(regs: &mut Regs, bus: &mut Bus<'_>, data: u32) {
    let mask = regs.get(spec::IMS) & !data;
    regs.set(spec::IMS, mask);
    update(regs, bus);
}
