//! MSI, and the list of capabilities that it is in.

use std::time::Duration;

use pci::Device as _;
use proptest::prelude::*;

use super::{eeprom::program, *};

/// A driver that has enabled MSI, with those causes let through.
fn driver(mask: u32) -> Driver {
    let mut driver = Driver::new();
    driver.guest.advance(Duration::ZERO);
    driver.guest.config_write(0xf2, &[0x81]);
    driver.write(IMS, mask);
    driver
}

fn config(driver: &mut Driver, at: u64) -> u32 {
    let mut word = [0; 4];
    driver.guest.config_read(at, &mut word);
    u32::from_le_bytes(word)
}

#[test]
fn the_capabilities_are_power_management_and_msi() {
    let mut driver = Driver::new();
    let mut at = config(&mut driver, 0x34) & 0xff;
    let mut list = Vec::new();
    while at != 0 {
        let header = config(&mut driver, at.into());
        list.push((at, header & 0xff));
        at = header >> 8 & 0xff;
    }
    // Neither PCI Express (10h) nor Advanced Features (13h): there is no function-level reset to ask for. Nor PCI-X (07h),
    // which this controller's bus is not.
    assert_eq!(list, [(0xdc, 0x01), (0xf0, 0x05)]);
}

#[test]
fn power_management_offers_d0_and_d3_and_needs_the_driver_after_it() {
    let mut driver = Driver::new();
    // Version 010b, DSI, and PME# from D0 and D3hot.
    assert_eq!(config(&mut driver, 0xdc) >> 16, 0x4822);
    for (written, state) in [(1, 0), (2, 0), (3, 3), (1, 3), (0, 0)] {
        driver.guest.config_write(0xe0, &[written]);
        assert_eq!(config(&mut driver, 0xe0), state, "after {written}");
    }
    driver.guest.config_write(0xe1, &[1]);
    assert_eq!(config(&mut driver, 0xe0), 0x100, "PME_En");
}

#[test]
fn msi_has_one_message_to_an_address_of_64_bits() {
    let mut driver = Driver::new();
    assert_eq!(config(&mut driver, 0xf0), 0x0080_0005);
    driver.guest.config_write(0xf0, &[0xff; 16]);
    assert_eq!(config(&mut driver, 0xf0), 0x00f1_0005);
    assert_eq!(config(&mut driver, 0xf4), 0xffff_fffc);
    assert_eq!(config(&mut driver, 0xf8), 0xffff_ffff);
    assert_eq!(config(&mut driver, 0xfc), 0x0000_ffff);
    driver.guest.reset();
    assert_eq!(config(&mut driver, 0xf0), 0x0080_0005);
    assert_eq!(config(&mut driver, 0xf4), 0);
}

#[test]
fn msi_disable_in_the_eeprom_takes_the_capability_away() {
    let mut driver = Driver::new();
    driver.write(EECD, 0x40);
    program(&mut driver, 0x0f, 0x30c0);
    let identity = driver.guest.with_device(|device, _| device.identity());
    let offsets: Vec<_> = identity.capabilities.iter().map(|(at, _)| *at).collect();
    assert_eq!(offsets, [0xdc]);
}

#[test]
fn a_message_is_sent_once_until_icr_is_read_and_another_event_comes() {
    let mut driver = driver(0x84);
    driver.write(ICS, 0x80);
    assert_eq!(driver.guest.messages(), 1);
    driver.write(ICS, 0x80);
    driver.write(ICS, 0x04);
    assert_eq!(driver.guest.messages(), 0);
    assert_eq!(driver.read(ICR), 0x84);
    assert_eq!(driver.guest.messages(), 0);
    driver.write(ICS, 0x04);
    assert_eq!(driver.guest.messages(), 1);
    assert!(!driver.guest.interrupted(), "INTA# is silent");
}

#[test]
fn causes_that_are_left_by_an_acknowledgement_send_another_message() {
    let mut driver = driver(0x84);
    driver.write(ICS, 0x84);
    assert_eq!(driver.guest.messages(), 1);
    driver.write(ICR, 0x80);
    assert_eq!(driver.guest.messages(), 1);
    driver.write(ICR, 0x04);
    assert_eq!(driver.guest.messages(), 0);
}

#[test]
fn a_cause_that_was_masked_sends_its_message_when_it_is_let_through() {
    let mut driver = driver(0x80);
    driver.write(ICS, 0x80);
    driver.read(ICR);
    driver.write(IMC, 0x80);
    driver.write(ICS, 0x80);
    assert_eq!(driver.guest.messages(), 1);
    driver.write(IMS, 0x80);
    assert_eq!(driver.guest.messages(), 1);
}

/// What a driver and the other end of the cable may do.
#[derive(Clone, Debug)]
enum Step {
    Arrive,
    /// With IDE or without.
    Send(bool),
    Wait(u64),
    Write(u64, u32),
    ReadCauses,
}

