//! Every code of an error or a warning is provoked here, through all checks together. A code without a line in this table
//! fails, and so does a line whose code is no more.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime};

use super::files::{Files, Process, Step, Unseen, View};
use super::tests::{QMP, qemu, question, wrong};
use super::{Question, Scene};
use crate::store::{Attachment, Stage};
use crate::supervisor::Life;
use crate::vmm::{Endpoint, Error, Facts, Found, Placed, Wanted};

/// Where codes are said.
const SOURCES: [&str; 5] = [
    include_str!("bars.rs"),
    include_str!("device.rs"),
    include_str!("place.rs"),
    include_str!("socket.rs"),
    include_str!("vmm.rs"),
];

/// What says that all is well.
const GOOD: [&str; 10] = [
    "BARS_FIT",
    "DEVICE_CONNECTED",
    "DEVICE_PLUGGED",
    "DEVICE_READY",
    "PLACE",
    "SOCKET_ACCESS",
    "SOCKET_PATH_LENGTH",
    "VMM_MEMORY_SHARED",
    "VMM_REACHABLE",
    "VMM_VERSION",
];

/// A device, a VMM and the way between them, where all is well.
struct Stand {
    question: Question,
    answer: Result<Facts, Error>,
    files: Files,
}

impl Stand {
    fn new() -> Self {
        let step = |path: &str, mode| Step {
            path: path.into(),
            mode,
            uid: 0,
            gid: 36,
            has_acl: false,
        };
        let process = Process {
            pid: 77,
            uid: 107,
            gid: 108,
            groups: vec![36],
            is_almighty: false,
            view: View::Same,
        };
        Self {
            question: question(),
            answer: Ok(qemu()),
            files: Files {
                way: Ok(vec![
                    step("/", 0o755),
                    step("/d", 0o711),
                    step("/d/s", 0o660),
                ]),
                process: Some(Ok(process)),
            },
        }
    }

    fn facts(&mut self) -> &mut Facts {
        self.answer.as_mut().unwrap()
    }

    fn device(&mut self) -> &mut super::Subject {
        self.question.device.as_mut().unwrap()
    }

    fn socket(&mut self) -> &mut Step {
        self.files.way.as_mut().unwrap().last_mut().unwrap()
    }

    fn process(&mut self) -> &mut Process {
        self.files.process.as_mut().unwrap().as_mut().unwrap()
    }

    fn is_cloud_hypervisor(&mut self, segment: u32) {
        let (socket, events) = ("/run/api".into(), None);
        self.question.endpoint = Some(Endpoint::CloudHypervisor { socket, events });
        self.question.wanted.pci_segment = Some(segment);
        for (index, bus) in self.facts().buses.iter_mut().enumerate() {
            bus.name = index.to_string();
            bus.windows.io_bytes = (index != 0).then_some(0);
        }
    }

    fn codes(self) -> Vec<&'static str> {
        let endpoint = self.question.endpoint.as_ref();
        let scene = Scene {
            question: &self.question,
            vmm: endpoint.map(|endpoint| (endpoint, self.answer)),
            files: Some(self.files),
        };
        let found = scene.findings();
        wrong(&found).into_iter().map(|(code, _)| code).collect()
    }
}

fn attachment() -> Attachment {
    Attachment {
        stage: Stage::Plugged,
        vmm: Endpoint::Qmp { socket: QMP.into() },
        vmm_device_id: "nic0".to_owned(),
        wanted: Wanted::default(),
        placed: Placed::default(),
        process: None,
        lost_time: None,
        comes_back: false,
        create_time: SystemTime::UNIX_EPOCH,
        update_time: SystemTime::UNIX_EPOCH,
    }
}

fn found(id: &str, socket: Option<&str>) -> Found {
    Found {
        id: id.to_owned(),
        device_socket: socket.map(Into::into),
        placed: Placed::default(),
    }
}

type Provoke = fn(&mut Stand);

