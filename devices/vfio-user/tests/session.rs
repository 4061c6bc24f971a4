//! A session under a client that writes bytes by the specification, some of them wrong.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/wire.rs"]
mod wire;

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::eventfd::{EfdFlags, EventFd},
};
use vfio_user::{Closed, Device, IrqInfo, IrqKind, Lent, Mapping, Region, Session};
use wire::{Message, access, message, words};

/// One region of 64 bytes of memory. Writing byte 0 raises the line with 1 and lowers it with 0; writing byte 1 copies a
/// byte within guest memory from address 0x1000 to 0x1001.
struct Scratch {
    regions: [Region; 2],
    irqs: [IrqInfo; 2],
    bytes: [u8; 64],
    /// What had been written by the end of each batch of requests, by its first byte.
    batches: Vec<u8>,
}

impl Device for Scratch {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }
    fn read(&mut self, _: &mut Lent, _: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let at = offset as usize;
        data.copy_from_slice(&self.bytes[at..at + data.len()]);
        Ok(())
    }
    fn write(&mut self, lent: &mut Lent, _: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let at = offset as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        if offset == 0 {
            lent.irqs.set_level(0, data[0] == 1);
        }
        if offset == 1 {
            let mut byte = [0];
            lent.read(0x1000, &mut byte).map_err(|_| Errno::EFAULT)?;
            lent.write(0x1001, &byte).map_err(|_| Errno::EFAULT)?;
        }
        Ok(())
    }
    fn end_batch(&mut self, _: &mut Lent) {
        self.batches.push(self.bytes[8]);
    }
    fn reset(&mut self, lent: &mut Lent) {
        self.bytes = [0; 64];
        lent.irqs.set_level(0, false);
    }
}

struct Client {
    stream: UnixStream,
    session: Session,
    device: Scratch,
}

impl Client {
    fn connect() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let device = Scratch {
            regions: [Region::new(64), Region::new(0)],
            irqs: [
                IrqInfo {
                    count: 1,
                    kind: IrqKind::Level,
                },
                IrqInfo {
                    count: 2,
                    kind: IrqKind::Message,
                },
            ],
            bytes: [0; 64],
            batches: Vec::new(),
        };
        let session = Session::new(theirs, &device, Instant::now()).unwrap();
        Self {
            stream,
            session,
            device,
        }
    }

    fn negotiated() -> Self {
        let mut client = Self::connect();
        let reply = client.call(1, b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":1}}\0");
        assert_eq!((reply.flags, reply.error), (1, 0));
        client
    }

    fn serve(&mut self) -> Result<(), Closed> {
        self.session.serve(&mut self.device)
    }

    fn send(&mut self, id: u16, command: u16, flags: u32, payload: &[u8], fds: &[RawFd]) {
        wire::send(&self.stream, &message(id, command, flags, payload), fds);
    }

    fn receive(&mut self) -> Message {
        wire::receive(&self.stream)
    }

    fn call_with(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> Message {
        self.send(0x1234, command, 0, payload, fds);
        self.serve().unwrap();
        let reply = self.receive();
        assert_eq!((reply.id, reply.command), (0x1234, command));
        reply
    }

    fn call(&mut self, command: u16, payload: &[u8]) -> Message {
        self.call_with(command, payload, &[])
    }

    fn refused(&mut self, command: u16, payload: &[u8]) -> i32 {
        let reply = self.call(command, payload);
        assert_eq!(
            (reply.flags, reply.payload.len()),
            (0x21, 0),
            "an error reply is a header with Error set"
        );
        reply.error as i32
    }
}

fn map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [
        &words(&[32, flags])[..],
        &offset.to_le_bytes(),
        &address.to_le_bytes(),
        &size.to_le_bytes(),
    ]
    .concat()
}

