//! The client against a session that a thread serves: each command that the server has.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something fails"
)]

mod support;

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt, unix::net::UnixStream},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use support::{Scratch, wait_for};
use vfio_user::{
    Access, Closed, MigrationState,
    client::{
        Action, Buffer, Capabilities, Client, Error, Feature, Interrupts, Method, MultiWrite,
        Options, TwinSocket,
    },
};

const BOTH: Access = Access {
    read: true,
    write: true,
};

fn connect(stream: UnixStream) -> Client<Buffer> {
    let memory = Buffer {
        address: 0x10_0000,
        bytes: vec![0; 0x4000],
    };
    Client::with_memory(stream, &Options::default(), memory).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> Errno {
    match result {
        Err(Error::Refused { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

/// What makes the device copy guest memory.
fn copy(from: u64, to: u64, count: u64) -> Vec<u8> {
    [from, to, count].map(u64::to_le_bytes).concat()
}

#[test]
fn the_device_is_described() {
    let (stream, server) = Scratch::new().serve();
    let mut client = connect(stream);
    assert_eq!(
        (client.negotiated().major, client.negotiated().minor),
        (0, 1)
    );
    assert_eq!(client.negotiated().max_message_fds(), 16);
    let info = client.device_info().unwrap();
    assert!(info.reset && info.pci);
    assert_eq!((info.region_count, info.irq_count), (3, 2));
    let region = client.region_info(0).unwrap();
    assert_eq!(
        (region.size_bytes, region.read, region.write),
        (256, true, true)
    );
    assert!(!region.mmap && region.file.is_none() && region.sparse_areas.is_none());
    assert_eq!(client.region_info(2).unwrap().size_bytes, 0);
    assert_eq!(refused(client.region_info(3)), Errno::EINVAL);
    let irq = client.irq_info(0).unwrap();
    assert_eq!((irq.count, irq.maskable, irq.automasked), (1, true, true));
    let irq = client.irq_info(1).unwrap();
    assert_eq!((irq.count, irq.eventfd, irq.noresize), (4, true, true));
    assert_eq!(refused(client.irq_info(2)), Errno::EINVAL);
    drop(client);
    assert!(matches!(server.join().unwrap().1, Closed::ByClient));
}

#[test]
fn regions_are_read_written_posted_and_reset() {
    let (stream, server) = Scratch::new().serve();
    let mut client = connect(stream);
    client.region_write(0, 64, &[1, 2, 3]).unwrap();
    client.region_post(0, 67, &[4]).unwrap();
    let mut data = [0; 4];
    client.region_read(0, 64, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    assert_eq!(
        refused(client.region_read(0, 254, &mut data)),
        Errno::EINVAL
    );
    assert_eq!(refused(client.region_write(2, 0, &data)), Errno::EINVAL);
    client.reset().unwrap();
    client.region_read(0, 64, &mut data).unwrap();
    assert_eq!(data, [0; 4]);
    let long = vec![0; (1 << 20) + 1];
    assert!(matches!(
        client.region_write(0, 0, &long),
        Err(Error::Argument(_))
    ));
    client.region_write(0, 64, &[9]).unwrap();
    drop(client);
    assert_eq!(server.join().unwrap().0.bytes[64], 9);
}

#[test]
fn pipelined_requests_are_answered_in_order_however_many_there_are() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    // More than both sockets hold, so that each side has to read while it has more to send.
    const COUNT: u32 = 8000;
    for value in 0..COUNT {
        client.queue_post(0, 64, &value.to_le_bytes()).unwrap();
        client.queue_read(0, 64, 64).unwrap();
        if value % 1000 == 0 {
            client.queue_write(0, 300, &[0]).unwrap();
        }
    }
    client.flush().unwrap();
    assert_eq!(client.outstanding(), 8008);
    for value in 0..COUNT {
        let reply = client.next_reply().unwrap();
        assert_eq!((reply.error, reply.payload.len()), (None, 80));
        assert_eq!(reply.payload[16..20], value.to_le_bytes());
        if value % 1000 == 0 {
            assert_eq!(client.next_reply().unwrap().error, Some(Errno::EINVAL));
        }
    }
    assert!(matches!(client.next_reply(), Err(Error::Argument(_))));
}

#[test]
fn a_call_among_pipelined_requests_gets_its_own_reply() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    client.region_write(0, 64, &[1, 2]).unwrap();
    client.queue_read(0, 64, 1).unwrap();
    let mut data = [0];
    client.region_read(0, 65, &mut data).unwrap();
    assert_eq!((data, client.outstanding()), ([2], 1));
    assert_eq!(client.next_reply().unwrap().payload[16..], [1]);
}

#[test]
fn spinning_and_sleeping_clients_get_the_same() {
    let (stream, _server) = Scratch::new().serve();
    let options = Options {
        spin: Duration::from_micros(50),
        ..Options::default()
    };
    let mut client = Client::with_memory(stream, &options, Buffer::default()).unwrap();
    for value in 0..200u8 {
        client.region_write(0, 64, &[value]).unwrap();
        let mut data = [0];
        client.region_read(0, 64, &mut data).unwrap();
        assert_eq!(data, [value]);
    }
}

#[test]
fn interrupts_are_connected_masked_triggered_and_taken_away() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    let events: Vec<_> = (0..4)
        .map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap())
        .collect();
    let line = Interrupts::Eventfds(&[events[0].as_fd()]);
    client.set_irqs(0, 0, Action::Trigger, line).unwrap();
    client.region_write(0, 0, &[1]).unwrap();
    assert_eq!(events[0].read(), Ok(1));
    let unmask = |client: &mut Client<Buffer>, chosen: &[bool]| {
        client.set_irqs(0, 0, Action::Unmask, Interrupts::Chosen(chosen))
    };
    unmask(&mut client, &[false]).unwrap();
    assert_eq!(events[0].read(), Err(Errno::EAGAIN));
    unmask(&mut client, &[true]).unwrap();
    assert_eq!(events[0].read(), Ok(1), "still asserted");
    let none = Interrupts::NoEventfds(1);
    client.set_irqs(0, 0, Action::Trigger, none).unwrap();
    unmask(&mut client, &[true]).unwrap();
    assert_eq!(events[0].read(), Err(Errno::EAGAIN), "taken away");

    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    let messages = Interrupts::Eventfds(&fds);
    client.set_irqs(1, 0, Action::Trigger, messages).unwrap();
    client.region_write(0, 1, &[2]).unwrap();
    assert_eq!(events[2].read(), Ok(1));
    let chosen = Interrupts::Chosen(&[false, true, true]);
    client.set_irqs(1, 1, Action::Trigger, chosen).unwrap();
    let seen: Vec<_> = events.iter().map(|event| event.read().is_ok()).collect();
    assert_eq!(seen, [false, false, true, true]);
    client
        .set_irqs(1, 3, Action::Mask, Interrupts::All(1))
        .unwrap();
    client.region_write(0, 1, &[3]).unwrap();
    assert_eq!(events[3].read(), Err(Errno::EAGAIN), "masked");
    client
        .set_irqs(1, 3, Action::Unmask, Interrupts::All(1))
        .unwrap();
    assert_eq!(events[3].read(), Ok(1), "held back meanwhile");
    client
        .set_irqs(1, 0, Action::Trigger, Interrupts::All(0))
        .unwrap();
    client.region_write(0, 1, &[0]).unwrap();
    assert_eq!(events[0].read(), Err(Errno::EAGAIN), "disconnected");
    let far = Interrupts::All(1);
    assert_eq!(
        refused(client.set_irqs(1, 4, Action::Trigger, far)),
        Errno::EINVAL
    );
}

#[test]
fn memory_with_a_file_is_mapped_and_taken_back() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(0x3000).unwrap();
    file.write_at(b"memory", 0x1000).unwrap();
    let mapped = Some((file.as_fd(), 0x1000));
    client.dma_map(0x8000, 0x2000, BOTH, mapped).unwrap();
    assert_eq!(
        refused(client.dma_map(0x8000, 0x2000, BOTH, mapped)),
        Errno::EEXIST
    );
    client
        .region_write(0, 0x20, &copy(0x8000, 0x9000, 6))
        .unwrap();
    let mut bytes = [0; 6];
    file.read_at(&mut bytes, 0x2000).unwrap();
    assert_eq!(&bytes, b"memory");
    client.dma_unmap(0x8000, 0x2000).unwrap();
    let gone = client.region_write(0, 0x20, &copy(0x8000, 0x9000, 6));
    assert_eq!(refused(gone), Errno::EFAULT);
    assert_eq!(refused(client.dma_unmap(0x8000, 0x2000)), Errno::ENOENT);
    for address in [0x8000, 0xa000] {
        client.dma_map(address, 0x2000, BOTH, mapped).unwrap();
    }
    client.dma_unmap_all().unwrap();
    assert_eq!(refused(client.dma_unmap(0x8000, 0x2000)), Errno::ENOENT);
}

#[test]
fn a_page_of_a_region_is_mapped_and_a_write_is_told_by_an_eventfd() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    let region = client.region_info(1).unwrap();
    assert!(region.mmap);
    assert_eq!(
        region.sparse_areas,
        Some(std::iter::once(0x1000..0x2000).collect())
    );
    let file = File::from(region.file.unwrap());
    let mut bytes = [0; 6];
    file.read_at(&mut bytes, region.offset + 0x1000).unwrap();
    assert_eq!(&bytes, b"mapped");
    let parts = client.region_io_fds(1).unwrap();
    assert_eq!((parts.sub_regions.len(), parts.fds.len()), (1, 1));
    let part = parts.sub_regions[0];
    assert_eq!((part.offset, part.size_bytes, part.data), (0x18, 4, 7));
    assert_eq!((part.fd_index, part.ioregionfd, part.flags), (0, false, 1));
    assert!(client.region_io_fds(0).unwrap().sub_regions.is_empty());
}

