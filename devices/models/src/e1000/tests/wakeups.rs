//! Nothing waits in vain, and nothing runs in vain: a guest and a partner do anything, and the device is run only when it
//! asks for that, as the event loop does.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::e1000::{Board, Chip};

/// What sends packets that can be cut into the most segments, and the budget, make of one ring.
const MOST_RUNS: usize = 5_000;
const RING: u32 = 32;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u32),
    ReadCauses,
    /// Through MDIC: operation, register and data.
    Phy(u32, u32, u32),
    /// So many packets more, with these commands.
    Send(u32, u64),
    /// Buffers for so many frames more.
    Buffers(u32),
    Arrive(usize),
    Pause(u16),
    Room(Option<usize>),
    Wait(u64),
    BusMaster(bool),
    Messages(bool),
    Cable(bool),
    /// The driver begins anew.
    SetUp,
}

fn step() -> impl Strategy<Value = Step> {
    let write = |register: u64, fixed: u32, free: u32| {
        any::<u32>().prop_map(move |value| Step::Write(register, fixed | value & free))
    };
    let registers = prop_oneof![
        // Flow control, VLAN mode and the speed; the link; loopback, long frames and promiscuity.
        write(CTRL, 0x40, 0x5800_1b01),
        write(CTRL, 0, 0x5800_0041),
        write(RCTL, 0x801a, 0x0403_03e4),
        write(RCTL, 0, 0x0003_0f3e),
        write(TCTL, 2, 0x0040_0008),
        write(TCTL, 0, 0x0040_000a),
        // Timers, thresholds and causes.
        prop::sample::select(vec![0x2820, 0x282c, 0x3820, 0x382c, 0xc4])
            .prop_flat_map(move |register| write(register, 0, 0x3ff)),
        write(0x3828, 0, 0xff3f_0000),
        prop::sample::select(vec![ICR, ICS, IMS, IMC])
            .prop_flat_map(move |register| write(register, 0, 0x1_ffff)),
        prop::sample::select(vec![RDH, RDT, TDT])
            .prop_flat_map(move |register| write(register, 0, 0x3f)),
        write(RDLEN, 0, 0x380),
    ];
    prop_oneof![
        6 => registers,
        2 => Just(Step::ReadCauses),
        1 => (1u32..3, 0u32..32, 0u32..0x1_0000)
            .prop_map(|(operation, register, data)| Step::Phy(operation, register, data)),
        4 => (1u32..8, prop::sample::select(vec![RS, RS | IDE, 0]))
            .prop_map(|(count, command)| Step::Send(count, EOP | IFCS | command)),
        3 => (1u32..8).prop_map(Step::Buffers),
        4 => (1usize..3000).prop_map(Step::Arrive),
        1 => prop_oneof![Just(0), any::<u16>()].prop_map(Step::Pause),
        2 => prop::option::of(0usize..4).prop_map(Step::Room),
        3 => (0u64..3_000_000).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::BusMaster),
        1 => any::<bool>().prop_map(Step::Messages),
        1 => any::<bool>().prop_map(Step::Cable),
        1 => Just(Step::SetUp),
    ]
}

fn set_up(driver: &mut Driver) {
    driver.guest.config_write(4, &[7]);
    driver.set_up_transmit(RING);
    driver.set_up_receive(RING, 0x8018);
    // FCRTL, FCRTH and IMS.
    driver.write(0x2160, 0x8000_0000);
    driver.write(0x2168, 0x8000);
    driver.write(IMS, 0x1_ffff);
    driver.tx_next = driver.read(TDT) % RING;
}

fn take(driver: &mut Driver, step: &Step) {
    match *step {
        Step::Write(register, value) => driver.write(register, value),
        Step::ReadCauses => drop(driver.read(ICR)),
        Step::Phy(operation, register, data) => {
            driver.write(MDIC, operation << 26 | 1 << 21 | register << 16 | data);
        }
        Step::Send(count, command) => {
            driver.data = TX_DATA;
            for _ in 0..count {
                driver.queue_data(&frame(MAC, 100), command);
            }
            let tail = driver.tx_next;
            driver.write(TDT, tail);
        }
        Step::Buffers(count) => {
            let tail = (driver.read(RDT) + count) % RING;
            driver.write(RDT, tail);
        }
        Step::Arrive(bytes) => driver.wire.arrive(&frame([0xff; 6], bytes)),
        Step::Pause(slots) => {
            let mut pause = frame([1, 0x80, 0xc2, 0, 0, 1], 60);
            pause[12..16].copy_from_slice(&[0x88, 8, 0, 1]);
            pause[16..18].copy_from_slice(&slots.to_be_bytes());
            driver.wire.arrive(&pause);
        }
        Step::Room(room) => driver.wire.state().room = room,
        Step::Wait(nanoseconds) => driver.guest.advance(Duration::from_nanos(nanoseconds)),
        Step::BusMaster(on) => driver.guest.config_write(4, &[if on { 7 } else { 3 }]),
        Step::Messages(on) => driver.guest.config_write(0xf2, &[u8::from(on)]),
        Step::Cable(up) => driver.guest.with_device(|device, bus| {
            device.set_link(bus, if up { Link::Up } else { Link::Down });
        }),
        Step::SetUp => set_up(driver),
    }
}

impl Wire {
    /// Whether its descriptor is readable.
    fn calls(&self) -> bool {
        let state = self.state();
        state.interest.receive && !state.arriving.is_empty()
            || state.interest.send && state.room != Some(0)
    }
}

/// What must hold when the device does not ask to be run.
fn check(driver: &mut Driver) -> Result<(), TestCaseError> {
    let waits = driver.guest.due_in().is_some();
    let interest = driver.wire.state().interest;
    let (sends, receives, is_told) = driver.guest.with_device(|device, bus| {
        let get = |register: u64| device.regs.get(register as u32);
        let has_descriptors = |length, head, tail| {
            let count = get(length) / 16;
            get(head) < count && get(tail) < count && get(head) != get(tail)
        };
        let is_told = (get(ICR) & get(IMS) != 0) == bus.interrupt();
        let sends = get(TCTL) & 2 != 0 && has_descriptors(TDLEN, TDH, TDT);
        (sends, has_descriptors(RDLEN, RDH, RDT), is_told)
    });
    prop_assert!(!sends || waits || interest.send, "packets wait");
    prop_assert!(!receives || interest.receive, "frames wait");
    prop_assert!(is_told || waits, "an interrupt waits");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_waits_for_a_run_that_nobody_asks_for(
        steps in prop::collection::vec(step(), 50..200),
        chip in prop::sample::select(vec![Chip::I82540em, Chip::I82543gc]),
    ) {
        let board = Board { chip, ..MacAddress(MAC).into() };
        let mut driver = Driver::new();
        let controller = Controller::new(board, Box::new(driver.wire.clone()));
        driver.guest = Guest::new(controller);
        driver.guest.advance(Duration::ZERO);
        set_up(&mut driver);
        for step in &steps {
            take(&mut driver, step);
            let mut runs = 0;
            while driver.guest.due_in() == Some(Duration::ZERO) || driver.wire.calls() {
                driver.guest.run();
                runs += 1;
                prop_assert!(runs < MOST_RUNS, "it does not come to rest after {step:?}");
            }
            check(&mut driver)?;
        }
    }
}
