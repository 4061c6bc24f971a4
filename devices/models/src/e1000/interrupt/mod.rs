//! Interrupts, sections 3.2.7, 3.4.3 and 13.4.17 to 13.4.21: from what happened to the guest's interrupt controller.
//!
//! ```text
//!   a frame, a descriptor --delay--> cause in ICR --mask--> --throttle--> interrupt
//!        anything else -----------------^
//! ```
//!
//! [`delay`] holds back RXT0 and TXDW, so that one interrupt tells of several. [`throttle`] spaces interrupts of all causes.
//! The interrupt is asserted while a cause is set that the mask lets through; reading ICR clears every cause, so it ends
//! the interrupt. An interrupt that was acknowledged by writing ICR is over as well: if causes are left, another one
//! begins, which a guest that uses messages needs to hear.
//!
//! What happens is told in batches. Everything in a batch is in guest memory before one of its causes is set, so that an
//! interrupt at once tells of the whole batch, and no timer runs for the rest of it.

mod delay;
mod throttle;

use std::time::Instant;

use pci::{Bus, LoadError, regs::Regs};

use super::{
    spec::{
        self,
        bits::{Causes, Rdtr},
    },
    state,
};
use delay::Delay;
use throttle::Throttle;

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
pub(super) struct Interrupts {
    /// RDTR and RADV.
    receive: Delay,
    /// TIDV and TADV.
    transmit: Delay,
    /// ITR.
    throttle: Throttle,
}

impl Interrupts {
    /// A batch of work is over. Looks at the clock only when there is something to wait for.
    pub(super) fn take(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, events: Events) {
        let Events {
            mut causes,
            received,
            sent_delayed,
        } = events;
        // Section 3.2.7.2: a small packet is told at once, as one that the timers have told of.
        let at_once = causes.small_receive() || received && regs.get(spec::RDTR) == 0;
        let tell = if at_once {
            self.receive.halt();
            true
        } else {
            received && {
                let (packet, absolute) = (regs.get(spec::RDTR), regs.get(spec::RADV));
                self.receive.start(bus.now(), packet, absolute)
            }
        };
        causes.set_receive_timer(tell || causes.receive_timer());
        // Section 3.3.3.1, IDE. A TIDV of zero is not allowed; it delays nothing.
        let at_once = causes.transmit_written_back() || sent_delayed && regs.get(spec::TIDV) == 0;
        let tell = if at_once {
            self.transmit.halt();
            true
        } else {
            sent_delayed && {
                let (packet, absolute) = (regs.get(spec::TIDV), regs.get(spec::TADV));
                self.transmit.start(bus.now(), packet, absolute)
            }
        };
        causes.set_transmit_written_back(tell);
        self.raise(regs, bus, causes);
    }

    /// Something happened: its causes are set, and the interrupt follows.
    pub(super) fn raise(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, causes: Causes) {
        if causes != Causes::new() {
            let pending = regs.get(spec::ICR) | causes.into_bits();
            regs.set(spec::ICR, pending);
            self.update(regs, bus);
        }
    }

    /// Brings the interrupt to what causes, mask and throttle make of it.
    pub(super) fn update(&mut self, regs: &Regs, bus: &mut Bus<'_>) {
        let wanted = regs.get(spec::ICR) & regs.get(spec::IMS) != 0;
        if !wanted || bus.interrupt() {
            self.throttle.stop_waiting();
            bus.set_interrupt(wanted);
        } else if self.throttle.admits(regs.get(spec::ITR), || bus.now()) {
            bus.set_interrupt(true);
        }
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = [self.receive.due(), self.transmit.due(), self.throttle.due()];
        due.into_iter().flatten().min()
    }

    /// Does what is due: no timer that ran out starts again by itself.
    pub(super) fn run(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, now: Instant) {
        let causes = Causes::new()
            .with_receive_timer(self.receive.expire(now))
            .with_transmit_written_back(self.transmit.expire(now));
        self.raise(regs, bus, causes);
        if self.throttle.due().is_some_and(|due| due <= now) {
            self.update(regs, bus);
        }
    }

    /// Software writes ICR, which has cleared causes.
    pub(super) fn write_cause(&mut self, regs: &Regs, bus: &mut Bus<'_>, data: u32) {
        if data & Causes::DEFINED != 0 {
            bus.set_interrupt(false);
            self.update(regs, bus);
        }
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

    /// Software writes RDTR. A new delay is for the next frame; without one, frames that wait to be told of wait for nothing.
    pub(super) fn write_receive_delay(&mut self, regs: &mut Regs, bus: &mut Bus<'_>, asked: Rdtr) {
        let no_delay = regs.get(spec::RDTR) == 0;
        if asked.flush() || no_delay && self.receive.due().is_some() {
            self.receive.halt();
            self.raise(regs, bus, Causes::new().with_receive_timer(true));
        }
    }

    /// Software writes RADV or TADV: zero stops the timer, and any other value is for its next start.
    pub(super) fn write_absolute_delays(&mut self, regs: &Regs) {
        if regs.get(spec::RADV) == 0 {
            self.receive.halt_absolute();
        }
        if regs.get(spec::TADV) == 0 {
            self.transmit.halt_absolute();
        }
    }

    pub(super) fn save(&self, now: Instant) -> state::Interrupts {
        let Self {
            receive,
            transmit,
            throttle,
        } = self;
        state::Interrupts {
            receive: receive.save(now),
            transmit: transmit.save(now),
            throttle: throttle.save(now),
        }
    }

    pub(super) fn restore(
        saved: &state::Interrupts,
        regs: &Regs,
        now: Instant,
    ) -> Result<Self, LoadError> {
        let state::Interrupts {
            receive,
            transmit,
            throttle,
        } = saved;
        let within = |outer: &'static str| move |error: LoadError| error.within(outer);
        Ok(Self {
            receive: Delay::restore(receive, now).map_err(within("receive"))?,
            transmit: Delay::restore(transmit, now).map_err(within("transmit"))?,
            throttle: Throttle::restore(throttle, regs.get(spec::ITR), now)
                .map_err(within("throttle"))?,
        })
    }
}
