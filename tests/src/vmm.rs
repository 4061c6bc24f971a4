//! A program on a QMP socket that behaves as a QEMU with one free root port per device, without a machine and a guest.
//!
//! It becomes a client of the device when it is given one, and leaves when it gives it up. A test has it refuse, which a
//! real one does only where a guest plays along. Dropping it is what the death of a VMM is: the socket's file stays.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vfio_user::client::{Client, Options};

const PORTS: usize = 4;
const DRIVER: &str = "vfio-user-pci";
const PERIPHERAL: &str = "/machine/peripheral";

/// A VMM that ends when it is dropped.
#[derive(Debug)]
pub struct Vmm {
    machine: Arc<Mutex<Machine>>,
    path: std::path::PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Machine {
    /// By name: the root port, and the connection to the device.
    devices: BTreeMap<String, (usize, Client)>,
    /// How often it has taken a device of this name.
    additions: BTreeMap<String, u32>,
    guest_refuses: bool,
    lies: bool,
    /// What it says that it has not, and is connected to.
    hidden: Vec<Client>,
    is_over: bool,
    connection: Option<UnixStream>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.devices.keys()).finish()
    }
}

impl Vmm {
    /// Listens at `path`.
    pub fn start(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).context("listen for QMP")?;
        let machine = Arc::<Mutex<Machine>>::default();
        let shared = machine.clone();
        let thread = thread::spawn(move || {
            // One connection at a time, as QEMU has it.
            for stream in listener.incoming().map_while(Result::ok) {
                if lock(&shared).is_over {
                    break;
                }
                // The other side may leave at any time.
                let _ = serve(stream, &shared);
            }
        });
        Ok(Self {
            machine,
            path: path.to_owned(),
            thread: Some(thread),
        })
    }

    /// The names of the devices that it has.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        lock(&self.machine).devices.keys().cloned().collect()
    }

    /// How often it has taken a device of this name.
    #[must_use]
    pub fn additions(&self, id: &str) -> u32 {
        let machine = lock(&self.machine);
        machine.additions.get(id).copied().unwrap_or_default()
    }

    /// Whether it says from now on that it has let go of a device, and stays connected to it.
    pub fn lies(&self, lies: bool) {
        let mut machine = lock(&self.machine);
        machine.lies = lies;
        if !lies {
            machine.hidden.clear();
        }
    }

    /// Whether the guest keeps the devices that it is asked for from now on.
    pub fn guest_refuses(&self, refuses: bool) {
        lock(&self.machine).guest_refuses = refuses;
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let mut machine = lock(&self.machine);
        machine.is_over = true;
        machine.devices.clear();
        machine.hidden.clear();
        if let Some(stream) = machine.connection.take() {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        drop(machine);
        // Wakes the thread, which may wait for a connection; where the path is gone nobody can.
        let is_awake = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_awake) {
            let _ = thread.join();
        }
    }
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().expect("no holder panics")
}

fn serve(mut stream: UnixStream, machine: &Mutex<Machine>) -> Result<()> {
    lock(machine).connection = Some(stream.try_clone()?);
    let version = json!({"qemu": {"major": 11, "minor": 0, "micro": 0}, "package": ""});
    say(
        &mut stream,
        &json!({"QMP": {"version": version, "capabilities": []}}),
    )?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let (operation, arguments) = (&command["execute"], &command["arguments"]);
        let (answer, event) = lock(machine).run(operation.as_str().unwrap_or_default(), arguments);
        let mut answer = match answer {
            Ok(value) => json!({"return": value}),
            Err((class, desc)) => json!({"error": {"class": class, "desc": desc}}),
        };
        answer["id"] = command["id"].clone();
        say(&mut stream, &answer)?;
        if let Some((name, id)) = event {
            let data = json!({"device": id, "path": format!("{PERIPHERAL}/{id}")});
            let timestamp = json!({"seconds": 1, "microseconds": 2});
            say(
                &mut stream,
                &json!({"event": name, "data": data, "timestamp": timestamp}),
            )?;
        }
    }
    Ok(())
}

