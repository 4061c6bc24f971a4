//! What is stored, as JSON: a person can read it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::Limits;
use crate::vmm::{Endpoint, Placed, Process, Wanted};

/// A device as its caller wants it, and what identifies it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) uid: String,
    pub(crate) etag: String,
    pub(crate) generation: i64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) create_time: SystemTime,
    pub(crate) update_time: SystemTime,
    /// Set when deletion has begun: the next start goes on with it.
    pub(crate) delete_time: Option<SystemTime>,
    pub(crate) spec: Spec,
    /// The call that created it, when that had a request id.
    pub(crate) created_by: Option<Call>,
    /// The last calls that changed, restarted or reset it, of those that had one.
    pub(crate) calls: Vec<Call>,
    /// The call that deletes it, when that had one.
    pub(crate) deleted_by: Option<Call>,
    pub(crate) traceparent: Option<String>,
    pub(crate) history: History,
    /// While a change waits for the process to agree: how it was when the process last had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) undo: Option<Box<Previous>>,
    /// The VMM that it is given to, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) attachment: Option<Box<Attachment>>,
}

/// A device's place in a VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) stage: Stage,
    pub(crate) vmm: Endpoint,
    /// Its name there.
    pub(crate) vmm_device_id: String,
    pub(crate) wanted: Wanted,
    /// Where it is, once the VMM has taken it.
    pub(crate) placed: Placed,
    /// The VMM's process, once the VMM has taken it, where it can be seen.
    #[serde(default)]
    pub(crate) process: Option<Process>,
    /// Since when the VMM has been connected to no process of the device, although it has it.
    #[serde(default)]
    pub(crate) lost_time: Option<SystemTime>,
    /// Whether the VMM is to take the device again once it has given it up.
    #[serde(default)]
    pub(crate) comes_back: bool,
    pub(crate) create_time: SystemTime,
    /// Since when `stage` holds.
    pub(crate) update_time: SystemTime,
}

/// How far a device is between a VMM and none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// The VMM is to take it.
    Plugging,
    /// The VMM has it.
    Plugged,
    /// The VMM is to give it up.
    Unplugging,
}

/// What a record goes back to when the process refuses what was made of it since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Previous {
    pub(crate) etag: String,
    pub(crate) generation: i64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) update_time: SystemTime,
    pub(crate) spec: Spec,
    /// Whether the process is known to have had this configuration.
    pub(crate) was_configured: bool,
    /// The calls that changed it since: to be forgotten with what they did.
    pub(crate) calls: Vec<Call>,
}

/// What happened to a device that the next agent has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct History {
    /// How often its process was started again.
    pub(crate) restart_count: i64,
    /// Why it was given up, if it was.
    pub(crate) failure: Option<Failure>,
}

/// Why a device was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) time: SystemTime,
    /// A host that has booted since is another one.
    pub(crate) boot_id: String,
}

/// Whether the agent makes devices, and whether they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drain {
    pub(crate) drained: Option<Drained>,
    pub(crate) shut_down: Option<ShutDown>,
}

/// No devices are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drained {
    pub(crate) time: SystemTime,
    pub(crate) reason: String,
}

/// The devices were shut down, until the host boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShutDown {
    pub(crate) time: SystemTime,
    pub(crate) boot_id: String,
}

/// A call that can be repeated: with the same request id it is the first call again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) request_id: String,
    /// SHA-256 of what was asked for, in hexadecimal.
    content: String,
}

impl Call {
    /// Whether `calls` has this one. The same request id with other content is an error, which is the earlier call.
    pub(crate) fn is_among<'a>(
        &self,
        calls: impl IntoIterator<Item = &'a Self>,
    ) -> Result<bool, &'a Self> {
        let mut calls = calls.into_iter();
        match calls.find(|it| it.request_id == self.request_id) {
            Some(earlier) if earlier != self => Err(earlier),
            earlier => Ok(earlier.is_some()),
        }
    }

    /// A call that asks for `content`; none without a request id.
    pub(crate) fn new(request_id: &str, content: &impl Serialize) -> Option<Self> {
        let content = serde_json::to_vec(content).expect("contents have string keys only");
        let request_id = request_id.to_owned();
        (!request_id.is_empty()).then(|| Self {
            request_id,
            content: Sha256::digest(content)
                .iter()
                .map(|it| format!("{it:02x}"))
                .collect(),
        })
    }
}

/// What a device shall be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) model: String,
    pub(crate) config: serde_json::Value,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) socket: Option<SocketSpec>,
    #[serde(default)]
    pub(crate) limits: Limits,
    /// Left out when it is the default, so that a request that does not have it is the same request as ever.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) backend_loss_policy: BackendLossPolicy,
}

/// What the agent does when a device's process ends while a VMM has the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum BackendLossPolicy {
    /// Nothing: the guest's card is dead.
    #[default]
    Hold,
    /// Unplugs the device and plugs it in again.
    Replug,
    /// Nothing, and no other process is started.
    Fail,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What the agent does when a device's process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// Owner and mode of the vfio-user socket; what is absent is the agent's, or 0600.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketSpec {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mode: Option<u32>,
}
