//! A session that is taken apart and put together again, at any byte of a conversation and in another process: the client
//! can't tell.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/wire.rs"]
mod wire;

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::MsgFlags,
    },
};
use serde_json::{Value, json};
use vfio_user::{
    Device, IrqInfo, IrqKind, Lent, Mapping, Migration, NotRestored, Region, Saved, Session,
};
use wire::{message, send, words};

/// A region of 64 bytes of memory, and one with a file to map. Writing byte 0 sets the line, writing byte 1 copies a byte of
/// guest memory from 0x1000 to 0x1001, writing byte 2 a byte from 0x10_0000, which the client serves.
struct Scratch {
    regions: [Region; 2],
    irqs: [IrqInfo; 1],
    bytes: [u8; 64],
}

impl Scratch {
    fn new() -> Self {
        let mut mapped = Region::new(4096);
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        mapped.mapping = Some(Mapping {
            file: file.into(),
            offset_bytes: 0,
            areas: Vec::new(),
        });
        Self {
            regions: [Region::new(64), mapped],
            irqs: [IrqInfo {
                count: 1,
                kind: IrqKind::Level,
            }],
            bytes: [0; 64],
        }
    }
}

impl Device for Scratch {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }
    fn read(&mut self, _: &mut Lent, _: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes[(offset as usize + index) % 64];
        }
        Ok(())
    }
    fn write(&mut self, lent: &mut Lent, _: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let at = offset as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        let mut byte = [0];
        match offset {
            0 => lent.irqs.set_level(0, data[0] == 1),
            1 => {
                lent.read(0x1000, &mut byte).map_err(|_| Errno::EFAULT)?;
                lent.write(0x1001, &byte).map_err(|_| Errno::EFAULT)?;
            }
            2 => {
                lent.read(0x10_0000, &mut byte).map_err(|_| Errno::EFAULT)?;
                self.bytes[3] = byte[0];
            }
            _ => {}
        }
        Ok(())
    }
    fn reset(&mut self, _: &mut Lent) {}
}

/// Takes a session apart, writes it down, and puts it together again.
fn moved(session: Session, device: &mut Scratch) -> Session {
    let Saved { value, fds } = session.into_saved().unwrap();
    let text = serde_json::to_string(&value).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    Session::from_saved(Saved { value, fds }, device, Instant::now()).unwrap()
}

fn access(offset: u64, count: u32) -> Vec<u8> {
    wire::access(offset, 0, count)
}

fn write(id: u16, flags: u32, offset: u64, value: u8) -> Vec<u8> {
    message(id, 10, flags, &[&access(offset, 1)[..], &[value]].concat())
}

fn map(address: u64, size: u64) -> Vec<u8> {
    let [address, size] = [address, size].map(u64::to_le_bytes);
    [&words(&[32, 3, 0, 0])[..], &address, &size].concat()
}

/// What has come by now, and how many descriptors with it.
fn take(stream: &UnixStream, bytes: &mut Vec<u8>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) =
        wire::receive_some(stream, &mut buffer, &mut fds, MsgFlags::MSG_DONTWAIT)
    {
        bytes.extend_from_slice(&buffer[..count]);
    }
    fds
}

/// What a client has: guest memory and an eventfd for the line.
struct Guest {
    memory: File,
    line: EventFd,
}

impl Guest {
    fn new() -> Self {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(0x2000).unwrap();
        memory.write_at(b"guest", 0).unwrap();
        let line = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Self { memory, line }
    }

