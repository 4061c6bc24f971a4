//! What can go wrong, as people and scripts see it: lines on standard error and an exit code by kind of failure.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::schema::Schema;

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  something else failed
   2  wrong usage, or the agent found an argument to be invalid
   3  no such device or model
   4  the device exists already, or was changed by somebody else meanwhile
   5  not possible in the present state, or the host can't give what was asked for
   6  not allowed
   7  the agent can't be reached, or asks to try again
   8  no answer in time (--timeout)
   9  a limit is reached
  10  the agent does not serve this";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is wrong, by vfuctl's own judgement.
    #[error("{0}")]
    Usage(String),
    /// The command line is wrong, or asks for help.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// Nobody answers on the agent's socket.
    #[error("{}", unreachable(path, source))]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// The connection broke, or what answers does not speak gRPC.
    #[error("{}: lost, or no vfu agent listens there: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the transport said.
        why: String,
    },
    /// The agent refused.
    #[error("{}", status.message())]
    Refused {
        /// What the agent said.
        status: Box<Status>,
        /// Paths of the model's fields that have flags.
        flags: Vec<String>,
    },
    /// The agent did not answer.
    #[error("no answer from the agent within {} s (see --timeout)", .0.as_secs_f64())]
    Late(Duration),
    /// The agent answered what can't be.
    #[error("the agent's answer makes no sense: {0}")]
    Nonsense(String),
    /// A file of the user can't be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The result can't be written.
    #[error("write the output: {0}")]
    Output(#[from] io::Error),
    /// Some of several things failed; the first says the exit code.
    #[error("{} failed", .0.len())]
    Several(Vec<Error>),
}

impl Error {
    /// The failure as an exit code; `EXIT_CODES` says what it means.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Clap(error) => u8::try_from(error.exit_code()).unwrap_or(2),
            Self::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => 6,
                _ => 7,
            },
            Self::Refused { status, .. } => match status.code() {
                Code::InvalidArgument | Code::OutOfRange => 2,
                Code::NotFound => 3,
                Code::AlreadyExists | Code::Aborted => 4,
                Code::FailedPrecondition => 5,
                Code::PermissionDenied | Code::Unauthenticated => 6,
                Code::Unavailable => 7,
                Code::DeadlineExceeded => 8,
                Code::ResourceExhausted => 9,
                Code::Unimplemented => 10,
                _ => 1,
            },
            Self::Broken { .. } => 7,
            Self::Late(_) => 8,
            Self::Nonsense(_) | Self::Output(_) => 1,
            Self::Read { .. } => 2,
            Self::Several(errors) => errors.first().map_or(1, Self::exit_code),
        }
    }

    /// The failure as lines for people: what failed, then each detail on a line of its own.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = match self {
            Self::Several(errors) => return errors.iter().flat_map(Self::lines).collect(),
            error => vec![format!("vfuctl: {}", indented(&error.to_string()))],
        };
        if let Self::Refused { status, flags } = self {
            if status.message().is_empty() {
                lines = vec![format!("vfuctl: {}", status.code().description())];
            }
            lines.extend(
                details(status, flags)
                    .iter()
                    .map(|it| format!("  {}", indented(it))),
            );
        }
        lines
    }

    /// The same error, told in terms of the flags of `schema`.
    pub(crate) fn knowing(self, schema: &Schema) -> Self {
        match self {
            Self::Refused { status, .. } => {
                let flags = schema.fields.iter().filter(|field| field.has_flag());
                let flags = flags.map(|field| field.path.clone()).collect();
                Self::Refused { status, flags }
            }
            other => other,
        }
    }

    /// Tells the user and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            // Help and version are no failure: clap knows the stream and the code of each.
            Self::Clap(error) => {
                // A reader who has gone wants no help.
                let _ = error.print();
            }
            // `vfuctl list | head -1`: the reader has what it wanted.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            error => {
                let mut lines = error.lines().join("\n");
                lines.push('\n');
                // Nobody is left to hear that standard error is closed.
                let _ = io::stderr().write_all(lines.as_bytes());
            }
        }
        ExitCode::from(self.exit_code())
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused {
            status: Box::new(status),
            flags: Vec::new(),
        }
    }
}

fn unreachable(path: &std::path::Path, source: &io::Error) -> String {
    let path = path.display();
    match source.kind() {
        io::ErrorKind::NotFound => format!(
            "no agent: the socket {path} does not exist; start vfu-agent, or name its socket with --endpoint or VFU_ENDPOINT"
        ),
        io::ErrorKind::ConnectionRefused => format!(
            "no agent: the socket {path} exists but nobody listens on it; start vfu-agent, or name its socket with --endpoint or VFU_ENDPOINT"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "the socket {path} may not be used by this user; run vfuctl as root or as a user whom the socket's mode allows"
        ),
        _ => format!(
            "no agent at the socket {path}: {source}; name its socket with --endpoint or VFU_ENDPOINT"
        ),
    }
}

