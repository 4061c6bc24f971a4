//! The client against a server that says what a test tells it to: bytes by the specification, some of them wrong.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test ends where something fails, and one range is meant"
)]

#[path = "support/peer.rs"]
mod peer;
#[path = "support/wire.rs"]
mod wire;

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{errno::Errno, unistd};
use peer::{Peer, server};
use vfio_user::{
    Access, MigrationState,
    client::{
        Action, Buffer, Capabilities, Client, Error, Feature, Interrupts, Memory, Method,
        MultiWrite, Options,
    },
};
use wire::{Message, longs, words};

fn connect_with(stream: UnixStream, options: &Options) -> Result<Client<Buffer>, Error> {
    let memory = Buffer {
        address: 0x1000,
        bytes: (0..=255).collect::<Vec<u8>>().repeat(5000),
    };
    Client::with_memory(stream, options, memory)
}

fn connect(stream: UnixStream) -> Client<Buffer> {
    connect_with(stream, &Options::default()).unwrap()
}

/// A client whose one request gets this reply.
fn answered<T>(payload: Vec<u8>, request: impl FnOnce(&mut Client<Buffer>) -> T) -> (T, Message) {
    let (stream, server) = server(move |peer| {
        peer.negotiate("{}", &[]);
        let request = peer.grant(&payload, &[]);
        peer.wait_for_the_end();
        request
    });
    let mut client = connect(stream);
    let result = request(&mut client);
    drop(client);
    (result, server.join().unwrap())
}

