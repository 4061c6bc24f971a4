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
const KEY: [u64; 24] = [
    CTRL, 0x10, 0x14, 0x18, 0x20, ICR, 0xc8, IMS, IMC, RCTL, TCTL, RDBAL, 0x2804, RDLEN, RDH, RDT,
    TDBAL, 0x3804, TDLEN, TDH, TDT, 0x5000, 0x3828, 0x38,
];

fn nonsense(backend: Box<dyn net::Backend>, seed: u64) {
    let mut guest = Guest::new(Controller::new(MacAddress(MAC), backend));
    let mut random = Random(seed);
    let junk: Vec<u8> = (0..0x10_0000).map(|_| random.next() as u8).collect();
    guest.store(0, &junk);
    // Descriptors that are nonsense in a plausible way: small addresses, lengths and all kinds.
    for at in (0x10_0000u64..0x20_0000).step_by(16) {
        let address = random.below(1 << 21);
        let high = random.next() & 0xffff_0fff_ff3f_0fff | 1 << 20;
        guest.store(at, &address.to_le_bytes());
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
                TDBAL | RDBAL => 0x10_0000 + random.below(0x10_0000),
                0x2804 | 0x3804 => u64::from(random.below(8) == 0) * random.next(),
                TCTL => 0xa,
                // No software reset most of the time, so that something happens in between.
                CTRL if random.below(8) > 0 => 0x4000_0041,
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

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let mut state = self.0.state();
        state.flushes += 1;
        let length = state.flushes * 7919 % buffer.len();
        buffer[..length].fill(state.flushes as u8);
        (!state.flushes.is_multiple_of(5)).then_some(length)
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
