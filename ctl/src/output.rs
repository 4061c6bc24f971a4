//! How results look: tables for people; protobuf's canonical JSON, the same as YAML, and names for programs.

use std::{
    collections::BTreeMap,
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use proto::v1::{Client, Device};
use serde_json::{Number, Value, json};

use crate::{
    error::{Error, printable},
    yaml,
};

/// What stands where there is nothing, as in kubectl's tables.
const NONE: &str = "<none>";

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

/// Where results go, and how they look.
pub(crate) struct Output<'a> {
    /// What was asked for with `--output`.
    pub(crate) format: Option<Format>,
    /// Where to write.
    pub(crate) sink: &'a mut dyn Write,
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
                self.text(&device_table(devices, wide, SystemTime::now()))
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

/// `message`, of type `vfu.v1.{name}`, as protobuf's canonical JSON.
pub(crate) fn json(name: &str, message: &impl Message) -> Result<Value, Error> {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(nonsense)?;
    let descriptor = pool
        .get_message_by_name(&format!("vfu.v1.{name}"))
        .ok_or_else(|| Error::Nonsense(format!("no message vfu.v1.{name}")))?;
    let message =
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(nonsense)?;
    Ok(whole(serde_json::to_value(message).map_err(nonsense)?))
}

fn nonsense(error: impl std::fmt::Display) -> Error {
    Error::Nonsense(error.to_string())
}

/// Numbers in a Struct are floating point; those that are whole are written as such.
fn whole(value: Value) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => match number.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
            Some(it) if it.fract() == 0.0 && it.abs() < EXACT => Number::from(it as i64).into(),
            _ => number.into(),
        },
        Value::Array(values) => values.into_iter().map(whole).collect(),
        Value::Object(object) => {
            let object = object.into_iter().map(|(key, value)| (key, whole(value)));
            Value::Object(object.collect())
        }
        value => value,
    }
}

/// A Struct as JSON.
pub(crate) fn from_struct(message: &prost_types::Struct) -> Value {
    let fields = message.fields.iter();
    fields
        .map(|(key, value)| (key.clone(), from_value(value)))
        .collect()
}

fn from_value(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => whole(json!(number)),
        Some(Kind::StringValue(text)) => text.as_str().into(),
        Some(Kind::BoolValue(truth)) => (*truth).into(),
        Some(Kind::StructValue(object)) => from_struct(object),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_value).collect(),
    }
}

/// JSON as a Struct.
pub(crate) fn to_struct(object: &serde_json::Map<String, Value>) -> prost_types::Struct {
    let fields = object.iter();
    let fields: BTreeMap<_, _> = fields
        .map(|(key, value)| (key.clone(), to_value(value)))
        .collect();
    prost_types::Struct { fields }
}

fn to_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => Kind::ListValue(prost_types::ListValue {
            values: list.iter().map(to_value).collect(),
        }),
        Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn device_table(devices: &[Device], wide: bool, now: SystemTime) -> String {
    let mut head = vec!["NAME", "MODEL", "STATE", "CLIENT", "AGE"];
    if wide {
        head.extend(["SOCKET", "PID", "RESTARTS", "UID"]);
    }
    let rows = devices.iter().map(|device| {
        let spec = device.spec.clone().unwrap_or_default();
        let status = device.status.clone().unwrap_or_default();
        let state = status.state().as_str_name();
        let mut row = vec![
            id(&device.name).to_owned(),
            spec.model,
            state.to_owned(),
            status.client.as_ref().map(client).unwrap_or_default(),
            device
                .create_time
                .map(|it| age(it, now))
                .unwrap_or_default(),
        ];
        if wide {
            let pid = Some(status.pid).filter(|pid| *pid != 0);
            row.extend([
                status.socket_path,
                pid.map(|pid| pid.to_string()).unwrap_or_default(),
                status.restart_count.to_string(),
                device.uid.clone(),
            ]);
        }
        row
    });
    table(&head, rows)
}

/// The id in a resource name.
pub(crate) fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

/// A VMM in few words.
pub(crate) fn client(client: &Client) -> String {
    match id(&client.executable) {
        "" => client.pid.to_string(),
        program => format!("{program}({})", client.pid),
    }
}

