//! Interrupts: the eventfds that the client gave, and VFIO's rules for signalling them.
//!
//! A level-triggered index (INTx) is AUTOMASKED as VFIO calls it: signalling masks it, the client unmasks it when the
//! guest is done, and if the device still asserts the line then, it is signalled again.
//!
//! ```text
//!             level up                       UNMASK
//!   quiet ---------------> signalled, masked -------> level still up? signalled, masked : quiet
//! ```
//!
//! A message (MSI, MSI-X) is pending while its vector is masked or has no eventfd, and is sent once when that ends, unless
//! the client has reset the device meanwhile.
//!
//! The specification and VFIO disagree about eventfds for MASK and UNMASK. For MASK this follows the specification: it is
//! signalled when an interrupt becomes masked; the kernel knows no such eventfd. For UNMASK it follows VFIO, as QEMU does for
//! KVM's sake: the client signals it at the end of an interrupt, and the interrupt is unmasked; to signal it here, as the
//! specification has it, would answer ourselves.

mod eventfd;
mod saved;
#[cfg(test)]
mod tests;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use eventfd::Eventfd;
pub use saved::SavedIrqs;

/// What the device offers under one IRQ index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many interrupts the index has; 0: the device has none of this kind.
    pub count: u32,
    /// How they behave.
    pub kind: IrqKind,
}

/// How the interrupts of an index behave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IrqKind {
    /// A line that the device holds up, masked by being signalled (INTx).
    Level,
    /// Messages, each of which can be masked (MSI, MSI-X).
    #[default]
    Message,
    /// The device's word to the VMM, not the guest: an error, or a request to unplug it. It can't be masked, and without an
    /// eventfd it is not kept.
    Notice,
}

/// What an eventfd is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// It is signalled when the interrupt happens.
    Trigger,
    /// It is signalled when the interrupt becomes masked.
    Mask,
    /// The client signals it to unmask the interrupt.
    Unmask,
}

/// The interrupts of one session, by IRQ index and number within it.
#[derive(Debug, Default)]
pub struct Irqs {
    indexes: Vec<Index>,
    /// Waits for the eventfds that unmask; there once there is such.
    epoll: Option<Arc<Epoll>>,
}

#[derive(Debug)]
struct Index {
    common: Common,
    irqs: Vec<Irq>,
}

/// What the interrupts of an index have in common.
#[derive(Debug)]
struct Common {
    kind: IrqKind,
    /// How often the client was told of any of them.
    signalled: u64,
}

#[derive(Debug, Default)]
struct Irq {
    trigger: Option<Eventfd>,
    mask: Option<Eventfd>,
    unmask: Option<Unmask>,
    /// The client masked it.
    masked: bool,
    /// Being signalled masked it.
    automasked: bool,
    /// The device asserts the line, or a message could not be sent yet.
    pending: bool,
}

impl Irq {
    fn is_masked(&self) -> bool {
        self.masked || self.automasked
    }

    /// Signals if there is something to signal, someone to tell and no mask.
    fn evaluate(&mut self, common: &mut Common) {
        if !self.pending || self.is_masked() {
            return;
        }
        if let Some(trigger) = &self.trigger {
            trigger.signal();
            common.signalled += 1;
            if common.kind == IrqKind::Level {
                self.automasked = true;
                self.tell_masked();
            } else {
                self.pending = false;
            }
        }
    }

    fn mask(&mut self) {
        let was_masked = self.is_masked();
        self.masked = true;
        if !was_masked {
            self.tell_masked();
        }
    }

    fn unmask(&mut self, common: &mut Common) {
        self.masked = false;
        self.automasked = false;
        self.evaluate(common);
    }

    fn tell_masked(&self) {
        if let Some(mask) = &self.mask {
            mask.signal();
        }
    }
}

impl Irqs {
    /// No interrupt connected yet.
    #[must_use]
    pub fn new(infos: &[IrqInfo]) -> Self {
        let index = |info: &IrqInfo| Index {
            common: Common {
                kind: info.kind,
                signalled: 0,
            },
            irqs: (0..info.count).map(|_| Irq::default()).collect(),
        };
        Self {
            indexes: infos.iter().map(index).collect(),
            epoll: None,
        }
    }

    /// Raises or lowers a level-triggered interrupt.
    pub fn set_level(&mut self, index: u32, asserted: bool) {
        if let Some((common, irq)) = self.get(index, 0)
            && common.kind == IrqKind::Level
            && irq.pending != asserted
        {
            irq.pending = asserted;
            irq.evaluate(common);
        }
    }