fn step() -> impl Strategy<Value = Step> {
    let register = |register: u64, most: u32| {
        let value = prop_oneof![1 => Just(0), 4 => 1..=most];
        value.prop_map(move |value| Step::Write(register, value))
    };
    prop_oneof![
        4 => Just(Step::Arrive),
        3 => any::<bool>().prop_map(Step::Send),
        4 => (0u64..60_000).prop_map(Step::Wait),
        3 => Just(Step::ReadCauses),
        1 => register(0xc4, DELAY_MAX as u32),
        1 => register(0x2820, DELAY_MAX as u32),
        1 => register(0x282c, DELAY_MAX as u32),
        1 => register(0x3820, DELAY_MAX as u32),
        1 => register(0x382c, DELAY_MAX as u32),
        1 => any::<u32>().prop_map(|mask| Step::Write(IMS, mask & 0x1_ffff)),
        1 => any::<u32>().prop_map(|mask| Step::Write(IMC, mask)),
        1 => any::<u32>().prop_map(|causes| Step::Write(ICR, causes & 0x1_ffff)),
    ]
}

/// The most that a step writes to ITR and the delay timers.
const DELAY_MAX: u64 = 400;

/// A driver, and what it does not know yet.
struct Untold {
    driver: Driver,
    by_message: bool,
    /// An interrupt came, and ICR was not read since.
    interrupted: bool,
    /// Something happened, and ICR has not said so: RXT0, TXDW.
    untold: u32,
    /// Since the last interrupt began.
    since: Option<Duration>,
    /// The smallest ITR since.
    itr: u32,
}

impl Untold {
    fn new(by_message: bool) -> Self {
        let mut driver = driver(0);
        if !by_message {
            driver.guest.config_write(0xf2, &[0x80]);
        }
        driver.set_up_transmit(64);
        driver.set_up_receive(64, 0x8000);
        // It is neither link nor ring that is to be told of.
        driver.read(ICR);
        driver.write(IMS, 0x81);
        Self {
            driver,
            by_message,
            interrupted: false,
            untold: 0,
            since: None,
            itr: 0,
        }
    }

    /// Hears an interrupt that has begun just now.
    fn listen(&mut self) {
        let came = match self.by_message {
            true => self.driver.guest.messages() > 0,
            false => self.driver.guest.interrupted(),
        };
        if came && self.by_message {
            if let Some(since) = self.since {
                let interval = Duration::from_nanos(256) * self.itr;
                assert!(since >= interval, "{since:?} is too early: {interval:?}");
            }
            self.since = Some(Duration::ZERO);
            self.itr = self.driver.read(0xc4);
        }
        self.interrupted |= came;
    }

    fn read_causes(&mut self) {
        self.untold &= !self.driver.read(ICR);
        if !self.by_message {
            while self.driver.guest.interrupted() {}
        }
        self.interrupted = false;
    }

    fn advance(&mut self, time: Duration) {
        self.driver.guest.advance(time);
        if let Some(since) = &mut self.since {
            *since += time;
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Arrive => {
                let tail = (self.driver.read(RDH) + 63) % 64;
                self.driver.write(RDT, tail);
                self.driver.arrive(&frame(MAC, 64));
                self.untold |= 0x80;
            }
            Step::Send(delayed) => {
                let command = EOP | IFCS | RS | if delayed { IDE } else { 0 };
                self.driver.queue_data(&frame(MAC, 64), command);
                self.driver.ring();
                self.untold |= 0x01;
            }
            Step::Wait(nanoseconds) => {
                let mut left = Duration::from_nanos(nanoseconds);
                while let Some(due) = self.driver.guest.due_in().filter(|due| *due <= left) {
                    self.advance(due);
                    self.driver.guest.run_until_idle();
                    self.listen();
                    left -= due;
                }
                self.advance(left);
            }
            Step::Write(ICR, causes) => {
                // The driver's word that it knows of these.
                self.untold &= !causes;
                self.driver.write(ICR, causes);
            }
            Step::Write(register, value) => {
                if register == 0xc4 {
                    self.itr = self.itr.min(value);
                }
                self.driver.write(register, value);
            }
            Step::ReadCauses => self.read_causes(),
        }
        self.listen();
    }
}

proptest! {
    #[test]
    fn no_interrupt_is_lost_and_none_is_early(
        by_message in any::<bool>(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut guest = Untold::new(by_message);
        for step in &steps {
            guest.take(step);
        }
        // From here on the driver lets both causes through, and serves what comes.
        guest.take(&Step::Write(IMS, 0x81));
        let mut left = Duration::from_nanos(DELAY_MAX * 1024 + 2 * DELAY_MAX * 256);
        loop {
            if guest.interrupted {
                guest.read_causes();
            }
            guest.listen();
            match guest.driver.guest.due_in() {
                _ if guest.interrupted => {}
                Some(due) if due <= left => {
                    guest.take(&Step::Wait(due.as_nanos() as u64));
                    left -= due;
                }
                _ => break,
            }
        }
        prop_assert_eq!(guest.untold, 0);
    }
}
