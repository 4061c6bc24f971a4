//! Why a living device does not become what it is asked to be.

/// The field of the configuration that stands in the way, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct UpdateError {
    /// The field, as a path with dots; `None`: no one field.
    pub field: Option<String>,
    /// What is wrong, and the cure.
    pub message: String,
}

impl UpdateError {
    /// The field, or any field, is what it is for the device's life.
    #[must_use]
    pub fn immutable(field: Option<String>) -> Self {
        let what = match field {
            Some(_) => "this field",
            None => "the configuration",
        };
        let message = format!(
            "{what} can't change while the device lives: delete the device and create it anew"
        );
        Self { field, message }
    }
}