fn unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [
        &words(&[24, flags])[..],
        &address.to_le_bytes(),
        &size.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn nothing_is_served_before_version() {
    let mut client = Client::connect();
    assert!(client.session.deadline().is_some());
    client.send(1, 4, 0, &words(&[16, 0, 0, 0]), &[]);
    assert!(matches!(client.serve(), Err(Closed::Protocol(_))));
}

#[test]
fn a_batch_ends_when_all_that_arrived_is_served() {
    const POSTED: u32 = 1 << 4;
    let mut client = Client::negotiated();
    client.device.batches.clear();
    let write = |byte| [&access(8, 0, 1)[..], &[byte]].concat();
    for byte in 1..=3 {
        client.send(1, 10, POSTED, &write(byte), &[]);
    }
    client.serve().unwrap();
    assert_eq!(client.device.batches, [3]);
    // Its end comes before the replies.
    client.send(2, 10, 0, &write(4), &[]);
    client.serve().unwrap();
    assert_eq!(client.device.batches, [3, 4]);
    assert_eq!(client.receive().id, 2);
    // Also of one that a broken message ends.
    client.send(1, 10, POSTED, &write(5), &[]);
    wire::send(&client.stream, &[0; 16], &[]);
    assert!(client.serve().is_err());
    assert_eq!(client.device.batches, [3, 4, 5]);
}

#[test]
fn a_refused_version_may_be_tried_again() {
    let mut client = Client::connect();
    assert_eq!(client.refused(1, &[1, 0, 0, 0]), Errno::EPROTO as i32);
    assert!(client.session.deadline().is_some());
    assert_eq!(client.call(1, &[0, 0, 0, 0]).payload, [0, 0, 0, 0]);
    assert!(client.session.deadline().is_none());
    assert_eq!(
        client.refused(1, &[0, 0, 0, 0]),
        Errno::EINVAL as i32,
        "once only"
    );
}

#[test]
fn device_region_and_irq_info() {
    let mut client = Client::negotiated();
    assert_eq!(
        client.call(4, &words(&[16, 0, 0, 0])).payload,
        words(&[16, 3, 2, 2])
    );
    assert_eq!(
        client.refused(4, &words(&[15, 0, 0, 0])),
        Errno::EINVAL as i32
    );
    assert_eq!(client.refused(4, &[]), Errno::EINVAL as i32);
    let request = words(&[32, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        client.call(5, &request).payload,
        words(&[32, 3, 0, 0, 64, 0, 0, 0])
    );
    // SPDK's client sends 4080 bytes.
    let long = [&request[..], &[0; 4048]].concat();
    assert_eq!(client.call(5, &long).payload.len(), 32);
    assert_eq!(
        client.call(5, &words(&[32, 0, 1, 0, 0, 0, 0, 0])).payload,
        words(&[32, 0, 1, 0, 0, 0, 0, 0])
    );
    assert_eq!(
        client.refused(5, &words(&[32, 0, 2, 0, 0, 0, 0, 0])),
        Errno::EINVAL as i32
    );
    assert_eq!(
        client.call(7, &words(&[16, 0, 0, 0])).payload,
        words(&[16, 7, 0, 1])
    );
    assert_eq!(
        client.call(7, &words(&[16, 0, 1, 0])).payload,
        words(&[16, 11, 1, 2])
    );
    assert_eq!(
        client.refused(7, &words(&[16, 0, 2, 0])),
        Errno::EINVAL as i32
    );
}

#[test]
fn a_session_that_waits_hears_of_the_end_of_an_interrupt_by_eventfd() {
    let mut client = Client::negotiated();
    let [line, end] = [0x24, 0x14].map(|flags| {
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let fds = [eventfd.as_fd().as_raw_fd()];
        let reply = client.call_with(8, &words(&[20, flags, 0, 0, 1]), &fds);
        assert_eq!(reply.error, 0);
        eventfd
    });
    client.call(10, &[&access(0, 0, 1)[..], &[1]].concat());
    assert_eq!(line.read(), Ok(1));
    end.write(1).unwrap();
    let waiter = std::thread::spawn(move || {
        client.session.wait(&mut client.device).unwrap();
        client
    });
    let due = Instant::now() + Duration::from_secs(20);
    while line.read() != Ok(1) {
        assert!(Instant::now() < due, "nobody heard of it");
        std::thread::sleep(Duration::from_millis(1));
    }
    waiter.join().unwrap();
}

#[test]
fn regions_are_read_and_written_inside_their_bounds() {
    let mut client = Client::negotiated();
    let reply = client.call(10, &[&access(60, 0, 4)[..], &[1, 2, 3, 4]].concat());
    assert_eq!(reply.payload, access(60, 0, 4));
    let reply = client.call(9, &access(61, 0, 3));
    assert_eq!(reply.payload, [&access(61, 0, 3)[..], &[2, 3, 4]].concat());
    for (offset, region, count) in [
        (61, 0, 4),
        (0, 0, 0),
        (0, 1, 1),
        (0, 2, 1),
        (u64::MAX, 0, 4),
        (0, u32::MAX, 4),
        (0, 0, u32::MAX),
    ] {
        assert_eq!(
            client.refused(9, &access(offset, region, count)),
            Errno::EINVAL as i32
        );
        let write = [&access(offset, region, count)[..], &[0; 8]].concat();
        assert_eq!(client.refused(10, &write), Errno::EINVAL as i32);
    }
    assert_eq!(
        client.refused(10, &access(0, 0, 4)),
        Errno::EINVAL as i32,
        "data shorter than count"
    );
}

#[test]
fn posted_and_pipelined_requests_are_served_in_order() {
    let mut client = Client::negotiated();
    let mut bytes = Vec::new();
    for value in 0..200u8 {
        bytes.extend(message(
            0,
            10,
            0x10,
            &[&access(8, 0, 1)[..], &[value]].concat(),
        ));
        bytes.extend(message(value.into(), 9, 0, &access(8, 0, 1)));
    }
    // A posted request that fails is not answered either.
    bytes.extend(message(0, 9, 0x10, &access(99, 0, 1)));
    client.stream.write_all(&bytes).unwrap();
    client.serve().unwrap();
    for value in 0..200u8 {
        let reply = client.receive();
        assert_eq!(
            (reply.id, reply.payload.last()),
            (value.into(), Some(&value))
        );
    }
    client.stream.set_nonblocking(true).unwrap();
    assert!(client.stream.read(&mut [0]).is_err());
}

#[test]
fn unknown_commands_are_refused_and_the_session_goes_on() {
    let mut client = Client::negotiated();
    for command in [
        0, 2, 3, 5, 6, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 0xffff,
    ] {
        assert!(client.refused(command, &[]) > 0);
    }
    assert!(client.call(13, &[]).payload.is_empty());
    assert_eq!(client.session.device_resets(), 1);
}

#[test]
fn interrupts_follow_the_masking_rules() {
    let mut client = Client::negotiated();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let fds = [eventfd.as_fd().as_raw_fd()];
    let trigger = words(&[20, 0x24, 0, 0, 1]);
    assert_eq!(client.call_with(8, &trigger, &fds).error, 0);
    client.call(10, &[&access(0, 0, 1)[..], &[1]].concat());
    assert_eq!(eventfd.read(), Ok(1));
    assert_eq!(
        client.call(8, &words(&[20, 0x11, 0, 0, 1])).error,
        0,
        "UNMASK"
    );
    assert_eq!(eventfd.read(), Ok(1), "still asserted");
    client.call(8, &[&words(&[21, 0x12, 0, 0, 1])[..], &[0]].concat());
    assert_eq!(eventfd.read(), Err(Errno::EAGAIN), "UNMASK of none");
    client.call(8, &[&words(&[21, 0x12, 0, 0, 1])[..], &[1]].concat());
    assert_eq!(eventfd.read(), Ok(1));
    client.call(8, &words(&[20, 0x21, 0, 0, 0]));
    client.call(8, &words(&[20, 0x11, 0, 0, 1]));
    assert_eq!(eventfd.read(), Err(Errno::EAGAIN), "disconnected");
    client.call_with(8, &trigger, &fds);
    assert_eq!(eventfd.read(), Ok(1), "asserted when it was connected");
    client.call(8, &trigger);
    client.call(8, &words(&[20, 0x11, 0, 0, 1]));
    assert_eq!(
        eventfd.read(),
        Err(Errno::EAGAIN),
        "no descriptors: taken away"
    );
    for bad in [
        [20, 0x24, 0, 0, 2],
        [20, 0x24, 0, 1, 1],
        [20, 0x24, 9, 0, 1],
        [20, 0x26, 0, 0, 1],
        [20, 0, 0, 0, 1],
    ] {
        let reply = client.call_with(8, &words(&bad), &fds);
        assert_eq!(reply.error, Errno::EINVAL as u32, "{bad:?}");
    }
    for bad in [
        [20, 0x31, 0, 0, 1],
        [20, 0x11, 0, 0, u32::MAX],
        [20, 0x22, 0, 0, u32::MAX],
        [20, 0x24, 1, 0, u32::MAX],
    ] {
        assert_eq!(
            client.refused(8, &words(&bad)),
            Errno::EINVAL as i32,
            "{bad:?}"
        );
    }
}

#[test]
fn an_eventfd_that_is_full_blocks_nobody() {
    let mut client = Client::negotiated();
    let eventfd = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
    eventfd.write(u64::MAX - 1).unwrap();
    let fds = [eventfd.as_fd().as_raw_fd()];
    assert_eq!(
        client
            .call_with(8, &words(&[20, 0x24, 0, 0, 1]), &fds)
            .error,
        0
    );
    // The client shares the file description, and makes it block again.
    fcntl(&eventfd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    client.call(10, &[&access(0, 0, 1)[..], &[1]].concat());
    assert_eq!(eventfd.read(), Ok(u64::MAX - 1));
}

#[test]
fn only_eventfds_are_taken_for_interrupts() {
    let mut client = Client::negotiated();
    let (_read_end, write_end) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let file = tempfile::tempfile().unwrap();
    for fd in [write_end.as_raw_fd(), socket.as_raw_fd(), file.as_raw_fd()] {
        let reply = client.call_with(8, &words(&[20, 0x24, 0, 0, 1]), &[fd]);
        assert_eq!(reply.error, Errno::EINVAL as u32);
    }
}

#[test]
fn dma_reaches_mapped_memory_until_it_is_unmapped() {
    let mut client = Client::negotiated();
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"x", 0).unwrap();
    let copy = [&access(1, 0, 1)[..], &[0]].concat();
    assert_eq!(client.refused(10, &copy), Errno::EFAULT as i32);
    let mapped = client.call_with(2, &map(3, 0, 0x1000, 0x1000), &[file.as_raw_fd()]);
    assert!(mapped.error == 0 && mapped.payload.is_empty());
    assert_eq!(client.call(10, &copy).error, 0);
    let mut bytes = [0; 2];
    std::os::unix::fs::FileExt::read_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"xx");
    let again = client.call_with(2, &map(3, 0, 0x1000, 0x1000), &[file.as_raw_fd()]);
    assert_eq!(again.error, Errno::EEXIST as u32);
    assert_eq!(
        client.call(3, &unmap(0, 0x1000, 0x1000)).payload,
        unmap(0, 0x1000, 0x1000)
    );
    assert_eq!(client.refused(10, &copy), Errno::EFAULT as i32);
    assert_eq!(
        client.refused(3, &unmap(0, 0x1000, 0x1000)),
        Errno::ENOENT as i32
    );
    client.call(2, &map(3, 0, 0x1000, 0x1000));
    assert_eq!(client.call(3, &unmap(2, 0, 0)).payload, unmap(2, 0, 0));
    for bad in [
        map(8, 0, 0, 0x1000),
        map(0, 0, 0, 0x1000),
        map(3, 0, 0, 0),
        map(3, 0, u64::MAX, 2),
    ] {
        assert_eq!(client.refused(2, &bad), Errno::EINVAL as i32);
    }
    let two = client.call_with(
        2,
        &map(3, 0, 0, 0x1000),
        &[file.as_raw_fd(), file.as_raw_fd()],
    );
    assert_eq!(two.error, Errno::EINVAL as u32);
}

#[test]
fn descriptors_that_are_not_wanted_are_closed() {
    let mut client = Client::negotiated();
    let file: OwnedFd = File::open("/dev/null").unwrap().into();
    let before = open_files();
    for _ in 0..20 {
        client.call_with(9, &access(0, 0, 4), &[file.as_raw_fd(); 16]);
        client.call_with(2, &map(0, 0, 0, 0), &[file.as_raw_fd(); 1]);
        client.call_with(8, &words(&[20, 0x24, 1, 0, 2]), &[file.as_raw_fd(); 200]);
    }
    // Other tests run in this process: the count wavers, and 4340 descriptors would show.
    assert!(open_files() < before + 200);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let mut client = Client::negotiated();
    client.stream.set_nonblocking(true).unwrap();
    let request = message(7, 9, 0, &access(0, 0, 64)).repeat(64);
    let mut sent = 0;
    for _ in 0..10_000 {
        match client.stream.write(&request) {
            Ok(len) => sent += len,
            Err(_) if client.session.is_blocked() => break,
            Err(_) => {}
        }
        client.serve().unwrap();
    }
    assert!(client.session.is_blocked() && client.session.wants_write());
    // Once it reads, every whole request is answered.
    let mut received = Vec::new();
    for _ in 0..100_000 {
        let mut buffer = vec![0; 1 << 16];
        match client.stream.read(&mut buffer) {
            Ok(len) => received.extend_from_slice(&buffer[..len]),
            Err(_) if !client.session.wants_write() && received.len() / 96 == sent / 32 => break,
            Err(_) => client.serve().unwrap(),
        }
    }
    assert_eq!(received.len() / 96, sent / 32);
    assert!(
        received
            .chunks_exact(96)
            .all(|reply| reply[0] == 7 && reply[4] == 96)
    );
}

#[test]
fn garbage_ends_the_session_or_is_refused() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..300 {
        let mut client = Client::negotiated();
        client.stream.set_nonblocking(true).unwrap();
        for _ in 0..20 {
            let payload: Vec<u8> = (0..next() % 64).map(|_| (next() % 4) as u8 * 16).collect();
            let mut bytes = message(1, (next() % 20) as u16, (next() % 64) as u32, &payload);
            if next() % 8 == 0 {
                bytes.truncate((next() % 80) as usize);
            }
            if client.stream.write_all(&bytes).is_err() || client.serve().is_err() {
                break;
            }
            let _ = client.stream.read(&mut [0; 4096]);
        }
    }
}

