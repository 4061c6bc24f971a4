//! The log of what the device writes: DMA_LOGGING_START, STOP and REPORT, and DMA_UNMAP with a bitmap.

use std::{fs::File, os::fd::AsRawFd};

use nix::errno::Errno;

use crate::{
    support::{Client, DMA, Fake},
    wire::{longs, words},
};

const MAP: u16 = 2;
const UNMAP: u16 = 3;
const FEATURE: u16 = 16;
const PROBE: u32 = 1 << 18;
/// What SET and GET are with the features' indexes.
const START: u32 = 1 << 17 | 6;
const STOP: u32 = 1 << 17 | 7;
const REPORT: u32 = 1 << 16 | 8;

/// A client that has shared `pages` pages from address 0x10_0000 on.
fn with_memory(pages: u64, capabilities: &str) -> Client {
    let device = Fake {
        is_movable: true,
        ..Fake::default()
    };
    let mut client = Client::proposing(device, capabilities);
    let file: File = tempfile::tempfile().unwrap();
    let size = pages * 0x1000;
    file.set_len(size).unwrap();
    let request = [words(&[32, 3]), longs(&[0, 0x10_0000, size])].concat();
    let reply = client.call_with(MAP, &request, &[file.as_raw_fd()]);
    assert_eq!(reply.error, 0);
    client
}

fn start(page: u64, ranges: &[(u64, u64)]) -> Vec<u8> {
    let mut request = words(&[4096, START]);
    request.extend(longs(&[page]));
    request.extend(words(&[ranges.len() as u32, 0]));
    for (iova, length) in ranges {
        request.extend(longs(&[*iova, *length]));
    }
    request
}

fn report(argsz: u32, iova: u64, length: u64, page: u64) -> Vec<u8> {
    [words(&[argsz, REPORT]), longs(&[iova, length, page])].concat()
}

/// DMA_UNMAP with the flag for a bitmap, and what follows.
fn unmap(argsz: u32, address: u64, size: u64, page: u64, bitmap: u64) -> Vec<u8> {
    [words(&[argsz, 1]), longs(&[address, size, page, bitmap])].concat()
}

impl Client {
    /// Lets the device write to a page.
    fn dirty(&mut self, page: u64) {
        let iova = 0x10_0000 + page * 0x1000;
        self.write(DMA, &longs(&[iova + 5])).unwrap();
    }

    /// The bitmap of so many pages from address 0x10_0000 on.
    fn report(&mut self, pages: u64) -> Vec<u8> {
        let request = report(4096, 0x10_0000, pages * 0x1000, 0x1000);
        let reply = self.call(FEATURE, &request);
        assert_eq!(reply[..4], words(&[reply.len() as u32]));
        assert_eq!(reply[4..32], request[4..]);
        reply[32..].to_vec()
    }
}

#[test]
fn writes_are_reported_once() {
    let mut client = with_memory(130, "{}");
    client.dirty(7);
    let request = start(0x1000, &[]);
    assert_eq!(client.call(FEATURE, &request), request);
    assert_eq!(client.report(1), longs(&[0]), "it was written before");
    for page in [0, 3, 63, 64, 129] {
        client.dirty(page);
    }
    let written = [1 | 1 << 3 | 1 << 63, 1, 1 << 1];
    assert_eq!(client.report(130), longs(&written));
    assert_eq!(client.report(130), longs(&[0; 3]));
}

#[test]
fn only_the_ranges_are_logged() {
    let mut client = with_memory(8, "{}");
    let ranges = [(0x10_1000, 0x1000), (0x10_4000, 0x2000)];
    client.call(FEATURE, &start(0x1000, &ranges));
    (0..8).for_each(|page| client.dirty(page));
    assert_eq!(client.report(8), longs(&[0b11_0010]));
}

#[test]
fn the_page_size_is_answered_and_reports_may_have_another() {
    let mut client = with_memory(8, "{}");
    let asked = start(0x800, &[]);
    let mut reply = asked.clone();
    reply[8..16].copy_from_slice(&longs(&[0x1000]));
    assert_eq!(client.call(FEATURE, &asked), reply);
    client.dirty(2);
    let request = report(4096, 0x10_0000, 0x8000, 0x2000);
    assert_eq!(client.call(FEATURE, &request)[32..], longs(&[0b10]));
    client.dirty(2);
    let request = report(4096, 0x10_0000, 0x8000, 0x800);
    assert_eq!(client.call(FEATURE, &request)[32..], longs(&[0b11_0000]));
}

#[test]
fn logging_is_started_once_and_stopped_at_any_time() {
    let mut client = with_memory(1, "{}");
    let stop = words(&[8, STOP]);
    assert_eq!(client.call(FEATURE, &stop), stop);
    let request = report(4096, 0x10_0000, 0x1000, 0x1000);
    assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
    client.call(FEATURE, &start(0x1000, &[]));
    assert_eq!(client.refused(FEATURE, &start(0x1000, &[])), Errno::EINVAL);
    client.dirty(0);
    assert_eq!(client.call(FEATURE, &stop), stop);
    assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
    client.call(FEATURE, &start(0x1000, &[]));
    assert_eq!(client.report(1), longs(&[0]), "forgotten");
}

