//! A peer on a QMP socket that does what a test tells it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

/// One connection, from the side of QEMU.
pub(super) struct Peer {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// What the driver asks for.
pub(super) struct Command {
    pub(super) id: Value,
    pub(super) operation: String,
    pub(super) arguments: Value,
}

/// Lets `script` have every connection, one after the other with its number, until it says that it is enough. Then
/// nobody listens any more.
pub(super) fn serve(path: &Path, mut script: impl FnMut(usize, Peer) -> bool + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let writer = stream.unwrap();
            let reader = BufReader::new(writer.try_clone().unwrap());
            if !script(number, Peer { reader, writer }) {
                break;
            }
        }
    });
}

impl Peer {
    /// Says these bytes. Nothing if nobody is there to hear them.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.writer.write_all(bytes).is_ok()
    }

    pub(super) fn say(&mut self, message: &Value) -> bool {
        self.bytes(format!("{message}\r\n").as_bytes())
    }

    /// Begins as QEMU of this version does.
    pub(super) fn greet(&mut self, major: u32) {
        let version = json!({"qemu": {"major": major, "minor": 1, "micro": 3}, "package": ""});
        self.say(&json!({"QMP": {"version": version, "capabilities": ["oob"]}}));
        let begin = self.next().unwrap();
        assert_eq!(begin.operation, "qmp_capabilities");
        self.answer(&begin, json!({}));
    }

    /// What it is asked for next; nothing when the other side has left.
    pub(super) fn next(&mut self) -> Option<Command> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut command: Value = serde_json::from_str(&line).unwrap();
        Some(Command {
            id: command["id"].take(),
            operation: command["execute"].as_str().unwrap().to_owned(),
            arguments: command["arguments"].take(),
        })
    }

    pub(super) fn answer(&mut self, command: &Command, value: Value) -> bool {
        self.say(&json!({"return": value, "id": command.id}))
    }

    pub(super) fn refuse(&mut self, command: &Command, class: &str, why: &str) -> bool {
        self.say(&json!({"error": {"class": class, "desc": why}, "id": command.id}))
    }

    pub(super) fn event(&mut self, name: &str, data: Value) -> bool {
        let timestamp = json!({"seconds": 1, "microseconds": 2});
        self.say(&json!({"event": name, "data": data, "timestamp": timestamp}))
    }

    /// Answers as a machine does that has one port, and devices of these names and types.
    pub(super) fn machine(&mut self, command: &Command, devices: &[(&str, &str)]) -> bool {
        let item = |name: &str, kind: &str| json!({"name": name, "type": format!("child<{kind}>")});
        let peripherals = || {
            let ports = [("rp0", "pcie-root-port")];
            let all = ports.iter().chain(devices);
            all.map(|(name, kind)| item(name, kind)).collect::<Vec<_>>()
        };
        let object = |path: &str| match path {
            "/machine/peripheral" => json!({"properties": peripherals()}),
            "/machine/peripheral/rp0" => json!({"properties": [
                {"name": "type", "type": "string", "value": "pcie-root-port"},
                {"name": "addr", "type": "str", "value": 8},
                {"name": "hotplug", "type": "bool", "value": true},
                {"name": "rp0", "type": "child<PCIE>"},
            ]}),
            "/machine/peripheral/rp0/rp0" => json!({"properties": [
                {"name": "type", "type": "string", "value": "PCIE"},
                {"name": "acpi-pcihp-bsel", "type": "uint32", "value": 0},
            ]}),
            _ => json!({"properties": []}),
        };
        let arguments = &command.arguments;
        let value = match (command.operation.as_str(), arguments["path"].as_str()) {
            ("query-status", _) => json!({"status": "running", "running": true}),
            ("qom-list", Some("/machine")) => json!([item("peripheral", "container")]),
            ("qom-list", _) => json!(peripherals()),
            ("qom-list-get", _) => {
                let paths = arguments["paths"].as_array().unwrap();
                paths
                    .iter()
                    .map(|it| object(it.as_str().unwrap()))
                    .collect()
            }
            ("qom-list-types", _) => json!([{"name": "vfio-user-pci"}]),
            ("qom-get", Some("/machine")) if arguments["property"] == "type" => {
                json!("pc-q35-9.1-machine")
            }
            ("qom-get", Some("/machine")) => json!("/objects/memory"),
            ("qom-get", _) => json!("/machine/peripheral/rp0/rp0"),
            ("query-memdev", _) => json!([{"id": "memory", "size": 4096, "share": true}]),
            ("query-pci", _) => json!([{"bus": 0, "devices": [
                {"bus": 0, "slot": 1, "function": 0, "qdev_id": "rp0", "pci_bridge": {"devices": [
                    {"bus": 2, "slot": 0, "function": 0, "qdev_id": "nic0"},
                ]}},
            ]}]),
            (operation, _) => return self.refuse(command, "CommandNotFound", operation),
        };
        self.answer(command, value)
    }
}
