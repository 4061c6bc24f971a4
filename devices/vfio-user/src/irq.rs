//! Interrupts: the eventfds that the client gave, and VFIO's rules for signalling them.
//!
//! A level-triggered index (INTx) is AUTOMASKED as VFIO calls it: signalling masks it, the client unmasks it when the
//! guest is done, and if the device still asserts the line then, it is signalled again.
//!
//! ```text
//!             level up                       UNMASK
//!   quiet ---------------> signalled, masked -------> level still up? signalled, masked : quiet
//! ```

use std::os::fd::{AsFd, OwnedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd,
};

/// What the device offers under one IRQ index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many interrupts the index has; 0: the device has none of this kind.
    pub count: u32,
    /// Level-triggered with automatic masking (INTx) rather than a message.
    pub level: bool,
}

/// The interrupts of one session, by IRQ index and number within it.
#[derive(Debug, Default)]
pub struct Irqs {
    indexes: Vec<Vec<Irq>>,
}

#[derive(Debug, Default)]
struct Irq {
    eventfd: Option<OwnedFd>,
    masked: bool,
    /// The device asserts the line, or has a message held back by the mask.
    pending: bool,
    level: bool,
}

impl Irq {
    /// Signals if there is something to signal, someone to tell and no mask.
    fn evaluate(&mut self) {
        let Some(eventfd) = self
            .eventfd
            .as_ref()
            .filter(|_| self.pending && !self.masked)
        else {
            return;
        };
        signal(eventfd);
        if self.level {
            self.masked = true;
        } else {
            self.pending = false;
        }
    }
}