fn protocol<T>(result: Result<T, Error>) -> &'static str {
    match result {
        Err(Error::Protocol(why)) => why,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn version_proposes_everything_and_takes_what_comes_back() {
    let (stream, server) = server(|peer| {
        let caps = r#"{"max_data_xfer_size":4096,"max_msg_fds":3,"future":{}}"#;
        peer.negotiate(caps, &[])
    });
    let client = connect(stream);
    assert_eq!(client.negotiated().max_transfer_bytes(), 4096);
    assert_eq!(client.negotiated().max_message_fds(), 3);
    assert!(!client.negotiated().twin_socket);
    let request = server.join().unwrap();
    assert_eq!((request.command, request.flags), (1, 0));
    assert_eq!(request.payload[..4], [0, 0, 1, 0]);
    assert_eq!(request.payload.last(), Some(&0));
    let data = &request.payload[4..request.payload.len() - 1];
    let data: serde_json::Value = serde_json::from_slice(data).unwrap();
    assert_eq!(
        data["capabilities"],
        serde_json::json!({
            "max_msg_fds": 16, "max_data_xfer_size": 1 << 20, "max_dma_maps": 65535, "pgsizes": 4096,
            "twin_socket": {"supported": true}, "write_multiple": true,
            "migration": {"pgsize": 4096, "max_bitmap_size": 1 << 20},
        })
    );
}

#[test]
fn version_data_is_optional() {
    let (stream, server) = server(|peer| peer.grant(&[0, 0, 0, 0], &[]));
    let options = Options {
        version: (0, 0),
        capabilities: None,
        ..Options::default()
    };
    let client = connect_with(stream, &options).unwrap();
    assert_eq!(
        (client.negotiated().major, client.negotiated().minor),
        (0, 0)
    );
    assert_eq!(client.negotiated().max_transfer_bytes(), 1 << 20);
    assert_eq!(server.join().unwrap().payload, [0, 0, 0, 0]);
}

#[test]
fn maps_are_laid_out_as_specified() {
    let read = Access {
        read: true,
        write: false,
    };
    let file = tempfile::tempfile().unwrap();
    let (result, request) = answered(vec![], |client| {
        client.dma_map(0x1000, 0x2000, read, Some((file.as_fd(), 0x3000)))
    });
    result.unwrap();
    let expected = [words(&[32, 1]), longs(&[0x3000, 0x1000, 0x2000])].concat();
    assert_eq!((request.command, request.payload), (2, expected));
    assert_eq!(request.fds.len(), 1);
    let reply = [words(&[24, 0]), longs(&[0x1000, 0x2000])].concat();
    let (result, request) = answered(reply.clone(), |client| client.dma_unmap(0x1000, 0x2000));
    result.unwrap();
    assert_eq!((request.command, request.payload), (3, reply));
    let reply = [words(&[24, 2]), longs(&[0, 0x7000])].concat();
    let (result, request) = answered(reply, |client| client.dma_unmap_all());
    assert_eq!(result.unwrap(), 0x7000);
    assert_eq!(request.payload, [words(&[24, 2]), longs(&[0, 0])].concat());
}

#[test]
fn unmapping_tells_which_pages_were_written() {
    // 65 pages: two words of bits.
    let head = [words(&[56, 1]), longs(&[0x1000, 65 << 12, 4096, 16])].concat();
    let reply = [head.clone(), longs(&[1 << 63, 1])].concat();
    let unmap = |client: &mut Client<Buffer>| client.dma_unmap_dirty(0x1000, 65 << 12, 4096);
    let (dirty, request) = answered(reply, unmap);
    assert_eq!(dirty.unwrap(), [1 << 63, 1]);
    assert_eq!((request.command, request.payload), (3, head.clone()));
    assert!(protocol(answered(head, unmap).0).contains("bitmap"));
}

#[test]
fn several_writes_go_in_one_message() {
    let (done, request) = answered(longs(&[2]), |client| {
        client.region_write_multi(&[
            MultiWrite {
                region: 1,
                offset: 0x10,
                data: &[1, 2, 3, 4],
            },
            MultiWrite {
                region: 2,
                offset: 0x20,
                data: &[5; 8],
            },
        ])
    });
    assert_eq!((done.unwrap(), request.command), (2, 15));
    let expected = [
        longs(&[2, 0x10]),
        words(&[1, 4]),
        vec![1, 2, 3, 4, 0, 0, 0, 0],
        longs(&[0x20]),
        words(&[2, 8]),
        vec![5; 8],
    ];
    assert_eq!(request.payload, expected.concat());
    let one = |client: &mut Client<Buffer>| client.region_write_multi(&[]);
    assert!(protocol(answered(longs(&[1]), one).0).contains("more was written"));
}

#[test]
fn interrupts_are_laid_out_as_specified() {
    let (result, request) = answered(vec![], |client| {
        client.set_irqs(2, 5, Action::Mask, Interrupts::Chosen(&[true, false]))
    });
    result.unwrap();
    assert_eq!(request.command, 8);
    let expected = [words(&[22, 0x0a, 2, 5, 2]), vec![1, 0]].concat();
    assert_eq!(request.payload, expected);
    let event = tempfile::tempfile().unwrap();
    let (result, request) = answered(vec![], |client| {
        let events = [event.as_fd(); 3];
        client.set_irqs(2, 1, Action::Unmask, Interrupts::Eventfds(&events))
    });
    result.unwrap();
    assert_eq!(request.payload, words(&[20, 0x14, 2, 1, 3]));
    assert_eq!(request.fds.len(), 3);
}

#[test]
fn features_are_laid_out_as_specified() {
    let probe = |client: &mut Client<Buffer>| client.feature_probe(Feature(7), Method::Set);
    let (result, request) = answered(words(&[8, 0x6_0007]), probe);
    result.unwrap();
    let expected = words(&[8, 0x6_0007]);
    assert_eq!((request.command, request.payload), (16, expected));

    let reply = [words(&[16, 0x1_0001]), longs(&[5])].concat();
    let (flags, request) = answered(reply, |client| client.migration_flags());
    let flags = flags.unwrap();
    assert!(flags.stop_copy && !flags.p2p && flags.pre_copy);
    assert_eq!(request.payload, words(&[16, 0x1_0001]));

    let reply = words(&[16, 0x1_0002, 77, 0]);
    let (state, _) = answered(reply, |client| client.migration_state());
    assert_eq!(state.unwrap(), MigrationState(77));
    let reply = words(&[16, 0x2_0002, 3, 0]);
    let (result, request) = answered(reply.clone(), |client| {
        client.set_migration_state(MigrationState::STOP_COPY)
    });
    result.unwrap();
    assert_eq!(request.payload, reply);
    let other = |client: &mut Client<Buffer>| client.migration_state();
    let reply = words(&[16, 0x1_0003, 1, 0]);
    assert!(protocol(answered(reply, other).0).contains("another feature"));
}

#[test]
fn dirty_pages_are_logged_and_reported() {
    let request = |page: u64| {
        let head = [words(&[40, 0x2_0006]), longs(&[page]), words(&[1, 0])];
        [head.concat(), longs(&[0x1000, 0x3000])].concat()
    };
    let (page, sent) = answered(request(8192), |client| {
        client.dma_logging_start(4096, &[0x1000..0x4000])
    });
    assert_eq!((page.unwrap(), sent.payload), (8192, request(4096)));
    let (result, sent) = answered(words(&[8, 0x2_0007]), |client| client.dma_logging_stop());
    result.unwrap();
    assert_eq!(sent.payload, words(&[8, 0x2_0007]));
    let head = [words(&[40, 0x1_0008]), longs(&[0x1000, 0x3000, 4096])].concat();
    let reply = [head.clone(), longs(&[0b101])].concat();
    let report = |client: &mut Client<Buffer>| client.dma_logging_report(0x1000, 0x3000, 4096);
    let (dirty, sent) = answered(reply, report);
    assert_eq!((dirty.unwrap(), sent.payload), (vec![0b101], head.clone()));
    assert!(protocol(answered(head, report).0).contains("bitmap"));
}

#[test]
fn migration_data_is_a_stream() {
    let reply = [words(&[11, 3]), b"end".to_vec()].concat();
    let (data, request) = answered(reply, |client| client.mig_data_read(4));
    assert_eq!((data.unwrap(), request.command), (b"end".to_vec(), 17));
    assert_eq!(request.payload, words(&[12, 4]));
    let (result, request) = answered(vec![], |client| client.mig_data_write(b"data"));
    result.unwrap();
    let expected = [words(&[12, 4]), b"data".to_vec()].concat();
    assert_eq!((request.command, request.payload), (18, expected));
    for wrong in [
        words(&[8, 1]),
        words(&[8]),
        [words(&[12, 9]), vec![0; 5]].concat(),
    ] {
        protocol(answered(wrong, |client| client.mig_data_read(4)).0);
    }
}

/// A region's description, by the specification's table, with what follows it.
fn region(argsz: u32, flags: u32, cap_offset: u32, size: u64, rest: &[u8]) -> Vec<u8> {
    let head = words(&[argsz, flags, 3, cap_offset]);
    [&head[..], &longs(&[size, 0x9000]), rest].concat()
}

#[test]
fn a_region_is_asked_again_with_the_size_that_it_needs() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let file = tempfile::tempfile().unwrap();
        let fds = [file.as_raw_fd()];
        let first = peer.grant(&region(80, 0xf, 0, 0x8000, &[]), &[]);
        // A type, then two areas.
        let kind = [&[2, 0, 1, 0][..], &words(&[48, 7, 8])].concat();
        let sparse = [
            &[1, 0, 1, 0][..],
            &words(&[0, 1, 0]),
            &longs(&[0x1000, 0x2000]),
        ]
        .concat();
        let chain = [kind, sparse].concat();
        let second = peer.grant(&region(80, 0xf, 32, 0x8000, &chain), &fds);
        peer.wait_for_the_end();
        (first, second)
    });
    let mut client = connect(stream);
    let region = client.region_info(3).unwrap();
    assert_eq!((region.size_bytes, region.offset), (0x8000, 0x9000));
    assert!(region.read && region.write && region.mmap && region.file.is_some());
    assert_eq!(region.capabilities, [2, 1]);
    assert_eq!(region.kind, Some((7, 8)));
    assert_eq!(region.sparse_areas, Some(vec![0x1000..0x3000]));
    drop(client);
    let (first, second) = server.join().unwrap();
    assert_eq!((first.command, first.payload.len()), (5, 32));
    assert_eq!(first.payload[..12], words(&[32, 0, 3]));
    assert_eq!(second.payload[..12], words(&[80, 0, 3]));
}

