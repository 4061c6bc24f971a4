//! A program's QEMU Machine Protocol: one JSON object per line, see docs/interop/qmp-spec of QEMU.
//!
//! One command is under way at a time; the next waits for its answer.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::Deserialize;
use serde_json::{Value, json};

/// The longest line that is taken; QEMU's longest, which nobody here asks for, have some hundred KiB.
const MAX_LINE_BYTES: usize = 1 << 20;
/// So many commands wait at most.
const MAX_WAITING: usize = 64;
/// How much is read at once, before anybody else has their turn.
const READ_BYTES: usize = 64 << 10;

/// Why somebody asked for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The handshake.
    Greet,
    /// To see whether it answers.
    Look,
    /// The reset that this peer of the control socket asked for.
    Reset { peer: usize, id: u64 },
    /// The device's power-on state for the next client.
    Renew,
    /// To have the device served again.
    Serve,
}

/// What a program says.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// A command was carried out, or why it was not.
    Answer(Purpose, Result<(), String>),
    /// The client of an object has gone, and the object with it.
    HungUp { object: String, device: String },
}

/// A connection to a program's monitor.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: UnixStream,
    /// What has arrived of a line.
    line: Vec<u8>,
    waiting: VecDeque<(Purpose, Value)>,
    under_way: Option<(Purpose, Instant)>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct HungUp {
    vfu_id: String,
    dev_id: String,
}

impl Monitor {
    /// Connects, and begins with the handshake.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
        let mut monitor = Self {
            stream: stream.into(),
            line: Vec::new(),
            waiting: VecDeque::new(),
            under_way: None,
        };
        monitor.ask(Purpose::Greet, "qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// For how long a command has not been answered.
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        let (_, since) = self.under_way.as_ref()?;
        Some(now.saturating_duration_since(*since))
    }

    /// The resets that have not been answered.
    pub(super) fn resets(self) -> impl Iterator<Item = (usize, u64)> {
        let under_way = self.under_way.map(|(purpose, _)| purpose);
        let waiting = self.waiting.into_iter().map(|(purpose, _)| purpose);
        under_way
            .into_iter()
            .chain(waiting)
            .filter_map(|purpose| match purpose {
                Purpose::Reset { peer, id } => Some((peer, id)),
                _ => None,
            })
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_none()
    }

