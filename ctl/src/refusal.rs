//! A refusal of the agent in the words of the command line.
//!
//! The agent names fields of requests, `device.spec.config.net.tap.ifname`; people gave flags, `--net.tap.ifname`. What the
//! details of a status repeat of its message is said once.

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// How a field of the model's configuration is given.
#[derive(Debug)]
pub(crate) struct Flag {
    /// The field.
    pub(crate) path: String,
    /// What stands on the command line, without the value.
    pub(crate) text: String,
}

/// One detail of a refusal.
struct Detail {
    /// The field or thing.
    subject: String,
    /// The flag or argument that fills the field.
    flag: Option<String>,
    description: String,
}

impl Detail {
    fn new(subject: &str, description: &str, flags: &[Flag]) -> Self {
        Self {
            subject: subject.to_owned(),
            flag: flag(subject, flags),
            description: description.to_owned(),
        }
    }

    fn subject(&self) -> String {
        match &self.flag {
            Some(flag) => format!("{} ({flag})", self.subject),
            None => self.subject.clone(),
        }
    }
}

/// What `status` says: the message first, then a line for each detail. `flags` is how the model's fields are given.
pub(crate) fn lines(status: &Status, flags: &[Flag]) -> Vec<String> {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    let details = status.get_error_details();
    let named = named(&details, flags);
    let full = |it: &Detail| format!("{}: {}", it.subject(), it.description);
    let plain: Vec<_> = named
        .iter()
        .map(|it| format!("{}: {}", it.subject, it.description))
        .collect();
    let mut lines: Vec<String> = if plain.join("; ") == message {
        // The message is no more than a list of its details.
        match &named[..] {
            [only] => vec![full(only)],
            many => [format!("{} fields are wrong", many.len())]
                .into_iter()
                .chain(many.iter().map(full))
                .collect(),
        }
    } else {
        let details = named
            .iter()
            .filter_map(|it| match (it.description == message, &it.flag) {
                (false, _) => Some(full(it)),
                (true, Some(_)) => Some(format!("field {}", it.subject())),
                (true, None) => None,
            });
        [message.to_owned()].into_iter().chain(details).collect()
    };
    if let Some(delay) = details.retry_info().and_then(|it| it.retry_delay) {
        lines.push(format!("try again in {} s", delay.as_secs_f64()));
    }
    lines
}

fn named(details: &ErrorDetails, flags: &[Flag]) -> Vec<Detail> {
    let mut named = Vec::new();
    if let Some(request) = details.bad_request() {
        for it in &request.field_violations {
            named.push(Detail::new(&it.field, &it.description, flags));
        }
    }
    if let Some(failure) = details.precondition_failure() {
        for it in &failure.violations {
            let subject = match it.subject.as_str() {
                "" => &it.r#type,
                subject => subject,
            };
            named.push(Detail::new(subject, &it.description, flags));
        }
    }
    if let Some(failure) = details.quota_failure() {
        for it in &failure.violations {
            named.push(Detail::new(&it.subject, &it.description, flags));
        }
    }
    named
}

/// The flag or argument of vfuctl that fills a field of a request.
fn flag(field: &str, flags: &[Flag]) -> Option<String> {
    if let Some(path) = field.strip_prefix("device.spec.config.") {
        let known = flags.iter().find(|flag| flag.path == path);
        return known.map(|flag| flag.text.clone());
    }
    let flag = match field {
        "device_id" | "device.name" => "ID",
        "device.spec.model" => "MODEL",
        "device.spec.config" => "--config",
        "device.spec.restart_policy" => "--restart-policy",
        "device.spec.backend_loss_policy" => "--backend-loss-policy",
        "vmm.qmp_socket_path" => "--qmp",
        "vmm.cloud_hypervisor_socket_path" => "--cloud-hypervisor",
        "vmm.event_monitor_path" => "--events",
        "vmm_device_id" => "--id",
        "bus" => "--bus",
        "slot" => "--slot",
        "pci_segment" => "--segment",
        "method" => "--method",
        "device.spec.limits.memory_bytes" => "--memory",
        "device.spec.limits.cpu_millis" => "--cpu",
        "device.spec.limits.open_files" => "--open-files",
        "device.spec.limits.log_bytes" => "--log-bytes",
        "device.spec.socket.uid" => "--socket-uid",
        "device.spec.socket.gid" => "--socket-gid",
        "device.spec.socket.mode" => "--socket-mode",
        "device.etag" | "etag" => "--etag",
        "request_id" => "--request-id",
        "resource_version" => "--resource-version",
        "filter" => "--filter",
        "interval" => "--interval",
        "tail_lines" => "--tail",
        "since" => "--since",
        "reason" => "--reason",
        _ if is_within(field, "device.labels") => "--label",
        _ if is_within(field, "device.annotations") => "--annotation",
        _ => return None,
    };
    Some(flag.to_owned())
}

