//! Intel 82540EM, a Gigabit Ethernet controller.
//!
//! The measure is Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual" (317453);
//! sections named in comments are its.
//!
//! Left out: interrupt delays and throttling (RDTR, RADV, TIDV, TADV and ITR keep what is written; causes are reported
//! at the end of each batch instead), wake-up, management, and the packet buffer's diagnostics. Backends
//! carry no FCS: the receiver makes a right one where RCTL.SECRC leaves it, and the transmitter drops a frame whose own
//! is wrong.

mod access;
mod checksum;
mod config;
mod eeprom;
mod filter;
mod flow;
mod interrupt;
mod link;
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

use std::{os::fd::BorrowedFd, path::Path, time::Instant};

use pci::{
    Bar, Bus, Capability, Identity, LoadError, Rom, Saved, UpdateError,
    regs::{self, Regs},
};
use serde_json::Value;
use tracing::warn;

pub use config::{Config, Link, MacAddress};
use eeprom::Eeprom;
use flow::Flow;
use interrupt::Interrupts;
use phy::Phy;
use rx::Receiver;
use spec::bits::Rah;
use tx::Transmitter;

/// Makes a controller by its configuration, with its backend open.
///
/// # Errors
/// When the expansion ROM can't be read, or the backend can't be opened.
pub fn open(config: Config, seed: crate::Seed) -> Result<Controller, crate::Error> {
    let mac = config.mac.unwrap_or_else(|| MacAddress::made_up(seed));
    let rom = config.rom_file.as_deref().map(open_rom).transpose()?;
    let mut controller = Controller::new(mac, net::open(&config.net)?);
    controller.rom = rom;
    controller.phy.set_cable(config.link == Link::Up);
    controller.config = config;
    controller.update_status();
    Ok(controller)
}

fn open_rom(path: &Path) -> Result<Rom, crate::Error> {
    let rom = Rom::open(path, crate::E1000.vendor_id, crate::E1000.device_id)?;
    if let Some(device) = rom.made_for() {
        let path = path.display();
        warn!(%path, "the expansion ROM is for the device {device:04x}: guests see it as this card's");
    }
    Ok(rom.in_at_least(spec::FLASH_BYTES_MIN))
}

/// The controller.
pub struct Controller {
    regs: Regs,
    /// Where the I/O window is open.
    io_address: u32,
    eeprom: Eeprom,
    phy: Phy,
    /// The host's, and not part of a saved state: the PHY is told when its cable is another one there.
    config: Config,
    tx: Transmitter,
    rx: Receiver,
    flow: Flow,
    interrupts: Interrupts,
    rom: Option<Rom>,
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
            config: Config::default(),
            tx: Transmitter::new(),
            rx: Receiver::new(),
            flow: Flow::default(),
            interrupts: Interrupts::default(),
            rom: None,
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
        self.flow.reset();
        self.interrupts = Interrupts::default();
        self.load_eeprom();
        self.update_status();
        self.interrupts.update(&self.regs, bus);
    }

    /// Takes over a saved state, or nothing of it.
    fn restore(&mut self, state: &state::Controller, now: Instant) -> Result<(), LoadError> {
        let state::Controller {
            registers,
            io_address,
            eeprom,
            phy,
            transmitter,
            receiver,
            flow,
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
        let flow = Flow::restore(flow, now).map_err(within("flow"))?;
        (self.regs, self.io_address) = (regs, *io_address);
        (self.eeprom, self.phy) = (eeprom, phy);
        (self.tx, self.rx, self.flow) = (tx, rx, flow);
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

    /// Tells the backend what there is to wait for.
    fn settle(&mut self) {
        let interest = net::Interest {
            receive: !self.rx.blocked,
            send: self.tx.full || self.flow.full,
        };
        if interest != self.interest {
            self.interest = interest;
            self.backend.wait_for(interest);
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
            rom: self.rom.clone(),
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
            config: _,
            tx,
            rx,
            flow,
            interrupts,
            rom: _,
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
        flow.reset();
        *interrupts = Interrupts::default();
        self.load_eeprom();
        self.update_status();
        self.settle();
    }

    fn save(&self, now: Instant) -> Saved {
        let Self {
            regs,
            io_address,
            eeprom,
            phy,
            tx,
            rx,
            flow,
            interrupts: _,
            // The host's.
            config: _,
            rom: _,
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
            flow: flow.save(now),
        };
        Saved::new(crate::E1000.name, state::VERSION, &state)
    }

    fn load(&mut self, saved: &Saved, now: Instant) -> Result<(), LoadError> {
        let state: state::Controller = saved.state(crate::E1000.name, state::VERSION)?;
        self.restore(&state, now)
            .map_err(|error| error.within("state"))?;
        self.settle();
        Ok(())
    }

    fn update(&mut self, bus: &mut Bus<'_>, config: &Value) -> Result<(), UpdateError> {
        let change = |living: &mut Config, wanted: &Config| living.link = wanted.link;
        let Config { link, .. } = crate::update::check(&self.config, config, change)?;
        self.set_link(bus, link);
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.backend.fd()
    }

    fn deadline(&self) -> Option<Instant> {
        if self.tx.more || self.rx.more || !self.cable_is_known() {
            return Some(self.past);
        }
        let deadlines = [self.backend.deadline(), self.flow.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn run(&mut self, bus: &mut Bus<'_>, now: Instant) {
        self.backend.run(now);
        self.follow_cable(bus);
        self.transmit(bus);
        self.receive(bus);
        self.send_pauses(bus);
        self.settle();
    }
}