    /// A conversation in which each message depends on what was before it, with the descriptors of each.
    fn conversation(&self) -> Vec<(Vec<u8>, Vec<RawFd>)> {
        let version = b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":4}}\0";
        let memory = self.memory.as_raw_fd();
        let line = self.line.as_fd().as_raw_fd();
        let mut too_large = message(5, 10, 0, &[0xee; 40]);
        too_large[4..8].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        vec![
            (message(1, 1, 0, version), vec![]),
            (message(2, 2, 0, &map(0x1000, 0x1000)), vec![memory]),
            (message(3, 8, 0, &words(&[20, 0x24, 0, 0, 1])), vec![line]),
            (write(0, 0x10, 0, 1), vec![]),
            (write(4, 0, 1, 9), vec![]),
            (message(6, 5, 0, &words(&[32, 0, 1, 0, 0, 0, 0, 0])), vec![]),
            (message(7, 9, 0, &access(0, 8)), vec![]),
            (message(8, 8, 0, &words(&[20, 0x11, 0, 0, 1])), vec![]),
            (message(9, 9, 0, &access(99, 8)), vec![]),
            (too_large, vec![]),
        ]
    }

    /// Holds the conversation with a session that is moved after `cut` bytes: all replies, and how many descriptors came.
    fn hold(&self, cut: usize) -> (Vec<u8>, usize) {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let mut device = Scratch::new();
        let mut session = Session::new(theirs, &device, Instant::now()).unwrap();
        let mut replies = Vec::new();
        let mut fds = 0;
        let mut at = 0;
        for (bytes, along) in self.conversation() {
            let end = cut.saturating_sub(at).min(bytes.len());
            at += bytes.len();
            if end > 0 {
                send(&stream, &bytes[..end], &along);
                session.serve(&mut device).unwrap();
            }
            if end < bytes.len() {
                if end > 0 || at - bytes.len() == cut {
                    session = moved(session, &mut device);
                }
                let along = if end > 0 { &[][..] } else { &along[..] };
                send(&stream, &bytes[end..], along);
                session.serve(&mut device).unwrap();
            }
            fds += take(&stream, &mut replies).len();
        }
        if at == cut {
            session = moved(session, &mut device);
        }
        // The rest of what was too large, and a request behind it.
        send(&stream, &vec![0xee; 0x20_0000 - 56][..0x1_0000], &[]);
        for _ in 1..(0x20_0000 - 56) / 0x1_0000 {
            session.serve(&mut device).unwrap();
            send(&stream, &[0xee; 0x1_0000], &[]);
        }
        session.serve(&mut device).unwrap();
        send(&stream, &vec![0xee; (0x20_0000 - 56) % 0x1_0000], &[]);
        send(&stream, &message(10, 9, 0, &access(0, 64)), &[]);
        session.serve(&mut device).unwrap();
        fds += take(&stream, &mut replies).len();
        (replies, fds)
    }
}

#[test]
fn a_conversation_goes_on_at_any_byte() {
    let guest = Guest::new();
    let total: usize = guest
        .conversation()
        .iter()
        .map(|(bytes, _)| bytes.len())
        .sum();
    let expected = guest.hold(usize::MAX);
    assert_eq!(expected.1, 1, "the region's file");
    assert_eq!(guest.line.read(), Ok(2), "raised, and again when unmasked");
    for cut in 0..=total {
        guest.memory.write_at(&[b'g', 0], 0).unwrap();
        assert_eq!(guest.hold(cut), expected, "cut at {cut}");
        assert_eq!(guest.line.read(), Ok(2), "cut at {cut}");
        let mut bytes = [0; 2];
        guest.memory.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"gg", "cut at {cut}");
    }
}

/// A session with a client that said VERSION, and may have a twin socket.
fn negotiated(device: &Scratch, capabilities: &str) -> (UnixStream, Session) {
    let (stream, theirs) = UnixStream::pair().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let session = Session::new(theirs, device, Instant::now()).unwrap();
    let version = format!("\0\0\x01\0{{\"capabilities\":{capabilities}}}\0");
    send(&stream, &message(1, 1, 0, version.as_bytes()), &[]);
    (stream, session)
}

