//! Interrupts: what they do, and to whom.

use std::os::fd::BorrowedFd;

use zerocopy::IntoBytes;

use super::{Client, Error, Memory, connection::Request};
use crate::message::{Command, IrqSet};

/// What DEVICE_SET_IRQS is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Interrupts are held back.
    Mask,
    /// They no longer are.
    Unmask,
    /// They are sent.
    Trigger,
}

/// Which interrupts, beginning with the first, and how.
#[derive(Clone, Copy, Debug)]
pub enum Interrupts<'a> {
    /// The action is done to so many; 0 with [`Action::Trigger`] disconnects all of the index.
    All(u32),
    /// The action is done to those that are `true`.
    Chosen(&'a [bool]),
    /// These are to be signalled when the action happens, one for each interrupt.
    Eventfds(&'a [BorrowedFd<'a>]),
    /// So many are signalled to nobody from now on.
    NoEventfds(u32),
}

impl<M: Memory> Client<M> {
    /// DEVICE_SET_IRQS, for the interrupts of `index` from `start` on.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn set_irqs(
        &mut self,
        index: u32,
        start: u32,
        action: Action,
        interrupts: Interrupts<'_>,
    ) -> Result<(), Error> {
        let action = match action {
            Action::Mask => IrqSet::ACTION_MASK,
            Action::Unmask => IrqSet::ACTION_UNMASK,
            Action::Trigger => IrqSet::ACTION_TRIGGER,
        };
        let mut booleans = Vec::new();
        let mut fds: &[BorrowedFd<'_>] = &[];
        let (data, count) = match interrupts {
            Interrupts::All(count) => (IrqSet::DATA_NONE, count),
            Interrupts::Chosen(chosen) => {
                booleans.extend(chosen.iter().map(|chosen| u8::from(*chosen)));
                (IrqSet::DATA_BOOL, chosen.len() as u32)
            }
            Interrupts::Eventfds(eventfds) => {
                fds = eventfds;
                (IrqSet::DATA_EVENTFD, eventfds.len() as u32)
            }
            Interrupts::NoEventfds(count) => (IrqSet::DATA_EVENTFD, count),
        };
        let set = IrqSet {
            argsz: (size_of::<IrqSet>() + booleans.len()) as u32,
            flags: data | action,
            index,
            start,
            count,
        };
        self.call(Request {
            parts: [set.as_bytes(), &booleans, &[]],
            fds,
            ..Request::new(Command::DEVICE_SET_IRQS)
        })
        .map(drop)
    }
}
