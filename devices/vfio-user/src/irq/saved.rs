//! Interrupts taken apart into values and descriptors, and put together again, maybe in another process.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Irq, IrqAction, IrqInfo, Irqs, eventfd::Eventfd};

/// A session's interrupts. The eventfds that belong to it travel beside it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedIrqs {
    /// By index and number, those about which there is something to say.
    irqs: Vec<SavedIrq>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedIrq {
    index: u32,
    number: u32,
    /// Which eventfds it has; they come in this order.
    trigger: bool,
    mask: bool,
    unmask: bool,
    masked: bool,
    automasked: bool,
    pending: bool,
}

impl SavedIrq {
    fn new(index: u32, number: u32, irq: &Irq) -> Self {
        Self {
            index,
            number,
            trigger: irq.trigger.is_some(),
            mask: irq.mask.is_some(),
            unmask: irq.unmask.is_some(),
            masked: irq.masked,
            automasked: irq.automasked,
            pending: irq.pending,
        }
    }

    /// Whether it is more than an interrupt is at first.
    fn says_something(&self) -> bool {
        let flags = [self.masked, self.automasked, self.pending];
        [self.trigger, self.mask, self.unmask]
            .into_iter()
            .chain(flags)
            .any(|is| is)
    }
}

impl Irqs {
    /// Takes the interrupts apart. Appends to `fds` what [`Irqs::restore`] wants.
    ///
    /// # Errors
    /// When a descriptor can't be duplicated.
    pub fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedIrqs> {
        let mut irqs = Vec::new();
        for (index, at) in self.indexes.iter().zip(0..) {
            for (irq, number) in index.irqs.iter().zip(0..) {
                let saved = SavedIrq::new(at, number, irq);
                let unmask = irq.unmask.as_ref().map(|unmask| &unmask.eventfd);
                let eventfds = [irq.trigger.as_ref(), irq.mask.as_ref(), unmask];
                for eventfd in eventfds.into_iter().flatten() {
                    fds.push(eventfd.as_fd().try_clone_to_owned()?);
                }
                if saved.says_something() {
                    irqs.push(saved);
                }
            }
        }
        Ok(SavedIrqs { irqs })
    }

    /// Puts together what [`Irqs::save`] took apart, with the descriptors that it gave, in their order, for a device with
    /// these interrupts. All of it may come from anywhere: it is checked as what a client sends.
    ///
    /// # Errors
    /// As for [`Irqs::connect`]; `EINVAL` when a descriptor is missing, or an interrupt comes twice.
    pub fn restore(
        infos: &[IrqInfo],
        saved: SavedIrqs,
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<Self, Errno> {
        let mut irqs = Self::new(infos);
        let mut next = (0, 0);
        for saved in saved.irqs {
            let (index, number) = (saved.index, saved.number);
            if (index, number) < next {
                return Err(Errno::EINVAL);
            }
            next = (index, number.checked_add(1).ok_or(Errno::EINVAL)?);
            let mut take = |wanted: bool| match wanted {
                true => fds.next().map(Some).ok_or(Errno::EINVAL),
                false => Ok(None),
            };
            let trigger = take(saved.trigger)?.map(Eventfd::new).transpose()?;
            for (eventfd, action) in [
                (take(saved.mask)?, IrqAction::Mask),
                (take(saved.unmask)?, IrqAction::Unmask),
            ] {
                if eventfd.is_some() {
                    irqs.connect(index, action, number, [eventfd].into_iter())?;
                }
            }
            if let Some(trigger) = &trigger {
                irqs.check_role(trigger, IrqAction::Trigger)?;
            }
            // Not by `connect`, which would signal what the client has been told already.
            let (_, irq) = irqs.get(index, number).ok_or(Errno::EINVAL)?;
            irq.trigger = trigger;
            irq.masked = saved.masked;
            irq.automasked = saved.automasked;
            irq.pending = saved.pending;
        }
        Ok(irqs)
    }
}