#[test]
fn a_region_s_description_is_not_believed() {
    let capability = |next: u32| [&[9, 0, 1, 0][..], &words(&[next])].concat();
    let sparse = |count: u32, offset: u64, size: u64| {
        let head = [&[1, 0, 1, 0][..], &words(&[0, count, 0])].concat();
        [head, longs(&[offset, size])].concat()
    };
    for rest in [
        capability(32),
        capability(41),
        capability(u32::MAX),
        sparse(2, 0, 0x1000),
        sparse(u32::MAX, 0, 0x1000),
        sparse(1, 0x1000, 0x8000),
        sparse(1, u64::MAX, 2),
        // Two lists of areas: thousands, each as long as the message, would take minutes to read.
        [
            &[1, 0, 1, 0][..],
            &words(&[64, 1, 0]),
            &longs(&[0, 0x1000]),
            &sparse(1, 0, 0x1000),
        ]
        .concat(),
    ] {
        let argsz = 32 + rest.len() as u32;
        let (stream, _server) = server(move |peer| {
            peer.negotiate("{}", &[]);
            for _ in 0..2 {
                peer.grant(&region(argsz, 0xb, 32, 0x8000, &rest), &[]);
            }
        });
        protocol(connect(stream).region_info(3));
    }
    let info = |client: &mut Client<Buffer>| client.region_info(3);
    for payload in [
        region(32, 0xb, 33, 0x8000, &[]),
        region(u32::MAX, 3, 0, 0x8000, &[]),
        region(32, 3, 0, 0x8000, &[])[..31].to_vec(),
        vec![],
    ] {
        protocol(answered(payload, info).0);
    }
    let other = |client: &mut Client<Buffer>| client.region_info(4);
    protocol(answered(region(32, 3, 0, 0x8000, &[]), other).0);
}

