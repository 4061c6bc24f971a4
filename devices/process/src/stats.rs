//! The counters of the device in a file that others read meanwhile, mapped, so that to keep it up to date is to write memory.
//!
//! The device counts in numbers of its own. They are copied to the file after each turn of the loop, when the client has its
//! answer, or a tenth of a second later when the loop sleeps in the client's connection, where requests are served soonest.
//! One that has nothing to copy is not woken for it.
//!
//! # Layout
//!
//! Words of eight bytes in the host's byte order:
//!
//! | Word | |
//! |---|---|
//! | 0 | magic: the bytes `vfustats`; all zeros until the rest is there |
//! | 1 | version of this layout: 1 |
//! | 2 | N, the count of entries |
//! | 3 | how many copies are complete |
//! | 4 + 9i | entry i: name, ASCII, 40 bytes, zeros behind it |
//! | 9 + 9i | unit (UCUM), ASCII, 16 bytes, zeros behind it |
//! | 11 + 9i | kind: 1 counter, 2 gauge |
//! | 12 + 9i | value |
//! | 4 + 9N | how many copies have begun |
//!
//! All but the values and the two counts of copies stays as it is for the process's life. Who reads the file from its front to
//! its end and finds the two counts equal has all values of one moment; else a copy came in between, and the next reading
//! will do.

use std::{
    fs::File,
    os::fd::RawFd,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use pci::stats::{Kind, Sink};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory as _};

use crate::{failure::Failure, inherit};

const MAGIC: u64 = u64::from_ne_bytes(*b"vfustats");
const VERSION: u64 = 1;

/// Places, in words.
const VERSION_AT: usize = 1;
const COUNT_AT: usize = 2;
const COMPLETE_AT: usize = 3;
const ENTRIES_AT: usize = 4;
const ENTRY_WORDS: usize = 9;
const NAME_WORDS: usize = 5;
const UNIT_WORDS: usize = 2;
const KIND_AT: usize = 7;
const VALUE_AT: usize = 8;

const WORD_BYTES: usize = size_of::<u64>();
/// More of a file than this is not mapped.
const MAX_BYTES: u64 = 64 << 10;

/// Where the counters are kept, if anybody wants them.
pub(crate) struct Stats {
    page: Option<Page>,
}

struct Page {
    region: MmapRegion,
    /// Entries that it has room for.
    room: usize,
    /// Entries that it has; none before the first copy.
    count: Option<usize>,
    copies: u64,
}

impl Stats {
    /// Takes over the file that `--stats-fd` names.
    pub(crate) fn open(fd: Option<RawFd>) -> Result<Self, Failure> {
        let open = |fd| -> Result<Page, Failure> {
            let file = File::from(inherit::take("stats-fd", fd)?);
            Page::new(file).map_err(|problem| {
                Failure::invalid(format!(
                    "--stats-fd {fd}: {problem}; pass a file of at least a page that can be read and written"
                ))
            })
        };
        let page = fd.map(open).transpose()?;
        Ok(Self { page })
    }

    /// Copies what `report` puts: always the same entries in the same order. What there is no room for is left out.
    pub(crate) fn publish(&mut self, report: impl FnOnce(&mut dyn Sink)) {
        let Some(page) = &mut self.page else { return };
        match page.count {
            None => page.describe(report),
            Some(count) => page.update(count, report),
        }
    }
}

impl Page {
    fn new(file: File) -> Result<Self, String> {
        let bytes = file.metadata().map_err(|error| error.to_string())?.len();
        let bytes = bytes.min(MAX_BYTES) as usize;
        let words = bytes / WORD_BYTES;
        let room = words.saturating_sub(ENTRIES_AT + 1) / ENTRY_WORDS;
        if room == 0 {
            return Err(format!("{bytes} bytes are no room for counters"));
        }
        let region = MmapRegion::from_file(FileOffset::new(file, 0), bytes);
        Ok(Self {
            region: region.map_err(|error| error.to_string())?,
            room,
            count: None,
            copies: 0,
        })
    }

    /// The first copy, with names and all.
    fn describe(&mut self, report: impl FnOnce(&mut dyn Sink)) {
        let mut writer = Describe {
            page: self,
            next: 0,
        };
        report(&mut writer);
        let count = writer.next;
        self.word(VERSION_AT).store(VERSION, Ordering::Relaxed);
        self.word(COUNT_AT).store(count as u64, Ordering::Relaxed);
        self.word(0).store(MAGIC, Ordering::Release);
        self.count = Some(count);
    }

