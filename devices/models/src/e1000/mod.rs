//! Intel 82540EM, a Gigabit Ethernet controller.
//!
//! The measure is Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual" (317453);
//! sections named in comments are its.
//!
//! Left out: interrupt delays and throttling (RDTR, RADV, TIDV, TADV and ITR keep what is written; causes are reported
//! at the end of each batch instead), flow control, wake-up, management, and the packet buffer's diagnostics. Backends
//! carry no FCS: the receiver makes a right one where RCTL.SECRC leaves it, and the transmitter drops a frame whose own
//! is wrong.
//!
//! A narrow write to a register changes the bytes it covers. The I/O window takes only 32-bit writes (section 13.2.2).

mod checksum;
mod config;
mod eeprom;
mod filter;
mod interrupt;
mod parse;
mod phy;
mod queue;
mod rx;
mod segment;
mod spec;
mod state;
mod statistics;
#[cfg(test)]
mod tests;
mod tx;
mod wire;

use std::{os::fd::BorrowedFd, time::Instant};

use pci::{
    Bar, Bus, Capability, Identity, LoadError, Saved,
    regs::{self, Regs},
};
use tracing::trace;

pub use config::{Config, MacAddress};
use eeprom::Eeprom;
use interrupt::Interrupts;
use phy::Phy;
use rx::Receiver;
use spec::bits::{Causes, Ctrl, CtrlExt, Eecd, Eerd, Mdic, Rah, Status};
use tx::Transmitter;

/// Makes a controller by its configuration, with its backend open.
///
/// # Errors
/// When the backend can't be opened.
pub fn open(config: Config, seed: crate::Seed) -> Result<Controller, crate::Error> {
    let mac = config.mac.unwrap_or_else(|| MacAddress::made_up(seed));
    Ok(Controller::new(mac, net::open(&config.net)?))
}

/// The controller.
pub struct Controller {
    regs: Regs,
    /// Where the I/O window is open.
    io_address: u32,
    eeprom: Eeprom,
    phy: Phy,
    tx: Transmitter,
    rx: Receiver,
    interrupts: Interrupts,
    backend: Box<dyn net::Backend>,
    /// What the backend was told to wait for.
    interest: net::Interest,
    /// A time that has passed, for work that is due.
    past: Instant,
}

impl Controller {
    /// A controller in its power-on state, with this address in its EEPROM.
    #[must_use]
    pub fn new(mac: MacAddress, backend: Box<dyn net::Backend>) -> Self {
        let mut controller = Self {
            regs: Regs::new(spec::REGS),
            io_address: 0,
            eeprom: Eeprom::new(mac.0),
            phy: Phy::new(),
            tx: Transmitter::new(),
            rx: Receiver::new(),
            interrupts: Interrupts::default(),
            backend,
            interest: net::Interest::default(),
            past: Instant::now(),
        };
        controller.load_eeprom();
        controller.update_status();
        controller.settle();
        controller
    }

    /// CTRL.RST, section 13.4.1: the PHY, the EEPROM and configuration space stay, and so does PBA, whose new value takes
    /// effect by this reset.
    fn reset_by_software(&mut self, bus: &mut Bus<'_>) {
        bus.count_software_reset();
        self.regs.reset(|register| register == spec::PBA);
        self.tx.reset();
        self.rx.reset();
        self.interrupts = Interrupts::default();
        self.load_eeprom();
        self.update_status();
        self.interrupts.update(&self.regs, bus);
    }

    /// Takes over a saved state, or nothing of it.
    fn restore(&mut self, state: &state::Controller) -> Result<(), LoadError> {
        let state::Controller {
            registers,
            io_address,
            eeprom,
            phy,
            transmitter,
            receiver,
        } = state;
        if io_address & !spec::IOADDR_WRITABLE != 0 {
            let problem = format!("can't be {io_address:#x}");
            return Err(LoadError::new("io_address", problem));
        }
        let within = |outer: &'static str| move |error: LoadError| error.within(outer);
        let regs = Regs::restore(spec::REGS, registers).map_err(within("registers"))?;
        let eeprom = Eeprom::restore(eeprom).map_err(within("eeprom"))?;
        let phy = Phy::restore(phy).map_err(within("phy"))?;
        let tx = Transmitter::restore(transmitter).map_err(within("transmitter"))?;
        let rx = Receiver::restore(receiver).map_err(within("receiver"))?;
        (self.regs, self.io_address) = (regs, *io_address);
        (self.eeprom, self.phy) = (eeprom, phy);
        (self.tx, self.rx) = (tx, rx);
        Ok(())
    }

