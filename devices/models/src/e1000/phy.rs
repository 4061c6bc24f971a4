//! The PHY behind MDIC: IEEE registers and Marvell's, a link partner that is always there, and loopback.
//!
//! Autonegotiation is over as soon as it starts. The partner offers every speed, full duplex, and no pause.

use pci::LoadError;

use super::{
    spec::phy::{self, Control, SpecificStatus, Status},
    state,
};

const REGISTERS: usize = 32;

/// What software can change in each register; the others are read-only.
const WRITABLE: [(u8, u16); 10] = [
    (phy::CONTROL, 0x7fc0),
    (phy::ADVERTISEMENT, 0xffff),
    (phy::NEXT_PAGE, 0xffff),
    (phy::GIGABIT_CONTROL, 0xff00),
    (phy::SPECIFIC_CONTROL, 0xffff),
    (phy::INTERRUPT_ENABLE, 0xffff),
    (phy::EXTENDED_SPECIFIC_CONTROL, 0xffff),
    (phy::LED_CONTROL, 0xffff),
    (phy::PAGE, 0xffff),
    (phy::PAGE_DATA, 0xffff),
];

/// Values after a reset, where not zero.
const POWER_ON: [(u8, u16); 10] = [
    (phy::CONTROL, 0x1140),
    (phy::ID1, phy::ID[0]),
    (phy::ID2, phy::ID[1]),
    (phy::ADVERTISEMENT, 0x0de1),
    (phy::NEXT_PAGE, 0x2001),
    (phy::GIGABIT_CONTROL, 0x0e00),
    (phy::EXTENDED_STATUS, 0x3000),
    (phy::SPECIFIC_CONTROL, 0x0068),
    (phy::EXTENDED_SPECIFIC_CONTROL, 0x0d60),
    (phy::LED_CONTROL, 0x4100),
];

/// Partner ability: acknowledged, all of 10 and 100 Mb/s, IEEE 802.3.
const PARTNER: u16 = 0x41e1;
/// Expansion: the partner negotiates, a page was received.
const PARTNER_NEGOTIATES: u16 = 0x0003;
/// 1000BASE-T status: local and remote receivers fine, the partner does full duplex.
const PARTNER_GIGABIT: u16 = 0x3800;

/// What software can change in a register.
fn writable(register: u8) -> u16 {
    WRITABLE
        .iter()
        .find(|(writable, _)| *writable == register)
        .map_or(0, |(_, bits)| *bits)
}

/// The PHY.
#[derive(Debug)]
pub(super) struct Phy {
    registers: [u16; REGISTERS],
    /// The link was lost since Status was read: its bit latches low.
    link_lost: bool,
    /// There is a cable with the partner at its other end.
    cable: bool,
}

impl Phy {
    pub(super) fn new() -> Self {
        let mut phy = Self {
            registers: [0; REGISTERS],
            link_lost: false,
            cable: true,
        };
        phy.reset();
        phy
    }

    /// Power-on, CTRL.PHY_RST and the reset bit of Control.
    pub(super) fn reset(&mut self) {
        let Self {
            registers,
            link_lost,
            cable: _,
        } = self;
        *registers = [0; REGISTERS];
        *link_lost = false;
        for (register, value) in POWER_ON {
            registers[usize::from(register)] = value;
        }
    }

    pub(super) fn save(&self) -> state::Phy {
        let Self {
            registers,
            link_lost,
            cable,
        } = self;
        state::Phy {
            registers: registers.to_vec(),
            link_lost: *link_lost,
            cable: *cable,
        }
    }

    pub(super) fn restore(saved: &state::Phy) -> Result<Self, LoadError> {
        let state::Phy {
            registers,
            link_lost,
            cable,
        } = saved;
        let Ok(registers) = registers.as_slice().try_into() else {
            let problem = format!("are {}, not {REGISTERS}", registers.len());
            return Err(LoadError::new("registers", problem));
        };
        let power_on = Self::new();
        for (register, (now, then)) in std::iter::zip(registers, power_on.registers).enumerate() {
            let value: u16 = now;
            if (value ^ then) & !writable(register as u8) != 0 {
                let problem = format!("can't be {value:#06x}");
                return Err(LoadError::new(format!("registers[{register}]"), problem));
            }
        }
        Ok(Self {
            registers,
            link_lost: *link_lost,
            cable: *cable,
        })
    }

