//! What keeps a VMM from taking a device, before it is asked to, and what is wrong with either of them.
//!
//! First all is looked at that has to be: the device as its supervisor knows it, the VMM's own account of itself, what the
//! file system and `/proc` show of the socket and of the VMM's process. All of it takes no longer than [`VMM`] and
//! [`FILES`], whatever hangs. Then pure functions find what there is to be said, each check in its own file.
//!
//! No check connects to the device's socket, although that would be the proof that a device server answers there: a device
//! has one client at a time, and a VMM that is about to connect would be the second and be turned away. That it is served
//! is what its process tells on its control socket, which it does only while it listens.

mod bars;
#[cfg(test)]
mod codes;
mod device;
mod files;
mod place;
mod socket;
mod vmm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;

use self::files::Files;
use crate::models::model::Bar;
use crate::store::Attachment;
use crate::supervisor::{self, Life};
use crate::vmm::{Endpoint, Error, Facts, Vmms, Wanted};

/// What a VMM may take to tell about itself.
const VMM: Duration = Duration::from_secs(25);
/// The same for the file system.
const FILES: Duration = Duration::from_secs(5);

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    Ok,
    Warning,
    /// The VMM can't take the device.
    Error,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// What, for programs.
    pub(crate) code: &'static str,
    /// What it is about.
    pub(crate) subject: String,
    pub(crate) message: String,
    /// What to do about it; empty when it is as it should be.
    pub(crate) cure: String,
}

impl Finding {
    fn ok(code: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            code,
            subject: subject.into(),
            message: message.into(),
            cure: String::new(),
        }
    }

    fn error(
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            cure: cure.into(),
            ..Self::ok(code, subject, message)
        }
    }

    fn warning(
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(code, subject, message, cure)
        }
    }
}

/// What the checks have to know of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) id: String,
    pub(crate) life: Life,
    /// Why it is not served.
    pub(crate) reason: String,
    /// Who is connected, and in which process.
    pub(crate) client: Option<(i32, String)>,
    pub(crate) socket: PathBuf,
    /// The VMM that it was plugged into.
    pub(crate) attachment: Option<Attachment>,
    /// As its model has them; empty where that is not known.
    pub(crate) bars: Vec<Bar>,
}

impl Subject {
    /// The device as its supervisor knows it.
    pub(crate) fn new(device: &supervisor::Device, socket: PathBuf, bars: Vec<Bar>) -> Self {
        let client = device.view.client.as_ref();
        Self {
            id: device.record.id.clone(),
            life: device.view.life,
            reason: device.view.message.clone(),
            client: client.map(|it| (it.pid, it.to_string())),
            socket,
            attachment: device.record.attachment.as_deref().cloned(),
            bars,
        }
    }
}

/// What somebody wants to know.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) device: Option<Subject>,
    pub(crate) endpoint: Option<Endpoint>,
    /// What the VMM shall call the device; empty where there is none to be called so.
    pub(crate) vmm_device_id: String,
    pub(crate) wanted: Wanted,
    /// Other devices that are plugged into the VMM under that name.
    pub(crate) rivals: Vec<String>,
}

impl Question {
    /// Whether the device is plugged into the VMM that is asked about, under that name.
    fn is_attached(&self) -> bool {
        let attachment = self.device.as_ref().and_then(|it| it.attachment.as_ref());
        attachment.is_some_and(|it| {
            Some(&it.vmm) == self.endpoint.as_ref() && it.vmm_device_id == self.vmm_device_id
        })
    }
}

/// All that the checks look at.
#[derive(Debug)]
struct Scene<'a> {
    question: &'a Question,
    /// The VMM's account of itself, if it was asked.
    vmm: Option<(&'a Endpoint, Result<Facts, Error>)>,
    /// What the file system shows of the device's socket, if there is one.
    files: Option<Files>,
}

impl Scene<'_> {
    /// What the VMM has told of itself.
    fn facts(&self) -> Option<&Facts> {
        self.vmm.as_ref()?.1.as_ref().ok()
    }

    /// Whether this VMM has this device, under this name.
    fn is_there(&self) -> bool {
        let Some((device, facts)) = self.question.device.as_ref().zip(self.facts()) else {
            return false;
        };
        let client = device.client.as_ref().map(|(pid, _)| *pid);
        let is_client = client.is_some() && client == facts.owner.pid;
        let mut devices = facts.devices.iter();
        (is_client || self.question.is_attached())
            && devices.any(|it| it.id == self.question.vmm_device_id)
    }

    fn findings(&self) -> Vec<Finding> {
        let mut found = device::findings(self);
        found.extend(self.findings_of_vmm());
        found
    }

    /// What is to be said but for the device itself.
    fn findings_of_vmm(&self) -> Vec<Finding> {
        let mut found = vmm::findings(self);
        found.extend(place::findings(self));
        found.extend(bars::findings(self));
        found.extend(socket::findings(self));
        found
    }
}

/// Looks at everything, and tells what there is to be said about it, in the order of the checks. What is an error there
/// keeps the VMM from taking the device.
pub(crate) async fn findings(question: &Question, vmms: &Vmms) -> Vec<Finding> {
    scene(question, vmms).await.findings()
}

