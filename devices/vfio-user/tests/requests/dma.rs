//! DMA_MAP and DMA_UNMAP.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use nix::errno::Errno;

use crate::{
    support::{Client, DMA, Fake},
    wire::{longs, words},
};

const MAP: u16 = 2;
const UNMAP: u16 = 3;
/// Readable and writeable.
const RW: u32 = 3;

fn map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    [words(&[32, flags]), longs(&[offset, address, size])].concat()
}

fn unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [words(&[24, flags]), longs(&[address, size])].concat()
}

fn memory(pages: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * 0x1000).unwrap();
    file
}

fn byte(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

impl Client {
    fn map(&mut self, request: &[u8], file: &File) -> Result<(), Errno> {
        let reply = self.call_with(MAP, request, &[file.as_raw_fd()]);
        assert!(reply.payload.is_empty());
        match reply.error {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno as i32)),
        }
    }

    /// Lets the device write a byte to guest memory.
    fn dma(&mut self, iova: u64) -> Result<(), Errno> {
        self.write(DMA, &longs(&[iova]))
    }
}

#[test]
fn a_map_with_a_descriptor_is_reached_through_it() {
    let mut client = Client::new(Fake::default());
    let file = memory(2);
    client
        .map(&map(RW, 0x1000, 0x10_0000, 0x1000), &file)
        .unwrap();
    client.dma(0x10_0003).unwrap();
    assert_eq!((byte(&file, 3), byte(&file, 0x1003)), (0, 0x5a));
    assert_eq!(client.dma(0x10_1000), Err(Errno::EFAULT));
    assert_eq!(client.dma(0xf_ffff), Err(Errno::EFAULT));
}

#[test]
fn a_map_that_is_not_writeable_is_not_written() {
    let mut client = Client::new(Fake::default());
    let file = memory(1);
    client.map(&map(1, 0, 0, 0x1000), &file).unwrap();
    assert_eq!(client.dma(0), Err(Errno::EFAULT));
    client.map(&map(2, 0, 0x1000, 0x1000), &file).unwrap();
    client.dma(0x1000).unwrap();
}

#[test]
fn a_map_over_another_is_refused() {
    let mut client = Client::new(Fake::default());
    let file = memory(4);
    client.map(&map(RW, 0, 0x1000, 0x2000), &file).unwrap();
    for (address, size) in [
        (0x1000, 0x2000),
        (0, 0x1001),
        (0x2fff, 0x1000),
        (0, 0x4000),
        (0x1800, 1),
    ] {
        assert_eq!(
            client.map(&map(RW, 0, address, size), &file),
            Err(Errno::EEXIST)
        );
        assert_eq!(
            client.refused(MAP, &map(RW, 0, address, size)),
            Errno::EEXIST
        );
    }
    client.map(&map(RW, 0, 0x3000, 0x1000), &file).unwrap();
}

#[test]
fn bad_maps_are_refused() {
    let mut client = Client::new(Fake::default());
    let file = memory(1);
    for bad in [
        // Flags that the specification does not know, and no access at all.
        map(RW | 4, 0, 0, 0x1000),
        map(RW | 1 << 31, 0, 0, 0x1000),
        map(0, 0, 0, 0x1000),
        // Nothing, and more than there are addresses.
        map(RW, 0, 0, 0),
        map(RW, 0, u64::MAX, 2),
        // argsz, and less than the structure.
        [&words(&[31, RW])[..], &map(RW, 0, 0, 0x1000)[8..]].concat(),
        map(RW, 0, 0, 0x1000)[..31].to_vec(),
    ] {
        assert_eq!(client.refused(MAP, &bad), Errno::EINVAL, "{bad:?}");
        assert_eq!(client.map(&bad, &file), Err(Errno::EINVAL), "{bad:?}");
    }
    // Past the end of the file, and between pages.
    for bad in [
        map(RW, 0, 0, 0x2000),
        map(RW, 0x1000, 0, 0x1000),
        map(RW, 1, 0, 0x800),
    ] {
        assert_eq!(client.map(&bad, &file), Err(Errno::EINVAL), "{bad:?}");
    }
    let two = [file.as_raw_fd(); 2];
    assert_eq!(
        client.refused_with(MAP, &map(RW, 0, 0, 0x1000), &two),
        Errno::EINVAL
    );
    assert_eq!(client.dma(0), Err(Errno::EFAULT), "nothing is mapped");
}

