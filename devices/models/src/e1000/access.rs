//! What reading and writing a register does, beyond its value: the one place that knows every side effect.
//!
//! Registers take writes of 32 bits and ignore narrower ones; whatever is read of one, it is read whole (section 13.2).

use pci::Bus;
use tracing::trace;

use super::{
    Controller, packet_buffer,
    spec::{
        self,
        bits::{Ctrl, CtrlExt, Eecd, Eerd, Mdic, Pba, Rdtr, Tctl, Wuc},
    },
    statistics,
};

impl Controller {
    pub(super) fn read_register(&mut self, bus: &mut Bus<'_>, at: u32) -> u32 {
        let Some(register) = self.regs.canonical(at) else {
            return match at {
                packet_buffer::OFFSET.. => self.packet_buffer.read(at),
                _ => 0,
            };
        };
        let mut value = self.regs.read(register);
        match register {
            spec::WUC => {
                let wuc = Wuc::from_bits(value).with_pme_enable(bus.is_pme_enabled());
                value = wuc.into_bits();
            }
            spec::ICR => self.interrupts.update(&self.regs, bus),
            spec::GORCH => statistics::clear_pair(&mut self.regs, spec::GORCL, spec::GORCH),
            spec::GOTCH => statistics::clear_pair(&mut self.regs, spec::GOTCL, spec::GOTCH),
            spec::TORH => statistics::clear_pair(&mut self.regs, spec::TORL, spec::TORH),
            spec::TOTH => statistics::clear_pair(&mut self.regs, spec::TOTL, spec::TOTH),
            _ => {}
        }
        trace!(register = %self.regs.name(at), value, "read");
        value
    }

    pub(super) fn write_register(&mut self, bus: &mut Bus<'_>, at: u32, data: u32) {
        let Some(register) = self.regs.canonical(at) else {
            if at >= packet_buffer::OFFSET {
                self.packet_buffer.write(at, data);
            }
            return;
        };
        trace!(register = %self.regs.name(at), data, "write");
        let now = self.regs.write(register, data, u32::MAX);
        match register {
            spec::TDT => self.write_transmit_tail(bus),
            spec::RDT | spec::RDH | spec::RDLEN | spec::RCTL => {
                self.resume_receive(bus);
                self.send_pauses(bus);
            }
            spec::TXDCTL => self.write_transmit_control(bus),
            spec::TCTL => {
                self.send_pauses(bus);
                self.write_transmit_enable(bus, Tctl::from_bits(now));
            }
            spec::ICR => self.interrupts.write_cause(&self.regs, bus, data),
            spec::ITR => self.interrupts.update(&self.regs, bus),
            spec::ICS => self.interrupts.write_set(&mut self.regs, bus, data),
            spec::IMS => self.interrupts.write_mask_set(&mut self.regs, bus, data),
            spec::IMC => self.interrupts.write_mask_clear(&mut self.regs, bus, data),
            spec::RDTR => {
                let asked = Rdtr::from_bits(data);
                self.interrupts
                    .write_receive_delay(&mut self.regs, bus, asked);
            }
            spec::RADV | spec::TADV => self.interrupts.write_absolute_delays(&self.regs),
            spec::CTRL => self.write_control(bus, Ctrl::from_bits(data)),
            spec::CTRL_EXT => self.write_extended_control(bus, CtrlExt::from_bits(data)),
            spec::EECD => {
                let always = self.board.chip.has_eeprom_pins();
                let eecd = self.eeprom.drive(Eecd::from_bits(now), always);
                self.regs.set(spec::EECD, eecd.into_bits());
                self.read_eeprom();
            }
            spec::EERD => {
                let asked = Eerd::from_bits(data);
                if asked.start() {
                    let command = Eerd::new().with_start(true).with_address(asked.address());
                    self.regs.set(spec::EERD, command.into_bits());
                    self.read_eeprom();
                }
            }
            spec::MDIC => self.write_mdi_control(bus, Mdic::from_bits(data)),
            spec::WUC => bus.enable_pme(Wuc::from_bits(data).pme_enable()),
            // What receive does not take of the 64 KiB is transmit's.
            spec::PBA => {
                let pba = Pba::from_bits(now);
                let left = 64u32.saturating_sub(pba.receive_kib());
                self.regs
                    .set(spec::PBA, pba.with_transmit_kib(left).into_bits());
            }
            _ => {}
        }
    }

    /// EERD's command, if there is one: it has to wait while software holds the EEPROM's pins (section 13.4.4).
    fn read_eeprom(&mut self) {
        let command = Eerd::from_bits(self.regs.get(spec::EERD));
        let held = Eecd::from_bits(self.regs.get(spec::EECD)).request();
        if command.start() && !held {
            let answer = self.eeprom.read(command);
            self.regs.set(spec::EERD, answer.into_bits());
        }
    }

    /// The register behind IODATA, section 13.2.2.1: not the Flash, which this board has none of.
    fn io_register(&self) -> Option<u32> {
        (self.io_address < spec::MEMORY_BAR_BYTES).then_some(self.io_address & !3)
    }

    pub(super) fn read_io(&mut self, bus: &mut Bus<'_>, at: u32) -> u32 {
        match at {
            spec::IOADDR => self.io_address,
            spec::IODATA => match self.io_register() {
                Some(register) => self.read_register(bus, register),
                None => 0,
            },
            _ => 0,
        }
    }

    pub(super) fn write_io(&mut self, bus: &mut Bus<'_>, at: u32, data: u32) {
        match at {
            spec::IOADDR => self.io_address = data & spec::IOADDR_WRITABLE,
            spec::IODATA => {
                if let Some(register) = self.io_register() {
                    self.write_register(bus, register, data);
                }
            }
            _ => {}
        }
    }
}
