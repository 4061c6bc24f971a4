//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

use nix::errno::Errno;
use vfio_user::{Access, Region};

use crate::{
    support::{Client, FAILS, Fake},
    wire::{access, longs, words},
};

const READ: u16 = 9;
const WRITE: u16 = 10;
const WRITE_MULTI: u16 = 15;
const MIB: u32 = 1 << 20;

/// One of REGION_WRITE_MULTI's writes.
fn write(offset: u64, region: u32, count: u32, data: u64) -> Vec<u8> {
    [access(offset, region, count), longs(&[data])].concat()
}

fn large() -> Fake {
    Fake {
        regions: vec![Region::new(4 * u64::from(MIB)), Region::new(u64::MAX)],
        ..Fake::default()
    }
}

#[test]
fn a_read_has_the_request_and_the_data() {
    let mut client = Client::new(Fake::default());
    assert_eq!(
        client.call(READ, &access(3, 0, 5)),
        [&access(3, 0, 5)[..], &[3, 4, 5, 6, 7]].concat()
    );
}

#[test]
fn a_write_is_answered_by_what_was_asked() {
    let mut client = Client::new(Fake::default());
    let request = [&access(2, 0, 3)[..], &[7, 8, 9]].concat();
    assert_eq!(client.call(WRITE, &request), access(2, 0, 3));
    assert_eq!(client.device.writes, [(0, 2, vec![7, 8, 9])]);
}

#[test]
fn accesses_end_with_their_region() {
    let mut client = Client::new(large());
    let end = 4 * u64::from(MIB);
    assert_eq!(client.call(READ, &access(end - 1, 0, 1)).len(), 17);
    assert_eq!(client.call(READ, &access(u64::MAX - 1, 1, 1)).len(), 17);
    for (offset, region, count) in [
        (end, 0, 1),
        (end - 1, 0, 2),
        (u64::MAX, 0, 1),
        (u64::MAX, 1, 1),
        (u64::MAX - 1, 1, 2),
        (0, 2, 1),
        (0, u32::MAX, 1),
    ] {
        let mut request = access(offset, region, count);
        assert_eq!(client.refused(READ, &request), Errno::EINVAL);
        request.extend([0; 8]);
        assert_eq!(client.refused(WRITE, &request), Errno::EINVAL);
    }
    assert!(client.device.writes.is_empty());
}

#[test]
fn an_access_has_one_byte_at_least_and_max_data_xfer_size_at_most() {
    let mut client = Client::new(large());
    assert_eq!(
        client.call(READ, &access(0, 0, MIB)).len(),
        16 + MIB as usize
    );
    let mut request = access(0, 0, MIB);
    request.resize(16 + MIB as usize, 1);
    assert_eq!(client.call(WRITE, &request), access(0, 0, MIB));
    for count in [0, MIB + 1, u32::MAX] {
        assert_eq!(client.refused(READ, &access(0, 0, count)), Errno::EINVAL);
        assert_eq!(client.refused(WRITE, &access(0, 0, count)), Errno::EINVAL);
    }
}

#[test]
fn a_write_brings_all_its_data() {
    let mut client = Client::new(Fake::default());
    let request = [&access(0, 0, 4)[..], &[1, 2, 3]].concat();
    assert_eq!(client.refused(WRITE, &request), Errno::EINVAL);
    for cut in 0..16 {
        assert_eq!(client.refused(READ, &access(0, 0, 4)[..cut]), Errno::EINVAL);
        assert_eq!(
            client.refused(WRITE, &access(0, 0, 4)[..cut]),
            Errno::EINVAL
        );
    }
}

