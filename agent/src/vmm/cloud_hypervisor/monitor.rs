//! The file or FIFO that the VMM writes its events to: JSON objects, one after another.
//!
//! Events tell early what `vm.info` tells anyhow, so none of them has to be seen. What is read is what is written from when
//! the file was opened, however large that is; who falls behind leaves out, and says so. A FIFO may have other readers, who
//! take a part of what is written. A file that is cut off is read from its beginning, and one that another has come in
//! place of is left for that once something has been written to it: the VMM itself keeps the file that it has opened.

use std::fs::Metadata;
use std::io::{self, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use serde::Deserialize;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::super::events::{Event, Feed};
use super::super::said;

/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;
/// The longest event that is taken. Real ones have some two hundred bytes.
const MAX_EVENT_BYTES: usize = 64 << 10;
/// So much that is not read yet is read; of more it is the last of it.
const MAX_BEHIND_BYTES: u64 = 1 << 20;

/// How often a file is looked at while somebody waits for an event, and else.
const OFTEN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(2);
/// What opening may take, of a file on a server that is gone.
const OPENING: Duration = Duration::from_secs(2);

/// Reads events.
#[derive(Debug)]
pub(super) struct Monitor {
    path: PathBuf,
    source: Option<Source>,
    parser: Parser,
    waiting: watch::Receiver<usize>,
}

#[derive(Debug)]
enum Source {
    File(Place),
    Fifo(pipe::Receiver),
}

/// A file, and how far it is read.
#[derive(Debug)]
struct Place {
    file: File,
    at: u64,
    /// Device and inode.
    identity: (u64, u64),
}

impl Monitor {
    /// Opens it, to read what is written from now on. Where that does not go it is tried again later. Somebody waits for
    /// events while the number in `waiting` is not zero.
    pub(super) async fn open(path: &Path, waiting: watch::Receiver<usize>) -> Self {
        let source = open(path, SeekFrom::End(0)).await;
        if let Err(error) = &source {
            warn!(
                path = %path.display(), %error,
                "events of the VMM can't be read; let the agent's user read the file of --event-monitor"
            );
        }
        Self {
            path: path.to_owned(),
            source: source.ok(),
            parser: Parser::default(),
            waiting,
        }
    }

    /// Tells what happens, until the caller has enough of it.
    pub(super) async fn run(mut self, feed: &Feed) -> ! {
        let mut looked_at_path = Instant::now();
        loop {
            let told = match &mut self.source {
                Some(source) => source.read(&mut self.parser).await,
                None => Ok(Told::default()),
            };
            let told = told.unwrap_or_else(|error| {
                debug!(%error, "events");
                self.source = None;
                Told::default()
            });
            for event in told.events {
                debug!(?event, "event");
                feed.tell(event);
            }
            if told.is_more {
                continue;
            }
            if looked_at_path.elapsed() >= SELDOM {
                self.look_at_path(feed).await;
                looked_at_path = Instant::now();
            }
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        let pause = match *self.waiting.borrow_and_update() {
            0 => SELDOM,
            _ => OFTEN,
        };
        tokio::select! {
            () = sleep(pause) => {}
            // Whose end is the session's.
            Ok(()) = self.waiting.changed() => {}
        }
    }

    /// Another file may have come to the path.
    async fn look_at_path(&mut self, feed: &Feed) {
        let is_other = match &self.source {
            None => true,
            Some(Source::Fifo(_)) => false,
            Some(Source::File(place)) => {
                let now = tokio::fs::metadata(&self.path).await;
                now.is_ok_and(|it| identity(&it) != place.identity && it.len() > 0)
            }
        };
        if is_other && let Ok(source) = open(&self.path, SeekFrom::Start(0)).await {
            self.source = Some(source);
            self.parser = Parser::default();
            feed.tell(Event::Missed);
        }
    }
}

/// Whether it can be read.
pub(super) async fn check(path: &Path) -> io::Result<()> {
    open(path, SeekFrom::End(0)).await.map(|_| ())
}

async fn open(path: &Path, from: SeekFrom) -> io::Result<Source> {
    let opened = timeout(OPENING, open_now(path, from)).await;
    opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn open_now(path: &Path, from: SeekFrom) -> io::Result<Source> {
    let is_good = |it: &Metadata| it.is_file() || it.file_type().is_fifo();
    let neither = || Err(io::Error::other("it is neither a file nor a FIFO"));
    // What is a device must not even be opened.
    if !is_good(&tokio::fs::metadata(path).await?) {
        return neither();
    }
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
        .await?;
    let metadata = file.metadata().await?;
    if metadata.file_type().is_fifo() {
        let file = file.into_std().await;
        return Ok(Source::Fifo(pipe::Receiver::from_file(file)?));
    }
    if !is_good(&metadata) {
        return neither();
    }
    let at = file.seek(from).await?;
    Ok(Source::File(Place {
        file,
        at,
        identity: identity(&metadata),
    }))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// What came of a look.
#[derive(Debug, Default)]
struct Told {
    events: Vec<Event>,
    /// Whether there may be more at once.
    is_more: bool,
}

impl Source {
    async fn read(&mut self, parser: &mut Parser) -> io::Result<Told> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut told = Told::default();
        let count = match self {
            Self::File(place) => {
                let missed = place.catch_up().await?;
                told.events.extend(missed.then_some(Event::Missed));
                let count = place.file.read(&mut chunk).await?;
                place.at += count as u64;
                count
            }
            // Without a writer there are no bytes, at once.
            Self::Fifo(pipe) => pipe.read(&mut chunk).await?,
        };
        told.events.extend(parser.push(&chunk[..count]));
        told.is_more = count > 0;
        Ok(told)
    }
}

impl Place {
    /// Goes to where the next event is. Whether that leaves some out.
    async fn catch_up(&mut self) -> io::Result<bool> {
        let len = self.file.metadata().await?.len();
        let at = match len.checked_sub(self.at) {
            None => 0,
            Some(behind) if behind > MAX_BEHIND_BYTES => len - MAX_EVENT_BYTES as u64,
            Some(_) => return Ok(false),
        };
        self.at = self.file.seek(SeekFrom::Start(at)).await?;
        Ok(true)
    }
}

/// Finds events in bytes.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// What may be the beginning of an event.
    pub(super) rest: Vec<u8>,
}

/// What of an event is looked at.
#[derive(Debug, Deserialize)]
struct Message {
    source: String,
    event: String,
    properties: Option<Properties>,
}

#[derive(Debug, Deserialize)]
struct Properties {
    id: Option<String>,
}

impl Parser {
    /// Takes in the next bytes. What is no event is passed over up to the next bracket that could begin one.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut done = 0;
        while let Some(begin) = self.rest[done..].iter().position(|it| *it == b'{') {
            done += begin;
            let mut values = serde_json::Deserializer::from_slice(&self.rest[done..])
                .into_iter::<serde_json::Value>();
            match values.next() {
                Some(Ok(value)) => {
                    done += values.byte_offset();
                    let message = serde_json::from_value(value).ok();
                    events.extend(message.and_then(meaning));
                }
                Some(Err(error)) if error.is_eof() => {
                    if self.rest.len() - done <= MAX_EVENT_BYTES {
                        self.rest.drain(..done);
                        return events;
                    }
                    events.push(Event::Missed);
                    break;
                }
                Some(Err(_)) | None => done += 1,
            }
        }
        self.rest.clear();
        events
    }
}

/// What it means for those who have devices in the VMM.
fn meaning(message: Message) -> Option<Event> {
    let id = || Some(said::text(&message.properties.as_ref()?.id.clone()?));
    match (message.source.as_str(), message.event.as_str()) {
        ("vm", "device-removed") => Some(Event::Unplugged { id: id()? }),
        ("vm", "rebooted") => Some(Event::Reset),
        ("vm" | "vmm", "shutdown") => Some(Event::Shutdown),
        // Devices have addresses now, or there are none any more.
        ("vm", "booted" | "deleted" | "restored") => Some(Event::Missed),
        _ => None,
    }
}
