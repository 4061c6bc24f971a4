//! The audit log: one JSON object per line for every call that changes something, and for every call that was denied.
//!
//! A line is written before its answer leaves, by one write to the page cache: whoever has an answer finds its line, also
//! after the agent was killed. A call whose caller went away has its line too. It is not synced: what the kernel takes
//! down with it is lost, and so are lines that can't be written, as on a full disk. Those are counted and told of in the
//! agent's log, and the agent goes on: a host that can't delete a device for want of space is worse. The same lines go to
//! the agent's log, with target `audit`.
//!
//! What a caller says about itself or about a device's configuration is not in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tonic::Code;

use crate::access::{Peer, Role};

/// Callers choose ids and names; what is longer than any that is allowed is cut.
const MAX_NAME_BYTES: usize = 128;

/// Denied calls that are written per minute: they cost their caller nothing, and should not push the lines of others
/// out of the log.
const DENIED_PER_MINUTE: u32 = 600;
const MINUTE: Duration = Duration::from_secs(60);

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
#[error("open the audit log {}", path.display())]
pub struct Error {
    /// The file.
    path: PathBuf,
    /// Why it can't be used.
    #[source]
    source: io::Error,
}

/// What a call was about. The service fills it in once it has read the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) resource: String,
    pub(crate) request_id: String,
    pub(crate) validate_only: bool,
}

/// The way from a service to the line of its call. Travels with the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Note(Arc<Mutex<Subject>>);

impl Note {
    /// Says what the call is about.
    pub(crate) fn set(&self, subject: Subject) {
        *lock(&self.0) = subject;
    }

    /// Says which resource it is about, once that is known.
    pub(crate) fn set_resource(&self, resource: String) {
        lock(&self.0).resource = resource;
    }
}

/// Who calls what.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) peer: Arc<Peer>,
    pub(crate) role: Option<Role>,
    pub(crate) method: String,
    pub(crate) trace_id: Option<String>,
    pub(crate) start: Instant,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Code,
    /// As in ErrorInfo. Empty: there is none.
    pub(crate) reason: String,
}

/// The log. Clones write to the same.
#[derive(Debug, Clone)]
pub(crate) struct Audit(Arc<Mutex<Log>>);

/// A call under way. When it is dropped without an outcome, its caller went away.
#[derive(Debug)]
pub(crate) struct Pending {
    audit: Audit,
    call: Call,
    note: Note,
    outcome: Option<Outcome>,
}

impl Audit {
    /// Opens the log, or makes it.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> Result<Self, Error> {
        let log = Log::open(path, max_bytes).map_err(|source| Error {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self(Arc::new(Mutex::new(log))))
    }

    /// Changes how large the file may become.
    pub(crate) fn set_max_bytes(&self, max_bytes: u64) {
        lock(&self.0).max_bytes = max_bytes;
    }

    /// Begins the line of a call that changes something.
    pub(crate) fn begin(&self, call: Call) -> Pending {
        Pending {
            audit: self.clone(),
            call,
            note: Note::default(),
            outcome: None,
        }
    }

    /// Writes that a call was denied.
    pub(crate) fn denied(&self, call: &Call, outcome: &Outcome) {
        let Some(suppressed) = lock(&self.0).admit_denied(Instant::now()) else {
            return;
        };
        self.write(call, &Subject::default(), outcome, suppressed);
    }

    fn write(&self, call: &Call, subject: &Subject, outcome: &Outcome, suppressed: u32) {
        let Call {
            peer,
            role,
            method,
            trace_id,
            start,
        } = call;
        let elapsed = start.elapsed();
        let Outcome { code, reason } = outcome;
        let code = code_name(*code);
        let Subject {
            resource,
            request_id,
            validate_only,
        } = subject;
        let [resource, request_id] = [resource, request_id].map(|it| bounded(it));
        tracing::info!(
            target: "audit",
            caller = %peer,
            role = role.map(tracing::field::display),
            method,
            resource,
            request_id,
            validate_only,
            code,
            reason,
            ?elapsed,
            "call"
        );
        let line = Line {
            time: prost_types::Timestamp::from(SystemTime::now()).to_string(),
            caller: peer,
            role: *role,
            method: bounded(method),
            resource,
            request_id,
            validate_only: *validate_only,
            code: &code,
            reason,
            duration_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            trace_id: trace_id.as_deref().unwrap_or_default(),
            suppressed,
        };
        let mut bytes = serde_json::to_vec(&line).expect("a line is text and numbers");
        bytes.push(b'\n');
        lock(&self.0).append(&bytes);
        crate::steps::reached("audit.appended");
    }
}