/// Adds one to the counter. One that is full has told the client often enough. It is looked at before: the eventfd is the
/// client's as well, who may have made it block since.
fn signal(eventfd: &OwnedFd) {
    let mut fds = [PollFd::new(eventfd.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        // An error means that the client passed something that can't be signalled, which is its own loss.
        let _ = unistd::write(eventfd, &1u64.to_ne_bytes());
    }
}

impl Irqs {
    /// No interrupt connected yet.
    #[must_use]
    pub fn new(infos: &[IrqInfo]) -> Self {
        let irqs = |info: &IrqInfo| {
            (0..info.count)
                .map(|_| Irq {
                    level: info.level,
                    ..Irq::default()
                })
                .collect()
        };
        Self {
            indexes: infos.iter().map(irqs).collect(),
        }
    }

    /// Raises or lowers a level-triggered interrupt.
    pub fn set_level(&mut self, index: u32, asserted: bool) {
        if let Some(irq) = self.get(index, 0).filter(|irq| irq.pending != asserted) {
            irq.pending = asserted;
            irq.evaluate();
        }
    }

    /// Sends a message-signalled interrupt; held back while its vector is masked.
    pub fn trigger(&mut self, index: u32, number: u32) {
        if let Some(irq) = self.get(index, number) {
            irq.pending = true;
            irq.evaluate();
        }
    }

    /// Connects interrupts from `start` on to eventfds (`None` disconnects one).
    ///
    /// # Errors
    /// `EINVAL` when the range is not the index's.
    pub fn connect(
        &mut self,
        index: u32,
        start: u32,
        eventfds: impl ExactSizeIterator<Item = Option<OwnedFd>>,
    ) -> Result<(), Errno> {
        let irqs = self.range(index, start, eventfds.len())?;
        for (irq, eventfd) in irqs.iter_mut().zip(eventfds) {
            irq.eventfd = eventfd;
            irq.masked = false;
            irq.evaluate();
        }
        Ok(())
    }

    /// Disconnects every interrupt of an index.
    ///
    /// # Errors
    /// `EINVAL` for an index that the device does not have.
    pub fn disconnect(&mut self, index: u32) -> Result<(), Errno> {
        for irq in self.indexes.get_mut(index as usize).ok_or(Errno::EINVAL)? {
            irq.eventfd = None;
            irq.masked = false;
        }
        Ok(())
    }

    /// Masks or unmasks `count` interrupts from `start` on, those for which `chosen` says so.
    ///
    /// # Errors
    /// `EINVAL` when the range is not the index's.
    pub fn set_mask(
        &mut self,
        index: u32,
        start: u32,
        count: usize,
        masked: bool,
        chosen: impl Fn(usize) -> bool,
    ) -> Result<(), Errno> {
        self.for_chosen(index, start, count, chosen, |irq| {
            irq.masked = masked;
            irq.evaluate();
        })
    }

    /// Signals `count` interrupts from `start` on as if the device had, those for which `chosen` says so: the client's
    /// way to try them out.
    ///
    /// # Errors
    /// `EINVAL` when the range is not the index's.
    pub fn try_out(
        &mut self,
        index: u32,
        start: u32,
        count: usize,
        chosen: impl Fn(usize) -> bool,
    ) -> Result<(), Errno> {
        self.for_chosen(index, start, count, chosen, |irq| {
            let pending = std::mem::replace(&mut irq.pending, true);
            irq.evaluate();
            irq.pending = pending;
        })
    }

    fn for_chosen(
        &mut self,
        index: u32,
        start: u32,
        count: usize,
        chosen: impl Fn(usize) -> bool,
        action: impl Fn(&mut Irq),
    ) -> Result<(), Errno> {
        let irqs = self.range(index, start, count)?;
        irqs.iter_mut()
            .enumerate()
            .filter(|(i, _)| chosen(*i))
            .for_each(|(_, irq)| action(irq));
        Ok(())
    }

    fn get(&mut self, index: u32, number: u32) -> Option<&mut Irq> {
        self.indexes
            .get_mut(index as usize)?
            .get_mut(number as usize)
    }

    fn range(&mut self, index: u32, start: u32, count: usize) -> Result<&mut [Irq], Errno> {
        let irqs = self.indexes.get_mut(index as usize).ok_or(Errno::EINVAL)?;
        let start = start as usize;
        let end = start.checked_add(count).ok_or(Errno::EINVAL)?;
        irqs.get_mut(start..end).ok_or(Errno::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    const INTX: u32 = 0;
    const MSI: u32 = 1;

    fn eventfd() -> (EventFd, OwnedFd) {
        let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let theirs = std::os::fd::AsFd::as_fd(&ours)
            .try_clone_to_owned()
            .unwrap();
        (ours, theirs)
    }

    fn irqs() -> Irqs {
        Irqs::new(&[
            IrqInfo {
                count: 1,
                level: true,
            },
            IrqInfo {
                count: 2,
                level: false,
            },
        ])
    }

    #[test]
    fn level_is_signalled_once_until_unmasked() {
        let mut irqs = irqs();
        let (ours, theirs) = eventfd();
        irqs.connect(INTX, 0, [Some(theirs)].into_iter()).unwrap();
        irqs.set_level(INTX, true);
        assert_eq!(ours.read(), Ok(1));
        irqs.set_level(INTX, true);
        irqs.set_level(INTX, false);
        irqs.set_level(INTX, true);
        assert_eq!(
            ours.read(),
            Err(Errno::EAGAIN),
            "masked since it was signalled"
        );
    }

    #[test]
    fn level_still_up_at_unmask_fires_again() {
        let mut irqs = irqs();
        let (ours, theirs) = eventfd();
        irqs.set_level(INTX, true);
        irqs.connect(INTX, 0, [Some(theirs)].into_iter()).unwrap();
        assert_eq!(
            ours.read(),
            Ok(1),
            "the level was up before the client connected"
        );
        irqs.set_mask(INTX, 0, 1, false, |_| true).unwrap();
        assert_eq!(ours.read(), Ok(1));
        irqs.set_level(INTX, false);
        irqs.set_mask(INTX, 0, 1, false, |_| true).unwrap();
        assert_eq!(ours.read(), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_masked_message_is_sent_at_unmask() {
        let mut irqs = irqs();
        let (ours, theirs) = eventfd();
        irqs.connect(MSI, 1, [Some(theirs)].into_iter()).unwrap();
        irqs.set_mask(MSI, 0, 2, true, |_| true).unwrap();
        irqs.trigger(MSI, 1);
        assert_eq!(ours.read(), Err(Errno::EAGAIN));
        irqs.set_mask(MSI, 1, 1, false, |_| true).unwrap();
        assert_eq!(ours.read(), Ok(1));
    }

    #[test]
    fn ranges_outside_the_index_are_refused() {
        let mut irqs = irqs();
        assert_eq!(
            irqs.set_mask(INTX, 0, 2, true, |_| true),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            irqs.set_mask(MSI, u32::MAX, usize::MAX, true, |_| true),
            Err(Errno::EINVAL)
        );
        assert_eq!(irqs.disconnect(7), Err(Errno::EINVAL));
        irqs.trigger(9, 9);
        irqs.set_level(9, true);
    }
}