#[test]
fn a_size_that_always_grows_comes_to_an_end() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let mut count = 0;
        while peer.stream.peek_for_more() {
            count += 1;
            peer.grant(&region(32 + count, 3, 0, 0x8000, &[]), &[]);
        }
        count
    });
    let mut client = connect(stream);
    assert!(protocol(client.region_info(3)).contains("never"));
    drop(client);
    assert!(server.join().unwrap() < 10);
}

trait PeekForMore {
    fn peek_for_more(&self) -> bool;
}

impl PeekForMore for UnixStream {
    fn peek_for_more(&self) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        recv(self.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK).unwrap() > 0
    }
}

/// Sub-regions, by the specification's table.
fn io_fds(argsz: u32, count: u32, fd_index: u32) -> Vec<u8> {
    let entry = [longs(&[0x18, 4]), words(&[fd_index, 0, 1, 0]), longs(&[7])].concat();
    let entries = entry.repeat((argsz as usize - 16) / 40);
    [words(&[argsz, 0, 3, count]), entries].concat()
}

#[test]
fn parts_of_a_region_come_with_their_descriptors() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let file = tempfile::tempfile().unwrap();
        let first = peer.grant(&words(&[96, 0, 3, 2]), &[]);
        let second = peer.grant(&io_fds(96, 2, 1), &[file.as_raw_fd(); 2]);
        peer.wait_for_the_end();
        (first, second)
    });
    let mut client = connect(stream);
    let parts = client.region_io_fds(3).unwrap();
    assert_eq!((parts.sub_regions.len(), parts.fds.len()), (2, 2));
    let part = parts.sub_regions[1];
    assert_eq!((part.offset, part.size_bytes, part.fd_index), (0x18, 4, 1));
    assert_eq!((part.ioregionfd, part.flags, part.data), (false, 1, 7));
    drop(client);
    let (first, second) = server.join().unwrap();
    assert_eq!((first.command, first.payload), (6, words(&[16, 0, 3, 0])));
    assert_eq!(second.payload, words(&[96, 0, 3, 0]));
}