    /// Writes the values.
    fn update(&mut self, count: usize, report: impl FnOnce(&mut dyn Sink)) {
        self.copies += 1;
        let begun = ENTRIES_AT + ENTRY_WORDS * count;
        self.word(begun).store(self.copies, Ordering::Relaxed);
        // A value of this copy is not seen before its beginning is.
        fence(Ordering::Release);
        report(&mut Update {
            page: self,
            next: 0,
            count,
        });
        self.word(COMPLETE_AT).store(self.copies, Ordering::Release);
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let word = self.region.get_atomic_ref(WORD_BYTES * index);
        word.expect("entries are no more than there is room for, and a mapping is aligned")
    }

    fn store_text(&self, at: usize, words: usize, text: &str) {
        let mut chunks = text.as_bytes().chunks(WORD_BYTES);
        for index in at..at + words {
            let mut word = [0; WORD_BYTES];
            let chunk = chunks.next().unwrap_or_default();
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(index)
                .store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }
}

/// Writes entries.
struct Describe<'a> {
    page: &'a Page,
    next: usize,
}

impl Sink for Describe<'_> {
    fn put(&mut self, name: &'static str, unit: &'static str, kind: Kind, value: u64) {
        debug_assert!(name.len() <= NAME_WORDS * WORD_BYTES, "{name}");
        debug_assert!(unit.len() <= UNIT_WORDS * WORD_BYTES, "{unit}");
        if self.next == self.page.room {
            return;
        }
        let at = ENTRIES_AT + ENTRY_WORDS * self.next;
        self.next += 1;
        let kind = match kind {
            Kind::Counter => 1,
            Kind::Gauge => 2,
        };
        self.page.store_text(at, NAME_WORDS, name);
        self.page.store_text(at + NAME_WORDS, UNIT_WORDS, unit);
        self.page.word(at + KIND_AT).store(kind, Ordering::Relaxed);
        self.page
            .word(at + VALUE_AT)
            .store(value, Ordering::Relaxed);
    }
}

/// Writes the values of entries that are there.
struct Update<'a> {
    page: &'a Page,
    next: usize,
    count: usize,
}

impl Sink for Update<'_> {
    fn put(&mut self, _: &'static str, _: &'static str, _: Kind, value: u64) {
        if self.next < self.count {
            let at = ENTRIES_AT + ENTRY_WORDS * self.next + VALUE_AT;
            self.page.word(at).store(value, Ordering::Relaxed);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// A page in a file of so many bytes, and the file.
    fn page(bytes: u64) -> (Result<Page, String>, File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        (Page::new(file.try_clone().unwrap()), file)
    }

    fn report(sink: &mut dyn Sink, value: u64) {
        sink.count("region.reads", "{access}", value);
        sink.put("queue.length", "1", Kind::Gauge, value + 1);
    }

    fn words(file: &File, count: usize) -> Vec<u64> {
        let mut bytes = vec![0; WORD_BYTES * count];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (words, _) = bytes.as_chunks();
        words.iter().copied().map(u64::from_ne_bytes).collect()
    }

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_file_has_the_documented_layout() {
        let (page, file) = page(4096);
        let mut stats = Stats {
            page: Some(page.unwrap()),
        };
        assert_eq!(words(&file, 5), [0; 5], "nothing before the first copy");
        stats.publish(|sink| report(sink, 7));
        let first = words(&file, 23);
        assert_eq!(bytes(&first[..1]), *b"vfustats");
        assert_eq!(first[1..4], [1, 2, 0]);
        assert_eq!(
            bytes(&first[4..9]),
            *b"region.reads\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        );
        assert_eq!(bytes(&first[9..11]), *b"{access}\0\0\0\0\0\0\0\0");
        assert_eq!(first[11..13], [1, 7]);
        assert_eq!(bytes(&first[13..15]), *b"queue.length\0\0\0\0");
        assert_eq!(first[20..23], [2, 8, 0]);
        stats.publish(|sink| report(sink, 1 << 40));
        let second = words(&file, 23);
        assert_eq!((second[12], second[21]), (1 << 40, (1 << 40) + 1));
        assert_eq!((second[3], second[22]), (1, 1), "a copy begun and complete");
        let constant = |words: &[u64]| [&words[..3], &words[4..12], &words[13..21]].concat();
        assert_eq!(constant(&first), constant(&second));
    }

    #[test]
    fn what_has_no_room_is_left_out_and_nothing_else_happens() {
        let least = (ENTRIES_AT + ENTRY_WORDS + 1) * WORD_BYTES;
        let (page, file) = page(least as u64);
        let mut stats = Stats {
            page: Some(page.unwrap()),
        };
        for value in 1..3 {
            stats.publish(|sink| report(sink, value));
            let words = words(&file, 14);
            assert_eq!((words[2], words[12]), (1, value));
        }
        assert!(self::page(least as u64 - 8).0.is_err());
        assert!(self::page(0).0.is_err());
    }

    #[test]
    fn a_device_without_a_file_does_without() {
        let mut stats = Stats::open(None).unwrap();
        let mut asked = false;
        stats.publish(|_| asked = true);
        assert!(!asked);
    }
}