    /// The controller reads its EEPROM after a reset (section 5.6): the address goes into the first receive address.
    fn load_eeprom(&mut self) {
        let [a, b, c, d, e, f] = self.eeprom.mac();
        let high = Rah::new()
            .with_address(u16::from_le_bytes([e, f]))
            .with_valid(true);
        self.regs.set(spec::RAL, u32::from_le_bytes([a, b, c, d]));
        self.regs.set(spec::RAH, high.into_bits());
    }

    /// Whether frames pass between the MAC and the partner.
    fn link_up(&self) -> bool {
        Status::from_bits(self.regs.get(spec::STATUS)).link_up()
    }

    /// Brings Device Status to what CTRL and the PHY make of it. Returns whether the link came or went.
    fn update_status(&mut self) -> bool {
        let ctrl = Ctrl::from_bits(self.regs.get(spec::CTRL));
        let was_up = self.link_up();
        let is_up = self.phy.link() && ctrl.set_link_up();
        let status = Status::new()
            .with_link_up(is_up)
            .with_full_duplex(if ctrl.force_duplex() {
                ctrl.full_duplex()
            } else {
                self.phy.full_duplex()
            })
            .with_speed(if ctrl.force_speed() {
                ctrl.speed()
            } else {
                self.phy.speed()
            })
            .with_detected_speed(self.phy.speed())
            .with_pci66(true);
        self.regs.set(spec::STATUS, status.into_bits());
        was_up != is_up
    }

    /// As [`Controller::update_status`], and tells the guest. `interrupted`: the link was away for a moment.
    fn update_link(&mut self, bus: &mut Bus<'_>, interrupted: bool) {
        let changed = self.update_status();
        if changed || interrupted && self.link_up() {
            let causes = Causes::new().with_link_change(true);
            self.interrupts.raise(&mut self.regs, bus, causes);
        }
    }

    /// Tells the backend what there is to wait for.
    fn settle(&mut self) {
        let interest = net::Interest {
            receive: !self.rx.blocked,
            send: self.tx.full,
        };
        if interest != self.interest {
            self.interest = interest;
            self.backend.wait_for(interest);
        }
    }

