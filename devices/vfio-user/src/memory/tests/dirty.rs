//! The log of writes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn range(iova: u64, size_bytes: u64) -> LoggingRange {
    LoggingRange { iova, size_bytes }
}

const NONE: [usize; 0] = [];

/// The numbers of the bits that are set.
fn bits(bitmap: &[u8]) -> Vec<usize> {
    (0..bitmap.len() * 8)
        .filter(|bit| bitmap[bit / 8] >> (bit % 8) & 1 == 1)
        .collect()
}

fn report(memory: &mut Memory, iova: u64, size_bytes: u64, page_bytes: u64) -> Vec<usize> {
    let mut out = vec![0xff];
    memory
        .report_dirty(iova, size_bytes, page_bytes, &mut out)
        .unwrap();
    assert_eq!(out.len() % 8, 1, "whole words after what was there");
    bits(&out[1..])
}

#[test]
fn each_page_that_is_written_is_reported_once() {
    let (mut memory, _file) = mapped(0x10_0000, 16);
    assert_eq!(memory.start_dirty_log(4096, &[]), Ok(4096));
    write(&mut memory, 0x10_1ffe, &[0; 4]).unwrap();
    write(&mut memory, 0x10_5000, &[0; 1]).unwrap();
    read(&mut memory, 0x10_8000, &mut [0; 8]).unwrap();
    assert_eq!(report(&mut memory, 0x10_0000, 16 * PAGE, 4096), [1, 2, 5]);
    assert_eq!(report(&mut memory, 0x10_0000, 16 * PAGE, 4096), NONE);
    write_each(&mut memory, 0x10_0ff0, 16, 0b11, 1).unwrap();
    write_each(&mut memory, 0x10_0000, 16, 0, 1).unwrap();
    assert_eq!(report(&mut memory, 0x10_0000, 16 * PAGE, 4096), [0, 1]);
    write(&mut memory, 0x10_2000, &[0; 1]).unwrap();
    assert_eq!(report(&mut memory, 0x10_0000, 2 * PAGE, 4096), NONE);
    assert_eq!(report(&mut memory, 0x10_2000, 2 * PAGE, 4096), [0]);
}

#[test]
fn what_the_client_writes_for_us_is_logged_too() {
    struct Client;
    impl Remote for Client {
        fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), Errno> {
            Ok(())
        }
        fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Errno> {
            Ok(())
        }
    }
    let (mut memory, _file) = mapped(0, 1);
    memory.map(PAGE, PAGE, RW, None).unwrap();
    memory.start_dirty_log(4096, &[]).unwrap();
    memory.write(&mut Client, PAGE - 1, &[0; 2]).unwrap();
    assert_eq!(report(&mut memory, 0, 2 * PAGE, 4096), [0, 1]);
}

#[test]
fn a_write_that_fails_half_way_is_logged() {
    let (mut memory, file) = mapped(0, 4);
    memory.start_dirty_log(4096, &[]).unwrap();
    file.set_len(PAGE).unwrap();
    write(&mut memory, 0, &[0; 8192]).unwrap_err();
    assert_eq!(report(&mut memory, 0, PAGE, 4096), [0]);
}

#[test]
fn bits_are_folded_and_replicated_to_the_page_size_of_the_report() {
    let (mut memory, _file) = mapped(0, 64);
    assert_eq!(memory.start_dirty_log(16 << 10, &[]), Ok(16 << 10));
    write(&mut memory, 5 * PAGE, &[0; 1]).unwrap();
    assert_eq!(report(&mut memory, 0, 64 * PAGE, 4096), [4, 5, 6, 7]);
    write(&mut memory, 5 * PAGE, &[0; 1]).unwrap();
    write(&mut memory, 40 * PAGE, &[0; 1]).unwrap();
    assert_eq!(report(&mut memory, 0, 64 * PAGE, 128 << 10), [0, 1]);
    write(&mut memory, 5 * PAGE, &[0; 1]).unwrap();
    assert_eq!(report(&mut memory, 0, 64 * PAGE, 1 << 63), [0]);
    write(&mut memory, 0, &[0; 1]).unwrap();
    assert_eq!(report(&mut memory, 0, 16, 1), (0..16).collect::<Vec<_>>());
}

#[test]
fn only_the_ranges_that_were_asked_for_are_logged() {
    let (mut memory, _file) = mapped(0, 16);
    let ranges = [
        range(8 * PAGE, PAGE),
        range(2 * PAGE, 2 * PAGE),
        range(3 * PAGE, 2 * PAGE),
    ];
    memory.start_dirty_log(4096, &ranges).unwrap();
    write(&mut memory, 0, &[0; 16 * 4096]).unwrap();
    assert_eq!(report(&mut memory, 0, 16 * PAGE, 4096), [2, 3, 4, 8]);
}

