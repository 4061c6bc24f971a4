//! The PHY behind MDIC (sections 11.1 and 13.4.7.1): its registers, and a link partner at the other end of the cable.
//!
//! The partner offers every speed, full and half duplex but at 1000 Mb/s, and symmetric pause. Autonegotiation is over as
//! soon as it begins, so that the link is away for a moment only. It begins after a reset, when software restarts it or
//! powers the PHY up, and when the link is lost or a cable found; what Control selects and the advertisements offer takes
//! effect then and not before.

use pci::LoadError;

use super::{
    Chip,
    spec::phy::{
        self, Ability, Control, GigabitControl, GigabitStatus, Interrupts, Register,
        SpecificStatus, Status,
    },
    state,
};

const REGISTERS: usize = 32;

/// What the partner offers: all of 10 and 100 Mb/s, symmetric pause, and 1000 Mb/s on a next page.
const PARTNER: Ability = Ability::new()
    .with_selector(1)
    .with_half_duplex_10(true)
    .with_full_duplex_10(true)
    .with_half_duplex_100(true)
    .with_full_duplex_100(true)
    .with_pause(true)
    .with_acknowledge(true)
    .with_next_page(true);
/// Expansion: both sides negotiate, know next pages, and have exchanged one.
const EXPANSION: u16 = 0x000f;

fn declared(number: u8) -> Option<&'static Register> {
    phy::REGISTERS
        .iter()
        .find(|register| register.number == number)
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mode {
    /// As CTRL.SPEED.
    speed: u8,
    full_duplex: bool,
}

/// What one can see from outside, before and after something happens.
#[derive(Clone, Copy)]
struct Seen {
    link: bool,
    mode: Option<Mode>,
}

/// The PHY.
#[derive(Debug)]
pub(super) struct Phy {
    registers: [u16; REGISTERS],
    /// The registers behind the window, by what is written to its selector.
    window: [u16; REGISTERS],
    /// Control and the advertisements as they were when the PHY last began.
    applied: Control,
    advertised: Ability,
    advertised_gigabit: GigabitControl,
    /// The link was lost since Status was read: its bit latches low.
    link_lost: bool,
    /// A page came since PHY Specific Status was read: its bit latches high.
    page_received: bool,
    /// There is a cable with the partner at its other end.
    cable: bool,
    /// Its reset pin is asserted.
    held: bool,
    /// Which PHY it is, as in its second identifier.
    id2: u16,
    /// The bits of Extended PHY Specific Control that it lacks.
    lacks: u16,
}

impl Phy {
    pub(super) fn new(chip: Chip) -> Self {
        // The 82543GC has Marvell's 88E1000 beside it, the others a later one inside, which knows downshift.
        let (id2, lacks) = match chip {
            Chip::I82543gc => (0x0c50, phy::DOWNSHIFT),
            Chip::I82540em | Chip::I82545em => (0x0c20, 0),
        };
        let mut phy = Self {
            registers: [0; REGISTERS],
            window: [0; REGISTERS],
            applied: Control::new(),
            advertised: Ability::new(),
            advertised_gigabit: GigabitControl::new(),
            link_lost: false,
            page_received: false,
            cable: true,
            held: false,
            id2,
            lacks,
        };
        phy.power_on();
        phy
    }

    /// As after power-on; a cable that is in stays in.
    pub(super) fn power_on(&mut self) {
        let Self {
            registers,
            window,
            applied: _,
            advertised: _,
            advertised_gigabit: _,
            link_lost,
            page_received,
            cable: _,
            held,
            id2,
            lacks,
        } = self;
        *registers = [0; REGISTERS];
        for register in phy::REGISTERS {
            registers[usize::from(register.number)] = register.power_on;
        }
        registers[usize::from(phy::ID2)] = *id2;
        registers[usize::from(phy::EXTENDED_SPECIFIC_CONTROL)] &= !*lacks;
        *window = [0; REGISTERS];
        *link_lost = false;
        *page_received = false;
        *held = false;
        self.begin();
    }

    /// Asserts its reset pin, or lets it go. Returns whether the link went away, if only for a moment.
    pub(super) fn hold(&mut self, held: bool) -> bool {
        if held == self.held {
            return false;
        }
        let before = self.seen();
        if held {
            self.power_on();
        }
        self.held = held;
        self.settle(before, !held)
    }

    fn get(&self, register: u8) -> u16 {
        self.registers[usize::from(register)]
    }

    fn control(&self) -> Control {
        Control::from_bits(self.get(phy::CONTROL))
    }

    /// What Control and the advertisements say from now on.
    fn begin(&mut self) {
        self.applied = Control::from_bits(self.get(phy::CONTROL) & phy::CONTROL_LATCHED);
        self.advertised = Ability::from_bits(self.get(phy::ADVERTISEMENT));
        self.advertised_gigabit = GigabitControl::from_bits(self.get(phy::GIGABIT_CONTROL));
    }

