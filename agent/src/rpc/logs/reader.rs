//! Reads a log line by line while it is being written to, and while its beginning is being taken away.
//!
//! A log has a hole where its older lines were (`supervisor/log.rs`): SEEK_DATA tells where it begins now. What is read
//! is looked at again afterwards: if there is a hole by now, what was read may be part of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::{Whence, lseek};
use prost_types::Timestamp;
use proto::v1::LogLine;

use crate::limits::MAX_LOG_BYTES;
use crate::plain;

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// A longer line comes in pieces.
const MAX_LINE_BYTES: usize = 16 << 10;
/// How far back lines are looked for: a process can make its log seem to be of any length.
const MAX_TAIL_BYTES: u64 = MAX_LOG_BYTES;
/// A time in front of a line is no longer.
const MAX_TIME_BYTES: usize = 40;

/// The seconds of all Timestamps that are valid.
const TIMES: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Where somebody is in a log.
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    offset: u64,
    /// Of a line whose end has not been read.
    pending: Vec<u8>,
    /// The line at `offset` has lost its beginning.
    is_torn: bool,
}

impl Reader {
    /// Reads all that is kept, or the last `tail` lines.
    pub(super) fn open(path: &Path, tail: Option<u64>) -> io::Result<Self> {
        let file = plain::open(OpenOptions::new().read(true), path)?;
        let begin = data_after(&file, 0)?;
        let mut reader = Self {
            offset: begin,
            is_torn: begin > 0,
            pending: Vec::new(),
            file,
        };
        if let Some(tail) = tail {
            reader.go_to_tail(tail)?;
        }
        Ok(reader)
    }

    /// Goes to where the last `count` lines begin.
    fn go_to_tail(&mut self, count: u64) -> io::Result<()> {
        let mut end = self.file.metadata()?.len();
        let begin = self.offset.max(end.saturating_sub(MAX_TAIL_BYTES));
        if count == 0 {
            (self.offset, self.is_torn) = (end, false);
            return Ok(());
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        // The last line's end is not one between lines.
        let mut left = count;
        let mut is_last = true;
        while end > begin {
            let bytes = CHUNK_BYTES.min(usize::try_from(end - begin).unwrap_or(CHUNK_BYTES));
            let part = &mut chunk[..bytes];
            end -= bytes as u64;
            self.file.read_exact_at(part, end)?;
            for (index, byte) in part.iter().enumerate().rev() {
                if *byte == b'\n' && !is_last {
                    left -= 1;
                    if left == 0 {
                        self.offset = end + index as u64 + 1;
                        self.is_torn = false;
                        return Ok(());
                    }
                }
                is_last = false;
            }
        }
        self.is_torn |= begin > self.offset;
        self.offset = begin;
        Ok(())
    }

    /// The next lines, and whether there may be more of them now.
    pub(super) fn read(&mut self, lines: &mut Vec<LogLine>) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let bytes = self.file.read_at(&mut chunk, self.offset)?;
        let begin = data_after(&self.file, self.offset)?;
        if begin != self.offset {
            let lost = begin.saturating_sub(self.offset);
            lines.push(line(
                format!("vfu-agent: {lost} bytes of log were dropped before they were read")
                    .as_bytes(),
            ));
            self.pending.clear();
            self.is_torn = begin > 0;
            self.offset = begin;
            return Ok(true);
        }
        self.offset += bytes as u64;
        for part in chunk[..bytes].split_inclusive(|byte| *byte == b'\n') {
            let is_whole = part.ends_with(b"\n");
            if self.is_torn {
                self.is_torn = !is_whole;
                continue;
            }
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            self.pending.extend_from_slice(text);
            while self.pending.len() > MAX_LINE_BYTES {
                let rest = self.pending.split_off(piece(&self.pending));
                lines.push(line(&self.pending));
                self.pending = rest;
            }
            if is_whole {
                lines.push(line(&self.pending));
                self.pending.clear();
            }
        }
        Ok(bytes > 0)
    }

    /// What there is of a line that nobody has ended.
    pub(super) fn rest(&mut self) -> Option<LogLine> {
        let rest = std::mem::take(&mut self.pending);
        (!rest.is_empty()).then(|| line(&rest))
    }
}

/// Where the next byte that is kept is: at `offset`, after a hole, or at the beginning of a log that was emptied.
fn data_after(file: &File, offset: u64) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if end < offset {
        return Ok(0);
    }
    let from = i64::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
    match lseek(file, from, Whence::SeekData) {
        Ok(found) => Ok(u64::try_from(found).unwrap_or(offset)),
        // Nothing is kept after it, if anything is there at all: as it is, or as it was when the file ended earlier.
        Err(nix::errno::Errno::ENXIO) => Ok(end),
        // A file system that knows no holes has none.
        Err(nix::errno::Errno::EINVAL) => Ok(offset),
        Err(errno) => Err(errno.into()),
    }
}

/// How much of a line that is too long is a piece: not a part of a character, if it has such.
fn piece(bytes: &[u8]) -> usize {
    let begins = |index: &usize| bytes[*index] & 0xc0 != 0x80;
    let last = (MAX_LINE_BYTES - 3..=MAX_LINE_BYTES).rev().find(begins);
    last.unwrap_or(MAX_LINE_BYTES)
}