    fn read_register(&mut self, bus: &mut Bus<'_>, at: u32) -> u32 {
        let Some(register) = self.regs.canonical(at) else {
            return 0;
        };
        let value = self.regs.read(register);
        match register {
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

    fn write_register(&mut self, bus: &mut Bus<'_>, at: u32, data: u32, lanes: u32) {
        let Some(register) = self.regs.canonical(at) else {
            return;
        };
        trace!(register = %self.regs.name(at), data, lanes, "write");
        let now = self.regs.write(register, data, lanes);
        match register {
            spec::TDT => self.write_transmit_tail(bus),
            spec::RDT | spec::RCTL => self.resume_receive(bus),
            spec::TCTL => self.transmit(bus),
            spec::ICR => self.interrupts.update(&self.regs, bus),
            spec::ICS => self.interrupts.write_set(&mut self.regs, bus, data),
            spec::IMS => self.interrupts.write_mask_set(&mut self.regs, bus, data),
            spec::IMC => self.interrupts.write_mask_clear(&mut self.regs, bus, data),
            spec::CTRL => self.write_control(bus, Ctrl::from_bits(data)),
            spec::CTRL_EXT if CtrlExt::from_bits(data).eeprom_reset() => self.load_eeprom(),
            spec::EECD => {
                let eecd = self.eeprom.drive(Eecd::from_bits(now));
                self.regs.set(spec::EECD, eecd.into_bits());
            }
            spec::EERD => {
                let command = Eerd::from_bits(data);
                if command.start() {
                    let answer = self.eeprom.read(command);
                    self.regs.set(spec::EERD, answer.into_bits());
                }
            }
            spec::MDIC => self.write_mdi_control(bus, Mdic::from_bits(data)),
            // What receive does not take of the 64 KiB is transmit's.
            spec::PBA => self.regs.set(
                spec::PBA,
                64u32.saturating_sub(now & 0x7f) << 16 | now & 0x7f,
            ),
            _ => {}
        }
    }

    fn write_control(&mut self, bus: &mut Bus<'_>, asked: Ctrl) {
        if asked.reset() {
            self.reset_by_software(bus);
            return;
        }
        if asked.phy_reset() {
            self.phy.reset();
        }
        self.update_link(bus, asked.phy_reset());
    }

    /// One MDIO transaction, section 13.4.8; it is over at once.
    fn write_mdi_control(&mut self, bus: &mut Bus<'_>, asked: Mdic) {
        const WRITE: u8 = 1;
        const READ: u8 = 2;
        let mut answer = asked.with_ready(true).with_error(false);
        let mut interrupted = false;
        match asked.operation() {
            _ if asked.phy() != spec::phy::ADDRESS => answer.set_error(true),
            READ => answer.set_data(self.phy.read(asked.register())),
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

    /// The register behind IODATA, section 13.2.2.1: not the Flash, which this board has none of.
    fn io_register(&self) -> Option<u32> {
        (self.io_address < spec::MEMORY_BAR_BYTES).then_some(self.io_address & !3)
    }

    fn read_io(&mut self, bus: &mut Bus<'_>, at: u32) -> u32 {
        match at {
            spec::IOADDR => self.io_address,
            spec::IODATA => match self.io_register() {
                Some(register) => self.read_register(bus, register),
                None => 0,
            },
            _ => 0,
        }
    }

    fn write_io(&mut self, bus: &mut Bus<'_>, at: u32, data: u32, lanes: u32) {
        match at {
            _ if lanes != u32::MAX => {}
            spec::IOADDR => self.io_address = data & spec::IOADDR_WRITABLE,
            spec::IODATA => {
                if let Some(register) = self.io_register() {
                    self.write_register(bus, register, data, lanes);
                }
            }
            _ => {}
        }
    }
}

impl pci::Device for Controller {
    fn identity(&self) -> Identity {
        let mut bars = [None; 6];
        bars[0] = Some(Bar::Memory {
            size_bytes: spec::MEMORY_BAR_BYTES,
        });
        bars[1] = Some(Bar::Io {
            size_bytes: spec::IO_BAR_BYTES,
        });
        Identity {
            vendor_id: crate::E1000.vendor_id,
            device_id: crate::E1000.device_id,
            subsystem_vendor_id: 0x8086,
            subsystem_id: 0x001e,
            revision_id: 0x02,
            class_code: crate::E1000.class_code,
            min_gnt: 0xff,
            max_lat: 0,
            interrupt_pin: true,
            bars,
            capabilities: vec![(0xdc, Capability::PowerManagement)],
        }
    }

    fn read(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        regs::read_words(offset, data, |at| match bar {
            0 => self.read_register(bus, at),
            _ => self.read_io(bus, at),
        });
    }

    fn write(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &[u8]) {
        regs::write_words(offset, data, |at, data, lanes| match bar {
            0 => self.write_register(bus, at, data, lanes),
            _ => self.write_io(bus, at, data, lanes),
        });
        self.settle();
    }

    fn reset(&mut self, _bus: &mut Bus<'_>) {
        let Self {
            regs,
            io_address,
            eeprom,
            phy,
            tx,
            rx,
            interrupts,
            backend: _,
            interest: _,
            past: _,
        } = self;
        regs.reset(|_| false);
        *io_address = 0;
        eeprom.power_on();
        phy.reset();
        tx.reset();
        rx.reset();
        *interrupts = Interrupts::default();
        self.load_eeprom();
        self.update_status();
        self.settle();
    }

    fn save(&self, _now: Instant) -> Saved {
        let Self {
            regs,
            io_address,
            eeprom,
            phy,
            tx,
            rx,
            interrupts: _,
            // The host's.
            backend: _,
            // What follows from the rest.
            interest: _,
            past: _,
        } = self;
        let state = state::Controller {
            registers: regs.save(),
            io_address: *io_address,
            eeprom: eeprom.save(),
            phy: phy.save(),
            transmitter: tx.save(),
            receiver: rx.save(),
        };
        Saved::new(crate::E1000.name, state::VERSION, &state)
    }

    fn load(&mut self, saved: &Saved, _now: Instant) -> Result<(), LoadError> {
        let state: state::Controller = saved.state(crate::E1000.name, state::VERSION)?;
        self.restore(&state)
            .map_err(|error| error.within("state"))?;
        self.settle();
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.backend.fd()
    }

    fn deadline(&self) -> Option<Instant> {
        if self.tx.more || self.rx.more {
            Some(self.past)
        } else {
            self.backend.deadline()
        }
    }

    fn run(&mut self, bus: &mut Bus<'_>, now: Instant) {
        self.backend.run(now);
        self.transmit(bus);
        self.receive(bus);
        self.settle();
    }
}
