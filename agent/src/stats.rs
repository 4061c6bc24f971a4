//! Counters of devices, read from the file in which a device's process keeps them.
//!
//! The file is the process's to write, and a process that a guest has taken over may write anything: what is read is a copy
//! of a fixed size, and every part of it is looked at before it is used. The layout is documented where it is written, in
//! `devices/process`: words of eight bytes, a magic, a version, the count of entries, then name, unit, kind and value of
//! each.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::OFlag;

/// What the agent gives a process for its counters, and reads of it.
pub(crate) const FILE_BYTES: usize = 8192;

const MAGIC: [u8; 8] = *b"vfustats";
const VERSION: u64 = 1;
const HEADER_BYTES: usize = 32;
const NAME_BYTES: usize = 40;
const UNIT_BYTES: usize = 16;
const ENTRY_BYTES: usize = NAME_BYTES + UNIT_BYTES + 16;

/// How often a file that changes meanwhile is read; then its values are of moments close to one another.
const READINGS: usize = 4;
/// Processes of which it is remembered that they wrote garbage.
const MAX_COMPLAINTS: usize = 4096;

/// How a number behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// One number of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) kind: Kind,
    pub(crate) value: u64,
}

/// Where the numbers of a device are.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) path: PathBuf,
}

/// Why a device has no numbers.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {problem}", path.display())]
    Garbage { path: PathBuf, problem: String },
}

/// Reads the numbers of devices, and complains once of a process whose numbers are none.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    complaints: Mutex<BTreeMap<String, i32>>,
}

impl Reader {
    /// The numbers of a device; none when its process keeps none, or what is no numbers. Blocks as long as reading a few
    /// KiB takes.
    pub(crate) fn read(&self, source: &Source) -> Vec<Stat> {
        match read(&source.path) {
            Ok(stats) => stats,
            Err(error) => {
                if self.is_news(source) {
                    let error = crate::chain::chain(&error);
                    tracing::warn!(
                        id = source.id,
                        pid = source.pid,
                        error,
                        "device without counters"
                    );
                }
                Vec::new()
            }
        }
    }

    fn is_news(&self, source: &Source) -> bool {
        let mut complaints = self.complaints.lock().expect("no holder panics");
        if complaints.len() >= MAX_COMPLAINTS {
            complaints.clear();
        }
        complaints.insert(source.id.clone(), source.pid) != Some(source.pid)
    }
}

fn read(path: &Path) -> Result<Vec<Stat>, Error> {
    // What the process may have put there instead is not followed, and not waited for.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path);
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = match file {
        // A program that keeps no numbers, or an agent that gave it no file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(failed)?,
    };
    let mut bytes = [0; FILE_BYTES];
    let mut readings = READINGS;
    loop {
        let length = file.read_at(&mut bytes, 0).map_err(failed)?;
        readings -= 1;
        let parsed = parse(&bytes[..length]).map_err(|problem| Error::Garbage {
            path: path.to_owned(),
            problem,
        })?;
        if parsed.is_whole || readings == 0 {
            return Ok(parsed.stats);
        }
    }
}

#[derive(Debug)]
struct Parsed {
    stats: Vec<Stat>,
    /// All values are of one moment.
    is_whole: bool,
}

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let word = |at: usize| {
        let word = bytes.get(at..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*word))
    };
    let too_short = || format!("{} bytes are too few", bytes.len());
    let magic = bytes.first_chunk().ok_or_else(too_short)?;
    if *magic == [0; 8] {
        // Not there yet.
        let stats = Vec::new();
        return Ok(Parsed {
            stats,
            is_whole: true,
        });
    }
    if *magic != MAGIC {
        return Err(format!(
            "begins with {:?}",
            magic.escape_ascii().to_string()
        ));
    }
    let version = word(8).ok_or_else(too_short)?;
    if version != VERSION {
        return Err(format!("layout {version} is not known, {VERSION} is"));
    }
    let count = word(16).ok_or_else(too_short)?;
    let complete = word(24).ok_or_else(too_short)?;
    let entries = usize::try_from(count)
        .ok()
        .and_then(|count| count.checked_mul(ENTRY_BYTES))
        .and_then(|bytes_all| bytes[HEADER_BYTES..].get(..bytes_all))
        .ok_or_else(|| format!("{count} entries do not fit into {} bytes", bytes.len()))?;
    let begun = word(HEADER_BYTES + entries.len()).ok_or_else(too_short)?;
    let (entries, _) = entries.as_chunks();
    let mut stats = Vec::with_capacity(entries.len());
    for (entry, index) in entries.iter().zip(0..) {
        let stat = parse_entry(entry).map_err(|problem| format!("entry {index}: {problem}"))?;
        stats.push(stat);
    }
    Ok(Parsed {
        stats,
        is_whole: complete == begun,
    })
}

fn parse_entry(entry: &[u8; ENTRY_BYTES]) -> Result<Stat, String> {
    let (name, rest) = entry.split_at(NAME_BYTES);
    let (unit, rest) = rest.split_at(UNIT_BYTES);
    let (words, _) = rest.as_chunks();
    let [kind, value] = [words[0], words[1]].map(u64::from_ne_bytes);
    let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_');
    Ok(Stat {
        name: text(name, is_name)
            .filter(|name| !name.is_empty())
            .ok_or_else(|| "its name is none".to_owned())?,
        unit: text(unit, |byte| byte.is_ascii_graphic())
            .ok_or_else(|| "its unit is none".to_owned())?,
        kind: match kind {
            1 => Kind::Counter,
            2 => Kind::Gauge,
            other => return Err(format!("there is no kind {other}")),
        },
        value,
    })
}