fn line(bytes: &[u8]) -> LogLine {
    LogLine {
        time: time(bytes),
        text: String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// The time that a line begins with, or that its JSON does.
fn time(line: &[u8]) -> Option<Timestamp> {
    let line = line.strip_prefix(br#"{"timestamp":""#).unwrap_or(line);
    let end = line.iter().take(MAX_TIME_BYTES);
    let end = end.take_while(|byte| !b" \"".contains(byte)).count();
    let text = std::str::from_utf8(line.get(..end)?).ok()?;
    // Its parser takes dates without a time, too.
    let time: Timestamp = text.contains('T').then(|| text.parse().ok())??;
    // What others than the year 1 to 9999 have is no Timestamp to most languages.
    TIMES.contains(&time.seconds).then_some(time)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::fcntl::{FallocateFlags, fallocate};

    use super::*;

    struct Log {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
        file: File,
    }

    impl Log {
        fn new(text: &[u8]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            let options = || {
                let mut options = File::options();
                options.create(true).append(true);
                options
            };
            let mut file = options().open(&path).unwrap();
            file.write_all(text).unwrap();
            Self {
                _directory: directory,
                path,
                file,
            }
        }

        fn tail(&self, count: u64) -> Vec<String> {
            texts(&mut Reader::open(&self.path, Some(count)).unwrap())
        }

        fn drop_before(&self, offset: i64) {
            let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&self.file, hole, 0, offset).unwrap();
        }
    }

    fn texts(reader: &mut Reader) -> Vec<String> {
        let mut lines = Vec::new();
        while reader.read(&mut lines).unwrap() {}
        lines.into_iter().map(|it| it.text).collect()
    }

    #[test]
    fn the_tail_is_so_many_lines() {
        let log = Log::new(b"a\nb\n\nc\n");
        assert_eq!(log.tail(0), [""; 0]);
        assert_eq!(log.tail(1), ["c"]);
        assert_eq!(log.tail(2), ["", "c"]);
        assert_eq!(log.tail(4), ["a", "b", "", "c"]);
        assert_eq!(log.tail(u64::MAX), ["a", "b", "", "c"]);
        assert_eq!(Log::new(b"").tail(7), [""; 0]);
        let long = (0..100_000).map(|it| format!("{it}\n")).collect::<String>();
        let log = Log::new(long.as_bytes());
        let expected: Vec<_> = (40_000..100_000).map(|it| it.to_string()).collect();
        assert_eq!(log.tail(60_000), expected);
    }

    #[test]
    fn a_log_that_seems_to_have_no_end_is_not_read_to_its_beginning() {
        let log = Log::new(b"a\nb\n");
        log.file.set_len(1 << 42).unwrap();
        let mut reader = Reader::open(&log.path, Some(7)).unwrap();
        assert_eq!(reader.offset, (1 << 42) - MAX_TAIL_BYTES);
        assert!(texts(&mut reader).len() <= 1);
    }

    #[test]
    fn a_line_without_an_end_waits_for_it() {
        let mut log = Log::new(b"a\nb");
        let mut reader = Reader::open(&log.path, None).unwrap();
        assert_eq!(texts(&mut reader), ["a"]);
        log.file.write_all(b"c\nd").unwrap();
        assert_eq!(texts(&mut reader), ["bc"]);
        assert_eq!(reader.rest().unwrap().text, "d");
        assert_eq!(reader.rest(), None);
        assert_eq!(log.tail(1), [""; 0]);
    }

    #[test]
    fn lines_have_bounds_and_are_text() {
        let long = "é".repeat(100_000);
        let mut log = Log::new(long.as_bytes());
        log.file.write_all(b"\n\xff\n").unwrap();
        let mut reader = Reader::open(&log.path, None).unwrap();
        let mut pieces = texts(&mut reader);
        assert_eq!(pieces.pop().unwrap(), "\u{fffd}");
        assert!(pieces.iter().all(|it| it.len() <= MAX_LINE_BYTES));
        assert_eq!(pieces.concat(), long);
    }

    #[test]
    fn who_reads_is_told_of_what_was_dropped_and_gets_whole_lines() {
        let text = (0..10_000)
            .map(|it| format!("{it:07}\n"))
            .collect::<String>();
        let mut log = Log::new(text.as_bytes());
        let mut reader = Reader::open(&log.path, Some(10_000)).unwrap();
        log.drop_before(4096 + 4096);
        let read = texts(&mut reader);
        assert!(
            read[0].contains("8192 bytes of log were dropped"),
            "{}",
            read[0]
        );
        // The line that begins with the kept part is taken for one that lost its beginning.
        assert_eq!(read[1], "0001025");
        assert_eq!(read.len(), 1 + 10_000 - 1025);
        assert_eq!(log.tail(u64::MAX)[0], "0001025");
        log.file.set_len(0).unwrap();
        log.file.write_all(b"anew\n").unwrap();
        assert_eq!(texts(&mut reader)[1..], ["anew"]);
    }

    #[test]
    fn a_line_says_when_it_was_written() {
        let seconds = |text: &[u8]| time(text).map(|it| (it.seconds, it.nanos));
        let expected = Some((1_795_395_270, 525_549_000));
        assert_eq!(
            seconds(b"2026-11-23T00:54:30.525549Z  INFO vfu_device: serving"),
            expected
        );
        assert_eq!(
            seconds(br#"{"timestamp":"2026-11-23T00:54:30.525549Z","level":"INFO"}"#),
            expected
        );
        for other in [
            &b""[..],
            b"x",
            b"T",
            b"\xff",
            b"2026-11-23 x",
            b"9999999999999",
            b"+292277026596-12-04T15:30:07Z",
            b"-0001-01-01T00:00:00Z",
        ] {
            assert_eq!(seconds(other), None);
        }
    }
}