/// Lines of columns three blanks apart.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let head = head.iter().map(|it| (*it).to_owned()).collect();
    let mut lines: Vec<Vec<String>> = vec![head];
    lines.extend(rows);
    for cell in lines.iter_mut().flatten() {
        *cell = match cell.is_empty() {
            true => NONE.to_owned(),
            // A client's executable can have any name.
            false => printable(cell).replace('\n', " "),
        };
    }
    let columns = lines[0].len();
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in one or two units, as kubectl does.
fn age(since: prost_types::Timestamp, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = now.saturating_sub(u64::try_from(since.seconds).unwrap_or(0));
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: u64, unit: &str, small: u64, part: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{part}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{DeviceSpec, DeviceStatus, device_status::State};
    use std::time::Duration;

    fn device() -> Device {
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

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1185)
    }

    #[test]
    fn tables_look_like_kubectls() {
        let other = Device {
            name: "devices/a-long-name".into(),
            ..Device::default()
        };
        assert_eq!(
            device_table(&[device(), other], false, now()),
            "\
NAME          MODEL    STATE               CLIENT                  AGE
nic0          e1000    CONNECTED           qemu-system-x86_64(7)   3m5s
a-long-name   <none>   STATE_UNSPECIFIED   <none>                  <none>
"
        );
        assert_eq!(
            device_table(&[device()], true, now()),
            "\
NAME   MODEL   STATE       CLIENT                  AGE    SOCKET                                 PID   RESTARTS   UID
nic0   e1000   CONNECTED   qemu-system-x86_64(7)   3m5s   /run/vfu/devices/nic0/vfio-user.sock   42    0          0b1f
"
        );
    }

    #[test]
    fn json_is_protobufs() {
        assert_eq!(
            json("Device", &device()).unwrap(),
            json!({
                "name": "devices/nic0",
                "uid": "0b1f",
                "generation": "1",
                "createTime": "1970-01-01T00:16:40Z",
                "spec": {
                    "model": "e1000",
                    "config": {"mac": "52:54:00:12:34:56", "queues": 4, "net": {"loopback": {}}}
                },
                "status": {
                    "state": "CONNECTED",
                    "socketPath": "/run/vfu/devices/nic0/vfio-user.sock",
                    "pid": 42,
                    "client": {"pid": 7, "executable": "/usr/bin/qemu-system-x86_64"}
                }
            })
        );
    }

    #[test]
    fn structs_and_json_are_the_same() {
        let value = json!({"a": [1, "x", null, true, 1.5], "b": {"c": {}}});
        let Value::Object(object) = &value else {
            panic!()
        };
        assert_eq!(from_struct(&to_struct(object)), value);
    }

    #[test]
    fn formats_print_one_and_many() {
        let print = |format, devices: &[Device]| {
            let mut sink = Vec::new();
            let mut output = Output {
                format: Some(format),
                sink: &mut sink,
            };
            output.devices(devices).unwrap();
            String::from_utf8(sink).unwrap()
        };
        assert_eq!(print(Format::Name, &[device()]), "devices/nic0\n");
        assert_eq!(print(Format::Json, &[]), "{\n  \"devices\": []\n}\n");
        assert!(print(Format::Yaml, &[device()]).starts_with("devices:\n- createTime:"));
        assert_eq!(
            print(Format::Table, &[]),
            "NAME   MODEL   STATE   CLIENT   AGE\n"
        );
    }

    #[test]
    fn ages_have_one_or_two_units() {
        let age = |seconds: u64| {
            let zero = prost_types::Timestamp::default();
            super::age(zero, UNIX_EPOCH + Duration::from_secs(seconds))
        };
        assert_eq!(age(0), "0s");
        assert_eq!(age(119), "119s");
        assert_eq!(age(120), "2m");
        assert_eq!(age(185), "3m5s");
        assert_eq!(age(3600), "60m");
        assert_eq!(age(3 * 3600 + 60), "3h1m");
        assert_eq!(age(30 * 3600), "30h");
        assert_eq!(age(3 * 86400 + 7200), "3d2h");
        assert_eq!(age(400 * 86400), "400d");
    }
}