#[test]
fn what_is_unmapped_is_gone_before_the_reply() {
    let mut client = Client::new(Fake::default());
    let file = memory(2);
    for address in [0x1000, 0x2000] {
        client
            .map(&map(RW, address - 0x1000, address, 0x1000), &file)
            .unwrap();
    }
    let request = unmap(0, 0x1000, 0x1000);
    assert_eq!(
        client.call(UNMAP, &request),
        request,
        "the reply is the request"
    );
    assert_eq!(client.dma(0x1000), Err(Errno::EFAULT));
    client.dma(0x2000).unwrap();
    assert_eq!(client.refused(UNMAP, &request), Errno::ENOENT);
    client.map(&map(RW, 0, 0x1000, 0x1000), &file).unwrap();
}

#[test]
fn bad_unmaps_are_refused() {
    let mut client = Client::new(Fake::default());
    let file = memory(2);
    client.map(&map(RW, 0, 0x1000, 0x2000), &file).unwrap();
    for bad in [
        // Half of a map, from either side.
        unmap(0, 0x1000, 0x1000),
        unmap(0, 0x2000, 0x1000),
        unmap(0, 0x1000, 0),
        unmap(0, u64::MAX, 2),
        // All of it is asked for with zeros, and not together with the bitmap.
        unmap(2, 0x1000, 0),
        unmap(2, 0, 0x2000),
        unmap(3, 0, 0),
        unmap(4, 0x1000, 0x2000),
        unmap(1 << 31, 0x1000, 0x2000),
        [&words(&[23, 0])[..], &unmap(0, 0x1000, 0x2000)[8..]].concat(),
        unmap(0, 0x1000, 0x2000)[..23].to_vec(),
    ] {
        assert_eq!(client.refused(UNMAP, &bad), Errno::EINVAL, "{bad:?}");
    }
    client.dma(0x1000).unwrap();
    client.dma(0x2fff).unwrap();
}

#[test]
fn everything_is_unmapped_at_once() {
    let mut client = Client::new(Fake::default());
    let file = memory(1);
    let all = unmap(2, 0, 0);
    assert_eq!(client.call(UNMAP, &all), all, "also when there is nothing");
    for address in [0, 0x8000, u64::MAX - 0xfff] {
        client.map(&map(RW, 0, address, 0x1000), &file).unwrap();
    }
    client.dma(u64::MAX).unwrap();
    assert_eq!(client.call(UNMAP, &all), all);
    for iova in [0, 0x8000, u64::MAX] {
        assert_eq!(client.dma(iova), Err(Errno::EFAULT));
    }
}

#[test]
fn a_descriptor_that_comes_with_unmap_is_closed() {
    let mut client = Client::new(Fake::default());
    client.call(MAP, &map(RW, 0, 0x1000, 0x1000));
    let (pipe, sent) = nix::unistd::pipe().unwrap();
    let request = unmap(0, 0x1000, 0x1000);
    let reply = client.call_with(UNMAP, &request, &[sent.as_raw_fd()]);
    assert_eq!((reply.error, reply.payload), (0, request));
    drop(sent);
    // Without a writer left, a read returns.
    assert_eq!(nix::unistd::read(&pipe, &mut [0]), Ok(0));
}

#[test]
fn maps_are_limited() {
    let mut client = Client::new(Fake::default());
    for number in 0..65_535 {
        client.post(MAP, &map(RW, 0, number * 0x1000, 0x1000));
    }
    let last = 65_535 * 0x1000;
    assert_eq!(
        client.refused(MAP, &map(RW, 0, last, 0x1000)),
        Errno::ENOSPC
    );
    client.call(UNMAP, &unmap(0, 0x1000, 0x1000));
    client.call(MAP, &map(RW, 0, last, 0x1000));
}
