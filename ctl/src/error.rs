//! What can go wrong, as people and scripts see it: lines on standard error and an exit code by kind of failure.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use tonic::{Code, Status};

use crate::{
    endpoint::Endpoint,
    refusal::{self, Flag},
    schema::Schema,
};

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  something else failed, or `vfuctl doctor` has found an error
   2  wrong usage, or the agent found an argument to be invalid
   3  no such device or model
   4  the device exists already, or was changed by somebody else meanwhile
   5  not possible in the present state, or the host can't give what was asked for
   6  not allowed
   7  the agent can't be reached, or asks to try again
   8  no answer in time, or not so in time (--timeout)
   9  a limit is reached
  10  the agent does not serve this
 130  ended by Ctrl-C, as a watch always is";

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
    #[error("{}", unreachable(endpoint, source))]
    Unreachable {
        /// Where it should be.
        endpoint: Endpoint,
        /// What connecting said.
        source: io::Error,
    },
    /// The connection broke, or what answers does not speak gRPC.
    #[error("{endpoint}: lost, or no vfu agent listens there: {why}")]
    Broken {
        /// Where it is.
        endpoint: Endpoint,
        /// What the transport said.
        why: String,
    },
    /// The agent's certificate is not good, or ours is not for the agent.
    #[error("{endpoint}: {why}")]
    Untrusted {
        /// Where it is.
        endpoint: Endpoint,
        /// Which, why, and what to do.
        why: String,
    },
    /// The agent refused.
    #[error("{}", status.message())]
    Refused {
        /// What the agent said.
        status: Box<Status>,
        /// How the model's fields are given.
        flags: Vec<Flag>,
    },
    /// The agent did not answer.
    #[error("no answer from the agent within {} s (see --timeout)", .0.as_secs_f64())]
    Late(Duration),
    /// Devices were not stopped in time.
    #[error(
        "not stopped within {} s (see --timeout): {}; the agent goes on with them, and so does the same command",
        timeout.as_secs_f64(), names.join(", ")
    )]
    Remaining {
        /// Those devices.
        names: Vec<String>,
        /// How long the agent has waited.
        timeout: Duration,
    },
    /// A device did not become what was waited for.
    #[error(
        "{device} is not {goal} within {} s (see --timeout); it is {last}", timeout.as_secs_f64()
    )]
    Unmet {
        /// The device.
        device: String,
        /// What was waited for.
        goal: String,
        /// How it was when it was seen last.
        last: String,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// There are findings that keep a VMM from taking the device; they are printed already.
    #[error("errors found: {0}")]
    Findings(usize),
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
    /// A VMM uses the device that was to be probed.
    #[error(
        "{device} is in use by {client}, and a device has one client at a time; unplug it there, or stop that VMM"
    )]
    InUse {
        /// The device.
        device: String,
        /// The VMM.
        client: String,
    },
    /// There is no program that can probe.
    #[error(
        "no device program: looked for {}; install vfu-device there, or name it with --device-program",
        .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoProgram(Vec<PathBuf>),
    /// It can't be run.
    #[error("run {}: {source}; name the device program with --device-program", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says that the probe failed.
    #[error("{message}")]
    Probe {
        /// Its exit code.
        code: Option<i32>,
        /// What it said.
        message: String,
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
            Self::Untrusted { .. } => 6,
            Self::Broken { .. } => 7,
            Self::Late(_) | Self::Remaining { .. } | Self::Unmet { .. } => 8,
            Self::Nonsense(_) | Self::Output(_) | Self::Findings(_) => 1,
            Self::Read { .. } => 2,
            Self::InUse { .. } | Self::NoProgram(_) => 5,
            Self::Run { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => 6,
                _ => 5,
            },
            // Those of vfu-device are those of sysexits.h.
            Self::Probe { code, .. } => match code {
                Some(2 | 78) => 2,
                Some(73) => 5,
                Some(77) => 6,
                _ => 1,
            },
            Self::Several(errors) => errors.first().map_or(1, Self::exit_code),
        }
    }

    /// The failure as lines for people: what failed, then each detail on a line of its own.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = match self {
            Self::Several(errors) => return errors.iter().flat_map(Self::lines).collect(),
            Self::Refused { status, flags } => refusal::lines(status, flags),
            error => vec![error.to_string()],
        };
        let heads = std::iter::once("vfuctl: ").chain(std::iter::repeat("  "));
        heads
            .zip(&lines)
            .map(|(head, line)| format!("{head}{}", indented(line)))
            .collect()
    }

    /// The same error, told in terms of the flags of `schema`.
    pub(crate) fn knowing(self, schema: &Schema) -> Self {
        self.told_by(schema, "--")
    }

    /// The same, where fields are given by `--set`.
    pub(crate) fn knowing_sets(self, schema: &Schema) -> Self {
        self.told_by(schema, "--set ")
    }

    fn told_by(self, schema: &Schema, prefix: &str) -> Self {
        match self {
            Self::Refused { status, .. } => {
                let fields = schema.fields.iter().filter(|field| field.has_flag());
                let flags = fields.map(|field| Flag {
                    path: field.path.clone(),
                    text: format!("{prefix}{}", field.path),
                });
                let flags = flags.collect();
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

fn unreachable(endpoint: &Endpoint, source: &io::Error) -> String {
    let path = match endpoint {
        Endpoint::Unix(path) => path.display(),
        Endpoint::Tcp { .. } => {
            return format!(
                "no agent at {endpoint}: {source}; name its address with --endpoint or VFU_ENDPOINT (api.tcp.address in the agent's configuration)"
            );
        }
    };
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
                endpoint: Endpoint::Unix("/run/vfu/agent.sock".into()),
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
    fn a_terminal_is_not_told_what_to_do() {
        let error = Error::from(Status::new(Code::Internal, "it said:\n\u{1b}[2J\r"));
        assert_eq!(error.lines(), ["vfuctl: it said:\n  \u{fffd}[2J"]);
    }
}
