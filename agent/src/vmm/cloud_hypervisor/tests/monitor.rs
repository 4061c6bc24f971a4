//! Events out of files and FIFOs that are cut off, replaced, huge or full of something else.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::super::events::{Event, Feed, Receiver};
use super::super::monitor::{Monitor, Parser};
use super::LIMIT;

fn removal(id: &str) -> String {
    format!(
        "{{\n  \"timestamp\": {{\n    \"secs\": 1\n  }},\n  \"source\": \"vm\",\n  \"event\": \"device-removed\",\n  \
         \"properties\": {{\n    \"bdf\": \"0000:00:02.0\",\n    \"id\": \"{id}\"\n  }}\n}}\n\n"
    )
}

fn removed(id: &str) -> Event {
    let id = id.to_owned();
    Event::Unplugged { id }
}

/// A monitor of this file that looks often.
struct Watch {
    events: Receiver,
    task: JoinHandle<()>,
    _waiting: watch::Sender<usize>,
}

impl Watch {
    #[expect(clippy::disallowed_methods, reason = "the task is ended with the test")]
    async fn begin(path: &Path) -> Self {
        let (waiting, waits) = watch::channel(1);
        let monitor = Monitor::open(path, waits).await;
        let (feed, events) = Feed::new();
        let task = tokio::spawn(async move {
            monitor.run(&feed).await;
        });
        Self {
            events,
            task,
            _waiting: waiting,
        }
    }

    async fn next(&mut self) -> Event {
        let event = tokio::time::timeout(LIMIT, self.events.next()).await;
        event.expect("an event in time").expect("no end yet")
    }

    /// The next event but for [`Event::Missed`].
    async fn next_told(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Missed => {}
                event => return event,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn append(path: &Path) -> File {
    File::options().append(true).open(path).unwrap()
}

#[tokio::test]
async fn what_was_there_before_is_not_told_however_much_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    fs::write(&path, removal("old")).unwrap();
    append(&path).set_len(1 << 40).unwrap();
    let mut watch = Watch::begin(&path).await;
    let mut file = append(&path);
    let new = removal("new");
    let (one, other) = new.split_at(60);
    file.write_all(one.as_bytes()).unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    file.write_all(other.as_bytes()).unwrap();
    assert_eq!(watch.next().await, removed("new"));
    // Who falls behind leaves out, and says so.
    file.write_all(&vec![b' '; 3 << 20]).unwrap();
    file.write_all(removal("last").as_bytes()).unwrap();
    assert_eq!(watch.next_told().await, removed("last"));
}

#[tokio::test]
async fn a_file_that_is_cut_off_or_replaced_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    fs::write(&path, "x".repeat(5000)).unwrap();
    let mut watch = Watch::begin(&path).await;
    // The VMM goes on where it was, and leaves a hole.
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(watch.next().await, Event::Missed);
    let at = std::os::unix::fs::FileExt::write_all_at;
    at(&file, removal("one").as_bytes(), 5000).unwrap();
    assert_eq!(watch.next_told().await, removed("one"));
    // The VMM writes on to the file that it has open.
    fs::rename(&path, path.with_extension("1")).unwrap();
    fs::write(&path, "").unwrap();
    at(&file, removal("two").as_bytes(), 10_000).unwrap();
    assert_eq!(watch.next_told().await, removed("two"));
    fs::write(&path, removal("three")).unwrap();
    assert_eq!(watch.next_told().await, removed("three"));
}

#[tokio::test]
async fn a_file_that_is_not_there_yet_is_read_when_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let mut watch = Watch::begin(&path).await;
    fs::write(&path, removal("first")).unwrap();
    assert_eq!(watch.next_told().await, removed("first"));
    // What is no file is never one.
    let mut watch = Watch::begin(Path::new("/dev/zero")).await;
    let nothing = tokio::time::timeout(Duration::from_millis(300), watch.next());
    nothing.await.unwrap_err();
}

#[tokio::test]
async fn a_fifo_is_read_while_it_has_writers_and_waited_for_while_it_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut watch = Watch::begin(&path).await;
    for id in ["one", "two"] {
        let mut writer = File::options().write(true).open(&path).unwrap();
        // Another reader has taken the first half of an event.
        writer.write_all(&removal("lost").as_bytes()[70..]).unwrap();
        writer.write_all(removal(id).as_bytes()).unwrap();
        assert_eq!(watch.next_told().await, removed(id));
    }
}

#[test]
fn events_are_known_by_source_and_name() {
    let told = |source: &str, event: &str| {
        let text = format!(r#"{{"source": "{source}", "event": "{event}", "properties": null}}"#);
        Parser::default().push(text.as_bytes())
    };
    assert_eq!(told("vm", "rebooted"), [Event::Reset]);
    assert_eq!(told("vm", "shutdown"), [Event::Shutdown]);
    assert_eq!(told("vmm", "shutdown"), [Event::Shutdown]);
    assert_eq!(told("vm", "booted"), [Event::Missed]);
    assert_eq!(told("vm", "resized"), []);
    assert_eq!(told("virtio-device", "rebooted"), []);
    assert_eq!(told("vm", "device-removed"), []);
}

#[test]
fn what_never_becomes_an_event_is_dropped() {
    let mut parser = Parser::default();
    let mut told = parser.push(b"{\"event\": \"");
    for _ in 0..100 {
        told.extend(parser.push(&[b'x'; 4096]));
    }
    assert!(told.contains(&Event::Missed));
    assert!(parser.rest.len() < 70_000, "{}", parser.rest.len());
    told = parser.push(removal("nic0").as_bytes());
    assert_eq!(told.last(), Some(&removed("nic0")));
    assert_eq!(parser.push("{".repeat(60_000).as_bytes()), []);
}

proptest! {
    /// However the bytes come, and whatever is between the events.
    #[test]
    fn events_are_found_in_any_pieces(
        cuts in prop::collection::vec(1_usize..80, 1..40),
        between in "[^{]{0,40}",
    ) {
        let text: String = (0..5).map(|it| removal(&format!("nic{it}")) + &between).collect();
        let mut parser = Parser::default();
        let mut told = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            told.extend(parser.push(piece));
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        let wanted: Vec<_> = (0..5).map(|it| removed(&format!("nic{it}"))).collect();
        prop_assert_eq!(told, wanted);
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let mut parser = Parser::default();
        for piece in bytes.chunks(97) {
            parser.push(piece);
        }
        prop_assert!(parser.rest.len() <= bytes.len());
    }
}