/// The same for who is about to plug: each error keeps it from that. Whether the device is ready its own task says, which
/// knows best.
pub(crate) async fn check(question: &Question, vmms: &Vmms) -> Result<(), Vec<Finding>> {
    let mut found = scene(question, vmms).await.findings_of_vmm();
    found.retain(|it| it.severity == Severity::Error);
    match found.is_empty() {
        true => Ok(()),
        false => Err(found),
    }
}

async fn scene<'a>(question: &'a Question, vmms: &Vmms) -> Scene<'a> {
    let vmm = match &question.endpoint {
        None => None,
        Some(endpoint) => Some((endpoint, facts(endpoint, vmms).await)),
    };
    let mut scene = Scene {
        question,
        vmm,
        files: None,
    };
    if let Some(device) = &question.device {
        let pid = scene.facts().map(|it| it.owner.pid);
        scene.files = Some(look(&device.socket, pid).await);
    }
    scene
}

async fn facts(endpoint: &Endpoint, vmms: &Vmms) -> Result<Facts, Error> {
    let asked = async { vmms.open(endpoint).await?.facts().await };
    timeout(VMM, asked).await.unwrap_or({
        Err(Error::Unanswered {
            operation: "what it is and has",
            waited: VMM,
        })
    })
}

/// What the file system shows. A directory on a dead server would hold whoever looks: that is a thread of its own.
async fn look(socket: &Path, pid: Option<Option<i32>>) -> Files {
    let path = socket.to_owned();
    let looked = tokio::task::spawn_blocking(move || Files::look(&path, pid));
    match timeout(FILES, looked).await {
        Ok(Ok(files)) => files,
        Ok(Err(_)) | Err(_) => {
            Files::unseen(format!("the file system has not answered within {FILES:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::model::BarKind;
    use crate::vmm::{Bus, Memory, Owner, Windows};

    pub(super) const QMP: &str = "/run/vm1/qmp.sock";

    /// A QEMU that takes devices.
    pub(super) fn qemu() -> Facts {
        let bus = |name: &str| Bus {
            name: name.to_owned(),
            kind: "pcie-root-port".to_owned(),
            is_hotpluggable: true,
            free_slots: vec!["0".to_owned()],
            devices: Vec::new(),
            taken_slots: Vec::new(),
            windows: Windows::default(),
        };
        Facts {
            program: "QEMU",
            version: "11.1.3".to_owned(),
            version_needed: None,
            takes_vfio_user: true,
            owner: Owner {
                pid: Some(77),
                uid: 107,
                gid: 107,
            },
            machine: "pc-q35-11.1".to_owned(),
            run_state: "running".to_owned(),
            memory: vec![Memory {
                id: "mem".to_owned(),
                size_bytes: 1 << 28,
                is_shared: true,
            }],
            buses: vec![bus("rp0"), bus("rp1")],
            devices: Vec::new(),
            unheard: None,
        }
    }

    pub(super) fn bar(index: u32, kind: BarKind, size_bytes: u64) -> Bar {
        Bar {
            index,
            kind,
            size_bytes,
            prefetchable: false,
        }
    }

    /// Device `nic0`, which nobody uses, and that QEMU.
    pub(super) fn question() -> Question {
        Question {
            device: Some(Subject {
                id: "nic0".to_owned(),
                life: Life::Ready,
                reason: String::new(),
                client: None,
                socket: "/run/vfu/devices/nic0/vfio-user.sock".into(),
                attachment: None,
                bars: vec![
                    bar(0, BarKind::Memory32, 128 << 10),
                    bar(2, BarKind::Io, 64),
                ],
            }),
            endpoint: Some(Endpoint::Qmp { socket: QMP.into() }),
            vmm_device_id: "nic0".to_owned(),
            wanted: Wanted::default(),
            rivals: Vec::new(),
        }
    }

    pub(super) fn scene(question: &Question, vmm: Result<Facts, Error>) -> Scene<'_> {
        Scene {
            question,
            vmm: question.endpoint.as_ref().map(|endpoint| (endpoint, vmm)),
            files: None,
        }
    }

    /// Code and severity of what is not as it should be.
    pub(super) fn wrong(findings: &[Finding]) -> Vec<(&'static str, Severity)> {
        let wrong = findings.iter().filter(|it| it.severity != Severity::Ok);
        let wrong = wrong.inspect(|it| {
            assert!(!it.cure.is_empty() && !it.subject.is_empty(), "{it:?}");
        });
        wrong.map(|it| (it.code, it.severity)).collect()
    }

    #[test]
    fn where_all_is_well_each_check_says_so() {
        let question = question();
        let found = scene(&question, Ok(qemu())).findings();
        assert_eq!(wrong(&found), []);
        let codes: Vec<_> = found.iter().map(|it| it.code).collect();
        assert_eq!(
            codes,
            [
                "DEVICE_READY",
                "VMM_REACHABLE",
                "VMM_VERSION",
                "VMM_MEMORY_SHARED",
                "PLACE",
                "BARS_FIT",
                "SOCKET_PATH_LENGTH"
            ]
        );
    }
}
