//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS.

use std::{
    fs::File,
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::eventfd::{EfdFlags, EventFd},
};
use vfio_user::{Access, DeviceType, IoEvent, Mapping, Region};

use crate::{
    support::{Client, Fake},
    wire::{longs, words},
};

const GET_INFO: u16 = 4;
const GET_REGION_INFO: u16 = 5;
const GET_REGION_IO_FDS: u16 = 6;

/// A DEVICE_GET_REGION_INFO request.
fn region_info(argsz: u32, index: u32) -> Vec<u8> {
    words(&[argsz, 0, index, 0, 0, 0, 0, 0])
}

/// A device whose region 0 is a file of four pages, from its second page on.
fn mapped(areas: Vec<Range<u64>>) -> (Fake, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x5000).unwrap();
    let mapping = Mapping {
        file: file.try_clone().unwrap().into(),
        offset_bytes: 0x1000,
        areas,
    };
    let region = Region {
        mapping: Some(mapping),
        ..Region::new(0x4000)
    };
    let device = Fake {
        regions: vec![region],
        ..Fake::default()
    };
    (device, file)
}

#[test]
fn device_info_counts_regions_and_interrupts() {
    let mut client = Client::new(Fake::default());
    assert_eq!(
        client.call(GET_INFO, &words(&[16, 0, 0, 0])),
        words(&[16, 3, 2, 4])
    );
    assert_eq!(
        client.call(GET_INFO, &words(&[4096, 0, 0, 0])),
        words(&[16, 3, 2, 4])
    );
    assert_eq!(
        client.refused(GET_INFO, &words(&[15, 0, 0, 0])),
        Errno::EINVAL
    );
    assert_eq!(client.refused(GET_INFO, &words(&[16, 0, 0])), Errno::EINVAL);
}

#[test]
fn region_info_has_size_and_access() {
    let mut device = Fake::default();
    for (read, write) in [(true, false), (false, true)] {
        device.regions.push(Region {
            access: Access { read, write },
            ..Region::new(1 << 40)
        });
    }
    let mut client = Client::new(device);
    for (index, flags, size) in [
        (0, 3, [256, 0]),
        (1, 0, [0, 0]),
        (2, 1, [0, 256]),
        (3, 2, [0, 256]),
    ] {
        assert_eq!(
            client.call(GET_REGION_INFO, &region_info(32, index)),
            words(&[32, flags, index, 0, size[0], size[1], 0, 0])
        );
    }
    assert_eq!(
        client.refused(GET_REGION_INFO, &region_info(32, 4)),
        Errno::EINVAL
    );
    assert_eq!(
        client.refused(GET_REGION_INFO, &region_info(32, u32::MAX)),
        Errno::EINVAL
    );
    assert_eq!(
        client.refused(GET_REGION_INFO, &region_info(31, 0)),
        Errno::EINVAL
    );
    // SPDK's client sends 4080 bytes.
    let long = [region_info(4080, 0), vec![0; 4048]].concat();
    assert_eq!(client.call(GET_REGION_INFO, &long).len(), 32);
}

#[test]
fn a_region_that_can_be_mapped_comes_with_its_file() {
    let (device, file) = mapped(Vec::new());
    let mut client = Client::new(device);
    let reply = client.call_with(GET_REGION_INFO, &region_info(32, 0), &[]);
    assert_eq!(
        reply.payload,
        words(&[32, 7, 0, 0, 0x4000, 0, 0x1000, 0]),
        "READ, WRITE and MMAP, and where to map from"
    );
    let [theirs] = <[OwnedFd; 1]>::try_from(reply.fds).unwrap();
    let inode = |file: &File| file.metadata().unwrap().ino();
    assert_eq!(inode(&theirs.into()), inode(&file));
}