    /// Sends a message or a notice. A message is held back while its vector is masked or has no eventfd.
    pub fn trigger(&mut self, index: u32, number: u32) {
        let Some((common, irq)) = self.get(index, number) else {
            return;
        };
        match common.kind {
            IrqKind::Message => {
                irq.pending = true;
                irq.evaluate(common);
            }
            IrqKind::Notice => {
                if let Some(trigger) = &irq.trigger {
                    trigger.signal();
                    common.signalled += 1;
                }
            }
            IrqKind::Level => {}
        }
    }

    /// How often the client was told of interrupts of this index; that it tried out its eventfds does not count.
    #[must_use]
    pub fn signalled(&self, index: u32) -> u64 {
        let index = self.indexes.get(index as usize);
        index.map_or(0, |index| index.common.signalled)
    }

    /// Whether the line is asserted, or a message is being held back (its bit in the Pending Bit Array).
    #[must_use]
    pub fn is_pending(&self, index: u32, number: u32) -> bool {
        self.indexes
            .get(index as usize)
            .and_then(|index| index.irqs.get(number as usize))
            .is_some_and(|irq| irq.pending)
    }

    /// Whether the client is told when the interrupt comes.
    #[must_use]
    pub fn is_connected(&self, index: u32, number: u32) -> bool {
        self.indexes
            .get(index as usize)
            .and_then(|index| index.irqs.get(number as usize))
            .is_some_and(|irq| irq.trigger.is_some())
    }

