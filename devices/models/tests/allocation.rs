//! Frames pass an e1000 and its backend without the heap.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "../../vfio-user/tests/support/counting.rs"]
mod counting;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use models::Seed;
use pci::testing::Guest;

const TX_RING: u64 = 0x1_0000;
const RX_RING: u64 = 0x2_0000;
const DATA: u64 = 0x10_0000;
const BUFFERS: u64 = 0x20_0000;
/// Descriptors of each ring.
const RING: u64 = 64;
const FRAME_BYTES: usize = 1000;
const LIMIT: Duration = Duration::from_secs(10);

/// Sends a ring but one full of frames, each with checksums put in, and has them come back. `round` counts from zero.
fn round(guest: &mut Guest<Box<dyn pci::Device>>, station: &mut UnixStream, round: u64) {
    const BATCH: u64 = RING - 1;
    let mut wire = [0; BATCH as usize * (4 + FRAME_BYTES)];
    let tail = (round + 1) * BATCH % RING;
    guest.write32(0, 0x3818, tail as u32);
    station.read_exact(&mut wire).unwrap();
    assert_eq!(wire[..4], 1000u32.to_be_bytes());
    station.write_all(&wire).unwrap();
    let begin = Instant::now();
    while u64::from(guest.read32(0, 0x2810)) != tail {
        assert!(begin.elapsed() < LIMIT, "frames do not come back");
        guest.run();
    }
    // ICR, and the buffers again.
    assert_ne!(guest.read32(0, 0x00c0) & 0x81, 0, "TXDW and RXT0");
    guest.write32(0, 0x2818, ((tail + BATCH) % RING) as u32);
}

#[test]
fn frames_go_out_and_come_in_without_the_heap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let config = serde_json::json!({"net": {"stream": {"path": path, "mode": "listen"}}});
    let mut guest = Guest::new(models::open("e1000", config, Seed([1; 8])).unwrap());
    let mut station = UnixStream::connect(&path).unwrap();
    station.set_read_timeout(Some(LIMIT)).unwrap();
    // It is let in.
    guest.run();

    let mut frame = [0; FRAME_BYTES];
    frame[..6].fill(0xff);
    guest.store(DATA, &frame);
    for index in 0..RING {
        // DEXT, RS, IFCS and EOP; TXSM, whose checksum goes to byte 24 with the context that there is: none.
        let transmit = [DATA, FRAME_BYTES as u64 | 0x2b10_0000];
        let receive = [BUFFERS + index * 2048, 0];
        for (ring, descriptor) in [(TX_RING, transmit), (RX_RING, receive)] {
            let bytes = descriptor.map(u64::to_le_bytes).concat();
            guest.store(ring + index * 16, &bytes);
        }
    }
    for (register, value) in [
        (0x0000, 0x41),
        (0x3800, TX_RING as u32),
        (0x3808, RING as u32 * 16),
        (0x0400, 0x0a),
        (0x2800, RX_RING as u32),
        (0x2808, RING as u32 * 16),
        (0x2818, RING as u32 - 1),
        (0x5000, 0x300),
        (0x0100, 0x0400_801a),
        (0x00d0, 0x0001_ffff),
    ] {
        guest.write32(0, register, value);
    }
    let mut rounds = 0;
    let mut pass = |count: u64| {
        for _ in 0..count {
            round(&mut guest, &mut station, rounds);
            rounds += 1;
        }
    };
    pass(3);
    assert_eq!(counting::allocations(|| pass(20)), 0);
    assert_eq!(guest.read32(0, 0x4074), 23 * 63, "good packets received");
}
