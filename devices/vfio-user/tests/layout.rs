//! QEMU's two layouts of DMA messages: whichever a client has, memory is what it should be from the first access on.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/wire.rs"]
mod wire;

use std::{io::Write, os::unix::net::UnixStream, thread, time::Instant};

use nix::errno::Errno;
use proptest::prelude::*;
use vfio_user::{Device, IrqInfo, Lent, Region, Session};
use wire::{Message, message, receive, try_receive};

const QEMU: &str = r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"max_dma_maps":65535,
    "pgsizes":4096,"migration":{"pgsize":4096,"max_bitmap_size":268435456},"write_multiple":true}}"#;

/// Nothing but its session.
struct Inert;

impl Device for Inert {
    fn regions(&self) -> &[Region] {
        &[]
    }
    fn irqs(&self) -> &[IrqInfo] {
        &[]
    }
    fn read(&mut self, _: &mut Lent, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn write(&mut self, _: &mut Lent, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn reset(&mut self, _: &mut Lent) {}
}

/// Serves memory until the connection ends, its data behind a count of 32 or of 64 bits.
fn serve(stream: &mut UnixStream, memory: &mut [u8], is_narrow: bool) {
    let at = if is_narrow { 12 } else { 16 };
    while let Ok(Message {
        id,
        command,
        payload,
        ..
    }) = try_receive(stream)
    {
        let address = u64::from_le_bytes(payload[..8].try_into().unwrap()) as usize;
        let count = u32::from_le_bytes(payload[8..12].try_into().unwrap()) as usize;
        let place = address..address + count;
        let mut reply = payload[..16].to_vec();
        if command == 12 {
            memory[place].copy_from_slice(&payload[at..at + count]);
        } else {
            reply.resize(16 + count, 0);
            reply[at..at + count].copy_from_slice(&memory[place]);
        }
        stream.write_all(&message(id, command, 1, &reply)).unwrap();
    }
}

/// A session whose client serves `memory`, which is what the thread returns.
fn connect(mut memory: Vec<u8>, is_narrow: bool) -> (Session, thread::JoinHandle<Vec<u8>>) {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let mut session = Session::new(theirs, &Inert, Instant::now()).unwrap();
    let version = [&[0; 4][..], QEMU.as_bytes(), &[0]].concat();
    stream.write_all(&message(1, 1, 0, &version)).unwrap();
    let map = [
        &32_u32.to_le_bytes()[..],
        &3_u32.to_le_bytes(),
        &[0; 16],
        &(memory.len() as u64).to_le_bytes(),
    ]
    .concat();
    stream.write_all(&message(2, 2, 0, &map)).unwrap();
    session.serve(&mut Inert).unwrap();
    for _ in 0..2 {
        receive(&stream);
    }
    let client = thread::spawn(move || {
        serve(&mut stream, &mut memory, is_narrow);
        memory
    });
    (session, client)
}

#[derive(Clone, Debug)]
enum Access {
    Read(usize, usize),
    Write(usize, Vec<u8>),
}

/// Bytes of which most are zero: they are what tells the layouts apart, or does not.
fn sparse(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![6 => Just(0), 1 => any::<u8>()], len)
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        (0..40_usize, 1..24_usize).prop_map(|(at, len)| Access::Read(at, len)),
        (0..40_usize, sparse(1..24)).prop_map(|(at, data)| Access::Write(at, data)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_access_is_right_from_the_first_on(
        is_narrow: bool,
        memory in sparse(64),
        accesses in prop::collection::vec(access(), 1..6),
    ) {
        let mut expected = memory.clone();
        let (mut session, client) = connect(memory, is_narrow);
        for access in accesses {
            match access {
                Access::Read(at, len) => {
                    let mut data = vec![0; len];
                    session.lent().read(at as u64, &mut data).unwrap();
                    prop_assert_eq!(&data, &expected[at..at + len]);
                }
                Access::Write(at, data) => {
                    expected[at..at + data.len()].copy_from_slice(&data);
                    session.lent().write(at as u64, &data).unwrap();
                }
            }
        }
        drop(session);
        prop_assert_eq!(client.join().unwrap(), expected);
    }
}
