//! Memory that a client serves by messages: DMA_READ and DMA_WRITE among its own requests, on the connection or on the twin
//! socket, and clients that answer wrongly, late or not at all.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/wire.rs"]
mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::AsRawFd, unix::net::UnixStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use vfio_user::{AccessError, Closed, Device, IrqInfo, Lent, Region, Session};
use wire::{Message, message, receive, words};

const READ: u8 = 1;
const WRITE: u8 = 2;

/// A region of 4 MiB. Its bytes from 64 on are memory; writing 13 bytes at 0 has the device copy between them and guest
/// memory: address, count, and which way. What is written at 32 is remembered.
struct Copier {
    regions: [Region; 1],
    bytes: Vec<u8>,
    log: Vec<u8>,
}

impl Device for Copier {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[IrqInfo] {
        &[]
    }
    fn read(&mut self, _: &mut Lent, _: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let at = offset as usize;
        data.copy_from_slice(&self.bytes[at..at + data.len()]);
        Ok(())
    }
    fn write(&mut self, lent: &mut Lent, _: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let at = offset as usize;
        if at == 32 {
            self.log.push(data[0]);
        }
        if at != 0 {
            self.bytes[at..at + data.len()].copy_from_slice(data);
            return Ok(());
        }
        let iova = u64::from_le_bytes(data[..8].try_into().unwrap());
        let count = u32::from_le_bytes(data[8..12].try_into().unwrap()) as usize;
        let bytes = &mut self.bytes[64..64 + count];
        let result = match data[12] {
            READ => lent.read(iova, bytes),
            _ => lent.write(iova, bytes),
        };
        result.map_err(|error| match error {
            AccessError::Remote { errno, .. } => errno,
            _ => Errno::EFAULT,
        })
    }
    fn reset(&mut self, _: &mut Lent) {}
}

/// A client, of a session that is served by another thread until it ends.
struct Client {
    stream: UnixStream,
    server: Option<JoinHandle<(Closed, Copier)>>,
}

impl Client {
    /// Says VERSION, and maps `[0x1000_0000, 0x2000_0000)` without a descriptor.
    fn connect(minor: u8, capabilities: &str) -> (Self, Option<UnixStream>) {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let mut copier = Copier {
            regions: [Region::new(4 << 20)],
            bytes: vec![0; 4 << 20],
            log: Vec::new(),
        };
        let server = std::thread::spawn(move || {
            let mut session = Session::new(theirs, &copier, Instant::now()).unwrap();
            loop {
                if let Err(closed) = session.wait(&mut copier) {
                    return (closed, copier);
                }
            }
        });
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut client = Self {
            stream,
            server: Some(server),
        };
        let json = format!(
            "\0\0{}\0{{\"capabilities\":{capabilities}}}\0",
            minor as char
        );
        client.send(&message(1, 1, 0, json.as_bytes()));
        let (reply, twin) = client.receive_with_fd();
        assert_eq!((reply.flags, reply.error), (1, 0), "{reply:?}");
        client.send(&message(2, 2, 0, &map()));
        assert_eq!(client.receive().error, 0);
        (client, twin)
    }