#[test]
fn the_page_size_that_is_asked_for_is_taken_where_it_can_be() {
    for (asked, chosen) in [
        (0, 4096),
        (1, 4096),
        (4096, 4096),
        (6000, 4096),
        (2 << 20, 2 << 20),
        (1 << 30, 1 << 30),
        (u64::MAX, 1 << 30),
    ] {
        let mut memory = Memory::default();
        assert_eq!(memory.start_dirty_log(asked, &[]), Ok(chosen), "{asked}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut memory = Memory::default();
    let mut out = Vec::new();
    let invalid = Err(Errno::EINVAL);
    assert_eq!(memory.report_dirty(0, PAGE, 4096, &mut out), invalid);
    for ranges in [[range(0, 0)], [range(u64::MAX, 2)], [range(PAGE, u64::MAX)]] {
        assert_eq!(
            memory.start_dirty_log(4096, &ranges),
            Err(Errno::EINVAL),
            "{ranges:?}"
        );
    }
    let many = vec![range(0, 1); 257];
    assert_eq!(memory.start_dirty_log(4096, &many), Err(Errno::E2BIG));
    memory.start_dirty_log(4096, &[range(u64::MAX, 1)]).unwrap();
    assert_eq!(memory.start_dirty_log(4096, &[]), Err(Errno::EINVAL));
    for (iova, size_bytes, page_bytes) in [
        (0, 0, 4096),
        (0, PAGE, 0),
        (0, PAGE, 4097),
        (u64::MAX, 2, 4096),
    ] {
        assert_eq!(
            memory.report_dirty(iova, size_bytes, page_bytes, &mut out),
            invalid,
            "{iova:#x} {size_bytes:#x} {page_bytes}"
        );
    }
    assert_eq!(
        memory.report_dirty(0, u64::MAX, 4096, &mut out),
        Err(Errno::E2BIG)
    );
    assert!(out.is_empty());
    memory.stop_dirty_log();
    assert_eq!(memory.report_dirty(0, PAGE, 4096, &mut out), invalid);
}

#[test]
fn writes_that_are_too_far_apart_make_everything_dirty() {
    const CHUNK: u64 = 128 << 20;
    let mut log = DirtyLog::new(4096, &[]).unwrap();
    for index in 0..8192 {
        log.mark(index * CHUNK, 1);
    }
    let mut out = Vec::new();
    log.report(4096, 4096, 4096, &mut out).unwrap();
    assert_eq!(bits(&out), NONE);
    log.mark(0, 1);
    log.mark(u64::MAX, 1);
    for _ in 0..2 {
        out.clear();
        log.report(4096, 3 * 4096, 4096, &mut out).unwrap();
        assert_eq!(bits(&out), [0, 1, 2]);
    }
}

#[test]
fn chunks_that_were_reported_make_room_for_others() {
    const CHUNK: u64 = 128 << 20;
    let mut log = DirtyLog::new(4096, &[]).unwrap();
    let mut out = Vec::new();
    for round in 0..4 {
        let base = round * 8192 * CHUNK;
        for index in 0..8192 {
            log.mark(base + index * CHUNK, 1);
        }
        out.clear();
        log.report(base, 8192 * CHUNK, CHUNK, &mut out).unwrap();
        assert_eq!(bits(&out).len(), 8192);
        out.clear();
        log.report(base, 8192 * CHUNK, CHUNK, &mut out).unwrap();
        assert_eq!(bits(&out), NONE);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize),
    Report(u64, u64, u64),
}

/// Addresses where something changes: the first pages, the border of two chunks, the last pages.
fn address() -> impl Strategy<Value = u64> {
    let pages = 40u64 * 4096;
    prop_oneof![
        0..pages,
        (128 << 20) - pages..(128 << 20) + pages,
        u64::MAX - pages..=u64::MAX
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (address(), 1usize..30_000).prop_map(|(iova, len)| Step::Write(iova, len)),
        (address(), 1u64..400_000, 9u32..20).prop_map(|(iova, len, shift)| Step::Report(
            iova,
            len,
            1 << shift
        )),
    ]
}

proptest! {
    #[test]
    fn reports_are_what_a_set_of_pages_says(
        page_shift in 12u32..16,
        ranges in proptest::collection::vec((address(), 1u64..200_000), 0..4),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let page_bytes = 1u64 << page_shift;
        let ranges: Vec<LoggingRange> = ranges
            .into_iter()
            .map(|(iova, len)| range(iova, len.min((u64::MAX - iova).max(1))))
            .collect();
        let logged = |from: u64, to: u64| {
            ranges.is_empty()
                || ranges.iter().any(|r| r.iova <= to && from <= r.iova + (r.size_bytes - 1))
        };
        let mut log = DirtyLog::new(page_bytes, &ranges).unwrap();
        let mut pages = BTreeSet::new();
        for step in steps {
            match step {
                Step::Write(iova, len) => {
                    let end = iova.saturating_add(len as u64 - 1);
                    log.mark(iova, (end - iova) as usize + 1);
                    for page in iova >> page_shift..=end >> page_shift {
                        let start = page << page_shift;
                        if logged(start.max(iova), (start | (page_bytes - 1)).min(end)) {
                            pages.insert(page);
                        }
                    }
                }
                Step::Report(iova, len, unit) => {
                    let len = len.min((u64::MAX - iova).max(1));
                    let end = iova + (len - 1);
                    let mut out = Vec::new();
                    log.report(iova, len, unit, &mut out).unwrap();
                    let count = len.div_ceil(unit);
                    prop_assert_eq!(out.len() as u64, count.div_ceil(64) * 8);
                    let expected: Vec<usize> = (0..count)
                        .filter(|bit| {
                            let first = iova + bit * unit;
                            let last = first.saturating_add(unit - 1).min(end);
                            pages.range(first >> page_shift..=last >> page_shift).next().is_some()
                        })
                        .map(|bit| bit as usize)
                        .collect();
                    prop_assert_eq!(bits(&out), expected);
                    pages.retain(|page| {
                        let start = page << page_shift;
                        start < iova || start | (page_bytes - 1) > end
                    });
                }
            }
        }
    }
}
