//! cloud-hypervisor's client: what it can send is served.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::{FileExt, MetadataExt},
            net::UnixListener,
        },
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use peer_vfio_user::Client;
use vfio_user::{Closed, Mapping, Region, Session};

use crate::support::{DMA, Fake, LINE, MESSAGE};

/// The peer's client of `device`, which is served elsewhere until the client leaves.
fn connect(device: Fake) -> (Client, JoinHandle<Fake>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || serve(&listener, device));
    (Client::new(&path).unwrap(), server)
}

fn serve(listener: &UnixListener, mut device: Fake) -> Fake {
    let (stream, _) = listener.accept().unwrap();
    let mut session = Session::new(stream, &device, Instant::now()).unwrap();
    loop {
        let mut fds = [PollFd::new(session.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1));
        match session.serve(&mut device) {
            Ok(()) => {}
            Err(Closed::ByClient) => return device,
            Err(closed) => unreachable!("{closed}"),
        }
    }
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()
}

#[test]
fn a_peer_learns_the_regions_with_their_files_and_areas() {
    let file = tempfile::tempfile().unwrap();
    let mapping = |areas| {
        let file = file.try_clone().unwrap().into();
        Some(Mapping {
            file,
            offset_bytes: 0x1000,
            areas,
        })
    };
    let sparse = vec![0..0x1000, 0x2000..0x4000];
    let regions = vec![
        Region::new(256),
        Region {
            mapping: mapping(Vec::new()),
            ..Region::new(0x4000)
        },
        Region {
            mapping: mapping(sparse),
            ..Region::new(0x4000)
        },
    ];
    let (client, server) = connect(Fake {
        regions,
        ..Fake::default()
    });
    let plain = client.region(0).unwrap();
    assert_eq!((plain.flags, plain.size), (3, 256));
    assert!(plain.file_offset.is_none() && plain.sparse_areas.is_empty());
    let inode = |file: &File| file.metadata().unwrap().ino();
    for (index, flags, areas) in [(1, 7, vec![]), (2, 15, vec![(0, 0x1000), (0x2000, 0x2000)])] {
        let region = client.region(index).unwrap();
        assert_eq!((region.flags, region.size), (flags, 0x4000));
        let theirs = region.file_offset.as_ref().unwrap();
        assert_eq!(theirs.start(), 0x1000);
        assert_eq!(inode(theirs.file()), inode(&file));
        let area = |area: &vfio_bindings::bindings::vfio::vfio_region_sparse_mmap_area| {
            (area.offset, area.size)
        };
        assert_eq!(
            region.sparse_areas.iter().map(area).collect::<Vec<_>>(),
            areas
        );
    }
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_peer_reads_writes_and_resets() {
    let (mut client, server) = connect(Fake::default());
    let mut data = [0; 4];
    client.region_read(0, 10, &mut data).unwrap();
    assert_eq!(data, [10, 11, 12, 13]);
    client.region_write(0, 11, &[1, 2]).unwrap();
    client.region_read(0, 10, &mut data).unwrap();
    assert_eq!(data, [10, 1, 2, 13]);
    client.reset().unwrap();
    client.region_read(0, 10, &mut data).unwrap();
    assert_eq!(data, [0; 4]);
    drop(client);
    assert_eq!(server.join().unwrap().writes, [(0, 11, vec![1, 2])]);
}

#[test]
fn a_peer_shares_its_memory_and_takes_it_back() {
    let (mut client, server) = connect(Fake::default());
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    let byte = |at| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    client
        .dma_map(0x1000, 0x8000, 0x1000, file.as_raw_fd())
        .unwrap();
    client
        .region_write(0, DMA, &0x8004u64.to_le_bytes())
        .unwrap();
    assert_eq!(byte(0x1004), 0x5a);
    client.dma_unmap(0x8000, 0x1000).unwrap();
    // The place is free again.
    client.dma_map(0, 0x8000, 0x1000, file.as_raw_fd()).unwrap();
    client
        .region_write(0, DMA, &0x8008u64.to_le_bytes())
        .unwrap();
    assert_eq!((byte(8), byte(0x1008)), (0x5a, 0));
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_peer_gets_interrupts() {
    let (mut client, server) = connect(Fake::default());
    let info = client.get_irq_info(0).unwrap();
    assert_eq!((info.index, info.flags, info.count), (0, 7, 1));
    assert_eq!(client.get_irq_info(1).unwrap().count, 4);
    let (line, message) = (eventfd(), eventfd());
    // EVENTFD and TRIGGER.
    client
        .set_irqs(0, 0x24, 0, 1, &[line.as_fd().as_raw_fd()])
        .unwrap();
    client
        .set_irqs(1, 0x24, 3, 1, &[message.as_fd().as_raw_fd()])
        .unwrap();
    client.region_write(0, LINE, &[1]).unwrap();
    client.region_write(0, MESSAGE, &[3]).unwrap();
    assert_eq!((line.read(), message.read()), (Ok(1), Ok(1)));
    // NONE and UNMASK, which it sends after every access while the line is connected.
    client.set_irqs(0, 0x11, 0, 1, &[]).unwrap();
    assert_eq!(line.read(), Ok(1), "still up");
    // NONE and TRIGGER with count 0.
    client.set_irqs(1, 0x21, 0, 0, &[]).unwrap();
    client.region_write(0, MESSAGE, &[3]).unwrap();
    assert_eq!(message.read(), Err(Errno::EAGAIN));
    drop(client);
    server.join().unwrap();
}