#[test]
fn several_writes_are_done_in_their_order() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    assert_eq!(client.negotiated().capabilities.write_multiple, Some(true));
    let write = |offset, data| MultiWrite {
        region: 0,
        offset,
        data,
    };
    let writes = [
        write(64, &[1, 2, 3, 4][..]),
        write(65, &[9]),
        write(67, &[8]),
    ];
    assert_eq!(client.region_write_multi(&writes).unwrap(), 3);
    let mut data = [0; 4];
    client.region_read(0, 64, &mut data).unwrap();
    assert_eq!(data, [1, 9, 3, 8]);
    let long = client.region_write_multi(&[write(64, &[0; 9])]);
    assert!(matches!(long, Err(Error::Argument(_))));
}

#[test]
fn memory_without_a_file_is_reached_by_messages_while_a_reply_is_awaited() {
    for twin in [false, true] {
        let (stream, _server) = Scratch::new().serve();
        let capabilities = Capabilities {
            twin_socket: Some(TwinSocket {
                supported: twin,
                fd_index: None,
            }),
            // So that the device's copy takes several messages.
            max_data_xfer_size: Some(4096),
            ..Capabilities::all()
        };
        let options = Options {
            capabilities: Some(capabilities),
            ..Options::default()
        };
        let memory = Buffer {
            address: 0x10_0000,
            bytes: (0..=255).collect::<Vec<u8>>().repeat(128),
        };
        let mut client = Client::with_memory(stream, &options, memory).unwrap();
        assert_eq!(client.negotiated().twin_socket, twin);
        client.dma_map(0x10_0000, 0x8000, BOTH, None).unwrap();
        client
            .region_write(0, 0x20, &copy(0x10_0001, 0x10_4000, 0x3000))
            .unwrap();
        let bytes = &client.memory().bytes;
        assert_eq!(bytes[1..0x3001], bytes[0x4000..0x7000]);
        // What the client does not have is the device's error, and nothing worse.
        client.dma_map(0x20_0000, 0x1000, BOTH, None).unwrap();
        let outside = client.region_write(0, 0x20, &copy(0x20_0000, 0x10_0000, 4));
        assert_eq!(refused(outside), Errno::EFAULT);
        client.reset().unwrap();
    }
}