#[test]
fn a_client_that_has_left_is_known_at_once_and_what_it_sent_is_served() {
    let mut client = Client::negotiated();
    assert!(!client.session.has_hung_up());
    client.send(0, 10, 0x10, &[&access(8, 0, 1)[..], &[42]].concat(), &[]);
    assert!(!client.session.has_hung_up());
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut client.stream, other));
    assert!(client.session.has_hung_up());
    client.serve().unwrap();
    assert_eq!(client.device.bytes[8], 42);
    assert!(client.session.has_hung_up());
    assert!(matches!(client.serve(), Err(Closed::ByClient)));
}

#[test]
fn a_client_that_leaves_ends_the_session_at_any_byte() {
    let bytes = message(1, 9, 0, &access(0, 0, 4));
    for cut in 0..=bytes.len() {
        let mut client = Client::negotiated();
        client.stream.write_all(&bytes[..cut]).unwrap();
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
        let ended = (0..4).find_map(|_| client.serve().err());
        assert!(matches!(ended, Some(Closed::ByClient)), "{cut}: {ended:?}");
    }
}

#[test]
fn requests_whose_ids_are_all_zero_are_answered_in_order() {
    let mut client = Client::negotiated();
    let requests = [
        (4, words(&[16, 0, 0, 0])),
        (9, access(0, 0, 4)),
        (9, access(99, 0, 4)),
        (10, [&access(8, 0, 1)[..], &[5]].concat()),
        (77, vec![]),
        (9, access(8, 0, 1)),
        (13, vec![]),
        (9, access(8, 0, 1)),
    ];
    let bytes: Vec<_> = requests
        .iter()
        .flat_map(|(command, payload)| message(0, *command, 0, payload))
        .collect();
    client.stream.write_all(&bytes).unwrap();
    client.serve().unwrap();
    let replies: Vec<_> = requests.iter().map(|_| client.receive()).collect();
    for (reply, (command, _)) in replies.iter().zip(&requests) {
        assert_eq!((reply.id, reply.command), (0, *command));
    }
    assert_eq!(replies[2].error, Errno::EINVAL as u32);
    assert_eq!(replies[4].error, Errno::ENOTSUP as u32);
    assert_eq!(replies[5].payload.last(), Some(&5));
    assert_eq!(replies[7].payload.last(), Some(&0), "it was reset before");
}