/// The text in a field that it does not fill, or just does.
fn text(field: &[u8], allowed: impl Fn(u8) -> bool) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0);
    let (text, rest) = field.split_at(end.unwrap_or(field.len()));
    let is_text = text.iter().all(|byte| allowed(*byte)) && rest.iter().all(|byte| *byte == 0);
    is_text.then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, unit: &str, kind: u64, value: u64) -> Vec<u8> {
        let mut entry = [0; ENTRY_BYTES];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[40..40 + unit.len()].copy_from_slice(unit.as_bytes());
        entry[56..64].copy_from_slice(&kind.to_ne_bytes());
        entry[64..].copy_from_slice(&value.to_ne_bytes());
        entry.to_vec()
    }

    /// A page with these entries, in a file as long as the agent makes it.
    fn page(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"vfustats".to_vec();
        for word in [1, entries.len() as u64, 5] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend(entries.concat());
        bytes.extend_from_slice(&5u64.to_ne_bytes());
        bytes.resize(FILE_BYTES, 0);
        bytes
    }

    fn good() -> Vec<Vec<u8>> {
        vec![
            entry("region.reads", "{access}", 1, u64::MAX),
            entry("queue.length", "1", 2, 3),
        ]
    }

    fn problem(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err()
    }

    #[test]
    fn entries_are_read_in_order() {
        let Parsed { stats, is_whole } = parse(&page(&good())).unwrap();
        let stat = |name: &str, unit: &str, kind, value| Stat {
            name: name.to_owned(),
            unit: unit.to_owned(),
            kind,
            value,
        };
        let reads = stat("region.reads", "{access}", Kind::Counter, u64::MAX);
        assert_eq!(stats, [reads, stat("queue.length", "1", Kind::Gauge, 3)]);
        assert!(is_whole);
        let longest = "n".repeat(40);
        let full = page(&[entry(&longest, "0123456789abcdef", 1, 0)]);
        assert_eq!(parse(&full).unwrap().stats[0].name, longest);
    }

    #[test]
    fn a_page_that_changes_meanwhile_is_known() {
        let mut changing = page(&good());
        changing[24] += 1;
        assert!(!parse(&changing).unwrap().is_whole);
    }

    #[test]
    fn what_is_no_page_is_refused_with_what_is_wrong() {
        let changed = |at: usize, to: u64| {
            let mut bytes = page(&good());
            bytes[at..at + 8].copy_from_slice(&to.to_ne_bytes());
            bytes
        };
        assert_eq!(problem(&[]), "0 bytes are too few");
        assert_eq!(problem(&page(&good())[..31]), "31 bytes are too few");
        assert!(problem(&changed(0, 7)).starts_with("begins with"));
        assert_eq!(problem(&changed(8, 2)), "layout 2 is not known, 1 is");
        for count in [114, 1 << 32, u64::MAX] {
            let wrong = problem(&changed(16, count));
            assert_eq!(wrong, format!("{count} entries do not fit into 8192 bytes"));
        }
        assert_eq!(problem(&changed(32 + 56, 3)), "entry 0: there is no kind 3");
        let named = |name: &str, unit: &str| problem(&page(&[entry(name, unit, 1, 0)]));
        for name in ["", "a b", "A", "a\u{7f}", "a\0b", "a\n", "\u{e4}"] {
            assert_eq!(named(name, ""), "entry 0: its name is none", "{name:?}");
        }
        for unit in [" ", "a\0b", "\x1b"] {
            assert_eq!(named("a", unit), "entry 0: its unit is none", "{unit:?}");
        }
    }

    #[test]
    fn a_process_without_counters_has_none_and_one_with_garbage_is_named_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stats");
        let reader = Reader::default();
        let source = |pid| Source {
            id: "nic0".to_owned(),
            pid,
            path: path.clone(),
        };
        assert_eq!(read(&path).unwrap(), [], "no file");
        std::fs::write(&path, [0; FILE_BYTES]).unwrap();
        assert_eq!(read(&path).unwrap(), [], "not there yet");
        std::fs::write(&path, page(&good())).unwrap();
        assert_eq!(reader.read(&source(1)).len(), 2);
        std::fs::write(&path, "garbage!".repeat(1000)).unwrap();
        assert_eq!(reader.read(&source(1)), []);
        assert!(!reader.is_news(&source(1)), "it was said");
        assert!(reader.is_news(&source(2)), "another process");
    }

    #[test]
    fn nothing_but_a_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("link")).unwrap();
        for name in ["fifo", "link", "."] {
            assert!(matches!(read(&at(name)), Err(Error::Read { .. })), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_more_of_a_page_than_there_is(
            noise in prop::collection::vec((0..FILE_BYTES, any::<u8>()), 0..64),
            length in 0..=FILE_BYTES,
        ) {
            let mut bytes = page(&good());
            for (at, byte) in noise {
                bytes[at] = byte;
            }
            if let Ok(parsed) = parse(&bytes[..length]) {
                prop_assert!(parsed.stats.len() * ENTRY_BYTES <= length);
                for stat in parsed.stats {
                    let printable = |text: &str| text.bytes().all(|it| it.is_ascii_graphic());
                    prop_assert!(printable(&stat.name) && printable(&stat.unit));
                }
            }
        }
    }
}