#[test]
fn replies_that_wait_leave_later_with_their_descriptors() {
    let mut device = Scratch::new();
    let (stream, mut session) = negotiated(&device, r#"{"max_msg_fds":4}"#);
    session.serve(&mut device).unwrap();
    take(&stream, &mut Vec::new());
    let mut sent = 0_u16;
    // A client that asks and does not read.
    while !session.is_blocked() {
        let region = message(sent, 5, 0, &words(&[32, 0, 1, 0, 0, 0, 0, 0]));
        let read = message(
            sent + 1,
            9,
            0,
            &[&0_u64.to_le_bytes()[..], &words(&[1, 4096])].concat(),
        );
        send(&stream, &[region, read].concat(), &[]);
        sent += 2;
        session.serve(&mut device).unwrap();
    }
    // Requests that are not served before it reads.
    for id in 0..20 {
        send(&stream, &message(1000 + id, 9, 0, &access(0, 4)), &[]);
    }
    let mut received = Vec::new();
    let mut fds = 0;
    for _ in 0..10_000 {
        session = moved(session, &mut device);
        fds += take(&stream, &mut received).len();
        session.serve(&mut device).unwrap();
        if !session.wants_write() && !session.has_requests() {
            session.serve(&mut device).unwrap();
            fds += take(&stream, &mut received).len();
            break;
        }
    }
    assert_eq!(fds, usize::from(sent) / 2);
    let mut ids = Vec::new();
    let mut rest = &received[..];
    while rest.len() >= 16 {
        let size = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        ids.push(u16::from_le_bytes([rest[0], rest[1]]));
        rest = &rest[size..];
    }
    assert_eq!(ids, (0..sent).chain(1000..1020).collect::<Vec<_>>());
}

#[test]
fn the_twin_socket_and_memory_by_messages_go_along() {
    let mut device = Scratch::new();
    let (stream, mut session) = negotiated(&device, r#"{"twin_socket":{"supported":true}}"#);
    send(&stream, &message(2, 2, 0, &map(0x10_0000, 0x1000)), &[]);
    for _ in 0..2 {
        session.serve(&mut device).unwrap();
    }
    let mut twin: UnixStream = take(&stream, &mut Vec::new()).remove(0).into();
    let client = std::thread::spawn(move || {
        for value in [7, 8] {
            let mut asked = [0; 32];
            twin.read_exact(&mut asked).unwrap();
            assert_eq!((asked[2], asked[0]), (11, value - 7), "ids go on");
            let id = u16::from_le_bytes([asked[0], asked[1]]);
            let answer = message(id, 11, 1, &[&asked[16..], &[value]].concat());
            twin.write_all(&answer).unwrap();
        }
        twin
    });
    for value in [7, 8] {
        send(&stream, &write(3, 0, 2, 1), &[]);
        session.serve(&mut device).unwrap();
        assert_eq!(device.bytes[3], value);
        session = moved(session, &mut device);
    }
    client.join().unwrap();
}

#[test]
fn requests_that_have_not_had_their_turn_go_along() {
    let mut device = Scratch::new();
    let (stream, mut session) = negotiated(&device, "{}");
    send(&stream, &message(2, 2, 0, &map(0x10_0000, 0x1000)), &[]);
    session.serve(&mut device).unwrap();
    take(&stream, &mut Vec::new());
    let mut client = stream.try_clone().unwrap();
    let client = std::thread::spawn(move || {
        let mut asked = [0; 32];
        client.read_exact(&mut asked).unwrap();
        // Before the answer: a request, one that is too large, and another.
        let answer = message(0, 11, 1, &[&asked[16..], &[5]].concat());
        let large = message(21, 10, 0, &vec![0; 2 << 20]);
        let requests = [write(20, 0, 8, 1), large, write(22, 0, 8, 2), answer];
        client.write_all(&requests.concat()).unwrap();
    });
    // The device works by itself.
    let mut byte = [0];
    session.lent().read(0x10_0000, &mut byte).unwrap();
    assert_eq!(byte, [5]);
    client.join().unwrap();
    assert!(session.has_requests());
    let mut session = moved(session, &mut device);
    assert!(session.has_requests());
    send(&stream, &write(23, 0, 8, 3), &[]);
    session.serve(&mut device).unwrap();
    let mut replies = Vec::new();
    take(&stream, &mut replies);
    let (mut rest, mut seen) = (&replies[..], Vec::new());
    while !rest.is_empty() {
        seen.push((rest[0], rest[12]));
        rest = &rest[usize::from(rest[4])..];
    }
    let too_large = Errno::EMSGSIZE as u8;
    assert_eq!(seen, [(20, 0), (21, too_large), (22, 0), (23, 0)]);
    assert_eq!(device.bytes[8], 3);
}

#[test]
fn a_client_that_has_not_negotiated_may_still() {
    let mut device = Scratch::new();
    let (stream, theirs) = UnixStream::pair().unwrap();
    let session = Session::new(theirs, &device, Instant::now()).unwrap();
    let mut session = moved(session, &mut device);
    assert!(session.deadline().is_some());
    send(&stream, &message(1, 1, 0, &[0, 0, 1, 0]), &[]);
    session.serve(&mut device).unwrap();
    assert!(session.deadline().is_none());
}

/// A device that can be moved, and says whether it runs.
struct Movable {
    scratch: Scratch,
    is_running: bool,
}

impl Device for Movable {
    fn regions(&self) -> &[Region] {
        self.scratch.regions()
    }
    fn irqs(&self) -> &[IrqInfo] {
        self.scratch.irqs()
    }
    fn read(&mut self, _: &mut Lent, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn write(&mut self, _: &mut Lent, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn reset(&mut self, _: &mut Lent) {}
    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Movable {
    fn set_running(&mut self, _: &mut Lent, running: bool) {
        self.is_running = running;
    }
    fn save(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(b"the device's state".to_vec())
    }
    fn load(&mut self, _: &mut Lent, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
}

#[test]
fn a_migration_goes_on_where_it_was() {
    let device = || Movable {
        scratch: Scratch::new(),
        is_running: true,
    };
    let mut first = device();
    let (stream, mut session) = negotiated(&first.scratch, "{}");
    // To STOP_COPY, and a part of the state.
    send(
        &stream,
        &message(2, 16, 0, &words(&[16, 2 << 16 | 2, 3, 0])),
        &[],
    );
    send(&stream, &message(3, 17, 0, &words(&[64, 4])), &[]);
    session.serve(&mut first).unwrap();
    assert!(!first.is_running);
    take(&stream, &mut Vec::new());
    let saved = session.into_saved().unwrap();
    let mut second = device();
    let mut session = Session::from_saved(saved, &mut second, Instant::now()).unwrap();
    assert!(!session.is_running() && !second.is_running);
    send(&stream, &message(4, 17, 0, &words(&[64, 40])), &[]);
    session.serve(&mut second).unwrap();
    let mut replies = Vec::new();
    take(&stream, &mut replies);
    assert_eq!(&replies[24..], b"device's state");
    // One that can't be moved can't be in the middle of it.
    let saved = session.into_saved().unwrap();
    let error = Session::from_saved(saved, &mut Scratch::new(), Instant::now()).unwrap_err();
    assert!(error.to_string().contains("migration"), "{error}");
}

/// Sends text and descriptors to another process.
fn hand_over(stream: &UnixStream, saved: &Saved) {
    let text = serde_json::to_vec(&saved.value).unwrap();
    let fds: Vec<_> = saved.fds.iter().map(AsRawFd::as_raw_fd).collect();
    send(stream, &(text.len() as u64).to_le_bytes(), &fds);
    (&*stream).write_all(&text).unwrap();
}

#[test]
fn another_process_takes_over_under_a_live_client() {
    let guest = Guest::new();
    let mut device = Scratch::new();
    let (stream, mut session) = negotiated(&device, r#"{"max_msg_fds":4}"#);
    let conversation = guest.conversation();
    for (bytes, fds) in &conversation[1..4] {
        send(&stream, bytes, fds);
        session.serve(&mut device).unwrap();
    }
    session.serve(&mut device).unwrap();
    assert_eq!(guest.line.read(), Ok(1));
    // A request of which the other process gets the end.
    let request = message(20, 9, 0, &access(0, 4));
    send(&stream, &request[..21], &[]);
    session.serve(&mut device).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "takes_over", "--ignored"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    hand_over(&ours, &session.into_saved().unwrap());
    drop(device);
    take(&stream, &mut Vec::new());
    send(&stream, &request[21..], &[]);
    let mut reply = [0; 36];
    (&stream).read_exact(&mut reply).unwrap();
    assert_eq!(
        (reply[0], &reply[32..]),
        (20, &[0xc0; 4][..]),
        "of another device"
    );
    // Guest memory and interrupts are there.
    send(&stream, &write(4, 0, 1, 9), &[]);
    let mut reply = [0; 32];
    (&stream).read_exact(&mut reply).unwrap();
    let mut bytes = [0; 2];
    guest.memory.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"gg");
    send(
        &stream,
        &message(8, 8, 0, &words(&[20, 0x11, 0, 0, 1])),
        &[],
    );
    let mut reply = [0; 16];
    (&stream).read_exact(&mut reply).unwrap();
    assert_eq!(
        guest.line.read(),
        Ok(1),
        "still asserted: unmasked means again"
    );
    drop(stream);
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "the other process: run by the test above"]
fn takes_over() {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut stream = UnixStream::from(stdin);
    let mut len = [0; 8];
    let mut fds = Vec::new();
    let received = wire::receive_some(&stream, &mut len, &mut fds, MsgFlags::empty());
    assert_eq!(received, Ok(8));
    let mut text = vec![0; u64::from_le_bytes(len) as usize];
    stream.read_exact(&mut text).unwrap();
    let value = serde_json::from_slice(&text).unwrap();
    let mut device = Scratch::new();
    device.bytes = [0xc0; 64];
    let mut session =
        Session::from_saved(Saved { value, fds }, &mut device, Instant::now()).unwrap();
    while session.wait(&mut device).is_ok() {}
}

/// A saved session in which there is something of everything, with the client's end.
fn something_of_everything(guest: &Guest) -> (UnixStream, Value, Vec<OwnedFd>) {
    let mut device = Scratch::new();
    let (stream, mut session) = negotiated(
        &device,
        r#"{"max_msg_fds":4,"twin_socket":{"supported":true}}"#,
    );
    for (bytes, fds) in &guest.conversation()[1..6] {
        send(&stream, bytes, fds);
        session.serve(&mut device).unwrap();
    }
    while !session.is_blocked() {
        let region = message(1, 5, 0, &words(&[32, 0, 1, 0, 0, 0, 0, 0]));
        let read = message(
            2,
            9,
            0,
            &[&0_u64.to_le_bytes()[..], &words(&[1, 4096])].concat(),
        );
        send(&stream, &[region, read].concat(), &[]);
        session.serve(&mut device).unwrap();
    }
    let saved = session.into_saved().unwrap();
    (
        stream,
        serde_json::to_value(&saved.value).unwrap(),
        saved.fds,
    )
}

/// Where the values are that have no parts.
fn leaves(value: &Value, path: &str, paths: &mut Vec<String>) {
    match value {
        Value::Object(parts) => {
            for (name, part) in parts {
                leaves(part, &format!("{path}/{name}"), paths);
            }
        }
        Value::Array(parts) if !parts.is_empty() => {
            paths.push(path.to_owned());
            for (index, part) in parts.iter().enumerate().take(3) {
                leaves(part, &format!("{path}/{index}"), paths);
            }
        }
        _ => paths.push(path.to_owned()),
    }
}

/// Puts it together, if that can be, and has it serve.
fn restore(value: Value, fds: &[OwnedFd]) -> Result<(), NotRestored> {
    let Ok(value) = serde_json::from_value(value) else {
        return Ok(());
    };
    let fds = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
    let mut device = Scratch::new();
    let mut session = Session::from_saved(Saved { value, fds }, &mut device, Instant::now())?;
    for _ in 0..3 {
        if session.serve(&mut device).is_err() {
            break;
        }
    }
    Ok(())
}

#[test]
fn values_that_can_not_be_are_errors_and_never_more() {
    let guest = Guest::new();
    let (_stream, value, fds) = something_of_everything(&guest);
    restore(value.clone(), &fds).unwrap();
    let mut paths = Vec::new();
    leaves(&value, "", &mut paths);
    assert!(paths.len() > 30, "{paths:?}");
    let oversized = [7, 0, 10, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0];
    let base64 = "BwAKAP///38AAAAAAAAAAA==";
    assert_eq!(oversized.len(), 16);
    for path in &paths {
        for bad in [
            json!(0),
            json!(1),
            json!(17),
            json!(-1),
            json!(u32::MAX),
            json!(u64::MAX),
            json!(true),
            json!(false),
            json!(null),
            json!(""),
            json!(base64),
            json!("BwAKAAEAAAA"),
            json!("!"),
            json!([]),
            json!([0]),
            json!([16, 0]),
            json!([[0, 1]]),
            json!([[5, 300]]),
            json!({}),
        ] {
            let mut changed = value.clone();
            *changed.pointer_mut(path).unwrap() = bad;
            let _ = restore(changed, &fds);
        }
    }
    // Pairs that go together.
    for (bytes, refused) in [
        (base64, json!([0])),
        (base64, json!([4])),
        (base64, json!([0, 16])),
        ("", json!([0])),
    ] {
        let mut changed = value.clone();
        *changed.pointer_mut("/link/main/inbox/bytes").unwrap() = json!(bytes);
        *changed.pointer_mut("/link/main/inbox/refused").unwrap() = refused.clone();
        let restored = restore(changed, &fds);
        assert_eq!(
            restored.is_ok(),
            bytes == base64 && refused == json!([0]),
            "{refused}"
        );
    }
    for (path, bad) in [
        ("/negotiated/minor", json!(2)),
        ("/negotiated/max_transfer_bytes", json!((1 << 20) + 1)),
        ("/negotiated/page_sizes", json!(0)),
        ("/negotiated/page_sizes", json!(0x1200)),
        ("/negotiated/max_dma_maps", json!(65_536)),
        ("/negotiated/migration_page_bytes", json!(2048)),
        ("/negotiated/migration_page_bytes", json!(12_288)),
        ("/negotiated/max_bitmap_bytes", json!(1_u64 << 40)),
        ("/negotiated/twin_socket", json!(false)),
        ("/negotiated", json!(null)),
        ("/link/twin", json!(null)),
        ("/link/main/inbox/fds", json!([1])),
        ("/link/main/inbox/skip", json!(1_u64 << 32)),
        ("/link/main/outbox/bytes", json!("")),
        ("/link/main/outbox/fds", json!([[1 << 30, 1]])),
    ] {
        let mut changed = value.clone();
        *changed.pointer_mut(path).unwrap() = bad;
        let restored = restore(changed, &fds);
        assert!(matches!(restored, Err(NotRestored::Part { .. })), "{path}");
    }
    let mut changed = value.clone();
    changed["version"] = json!(2);
    assert!(matches!(
        restore(changed, &fds),
        Err(NotRestored::Version(2))
    ));
}

#[test]
fn descriptors_that_are_missing_or_others_are_errors() {
    let guest = Guest::new();
    let (_stream, value, fds) = something_of_everything(&guest);
    for count in 0..fds.len() {
        assert!(restore(value.clone(), &fds[..count]).is_err(), "{count}");
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut others: Vec<_> = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        others[count] = file();
        let _ = restore(value.clone(), &others);
        others.push(file());
        assert!(restore(value.clone(), &others).is_err(), "one too many");
        others.rotate_left(1);
        let _ = restore(value.clone(), &others);
    }
    for stream in [
        OwnedFd::from(
            std::os::unix::net::UnixListener::bind(tempfile::tempdir().unwrap().path().join("s"))
                .unwrap(),
        ),
        OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap()),
        OwnedFd::from(std::os::unix::net::UnixDatagram::pair().unwrap().0),
    ] {
        let mut others: Vec<_> = fds.iter().map(|fd| fd.try_clone().unwrap()).collect();
        others[0] = stream;
        let error = restore(value.clone(), &others).unwrap_err().to_string();
        assert!(error.contains("connection"), "{error}");
    }
}
