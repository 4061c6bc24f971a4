//! How results look: tables for people; protobuf's canonical JSON, the same as YAML, and names for programs.

mod json;
mod table;

use std::{io::Write, time::SystemTime};

use clap::ValueEnum;
use proto::v1::{Device, WatchDevicesResponse};
use serde_json::{Value, json};

pub(crate) use self::{
    json::{from_struct, json, to_struct},
    table::{Changes, age, client, id, place, situation, table},
};
use crate::{
    error::{Error, printable},
    yaml,
};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// A table (the default)
    Table,
    /// A table with more columns
    Wide,
    /// Protobuf's JSON
    Json,
    /// The same as YAML
    Yaml,
    /// Resource names, one per line
    Name,
}

impl Format {
    /// `value` as one of a stream of items: a line of JSON, or a document of YAML.
    pub(crate) fn item(self, value: &Value) -> String {
        match self {
            Self::Yaml => format!("---\n{}", yaml::document(value)),
            _ => format!("{value}\n"),
        }
    }
}

/// Where results go, and how they look.
pub(crate) struct Output<'a> {
    /// What was asked for with `--output`.
    pub(crate) format: Option<Format>,
    /// Where to write.
    pub(crate) sink: &'a mut dyn Write,
    /// Where to write what is for people, and no part of the result.
    pub(crate) notes: &'a mut dyn Write,
    /// Whether the notes are read as they are written.
    pub(crate) terminal: bool,
}

impl Output<'_> {
    /// The format, or the default.
    pub(crate) fn format(&self) -> Format {
        self.format.unwrap_or(Format::Table)
    }

    /// Writes `text`.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Error> {
        self.sink.write_all(text.as_bytes())?;
        Ok(self.sink.flush()?)
    }

    /// Tells the user `text`, which is no part of the result.
    pub(crate) fn note(&mut self, text: &str) {
        let line = format!("vfuctl: {}\n", printable(text));
        // Nobody is left to hear that standard error is closed.
        let _ = self.notes.write_all(line.as_bytes());
    }

    /// Writes `value` as YAML or, for every other format, as JSON.
    pub(crate) fn value(&mut self, value: &Value) -> Result<(), Error> {
        let text = match self.format() {
            Format::Yaml => yaml::document(value),
            _ => format!("{value:#}\n"),
        };
        self.text(&text)
    }

    /// Writes one device.
    pub(crate) fn device(&mut self, device: &Device) -> Result<(), Error> {
        match self.format() {
            Format::Json | Format::Yaml => self.value(&json("Device", device)?),
            _ => self.devices(std::slice::from_ref(device)),
        }
    }

    /// Writes a list of devices.
    pub(crate) fn devices(&mut self, devices: &[Device]) -> Result<(), Error> {
        match self.format() {
            Format::Table | Format::Wide => {
                let wide = self.format() == Format::Wide;
                self.text(&table::devices(devices, wide, SystemTime::now()))
            }
            Format::Name => {
                let names = devices.iter().map(|it| format!("{}\n", it.name));
                self.text(&names.collect::<String>())
            }
            Format::Json | Format::Yaml => {
                let devices = devices.iter().map(|it| json("Device", it));
                let devices = devices.collect::<Result<Vec<_>, _>>()?;
                self.value(&json!({ "devices": devices }))
            }
        }
    }

    /// Writes changes of devices, after those that `before` has seen.
    pub(crate) fn changes(
        &mut self,
        before: &mut Changes,
        changes: &[WatchDevicesResponse],
    ) -> Result<(), Error> {
        let mut text = String::new();
        match self.format() {
            Format::Table | Format::Wide => {
                let wide = self.format() == Format::Wide;
                text = before.lines(changes, wide, SystemTime::now());
            }
            Format::Name => {
                for device in changes.iter().filter_map(|it| it.device.as_ref()) {
                    text.push_str(&format!("{}\n", device.name));
                }
            }
            format @ (Format::Json | Format::Yaml) => {
                for change in changes {
                    text.push_str(&format.item(&json("WatchDevicesResponse", change)?));
                }
            }
        }
        self.text(&text)
    }

    /// Says that something was done to `name`; only `-o name` prints the name alone, and data formats print `data`.
    pub(crate) fn done(
        &mut self,
        name: &str,
        what: &str,
        device: Option<&Device>,
    ) -> Result<(), Error> {
        match (self.format, device) {
            (None | Some(Format::Table), _) => self.text(&format!("{name} {what}\n")),
            (Some(Format::Name), _) => self.text(&format!("{name}\n")),
            (Some(_), Some(device)) => self.device(device),
            (Some(_), None) => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proto::v1::{Client, DeviceSpec, DeviceStatus, device_status::State};

    /// A device that a VMM uses.
    pub(crate) fn device() -> Device {
        let Value::Object(config) =
            json!({"mac": "52:54:00:12:34:56", "queues": 4, "net": {"loopback": {}}})
        else {
            panic!()
        };
        Device {
            name: "devices/nic0".into(),
            uid: "0b1f".into(),
            generation: 1,
            create_time: Some(prost_types::Timestamp {
                seconds: 1000,
                nanos: 0,
            }),
            spec: Some(DeviceSpec {
                model: "e1000".into(),
                config: Some(to_struct(&config)),
                ..DeviceSpec::default()
            }),
            status: Some(DeviceStatus {
                state: State::Connected.into(),
                socket_path: "/run/vfu/devices/nic0/vfio-user.sock".into(),
                pid: 42,
                client: Some(Client {
                    pid: 7,
                    executable: "/usr/bin/qemu-system-x86_64".into(),
                    ..Client::default()
                }),
                ..DeviceStatus::default()
            }),
            ..Device::default()
        }
    }

    #[test]
    fn formats_print_one_and_many() {
        let print = |format, devices: &[Device]| {
            let mut sink = Vec::new();
            let mut output = Output {
                format: Some(format),
                sink: &mut sink,
                notes: &mut std::io::sink(),
                terminal: false,
            };
            output.devices(devices).unwrap();
            String::from_utf8(sink).unwrap()
        };
        assert_eq!(print(Format::Name, &[device()]), "devices/nic0\n");
        assert_eq!(print(Format::Json, &[]), "{\n  \"devices\": []\n}\n");
        assert!(print(Format::Yaml, &[device()]).starts_with("devices:\n- createTime:"));
        assert_eq!(
            print(Format::Table, &[]),
            "NAME   MODEL   STATE   ATTACHMENT   CLIENT   AGE\n"
        );
    }
}