fn details(status: &Status, flags: &[String]) -> Vec<String> {
    let details = status.get_error_details();
    let mut lines = Vec::new();
    if let Some(request) = details.bad_request() {
        for violation in &request.field_violations {
            lines.push(match hint(&violation.field, flags) {
                Some(flag) => format!("{} ({flag}): {}", violation.field, violation.description),
                None => format!("{}: {}", violation.field, violation.description),
            });
        }
    }
    if let Some(failure) = details.precondition_failure() {
        for violation in &failure.violations {
            let subject = match hint(&violation.subject, flags) {
                Some(flag) => format!("{} ({flag})", violation.subject),
                None if violation.subject.is_empty() => violation.r#type.clone(),
                None => violation.subject.clone(),
            };
            lines.push(format!("{subject}: {}", violation.description));
        }
    }
    if let Some(failure) = details.quota_failure() {
        for violation in &failure.violations {
            lines.push(format!("{}: {}", violation.subject, violation.description));
        }
    }
    if let Some(delay) = details.retry_info().and_then(|it| it.retry_delay) {
        lines.push(format!("try again in {} s", delay.as_secs_f64()));
    }
    // Agents often have nothing to add to their message.
    lines.retain(|line| line != status.message());
    lines
}

/// The flag or argument of vfuctl that fills a field of a request.
fn hint(field: &str, flags: &[String]) -> Option<String> {
    if let Some(path) = field.strip_prefix("device.spec.config.") {
        let known = flags.iter().any(|flag| flag == path);
        return known.then(|| format!("--{path}"));
    }
    let flag = match field {
        "device_id" => "ID",
        "device.spec.model" => "MODEL",
        "device.spec.config" => "--config",
        "request_id" => "--request-id",
        "filter" => "--filter",
        _ if field == "device.labels" || field.starts_with("device.labels.") => "--label",
        _ => return None,
    };
    Some(flag.to_owned())
}

fn indented(text: &str) -> String {
    printable(text.trim_end()).replace('\n', "\n  ")
}

/// `text` without what a terminal would obey: parts of it come from guests' and other users' programs.
pub(crate) fn printable(text: &str) -> String {
    let obeyed = |c: char| c.is_control() && c != '\n';
    text.replace(obeyed, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests::card;
    use tonic_types::ErrorDetails;

    fn refused(code: Code) -> Error {
        Status::new(code, "no").into()
    }

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let codes = [
            (Code::Internal, 1),
            (Code::Unknown, 1),
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::Aborted, 4),
            (Code::FailedPrecondition, 5),
            (Code::PermissionDenied, 6),
            (Code::Unauthenticated, 6),
            (Code::Unavailable, 7),
            (Code::DeadlineExceeded, 8),
            (Code::ResourceExhausted, 9),
            (Code::Unimplemented, 10),
        ];
        for (code, exit) in codes {
            assert_eq!(refused(code).exit_code(), exit, "{code:?}");
        }
        assert_eq!(Error::Usage("x".into()).exit_code(), 2);
        assert_eq!(Error::Late(Duration::from_secs(1)).exit_code(), 8);
        let several = Error::Several(vec![refused(Code::NotFound), refused(Code::Aborted)]);
        assert_eq!(several.exit_code(), 3);
    }

    #[test]
    fn an_unreachable_agent_is_named_with_the_cure() {
        let line = |kind: io::ErrorKind| {
            Error::Unreachable {
                path: "/run/vfu/agent.sock".into(),
                source: kind.into(),
            }
            .lines()
            .remove(0)
        };
        assert_eq!(
            line(io::ErrorKind::NotFound),
            "vfuctl: no agent: the socket /run/vfu/agent.sock does not exist; start vfu-agent, or name its socket with --endpoint or VFU_ENDPOINT"
        );
        assert!(line(io::ErrorKind::ConnectionRefused).contains("exists but nobody listens"));
        assert!(line(io::ErrorKind::PermissionDenied).contains("may not be used by this user"));
    }

    #[test]
    fn violations_name_the_flag() {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("device.spec.config.net.tap.ifname", "too long")
            .add_bad_request_violation("device.spec.config.colour", "unknown")
            .add_bad_request_violation("device_id", "must begin with a letter")
            .add_bad_request_violation("device.spec.limits", "not served");
        let status =
            Status::with_error_details(Code::InvalidArgument, "4 fields are wrong", details);
        let error = Error::from(status).knowing(&card());
        assert_eq!(
            error.lines(),
            [
                "vfuctl: 4 fields are wrong",
                "  device.spec.config.net.tap.ifname (--net.tap.ifname): too long",
                "  device.spec.config.colour: unknown",
                "  device_id (ID): must begin with a letter",
                "  device.spec.limits: not served",
            ]
        );
    }

    #[test]
    fn preconditions_name_their_subject() {
        let mut details = ErrorDetails::new();
        details.add_precondition_failure_violation("IN_USE", "/dev/net/tun", "busy");
        let error = Error::from(Status::with_error_details(
            Code::FailedPrecondition,
            "tap vfu0: in use",
            details,
        ));
        assert_eq!(
            error.lines(),
            ["vfuctl: tap vfu0: in use", "  /dev/net/tun: busy"]
        );
    }

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        let error = Error::from(Status::new(Code::Internal, "it said:\n\u{1b}[2J\r"));
        assert_eq!(error.lines(), ["vfuctl: it said:\n  \u{fffd}[2J"]);
    }

    #[test]
    fn a_refusal_without_words_still_has_a_line() {
        let error = Error::from(Status::new(Code::NotFound, ""));
        assert_eq!(error.lines().len(), 1);
        assert!(error.lines()[0].len() > "vfuctl: ".len());
    }
}