fn say(stream: &mut UnixStream, message: &Value) -> Result<()> {
    stream.write_all(format!("{message}\r\n").as_bytes())?;
    Ok(())
}

type Answer = Result<Value, (&'static str, String)>;
type Told = Option<(&'static str, String)>;

impl Machine {
    fn run(&mut self, operation: &str, arguments: &Value) -> (Answer, Told) {
        let id = arguments["id"].as_str().unwrap_or_default().to_owned();
        match operation {
            "device_add" => (self.add(id, arguments), None),
            "device_del" if !self.devices.contains_key(&id) => (
                Err(("DeviceNotFound", format!("Device '{id}' not found"))),
                None,
            ),
            "device_del" if self.guest_refuses => {
                (Ok(json!({})), Some(("DEVICE_UNPLUG_GUEST_ERROR", id)))
            }
            "device_del" => {
                let removed = self.devices.remove(&id).map(|(_, client)| client);
                self.hidden.extend(removed.filter(|_| self.lies));
                (Ok(json!({})), Some(("DEVICE_DELETED", id)))
            }
            _ => (self.tell(operation, arguments), None),
        }
    }

    fn add(&mut self, id: String, arguments: &Value) -> Answer {
        let refused = |why: String| ("GenericError", why);
        let bus = arguments["bus"].as_str().unwrap_or_default();
        let port = (0..PORTS).find(|port| bus == format!("rp{port}"));
        let port = port.ok_or_else(|| refused(format!("Bus '{bus}' not found")))?;
        let is_taken = self.devices.values().any(|(taken, _)| *taken == port);
        if is_taken || self.devices.contains_key(&id) {
            return Err(refused(format!("'{bus}' or '{id}' is taken")));
        }
        let socket = arguments["socket"]["path"].as_str().unwrap_or_default();
        let client = Client::connect(Path::new(socket), &Options::default())
            .map_err(|error| refused(format!("{socket}: {error}")))?;
        *self.additions.entry(id.clone()).or_default() += 1;
        self.devices.insert(id, (port, client));
        Ok(json!({}))
    }

    fn tell(&self, operation: &str, arguments: &Value) -> Answer {
        let missing = || ("DeviceNotFound", format!("{operation} of {arguments}"));
        let path = arguments["path"].as_str();
        Ok(match (operation, path) {
            ("qmp_capabilities", _) => json!({}),
            ("query-status", _) => json!({"status": "running", "running": true}),
            ("query-memdev", _) => json!([{"id": "memory", "size": 4096, "share": true}]),
            ("qom-list-types", _) => json!([{"name": DRIVER}]),
            ("query-pci", _) => self.pci(),
            ("qom-list", Some("/machine")) => json!([child("peripheral", "container")]),
            ("qom-list", Some(PERIPHERAL)) => json!(self.peripherals()),
            ("qom-list-get", _) => {
                let paths = arguments["paths"].as_array().ok_or_else(missing)?;
                let objects = paths.iter().map(|path| self.object(path.as_str()?));
                objects.collect::<Option<_>>().ok_or_else(missing)?
            }
            ("qom-get", Some("/machine")) if arguments["property"] == "type" => {
                json!("pc-q35-11.0-machine")
            }
            ("qom-get", Some("/machine")) => json!("/objects/memory"),
            ("qom-get", Some(path)) => {
                let id = path.rsplit('/').next().unwrap_or_default();
                let (port, _) = self.devices.get(id).ok_or_else(missing)?;
                json!(format!("{PERIPHERAL}/rp{port}/rp{port}"))
            }
            _ => return Err(("CommandNotFound", operation.to_owned())),
        })
    }

    fn peripherals(&self) -> Vec<Value> {
        let ports = (0..PORTS).map(|port| child(&format!("rp{port}"), "pcie-root-port"));
        let devices = self.devices.keys().map(|id| child(id, DRIVER));
        ports.chain(devices).collect()
    }

    fn object(&self, path: &str) -> Option<Value> {
        let own = |name: &str, kind: &str, value: Value| json!({"name": name, "type": kind, "value": value});
        if path == PERIPHERAL {
            return Some(json!({"properties": self.peripherals()}));
        }
        let inside = path.strip_prefix(PERIPHERAL)?.strip_prefix('/')?;
        let of = |name: &str| (0..PORTS).find(|port| name == format!("rp{port}"));
        let properties = if let Some((name, _)) = inside.split_once('/') {
            let port = of(name)?;
            let there = self.devices.iter().filter(|(_, (at, _))| *at == port);
            let link = |(id, _)| {
                own(
                    "child[0]",
                    "link<PCIDevice>",
                    json!(format!("{PERIPHERAL}/{id}")),
                )
            };
            let mut all: Vec<_> = there.map(link).collect();
            all.push(own("type", "string", json!("PCIE")));
            all.push(own("acpi-pcihp-bsel", "uint32", json!(port)));
            all
        } else if let Some(port) = of(inside) {
            vec![
                own("type", "string", json!("pcie-root-port")),
                own("addr", "str", json!((port + 1) << 3)),
                own("hotplug", "bool", json!(true)),
                child(inside, "PCIE"),
            ]
        } else {
            self.devices.get(inside)?;
            vec![
                own("type", "string", json!(DRIVER)),
                own("addr", "str", json!(0)),
            ]
        };
        Some(json!({"properties": properties}))
    }

    fn pci(&self) -> Value {
        let port = |port: usize| {
            let there = self.devices.iter().filter(|(_, (at, _))| *at == port);
            let device =
                |(id, _)| json!({"bus": port + 1, "slot": 0, "function": 0, "qdev_id": id});
            let devices: Vec<_> = there.map(device).collect();
            json!({"bus": 0, "slot": port + 1, "function": 0, "qdev_id": format!("rp{port}"),
                   "pci_bridge": {"devices": devices}})
        };
        json!([{"bus": 0, "devices": (0..PORTS).map(port).collect::<Vec<_>>()}])
    }
}

fn child(name: &str, kind: &str) -> Value {
    json!({"name": name, "type": format!("child<{kind}>")})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn it_is_the_devices_client_from_device_add_to_device_del() {
        let device = Device::start(Device::dir().unwrap(), "e1000", "{}").unwrap();
        let path = device.path().join("qmp.sock");
        let vmm = Vmm::start(&path).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        let limit = Some(std::time::Duration::from_secs(20));
        stream.set_read_timeout(limit).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut next = move || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap());
        assert_eq!(next().unwrap()["QMP"]["version"]["qemu"]["major"], 11);
        let mut ask = |operation: &str, arguments: Value| {
            let command = json!({"execute": operation, "arguments": arguments, "id": 1});
            say(&mut stream, &command).unwrap();
        };
        let add = |id: &str, bus: &str| {
            json!({"driver": DRIVER, "id": id, "bus": bus,
                   "socket": {"type": "unix", "path": device.socket()}})
        };
        ask("device_add", add("nic0", "nowhere"));
        assert_eq!(next().unwrap()["error"]["class"], "GenericError");
        ask("device_add", add("nic0", "rp0"));
        assert_eq!(next().unwrap()["return"], json!({}));
        assert_eq!(vmm.devices(), ["nic0"]);

        vmm.guest_refuses(true);
        ask("device_del", json!({"id": "nic0"}));
        assert_eq!(next().unwrap()["return"], json!({}));
        assert_eq!(next().unwrap()["event"], "DEVICE_UNPLUG_GUEST_ERROR");
        assert_eq!(vmm.devices(), ["nic0"]);
        vmm.guest_refuses(false);
        ask("device_del", json!({"id": "nic0"}));
        assert_eq!(next().unwrap()["return"], json!({}));
        assert_eq!(next().unwrap()["event"], "DEVICE_DELETED");
        // Its place is free again, and the device takes the next client.
        ask("device_add", add("nic0", "rp0"));
        assert_eq!(next().unwrap()["return"], json!({}));
        assert_eq!(vmm.additions("nic0"), 2);
        drop(vmm);
        assert!(UnixStream::connect(&path).is_err(), "it listens still");
    }
}