impl Pending {
    /// What the service gets to say what the call is about.
    pub(crate) fn note(&self) -> Note {
        self.note.clone()
    }

    /// Writes the line.
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Outcome {
            code: Code::Cancelled,
            reason: "CALLER_GONE".to_owned(),
        });
        let subject = lock(&self.note.0).clone();
        self.audit.write(&self.call, &subject, &outcome, 0);
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    caller: &'a Peer,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_id: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    validate_only: bool,
    code: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    duration_us: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    trace_id: &'a str,
    /// Denied calls before this one that have no line.
    #[serde(skip_serializing_if = "is_zero")]
    suppressed: u32,
}

/// The file behind it.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    max_bytes: u64,
    file: File,
    bytes: u64,
    /// The file ends within a line.
    is_torn: bool,
    /// Lines that could not be written since the last that could.
    lost: u64,
    /// Denied calls: since when they are counted, how many have a line, and how many have none.
    minute: Option<Instant>,
    denied: u32,
    suppressed: u32,
}

impl Log {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = open(path)?;
        let bytes = file.metadata()?.len();
        let mut last = [b'\n'];
        if let Some(end) = bytes.checked_sub(1) {
            file.read_exact_at(&mut last, end)?;
        }
        Ok(Self {
            path: path.to_owned(),
            max_bytes,
            file,
            bytes,
            is_torn: last != [b'\n'],
            lost: 0,
            minute: None,
            denied: 0,
            suppressed: 0,
        })
    }

    /// Whether a denied call gets a line, and how many before it got none.
    fn admit_denied(&mut self, now: Instant) -> Option<u32> {
        let is_new = |since: Instant| now.duration_since(since) >= MINUTE;
        if self.minute.is_none_or(is_new) {
            self.minute = Some(now);
            self.denied = 0;
        }
        if self.denied == DENIED_PER_MINUTE {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.denied += 1;
        Some(std::mem::take(&mut self.suppressed))
    }

    fn append(&mut self, line: &[u8]) {
        match self.try_append(line) {
            Ok(()) if self.lost > 0 => {
                tracing::warn!(lost = self.lost, "the audit log is written again");
                self.lost = 0;
            }
            Ok(()) => {}
            Err(error) => {
                self.lost += 1;
                // At the first, and then ever more rarely.
                if self.lost.is_power_of_two() {
                    let (path, lost) = (self.path.display(), self.lost);
                    tracing::error!(%error, %path, lost, "write the audit log");
                }
            }
        }
    }

    fn try_append(&mut self, line: &[u8]) -> io::Result<()> {
        let is_full = self.bytes.saturating_add(line.len() as u64) > self.max_bytes;
        if is_full && self.bytes > 0 {
            self.rotate()?;
        }
        if self.is_torn {
            self.put(b"\n")?;
            self.is_torn = false;
        }
        self.put(line)
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.bytes = self.bytes.saturating_add(count as u64);
            bytes = &bytes[count..];
            self.is_torn = !bytes.is_empty();
        }
        Ok(())
    }

    /// Puts the file aside, in place of the one that was put aside before.
    fn rotate(&mut self) -> io::Result<()> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".1");
        fs::rename(&self.path, aside).or_else(|error| match error.kind() {
            // Somebody else has put it elsewhere.
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        self.file = open(&self.path)?;
        self.bytes = self.file.metadata()?.len();
        self.is_torn = false;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options.open(path)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_NAME_BYTES)]
}