    /// Whether it negotiates: 1000 Mb/s can't be had without.
    fn negotiates(&self) -> bool {
        self.applied.autonegotiation() || self.applied.speed() >= 2
    }

    /// The best mode that both sides have, IEEE 802.3 annex 28B.3; or what was selected, which the partner finds out.
    fn mode(&self) -> Option<Mode> {
        let mode = |speed, full_duplex| Some(Mode { speed, full_duplex });
        let offer = self.advertised;
        match self.applied {
            forced if !forced.autonegotiation() && forced.speed() < 2 => {
                mode(forced.speed(), forced.full_duplex())
            }
            // The partner has no half duplex at 1000 Mb/s.
            forced if !forced.autonegotiation() => mode(2, true).filter(|_| forced.full_duplex()),
            _ if self.advertised_gigabit.full_duplex() => mode(2, true),
            _ if offer.full_duplex_100() => mode(1, true),
            _ if offer.half_duplex_100() => mode(1, false),
            _ if offer.full_duplex_10() => mode(0, true),
            _ if offer.half_duplex_10() => mode(0, false),
            _ => None,
        }
    }

    fn seen(&self) -> Seen {
        Seen {
            link: self.link(),
            mode: self.mode(),
        }
    }

    /// Something happened, after which the PHY begins anew or not. Returns whether the link went away, if only for a
    /// moment.
    fn settle(&mut self, before: Seen, anew: bool) -> bool {
        if anew || before.link && !self.link() {
            self.begin();
        }
        let now = self.seen();
        let interrupted = before.link && (anew || !now.link);
        let found = now.link && (anew || !before.link);
        let negotiated = found && self.negotiates();
        self.link_lost |= interrupted;
        self.page_received |= negotiated;
        let events = Interrupts::new()
            .with_link_changed(interrupted || found)
            .with_autonegotiation_completed(negotiated)
            .with_page_received(negotiated)
            .with_duplex_changed(
                now.mode.map(|mode| mode.full_duplex) != before.mode.map(|mode| mode.full_duplex),
            )
            .with_speed_changed(
                now.mode.map(|mode| mode.speed) != before.mode.map(|mode| mode.speed),
            )
            .with_autonegotiation_error(anew && now.mode.is_none());
        self.registers[usize::from(phy::INTERRUPT_STATUS)] |= events.into_bits();
        interrupted
    }

    /// Whether it asserts its interrupt: something happened that software wants to hear of, and has not read.
    pub(super) fn interrupt(&self) -> bool {
        self.get(phy::INTERRUPT_STATUS) & self.get(phy::INTERRUPT_ENABLE) != 0
    }

    /// Whether there is a link to the partner.
    pub(super) fn link(&self) -> bool {
        let control = self.control();
        let is_off = self.held || control.power_down() || control.isolate() || control.loopback();
        self.cable && !is_off && self.mode().is_some()
    }

    /// Whether what is sent comes back.
    pub(super) fn loopback(&self) -> bool {
        self.control().loopback() && !self.control().power_down() && !self.held
    }

    /// The speed, as in CTRL.SPEED: what was negotiated, or set.
    pub(super) fn speed(&self) -> u8 {
        self.mode().map_or(0, |mode| mode.speed)
    }

    /// Whether the link is full duplex.
    pub(super) fn full_duplex(&self) -> bool {
        self.mode().is_some_and(|mode| mode.full_duplex)
    }

    /// Whether there is a cable.
    pub(super) fn cable(&self) -> bool {
        self.cable
    }

    /// Plugs the cable in, or pulls it.
    pub(super) fn set_cable(&mut self, cable: bool) {
        let before = self.seen();
        let found = cable && !self.cable;
        self.cable = cable;
        self.settle(before, found);
    }

    /// Whether a PHY at this address answers at all.
    pub(super) fn answers(&self, address: u8) -> bool {
        address == phy::ADDRESS && !self.held
    }

    /// Reads a register.
    pub(super) fn read(&mut self, register: u8) -> u16 {
        let link = self.link();
        let negotiated = link && self.negotiates();
        match register {
            phy::STATUS => Status::new()
                .with_extended_capability(true)
                .with_link(!std::mem::take(&mut self.link_lost) && link)
                .with_autonegotiation_able(true)
                .with_autonegotiation_complete(negotiated)
                .with_preamble_suppression(true)
                .with_extended_status(true)
                .with_half_duplex_10(true)
                .with_full_duplex_10(true)
                .with_half_duplex_100(true)
                .with_full_duplex_100(true)
                .into_bits(),
            phy::PARTNER_ABILITY if negotiated => PARTNER.into_bits(),
            phy::EXPANSION if negotiated => EXPANSION,
            phy::GIGABIT_STATUS if negotiated => {
                let gigabit = self.speed() == 2;
                let offer = self.advertised_gigabit;
                GigabitStatus::new()
                    .with_partner_full_duplex(true)
                    .with_remote_receiver(gigabit)
                    .with_local_receiver(gigabit)
                    // The partner is a switch: it has many ports, and is the master unless it is told otherwise.
                    .with_master(gigabit && offer.manual_master() && offer.master())
                    .into_bits()
            }
            phy::SPECIFIC_STATUS => {
                // Annex 28B.2: symmetric pause is all that the partner has.
                let pause = negotiated && self.full_duplex() && self.advertised.pause();
                SpecificStatus::new()
                    .with_receive_pause(pause)
                    .with_transmit_pause(pause)
                    .with_link(link)
                    .with_resolved(link)
                    .with_page_received(std::mem::take(&mut self.page_received))
                    .with_full_duplex(self.full_duplex())
                    .with_speed(self.speed())
                    .into_bits()
            }
            phy::INTERRUPT_STATUS => {
                std::mem::take(&mut self.registers[usize::from(phy::INTERRUPT_STATUS)])
            }
            phy::WINDOW => self.window[self.selected()],
            _ => self
                .registers
                .get(usize::from(register))
                .copied()
                .unwrap_or(0),
        }
    }