    /// What to wait for, to be read: [`Irqs::serve`] is to be called then. It comes with the first eventfd that unmasks.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.epoll.as_ref().map(|epoll| epoll.0.as_fd())
    }

    /// Unmasks what the client has signalled by eventfd. Never waits.
    pub fn serve(&mut self) {
        let mut events = [EpollEvent::empty(); 16];
        let ready = self.epoll.as_ref().map_or(0, |epoll| {
            // An error leaves the rest to the next call.
            epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0)
        });
        for event in &events[..ready] {
            let (index, number) = ((event.data() >> 32) as u32, event.data() as u32);
            if let Some((common, irq)) = self.get(index, number)
                && irq
                    .unmask
                    .as_ref()
                    .is_some_and(|unmask| unmask.eventfd.take())
            {
                irq.unmask(common);
            }
        }
    }

    /// Connects interrupts from `start` on to eventfds (`None` disconnects one). What was connected before is dropped. An
    /// interrupt that the client has masked stays so; a line that masked itself is signalled again if it is still up, since
    /// nobody may have heard of it.
    ///
    /// All vectors of an index can be connected at any time, although NORESIZE is announced for messages: QEMU connects
    /// a set by several messages, with as many descriptors in each as one message may have.
    ///
    /// # Errors
    /// `EINVAL` when the range is not the index's, when a descriptor is no eventfd, when a notice is to be masked, or when
    /// what an interrupt signals would unmask one; the system's, when it can't wait for an eventfd. Nothing has changed then.
    pub fn connect(
        &mut self,
        index: u32,
        action: IrqAction,
        start: u32,
        eventfds: impl ExactSizeIterator<Item = Option<OwnedFd>>,
    ) -> Result<(), Errno> {
        let (common, irqs) = self.range(index, start, eventfds.len())?;
        if common.kind == IrqKind::Notice && action != IrqAction::Trigger {
            return Err(Errno::EINVAL);
        }
        let count = irqs.len();
        let eventfds = eventfds
            .map(|fd| fd.map(Eventfd::new).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        for eventfd in eventfds.iter().flatten() {
            self.check_role(eventfd, action)?;
        }
        match action {
            IrqAction::Trigger => {
                let (common, irqs) = self.range(index, start, count)?;
                for (irq, eventfd) in irqs.iter_mut().zip(eventfds) {
                    irq.trigger = eventfd;
                    irq.automasked = false;
                    irq.evaluate(common);
                }
            }
            IrqAction::Mask => {
                let (_, irqs) = self.range(index, start, count)?;
                for (irq, eventfd) in irqs.iter_mut().zip(eventfds) {
                    irq.mask = eventfd;
                }
            }
            IrqAction::Unmask => {
                let watched = (start..)
                    .zip(eventfds)
                    .map(|(number, eventfd)| {
                        eventfd
                            .map(|eventfd| self.watch(eventfd, index, number))
                            .transpose()
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                let (_, irqs) = self.range(index, start, count)?;
                for (irq, unmask) in irqs.iter_mut().zip(watched) {
                    irq.unmask = unmask;
                }
            }
        }
        Ok(())
    }

    /// Disconnects every interrupt of an index: eventfds of all kinds, masks, and messages that were held back.
    ///
    /// # Errors
    /// `EINVAL` for an index that the device does not have.
    pub fn disconnect(&mut self, index: u32) -> Result<(), Errno> {
        let index = self.indexes.get_mut(index as usize).ok_or(Errno::EINVAL)?;
        for irq in &mut index.irqs {
            *irq = Irq {
                // The line is the device's, which lets go of it when it is done.
                pending: index.common.kind == IrqKind::Level && irq.pending,
                ..Irq::default()
            };
        }
        Ok(())
    }

    /// Forgets the messages that are held back: the device that sent them was reset. What the client has connected and masked
    /// stays, and a line is the device's to lower.
    pub fn forget_messages(&mut self) {
        let is_message = |index: &&mut Index| index.common.kind == IrqKind::Message;
        for index in self.indexes.iter_mut().filter(is_message) {
            index.irqs.iter_mut().for_each(|irq| irq.pending = false);
        }
    }

    /// Masks or unmasks `count` interrupts from `start` on, those for which `chosen` says so.
    ///
    /// # Errors
    /// `EINVAL` when the range is not the index's, or its interrupts can't be masked.
    pub fn set_mask(
        &mut self,
        index: u32,
        start: u32,
        count: usize,
        masked: bool,
        chosen: impl Fn(usize) -> bool,
    ) -> Result<(), Errno> {
        let (common, irqs) = self.range(index, start, count)?;
        if common.kind == IrqKind::Notice {
            return Err(Errno::EINVAL);
        }
        for (_, irq) in irqs.iter_mut().enumerate().filter(|(at, _)| chosen(*at)) {
            if masked {
                irq.mask();
            } else {
                irq.unmask(common);
            }
        }
        Ok(())
    }

    /// Signals `count` interrupts from `start` on, those for which `chosen` says so: the client's way to try out its
    /// eventfds. As in the kernel this neither looks at masks nor leaves a trace.
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
        let (_, irqs) = self.range(index, start, count)?;
        for (_, irq) in irqs.iter().enumerate().filter(|(at, _)| chosen(*at)) {
            if let Some(trigger) = &irq.trigger {
                trigger.signal();
            }
        }
        Ok(())
    }

    /// Refuses an eventfd that is signalled here and unmasks as well: it would answer itself for ever.
    fn check_role(&self, eventfd: &Eventfd, action: IrqAction) -> Result<(), Errno> {
        let clashes = |irq: &Irq| match action {
            IrqAction::Trigger | IrqAction::Mask => irq
                .unmask
                .as_ref()
                .is_some_and(|unmask| unmask.eventfd.is(eventfd)),
            IrqAction::Unmask => [&irq.trigger, &irq.mask]
                .into_iter()
                .flatten()
                .any(|signalled| signalled.is(eventfd)),
        };
        if self
            .indexes
            .iter()
            .flat_map(|index| &index.irqs)
            .any(clashes)
        {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    fn watch(&mut self, eventfd: Eventfd, index: u32, number: u32) -> Result<Unmask, Errno> {
        let epoll = match &self.epoll {
            Some(epoll) => Arc::clone(epoll),
            None => {
                let epoll = Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
                Arc::clone(self.epoll.insert(epoll))
            }
        };
        let place = u64::from(index) << 32 | u64::from(number);
        // One event for each time the client signals: a counter that stays full does not keep us busy.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, place);
        epoll.add(&eventfd, event)?;
        Ok(Unmask { eventfd, epoll })
    }

    fn get(&mut self, index: u32, number: u32) -> Option<(&mut Common, &mut Irq)> {
        let index = self.indexes.get_mut(index as usize)?;
        Some((&mut index.common, index.irqs.get_mut(number as usize)?))
    }

    fn range(
        &mut self,
        index: u32,
        start: u32,
        count: usize,
    ) -> Result<(&mut Common, &mut [Irq]), Errno> {
        let index = self.indexes.get_mut(index as usize).ok_or(Errno::EINVAL)?;
        let start = start as usize;
        let end = start.checked_add(count).ok_or(Errno::EINVAL)?;
        let irqs = index.irqs.get_mut(start..end).ok_or(Errno::EINVAL)?;
        Ok((&mut index.common, irqs))
    }
}

/// An eventfd that unmasks. It leaves the epoll before it is closed: the client has the same open file, which would keep it
/// there.
#[derive(Debug)]
struct Unmask {
    eventfd: Eventfd,
    epoll: Arc<Epoll>,
}

impl Drop for Unmask {
    fn drop(&mut self) {
        // It was added, so that it can be deleted.
        let _ = self.epoll.delete(&self.eventfd);
    }
}