    /// Has a command carried out once those before it are.
    pub(super) fn ask(
        &mut self,
        purpose: Purpose,
        command: &str,
        arguments: Value,
    ) -> io::Result<()> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(io::Error::other("too many commands wait for it"));
        }
        let command = json!({"execute": command, "arguments": arguments});
        self.waiting.push_back((purpose, command));
        self.send_next()
    }

    fn send_next(&mut self) -> io::Result<()> {
        if self.under_way.is_none()
            && let Some((purpose, command)) = self.waiting.pop_front()
        {
            // One command at a time is less than the socket takes at once.
            writeln!(self.stream, "{command}")?;
            self.under_way = Some((purpose, Instant::now()));
        }
        Ok(())
    }

    /// What has arrived. An error is the end of the connection.
    pub(super) fn receive(&mut self) -> io::Result<Vec<News>> {
        let mut chunk = vec![0; READ_BYTES];
        let len = match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        self.line.extend_from_slice(&chunk[..len]);
        let mut news = Vec::new();
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            news.extend(self.take(&line)?);
        }
        if self.line.len() > MAX_LINE_BYTES {
            return Err(io::Error::other(format!(
                "a line of more than {MAX_LINE_BYTES} bytes"
            )));
        }
        Ok(news)
    }

    fn take(&mut self, line: &[u8]) -> io::Result<Option<News>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let line: Line = serde_json::from_slice(line).map_err(invalid)?;
        let answer = match (line.returned, line.error, line.event.as_deref()) {
            (Some(_), ..) => Ok(()),
            (_, Some(refusal), _) => Err(refusal.desc),
            (_, _, Some("VFU_CLIENT_HANGUP")) => {
                let HungUp { vfu_id, dev_id } =
                    serde_json::from_value(line.data.unwrap_or_default()).map_err(invalid)?;
                let (object, device) = (vfu_id, dev_id);
                return Ok(Some(News::HungUp { object, device }));
            }
            // The greeting, and events about other things.
            _ => return Ok(None),
        };
        let answered = self.under_way.take();
        self.send_next()?;
        Ok(answered.map(|(purpose, _)| News::Answer(purpose, answer)))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead, os::unix::net::UnixListener};

    use super::*;

    fn monitor() -> (Monitor, UnixStream, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let monitor = Monitor::connect(&path).unwrap();
        (monitor, listener.accept().unwrap().0, directory)
    }

    fn commands(program: &UnixStream, count: usize) -> Vec<String> {
        let lines = io::BufReader::new(program).lines().take(count);
        lines
            .map(|line| {
                serde_json::from_str::<Value>(&line.unwrap()).unwrap()["execute"].to_string()
            })
            .collect()
    }

    #[test]
    fn commands_are_answered_one_after_the_other() {
        let (mut monitor, mut program, _directory) = monitor();
        monitor
            .ask(Purpose::Look, "query-status", json!({}))
            .unwrap();
        let reset = Purpose::Reset { peer: 1, id: 2 };
        monitor.ask(reset, "system_reset", json!({})).unwrap();
        assert_eq!(commands(&program, 1), ["\"qmp_capabilities\""]);
        assert_eq!(monitor.receive().unwrap(), []);
        program
            .write_all(b"{\"QMP\":{}}\n{\"return\":{}}\n{\"ret")
            .unwrap();
        let greeted = News::Answer(Purpose::Greet, Ok(()));
        assert_eq!(monitor.receive().unwrap(), [greeted]);
        assert_eq!(commands(&program, 1), ["\"query-status\""]);
        assert!(!monitor.is_idle() && monitor.silence(Instant::now()).is_some());
        program
            .write_all(
                b"urn\":{\"a\":1}}\n{\"event\":\"RESET\",\"data\":{}}\n\
                  {\"event\":\"VFU_CLIENT_HANGUP\",\"data\":{\"vfu-id\":\"o\",\"dev-id\":\"d\",\"x\":1}}\n\
                  {\"error\":{\"class\":\"x\",\"desc\":\"no\"}}\n",
            )
            .unwrap();
        let (object, device) = ("o".to_owned(), "d".to_owned());
        assert_eq!(
            monitor.receive().unwrap(),
            [
                News::Answer(Purpose::Look, Ok(())),
                News::HungUp { object, device },
                News::Answer(reset, Err("no".to_owned()))
            ]
        );
        assert!(monitor.is_idle());
    }

    #[test]
    fn what_is_no_protocol_or_has_no_end_ends_the_connection() {
        for garbage in [
            b"{}x\n".to_vec(),
            b"\n".to_vec(),
            vec![b'x'; MAX_LINE_BYTES + 2],
        ] {
            let (mut monitor, program, _directory) = monitor();
            let writer = std::thread::spawn(move || {
                // The other end is closed in the middle.
                let _ = (&program).write_all(&garbage);
            });
            let ended = (0..1000).find_map(|_| {
                std::thread::sleep(Duration::from_millis(1));
                monitor.receive().err()
            });
            assert_ne!(ended.unwrap().kind(), io::ErrorKind::UnexpectedEof);
            drop(monitor);
            writer.join().unwrap();
        }
    }

    #[test]
    fn who_answers_nothing_is_not_asked_without_end() {
        let (mut monitor, _program, _directory) = monitor();
        let asked = (0..=MAX_WAITING)
            .map(|_| monitor.ask(Purpose::Look, "query-status", json!({})))
            .filter(Result::is_ok);
        assert_eq!(asked.count(), MAX_WAITING);
        let resets: Vec<_> = monitor.resets().collect();
        assert_eq!(resets, []);
    }
}
