//! VERSION, in the bytes that clients send, and what the limits that it sets lead to.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

#[path = "support/wire.rs"]
mod wire;

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::errno::Errno;
use serde_json::{Value, json};
use vfio_user::{Closed, Device, IrqInfo, Lent, Region, Session};

struct Trivial([Region; 1]);

impl Device for Trivial {
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
    fn write(&mut self, _: &mut Lent, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn reset(&mut self, _: &mut Lent) {}
}

struct Client {
    stream: UnixStream,
    session: Session,
    device: Trivial,
}

impl Client {
    fn connect() -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let timeout = Some(Duration::from_secs(30));
        stream.set_read_timeout(timeout).unwrap();
        let device = Trivial([Region::new(4 << 20)]);
        let session = Session::new(theirs, &device, Instant::now()).unwrap();
        Self {
            stream,
            session,
            device,
        }
    }

    fn serve(&mut self) -> Result<(), Closed> {
        self.session.serve(&mut self.device)
    }

    fn send(&self, command: u16, flags: u32, payload: &[u8], fds: &[RawFd]) {
        wire::send(&self.stream, &request(command, flags, payload), fds);
    }

    /// Error, payload and descriptors of the reply.
    fn receive(&mut self) -> (u32, Vec<u8>, Vec<OwnedFd>) {
        let reply = wire::receive(&self.stream);
        assert_eq!(reply.id, 0x1234, "the id comes back");
        assert_eq!(reply.flags, if reply.error == 0 { 1 } else { 0x21 });
        (reply.error, reply.payload, reply.fds)
    }

    fn call(&mut self, command: u16, payload: &[u8]) -> (u32, Vec<u8>, Vec<OwnedFd>) {
        self.send(command, 0, payload, &[]);
        self.serve().unwrap();
        self.receive()
    }

    /// Proposes a minor version and data; the reply's minor version and capabilities.
    fn propose(&mut self, minor: u8, json: &str) -> (u8, Value) {
        let payload = [&[0, 0, minor, 0], json.as_bytes(), &[0]].concat();
        let (error, reply, _) = self.call(1, &payload);
        assert_eq!((error, &reply[..2]), (0, &[0, 0][..]));
        let json = reply[4..].strip_suffix(&[0]).unwrap();
        let mut value: Value = serde_json::from_slice(json).unwrap();
        (reply[2], value["capabilities"].take())
    }
}

/// A request whose field for an error is not zero, which means nothing.
fn request(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = wire::message(0x1234, command, flags, payload);
    bytes[12..16].fill(0xaa);
    bytes
}

fn access(count: u32) -> Vec<u8> {
    [&[0; 12][..], &count.to_le_bytes()].concat()
}

fn map(address: u64, size: u64) -> Vec<u8> {
    let [address, size] = [address, size].map(u64::to_le_bytes);
    [
        &[32, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &address,
        &size,
    ]
    .concat()
}

#[test]
fn qemu() {
    let mut client = Client::connect();
    let json = r#"{"capabilities": {"max_msg_fds": 16, "pgsizes": 4096, "write_multiple": true, "max_data_xfer_size": 1048576, "max_dma_maps": 65535, "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}}}"#;
    let (minor, ours) = client.propose(0, json);
    assert_eq!(minor, 0);
    assert_eq!(
        ours,
        json!({"max_msg_fds": 16, "pgsizes": 4096, "write_multiple": true, "max_data_xfer_size": 1_048_576, "max_dma_maps": 65535}),
        "no migration: this device has none"
    );
    // What it maps of a PC's first mebibyte, and the flash below 4 GiB: without descriptors, and not all of them in whole
    // pages of a larger size.
    for (address, size) in [
        (0, 0xa0000),
        (0xc0000, 0xb000),
        (0xcb000, 0x3000),
        (0xfffc_0000, 0x40000),
    ] {
        assert_eq!(client.call(2, &map(address, size)).0, 0, "{address:#x}");
    }
}

#[test]
fn cloud_hypervisor() {
    let mut client = Client::connect();
    let json = r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}"#;
    let (minor, ours) = client.propose(1, json);
    assert_eq!(minor, 1);
    assert_eq!(
        ours,
        json!({"max_msg_fds": 16, "max_data_xfer_size": 1_048_576})
    );
}

#[test]
fn spdk() {
    let mut client = Client::connect();
    let (error, reply, _) = client.call(1, &[0, 0, 1, 0]);
    assert_eq!((error, &reply[..]), (0, &[0, 0, 1, 0][..]));
}

