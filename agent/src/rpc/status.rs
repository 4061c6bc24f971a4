//! Our errors as gRPC's: a code, a message with cause and cure, and details for programs.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::access::{Denied, Peer};
use crate::chain::chain;
use crate::changes::VersionError;
use crate::preflight::Finding;
use crate::runtimes::external::External;
use crate::schema::{Violation, quoted};
use crate::supervisor::{Error, RefusalKind, StartError};
use crate::{models, socket, vmm};

const DOMAIN: &str = "vfu.dev";
const DEVICE: &str = "vfu.dev/Device";
const CONFIG: &str = "device.spec.config";

/// How long to wait before a call that may succeed later is made again.
const RETRY: Duration = Duration::from_secs(1);

/// Errors travel in HTTP/2 headers, of which some clients take no more than 8 KiB in all, where
/// details are in base64.
const MAX_MESSAGE_BYTES: usize = 2048;
const MAX_DESCRIPTION_BYTES: usize = 400;
const MAX_FIELD_BYTES: usize = 120;
const MAX_VIOLATIONS: usize = 8;

/// A text, not too long.
fn bounded(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push_str("...");
    }
    text
}

/// Fields of the request that break a rule.
pub(super) fn invalid(mut violations: Vec<Violation>) -> Status {
    if violations.len() > MAX_VIOLATIONS {
        let more = violations.len() - MAX_VIOLATIONS;
        violations.truncate(MAX_VIOLATIONS);
        violations.push(Violation::new("", format!("and {more} more")));
    }
    for violation in &mut violations {
        let Violation { field, description } = violation;
        *field = bounded(std::mem::take(field), MAX_FIELD_BYTES);
        *description = bounded(std::mem::take(description), MAX_DESCRIPTION_BYTES);
    }
    let message = violations
        .iter()
        .map(|it| match &*it.field {
            "" => it.description.clone(),
            field => format!("{field}: {}", it.description),
        })
        .collect::<Vec<_>>()
        .join("; ");
    let message = bounded(message, MAX_MESSAGE_BYTES);
    let violations: Vec<_> = violations
        .into_iter()
        .map(|it| FieldViolation::new(it.field, it.description))
        .collect();
    let mut details = ErrorDetails::with_bad_request(violations);
    details.set_error_info("INVALID", DOMAIN, HashMap::new());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// One field of the request that breaks a rule.
pub(super) fn invalid_field(field: &str, description: impl Into<String>) -> Status {
    invalid(vec![Violation::new(field, description)])
}

/// A VMM that can't take the device, for these reasons.
pub(super) fn unfit(id: &str, mut findings: Vec<Finding>) -> Status {
    let more = findings.len().saturating_sub(MAX_VIOLATIONS);
    findings.truncate(MAX_VIOLATIONS);
    let told = |it: &Finding| format!("{}; {}", it.message, it.cure);
    // The first of them is nearest to the cause: without a VMM there is no memory to be shared.
    let reason = findings.first().map_or("VMM_REFUSED", |it| it.code);
    let mut details = ErrorDetails::with_error_info(
        reason,
        DOMAIN,
        HashMap::from([("device".to_owned(), id.to_owned())]),
    );
    for finding in &findings {
        let subject = bounded(finding.subject.clone(), MAX_FIELD_BYTES);
        let told = bounded(told(finding), MAX_DESCRIPTION_BYTES);
        details.add_precondition_failure_violation(finding.code, subject, told);
    }
    let count = match findings.len() + more {
        1 => "1 check has".to_owned(),
        count => format!("{count} checks have"),
    };
    let message =
        format!("the VMM can't take devices/{id}: {count} failed; DiagnoseDevice shows all");
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// A caller that may not do this.
pub(super) fn denied(peer: &Peer, why: &Denied, method: &str) -> Status {
    let name = method.rsplit_once('/').map_or(method, |(_, name)| name);
    let mut metadata = HashMap::from([(
        "caller".to_owned(),
        bounded(peer.to_string(), MAX_FIELD_BYTES),
    )]);
    let (reason, message) = match why {
        Denied::Role { has, needs } => {
            metadata.insert("needs".to_owned(), needs.to_string());
            let has = match has {
                Some(role) => {
                    metadata.insert("has".to_owned(), role.to_string());
                    format!("has role {role}")
                }
                None => "has no role".to_owned(),
            };
            let cure = "an [[access]] rule in the agent's configuration gives roles";
            (
                "ACCESS_DENIED",
                format!("{peer} {has}, and {name} takes {needs}; {cure}"),
            )
        }
        Denied::Expired => (
            "CERTIFICATE_EXPIRED",
            format!("{peer} has expired since its caller connected; connect again with a new one"),
        ),
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    let message = bounded(message, MAX_MESSAGE_BYTES);
    Status::with_error_details(Code::PermissionDenied, message, details)
}

/// A request that is too long.
pub(super) fn too_long(bytes: usize, limit: usize) -> Status {
    let message = format!(
        "the request has {bytes} bytes and {limit} is this agent's limit (limits.request_bytes)"
    );
    let mut details = ErrorDetails::with_error_info("REQUEST_TOO_LONG", DOMAIN, HashMap::new());
    details.add_quota_failure_violation("agent/request_bytes", format!("limit {limit}"));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// A request whose end does not come.
pub(super) fn slow_request(patience: Duration) -> Status {
    let message = format!(
        "the request did not come to its end within {} s of its beginning; try again",
        patience.as_secs()
    );
    let mut details = ErrorDetails::with_error_info("REQUEST_TOO_SLOW", DOMAIN, HashMap::new());
    details.set_retry_info(Some(RETRY));
    Status::with_error_details(Code::DeadlineExceeded, message, details)
}

/// Too many calls at once.
pub(super) fn overloaded(limit: usize) -> Status {
    let message = format!(
        "{limit} calls are under way, which is this agent's limit (limits.concurrent_calls): try again, or raise it"
    );
    let mut details = ErrorDetails::with_retry_info(Some(RETRY));
    details.set_error_info("TOO_MANY_CALLS", DOMAIN, HashMap::new());
    details.add_quota_failure_violation("agent/calls", format!("limit {limit}"));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Too many streams at once.
pub(super) fn too_many_streams(limit: usize) -> Status {
    let message = format!(
        "{limit} streams are open, which is this agent's limit (limits.watches): end one, or raise it"
    );
    let mut details = ErrorDetails::with_retry_info(Some(RETRY));
    details.set_error_info("TOO_MANY_STREAMS", DOMAIN, HashMap::new());
    details.add_quota_failure_violation("agent/watches", format!("limit {limit}"));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// A version after which nobody can read.
pub(super) fn version(given: &str, error: VersionError) -> Status {
    let given = quoted(given);
    match error {
        VersionError::Malformed => {
            let why = format!(
                "{given} is no version of an agent; it comes from ListDevices or WatchDevices"
            );
            invalid_field("resource_version", why)
        }
        VersionError::Gone => {
            let message = format!(
                "the changes after {given} are not kept any more: list again, or watch without a version"
            );
            let details = ErrorDetails::with_error_info("VERSION_TOO_OLD", DOMAIN, HashMap::new());
            Status::with_error_details(Code::OutOfRange, message, details)
        }
    }
}

/// A reader that does not read in time.
pub(super) fn too_slow(kept: usize) -> Status {
    let message = format!(
        "too slow: {kept} changes are kept (limits.watch_changes), and more have come since this reader read its last \
         one; list again, or watch without a version"
    );
    let mut details = ErrorDetails::with_error_info("WATCH_TOO_SLOW", DOMAIN, HashMap::new());
    details.add_quota_failure_violation("agent/watch_changes", format!("limit {kept}"));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// A log that the host does not let the agent read.
pub(super) fn log_unreadable(id: &str, error: &std::io::Error) -> Status {
    let name = format!("devices/{id}");
    let message = format!("read the log of device {id}: {error}");
    let mut details = ErrorDetails::with_error_info("HOST_STORAGE", DOMAIN, HashMap::new());
    details.add_precondition_failure_violation("HOST_STORAGE", name, message.clone());
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// A model whose program can't serve devices.
pub(super) fn no_runtime(model: &str, external: &External, why: &str) -> Status {
    let source = external.source.display();
    let message = format!("model {model}, as {source} describes it: {why}");
    let reason = "RUNTIME_UNAVAILABLE";
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.add_precondition_failure_violation(reason, format!("models/{model}"), message.clone());
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// A model that there is not.
pub(super) fn no_model(name: &str, known: &str) -> Status {
    let message = format!("there is no model {name}; there are: {known}");
    let mut details = ErrorDetails::with_resource_info(
        "vfu.dev/Model",
        format!("models/{name}"),
        "",
        message.clone(),
    );
    details.set_error_info("MODEL_NOT_FOUND", DOMAIN, HashMap::new());
    Status::with_error_details(Code::NotFound, message, details)
}

impl From<models::Error> for Status {
    fn from(error: models::Error) -> Self {
        start(None, &StartError::Program(error))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let message = bounded(chain(&error), MAX_MESSAGE_BYTES);
        let about = |id: &str, reason: &str, code: Code| {
            let name = format!("devices/{id}");
            let metadata = HashMap::from([("device".to_owned(), name.clone())]);
            let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
            match code {
                Code::FailedPrecondition => {
                    details.add_precondition_failure_violation(reason, name, message.clone());
                }
                Code::Unavailable => {
                    details.set_retry_info(Some(RETRY));
                }
                _ => {
                    details.set_resource_info(DEVICE, name, "", message.clone());
                }
            }
            (code, details)
        };
        let agent = |reason: &str| {
            let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
            details.add_precondition_failure_violation(reason, "agent", message.clone());
            (Code::FailedPrecondition, details)
        };
        let (code, details) = match &error {
            Error::Exists { id } => about(id, "DEVICE_EXISTS", Code::AlreadyExists),
            Error::Missing { id } => about(id, "DEVICE_NOT_FOUND", Code::NotFound),
            Error::Etag { id, .. } => about(id, "ETAG_MISMATCH", Code::Aborted),
            Error::RequestReused { .. } => {
                return invalid_field("request_id", message);
            }
            Error::Full { limit } => {
                let mut details =
                    ErrorDetails::with_error_info("TOO_MANY_DEVICES", DOMAIN, HashMap::new());
                details.add_quota_failure_violation("agent/devices", format!("limit {limit}"));
                (Code::ResourceExhausted, details)
            }
            Error::Path(_) => {
                let cure = "with a shorter id, or an agent with a shorter --run-dir";
                return invalid_field("device_id", format!("{message}, {cure}"));
            }
            Error::Orphan { id, .. } => about(id, "DIRECTORY_IN_USE", Code::FailedPrecondition),
            Error::Connected { id, .. } => {
                let (code, details) = about(id, "CLIENT_CONNECTED", Code::FailedPrecondition);
                let cure = "end that process or unplug the device there, or delete with force \
                            (vfuctl delete --force)";
                return Self::with_error_details(code, format!("{message}; {cure}"), details);
            }
            Error::Unenforceable { limit, .. } => {
                let metadata = HashMap::from([("limit".to_owned(), (*limit).to_owned())]);
                let reason = "LIMIT_UNENFORCEABLE";
                let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
                let field = format!("device.spec.limits.{limit}");
                details.add_precondition_failure_violation(reason, field, message.clone());
                (Code::FailedPrecondition, details)
            }
            Error::NotServing { id, .. } => {
                about(id, "DEVICE_NOT_SERVED", Code::FailedPrecondition)
            }
            Error::Refused {
                id,
                field: Some(field),
                ..
            } => {
                let (code, mut details) = about(id, "DEVICE_REFUSED", Code::FailedPrecondition);
                let field = format!("{CONFIG}.{field}");
                let why = message.clone();
                details.add_precondition_failure_violation("DEVICE_REFUSED", field, why);
                (code, details)
            }
            Error::Refused { id, .. } => about(id, "DEVICE_REFUSED", Code::FailedPrecondition),
            Error::TakesNoRequest { id, .. } => {
                about(id, "CLIENT_TAKES_NO_REQUEST", Code::FailedPrecondition)
            }
            Error::Invalid(violations) => return invalid(violations.clone()),
            Error::Deleting { id } => about(id, "DEVICE_DELETING", Code::FailedPrecondition),
            Error::Creating { id } => about(id, "DEVICE_CREATING", Code::FailedPrecondition),
            Error::ShutDown { id } => about(id, "DEVICES_SHUT_DOWN", Code::FailedPrecondition),
            Error::Drained(drained) => agent(drained.reason()),
            Error::InUse { .. } => agent("CLIENT_CONNECTED"),
            Error::DrainNotDurable { source, .. } => {
                let (_, details) = agent(source.reason());
                (storage_code(source.reason()), details)
            }
            Error::NoAnswer { id, .. } | Error::Ask { id, .. } | Error::Unconfirmed { id, .. } => {
                about(id, "DEVICE_NO_ANSWER", Code::Unavailable)
            }
            Error::AlreadyPlugged { id, .. } => {
                about(id, "ALREADY_PLUGGED", Code::FailedPrecondition)
            }
            Error::NotPlugged { id, .. } => about(id, "NOT_PLUGGED", Code::FailedPrecondition),
            Error::PlugEnded { id } => about(id, "UNPLUGGED_MEANWHILE", Code::Aborted),
            Error::NameTaken { id, .. } => {
                about(id, "VMM_DEVICE_ID_TAKEN", Code::FailedPrecondition)
            }
            Error::GuestLate { id, .. } => about(id, "GUEST_LATE", Code::DeadlineExceeded),
            Error::Vmm { id, source } => {
                let (reason, code) = of_vmm(source);
                about(id, reason, code)
            }
            Error::Start { id, failure } => return start(Some(id), failure),
            Error::NotDurable { id, source, .. } => {
                about(id, source.reason(), storage_code(source.reason()))
            }
            Error::NotRemoved { id, .. } => about(id, "HOST_STORAGE", Code::FailedPrecondition),
            Error::Left { id, reason, .. } => about(id, reason, storage_code(reason)),
            Error::Unreadable { id } => about(id, "RECORD_UNREADABLE", Code::FailedPrecondition),
            Error::DeletedMeanwhile { id } => about(id, "DEVICE_DELETED", Code::Aborted),
            Error::ShuttingDown => {
                let mut details =
                    ErrorDetails::with_error_info("SHUTTING_DOWN", DOMAIN, HashMap::new());
                details.set_retry_info(Some(RETRY));
                (Code::Unavailable, details)
            }
        };
        Self::with_error_details(code, message, details)
    }
}

/// What a VMM's refusal is to programs.
fn of_vmm(error: &vmm::Error) -> (&'static str, Code) {
    match error {
        vmm::Error::Unreachable { .. } => ("VMM_UNREACHABLE", Code::FailedPrecondition),
        vmm::Error::Stranger { .. } => ("VMM_NOT_UNDERSTOOD", Code::FailedPrecondition),
        vmm::Error::TooOld { .. } => ("VMM_TOO_OLD", Code::FailedPrecondition),
        vmm::Error::NoPlace { .. } => ("NO_FREE_SLOT", Code::FailedPrecondition),
        vmm::Error::Refused { .. } => ("VMM_REFUSED", Code::FailedPrecondition),
        vmm::Error::GuestRefused { .. } => ("GUEST_REFUSED_UNPLUG", Code::FailedPrecondition),
        vmm::Error::Late { .. } => ("GUEST_LATE", Code::DeadlineExceeded),
        vmm::Error::Unanswered { .. } => ("VMM_NO_ANSWER", Code::Unavailable),
        vmm::Error::Gone { .. } => ("VMM_GONE", Code::FailedPrecondition),
    }
}

/// A full disk is a resource that is exhausted.
fn storage_code(reason: &str) -> Code {
    match reason {
        "STORAGE_FULL" => Code::ResourceExhausted,
        _ => Code::FailedPrecondition,
    }
}

/// A device that could not be started.
fn start(id: Option<&str>, failure: &StartError) -> Status {
    let message = match id {
        Some(id) => format!("device {id}: {}", chain(failure)),
        None => chain(failure),
    };
    let message = bounded(message, MAX_MESSAGE_BYTES);
    let description = bounded(message.clone(), MAX_DESCRIPTION_BYTES);
    let reason = failure.reason();
    let mut metadata = HashMap::new();
    let mut subject = "host".to_owned();
    let code = match failure {
        StartError::Refused(refusal) => {
            let field = match refusal.field.as_deref() {
                None | Some("") => CONFIG.to_owned(),
                Some(field) => format!("{CONFIG}.{field}"),
            };
            if refusal.kind == RefusalKind::Invalid {
                return invalid_field(&field, refusal.message.clone());
            }
            metadata.insert("field".to_owned(), field.clone());
            subject = field;
            Code::FailedPrecondition
        }
        StartError::Socket(socket::Error::TooLong { .. }) => {
            return invalid_field("device_id", message);
        }
        StartError::Ended { .. } | StartError::Program(_) | StartError::Spawn { .. } => {
            Code::FailedPrecondition
        }
        StartError::Late { .. } => Code::Unavailable,
        StartError::Store(_)
        | StartError::Earlier(_)
        | StartError::Cgroup(_)
        | StartError::Directory { .. }
        | StartError::Socket(_)
        | StartError::Control(_) => match reason {
            "STORAGE_FULL" => Code::ResourceExhausted,
            _ => Code::FailedPrecondition,
        },
    };
    if let Some(id) = id {
        metadata.insert("device".to_owned(), format!("devices/{id}"));
    }
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    match code {
        Code::Unavailable => {
            details.set_retry_info(Some(RETRY));
        }
        Code::ResourceExhausted => {
            details.add_quota_failure_violation(subject, description);
        }
        _ => {
            details.add_precondition_failure_violation(reason, subject, description);
        }
    }
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_request_makes_an_error_too_large_for_headers() {
        let violations = (0..1000)
            .map(|it| Violation::new("é".repeat(it), "\n".repeat(it)))
            .collect();
        let status = invalid(violations);
        assert!(status.message().len() < 6000);
        assert!(status.details().len() < 6000, "{}", status.details().len());
        let bad = status.get_details_bad_request().unwrap();
        let last = bad.field_violations.last().unwrap();
        assert_eq!(last.description, "and 992 more");
    }
}
