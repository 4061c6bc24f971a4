//! Flow control, section 8.7: PAUSE frames of the partner hold the transmitter, and ours hold the partner.
//!
//! ```text
//!   sending --XOFF--> paused --its slots have passed, XON, or CTRL.RFCE off--> sending
//!
//!   quiet --a frame waits for descriptors: XOFF--> held back --none waits any more: XON--> quiet
//! ```
//!
//! The packet buffer is the backend's queue, whose fullness nobody knows: it is above the high threshold while a frame
//! waits for descriptors, and below the low one when none does.

use std::time::{Duration, Instant};

use net::Offload;
use pci::{Bus, LoadError, regs::Regs};

use super::{
    Controller,
    path::Path,
    spec::{
        self,
        bits::{Ctrl, Fcrth, Fcrtl, Rah, Rctl, Status, Tctl},
    },
    state,
    statistics::Sent,
    totals::FCS_BYTES,
};

/// The opcode of PAUSE, the only one there is.
const PAUSE: [u8; 2] = [0, 1];
const TYPE_AT: usize = 12;
const OPCODE_AT: usize = 14;
const SLOTS_AT: usize = 16;
/// A PAUSE frame, without FCS.
const FRAME_BYTES: usize = 60;
/// How long a slot is at 10 Mb/s: 64 bytes.
const SLOT_AT_10: Duration = Duration::from_nanos(51_200);

/// What flow control remembers between frames.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The partner wants nothing to be sent until then.
    paused_until: Option<Instant>,
    /// The partner was told to send nothing, and not yet to go on.
    holds_back: bool,
    /// The backend refused a PAUSE frame.
    pub(super) full: bool,
}

/// What a MAC Control frame is to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) kind: Kind,
    pub(super) pass: Pass,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// So many slots of silence; none is XON.
    Pause { slots: u16 },
    /// An opcode that nobody knows.
    Unsupported,
}

/// Whether the guest gets it, section 8.7.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// If the filters let it through.
    ByFilters,
    Always,
    Never,
}

/// The type by which MAC Control frames are known, in bytes of the wire; `None` while nobody listens to them (CTRL.RFCE).
pub(super) fn control_type(regs: &Regs) -> Option<[u8; 2]> {
    let listens = Ctrl::from_bits(regs.get(spec::CTRL)).receive_flow_control();
    listens.then(|| (regs.get(spec::FCT) as u16).to_be_bytes())
}

/// What a frame of [`control_type`] is, section 8.7.3. `None`: it is for nobody here, and a frame like others.
pub(super) fn classify(regs: &Regs, frame: &[u8]) -> Option<Control> {
    let destination = frame.first_chunk()?;
    let opcode = frame.get(OPCODE_AT..SLOTS_AT)?;
    let slots = frame.get(SLOTS_AT..SLOTS_AT + 2)?;
    let to_station = station(regs).is_some_and(|station| station == *destination);
    if !to_station && *destination != group(regs) {
        return None;
    }
    let rctl = Rctl::from_bits(regs.get(spec::RCTL));
    Some(if opcode == PAUSE {
        Control {
            kind: Kind::Pause {
                slots: u16::from_be_bytes([slots[0], slots[1]]),
            },
            pass: match to_station && rctl.discard_pause() {
                true => Pass::Never,
                false => Pass::ByFilters,
            },
        }
    } else {
        Control {
            kind: Kind::Unsupported,
            pass: match rctl.pass_mac_control() {
                true => Pass::Always,
                false => Pass::ByFilters,
            },
        }
    })
}

impl Flow {
    pub(super) fn reset(&mut self) {
        let Self {
            paused_until,
            holds_back,
            full,
        } = self;
        *paused_until = None;
        *holds_back = false;
        *full = false;
    }