/// A session that is waited for by this thread, while `client` talks to it in another.
fn wait_for(
    mut client: Client,
    talk: impl FnOnce(UnixStream) + Send + 'static,
) -> (Session, Scratch) {
    let stream = client.stream.try_clone().unwrap();
    let talking = std::thread::spawn(move || talk(stream));
    drop(client.stream);
    while client.session.wait(&mut client.device).is_ok() {}
    talking.join().unwrap();
    (client.session, client.device)
}

#[test]
fn a_session_that_is_waited_for_answers_what_comes() {
    for spin in [Duration::ZERO, Duration::from_millis(1)] {
        let mut client = Client::connect();
        client.session.set_spin(spin);
        let (_, device) = wait_for(client, |mut stream| {
            stream.write_all(&message(1, 1, 0, &[0, 0, 1, 0])).unwrap();
            stream.read_exact(&mut [0; 20]).unwrap();
            for value in 0..20 {
                let write = [&access(8, 0, 1)[..], &[value]].concat();
                let read = message(0, 9, 0, &access(8, 0, 1));
                let bytes = [message(0, 10, 0x10, &write), read].concat();
                // In two pieces, one of which comes late, now and then.
                let (first, second) = bytes.split_at(usize::from(value) * 3);
                stream.write_all(first).unwrap();
                std::thread::sleep(Duration::from_millis(u64::from(value % 4)));
                stream.write_all(second).unwrap();
                let mut reply = [0; 33];
                stream.read_exact(&mut reply).unwrap();
                assert_eq!(reply[32], value);
            }
        });
        assert_eq!(device.bytes[8], 19);
    }
}