#[test]
fn written_pages_are_reported_and_with_the_last_map() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(0x8000).unwrap();
    client
        .dma_map(0, 0x8000, BOTH, Some((file.as_fd(), 0)))
        .unwrap();
    for feature in [Feature::DMA_LOGGING_START, Feature::DMA_LOGGING_STOP] {
        client.feature_probe(feature, Method::Set).unwrap();
    }
    assert_eq!(client.dma_logging_start(4096, &[]).unwrap(), 4096);
    client.region_write(0, 0x20, &copy(0, 0x2ffe, 4)).unwrap();
    let report = |client: &mut Client<Buffer>| client.dma_logging_report(0, 0x8000, 4096);
    assert_eq!(report(&mut client).unwrap(), [0b1100]);
    assert_eq!(report(&mut client).unwrap(), [0], "told already");
    client.region_write(0, 0x20, &copy(0, 0x7000, 1)).unwrap();
    assert_eq!(
        client.dma_unmap_dirty(0, 0x8000, 4096).unwrap(),
        [0b1000_0000]
    );
    client.dma_logging_stop().unwrap();
    refused(report(&mut client));
}

#[test]
fn a_state_moves_from_one_device_to_another() {
    let (stream, _source) = Scratch::new().serve();
    let mut source = connect(stream);
    let (stream, _target) = Scratch::new().serve();
    let mut target = connect(stream);
    source.region_write(0, 64, b"state").unwrap();
    assert!(source.migration_flags().unwrap().stop_copy);
    assert_eq!(source.migration_state().unwrap(), MigrationState::RUNNING);
    source
        .set_migration_state(MigrationState::STOP_COPY)
        .unwrap();
    target
        .set_migration_state(MigrationState::RESUMING)
        .unwrap();
    loop {
        let data = source.mig_data_read(100).unwrap();
        target.mig_data_write(&data).unwrap();
        if data.len() < 100 {
            break;
        }
    }
    target.set_migration_state(MigrationState::RUNNING).unwrap();
    assert_eq!(target.migration_state().unwrap(), MigrationState::RUNNING);
    let mut data = [0; 5];
    target.region_read(0, 64, &mut data).unwrap();
    assert_eq!(&data, b"state");
    let unknown = target.set_migration_state(MigrationState(99));
    assert_eq!(refused(unknown), Errno::EINVAL);
}

#[test]
fn what_is_no_command_is_refused_and_the_client_goes_on() {
    let (stream, _server) = Scratch::new().serve();
    let mut client = connect(stream);
    let reply = client.call_raw(14, b"?", &[]).unwrap();
    assert!(reply.error.is_some() && reply.payload.is_empty());
    client.post_raw(99, b"?", &[]).unwrap();
    client.reset().unwrap();
}

#[test]
fn a_server_that_is_not_there_or_does_not_accept_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let options = Options {
        timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let connect = || Client::connect(&path, &options);
    assert!(
        matches!(connect(), Err(Error::Connect { source, .. }) if source.kind() == std::io::ErrorKind::NotFound)
    );
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(connect(), Err(Error::Late { .. })));
    // The one that waited, and was never accepted, fills a backlog of none.
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    assert!(
        matches!(connect(), Err(Error::Connect { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock)
    );
    drop(listener);
    wait_for(
        "a refusal",
        || matches!(connect(), Err(Error::Connect { source, .. }) if source.kind() == std::io::ErrorKind::ConnectionRefused),
    );
}