    fn new() -> Self {
        Self::connect(1, "{}").0
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> Message {
        receive(&self.stream)
    }

    fn receive_with_fd(&mut self) -> (Message, Option<UnixStream>) {
        let mut message = self.receive();
        let twin = message.fds.pop().map(UnixStream::from);
        (message, twin)
    }

    /// Has the device copy; the reply comes when it has.
    fn copy(&mut self, id: u16, iova: u64, count: u32, way: u8) {
        self.send(&copy(id, iova, count, way));
    }

    /// What the device has in its memory.
    fn device_bytes(&mut self, count: u32) -> Vec<u8> {
        self.send(&message(7, 9, 0, &access(64, count)));
        let reply = self.receive();
        assert_eq!(reply.error, 0);
        reply.payload[16..].to_vec()
    }

    /// How the session ended.
    fn end(mut self) -> (Closed, Copier) {
        drop(self.stream);
        self.server.take().unwrap().join().unwrap()
    }
}

fn error(id: u16, command: u16, errno: u32) -> Vec<u8> {
    let mut bytes = message(id, command, 0x21, &[]);
    bytes[12..16].copy_from_slice(&errno.to_le_bytes());
    bytes
}

fn access(offset: u64, count: u32) -> Vec<u8> {
    wire::access(offset, 0, count)
}

/// The map of `[0x1000_0000, 0x2000_0000)`.
fn map() -> Vec<u8> {
    let range = [0x1000_0000_u64; 2].map(u64::to_le_bytes);
    [&words(&[32, 3, 0, 0])[..], &range.concat()].concat()
}

/// A request that has the device copy.
fn copy(id: u16, iova: u64, count: u32, way: u8) -> Vec<u8> {
    let what = [&iova.to_le_bytes()[..], &count.to_le_bytes(), &[way]].concat();
    message(id, 10, 0, &[&access(0, 13)[..], &what].concat())
}

/// A posted request that the device remembers.
fn note(value: u8) -> Vec<u8> {
    message(0, 10, 0x10, &[&access(32, 1)[..], &[value]].concat())
}

fn dma(address: u64, count: u64) -> Vec<u8> {
    [address.to_le_bytes(), count.to_le_bytes()].concat()
}

/// Answers one DMA_READ as the specification has it.
fn answer_read(stream: &mut UnixStream, memory: impl Fn(u64) -> u8) -> Message {
    let asked = receive(stream);
    assert_eq!((asked.command, asked.flags), (11, 0));
    assert_eq!(asked.payload.len(), 16);
    let address = u64::from_le_bytes(asked.payload[..8].try_into().unwrap());
    let count = u64::from_le_bytes(asked.payload[8..].try_into().unwrap());
    let data: Vec<u8> = (address..address + count).map(memory).collect();
    let payload = [&asked.payload[..], &data].concat();
    stream
        .write_all(&message(asked.id, 11, 1, &payload))
        .unwrap();
    asked
}

fn byte(address: u64) -> u8 {
    (address % 251) as u8
}

fn pattern(address: u64, count: u64) -> Vec<u8> {
    (address..address + count).map(byte).collect()
}

#[test]
fn memory_without_a_descriptor_is_read_by_messages() {
    let mut client = Client::new();
    client.copy(5, 0x1000_0010, 100, READ);
    let asked = answer_read(&mut client.stream, byte);
    assert_eq!(asked.payload, dma(0x1000_0010, 100));
    let reply = client.receive();
    assert_eq!((reply.id, reply.command, reply.error), (5, 10, 0));
    assert_eq!(client.device_bytes(100), pattern(0x1000_0010, 100));
}

#[test]
fn memory_without_a_descriptor_is_written_by_messages() {
    // With a header alone QEMU's client answers; 12 bytes the specification has, and 16 libvfio-user's.
    for answer_bytes in [0, 12, 16] {
        let mut client = Client::new();
        client.send(&message(4, 10, 0, &[&access(64, 4)[..], b"data"].concat()));
        assert_eq!(client.receive().error, 0);
        client.copy(5, 0x1fff_fffc, 4, WRITE);
        let asked = client.receive();
        assert_eq!((asked.command, asked.flags), (12, 0));
        assert_eq!(asked.payload, [&dma(0x1fff_fffc, 4)[..], b"data"].concat());
        client.send(&message(asked.id, 12, 1, &asked.payload[..answer_bytes]));
        assert_eq!(client.receive().error, 0, "{answer_bytes}");
    }
}

#[test]
fn accesses_are_split_by_what_the_client_takes_at_a_time() {
    let (mut client, _) = Client::connect(1, r#"{"max_data_xfer_size":64}"#);
    client.copy(5, 0x1000_0000, 200, READ);
    let mut ids = Vec::new();
    for (address, count) in [(0, 64), (64, 64), (128, 64), (192, 8)] {
        let asked = answer_read(&mut client.stream, byte);
        assert_eq!(asked.payload, dma(0x1000_0000 + address, count));
        ids.push(asked.id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 4, "each has its own id");
    assert_eq!(client.receive().error, 0);
    assert_eq!(client.device_bytes(200), pattern(0x1000_0000, 200));
    client.copy(6, 0x1000_0000, 65, WRITE);
    for (address, count) in [(0, 64), (64, 1)] {
        let asked = client.receive();
        assert_eq!(asked.payload[..16], dma(0x1000_0000 + address, count)[..]);
        assert_eq!(asked.payload[16..], pattern(0x1000_0000 + address, count));
        client.send(&message(asked.id, 12, 1, &asked.payload[..12]));
    }
    assert_eq!(client.receive().error, 0);
}

#[test]
fn more_than_a_mebibyte_is_never_asked_for_at_a_time() {
    let (mut client, _) = Client::connect(1, r#"{"max_data_xfer_size":67108864}"#);
    client.copy(5, 0x1000_0000, (1 << 20) + 1, READ);
    let asked = answer_read(&mut client.stream, byte);
    assert_eq!(asked.payload, dma(0x1000_0000, 1 << 20));
    let asked = answer_read(&mut client.stream, byte);
    assert_eq!(asked.payload, dma(0x1010_0000, 1));
    assert_eq!(client.receive().error, 0);
    assert_eq!(client.device_bytes(1 << 20), pattern(0x1000_0000, 1 << 20));
}

#[test]
fn a_client_that_transfers_nothing_is_not_asked() {
    let (mut client, _) = Client::connect(1, r#"{"max_data_xfer_size":0}"#);
    client.copy(5, 0x1000_0000, 4, READ);
    let reply = client.receive();
    assert_eq!((reply.command, reply.error), (10, Errno::EMSGSIZE as u32));
}

#[test]
fn requests_before_the_answer_are_served_in_order_after_it() {
    let mut client = Client::new();
    // All at once, with a request whose reply is due before the server asks.
    let mut bytes = message(3, 9, 0, &access(64, 4));
    bytes.extend(copy(4, 0x1000_0000, 8, READ));
    for value in 0..200 {
        bytes.extend(note(value));
    }
    bytes.extend(message(5, 9, 0, &access(64, 8)));
    client.send(&bytes);
    let reply = client.receive();
    assert_eq!(
        (reply.id, reply.command),
        (3, 9),
        "what was due leaves first"
    );
    let asked = client.receive();
    assert_eq!(asked.command, 11);
    client.send(&note(200));
    // The answer between two requests, in one piece with them, and cut.
    let payload = [&asked.payload[..], &pattern(0x1000_0000, 8)].concat();
    let answer = message(asked.id, 11, 1, &payload);
    let bytes = [note(201), answer, note(202)].concat();
    let (first, second) = bytes.split_at(60);
    client.send(first);
    std::thread::sleep(Duration::from_millis(5));
    client.send(second);
    let reply = client.receive();
    assert_eq!((reply.id, reply.command, reply.error), (4, 10, 0));
    let reply = client.receive();
    assert_eq!(
        (reply.id, &reply.payload[16..]),
        (5, &pattern(0x1000_0000, 8)[..])
    );
    let (_, copier) = client.end();
    assert_eq!(copier.log, (0..=202).collect::<Vec<u8>>());
}

#[test]
fn a_request_that_is_too_large_before_the_answer_is_refused_in_its_turn() {
    let mut client = Client::new();
    client.copy(4, 0x1000_0000, 8, READ);
    let asked = client.receive();
    client.send(&note(1));
    client.send(&message(5, 10, 0, &vec![7; 5 << 20]));
    client.send(&note(2));
    client.send(&message(6, 10, 0x10, &vec![7; 3 << 20]));
    let payload = [&asked.payload[..], &[9; 8]].concat();
    client.send(&message(asked.id, 11, 1, &payload));
    assert_eq!(client.receive().id, 4);
    let refused = client.receive();
    assert_eq!((refused.id, refused.error), (5, Errno::EMSGSIZE as u32));
    assert_eq!(client.device_bytes(8), [9; 8]);
    let (_, copier) = client.end();
    assert_eq!(copier.log, [1, 2]);
}

#[test]
fn the_answer_may_come_in_any_pieces() {
    for cut in 0..16 + 16 + 8 {
        let mut client = Client::new();
        client.copy(4, 0x1000_0000, 8, READ);
        let asked = client.receive();
        let payload = [&asked.payload[..], &pattern(0x1000_0000, 8)].concat();
        let bytes = [note(1), message(asked.id, 11, 1, &payload), note(2)].concat();
        client.send(&bytes[..33 + cut]);
        if cut % 8 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        client.send(&bytes[33 + cut..]);
        assert_eq!(client.receive().error, 0);
        let (_, copier) = client.end();
        assert_eq!(copier.log, [1, 2]);
        assert_eq!(copier.bytes[64..72], pattern(0x1000_0000, 8));
    }
}

#[test]
fn an_error_of_the_client_is_the_access_s_and_the_session_goes_on() {
    let mut client = Client::new();
    for (errno, expected) in [
        (14, Errno::EFAULT),
        (1, Errno::EPERM),
        (0, Errno::EIO),
        (u32::MAX, Errno::EIO),
    ] {
        for (way, command) in [(READ, 11), (WRITE, 12)] {
            client.copy(4, 0x1000_0000, 8, way);
            let asked = client.receive();
            client.send(&error(asked.id, command, errno));
            assert_eq!(client.receive().error, expected as u32);
        }
    }
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error_and_the_session_goes_on() {
    let mut client = Client::new();
    let data = |address, count, len| [dma(address, count), vec![7; len]].concat();
    for payload in [
        vec![],
        vec![0; 15],
        data(0x1000_0000, 8, 7),
        data(0x1000_0000, 8, 9),
        data(0x1000_0000, 7, 8),
        data(0x1000_0001, 8, 8),
        data(0x1000_0000, 8 | 1 << 32, 8),
        data(0x1000_0000, 8, 1 << 20),
    ] {
        client.copy(4, 0x1000_0000, 8, READ);
        let asked = client.receive();
        client.send(&message(asked.id, 11, 1, &payload));
        let reply = client.receive();
        assert_eq!(
            (reply.command, reply.error),
            (10, Errno::EBADMSG as u32),
            "{}",
            payload.len()
        );
    }
    // Larger than any message may be.
    client.copy(4, 0x1000_0000, 8, READ);
    let asked = client.receive();
    client.send(&message(asked.id, 11, 1, &data(0x1000_0000, 8, 2 << 20)));
    assert_eq!(client.receive().error, Errno::EMSGSIZE as u32);
    for payload in [
        vec![0; 12],
        dma(0x1000_0000, 7),
        data(0x1000_0000, 8, 1),
        vec![0; 3],
    ] {
        client.copy(4, 0x1000_0000, 8, WRITE);
        let asked = client.receive();
        client.send(&message(asked.id, 12, 1, &payload));
        assert_eq!(client.receive().error, Errno::EBADMSG as u32);
    }
    assert_eq!(client.device_bytes(8), [0; 8], "nothing of it was taken");
}

#[test]
fn replies_to_nothing_are_ignored() {
    let mut client = Client::new();
    client.send(&message(0, 11, 1, &[9; 24]));
    client.copy(4, 0x1000_0000, 8, READ);
    let asked = client.receive();
    let mut payload = [&asked.payload[..], &[1; 8]].concat();
    client.send(&message(asked.id.wrapping_add(1), 11, 1, &payload));
    client.send(&message(asked.id, 12, 1, &payload));
    client.send(&error(asked.id.wrapping_sub(1), 11, 5));
    payload[16..].copy_from_slice(b"the data");
    client.send(&message(asked.id, 11, 1, &payload));
    client.send(&message(asked.id, 11, 1, &[0; 24]));
    assert_eq!(client.receive().error, 0);
    assert_eq!(client.device_bytes(8), b"the data");
}

#[test]
fn a_client_that_leaves_instead_of_answering_ends_its_session() {
    for twin in [false, true] {
        let capabilities = format!("{{\"twin_socket\":{{\"supported\":{twin}}}}}");
        let (mut client, twin) = Client::connect(1, &capabilities);
        client.copy(4, 0x1000_0000, 8, READ);
        let asked = receive(twin.as_ref().unwrap_or(&client.stream));
        assert_eq!(asked.command, 11);
        let (closed, _) = client.end();
        assert!(matches!(closed, Closed::ByClient), "{closed:?}");
    }
    let (mut client, twin) = Client::connect(1, r#"{"twin_socket":{"supported":true}}"#);
    drop(twin);
    client.copy(4, 0x1000_0000, 8, READ);
    let (closed, _) = client.server.take().unwrap().join().unwrap();
    assert!(matches!(closed, Closed::ByClient), "{closed:?}");
}

#[test]
fn a_client_that_does_not_answer_ends_its_session_in_one_budget() {
    let (mut client, _) = Client::connect(1, r#"{"max_data_xfer_size":1}"#);
    let begin = Instant::now();
    // A thousand accesses: each fails at once after the first.
    client.copy(4, 0x1000_0000, 1000, READ);
    for id in 5..300 {
        client.copy(id, 0x1000_0000, 1000, READ);
    }
    assert_eq!(client.receive().command, 11);
    let (closed, _) = client.server.take().unwrap().join().unwrap();
    assert!(matches!(closed, Closed::Unanswered(_)), "{closed:?}");
    assert!(closed.to_string().contains("DMA_READ"));
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(
        client.stream.read(&mut [0; 1]).unwrap(),
        0,
        "the client sees it, too"
    );
}

#[test]
fn a_client_that_sends_more_than_is_held_and_does_not_answer_ends_its_session() {
    let mut client = Client::new();
    client.copy(4, 0x1000_0000, 8, READ);
    assert_eq!(client.receive().command, 11);
    let begin = Instant::now();
    let large = message(
        0,
        10,
        0x10,
        &[&access(64, 1 << 20)[..], &vec![1; 1 << 20]].concat(),
    );
    let refused = (0..64).find_map(|_| client.stream.write_all(&large).err());
    assert_eq!(refused.unwrap().kind(), ErrorKind::BrokenPipe);
    let (closed, _) = client.server.take().unwrap().join().unwrap();
    assert!(matches!(closed, Closed::Protocol(_)), "{closed:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "at once");
}

#[test]
fn a_client_that_neither_reads_nor_answers_ends_its_session() {
    let mut client = Client::new();
    // A reply that waits, and a question that is larger than what a socket holds.
    let mut bytes = message(3, 9, 0, &access(64, 4096));
    bytes.extend(copy(4, 0x1000_0000, 1 << 20, WRITE));
    client.send(&bytes);
    let (closed, _) = client
        .server
        .take()
        .unwrap()
        .join()
        .unwrap_or_else(|_| unreachable!());
    assert!(matches!(closed, Closed::Unanswered(_)), "{closed:?}");
}

#[test]
fn the_server_asks_on_the_twin_socket_when_there_is_one() {
    let capabilities = r#"{"twin_socket":{"supported":true},"max_msg_fds":4}"#;
    let (mut client, twin) = Client::connect(1, capabilities);
    let mut twin = twin.unwrap();
    for (way, command) in [(READ, 11), (WRITE, 12)] {
        client.copy(4, 0x1000_0000, 8, way);
        client.send(&note(1));
        let asked = receive(&twin);
        assert_eq!(
            (asked.command, &asked.payload[..16]),
            (command, &dma(0x1000_0000, 8)[..])
        );
        // A command has no business there, nor has a reply on the connection.
        twin.write_all(&message(1, 4, 0, &[])).unwrap();
        client.send(&message(asked.id, command, 1, &dma(0x1000_0000, 8)));
        let data = if way == READ { &b"the data"[..] } else { &[] };
        let payload = [&dma(0x1000_0000, 8)[..], data].concat();
        twin.write_all(&message(asked.id, command, 1, &payload))
            .unwrap();
        assert_eq!(client.receive().error, 0);
    }
    assert_eq!(client.device_bytes(8), b"the data");
    let (_, copier) = client.end();
    assert_eq!(copier.log, [1, 1]);
}

#[test]
fn a_client_that_is_busy_sending_is_read_from_while_its_twin_socket_is_waited_for() {
    let (mut client, twin) = Client::connect(1, r#"{"twin_socket":{"supported":true}}"#);
    let mut twin = twin.unwrap();
    let mut bytes = copy(4, 0x1000_0000, 8, READ);
    // More than a socket holds, and less than the server does.
    let large = vec![1; 700 << 10];
    bytes.extend(message(
        5,
        10,
        0,
        &[&access(4096, 700 << 10)[..], &large].concat(),
    ));
    client.send(&bytes);
    answer_read(&mut twin, byte);
    assert_eq!(client.receive().id, 4);
    assert_eq!(client.receive().id, 5);
}

/// Answers as QEMU's client does, whose count has 32 bits.
fn answer_as_qemu(client: &mut Client, memory: &mut [u8]) {
    let asked = client.receive();
    let at = u64::from_le_bytes(asked.payload[..8].try_into().unwrap()) as usize - 0x1000_0000;
    let count = u32::from_le_bytes(asked.payload[8..12].try_into().unwrap()) as usize;
    if asked.command == 12 {
        // As it does, it takes no more than is there behind its structure of 16 bytes.
        assert!(count <= asked.payload.len() - 16);
        memory[at..at + count].copy_from_slice(&asked.payload[12..12 + count]);
        client.send(&message(asked.id, 12, 1, &[]));
    } else {
        let payload = [&asked.payload[..12], &memory[at..at + count], &[0; 4]].concat();
        client.send(&message(asked.id, 11, 1, &payload));
    }
}

#[test]
fn data_is_where_qemu_has_it() {
    let capabilities = r#"{"migration":{"pgsize":4096,"max_bitmap_size":268435456},"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096,"max_dma_maps":65535,"write_multiple":true}"#;
    let mut memory = pattern(1, 256);
    let (mut client, _) = Client::connect(0, capabilities);
    client.copy(4, 0x1000_0000, 100, READ);
    answer_as_qemu(&mut client, &mut memory);
    assert_eq!(client.receive().error, 0);
    assert_eq!(client.device_bytes(100), memory[..100]);
    client.copy(4, 0x1000_0080, 100, WRITE);
    answer_as_qemu(&mut client, &mut memory);
    assert_eq!(client.receive().error, 0);
    assert_eq!(memory[128..228], pattern(1, 100));
    // One that is like everybody else shows it by the first data that is not all zeros.
    let (mut client, _) = Client::connect(0, capabilities);
    client.copy(4, 0x1000_0000, 100, READ);
    answer_read(&mut client.stream, byte);
    assert_eq!(client.receive().error, 0);
    assert_eq!(client.device_bytes(100), pattern(0x1000_0000, 100));
    client.copy(4, 0x1000_0000, 100, WRITE);
    assert_eq!(client.receive().payload[16..], pattern(0x1000_0000, 100));
}

/// A negotiated session whose client, the stream, serves its memory by messages.
fn mapped() -> (UnixStream, Session, Copier) {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let mut copier = copier();
    let mut session = Session::new(theirs, &copier, Instant::now()).unwrap();
    stream.write_all(&message(1, 1, 0, &[0, 0, 1, 0])).unwrap();
    stream.write_all(&message(2, 2, 0, &map())).unwrap();
    session.serve(&mut copier).unwrap();
    for _ in 0..2 {
        assert_eq!(receive(&stream).error, 0);
    }
    (stream, session, copier)
}

#[test]
fn requests_that_came_while_the_device_worked_by_itself_are_served() {
    let (mut stream, mut session, mut copier) = mapped();
    let client = std::thread::spawn(move || {
        let asked = receive(&stream);
        let answer = message(asked.id, 11, 1, &[&asked.payload[..], &[3; 4]].concat());
        stream
            .write_all(&[note(1), answer, note(2)].concat())
            .unwrap();
        stream.write_all(&message(9, 9, 0, &access(32, 1))).unwrap();
        stream
    });
    let mut data = [0; 4];
    assert!(!session.has_requests());
    session.lent().read(0x1000_0000, &mut data).unwrap();
    assert_eq!(data, [3; 4]);
    assert!(session.has_requests());
    let stream = client.join().unwrap();
    while copier.log.len() < 2 {
        session.wait(&mut copier).unwrap();
    }
    session.serve(&mut copier).unwrap();
    assert!(!session.has_requests());
    assert_eq!(receive(&stream).payload[16], 2);
}

/// A session whose client has said VERSION and mapped `[0x1000_0000, 0x1000_1000)` without a descriptor, and the client's
/// end with its twin socket, if it asked for one.
fn begin(copier: &mut Copier, capabilities: &str) -> (Session, UnixStream, Option<UnixStream>) {
    let (stream, theirs) = UnixStream::pair().unwrap();
    let mut session = Session::new(theirs, copier, Instant::now()).unwrap();
    let mut client = Client {
        stream,
        server: None,
    };
    let json = format!("\0\0\x01\0{{\"capabilities\":{capabilities}}}\0");
    client.send(&message(1, 1, 0, json.as_bytes()));
    session.serve(copier).unwrap();
    let (reply, twin) = client.receive_with_fd();
    assert_eq!(reply.error, 0);
    client.send(&message(2, 2, 0, &map()));
    session.serve(copier).unwrap();
    assert_eq!(client.receive().error, 0);
    (session, client.stream, twin)
}

fn copier() -> Copier {
    Copier {
        regions: [Region::new(4 << 20)],
        bytes: vec![0; 4 << 20],
        log: Vec::new(),
    }
}

/// Waits until the other end has taken everything that was sent.
fn wait_until_taken(stream: &UnixStream) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while unsent(stream) > 0 {
        assert!(Instant::now() < deadline, "the server does not read");
        std::thread::yield_now();
    }
}

#[expect(unsafe_code, reason = "nix does not have this request")]
fn unsent(stream: &UnixStream) -> i32 {
    let mut bytes = 0i32;
    // SAFETY: it writes an int, which is there.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0);
    bytes
}

#[test]
fn a_request_that_came_glued_to_the_answer_is_not_forgotten() {
    let mut copier = copier();
    let (mut session, mut stream, _) = begin(&mut copier, "{}");
    let client = std::thread::spawn(move || {
        let asked = receive(&stream);
        let answer = message(asked.id, 11, 1, &[&asked.payload[..], &[3; 4]].concat());
        stream.write_all(&[answer, note(1)].concat()).unwrap();
        stream
    });
    session.lent().read(0x1000_0000, &mut [0; 4]).unwrap();
    let _stream = client.join().unwrap();
    // Nothing is left in the socket, so that nobody is woken by it.
    assert!(session.has_requests());
    session.serve(&mut copier).unwrap();
    assert_eq!(copier.log, [1]);
    assert!(!session.has_requests());
}

#[test]
fn a_request_that_is_too_large_is_refused_at_once_behind_the_answer() {
    let mut copier = copier();
    let (mut session, mut stream, _) = begin(&mut copier, "{}");
    let client = std::thread::spawn(move || {
        let asked = receive(&stream);
        let answer = message(asked.id, 11, 1, &[&asked.payload[..], &[3; 4]].concat());
        let mut large = message(8, 10, 0, &[]);
        large[4..8].copy_from_slice(&(2u32 << 20).to_le_bytes());
        stream.write_all(&[answer, large].concat()).unwrap();
        stream
    });
    session.lent().read(0x1000_0000, &mut [0; 4]).unwrap();
    let stream = client.join().unwrap();
    assert!(session.has_requests(), "its header is all that is needed");
    session.serve(&mut copier).unwrap();
    let reply = receive(&stream);
    assert_eq!((reply.id, reply.error), (8, Errno::EMSGSIZE as u32));
}

#[test]
fn a_request_that_came_while_the_twin_socket_was_waited_for_is_not_forgotten() {
    let mut copier = copier();
    let (mut session, mut stream, twin) =
        begin(&mut copier, r#"{"twin_socket":{"supported":true}}"#);
    let mut twin = twin.unwrap();
    let client = std::thread::spawn(move || {
        let asked = receive(&twin);
        stream.write_all(&note(1)).unwrap();
        wait_until_taken(&stream);
        let answer = message(asked.id, 11, 1, &[&asked.payload[..], &[3; 4]].concat());
        twin.write_all(&answer).unwrap();
        (stream, twin)
    });
    session.lent().read(0x1000_0000, &mut [0; 4]).unwrap();
    let _client = client.join().unwrap();
    assert!(session.has_requests());
    session.serve(&mut copier).unwrap();
    assert_eq!(copier.log, [1]);
    assert!(!session.has_requests());
}

#[test]
fn requests_behind_replies_that_left_meanwhile_are_not_forgotten() {
    let mut copier = copier();
    let (mut session, mut stream, twin) =
        begin(&mut copier, r#"{"twin_socket":{"supported":true}}"#);
    let mut twin = twin.unwrap();
    // More replies than a socket takes, and a request behind them that has to wait.
    let mut bytes = message(3, 9, 0, &access(64, 1 << 20));
    bytes.extend(note(1));
    stream.write_all(&bytes).unwrap();
    session.serve(&mut copier).unwrap();
    assert!(session.is_blocked() && copier.log.is_empty());
    let client = std::thread::spawn(move || {
        let asked = receive(&twin);
        assert_eq!(receive(&stream).payload.len(), 16 + (1 << 20));
        let answer = message(asked.id, 11, 1, &[&asked.payload[..], &[3; 4]].concat());
        twin.write_all(&answer).unwrap();
        (stream, twin)
    });
    session.lent().read(0x1000_0000, &mut [0; 4]).unwrap();
    let _client = client.join().unwrap();
    assert!(session.wants_write() || session.has_requests());
    session.serve(&mut copier).unwrap();
    assert_eq!(copier.log, [1]);
}

#[test]
fn a_turn_ends_with_the_request_that_used_the_client_s_memory() {
    let (mut stream, mut session, mut copier) = mapped();
    // A client that always has another request before it answers.
    let client = std::thread::spawn(move || {
        stream.write_all(&copy(0, 0x1000_0000, 4, READ)).unwrap();
        for _ in 0..50 {
            let asked = receive(&stream);
            let answer = message(asked.id, 11, 1, &[&asked.payload[..], &[3; 4]].concat());
            let next = copy(0, 0x1000_0000, 4, READ);
            stream.write_all(&[next, answer].concat()).unwrap();
            assert_eq!(receive(&stream).command, 10);
        }
    });
    let mut turns = 0;
    while !client.is_finished() && session.serve(&mut copier).is_ok() {
        turns += u32::from(session.has_requests());
    }
    client.join().unwrap();
    assert!(turns > 40, "{turns}");
}

#[test]
fn a_descriptor_that_nobody_wants_is_closed_before_the_client_is_asked() {
    let mut client = Client::new();
    // A connection with data that nobody takes: who closes it waits for that, if it is told to linger.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut passed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let nobody_reads = listener.accept().unwrap();
    passed.set_nonblocking(true).unwrap();
    while passed.write(&[0; 1 << 16]).is_ok() {}
    let request = copy(4, 0x1000_0000, 4, READ);
    wire::send(&client.stream, &request, &[passed.as_raw_fd()]);
    let asked = client.receive();
    // It did not linger when it was received.
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 3600,
    };
    setsockopt(&passed, sockopt::Linger, &linger).unwrap();
    passed.set_nonblocking(false).unwrap();
    let closing = std::thread::spawn(|| drop(passed));
    std::thread::sleep(Duration::from_millis(50));
    let payload = [&asked.payload[..], &[3; 4]].concat();
    client.send(&message(asked.id, 11, 1, &payload));
    assert_eq!(client.receive().error, 0);
    drop(nobody_reads);
    closing.join().unwrap();
}

#[test]
fn each_request_has_its_own_time_for_the_client_s_memory() {
    let mut client = Client::new();
    // Together more than one of them may take.
    for id in 0..3 {
        client.copy(id, 0x1000_0000, 8, READ);
        let asked = client.receive();
        std::thread::sleep(Duration::from_millis(1800));
        let payload = [&asked.payload[..], &[3; 8]].concat();
        client.send(&message(asked.id, 11, 1, &payload));
        assert_eq!(client.receive().error, 0);
    }
}

#[test]
fn a_client_that_wanted_no_reply_has_no_twin_socket_and_is_asked_in_band() {
    let mut copier = copier();
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let mut session = Session::new(theirs, &copier, Instant::now()).unwrap();
    let json = b"\0\0\x01\0{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}\0";
    stream.write_all(&message(1, 1, 0x10, json)).unwrap();
    stream.write_all(&message(2, 2, 0x10, &map())).unwrap();
    session.serve(&mut copier).unwrap();
    let client = std::thread::spawn(move || answer_read(&mut stream, byte));
    let mut data = [0; 4];
    session.lent().read(0x1000_0000, &mut data).unwrap();
    assert_eq!(data[..], pattern(0x1000_0000, 4));
    client.join().unwrap();
}

#[test]
fn a_client_that_sends_more_than_is_held_waits_while_its_twin_socket_is_waited_for() {
    let (mut client, twin) = Client::connect(1, r#"{"twin_socket":{"supported":true}}"#);
    let mut twin = twin.unwrap();
    client.copy(4, 0x1000_0000, 8, READ);
    let large = [&access(4096, 1 << 20)[..], &vec![1; 1 << 20]].concat();
    let large = message(0, 10, 0x10, &large);
    let mut stream = client.stream.try_clone().unwrap();
    let sending =
        std::thread::spawn(move || (0..5).for_each(|_| stream.write_all(&large).unwrap()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!sending.is_finished());
    answer_read(&mut twin, byte);
    assert_eq!(client.receive().error, 0);
    sending.join().unwrap();
    assert_eq!(client.device_bytes(8), pattern(0x1000_0000, 8));
}

#[test]
fn who_waits_for_the_socket_is_told_of_a_session_that_ended_while_the_device_worked_by_itself() {
    let mut copier = copier();
    let (mut session, mut stream, _) = begin(&mut copier, "{}");
    let client = std::thread::spawn(move || {
        receive(&stream);
        stream.write_all(&[0; 16]).unwrap();
        stream
    });
    let result = session.lent().read(0x1000_0000, &mut [0; 4]);
    assert!(matches!(result, Err(AccessError::Remote { .. })));
    let _stream = client.join().unwrap();
    assert!(session.has_hung_up());
    let closed = session.serve(&mut copier).unwrap_err();
    assert!(matches!(closed, Closed::Protocol(_)), "{closed}");
}
