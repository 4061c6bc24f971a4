//! Intel 82540EM, a Gigabit Ethernet controller.
//!
//! The measure is Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual" (317453);
//! sections named in comments are its.
//!
//! Left out: what wake-up and management registers are for: they keep what is written. Backends carry no FCS: the receiver
//! makes a right one where RCTL.SECRC leaves it, and the transmitter drops a frame whose own is wrong.

mod access;
mod autoload;
mod budget;
mod checksum;
mod chip;
mod config;
mod eeprom;
mod filter;
mod flow;
mod interrupt;
mod link;
mod mdio;
mod packet_buffer;
mod parse;
mod path;
mod phy;
mod queue;
mod rx;
mod segment;
mod spec;
mod state;
mod statistics;
#[cfg(test)]
mod tests;
mod totals;
mod tx;
mod wire;

use std::{os::fd::BorrowedFd, path::Path, time::Instant};

use pci::{
    Bus, Identity, LoadError, Rom, Saved, UpdateError,
    regs::{self, Regs},
    stats::Sink,
};
use serde_json::Value;
use tracing::warn;

pub(crate) use autoload::BARS;
use autoload::Occasion;
pub use chip::{Board, Chip};
pub use config::{Config, Link, MacAddress};
use eeprom::Eeprom;
use flow::Flow;
use interrupt::Interrupts;
use mdio::Mdio;
use packet_buffer::PacketBuffer;
use phy::Phy;
use rx::Receiver;
use spec::bits::{Ctrl, CtrlExt, Rah};
use totals::Totals;
use tx::Transmitter;

/// Makes a controller by its configuration, with its backend open.
///
/// # Errors
/// When the expansion ROM can't be read, or the backend can't be opened.
pub fn open(config: Config, seed: crate::Seed) -> Result<Controller, crate::Error> {
    let board = Board::new(&config, seed);
    let rom = config.rom_file.as_deref();
    let rom = rom.map(|path| open_rom(path, board.chip)).transpose()?;
    let mut controller = Controller::new(board, net::open(&config.net)?);
    controller.rom = rom;
    controller.phy.set_cable(config.link == Link::Up);
    controller.config = config;
    controller.update_status();
    Ok(controller)
}

fn open_rom(path: &Path, chip: Chip) -> Result<Rom, crate::Error> {
    let rom = Rom::open(path, crate::E1000.vendor_id, chip.device_id())?;
    if let Some(device) = rom.made_for() {
        let path = path.display();
        warn!(%path, "the expansion ROM is for the device {device:04x}: guests see it as this card's");
    }
    Ok(rom.in_at_least(spec::FLASH_BYTES_MIN))
}

/// The controller.
pub struct Controller {
    board: Board,
    regs: Regs,
    /// Where the I/O window is open.
    io_address: u32,
    packet_buffer: PacketBuffer,
    eeprom: Eeprom,
    phy: Phy,
    mdio: Mdio,
    /// The host's, and not part of a saved state: the PHY is told when its cable is another one there.
    config: Config,
    tx: Transmitter,
    rx: Receiver,
    flow: Flow,
    totals: Totals,
    interrupts: Interrupts,
    rom: Option<Rom>,
    backend: Box<dyn net::Backend>,
    /// What the backend was told to wait for.
    interest: net::Interest,
    /// A time that has passed, for work that is due.
    past: Instant,
}

impl Controller {
    /// A controller in its power-on state, on this card: with an address alone, Intel's own with an 82540EM.
    #[must_use]
    pub fn new(board: impl Into<Board>, backend: Box<dyn net::Backend>) -> Self {
        let board = board.into();
        let mut controller = Self {
            regs: Regs::new(spec::REGS),
            io_address: 0,
            packet_buffer: PacketBuffer::default(),
            eeprom: Eeprom::new(&board),
            phy: Phy::new(board.chip),
            mdio: Mdio::default(),
            board,
            config: Config::default(),
            tx: Transmitter::new(),
            rx: Receiver::new(),
            flow: Flow::default(),
            totals: Totals::default(),
            interrupts: Interrupts::default(),
            rom: None,
            backend,
            interest: net::Interest::default(),
            past: Instant::now(),
        };
        controller.fit_chip();
        controller.load_eeprom(Occasion::PowerOn);
        controller.update_status();
        controller.settle();
        controller
    }

    /// CTRL.RST, sections 13.4.1 and 14.7: the PHY, configuration space and the directions of the pins stay, and so do
    /// the tables.
    fn reset_by_software(&mut self, bus: &mut Bus<'_>) {
        bus.count_software_reset();
        let control = Ctrl::from_bits(self.regs.get(spec::CTRL));
        let extended = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
        self.regs
            .reset(|register| spec::KEPT_BY_RESET.contains(&register));
        for index in 0..spec::RECEIVE_ADDRESSES {
            let at = spec::RAH + spec::RECEIVE_ADDRESS_STRIDE * index;
            let high = Rah::from_bits(self.regs.get(at)).with_valid(false);
            self.regs.set(at, high.into_bits());
        }
        self.fit_chip();
        let reset = Ctrl::from_bits(self.regs.get(spec::CTRL));
        let kept = reset.with_pin_outputs(control.pin_outputs());
        self.regs.set(spec::CTRL, kept.into_bits());
        let reset = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
        let kept = reset.with_pin_outputs(extended.pin_outputs());
        self.regs.set(spec::CTRL_EXT, kept.into_bits());
        self.tx.reset();
        self.rx.reset();
        self.flow.reset();
        self.interrupts = Interrupts::default();
        self.load_eeprom(Occasion::Reset);
        self.reset_phy();
        self.update_status();
        self.interrupts.update(&self.regs, bus);
    }