#[test]
fn a_region_is_accessed_as_it_allows() {
    let regions = [(true, false), (false, true)].map(|(read, write)| Region {
        access: Access { read, write },
        ..Region::new(16)
    });
    let mut client = Client::new(Fake {
        regions: regions.into(),
        ..Fake::default()
    });
    let data = |region| [&access(0, region, 1)[..], &[1]].concat();
    client.call(READ, &access(0, 0, 1));
    client.call(WRITE, &data(1));
    assert_eq!(client.refused(WRITE, &data(0)), Errno::EINVAL);
    assert_eq!(client.refused(READ, &access(0, 1, 1)), Errno::EINVAL);
    let multi = [longs(&[1]), write(0, 0, 1, 0)].concat();
    assert_eq!(client.refused(WRITE_MULTI, &multi), Errno::EINVAL);
}

#[test]
fn what_the_device_says_is_the_error() {
    let mut client = Client::new(Fake::default());
    let request = [&access(FAILS, 0, 1)[..], &[1]].concat();
    assert_eq!(client.refused(WRITE, &request), Errno::EIO);
}

#[test]
fn posted_writes_are_not_answered() {
    let mut client = Client::new(Fake::default());
    client.post(WRITE, &[&access(0, 0, 1)[..], &[1]].concat());
    client.post(WRITE, &[&access(FAILS, 0, 1)[..], &[1]].concat());
    client.post(WRITE_MULTI, &[longs(&[1]), write(1, 0, 1, 2)].concat());
    // The next reply is the next request's.
    assert_eq!(client.call(READ, &access(0, 0, 2))[16..], [1, 2]);
}

#[test]
fn many_writes_come_in_one_message() {
    let mut client = Client::new(Fake::default());
    let request = [
        longs(&[3]),
        write(0, 0, 1, 0x1122_3344_5566_7788),
        write(8, 0, 8, 0x0807_0605_0403_0201),
        write(4, 0, 4, 0xddcc_bbaa),
    ]
    .concat();
    assert_eq!(client.call(WRITE_MULTI, &request), longs(&[3]));
    assert_eq!(
        client.device.writes,
        [
            (0, 0, vec![0x88]),
            (0, 8, vec![1, 2, 3, 4, 5, 6, 7, 8]),
            (0, 4, vec![0xaa, 0xbb, 0xcc, 0xdd])
        ]
    );
    assert_eq!(client.call(WRITE_MULTI, &longs(&[0])), longs(&[0]));
}

#[test]
fn many_writes_end_with_the_first_that_fails() {
    let mut client = Client::new(Fake::default());
    for (bad, errno) in [
        (write(FAILS, 0, 1, 0), Errno::EIO),
        (write(0, 0, 9, 0), Errno::EINVAL),
        (write(0, 0, 0, 0), Errno::EINVAL),
        (write(256, 0, 1, 0), Errno::EINVAL),
        (write(0, 1, 1, 0), Errno::EINVAL),
    ] {
        client.device.writes.clear();
        let request = [
            longs(&[4]),
            write(0, 0, 1, 1),
            write(1, 0, 1, 2),
            bad.clone(),
            write(2, 0, 1, 3),
        ]
        .concat();
        assert_eq!(client.call(WRITE_MULTI, &request), longs(&[2]));
        assert_eq!(client.device.writes.len(), 2);
        let first = [longs(&[2]), bad, write(2, 0, 1, 3)].concat();
        assert_eq!(client.refused(WRITE_MULTI, &first), errno);
        assert_eq!(client.device.writes.len(), 2);
    }
}

#[test]
fn no_more_writes_are_done_than_the_message_has() {
    let mut client = Client::new(Fake::default());
    for count in [2, u64::MAX, u64::MAX / 24 + 2, 1 << 61] {
        let request = [longs(&[count]), write(0, 0, 1, 1)].concat();
        assert_eq!(client.refused(WRITE_MULTI, &request), Errno::EINVAL);
    }
    assert_eq!(client.refused(WRITE_MULTI, &words(&[1])), Errno::EINVAL);
    assert!(client.device.writes.is_empty());
    // More data than announced is nobody's.
    let request = [longs(&[1]), write(0, 0, 1, 1), write(1, 0, 1, 1)].concat();
    assert_eq!(client.call(WRITE_MULTI, &request), longs(&[1]));
    assert_eq!(client.device.writes.len(), 1);
}