/// A code as the protocol's documents write it, such as `NOT_FOUND`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::{Value, json};

    use super::*;
    use crate::access::Local;

    fn call(method: &str) -> Call {
        let local = Local {
            uid: 8,
            gid: 9,
            groups: vec![10],
            pid: Some(11),
            executable: Some("/usr/bin/vfuctl".into()),
        };
        Call {
            peer: Arc::new(Peer::Local(local)),
            role: Some(Role::Operator),
            method: method.to_owned(),
            trace_id: Some("ab".to_owned()),
            start: Instant::now(),
        }
    }

    fn ok() -> Outcome {
        Outcome {
            code: Code::Ok,
            reason: String::new(),
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter(|it| !it.is_empty());
        lines.map(|it| serde_json::from_str(it).unwrap()).collect()
    }

    #[test]
    fn a_line_says_who_did_what_and_what_came_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/audit.log");
        let audit = Audit::open(&path, 1 << 20).unwrap();
        let pending = audit.begin(call("a.B/C"));
        pending.note().set(Subject {
            resource: "devices/nic0".to_owned(),
            request_id: "r".repeat(5000),
            validate_only: true,
        });
        pending.end(Outcome {
            code: Code::FailedPrecondition,
            reason: "DRAINED".to_owned(),
        });
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let mut found = lines(&path);
        let line = found[0].as_object_mut().unwrap();
        let time = line.remove("time").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
        assert!(line.remove("duration_us").unwrap().is_u64());
        let caller = json!({"uid": 8, "gid": 9, "pid": 11, "executable": "/usr/bin/vfuctl"});
        let expected = json!([{
            "caller": caller, "role": "operator", "method": "a.B/C", "resource": "devices/nic0",
            "request_id": "r".repeat(MAX_NAME_BYTES), "validate_only": true,
            "code": "FAILED_PRECONDITION", "reason": "DRAINED", "trace_id": "ab",
        }]);
        assert_eq!(Value::from(found), expected);
    }

    #[test]
    fn a_call_whose_caller_went_away_has_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let audit = Audit::open(&path, 1 << 20).unwrap();
        let pending = audit.begin(call("a.B/C"));
        pending.note().set_resource("devices/nic0".to_owned());
        drop(pending);
        let found = lines(&path);
        assert_eq!(found[0]["code"], "CANCELLED");
        assert_eq!(found[0]["reason"], "CALLER_GONE");
        assert_eq!(found[0]["resource"], "devices/nic0");
    }

    #[test]
    fn one_older_file_is_kept_and_no_line_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let audit = Audit::open(&path, 2000).unwrap();
        for number in 0..100 {
            audit.begin(call(&number.to_string())).end(ok());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        let aside = directory.path().join("audit.log.1");
        for path in [&path, &aside] {
            assert!(fs::metadata(path).unwrap().len() <= 2000);
        }
        let methods = [lines(&aside), lines(&path)].concat();
        let methods = methods.iter().map(|it| it["method"].as_str().unwrap());
        let last: Vec<_> = (0..100).map(|it| it.to_string()).collect();
        let methods: Vec<_> = methods.collect();
        assert!(methods.len() > 4, "{methods:?}");
        assert_eq!(methods, last[100 - methods.len()..]);
    }

    #[test]
    fn a_line_after_one_that_was_cut_off_stands_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        fs::write(&path, "{\"torn").unwrap();
        let audit = Audit::open(&path, 1 << 20).unwrap();
        audit.begin(call("a.B/C")).end(ok());
        let text = fs::read_to_string(&path).unwrap();
        let (torn, line) = text.split_once('\n').unwrap();
        assert_eq!(torn, "{\"torn");
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["code"], "OK");
    }

    #[test]
    fn lines_that_can_not_be_written_are_counted() {
        let mut log = Log::open(Path::new("/dev/null"), 1 << 20).unwrap();
        log.file = File::open("/dev/null").unwrap();
        log.append(b"x\n");
        log.append(b"y\n");
        assert_eq!(log.lost, 2);
        log.file = open(Path::new("/dev/null")).unwrap();
        log.append(b"z\n");
        assert_eq!(log.lost, 0);
    }

    #[test]
    fn a_flood_of_denied_calls_is_counted_rather_than_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(&directory.path().join("audit.log"), 1 << 20).unwrap();
        let start = Instant::now();
        for _ in 0..DENIED_PER_MINUTE {
            assert_eq!(log.admit_denied(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(log.admit_denied(start), None);
        }
        assert_eq!(log.admit_denied(start + MINUTE), Some(7));
        assert_eq!(log.admit_denied(start + MINUTE), Some(0));
    }

    #[test]
    fn codes_are_written_as_in_the_documents() {
        let codes = [Code::Ok, Code::NotFound, Code::PermissionDenied];
        let names = ["OK", "NOT_FOUND", "PERMISSION_DENIED"];
        assert_eq!(codes.map(code_name), names);
    }
}
