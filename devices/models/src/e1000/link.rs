//! The link, section 8.6: what CTRL, the PHY and the cable make of Device Status, and how the guest hears of it.

use pci::Bus;

use super::{
    Controller, Link,
    autoload::Occasion,
    mdio,
    spec::{
        self,
        bits::{Causes, Ctrl, CtrlExt, Mdic, Status},
    },
};

impl Controller {
    /// Whether frames pass between the MAC and the partner.
    pub(super) fn link_up(&self) -> bool {
        Status::from_bits(self.regs.get(spec::STATUS)).link_up()
    }

    /// Plugs the cable in, or pulls it: the guest sees its link come or go, and frames that arrive without one are lost.
    pub fn set_link(&mut self, bus: &mut Bus<'_>, link: Link) {
        self.config.link = link;
        self.follow_cable(bus);
    }

    /// The cable may be another one than that of the PHY whose state was loaded.
    pub(super) fn follow_cable(&mut self, bus: &mut Bus<'_>) {
        if !self.cable_is_known() {
            self.phy.set_cable(self.config.link == Link::Up);
            self.update_link(bus, false);
        }
    }

    /// Whether the PHY has seen the cable.
    pub(super) fn cable_is_known(&self) -> bool {
        self.phy.cable() == (self.config.link == Link::Up)
    }

    /// Brings Device Status to what CTRL and the PHY make of it. Returns whether the link came or went.
    pub(super) fn update_status(&mut self) -> bool {
        let ctrl = Ctrl::from_bits(self.regs.get(spec::CTRL));
        let was_up = self.link_up();
        let is_up = self.phy.link() && ctrl.set_link_up();
        if !is_up {
            // What a partner that is gone has asked for.
            self.flow.reset();
        }
        let extended = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
        let status = Status::from_bits(self.regs.get(spec::STATUS))
            .with_transmission_paused(self.flow.deadline().is_some())
            .with_link_up(is_up)
            .with_full_duplex(if ctrl.force_duplex() {
                ctrl.full_duplex()
            } else {
                self.phy.full_duplex()
            })
            .with_speed(if ctrl.force_speed() || extended.bypass_speed() {
                ctrl.speed()
            } else {
                self.phy.speed()
            })
            .with_detected_speed(self.phy.speed());
        self.regs.set(spec::STATUS, status.into_bits());
        was_up != is_up
    }

    /// As [`Controller::update_status`], and tells the guest. `interrupted`: the link was away for a moment.
    fn update_link(&mut self, bus: &mut Bus<'_>, interrupted: bool) {
        let was_paused = self.flow.deadline().is_some();
        let changed = self.update_status();
        // What a pause held back goes on in the next run.
        self.tx.more |= was_paused && self.flow.deadline().is_none();
        if changed {
            // Frames no longer wait where there is no link, but are lost: in the next run, since now the device may not even
            // be running.
            self.rx.more |= self.rx.blocked;
        }
        let mut causes = Causes::new();
        causes.set_link_change(changed || interrupted && self.link_up());
        let mut extended = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
        let asserts = self.phy.interrupt();
        causes.set_phy(asserts && !extended.phy_interrupt() && extended.phy_interrupt_enable());
        extended.set_phy_interrupt(asserts);
        self.regs.set(spec::CTRL_EXT, extended.into_bits());
        self.interrupts.raise(&mut self.regs, bus, causes);
    }

    pub(super) fn write_control(&mut self, bus: &mut Bus<'_>, asked: Ctrl) {
        if asked.reset() {
            self.reset_by_software(bus);
            return;
        }
        let mut now = Ctrl::from_bits(self.regs.get(spec::CTRL));
        // What is not an output reads the pin, to which nothing is connected.
        now.set_pins(now.pins() & now.pin_outputs());
        let mut interrupted = false;
        if self.board.chip.has_mdio_pins() {
            interrupted = self.drive_mdio(&mut now);
        } else {
            now.set_mdio_output(false);
            now.set_mdc_output(false);
        }
        self.regs.set(spec::CTRL, now.into_bits());
        interrupted |= self.reset_phy();
        self.update_link(bus, interrupted);
        // It may no longer have to be silent.
        self.transmit(bus);
    }

    pub(super) fn write_extended_control(&mut self, bus: &mut Bus<'_>, asked: CtrlExt) {
        let mut now = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
        now.set_pins(now.pins() & now.pin_outputs());
        if !self.board.chip.has_mdio_pins() {
            now.set_phy_reset_pin(false);
        }
        self.regs.set(spec::CTRL_EXT, now.into_bits());
        if asked.eeprom_reset() {
            self.load_eeprom(Occasion::Reset);
        }
        let interrupted = self.reset_phy();
        self.update_link(bus, interrupted);
    }

    /// Holds the PHY in reset as long as CTRL, or a pin of the 82543GC, says so. Returns whether the link went away.
    pub(super) fn reset_phy(&mut self) -> bool {
        let ctrl = Ctrl::from_bits(self.regs.get(spec::CTRL));
        let extended = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
        let by_pin = self.board.chip.has_mdio_pins()
            && extended.phy_reset_output()
            && !extended.phy_reset_pin();
        self.phy.hold(ctrl.phy_reset() || by_pin)
    }

    /// Software has set the pins that are the PHY's data and clock. Returns whether the link went away.
    fn drive_mdio(&mut self, ctrl: &mut Ctrl) -> bool {
        let pins = mdio::Pins {
            clock: ctrl.mdc_output() && ctrl.manage_phy_power(),
            data: match ctrl.mdio_output() {
                true => ctrl.advertise_d3cold(),
                false => self.mdio.line(),
            },
        };
        let interrupted = self.mdio.drive(pins, &mut self.phy);
        if !ctrl.mdio_output() {
            ctrl.set_advertise_d3cold(self.mdio.line());
        }
        interrupted
    }

    /// One MDIO transaction, section 13.4.7; it is over at once.
    pub(super) fn write_mdi_control(&mut self, bus: &mut Bus<'_>, asked: Mdic) {
        const WRITE: u8 = 1;
        const READ: u8 = 2;
        let mut answer = Mdic::from_bits(asked.into_bits() & spec::MDIC_USED)
            .with_ready(true)
            .with_error(false);
        let mut interrupted = false;
        match asked.operation() {
            // Nobody drives the line, which its pull-up keeps high.
            READ if !self.phy.answers(asked.phy()) => {
                answer.set_data(0xffff);
                answer.set_error(true);
            }
            READ => answer.set_data(self.phy.read(asked.register())),
            WRITE if !self.phy.answers(asked.phy()) => {}
            WRITE => interrupted = self.phy.write(asked.register(), asked.data()),
            _ => answer.set_error(true),
        }
        self.regs.set(spec::MDIC, answer.into_bits());
        self.update_link(bus, interrupted);
        if asked.interrupt() {
            let causes = Causes::new().with_mdio_complete(true);
            self.interrupts.raise(&mut self.regs, bus, causes);
        }
    }
}