#[test]
fn maps_that_keep_to_no_page_size_are_taken() {
    let mut client = Client::connect();
    client.propose(1, r#"{"capabilities":{"pgsizes":2097152}}"#);
    assert_eq!(client.call(2, &map(0x1000, 0x1000)).0, 0);
    assert_eq!(client.call(2, &map(0x2001, 0x7ff)).0, 0);
}

#[test]
fn no_more_maps_than_were_agreed_on() {
    let mut client = Client::connect();
    let (_, ours) = client.propose(1, r#"{"capabilities":{"max_dma_maps":2}}"#);
    assert_eq!(ours, json!({"max_dma_maps": 2}));
    for index in 0..2 {
        assert_eq!(client.call(2, &map(index << 12, 0x1000)).0, 0);
    }
    let third = map(0x10_0000, 0x1000);
    assert_eq!(client.call(2, &third).0, Errno::ENOSPC as u32);
}

#[test]
fn another_major_version_is_refused_and_the_client_may_try_again() {
    for major in [1, 255] {
        let mut client = Client::connect();
        assert_eq!(client.call(1, &[major, 0, 0, 0]).0, Errno::EPROTO as u32);
        assert!(client.session.deadline().is_some());
        assert_eq!(client.call(1, &[0, 0, 9, 0]).1, [0, 0, 1, 0]);
        assert!(client.session.deadline().is_none());
        assert_eq!(
            client.call(1, &[0, 0, 1, 0]).0,
            Errno::EINVAL as u32,
            "once only"
        );
    }
}

#[test]
fn data_that_is_wrong_is_refused_and_the_client_may_try_again() {
    let mut client = Client::connect();
    for json in [
        "{\"capabilities\":{\"max_msg_fds\":-1}}\0",
        "{\"capabilities\":{\"max_msg_fds\":\"1\"}}\0",
        "{\"capabilities\":[]}\0",
        "{\"capabilities\":",
        "\u{1}",
    ] {
        let payload = [&[0, 0, 1, 0], json.as_bytes()].concat();
        assert_eq!(client.call(1, &payload).0, Errno::EINVAL as u32, "{json}");
    }
    assert_eq!(client.call(1, &[0, 0]).0, Errno::EINVAL as u32);
    let huge = [&[0, 0, 1, 0][..], &[b' '; 2 << 20]].concat();
    let mut sent = &request(1, 0, &huge)[..];
    client.stream.set_nonblocking(true).unwrap();
    while !sent.is_empty() {
        let count = client.stream.write(sent).unwrap();
        sent = &sent[count..];
        client.serve().unwrap();
    }
    client.stream.set_nonblocking(false).unwrap();
    assert_eq!(client.receive().0, Errno::EMSGSIZE as u32);
    client.send(
        1,
        0,
        &[0, 0, 1, 0],
        &[File::open("/dev/null").unwrap().as_raw_fd()],
    );
    client.serve().unwrap();
    assert_eq!(
        client.receive().0,
        Errno::EINVAL as u32,
        "no descriptor belongs to it"
    );
    let (minor, ours) = client.propose(1, "{}");
    assert_eq!((minor, ours), (1, json!({})));
}

#[test]
fn nothing_is_served_before_version() {
    for command in (0..20).filter(|command| *command != 1) {
        let mut client = Client::connect();
        client.send(command, 0, &[0; 64], &[]);
        assert!(
            matches!(client.serve(), Err(Closed::Protocol(_))),
            "{command}"
        );
    }
}

#[test]
fn a_client_that_wants_no_reply_has_negotiated_all_the_same() {
    let mut client = Client::connect();
    let payload = b"\0\0\x01\0{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}\0";
    client.send(1, 0x10, payload, &[]);
    assert_eq!(client.call(9, &access(4)).1[16..], [7; 4]);
}

#[test]
fn the_twin_socket_comes_with_the_reply() {
    let mut client = Client::connect();
    let payload = b"\0\0\x01\0{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}\0";
    let (error, reply, mut fds) = client.call(1, payload);
    assert_eq!((error, fds.len()), (0, 1));
    let value: Value = serde_json::from_slice(reply[4..].strip_suffix(&[0]).unwrap()).unwrap();
    let twin = &value["capabilities"]["twin_socket"];
    assert_eq!(*twin, json!({"supported": true, "fd_index": 0}));
    let mut twin = UnixStream::from(fds.remove(0));
    drop(client);
    assert_eq!(twin.read(&mut [0]).unwrap(), 0, "it ends with the session");
    for capabilities in [
        r#"{"twin_socket":{"supported":false}}"#,
        r#"{"twin_socket":{"supported":true},"max_msg_fds":0}"#,
        r#"{"twin_socket":{}}"#,
    ] {
        let mut client = Client::connect();
        let (_, ours) = client.propose(1, &format!("{{\"capabilities\":{capabilities}}}"));
        assert_eq!(
            ours["twin_socket"],
            json!({"supported": false}),
            "{capabilities}"
        );
    }
}

#[test]
fn a_transfer_is_at_most_a_mebibyte_whatever_the_client_takes_itself() {
    let mut client = Client::connect();
    client.propose(1, r#"{"capabilities":{"max_data_xfer_size":16}}"#);
    assert_eq!(client.call(9, &access(17)).1[16..], [7; 17]);
    client.send(9, 0, &access(1 << 20), &[]);
    let (mut stream, reader) = (client.stream.try_clone().unwrap(), 16 + 16 + (1 << 20));
    let reading = std::thread::spawn(move || stream.read_exact(&mut vec![0; reader]).unwrap());
    while !reading.is_finished() {
        client.serve().unwrap();
    }
    reading.join().unwrap();
    assert_eq!(
        client.call(9, &access((1 << 20) + 1)).0,
        Errno::EINVAL as u32
    );
}

#[test]
fn more_descriptors_than_a_message_may_have_are_refused() {
    let mut client = Client::connect();
    client.propose(1, r#"{"capabilities":{"max_msg_fds":16}}"#);
    let file = File::open("/dev/null").unwrap();
    for (count, error) in [
        (16, 0),
        (17, Errno::E2BIG as u32),
        (253, Errno::E2BIG as u32),
    ] {
        client.send(9, 0, &access(4), &vec![file.as_raw_fd(); count]);
        client.serve().unwrap();
        assert_eq!(client.receive().0, error, "{count}");
    }
    assert_eq!(client.call(9, &access(4)).0, 0);
}

#[test]
fn version_is_due_in_time() {
    let (_stream, theirs) = UnixStream::pair().unwrap();
    let mut device = Trivial([Region::new(4)]);
    let before = Instant::now() - Duration::from_millis(4950);
    let mut session = Session::new(theirs, &device, before).unwrap();
    let due = session.deadline().unwrap();
    assert_eq!(due - before, Duration::from_secs(5));
    let ended = (0..100).find_map(|_| session.wait(&mut device).err());
    assert!(matches!(ended, Some(Closed::Protocol(_))), "{ended:?}");
    assert!(Instant::now() >= due);
}