const PROVOKED: &[(&str, Provoke)] = &[
    ("DEVICE_NOT_READY", |it| it.device().life = Life::Failed),
    ("DEVICE_IN_USE", |it| it.device().life = Life::Connected),
    ("BACKEND_LOST", |it| {
        it.device().attachment = Some(attachment());
        it.facts().devices.push(found("nic0", None));
    }),
    ("VMM_UNREACHABLE", |it| {
        let (path, source) = (QMP.into(), io::ErrorKind::NotFound.into());
        it.answer = Err(Error::Unreachable { path, source });
    }),
    ("VMM_STRANGER", |it| {
        it.answer = Err(Error::Stranger {
            path: QMP.into(),
            expected: "QMP",
            why: "it sent HTTP".to_owned(),
        });
    }),
    ("VMM_SILENT", |it| {
        it.answer = Err(Error::Unanswered {
            operation: "query-status",
            waited: Duration::from_secs(25),
        });
    }),
    ("VMM_GONE", |it| {
        it.answer = Err(Error::Gone { path: QMP.into() });
    }),
    ("VMM_REFUSES", |it| {
        it.answer = Err(Error::Refused {
            operation: "query-status",
            message: "no".to_owned(),
        });
    }),
    ("VMM_WITHOUT_MACHINE", |it| {
        it.answer = Err(Error::NoPlace {
            why: "there is no machine".to_owned(),
            cure: "create one".to_owned(),
        });
    }),
    ("VMM_EVENTS_UNREADABLE", |it| {
        it.facts().unheard = Some(("/events".into(), "no".to_owned()));
    }),
    ("VMM_TOO_OLD", |it| {
        it.facts().version_needed = Some("10.1.1".to_owned());
    }),
    ("VMM_WITHOUT_VFIO_USER", |it| {
        it.facts().takes_vfio_user = false;
    }),
    ("VMM_MEMORY_NOT_SHARED", |it| {
        it.facts().memory[0].is_shared = false;
    }),
    ("VMM_MEMORY_UNKNOWN", |it| it.facts().memory.clear()),
    ("VMM_NOT_RUNNING", |it| {
        "paused".clone_into(&mut it.facts().run_state);
    }),
    ("VMM_DEVICE_ID_TAKEN", |it| {
        it.question.rivals.push("nic1".to_owned());
    }),
    ("DEVICE_IN_VMM", |it| {
        let socket = it.device().socket.clone();
        let twin = found("card", socket.to_str());
        it.facts().devices.push(twin);
    }),
    ("NO_FREE_PLACE", |it| {
        for bus in &mut it.facts().buses {
            bus.free_slots.clear();
        }
    }),
    ("BUS_UNKNOWN", |it| {
        "rp9".clone_into(&mut it.question.wanted.bus);
    }),
    ("BUS_NOT_HOTPLUGGABLE", |it| {
        "rp0".clone_into(&mut it.question.wanted.bus);
        it.facts().buses[0].is_hotpluggable = false;
    }),
    ("BUS_FULL", |it| {
        "rp0".clone_into(&mut it.question.wanted.bus);
        it.facts().buses[0].free_slots.clear();
    }),
    ("SLOT_TAKEN", |it| {
        "5".clone_into(&mut it.question.wanted.slot);
    }),
    ("SEGMENT_UNKNOWN", |it| it.is_cloud_hypervisor(7)),
    ("BAR_WITHOUT_IO_WINDOW", |it| it.is_cloud_hypervisor(1)),
    ("BAR_WITHOUT_MEMORY_WINDOW", |it| {
        it.facts().buses[0].windows.memory_bytes = Some(1 << 16);
    }),
    ("SOCKET_PATH_TOO_LONG", |it| {
        it.device().socket = format!("/{}", "x".repeat(107)).into();
    }),
    ("SOCKET_MISSING", |it| it.files.way = Err(Unseen::Missing)),
    ("SOCKET_UNSEEN", |it| {
        it.files.way = Err(Unseen::Other("late".to_owned()));
    }),
    ("VMM_PROCESS_UNKNOWN", |it| {
        it.files.process = Some(Err("no".to_owned()));
    }),
    ("SOCKET_NOT_VISIBLE", |it| {
        it.process().view = View::Nothing;
    }),
    ("MOUNTS_DIFFER", |it| it.process().view = View::Hidden),
    ("SOCKET_DENIED", |it| it.socket().mode = 0o600),
    ("SOCKET_DENIED_BY_MODE", |it| {
        it.socket().mode = 0o600;
        it.socket().has_acl = true;
    }),
];

/// The words in capitals between quotes, in what is no test.
fn said() -> BTreeSet<&'static str> {
    let is_code = |word: &&str| {
        word.len() > 4 && word.bytes().all(|it| it == b'_' || it.is_ascii_uppercase())
    };
    let code = |source: &'static str| {
        let (code, _) = source.split_once("#[cfg(test)]").unwrap();
        code.split('"')
    };
    SOURCES.into_iter().flat_map(code).filter(is_code).collect()
}

#[test]
fn each_code_is_provoked_alone() {
    assert_eq!(Stand::new().codes(), Vec::<&str>::new());
    for (code, provoke) in PROVOKED {
        let mut stand = Stand::new();
        provoke(&mut stand);
        assert_eq!(stand.codes(), [*code]);
    }
}

#[test]
fn each_code_that_is_said_is_in_the_table() {
    let provoked = PROVOKED.iter().map(|(code, _)| *code);
    let known: BTreeSet<_> = provoked.chain(GOOD).collect();
    assert_eq!(known, said());
}