#[test]
fn sparse_areas_are_a_capability() {
    let (device, _file) = mapped(vec![0x1000..0x2000, 0x3000..0x4000]);
    let mut client = Client::new(device);
    let full = [
        // CAPS too, and the first capability is behind the structure.
        words(&[80, 15, 0, 32, 0x4000, 0, 0x1000, 0]),
        // Id 1 (sparse mmap), version 1, none next; two areas.
        words(&[0x0001_0001, 0, 2, 0]),
        longs(&[0x1000, 0x1000, 0x3000, 0x1000]),
    ]
    .concat();
    for argsz in [80, 4080] {
        let reply = client.call_with(GET_REGION_INFO, &region_info(argsz, 0), &[]);
        assert_eq!((&reply.payload, reply.fds.len()), (&full, 1));
    }
    for argsz in [32, 79] {
        // Neither CAPS without an offset nor MMAP without a descriptor: QEMU refuses the one and loses the other.
        assert_eq!(
            client.call(GET_REGION_INFO, &region_info(argsz, 0)),
            words(&[80, 3, 0, 0, 0x4000, 0, 0, 0])
        );
    }
}

#[test]
fn device_specific_regions_say_their_type() {
    let (mut device, _file) = mapped(vec![0x1000..0x2000, 0x2000..0x3000]);
    let device_type = Some(DeviceType {
        kind: 0x8000_8086,
        subtype: 1,
    });
    device.regions[0].device_type = device_type;
    device.regions.resize_with(9, || Region::new(0));
    device.regions.push(Region {
        device_type,
        ..Region::new(16)
    });
    let mut client = Client::new(device);
    assert_eq!(
        client.call(GET_INFO, &words(&[16, 0, 0, 0]))[8..12],
        [10, 0, 0, 0]
    );
    assert_eq!(
        client.call(GET_REGION_INFO, &region_info(48, 9)),
        [
            words(&[48, 11, 9, 32, 16, 0, 0, 0]),
            words(&[0x0001_0002, 0, 0x8000_8086, 1])
        ]
        .concat()
    );
    let reply = client.call_with(GET_REGION_INFO, &region_info(96, 0), &[]);
    assert_eq!(
        reply.payload[32..],
        [
            // The next is at 80.
            words(&[0x0001_0001, 80, 2, 0]),
            longs(&[0x1000, 0x1000, 0x2000, 0x1000]),
            words(&[0x0001_0002, 0, 0x8000_8086, 1])
        ]
        .concat()
    );
}

fn eventfd() -> (EventFd, Arc<OwnedFd>) {
    let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let fd = ours.as_fd().try_clone_to_owned().unwrap();
    (ours, Arc::new(fd))
}

fn event(offset: u64, size_bytes: u64, value: Option<u64>, eventfd: &Arc<OwnedFd>) -> IoEvent {
    IoEvent {
        offset,
        size_bytes,
        value,
        eventfd: Arc::clone(eventfd),
    }
}

fn with_events(io_events: Vec<IoEvent>) -> Fake {
    let mut device = Fake::default();
    device.regions[0].io_events = io_events;
    device
}

#[test]
fn io_events_come_with_their_descriptors() {
    let ((first, first_fd), (second, second_fd)) = (eventfd(), eventfd());
    let mut client = Client::new(with_events(vec![
        event(0x10, 4, None, &first_fd),
        event(0x20, 0, Some(7), &second_fd),
        event(0x30, 2, None, &first_fd),
    ]));
    let full = [
        words(&[136, 0, 0, 3]),
        // Offset and size; which descriptor, ioeventfd, DATAMATCH or not, padding; the value.
        longs(&[0x10, 4]),
        words(&[0, 0, 0, 0]),
        longs(&[0]),
        longs(&[0x20, 0]),
        words(&[1, 0, 1, 0]),
        longs(&[7]),
        longs(&[0x30, 2]),
        words(&[0, 0, 0, 0]),
        longs(&[0]),
    ]
    .concat();
    let reply = client.call_with(GET_REGION_IO_FDS, &words(&[136, 0, 0, 0]), &[]);
    assert_eq!(reply.payload, full);
    assert_eq!(reply.fds.len(), 2);
    nix::unistd::write(&reply.fds[1], &1u64.to_le_bytes()).unwrap();
    assert_eq!((first.read(), second.read()), (Err(Errno::EAGAIN), Ok(1)));
    for argsz in [16, 135] {
        assert_eq!(
            client.call(GET_REGION_IO_FDS, &words(&[argsz, 0, 0, 0])),
            words(&[136, 0, 0, 3])
        );
    }
}

