//! Saved state: a device taken apart into plain values, to be put together again in another process.
//!
//! It is JSON, so that a person can read it and a later version can tell what an earlier one wrote. What is loaded comes
//! from whoever moves the guest and is believed in nothing: structures have types, unknown fields are refused, and every
//! value is compared with what the device could have had. A state is loaded whole or not at all.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// What is quoted of a saved state in an error: whoever wrote it must not fill the log.
const QUOTED_CHARS: usize = 200;

/// A model's state, in the model's own format.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    model: String,
    version: u32,
    state: Box<RawValue>,
}

impl Saved {
    /// Wraps the state of a device of this model; `version` is that of the format of `state`.
    ///
    /// # Panics
    /// When `state` is not made of plain structures, lists and maps with names for keys.
    #[must_use]
    pub fn new(model: &str, version: u32, state: &impl Serialize) -> Self {
        Self {
            model: model.to_owned(),
            version,
            state: serde_json::value::to_raw_value(state).expect("plain structures are JSON"),
        }
    }

    /// The state, if it is of this model and in this version of its format.
    ///
    /// # Errors
    /// [`LoadError`], also when it has not the structure of `T`.
    pub fn state<T: DeserializeOwned>(&self, model: &str, version: u32) -> Result<T, LoadError> {
        if self.model != model {
            let problem = format!("the state is of {:?}, and this is {model:?}", self.model);
            return Err(LoadError::new("model", problem));
        }
        if self.version != version {
            return Err(LoadError::new(
                "version",
                format!("is {}; {version} is known", self.version),
            ));
        }
        parse(self.state.get().as_bytes()).map_err(|error| error.within("state"))
    }
}

/// Reads JSON into typed structures.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, LoadError> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| LoadError::new(error.path().to_string(), error.inner().to_string()))?;
    json.end()
        .map_err(|error| LoadError::new("", error.to_string()))?;
    Ok(value)
}

/// Why a saved state was not loaded: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct LoadError {
    field: String,
    problem: String,
}

impl LoadError {
    /// Something is wrong with a field: its path with dots, "" for the whole.
    #[must_use]
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        // It goes to a log, and must not begin a line there.
        let quote = |text: String| {
            let mut quoted: String = text.chars().take(QUOTED_CHARS).map(printable).collect();
            if text.chars().nth(QUOTED_CHARS).is_some() {
                quoted.push_str("...");
            }
            quoted
        };
        Self {
            field: quote(field.into()),
            problem: quote(problem.into()),
        }
    }

    /// The same of a field of `outer`.
    #[must_use]
    pub fn within(self, outer: &str) -> Self {
        let field = match self.field.as_str() {
            "" | "." => outer.to_owned(),
            index if index.starts_with('[') => format!("{outer}{index}"),
            inner => format!("{outer}.{inner}"),
        };
        Self { field, ..self }
    }

    /// Which field it is.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }
}

/// The character, or what stands for it when it would not be seen as one.
fn printable(c: char) -> String {
    match c {
        '"' | '\'' | '\\' => c.into(),
        _ => c.escape_debug().collect(),
    }
}

/// Bytes, in base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD
            .decode(text)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Plain {
        number: u8,
        bytes: Bytes,
    }

    fn saved() -> Saved {
        Saved::new(
            "model",
            3,
            &Plain {
                number: 7,
                bytes: Bytes(vec![0, 255]),
            },
        )
    }

    #[test]
    fn a_state_comes_back() {
        let text = serde_json::to_string(&saved()).unwrap();
        assert_eq!(
            text,
            r#"{"model":"model","version":3,"state":{"number":7,"bytes":"AP8="}}"#
        );
        let again: Saved = parse(text.as_bytes()).unwrap();
        let plain: Plain = again.state("model", 3).unwrap();
        assert_eq!((plain.number, plain.bytes.0), (7, vec![0, 255]));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let field = |result: Result<Plain, LoadError>| result.unwrap_err().field().to_owned();
        assert_eq!(field(saved().state("other", 3)), "model");
        assert_eq!(field(saved().state("model", 4)), "version");
        for (text, named) in [
            (r#"{"number":256,"bytes":""}"#, "number"),
            (r#"{"number":1,"bytes":"A"}"#, "bytes"),
            (r#"{"number":1,"bytes":"","more":1}"#, "more"),
            (r#"{"number":1,"bytes":""}}"#, ""),
        ] {
            assert_eq!(field(parse(text.as_bytes())), named, "{text}");
        }
        let state = RawValue::from_string(r#"{"number":-1}"#.into()).unwrap();
        let saved = Saved { state, ..saved() };
        assert_eq!(field(saved.state("model", 3)), "state.number");
    }

    #[test]
    fn what_is_quoted_is_no_line_and_no_colour_of_its_own() {
        let text = "{\"a\\n2026 INFO all is well\\u001b[31m\\u0085\\u2028\":1}";
        let error = parse::<Plain>(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(r"a\n2026 INFO all is well\u{1b}[31m\u{85}\u{2028}"));
        let wraps = |c: char| c.is_control() || c == '\u{2028}';
        assert!(!error.contains(wraps), "{error:?}");
        let error = LoadError::new("field", "1\r2");
        assert_eq!(error.to_string(), r"field: 1\r2");
    }

    #[test]
    fn a_long_name_is_not_quoted_whole() {
        let text = format!(r#"{{"{}":1}}"#, "ä".repeat(100_000));
        let error = parse::<Plain>(text.as_bytes()).unwrap_err();
        assert!(error.to_string().len() < 1000, "{error}");
    }
}