#[test]
fn a_session_that_is_waited_for_goes_on_when_the_client_takes_its_replies() {
    let client = Client::negotiated();
    wait_for(client, |stream| {
        // More replies than fit anywhere.
        let request = message(7, 9, 0, &access(0, 0, 64)).repeat(20_000);
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&request).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let mut reply = [0; 96];
        for _ in 0..20_000 {
            (&stream).read_exact(&mut reply).unwrap();
            assert_eq!(reply[..2], [7, 0]);
        }
        writing.join().unwrap();
    });
}

#[test]
fn a_session_that_spins_sleeps_when_its_time_is_over() {
    use nix::time::{ClockId, clock_gettime};
    let mut client = Client::negotiated();
    client.session.set_spin(Duration::from_millis(10));
    let processor = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let before = processor();
    wait_for(client, |mut stream| {
        for _ in 0..2 {
            stream
                .write_all(&message(0, 9, 0, &access(0, 0, 4)))
                .unwrap();
            stream.read_exact(&mut [0; 36]).unwrap();
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    assert!(processor() - before < Duration::from_millis(500));
}

#[test]
fn what_came_together_is_answered_together_and_descriptors_begin_a_packet() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    // Packets that keep their boundaries: one for each sendmsg.
    let flags = SockFlag::empty();
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
    let mut stream = UnixStream::from(ours);
    let mut mapped = Region::new(4096);
    mapped.mapping = Some(Mapping {
        file: File::open("/dev/zero").unwrap().into(),
        offset_bytes: 0,
        areas: Vec::new(),
    });
    let mut client = Client::connect();
    client.device.regions = [Region::new(64), mapped];
    let mut session = Session::new(theirs.into(), &client.device, Instant::now()).unwrap();
    let mut received = |request: &[u8]| {
        stream.write_all(request).unwrap();
        session.wait(&mut client.device).unwrap();
        let mut buffer = vec![0; 1 << 16];
        stream.set_nonblocking(true).unwrap();
        let sizes: Vec<_> = std::iter::from_fn(|| stream.read(&mut buffer).ok()).collect();
        stream.set_nonblocking(false).unwrap();
        sizes
    };
    assert_eq!(received(&message(1, 1, 0, &[0, 0, 1, 0])), [20]);
    let read = message(2, 9, 0, &access(0, 0, 4));
    let write = message(0, 10, 0x10, &[&access(0, 0, 1)[..], &[1]].concat());
    assert_eq!(
        received(&[read.clone(), write].concat().repeat(16)),
        [16 * 36]
    );
    let info = message(3, 5, 0, &words(&[32, 0, 1, 0, 0, 0, 0, 0]));
    let mixed = [&read[..], &read, &info, &read, &info].concat();
    assert_eq!(received(&mixed), [2 * 36, 48 + 36, 48]);
}

#[test]
fn a_client_that_does_not_take_descriptors_does_not_exhaust_ours() {
    use std::os::unix::fs::MetadataExt;
    let mut client = Client::negotiated();
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let inode = file.metadata().unwrap().ino();
    // Other tests have other files open.
    let open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let files = fds.filter_map(|fd| fd.path().metadata().ok());
        files.filter(|file| file.ino() == inode).count()
    };
    let mut mapped = Region::new(4096);
    mapped.mapping = Some(Mapping {
        file: file.into(),
        offset_bytes: 0,
        areas: Vec::new(),
    });
    client.device.regions = [Region::new(64), mapped];
    let request = message(3, 5, 0, &words(&[32, 0, 1, 0, 0, 0, 0, 0]));
    let mut most = 0;
    let mut sent = 0;
    while !client.session.is_blocked() {
        client.stream.write_all(&request.repeat(100)).unwrap();
        sent += 100;
        client.serve().unwrap();
        most = most.max(open());
    }
    assert!(most < 40, "{most}");
    // And all are answered in the end.
    for _ in 0..sent {
        let mut reply = [0; 48];
        client.stream.set_nonblocking(true).unwrap();
        while client.stream.read(&mut reply).is_err() {
            client.serve().unwrap();
        }
        assert_eq!((reply[0], reply[12]), (3, 0));
    }
    client.serve().unwrap();
    assert!(!client.session.wants_write());
    assert_eq!(open(), 1);
}