#[test]
fn parts_of_a_region_are_not_believed() {
    for payload in [
        io_fds(56, 1, 0),
        io_fds(56, 2, 0),
        io_fds(56, u32::MAX, 0),
        words(&[16, 0, 3, 1]),
    ] {
        let (stream, _server) = server(move |peer| {
            peer.negotiate("{}", &[]);
            for _ in 0..2 {
                peer.grant(&payload, &[]);
            }
        });
        protocol(connect(stream).region_io_fds(3));
    }
}

/// Reads and writes the client's memory on `peer`, whatever else is going on.
fn ask(peer: &mut Peer) {
    peer.send(1, 11, 0, &longs(&[0x1002, 3]), &[]);
    let reply = peer.receive();
    assert_eq!((reply.id, reply.command, reply.flags), (1, 11, 1));
    assert_eq!(reply.payload, [longs(&[0x1002, 3]), vec![2, 3, 4]].concat());
    peer.send(2, 12, 0, &[longs(&[0x1000, 2]), vec![8, 9]].concat(), &[]);
    let reply = peer.receive();
    assert_eq!((reply.id, reply.command, reply.flags), (2, 12, 1));
    assert_eq!(reply.payload, longs(&[0x1000, 2]));
    // Not there; longer than one message may be; no data; no length; unknown.
    for (command, payload, errno) in [
        (11, longs(&[0, 1]), Errno::EFAULT),
        (11, longs(&[u64::MAX, 2]), Errno::EFAULT),
        (11, longs(&[0x1000, (1 << 20) + 1]), Errno::EINVAL),
        (11, longs(&[0x1000, u64::MAX]), Errno::EINVAL),
        (12, longs(&[0x1000, 4]), Errno::EINVAL),
        (11, vec![0; 15], Errno::EINVAL),
        (4, vec![], Errno::ENOTSUP),
    ] {
        peer.send(3, command, 0, &payload, &[]);
        let reply = peer.receive();
        assert_eq!((reply.flags, reply.error), (0x21, errno as u32));
        assert!(reply.payload.is_empty());
    }
    // What is not to be answered is not.
    peer.send(4, 12, 0x10, &[longs(&[0x1002, 1]), vec![7]].concat(), &[]);
}

#[test]
fn memory_is_served_in_band_while_a_reply_is_awaited() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let request = peer.receive();
        ask(peer);
        peer.send(request.id, request.command, 1, &[], &[]);
    });
    let mut client = connect(stream);
    client.reset().unwrap();
    assert_eq!(client.memory().bytes[..4], [8, 9, 7, 3]);
    server.join().unwrap();
}

#[test]
fn memory_is_served_on_the_twin_socket_while_a_reply_is_awaited() {
    let (stream, server) = server(|peer| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let caps = r#"{"twin_socket":{"supported":true,"fd_index":1}}"#;
        let other = tempfile::tempfile().unwrap();
        peer.negotiate(caps, &[other.as_raw_fd(), theirs.as_raw_fd()]);
        drop(theirs);
        let request = peer.receive();
        let mut twin = Peer::new(ours);
        ask(&mut twin);
        peer.send(request.id, request.command, 1, &[], &[]);
        peer.wait_for_the_end();
        twin.wait_for_the_end();
    });
    let mut client = connect(stream);
    assert!(client.negotiated().twin_socket);
    client.reset().unwrap();
    assert_eq!(client.serve(Duration::ZERO).unwrap(), 0);
    assert_eq!(client.memory().bytes[..4], [8, 9, 7, 3]);
    drop(client);
    server.join().unwrap();
}

