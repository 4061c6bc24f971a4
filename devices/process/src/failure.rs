//! Why a device could not be served: for the operator, the agent and the exit code.

use std::process::ExitCode;

use serde::Serialize;
use vfio_user::ListenError;

/// A start that failed, as the agent reads it.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    /// The field of the configuration that is to blame, by its path (`net.tap.ifname`).
    pub(crate) field: Option<String>,
    pub(crate) kind: Kind,
    /// What, why, and the cure.
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Kind {
    Invalid,
    InUse,
    NotFound,
    Permission,
    Unavailable,
    Internal,
}

impl Failure {
    pub(crate) fn internal(message: String) -> Self {
        Self {
            field: None,
            kind: Kind::Internal,
            message,
        }
    }

    pub(crate) fn invalid(message: String) -> Self {
        Self {
            field: None,
            kind: Kind::Invalid,
            message,
        }
    }

    /// By the convention of sysexits.h.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Invalid => 78,
            Kind::Permission => 77,
            Kind::InUse | Kind::NotFound | Kind::Unavailable => 73,
            Kind::Internal => 70,
        })
    }
}

impl From<models::Error> for Failure {
    fn from(error: models::Error) -> Self {
        let kind = match error.kind {
            models::Kind::Invalid => Kind::Invalid,
            models::Kind::InUse => Kind::InUse,
            models::Kind::NotFound => Kind::NotFound,
            models::Kind::Permission => Kind::Permission,
            models::Kind::Unavailable => Kind::Unavailable,
            models::Kind::Internal => Kind::Internal,
        };
        Self {
            field: error.field,
            kind,
            message: error.message,
        }
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        let kind = match &error {
            ListenError::InUse(_) => Kind::InUse,
            ListenError::Bind { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => Kind::Permission,
                std::io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::Unavailable,
            },
            ListenError::PathTooLong(_) | ListenError::InTheWay(_) | ListenError::NotAListener => {
                Kind::Invalid
            }
            ListenError::Prepare(_) => Kind::Internal,
        };
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Self {
            field: None,
            kind,
            message: format!("{error}{}", source.unwrap_or_default()),
        }
    }
}
