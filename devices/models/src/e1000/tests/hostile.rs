//! A guest that writes nonsense everywhere. Nothing here may panic, hang, or take long.

use std::time::{Duration, Instant};

use super::*;

/// xorshift64*: enough to be everywhere, and the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Registers that matter, to be hit more often than others.
const KEY: [u64; 31] = [
    CTRL, 0x10, 0x14, 0x18, 0x20, ICR, 0xc8, IMS, IMC, RCTL, TCTL, RDBAL, 0x2804, RDLEN, RDH, RDT,
    TDBAL, 0x3804, TDLEN, TDH, TDT, 0x5000, 0x3828, 0x38, 0x28, 0x2c, 0x30, 0x170, 0x2160, 0x2168,
    0x3820,
];

/// Where memory holds descriptors that are nonsense in a plausible way; junk lies below.
const PLAUSIBLE: u64 = 0x10_0000;

/// Small addresses and lengths, all kinds, and contexts that sometimes fit.
fn plausible_descriptor(random: &mut Random) -> [u64; 2] {
    let noise = match random.below(4) {
        0 => random.next(),
        _ => 0,
    };
    match random.below(4) {
        0 => {
            let tcp = [34, 54, 14, 250][random.below(4) as usize];
            let low = 14 | 24 << 8 | 33 << 16 | tcp << 32 | (tcp + 16) << 40;
            let command = 0x20 | random.below(8);
            let header = tcp + 20 + random.below(2);
            let high = command << 24 | (header & 0xff) << 40 | random.below(3000) << 48;
            [low ^ noise & 0xff, high ^ noise & 0xffff_0000_0000]
        }
        1 => [random.below(1 << 21), random.next() & 0xffff_ffff_df00_0fff],
        _ => {
            let command = 0x2a | random.below(2) | random.below(2) << 2 | random.below(2) << 6;
            let high = command << 24 | 1 << 20 | random.below(3000) | random.next() << 40;
            [random.below(1 << 21), high ^ noise & 0xf_ffff]
        }
    }
}

/// What a driver does before it goes mad.
fn set_up(guest: &mut Guest<Controller>, random: &mut Random) {
    for (register, value) in [
        (CTRL, 0x41 | random.below(2) << 30),
        (0x20, 0x0420_1140),
        (TCTL, 0xa),
        (TDBAL, PLAUSIBLE + random.below(PLAUSIBLE / 2)),
        (0x3804, 0),
        (TDLEN, 4096),
        (TDH, random.below(256)),
        (RDBAL, PLAUSIBLE + random.below(PLAUSIBLE / 2)),
        (0x2804, 0),
        (RDLEN, 4096),
        (RDH, random.below(256)),
        (RDT, random.below(256)),
        (RCTL, 0x803a | random.next() & 0x0603_0000),
        (TDT, random.below(256)),
    ] {
        guest.write32(0, register, value as u32);
    }
}

