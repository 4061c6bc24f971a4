//! The log of what the device writes to guest memory, which a client that migrates the guest asks for again and again.
//!
//! One bit per page of addresses, in chunks that are made when something in them is written. A guest can spread its writes so
//! that no bound on the chunks is enough; beyond the bound everything counts as written until logging ends, which costs the
//! client copies and loses nothing.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::last;
use crate::message::LoggingRange;

/// The largest bitmap of dirty pages in one reply: for 256 GiB in pages of 4 KiB.
pub(crate) const MAX_BITMAP_BYTES: u64 = 8 << 20;
const MIN_PAGE_BYTES: u64 = 4 << 10;
const MAX_PAGE_BYTES: u64 = 1 << 30;
/// 4 KiB of bits: 128 MiB of addresses with the smallest pages.
const CHUNK_WORDS: usize = 512;
const CHUNK_PAGES: u64 = CHUNK_WORDS as u64 * 64;
/// 32 MiB of bits.
const MAX_CHUNKS: usize = 8192;
/// As many as the kernel takes.
const MAX_RANGES: usize = 256;

/// The pages that were written since they were last reported.
#[derive(Debug)]
pub(super) struct DirtyLog {
    page_shift: u32,
    /// First and last address; sorted and disjoint. None at all: everything is logged.
    ranges: Vec<(u64, u64)>,
    chunks: BTreeMap<u64, Box<Chunk>>,
    /// There were too many chunks.
    everything: bool,
}

type Chunk = [u64; CHUNK_WORDS];

impl DirtyLog {
    /// Logs writes to the ranges, or all writes if there are none. The page size is a wish.
    ///
    /// # Errors
    /// `EINVAL` for a range that is empty or wraps; `E2BIG` for too many.
    pub(super) fn new(page_bytes: u64, ranges: &[LoggingRange]) -> Result<Self, Errno> {
        if ranges.len() > MAX_RANGES {
            return Err(Errno::E2BIG);
        }
        let ranges = ranges
            .iter()
            .map(|range| Ok((range.iova, last(range.iova, range.size_bytes)?)))
            .collect::<Result<Vec<_>, Errno>>()?;
        Ok(Self::with_ranges(page_bytes, ranges))
    }