    fn selected(&self) -> usize {
        usize::from(self.get(phy::WINDOW_SELECT)) % REGISTERS
    }

    /// What software can change of a register in this PHY.
    fn writable(&self, register: &Register) -> u16 {
        match register.number {
            phy::EXTENDED_SPECIFIC_CONTROL => register.writable & !self.lacks,
            _ => register.writable,
        }
    }

    /// Writes a register. Returns whether the link went away, if only for a moment.
    pub(super) fn write(&mut self, register: u8, value: u16) -> bool {
        let before = self.seen();
        let control = self.control();
        if register == phy::WINDOW {
            self.window[self.selected()] = value;
        }
        let Some(declared) = declared(register) else {
            return false;
        };
        let writable = self.writable(declared);
        let now = &mut self.registers[usize::from(register)];
        *now = *now & !writable | value & writable;
        if register != phy::CONTROL {
            return false;
        }
        let asked = Control::from_bits(value);
        if asked.reset() {
            self.reset();
        }
        let powered_up = control.power_down() && !self.control().power_down();
        let anew = asked.reset() || asked.restart_autonegotiation() || powered_up;
        self.settle(before, anew)
    }

    /// A reset by software, which keeps what was configured.
    fn reset(&mut self) {
        for register in phy::REGISTERS {
            let now = &mut self.registers[usize::from(register.number)];
            *now = *now & !register.reset | register.power_on & register.reset;
        }
        self.window = [0; REGISTERS];
        self.page_received = false;
    }

    pub(super) fn save(&self) -> state::Phy {
        let Self {
            registers,
            window,
            applied,
            advertised,
            advertised_gigabit,
            link_lost,
            page_received,
            cable,
            held,
            // The host's.
            id2: _,
            lacks: _,
        } = self;
        state::Phy {
            registers: registers.to_vec(),
            window: window.to_vec(),
            applied: applied.into_bits(),
            advertised: advertised.into_bits(),
            advertised_gigabit: advertised_gigabit.into_bits(),
            link_lost: *link_lost,
            page_received: *page_received,
            cable: *cable,
            held: *held,
        }
    }

    /// The PHY of this chip with a saved state.
    pub(super) fn restore(chip: Chip, saved: &state::Phy) -> Result<Self, LoadError> {
        let state::Phy {
            registers,
            window,
            applied,
            advertised,
            advertised_gigabit,
            link_lost,
            page_received,
            cable,
            held,
        } = saved;
        let all = |name, values: &[u16]| {
            <[u16; REGISTERS]>::try_from(values)
                .map_err(|_| LoadError::new(name, format!("are {}, not {REGISTERS}", values.len())))
        };
        let power_on = Self::new(chip);
        let can_be = |number: u8, value: u16| {
            let writable = declared(number).map_or(0, |register| power_on.writable(register));
            let driven = match number {
                phy::INTERRUPT_STATUS => phy::INTERRUPTS_USED,
                _ => 0,
            };
            (value ^ power_on.get(number)) & !(writable | driven) == 0
        };
        let error =
            |name: &str, value: u16| Err(LoadError::new(name, format!("can't be {value:#06x}")));
        let registers = all("registers", registers)?;
        for (number, value) in (0..).zip(registers) {
            if !can_be(number, value) {
                return error(&format!("registers[{number}]"), value);
            }
        }
        if applied & !phy::CONTROL_LATCHED != 0 {
            return error("applied", *applied);
        }
        if !can_be(phy::ADVERTISEMENT, *advertised) {
            return error("advertised", *advertised);
        }
        if !can_be(phy::GIGABIT_CONTROL, *advertised_gigabit) {
            return error("advertised_gigabit", *advertised_gigabit);
        }
        Ok(Self {
            registers,
            window: all("window", window)?,
            applied: Control::from_bits(*applied),
            advertised: Ability::from_bits(*advertised),
            advertised_gigabit: GigabitControl::from_bits(*advertised_gigabit),
            link_lost: *link_lost,
            page_received: *page_received,
            cable: *cable,
            held: *held,
            ..power_on
        })
    }
}