    fn control(&self) -> Control {
        Control::from_bits(self.registers[usize::from(phy::CONTROL)])
    }

    /// Whether there is a link to the partner.
    pub(super) fn link(&self) -> bool {
        let control = self.control();
        self.cable && !control.power_down() && !control.isolate() && !control.loopback()
    }

    /// Whether there is a cable.
    pub(super) fn cable(&self) -> bool {
        self.cable
    }

    /// Plugs the cable in, or pulls it.
    pub(super) fn set_cable(&mut self, cable: bool) {
        let had_link = self.link();
        self.cable = cable;
        self.link_lost |= had_link && !self.link();
    }

    /// Whether what is sent comes back.
    pub(super) fn loopback(&self) -> bool {
        self.control().loopback() && !self.control().power_down()
    }

    /// The speed, as in CTRL.SPEED: what was negotiated, or set.
    pub(super) fn speed(&self) -> u8 {
        let control = self.control();
        if control.autonegotiation() {
            let gigabit = self.registers[usize::from(phy::GIGABIT_CONTROL)] & 0x0200 != 0;
            let fast = self.registers[usize::from(phy::ADVERTISEMENT)] & 0x0180 != 0;
            if gigabit { 2 } else { u8::from(fast) }
        } else {
            u8::from(control.speed_msb()) << 1 | u8::from(control.speed_lsb())
        }
    }

    /// Whether the link is full duplex.
    pub(super) fn full_duplex(&self) -> bool {
        let control = self.control();
        if !control.autonegotiation() {
            return control.full_duplex();
        }
        let advertised = self.registers[usize::from(phy::ADVERTISEMENT)];
        match self.speed() {
            2 => true,
            1 => advertised & 0x0100 != 0,
            _ => advertised & 0x0040 != 0,
        }
    }

    /// Reads a register.
    pub(super) fn read(&mut self, register: u8) -> u16 {
        let link = self.link();
        let negotiated = link && self.control().autonegotiation();
        match register {
            phy::STATUS => Status::new()
                .with_extended_capability(true)
                .with_link(link && !std::mem::take(&mut self.link_lost))
                .with_autonegotiation_able(true)
                .with_autonegotiation_complete(negotiated)
                .with_preamble_suppression(true)
                .with_extended_status(true)
                .with_half_duplex_10(true)
                .with_full_duplex_10(true)
                .with_half_duplex_100(true)
                .with_full_duplex_100(true)
                .into_bits(),
            phy::PARTNER_ABILITY if negotiated => PARTNER,
            phy::EXPANSION if negotiated => PARTNER_NEGOTIATES,
            phy::GIGABIT_STATUS if negotiated => PARTNER_GIGABIT,
            phy::SPECIFIC_STATUS => SpecificStatus::new()
                .with_link(link)
                .with_resolved(link)
                .with_full_duplex(self.full_duplex())
                .with_speed(self.speed())
                .into_bits(),
            phy::INTERRUPT_STATUS => {
                std::mem::take(&mut self.registers[usize::from(phy::INTERRUPT_STATUS)])
            }
            _ => self
                .registers
                .get(usize::from(register))
                .copied()
                .unwrap_or(0),
        }
    }

    /// Writes a register. Returns whether the link went away, if only for a moment.
    pub(super) fn write(&mut self, register: u8, value: u16) -> bool {
        let had_link = self.link();
        let writable = writable(register);
        if let Some(now) = self.registers.get_mut(usize::from(register)) {
            *now = *now & !writable | value & writable;
        }
        let mut interrupted = had_link && !self.link();
        if register == phy::CONTROL {
            let asked = Control::from_bits(value);
            if asked.reset() {
                // A software reset keeps what was configured (Marvell's manual) and negotiates anew.
                interrupted |= had_link;
            }
            if asked.restart_autonegotiation() && self.control().autonegotiation() {
                interrupted |= had_link;
            }
            let kept = self.control().with_restart_autonegotiation(false);
            self.registers[usize::from(phy::CONTROL)] = kept.into_bits();
        }
        self.link_lost |= interrupted;
        interrupted
    }
}
