//! The catalogue of device models.
//!
//! A model is its folder, its line in the catalogue, and its tests. Models know `pci` and their backends; they know no
//! socket and no other model.

pub mod e1000;
mod error;
#[cfg(test)]
mod tests;
mod update;

use pci::Bar;
use serde::Serialize;

pub use error::{Error, Kind};

/// A model, as `vfu-device models --json` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// The name by which operators choose it.
    pub name: &'static str,
    /// What it is, in one line.
    pub description: &'static str,
    /// PCI Vendor ID.
    pub vendor_id: u16,
    /// PCI Device ID.
    pub device_id: u16,
    /// Base class, subclass and programming interface, 24 bits.
    pub class_code: u32,
    /// What it has in memory and I/O space, unless its configuration says otherwise.
    #[serde(serialize_with = "write_bars")]
    pub bars: [Option<Bar>; 6],
    /// JSON Schema of the model's configuration. A field that can change while the device lives has `x-vfu-mutable`.
    #[serde(serialize_with = "write_schema", rename = "config_schema")]
    config_schema: fn() -> schemars::Schema,
    #[serde(skip)]
    open: fn(serde_json::Value, Seed) -> Result<Box<dyn pci::Device>, Error>,
}

/// Where a model takes from what it has to make up for a device, such as an address: the same for a device that is started
/// again, and another for every other device.
#[derive(Clone, Copy, Debug)]
pub struct Seed(pub [u8; 8]);

/// Intel 82540EM.
pub(crate) const E1000: Model = Model {
    name: "e1000",
    description: "Intel 82540EM Gigabit Ethernet controller",
    vendor_id: 0x8086,
    device_id: 0x100e,
    class_code: 0x02_0000,
    bars: e1000::BARS,
    config_schema: || schemars::schema_for!(e1000::Config),
    open: |config, seed| Ok(Box::new(e1000::open(error::parse(config)?, seed)?)),
};

const CATALOGUE: &[Model] = &[E1000];

/// Every model there is.
#[must_use]
pub fn catalogue() -> &'static [Model] {
    CATALOGUE
}

/// Makes a device of the model, with its backend open.
///
/// # Errors
/// [`Error`], which says which field of the configuration has to change and how.
pub fn open(
    model: &str,
    config: serde_json::Value,
    seed: Seed,
) -> Result<Box<dyn pci::Device>, Error> {
    let found = CATALOGUE.iter().find(|known| known.name == model);
    let found = found.ok_or_else(|| error::unknown_model(model, CATALOGUE))?;
    (found.open)(config, seed)
}

impl Model {
    /// JSON Schema (draft 2020-12) of the model's configuration.
    #[must_use]
    pub fn config_schema(&self) -> serde_json::Value {
        (self.config_schema)().to_value()
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a field by reference"
)]
fn write_schema<S: serde::Serializer>(
    schema: &fn() -> schemars::Schema,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    schema().serialize(serializer)
}

/// A Base Address Register of a model.
#[derive(Serialize)]
struct WrittenBar {
    index: usize,
    kind: &'static str,
    size_bytes: u32,
    prefetchable: bool,
}

fn write_bars<S: serde::Serializer>(
    bars: &[Option<Bar>; 6],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let written = bars.iter().enumerate().filter_map(|(index, bar)| {
        let bar = (*bar)?;
        Some(WrittenBar {
            index,
            kind: match bar {
                Bar::Memory { .. } => "MEMORY_32",
                Bar::Memory64 { .. } => "MEMORY_64",
                Bar::Io { .. } => "IO",
            },
            size_bytes: bar.size_bytes(),
            // Reading a device's registers changes them.
            prefetchable: false,
        })
    });
    serializer.collect_seq(written)
}