#[test]
fn a_region_without_io_events_has_an_empty_list() {
    let mut client = Client::new(Fake::default());
    assert_eq!(
        client.call(GET_REGION_IO_FDS, &words(&[16, 0, 0, 0])),
        words(&[16, 0, 0, 0])
    );
    for bad in [
        [15, 0, 0, 0],
        [16, 1, 0, 0],
        [16, 0, 0, 1],
        // No region, and a region that the device does not have.
        [16, 0, 2, 0],
        [16, 0, 1, 0],
    ] {
        assert_eq!(
            client.refused(GET_REGION_IO_FDS, &words(&bad)),
            Errno::EINVAL,
            "{bad:?}"
        );
    }
}

#[test]
fn io_events_are_no_more_than_the_client_takes_descriptors() {
    let (_keep, shared) = eventfd();
    let mut events: Vec<_> = (0..20)
        .map(|i| event(i * 4, 4, None, &eventfd().1))
        .collect();
    events.insert(0, event(0x80, 4, None, &shared));
    events.push(event(0x84, 4, None, &shared));
    let mut client = Client::new(with_events(events));
    let reply = client.call_with(GET_REGION_IO_FDS, &words(&[4096, 0, 0, 0]), &[]);
    // Sixteen with a descriptor each, and the last, which shares the first's.
    assert_eq!(reply.payload[..16], words(&[16 + 17 * 40, 0, 0, 17]));
    assert_eq!(reply.fds.len(), 16);
    assert_eq!(reply.payload[16 + 16 * 40..][..8], longs(&[0x84]));
}

#[test]
fn a_client_gets_no_more_descriptors_than_it_takes() {
    let areas = || vec![0x1000..0x2000, 0x3000..0x4000];
    let request = region_info(4096, 0);
    let (device, _file) = mapped(areas());
    let mut client = Client::proposing(device, r#"{"capabilities":{"max_msg_fds":0}}"#);
    // Neither MMAP nor areas of it.
    let plain = words(&[32, 3, 0, 0, 0x4000, 0, 0, 0]);
    assert_eq!(client.call(GET_REGION_INFO, &request), plain);
    // Without a word about it, it takes one.
    let (mut device, _file) = mapped(areas());
    device.regions[0].io_events = (0..3).map(|i| event(i, 1, None, &eventfd().1)).collect();
    let mut client = Client::proposing(device, "{}");
    let reply = client.call_with(GET_REGION_INFO, &request, &[]);
    assert_eq!((reply.payload.len(), reply.fds.len()), (80, 1));
    let reply = client.call_with(GET_REGION_IO_FDS, &words(&[4096, 0, 0, 0]), &[]);
    assert_eq!((reply.payload.len(), reply.fds.len()), (56, 1));
}

#[test]
fn no_more_descriptors_are_sent_in_a_message_than_the_kernel_takes() {
    let events: Vec<_> = (0..300)
        .map(|i| event(i % 200, 1, None, &eventfd().1))
        .collect();
    let capabilities = r#"{"capabilities":{"max_msg_fds":1000}}"#;
    let mut client = Client::proposing(with_events(events), capabilities);
    let request = words(&[1 << 16, 0, 0, 0]);
    let reply = client.call_with(GET_REGION_IO_FDS, &request, &[]);
    assert_eq!(
        (reply.error, reply.payload.len(), reply.fds.len()),
        (0, 16 + 253 * 40, 253)
    );
}
