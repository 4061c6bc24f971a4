//! Why a device could not be made, in terms of its configuration.

pub use net::Kind;
use pci::RomError;
use serde::{Serialize, de::DeserializeOwned};

use crate::Model;

/// A field of the configuration, what is wrong with it, and what to do.
#[derive(Debug, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The field that has to change, as a path with dots; `None`: no one field.
    pub field: Option<String>,
    /// What kind of failure it is.
    pub kind: Kind,
    /// What is wrong, and the cure, with the causes down to the system's.
    pub message: String,
}

impl Error {
    /// Whoever configured or started this must do it otherwise.
    #[must_use]
    pub fn invalid(message: String) -> Self {
        Self {
            field: None,
            kind: Kind::Invalid,
            message,
        }
    }

    /// What was not foreseen.
    #[must_use]
    pub fn internal(message: String) -> Self {
        Self {
            field: None,
            kind: Kind::Internal,
            message,
        }
    }
}

/// Why a model's network backend, configured in its field `net`, could not be opened.
impl From<net::Error> for Error {
    fn from(error: net::Error) -> Self {
        let field = match error.field() {
            "" => "net".to_owned(),
            inner => format!("net.{inner}"),
        };
        Self {
            field: Some(field),
            kind: error.kind(),
            message: chain(&error),
        }
    }
}

/// Why an expansion ROM, configured in a model's field `rom_file`, could not be read.
impl From<RomError> for Error {
    fn from(error: RomError) -> Self {
        Self {
            field: Some("rom_file".to_owned()),
            kind: match error {
                RomError::Missing { .. } => Kind::NotFound,
                RomError::Permission { .. } => Kind::Permission,
                RomError::Read { .. } => Kind::Internal,
                _ => Kind::Invalid,
            },
            message: chain(&error),
        }
    }
}

/// Reads a model's configuration.
pub(crate) fn parse<T: DeserializeOwned>(config: serde_json::Value) -> Result<T, Error> {
    if !config.is_object() {
        return Err(Error {
            field: None,
            kind: Kind::Invalid,
            message: "a configuration is a JSON object: {} has nothing but defaults".into(),
        });
    }
    serde_path_to_error::deserialize(config).map_err(|error| {
        let field = match error.path().to_string().as_str() {
            "." | "" => None,
            path => Some(path.to_owned()),
        };
        Error {
            field,
            kind: Kind::Invalid,
            message: error.inner().to_string(),
        }
    })
}

pub(crate) fn unknown_model(name: &str, catalogue: &[Model]) -> Error {
    let known: Vec<_> = catalogue.iter().map(|model| model.name).collect();
    Error {
        field: None,
        kind: Kind::Invalid,
        message: format!("no model {name:?}: choose one of {}", known.join(", ")),
    }
}

/// The text of an error and of all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