    /// A MAC Control frame came in: it is counted, and obeyed.
    pub(super) fn hear(&mut self, regs: &mut Regs, bus: &Bus<'_>, kind: Kind) {
        match kind {
            Kind::Unsupported => regs.count(spec::FCRUC, 1),
            Kind::Pause { slots: 0 } => {
                regs.count(spec::XONRXC, 1);
                if let Some(until) = &mut self.paused_until {
                    // The pause is over in the next run, which is due at once and sends what has waited.
                    *until = bus.now();
                    show(regs, false);
                }
            }
            Kind::Pause { slots } => {
                regs.count(spec::XOFFRXC, 1);
                let status = Status::from_bits(regs.get(spec::STATUS));
                if status.full_duplex() {
                    self.paused_until = Some(bus.now() + slot(status) * u32::from(slots));
                    show(regs, true);
                }
            }
        }
    }

    /// Whether the transmitter has to be silent. Ends the pause when its time has come.
    pub(super) fn is_paused(&mut self, regs: &mut Regs, bus: &Bus<'_>) -> bool {
        let Some(until) = self.paused_until else {
            return false;
        };
        let obeys = Ctrl::from_bits(regs.get(spec::CTRL)).receive_flow_control();
        if obeys && bus.now() < until {
            return true;
        }
        self.paused_until = None;
        show(regs, false);
        let enabled = Tctl::from_bits(regs.get(spec::TCTL)).enable();
        if enabled && regs.get(spec::TDH) != regs.get(spec::TDT) {
            // One packet was to be sent, and the others have waited for it (section 13.7.11).
            regs.count(spec::DC, 1);
        }
        false
    }

    /// When the pause ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    pub(super) fn save(&self, now: Instant) -> state::Flow {
        let Self {
            paused_until,
            holds_back,
            full,
        } = self;
        state::Flow {
            paused_ns: paused_until
                .map(|until| until.saturating_duration_since(now).as_nanos() as u64),
            holds_back: *holds_back,
            full: *full,
        }
    }

    pub(super) fn restore(saved: &state::Flow, now: Instant) -> Result<Self, LoadError> {
        let state::Flow {
            paused_ns,
            holds_back,
            full,
        } = saved;
        let paused = paused_ns.map(Duration::from_nanos);
        if paused.is_some_and(|left| left > SLOT_AT_10 * u32::from(u16::MAX)) {
            return Err(LoadError::new("paused_ns", "no PAUSE frame lasts so long"));
        }
        Ok(Self {
            paused_until: paused.map(|left| now + left),
            holds_back: *holds_back,
            full: *full,
        })
    }
}

/// STATUS.TXOFF.
fn show(regs: &mut Regs, paused: bool) {
    let status = Status::from_bits(regs.get(spec::STATUS));
    let status = status.with_transmission_paused(paused);
    regs.set(spec::STATUS, status.into_bits());
}

/// What the partner is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// TCTL.SWXOFF, section 8.7.6.
    Software,
    HoldBack,
    GoOn,
}

impl Controller {
    /// Whether it matters that a frame waits for descriptors.
    fn holds_partner_back(&self) -> bool {
        let high = Fcrth::from_bits(self.regs.get(spec::FCRTH)).threshold();
        self.sends_pauses() && high > 0
    }

    /// CTRL.TFCE.
    fn sends_pauses(&self) -> bool {
        Ctrl::from_bits(self.regs.get(spec::CTRL)).transmit_flow_control()
    }

    /// Sends the PAUSE frames that are due, sections 8.7.5 and 8.7.6. The partner's do not hold them.
    pub(super) fn send_pauses(&mut self, bus: &mut Bus<'_>) {
        self.flow.full = false;
        let status = Status::from_bits(self.regs.get(spec::STATUS));
        let tctl = Tctl::from_bits(self.regs.get(spec::TCTL));
        if !status.full_duplex() {
            // SWXOFF means nothing there.
            let tctl = tctl.with_software_xoff(false);
            self.regs.set(spec::TCTL, tctl.into_bits());
            return;
        }
        if !tctl.enable() {
            return;
        }
        if tctl.software_xoff() {
            self.tell_partner(bus, Due::Software);
        }
        match (self.rx.waits(), self.flow.holds_back) {
            (true, false) if self.holds_partner_back() => self.tell_partner(bus, Due::HoldBack),
            (false, true) => self.tell_partner(bus, Due::GoOn),
            _ => {}
        }
    }