fn nonsense(backend: Box<dyn net::Backend>, seed: u64) {
    let mut guest = Guest::new(Controller::new(MacAddress(MAC), backend));
    let mut random = Random(seed);
    let junk: Vec<u8> = (0..0x10_0000).map(|_| random.next() as u8).collect();
    guest.store(0, &junk);
    for at in (PLAUSIBLE..2 * PLAUSIBLE).step_by(16) {
        let [low, high] = plausible_descriptor(&mut random);
        guest.store(at, &low.to_le_bytes());
        guest.store(at + 8, &high.to_le_bytes());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    for step in 0..40_000u32 {
        let bar = usize::from(random.below(16) == 0);
        let key = random.below(4) > 0;
        let offset = match (bar, key) {
            (1, _) => random.below(64),
            (_, true) => KEY[random.below(KEY.len() as u64) as usize],
            (_, false) => random.below(128 << 10),
        };
        let limit = if bar == 1 { 64 } else { 128 << 10 };
        let sizes = [1, 2, 4, 4, 4, 4, 8, 3, 64];
        let size = sizes[random.below(sizes.len() as u64) as usize];
        let size = size.min(limit - offset) as usize;
        let mut data: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
        if key && bar == 0 && size == 4 {
            let word = match offset {
                TDBAL | RDBAL => PLAUSIBLE + random.below(PLAUSIBLE),
                0x2804 | 0x3804 => u64::from(random.below(8) == 0) * random.next(),
                TCTL => 0xa | random.below(2) << 22,
                // No software reset most of the time, so that something happens in between.
                CTRL if random.below(8) > 0 => 0x4000_0041 | random.below(4) << 27,
                CTRL => 0x4400_0041,
                _ => random.next() >> random.below(32),
            };
            data.copy_from_slice(&(word as u32).to_le_bytes());
        }
        if random.below(4) == 0 {
            guest.read(bar, offset, &mut data);
        } else {
            guest.write(bar, offset, &data);
        }
        if step % 64 == 0 {
            // Not until idle: some rings keep a backend that loops busy for as long as they please.
            guest.run();
            set_up(&mut guest, &mut random);
        }
        if step % 1000 == 0 {
            guest.reset();
        }
        assert!(Instant::now() < deadline, "step {step}");
    }
}

#[test]
fn nonsense_is_harmless() {
    for seed in 1..4 {
        nonsense(net::open(&net::Config::Null {}).unwrap(), seed);
        nonsense(net::open(&net::Config::Loopback {}).unwrap(), seed);
        let wire = Wire(Arc::default());
        wire.state().offloads = Offloads {
            checksum: true,
            segment: true,
        };
        nonsense(Box::new(Sink(wire)), seed);
    }
}

/// A wire that checks what it is asked to do, forgets what was sent, and is often full.
struct Sink(Wire);

impl net::Backend for Sink {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wait_for(&mut self, _: Interest) {}

    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }

    fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Full> {
        assert!(!frame.is_empty());
        match offload {
            Offload::None => assert!(frame.len() <= 16_288 + 4),
            Offload::Checksum { start, offset } => {
                assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
            }
            Offload::Segment {
                header_bytes,
                segment_bytes,
                start,
                offset,
                ..
            } => {
                assert!(start + offset + 2 <= header_bytes);
                assert!(usize::from(header_bytes) + usize::from(segment_bytes) < frame.len());
            }
        }
        let mut state = self.0.state();
        let taken = !state.flushes.is_multiple_of(3);
        state.flushes += 1;
        taken.then_some(()).ok_or(Full)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<net::Received> {
        let mut state = self.0.state();
        state.flushes += 1;
        let length = state.flushes * 7919 % buffer.len();
        buffer[..length].fill(state.flushes as u8);
        (!state.flushes.is_multiple_of(5)).then_some(net::Received::unverified(length))
    }
}

#[test]
fn one_byte_segments_are_bounded_per_run() {
    let mut driver = Driver::transmitting(4096);
    // 64 000 segments of one byte from each descriptor.
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    for _ in 0..50 {
        driver.queue(offsets, 0x27 << 24 | 54 << 40 | 1 << 48 | 64_000);
        driver.queue(TX_DATA, 0x2f << 24 | 1 << 20 | 3 << 40 | 64_000);
    }
    driver.write(TDT, 100);
    let first = driver.wire.sent().len();
    assert!(first < 3000, "{first}");
    driver.guest.run();
    assert!((1..3000).contains(&driver.wire.sent().len()));
}

/// The kernel may have to cut what a backend takes whole, within the call.
#[test]
fn segments_that_the_backend_cuts_are_bounded_per_run_as_well() {
    let mut driver = Driver::transmitting(4096);
    driver.wire.state().offloads.segment = true;
    let offsets = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
    for _ in 0..8 {
        driver.queue(offsets, 0x27 << 24 | 54 << 40 | 1 << 48 | 64_000);
        driver.queue(TX_DATA, 0x2f << 24 | 1 << 20 | 3 << 40 | 64_000);
    }
    driver.write(TDT, 16);
    assert_eq!(driver.wire.sent().len(), 1);
    driver.guest.run();
    assert_eq!(driver.wire.sent().len(), 1);
    driver.guest.run_until_idle();
    assert_eq!(driver.wire.sent().len(), 6);
}

#[test]
fn a_packet_of_nothing_is_no_segment() {
    let mut driver = Driver::transmitting(8);
    // Without PSP, and with a header of no bytes.
    driver.write(TCTL, 2);
    driver.queue(0, 0x24 << 24 | 1 << 48);
    let last = driver.queue(TX_DATA, 0x2d << 24 | 1 << 20);
    driver.ring();
    assert_eq!(driver.transmit_status(last), 1);
    assert_eq!(driver.wire.sent(), [[0; 0]; 0]);
}

#[test]
fn nothing_is_written_behind_a_ring_that_is_shorter_than_the_threshold() {
    let mut driver = Driver::transmitting(8);
    driver.guest.advance(Duration::ZERO);
    // TIDV, and TXDCTL with GRAN and the highest WTHRESH.
    driver.write(0x3820, 0xffff);
    driver.write(0x3828, 1 << 24 | 63 << 16);
    for _ in 0..8 {
        for _ in 0..7 {
            driver.queue_data(&frame(MAC, 60), EOP | IFCS | RS);
        }
        driver.ring();
    }
    driver.guest.advance(Duration::from_secs(1));
    driver.guest.run_until_idle();
    let behind = driver.guest.load(TX_RING + 8 * 16, 64 * 16);
    assert!(behind.iter().all(|byte| *byte == 0));
    assert!((0..8).all(|index| driver.transmit_status(index) == 1));
}

#[test]
fn a_ring_that_shrinks_under_descriptors_that_wait_is_not_left() {
    let mut driver = Driver::transmitting(128);
    driver.guest.advance(Duration::ZERO);
    driver.write(0x3820, 0xffff);
    driver.write(0x3828, 1 << 24 | 63 << 16);
    for _ in 0..60 {
        driver.queue_data(&frame(MAC, 60), EOP | IFCS | RS);
    }
    driver.ring();
    driver.write(TDLEN, 8 * 16);
    driver.guest.advance(Duration::from_secs(1));
    driver.guest.run_until_idle();
    assert!((8..60).all(|index| driver.transmit_status(index) == 0));
}

#[test]
fn a_transmitter_that_is_switched_off_owes_no_status() {
    let mut driver = Driver::transmitting(8);
    driver.guest.advance(Duration::ZERO);
    driver.write(0x3820, 0xffff);
    driver.write(0x3828, 1 << 24 | 4 << 16);
    let index = driver.queue_data(&frame(MAC, 60), EOP | IFCS | RS);
    driver.ring();
    assert_eq!(driver.transmit_status(index), 0, "it waits for others");
    driver.write(TCTL, 8);
    assert_eq!(driver.transmit_status(index), 1);
    assert_eq!(driver.guest.due_in(), None);
}