    /// After a reset: a bit that is reserved, and one, in the others is a pin of the 82543GC, and an input.
    fn fit_chip(&mut self) {
        if self.board.chip.has_mdio_pins() {
            let extended = CtrlExt::from_bits(self.regs.get(spec::CTRL_EXT));
            let extended = extended.with_phy_reset_output(false);
            self.regs.set(spec::CTRL_EXT, extended.into_bits());
        }
    }

    /// Takes over a saved state, or nothing of it.
    fn restore(&mut self, state: &state::Controller, now: Instant) -> Result<(), LoadError> {
        let state::Controller {
            registers,
            io_address,
            packet_buffer,
            eeprom,
            phy,
            mdio,
            transmitter,
            receiver,
            flow,
            interrupts,
        } = state;
        if io_address & !spec::IOADDR_WRITABLE != 0 {
            let problem = format!("can't be {io_address:#x}");
            return Err(LoadError::new("io_address", problem));
        }
        let within = |outer: &'static str| move |error: LoadError| error.within(outer);
        let regs = Regs::restore(spec::REGS, registers).map_err(within("registers"))?;
        let packet_buffer = PacketBuffer::restore(packet_buffer.as_ref());
        let packet_buffer = packet_buffer.map_err(within("packet_buffer"))?;
        let eeprom = Eeprom::restore(eeprom).map_err(within("eeprom"))?;
        let phy = Phy::restore(self.board.chip, phy).map_err(within("phy"))?;
        let mdio = Mdio::restore(mdio).map_err(within("mdio"))?;
        let tx = Transmitter::restore(transmitter, now).map_err(within("transmitter"))?;
        let rx = Receiver::restore(receiver).map_err(within("receiver"))?;
        let flow = Flow::restore(flow, now).map_err(within("flow"))?;
        let interrupts =
            Interrupts::restore(interrupts, &regs, now).map_err(within("interrupts"))?;
        (self.regs, self.io_address) = (regs, *io_address);
        self.packet_buffer = packet_buffer;
        (self.eeprom, self.phy, self.mdio) = (eeprom, phy, mdio);
        (self.tx, self.rx, self.flow) = (tx, rx, flow);
        self.interrupts = interrupts;
        Ok(())
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
        self.identify()
    }

    fn read(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &mut [u8]) {
        regs::read_words(offset, data, |at| match bar {
            0 => self.read_register(bus, at),
            _ => self.read_io(bus, at),
        });
    }

    fn write(&mut self, bus: &mut Bus<'_>, bar: usize, offset: u64, data: &[u8]) {
        regs::write_words(offset, data, |at, data, lanes| match bar {
            // Section 13.2.
            _ if lanes != u32::MAX => {}
            0 => self.write_register(bus, at, data),
            _ => self.write_io(bus, at, data),
        });
        self.settle();
    }

    fn end_batch(&mut self, _bus: &mut Bus<'_>) {
        self.backend.flush();
    }

    fn reset(&mut self, _bus: &mut Bus<'_>) {
        let Self {
            board: _,
            regs,
            io_address,
            packet_buffer,
            eeprom,
            phy,
            mdio,
            config: _,
            tx,
            rx,
            flow,
            totals: _,
            interrupts,
            rom: _,
            backend: _,
            interest: _,
            past: _,
        } = self;
        regs.reset(|_| false);
        *io_address = 0;
        packet_buffer.power_on();
        eeprom.power_on();
        phy.power_on();
        mdio.reset();
        tx.reset();
        rx.reset();
        flow.reset();
        *interrupts = Interrupts::default();
        self.fit_chip();
        self.load_eeprom(Occasion::PowerOn);
        self.update_status();
        self.settle();
    }

    fn save(&self, now: Instant) -> Saved {
        let Self {
            regs,
            io_address,
            packet_buffer,
            eeprom,
            phy,
            mdio,
            tx,
            rx,
            flow,
            interrupts,
            // The host's.
            totals: _,
            board: _,
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
            packet_buffer: packet_buffer.save(),
            eeprom: eeprom.save(),
            phy: phy.save(),
            mdio: mdio.save(),
            transmitter: tx.save(now),
            receiver: rx.save(),
            flow: flow.save(now),
            interrupts: interrupts.save(now),
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
        let deadlines = [
            self.backend.deadline(),
            self.flow.deadline(),
            self.tx.deadline(),
            self.interrupts.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn run(&mut self, bus: &mut Bus<'_>, now: Instant) {
        // Before anything else happens: it is not what the timers waited for.
        self.interrupts.run(&mut self.regs, bus, now);
        self.backend.run(now);
        self.follow_cable(bus);
        self.transmit(bus);
        self.receive(bus);
        self.send_pauses(bus);
        self.backend.flush();
        self.settle();
    }

    fn stats(&self, sink: &mut dyn Sink) {
        self.totals.tell(sink);
    }
}