    fn tell_partner(&mut self, bus: &mut Bus<'_>, due: Due) {
        let slots = match due {
            Due::Software | Due::HoldBack => self.regs.get(spec::FCTTV) as u16,
            Due::GoOn => 0,
        };
        let is_wanted = match due {
            Due::Software | Due::HoldBack => true,
            Due::GoOn => {
                let low = Fcrtl::from_bits(self.regs.get(spec::FCRTL));
                self.sends_pauses() && low.xon_enable()
            }
        };
        if is_wanted && !self.send_pause(bus, slots) {
            self.flow.full = true;
            return;
        }
        match due {
            Due::Software => {
                let tctl = Tctl::from_bits(self.regs.get(spec::TCTL)).with_software_xoff(false);
                self.regs.set(spec::TCTL, tctl.into_bits());
            }
            Due::HoldBack => self.flow.holds_back = true,
            Due::GoOn => self.flow.holds_back = false,
        }
    }

    /// Returns whether it went out, or was lost where everything is.
    fn send_pause(&mut self, bus: &mut Bus<'_>, slots: u16) -> bool {
        let mut frame = [0; FRAME_BYTES];
        frame[..6].copy_from_slice(&group(&self.regs));
        frame[6..12].copy_from_slice(&address(&self.regs, spec::RAL, spec::RAH));
        let control_type = self.regs.get(spec::FCT) as u16;
        frame[TYPE_AT..OPCODE_AT].copy_from_slice(&control_type.to_be_bytes());
        frame[OPCODE_AT..SLOTS_AT].copy_from_slice(&PAUSE);
        frame[SLOTS_AT..SLOTS_AT + 2].copy_from_slice(&slots.to_be_bytes());
        match self.path() {
            Path::Nowhere => return true,
            Path::Backend => {
                if self.backend.send(&frame, Offload::None).is_err() {
                    return false;
                }
            }
            Path::Loopback => {
                let Self {
                    regs,
                    rx,
                    flow,
                    totals,
                    interrupts,
                    ..
                } = self;
                let events = rx.loop_back(regs, bus, flow, totals, &frame);
                interrupts.take(regs, bus, events);
            }
        }
        let counter = match slots {
            0 => spec::XONTXC,
            _ => spec::XOFFTXC,
        };
        self.regs.count(counter, 1);
        let mut sent = Sent::default();
        sent.add_control(FRAME_BYTES as u32 + FCS_BYTES);
        sent.settle(&mut self.regs, &mut self.totals);
        true
    }
}

/// How long a slot is, 64 bytes, at the speed of the link.
fn slot(status: Status) -> Duration {
    match status.speed() {
        0 => SLOT_AT_10,
        1 => SLOT_AT_10 / 10,
        _ => SLOT_AT_10 / 100,
    }
}

/// The address that all stations listen to.
fn group(regs: &Regs) -> [u8; 6] {
    address(regs, spec::FCAL, spec::FCAH)
}

/// The station's own address.
fn station(regs: &Regs) -> Option<[u8; 6]> {
    let high = Rah::from_bits(regs.get(spec::RAH));
    high.valid().then(|| address(regs, spec::RAL, spec::RAH))
}

fn address(regs: &Regs, low: u32, high: u32) -> [u8; 6] {
    let [a, b, c, d] = regs.get(low).to_le_bytes();
    let [e, f, ..] = regs.get(high).to_le_bytes();
    [a, b, c, d, e, f]
}