#[test]
fn memory_is_served_when_nothing_else_is_to_be_done() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        ask(peer);
    });
    let mut client = connect(stream);
    let start = Instant::now();
    let mut answered = 0;
    while answered < 10 && start.elapsed() < Duration::from_secs(20) {
        match client.serve(Duration::from_millis(10)) {
            Ok(count) => answered += count,
            Err(Error::Closed) => break,
            Err(error) => panic!("{error:?}"),
        }
    }
    server.join().unwrap();
    assert_eq!(client.memory().bytes[..4], [8, 9, 7, 3]);
}

#[test]
fn the_size_that_was_proposed_holds_for_the_server_s_requests() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let request = peer.receive();
        peer.send(1, 11, 0, &longs(&[0x1000, 513]), &[]);
        let refused = peer.receive();
        peer.send(1, 11, 0, &longs(&[0x1000, 512]), &[]);
        let granted = peer.receive();
        peer.send(request.id, request.command, 1, &[], &[]);
        (refused.error, granted.payload.len())
    });
    let options = Options {
        capabilities: Some(Capabilities {
            max_data_xfer_size: Some(512),
            ..Capabilities::default()
        }),
        ..Options::default()
    };
    connect_with(stream, &options).unwrap().reset().unwrap();
    assert_eq!(server.join().unwrap(), (Errno::EINVAL as u32, 528));
}

#[test]
fn a_server_that_asks_and_does_not_listen_is_not_answered_for_ever() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        // Asks for a MiB, again and again, until the client has left.
        let ask = [
            &words(&[11 << 16, 32, 0, 0])[..],
            &longs(&[0x1000, 1 << 20]),
        ]
        .concat();
        while peer.stream.write_all(&ask).is_ok() {}
    });
    let mut client = connect(stream);
    let served = client.serve(Duration::from_millis(300)).unwrap();
    drop(client);
    assert!(served < 20, "{served}");
    server.join().unwrap();
}

/// Memory that counts what is read of it.
struct Counting(Arc<AtomicU64>);

impl Memory for Counting {
    fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.0.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
}

#[test]
fn memory_is_not_read_for_a_server_that_wants_no_answer() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let request = peer.receive();
        for flags in [0x10, 0] {
            peer.send(1, 11, flags, &longs(&[0x1000, 1 << 20]), &[]);
        }
        let answer = peer.receive();
        peer.send(request.id, request.command, 1, &[], &[]);
        answer.payload.len()
    });
    let read = Arc::new(AtomicU64::new(0));
    let memory = Counting(Arc::clone(&read));
    let mut client = Client::with_memory(stream, &Options::default(), memory).unwrap();
    client.reset().unwrap();
    assert_eq!(server.join().unwrap(), 16 + (1 << 20));
    assert_eq!(read.load(Ordering::Relaxed), 1 << 20);
}

