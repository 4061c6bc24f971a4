//! A kind of device, and the check of configurations by its JSON Schema.

use std::sync::Arc;

use jsonschema::Validator;
use serde::Deserialize;

use crate::mutable;
use crate::runtimes::external::External;
use crate::schema::{self, Violation};

/// The longest configuration, as JSON.
pub(crate) const MAX_CONFIG_BYTES: usize = 64 << 10;

/// A kind of device.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) vendor_id: u32,
    pub(crate) device_id: u32,
    pub(crate) class_code: u32,
    pub(crate) config_schema: serde_json::Value,
    /// Empty where the program does not tell.
    #[serde(default)]
    pub(crate) bars: Vec<Bar>,
    #[serde(skip)]
    validator: Option<Arc<Validator>>,
    /// How another program serves it; none: vfu's own does.
    #[serde(skip)]
    pub(crate) external: Option<Arc<External>>,
}

/// A Base Address Register, as it is unless the configuration says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Bar {
    pub(crate) index: u32,
    pub(crate) kind: BarKind,
    pub(crate) size_bytes: u64,
    pub(crate) prefetchable: bool,
}

/// Where it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum BarKind {
    #[serde(rename = "MEMORY_32")]
    Memory32,
    #[serde(rename = "MEMORY_64")]
    Memory64,
    Io,
    /// Of a newer program.
    #[serde(other)]
    Unknown,
}

impl Model {
    /// Makes a model that its program has told ready for checks, or says what is wrong with its schema.
    pub(super) fn compile(&mut self) -> Result<(), String> {
        let validator = jsonschema::draft202012::new(&self.config_schema);
        let validator = validator.map_err(|error| error.to_string())?;
        self.validator = Some(Arc::new(validator));
        Ok(())
    }

    /// A model that another program serves; `pci` is vendor, device and class. Or what is wrong with the schema.
    pub(crate) fn external(
        name: String,
        description: String,
        [vendor_id, device_id, class_code]: [u32; 3],
        config_schema: serde_json::Value,
        external: Arc<External>,
    ) -> Result<Self, String> {
        // Values come from callers: patterns must not take for ever with one of them.
        let linear = jsonschema::PatternOptions::regex();
        let options = jsonschema::draft202012::options().with_pattern_options(linear);
        let validator = options.build(&config_schema);
        let validator = validator.map_err(|error| error.to_string())?;
        Ok(Self {
            name,
            description,
            vendor_id,
            device_id,
            class_code,
            config_schema,
            bars: Vec::new(),
            validator: Some(Arc::new(validator)),
            external: Some(external),
        })
    }

    /// Every field of `config` that the model does not take.
    pub(crate) fn check(&self, config: &serde_json::Value) -> Vec<Violation> {
        let validator = self
            .validator
            .as_ref()
            .expect("the catalogue compiles every schema");
        schema::violations(validator, &self.config_schema, config)
    }

    /// Every field in which a living device's configuration would have to change and can't.
    pub(crate) fn check_change(
        &self,
        present: &serde_json::Value,
        wanted: &serde_json::Value,
    ) -> Vec<Violation> {
        mutable::violations(&self.config_schema, present, wanted)
    }

    /// Whether a configuration, of whatever model, is not too long.
    pub(crate) fn check_size(config: &serde_json::Value) -> Result<(), Violation> {
        match config.to_string().len() {
            ..=MAX_CONFIG_BYTES => Ok(()),
            bytes => {
                let why = format!("{bytes} bytes as JSON; at most {MAX_CONFIG_BYTES} are allowed");
                Err(Violation::new("", why))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A model whose configuration has this schema.
    pub(crate) fn model(config_schema: serde_json::Value) -> Model {
        Model {
            name: "e1000".to_owned(),
            description: String::new(),
            vendor_id: 0x8086,
            device_id: 0x100e,
            class_code: 0x2_0000,
            bars: Vec::new(),
            external: None,
            validator: Some(Arc::new(
                jsonschema::draft202012::new(&config_schema).unwrap(),
            )),
            config_schema,
        }
    }
}
