//! A file of entries that only grows, whose end may be missing.
//!
//! An entry is its length, the CRC-32 of length and bytes, and the bytes, written in one call. Nothing is synced: what was
//! written survives the agent, whichever way that ends, and not the host. A kill in the midst of a write leaves the
//! beginning of an entry; that is cut off. Anything else that is not as it was written is an error.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// No entry is longer: what says otherwise is broken.
const MAX_ENTRY_BYTES: usize = 4 << 20;
const HEAD_BYTES: usize = 8;

/// What is at the end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The last entry.
    Whole,
    /// Bytes that are no entry. Before them are whole ones.
    Torn,
    /// An entry that is not as it was written.
    Broken,
}

/// Who writes a file.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
}

impl Writer {
    /// Begins an empty file, in place of what is there.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file })
    }

    /// Goes on with a file after its first `bytes`.
    pub(crate) fn append_to(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(path)?;
        file.set_len(bytes)?;
        Ok(Self { file })
    }

    /// Writes one entry.
    pub(crate) fn append(&mut self, entry: &[u8]) -> io::Result<()> {
        self.file.write_all(&framed(entry)?)
    }

    /// Writes entries, with few calls.
    pub(crate) fn append_all(&mut self, entries: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        let mut file = io::BufWriter::new(&self.file);
        for entry in entries {
            file.write_all(&framed(&entry)?)?;
        }
        file.flush()
    }

    #[cfg(test)]
    pub(crate) fn to(file: File) -> Self {
        Self { file }
    }
}

fn crc(length: [u8; 4], entry: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(entry);
    hasher.finalize()
}

fn framed(entry: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(entry.len()).ok();
    let length = length.filter(|_| entry.len() <= MAX_ENTRY_BYTES);
    let length = length.ok_or(io::ErrorKind::FileTooLarge)?.to_le_bytes();
    let mut framed = Vec::with_capacity(HEAD_BYTES + entry.len());
    framed.extend(length);
    framed.extend(crc(length, entry).to_le_bytes());
    framed.extend(entry);
    Ok(framed)
}

/// Reads entries, until one is refused by `take`. Says what is at the end, and how long the file is up to there.
pub(crate) fn read(path: &Path, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<(End, u64)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut good = 0;
    let mut entry = Vec::new();
    loop {
        let mut head = [0; HEAD_BYTES];
        match read_some(&mut file, &mut head)? {
            0 => return Ok((End::Whole, good)),
            HEAD_BYTES => {}
            _ => return Ok((End::Torn, good)),
        }
        let [a, b, c, d, crc @ ..] = head;
        let length = [a, b, c, d];
        let bytes = u32::from_le_bytes(length) as usize;
        if bytes > MAX_ENTRY_BYTES {
            return Ok((End::Broken, good));
        }
        entry.resize(bytes, 0);
        if read_some(&mut file, &mut entry)? < bytes {
            return Ok((End::Torn, good));
        }
        if self::crc(length, &entry) != u32::from_le_bytes(crc) || !take(&entry) {
            return Ok((End::Broken, good));
        }
        good += (HEAD_BYTES + bytes) as u64;
    }
}

/// Fills the buffer, as far as there is something to read.
fn read_some(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn entries(path: &Path) -> (Vec<Vec<u8>>, End, u64) {
        let mut entries = Vec::new();
        let (end, bytes) = read(path, |entry| {
            entries.push(entry.to_vec());
            true
        })
        .unwrap();
        (entries, end, bytes)
    }

    proptest! {
        #[test]
        fn a_file_that_is_cut_anywhere_has_the_entries_before_the_cut_and_goes_on(
            written in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..10),
            cut in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            let mut writer = Writer::create(&path).unwrap();
            let (first, rest) = written.split_first().unwrap();
            writer.append(first).unwrap();
            writer.append_all(rest.iter().cloned()).unwrap();
            let whole = fs::read(&path).unwrap();
            let bytes = whole.len() as u64;
            prop_assert_eq!(entries(&path), (written.clone(), End::Whole, bytes));

            let cut = cut.index(whole.len());
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut left, end, good) = entries(&path);
            prop_assert!(written.starts_with(&left));
            prop_assert_eq!(end == End::Torn, good < cut as u64);
            Writer::append_to(&path, good).unwrap().append(b"next").unwrap();
            left.push(b"next".to_vec());
            let (again, end, _) = entries(&path);
            prop_assert_eq!((again, end), (left, End::Whole));
        }

        #[test]
        fn a_byte_that_was_not_written_is_noticed(
            written in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..10),
            at in any::<prop::sample::Index>(),
            flip in 1_u8..,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            Writer::create(&path).unwrap().append_all(written.iter().cloned()).unwrap();
            let mut whole = fs::read(&path).unwrap();
            let at = at.index(whole.len());
            whole[at] ^= flip;
            fs::write(&path, &whole).unwrap();
            let (left, end, _) = entries(&path);
            prop_assert!(written.starts_with(&left) && left.len() < written.len());
            prop_assert_ne!(end, End::Whole);
        }
    }

    #[test]
    fn an_entry_too_long_is_neither_written_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut writer = Writer::create(&path).unwrap();
        assert!(writer.append(&vec![0; MAX_ENTRY_BYTES + 1]).is_err());
        fs::write(&path, [0xff; 100]).unwrap();
        assert_eq!(entries(&path), (Vec::new(), End::Broken, 0));
    }
}