fn is_within(field: &str, map: &str) -> bool {
    let rest = field.strip_prefix(map);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn told(code: Code, message: &str, details: ErrorDetails) -> Vec<String> {
        let flags = ["mac", "net.tap.ifname"].map(|path| Flag {
            path: path.to_owned(),
            text: format!("--{path}"),
        });
        lines(&Status::with_error_details(code, message, details), &flags)
    }

    #[test]
    fn violations_name_the_flag() {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("device.spec.config.net.tap.ifname", "too long")
            .add_bad_request_violation("device.spec.config.colour", "unknown")
            .add_bad_request_violation("device_id", "must begin with a letter")
            .add_bad_request_violation("device.spec.limits", "not served");
        assert_eq!(
            told(Code::InvalidArgument, "bad request", details),
            [
                "bad request",
                "device.spec.config.net.tap.ifname (--net.tap.ifname): too long",
                "device.spec.config.colour: unknown",
                "device_id (ID): must begin with a letter",
                "device.spec.limits: not served",
            ]
        );
    }

    #[test]
    fn what_has_a_flag_of_its_own_names_it() {
        for (field, named) in [
            ("device.spec.limits.memory_bytes", "--memory"),
            ("device.labels", "--label"),
            ("device.annotations.a/b", "--annotation"),
            ("tail_lines", "--tail"),
        ] {
            assert_eq!(flag(field, &[]).as_deref(), Some(named));
        }
        assert_eq!(flag("device.labelsx", &[]), None);
        assert_eq!(flag("device.spec.limits", &[]), None);
    }

    #[test]
    fn a_message_that_lists_its_details_is_not_said_twice() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("device.spec.config.mac", "not an address");
        assert_eq!(
            told(
                Code::InvalidArgument,
                "device.spec.config.mac: not an address",
                details.clone()
            ),
            ["device.spec.config.mac (--mac): not an address"]
        );
        details.add_bad_request_violation("device_id", "too long");
        assert_eq!(
            told(
                Code::InvalidArgument,
                "device.spec.config.mac: not an address; device_id: too long",
                details
            ),
            [
                "2 fields are wrong",
                "device.spec.config.mac (--mac): not an address",
                "device_id (ID): too long"
            ]
        );
    }

    #[test]
    fn preconditions_name_their_subject() {
        let mut details = ErrorDetails::new();
        details.add_precondition_failure_violation("IN_USE", "/dev/net/tun", "busy");
        assert_eq!(
            told(Code::FailedPrecondition, "tap vfu0: in use", details),
            ["tap vfu0: in use", "/dev/net/tun: busy"]
        );
    }

    #[test]
    fn a_precondition_that_repeats_the_message_adds_its_flag() {
        let violation = |subject: &str| {
            let mut details = ErrorDetails::new();
            details.add_precondition_failure_violation("IN_USE", subject, "tap vfu0: in use");
            told(Code::FailedPrecondition, "tap vfu0: in use", details)
        };
        assert_eq!(
            violation("device.spec.config.net.tap.ifname"),
            [
                "tap vfu0: in use",
                "field device.spec.config.net.tap.ifname (--net.tap.ifname)"
            ]
        );
        assert_eq!(violation("host"), ["tap vfu0: in use"]);
    }

    #[test]
    fn limits_and_delays_are_told() {
        let mut details = ErrorDetails::with_retry_info(Some(std::time::Duration::from_secs(1)));
        details.add_quota_failure_violation("agent/calls", "limit 256");
        assert_eq!(
            told(Code::ResourceExhausted, "too many calls", details),
            [
                "too many calls",
                "agent/calls: limit 256",
                "try again in 1 s"
            ]
        );
    }

    #[test]
    fn a_refusal_without_words_still_has_a_line() {
        let lines = lines(&Status::new(Code::NotFound, ""), &[]);
        assert_eq!(lines.len(), 1);
        assert!(!lines[0].is_empty());
    }
}