    fn with_ranges(page_bytes: u64, mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, range| {
            let overlap = next.0 <= range.1;
            if overlap {
                range.1 = range.1.max(next.1);
            }
            overlap
        });
        Self {
            page_shift: page_bytes.clamp(MIN_PAGE_BYTES, MAX_PAGE_BYTES).ilog2(),
            ranges,
            chunks: BTreeMap::new(),
            everything: false,
        }
    }

    pub(super) fn save(&self) -> SavedLog {
        let encode = |chunk: &Chunk| BASE64_STANDARD.encode(chunk.as_bytes());
        let chunks = self.chunks.iter();
        SavedLog {
            page_bytes: self.page_bytes(),
            ranges: self.ranges.clone(),
            chunks: chunks
                .map(|(index, chunk)| (*index, encode(chunk)))
                .collect(),
            everything: self.everything,
        }
    }

    /// # Errors
    /// `EINVAL` for what [`DirtyLog::save`] does not give.
    pub(super) fn restore(saved: SavedLog) -> Result<Self, Errno> {
        let is_empty = |range: &(u64, u64)| range.0 > range.1;
        let mut log = Self::with_ranges(saved.page_bytes, saved.ranges);
        let last_chunk = (u64::MAX >> log.page_shift) / CHUNK_PAGES;
        if log.page_bytes() != saved.page_bytes
            || log.ranges.len() > MAX_RANGES
            || log.ranges.iter().any(is_empty)
            || saved.chunks.len() > MAX_CHUNKS
            || saved.chunks.iter().any(|(index, _)| *index > last_chunk)
        {
            return Err(Errno::EINVAL);
        }
        for (index, text) in saved.chunks {
            let bytes = BASE64_STANDARD.decode(text).map_err(|_| Errno::EINVAL)?;
            let chunk = Chunk::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)?;
            log.chunks.insert(index, Box::new(chunk));
        }
        log.everything = saved.everything;
        Ok(log)
    }

    pub(super) fn page_bytes(&self) -> u64 {
        1 << self.page_shift
    }

    /// Notes a write of at least one byte.
    pub(super) fn mark(&mut self, iova: u64, len: usize) {
        let last = iova.saturating_add(len as u64 - 1);
        if self.ranges.is_empty() {
            return self.mark_pages(iova >> self.page_shift, last >> self.page_shift);
        }
        let mut at = self.ranges.partition_point(|range| range.1 < iova);
        while let Some((start, end)) = self.ranges.get(at).filter(|range| range.0 <= last) {
            let (first, last) = (iova.max(*start), last.min(*end));
            self.mark_pages(first >> self.page_shift, last >> self.page_shift);
            at += 1;
        }
    }

    fn mark_pages(&mut self, first: u64, last: u64) {
        for index in first / CHUNK_PAGES..=last / CHUNK_PAGES {
            if self.everything {
                return;
            }
            if self.chunks.len() >= MAX_CHUNKS && !self.chunks.contains_key(&index) {
                self.everything = true;
                self.chunks.clear();
                return;
            }
            let chunk = self
                .chunks
                .entry(index)
                .or_insert_with(|| Box::new([0; CHUNK_WORDS]));
            let base = index * CHUNK_PAGES;
            let until = last.min(base + (CHUNK_PAGES - 1));
            set(&mut chunk[..], first.max(base) - base, until - base);
        }
    }

    /// Appends a bit for each `page_bytes` from `iova` on: whether anything in it was written since it was last reported.
    /// A page that the range has only in part is reported again with the rest of it.
    ///
    /// # Errors
    /// `EINVAL` for an empty or wrapping range or a page size that is no power of two; `E2BIG` when the bits would not fit
    /// into a message: ask for less at once.
    pub(super) fn report(
        &mut self,
        iova: u64,
        size_bytes: u64,
        page_bytes: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let last = last(iova, size_bytes)?;
        let mut bitmap = vec![0u64; bitmap_bytes(size_bytes, page_bytes)? / 8];
        if self.everything {
            set(&mut bitmap, 0, (size_bytes - 1) / page_bytes);
        } else {
            self.take(iova, last, |from, to| {
                set(
                    &mut bitmap,
                    (from - iova) / page_bytes,
                    (to - iova) / page_bytes,
                );
            });
        }
        out.extend_from_slice(bitmap.as_bytes());
        Ok(())
    }

    /// Hands out what was written from `iova` to `last`, as ranges, and forgets the pages that lie there as a whole.
    fn take(&mut self, iova: u64, last: u64, mut written: impl FnMut(u64, u64)) {
        let shift = self.page_shift;
        let within_page = (1u64 << shift) - 1;
        // The pages that are reported, and of these the ones that are whole.
        let pages = (iova >> shift, last >> shift);
        let whole = (
            pages.0 + u64::from(iova & within_page != 0),
            (last >> shift).checked_sub(u64::from(last & within_page != within_page)),
        );
        let mut empty = Vec::new();
        let chunks = self
            .chunks
            .range_mut(pages.0 / CHUNK_PAGES..=pages.1 / CHUNK_PAGES);
        for (index, chunk) in chunks {
            for (word, at) in chunk.iter_mut().zip(0u64..) {
                let base = index * CHUNK_PAGES + at * 64;
                for (first, end) in runs(*word & mask(base, pages.0, pages.1), base) {
                    written(
                        (first << shift).max(iova),
                        (end << shift | within_page).min(last),
                    );
                }
                *word &= !whole.1.map_or(0, |end| mask(base, whole.0, end));
            }
            if chunk.iter().all(|word| *word == 0) {
                empty.push(*index);
            }
        }
        for index in empty {
            self.chunks.remove(&index);
        }
    }
}

/// A log of writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedLog {
    page_bytes: u64,
    /// First and last address.
    ranges: Vec<(u64, u64)>,
    /// By number, the bits of those in which something was written; in base64. Lists of pages would be shorter in most cases,
    /// and a hundred times longer where the guest wants it.
    chunks: Vec<(u64, String)>,
    everything: bool,
}

/// How long the bitmap for a range is: whole words.
///
/// # Errors
/// `EINVAL` for a page size that is no power of two; `E2BIG` for more than fits into a message.
pub(crate) fn bitmap_bytes(size_bytes: u64, page_bytes: u64) -> Result<usize, Errno> {
    if !page_bytes.is_power_of_two() {
        return Err(Errno::EINVAL);
    }
    match size_bytes.div_ceil(page_bytes).div_ceil(64) * 8 {
        bytes @ 0..=MAX_BITMAP_BYTES => Ok(bytes as usize),
        _ => Err(Errno::E2BIG),
    }
}

/// Sets the bits from `first` to `last`.
fn set(words: &mut [u64], first: u64, last: u64) {
    let range = (first / 64) as usize..=(last / 64) as usize;
    for (word, base) in words[range].iter_mut().zip((first / 64 * 64..).step_by(64)) {
        *word |= mask(base, first, last);
    }
}

/// The runs of ones in a word whose first bit is number `base`: first and last.
fn runs(mut word: u64, base: u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        let low = word.trailing_zeros();
        let count = word.checked_shr(low)?.trailing_ones();
        let first = base + u64::from(low);
        let last = first + u64::from(count - 1);
        word &= !mask(base, first, last);
        Some((first, last))
    })
}

/// Which of the 64 from `base` on lie from `first` to `last`.
fn mask(base: u64, first: u64, last: u64) -> u64 {
    let end = base | 63;
    if first > last || last < base || first > end {
        return 0;
    }
    let low = first.saturating_sub(base);
    let high = last.min(end) - base;
    (u64::MAX << low) & (u64::MAX >> (63 - high))
}