#[test]
fn what_is_late_is_said_to_be_by_the_whole_time_that_was_waited() {
    let (stream, _server) = server(|peer| {
        peer.receive();
        thread::sleep(Duration::from_millis(50));
        // The header of a reply to VERSION, and nothing behind it.
        let header = [&[1, 0, 1, 0][..], &words(&[100, 1, 0])].concat();
        peer.stream.write_all(&header).unwrap();
        peer.wait_for_the_end();
    });
    let timeout = Duration::from_millis(200);
    let options = Options {
        timeout,
        ..Options::default()
    };
    match connect_with(stream, &options) {
        Err(Error::Late { what, within }) => assert_eq!((what, within), ("VERSION", timeout)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_twin_socket_that_is_none_ends_the_negotiation() {
    for caps in [
        r#"{"twin_socket":{"supported":true}}"#,
        r#"{"twin_socket":{"supported":true,"fd_index":1}}"#,
        r#"{"twin_socket":{"supported":true,"fd_index":18446744073709551615}}"#,
        r#"{"twin_socket":{"supported":true,"fd_index":0}}"#,
    ] {
        let (stream, _server) = server(move |peer| {
            let file = tempfile::tempfile().unwrap();
            peer.negotiate(caps, &[file.as_raw_fd()])
        });
        protocol(connect_with(stream, &Options::default()));
    }
}

#[test]
fn versions_that_were_not_proposed_end_the_negotiation() {
    for version in [[1, 0, 0, 0], [0, 0, 2, 0]] {
        let (stream, _server) = server(move |peer| peer.grant(&version, &[]));
        assert!(matches!(
            connect_with(stream, &Options::default()),
            Err(Error::Version { .. })
        ));
    }
    let (stream, _server) = server(|peer| {
        let request = peer.receive();
        let mut reply = words(&[u32::from(request.id) | 1 << 16, 16, 0x21]);
        reply.extend((Errno::EPROTO as u32).to_le_bytes());
        peer.stream.write_all(&reply).unwrap();
    });
    assert!(matches!(
        connect_with(stream, &Options::default()),
        Err(Error::Refused {
            errno: Errno::EPROTO,
            ..
        })
    ));
}

#[test]
fn what_speaks_another_protocol_is_quoted() {
    for greeting in [
        &b"{\"QMP\": {\"version\": {}}}\r\n"[..],
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\x06\x04\0\0\0\0\0",
        b"x",
    ] {
        let (stream, _server) = server(move |peer| {
            peer.stream.write_all(greeting).unwrap();
            peer.wait_for_the_end();
        });
        let options = Options {
            timeout: Duration::from_millis(200),
            ..Options::default()
        };
        match connect_with(stream, &options) {
            Err(Error::NotVfioUser { first }) => assert_eq!(first, greeting),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn replies_to_something_else_end_the_session() {
    type Answer = fn(&mut Peer, &Message);
    let answers: [(Answer, &str); 5] = [
        (
            |peer, request| peer.send(request.id + 1, 9, 1, &[0; 20], &[]),
            "not to the oldest",
        ),
        (
            |peer, request| peer.send(request.id, 10, 1, &[0; 20], &[]),
            "not to the oldest",
        ),
        (
            |peer, request| peer.send(request.id, 9, 2, &[0; 20], &[]),
            "neither command nor reply",
        ),
        (
            |peer, request| peer.send(request.id, 9, 1, &[0; 21], &[]),
            "longer than was asked for",
        ),
        (
            |peer, request| peer.send(request.id, 9, 1, &[1; 20], &[]),
            "other data",
        ),
    ];
    for (answer, why) in answers {
        let (stream, _server) = server(move |peer| {
            peer.negotiate("{}", &[]);
            let request = peer.receive();
            answer(peer, &request);
        });
        let mut client = connect(stream);
        let told = protocol(client.region_read(0, 0, &mut [0; 4]));
        assert!(told.contains(why), "{told}");
        assert_eq!(client.outstanding(), 0);
        let next = client.reset();
        // Over, where it is not known any more what belongs to what; else the server has left.
        assert!(matches!(next, Err(Error::Over | Error::Closed)), "{next:?}");
    }
    let (stream, _server) = server(|peer| {
        let file = tempfile::tempfile().unwrap();
        peer.negotiate("{}", &[file.as_raw_fd(); 17]);
    });
    assert!(protocol(connect_with(stream, &Options::default())).contains("descriptors"));
    let (stream, _server) = server(|peer| {
        peer.negotiate("{}", &[]);
        assert_eq!(peer.receive().flags, 0x10);
        peer.send(9, 9, 1, &[], &[]);
    });
    let mut client = connect(stream);
    client.region_post(0, 0, &[0]).unwrap();
    assert!(protocol(client.serve(Duration::from_secs(20))).contains("nothing"));
}

#[test]
fn a_late_reply_is_dropped_and_the_next_one_is_taken() {
    let (stream, server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let late = peer.receive();
        let next = peer.receive();
        peer.send(
            late.id,
            9,
            1,
            &[longs(&[0]), words(&[0, 1]), vec![1]].concat(),
            &[],
        );
        peer.send(
            next.id,
            9,
            1,
            &[longs(&[4]), words(&[0, 1]), vec![2]].concat(),
            &[],
        );
    });
    let mut client = connect(stream);
    client.set_timeout(Duration::from_millis(50));
    let mut data = [0];
    assert!(matches!(
        client.region_read(0, 0, &mut data),
        Err(Error::Late {
            what: "REGION_READ",
            ..
        })
    ));
    client.set_timeout(Duration::from_secs(20));
    client.region_read(0, 4, &mut data).unwrap();
    assert_eq!((data, client.outstanding()), ([2], 0));
    server.join().unwrap();
}

#[test]
fn an_error_may_come_without_a_number() {
    let (stream, _server) = server(|peer| {
        peer.negotiate("{}", &[]);
        let request = peer.receive();
        peer.send(request.id, 13, 0x21, &[], &[]);
        peer.grant(&[], &[]);
    });
    let mut client = connect(stream);
    assert!(matches!(
        client.reset(),
        Err(Error::Refused {
            command: "DEVICE_RESET",
            ..
        })
    ));
    client.reset().unwrap();
}

#[test]
fn a_server_that_leaves_has_closed_the_connection() {
    for answer in [0, 7, 16, 20] {
        let (stream, _server) = server(move |peer| {
            peer.negotiate("{}", &[]);
            let request = peer.receive();
            let mut reply = words(&[u32::from(request.id) | 9 << 16, 36, 1, 0]);
            reply.resize(36, 0);
            peer.stream.write_all(&reply[..answer]).unwrap();
        });
        let result = connect(stream).region_read(0, 0, &mut [0; 4]);
        assert!(matches!(result, Err(Error::Closed)), "{result:?}");
    }
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let (stream, server) = server(|peer| {
        let (read, write) = unistd::pipe().unwrap();
        let fds = [write.as_raw_fd(); 16];
        peer.negotiate("{}", &fds);
        let request = peer.receive();
        peer.send(7, 11, 0, &longs(&[0x1000, 1]), &fds);
        assert!(peer.receive().fds.is_empty());
        peer.send(request.id, 13, 1, &[], &fds);
        peer.stream.read_exact(&mut [0; 16]).unwrap();
        drop(write);
        // Nobody holds the other end any more: the client has none left.
        unistd::read(&read, &mut [0])
    });
    let mut client = connect(stream);
    client.reset().unwrap();
    client.post_raw(13, &[], &[]).unwrap();
    assert_eq!(server.join().unwrap(), Ok(0));
    drop(client);
}

#[test]
fn a_server_may_say_anything_at_all() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..300 {
        // Headers that are nearly right, with numbers that are large, small or none.
        let mut said = Vec::new();
        for _ in 0..20 {
            let len = next() % 80;
            let size = if next() % 16 == 0 {
                next() as u32
            } else {
                16 + len as u32
            };
            let id = 2 + next() as u32 % 2;
            let command = [5, 6, 9, 11, 12, 16, 17][next() as usize % 7];
            let kind = [0, 1, 1, 1, 0x21, 2][next() as usize % 6];
            said.extend(words(&[
                id | command << 16,
                size,
                kind,
                next() as u32 % 200,
            ]));
            let value = || [0, 1, 32, 48, u8::MAX][next() as usize % 5];
            said.extend(std::iter::repeat_with(value).take(len as usize));
        }
        let (stream, server) = server(move |peer| {
            peer.negotiate("{}", &[]);
            peer.receive();
            let _ = peer.stream.write_all(&said);
            // Gone by then, or it hangs.
            let _ = peer.stream.read_to_end(&mut Vec::new());
        });
        let mut client = connect(stream);
        client.set_timeout(Duration::from_millis(5));
        // Whatever it says is an answer or an error.
        let _ = client.region_info(0);
        let _ = client.region_io_fds(0);
        let _ = client.region_read(0, 0, &mut [0; 4]);
        let _ = client.migration_flags();
        let _ = client.mig_data_read(16);
        assert_eq!(client.outstanding(), 0);
        drop(client);
        server.join().unwrap();
    }
}
