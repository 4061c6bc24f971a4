//! Why a device could not be served: for the operator, the agent and the exit code.

use std::{error::Error as _, io, process::ExitCode};

/// As a model says it: the field of the configuration, the kind, and a message with the cure.
pub(crate) use models::Error as Failure;
use models::Kind;
use vfio_user::ListenError;

/// By the convention of sysexits.h.
pub(crate) fn exit_code(failure: &Failure) -> ExitCode {
    ExitCode::from(match failure.kind {
        Kind::Invalid => 78,
        Kind::Permission => 77,
        Kind::InUse | Kind::NotFound | Kind::Unavailable => 73,
        Kind::Internal => 70,
    })
}

/// There is no socket to serve.
pub(crate) fn listen(error: ListenError) -> Failure {
    let kind = match &error {
        ListenError::InUse(_) => Kind::InUse,
        ListenError::Bind { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => Kind::Permission,
            io::ErrorKind::NotFound => Kind::NotFound,
            _ => Kind::Unavailable,
        },
        ListenError::PathTooLong(_) | ListenError::InTheWay(_) | ListenError::NotAListener => {
            Kind::Invalid
        }
        ListenError::Prepare(_) => Kind::Internal,
    };
    let source = error.source().map(|source| format!(": {source}"));
    let message = format!("{error}{}", source.unwrap_or_default());
    Failure {
        field: None,
        kind,
        message,
    }
}
