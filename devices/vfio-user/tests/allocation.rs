//! Once a client has negotiated and its first requests were served, accesses are served without the heap.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/counting.rs"]
mod counting;
#[path = "support/wire.rs"]
mod wire;

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use vfio_user::{Device, IrqInfo, Lent, Region, Session};
use wire::{message, send};

/// Writing byte 0 copies within guest memory, writing byte 1 reads memory that the client serves.
struct Copier([Region; 1]);

impl Device for Copier {
    fn regions(&self) -> &[Region] {
        &self.0
    }
    fn irqs(&self) -> &[IrqInfo] {
        &[]
    }
    fn read(&mut self, _: &mut Lent, _: u32, _: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.fill(7);
        Ok(())
    }
    fn write(&mut self, lent: &mut Lent, _: u32, at: u64, _: &[u8]) -> Result<(), Errno> {
        let mut bytes = [0; 64];
        let from = [0x1000, 0x10_0000][at as usize % 2];
        lent.read(from, &mut bytes).map_err(|_| Errno::EFAULT)?;
        lent.write(0x1800, &bytes).map_err(|_| Errno::EFAULT)
    }
    fn reset(&mut self, _: &mut Lent) {}
}

fn access(offset: u64, count: u32) -> Vec<u8> {
    wire::access(offset, 0, count)
}

fn write(flags: u32, offset: u64) -> Vec<u8> {
    message(0x1234, 10, flags, &[&access(offset, 1)[..], &[0]].concat())
}

/// A client that maps memory with and without a descriptor, and its session.
fn connect(device: &mut Copier) -> (UnixStream, Session) {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let timeout = Some(Duration::from_secs(30));
    stream.set_read_timeout(timeout).unwrap();
    let mut session = Session::new(theirs, device, Instant::now()).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1000).unwrap();
    let map = |address: u64| {
        let parts = [
            &[32, 0, 0, 0, 3, 0, 0, 0][..],
            &[0; 8],
            &address.to_le_bytes(),
        ];
        message(
            0x1234,
            2,
            0,
            &[&parts.concat()[..], &0x1000_u64.to_le_bytes()].concat(),
        )
    };
    send(&stream, &message(0x1234, 1, 0, &[0, 0, 1, 0]), &[]);
    send(&stream, &map(0x1000), &[file.as_raw_fd()]);
    send(&stream, &map(0x10_0000), &[]);
    for _ in 0..3 {
        session.serve(device).unwrap();
    }
    stream.read_exact(&mut [0; 20 + 16 + 16]).unwrap();
    (stream, session)
}

/// What a thousand rounds allocate after the first few.
fn allocations(mut round: impl FnMut()) -> u64 {
    (0..20).for_each(|_| round());
    counting::allocations(|| (0..1000).for_each(|_| round()))
}

#[test]
fn accesses_are_served_without_the_heap() {
    let mut device = Copier([Region::new(4096)]);
    let (mut stream, mut session) = connect(&mut device);
    let alone = message(0x1234, 9, 0, &access(0, 4));
    let glued = [alone.repeat(16), write(0x10, 0).repeat(16), write(0, 0)].concat();
    // Refused: a reply that is an error, and none.
    let wrong = [
        message(0x1234, 9, 0, &access(5000, 4)),
        message(0x1234, 9, 0x10, &access(5000, 4)),
    ]
    .concat();
    let large = message(0x1234, 9, 0, &access(0, 4096));
    let mut reply = [0; 5000];
    for (request, reply_bytes) in [
        (alone, 36),
        (glued, 16 * 36 + 32),
        (wrong, 16),
        (large, 4128),
    ] {
        let mut serve = |waiting: bool| {
            stream.write_all(&request).unwrap();
            if waiting {
                session.wait(&mut device).unwrap();
            } else {
                session.serve(&mut device).unwrap();
            }
            stream.read_exact(&mut reply[..reply_bytes]).unwrap();
        };
        assert_eq!(allocations(|| serve(false)), 0, "{reply_bytes}");
        assert_eq!(allocations(|| serve(true)), 0, "{reply_bytes}");
    }
    assert!(allocations(|| drop(Box::new(1))) >= 1000, "it counts");
}

#[test]
fn memory_is_reached_by_messages_without_the_heap() {
    let mut device = Copier([Region::new(4096)]);
    let (mut stream, mut session) = connect(&mut device);
    let client = std::thread::spawn(move || {
        let request = write(0, 1);
        let mut asked = [0; 32];
        let mut answer = vec![0; 16 + 16 + 64];
        for _ in 0..1020 {
            stream.write_all(&request).unwrap();
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(asked[2], 11);
            answer[..32].copy_from_slice(&asked);
            answer[4] = 96;
            answer[8] = 1;
            stream.write_all(&answer).unwrap();
            stream.read_exact(&mut asked).unwrap();
            assert_eq!(asked[12..16], [0; 4]);
        }
    });
    let count = allocations(|| session.wait(&mut device).unwrap());
    client.join().unwrap();
    assert_eq!(count, 0);
}