#[test]
fn bad_ranges_are_refused() {
    let mut client = with_memory(1, "{}");
    let mut short = start(0x1000, &[(0, 0x1000), (0x2000, 0x1000)]);
    short.pop();
    let mut many = start(0x1000, &[]);
    many[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    for bad in [
        short,
        many,
        start(0x1000, &[(0, 0)]),
        start(0x1000, &[(u64::MAX, 2)]),
        words(&[4096, START, 0x1000, 0, 0]),
        words(&[4096, START]),
        // No room for the reply.
        [&words(&[23])[..], &start(0x1000, &[])[4..]].concat(),
    ] {
        assert_eq!(client.refused(FEATURE, &bad), Errno::EINVAL, "{bad:?}");
    }
    let ranges: Vec<_> = (0..257).map(|i| (i * 0x2000, 0x1000)).collect();
    let mut request = start(0x1000, &ranges);
    request[..4].copy_from_slice(&8192u32.to_le_bytes());
    assert_eq!(client.refused(FEATURE, &request), Errno::E2BIG);
    client.call(FEATURE, &start(0x1000, &ranges[..200]));
}

#[test]
fn what_a_report_can_not_hold_is_not_forgotten() {
    let mut client = with_memory(
        1,
        r#"{"capabilities":{"migration":{"max_bitmap_size":64}}}"#,
    );
    client.call(FEATURE, &start(0x1000, &[]));
    client.dirty(0);
    let page = 0x1000;
    for bad in [
        // No room for the bitmap, no data at all, pages that are none, nothing, more than there is.
        report(39, 0x10_0000, page, page),
        words(&[4096, REPORT]),
        report(4096, 0x10_0000, page, 0),
        report(4096, 0x10_0000, page, 0x1001),
        report(4096, 0x10_0000, 0, page),
        report(4096, u64::MAX, page, page),
    ] {
        assert_eq!(client.refused(FEATURE, &bad), Errno::EINVAL, "{bad:?}");
    }
    // 64 bytes have room for 512 pages.
    for pages in [513, 1 << 40] {
        let request = report(4096, 0x10_0000, pages * page, page);
        assert_eq!(client.refused(FEATURE, &request), Errno::E2BIG);
    }
    assert_eq!(client.report(512)[..8], longs(&[1]));
}

#[test]
fn a_bitmap_is_bounded_without_negotiation() {
    let mut client = with_memory(1, "{}");
    client.call(FEATURE, &start(0x1000, &[]));
    let request = report(u32::MAX, 0, u64::MAX, 1);
    assert_eq!(client.refused(FEATURE, &request), Errno::E2BIG);
    let request = unmap(u32::MAX, 0, u64::MAX, 1, u64::MAX / 2);
    assert_eq!(client.refused(UNMAP, &request), Errno::E2BIG);
    let request = unmap(u32::MAX, 0x10_0000, 0x1000, 0x1000, u64::MAX - 39);
    assert_eq!(client.refused(UNMAP, &request), Errno::E2BIG);
}

#[test]
fn logging_is_probed_by_its_methods() {
    let mut client = with_memory(1, "{}");
    for (feature, other) in [(START, REPORT), (STOP, REPORT), (REPORT, START)] {
        let request = words(&[8, PROBE | feature]);
        assert_eq!(client.call(FEATURE, &request), request);
        let method = other & !0xffff;
        let request = words(&[8, PROBE | method | feature]);
        assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
        let request = words(&[64, method | feature & 0xffff, 0, 0, 0, 0, 0, 0]);
        assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
    }
}

#[test]
fn a_map_is_taken_back_with_what_was_written_to_it() {
    let mut client = with_memory(70, "{}");
    let size = 70 * 0x1000;
    let request = unmap(56, 0x10_0000, size, 0x1000, 16);
    assert_eq!(
        client.refused(UNMAP, &request),
        Errno::EINVAL,
        "nothing is logged"
    );
    client.call(FEATURE, &start(0x1000, &[]));
    client.dirty(1);
    client.dirty(69);
    for bad in [
        // No room for the bitmap, a bitmap that is too short, pages that are none, half of the structure, half of a map.
        unmap(55, 0x10_0000, size, 0x1000, 16),
        unmap(56, 0x10_0000, size, 0x1000, 15),
        unmap(56, 0x10_0000, size, 0, 16),
        unmap(56, 0x10_0000, size, 0x1001, 16),
        unmap(56, 0x10_0000, size, 0x1000, 16)[..39].to_vec(),
        unmap(56, 0x10_0000, 0x1000, 0x1000, 16),
    ] {
        assert_eq!(client.refused(UNMAP, &bad), Errno::EINVAL, "{bad:?}");
    }
    assert_eq!(
        client.call(UNMAP, &request),
        [&request[..], &longs(&[1 << 1, 1 << 5])].concat()
    );
    let write = client.write(DMA, &longs(&[0x10_0000]));
    assert_eq!(write, Err(Errno::EFAULT), "it is gone");
    assert_eq!(client.report(70), longs(&[0; 2]), "and was reported");
    assert_eq!(client.refused(UNMAP, &request), Errno::ENOENT);
}

#[test]
fn a_bitmap_may_be_longer_than_its_range() {
    let mut client = with_memory(1, "{}");
    client.call(FEATURE, &start(0x1000, &[]));
    client.dirty(0);
    let request = unmap(4096, 0x10_0000, 0x1000, 0x1000, 24);
    assert_eq!(
        client.call(UNMAP, &request),
        [&request[..], &longs(&[1, 0, 0])].concat()
    );
}
