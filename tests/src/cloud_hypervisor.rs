//! A program that speaks cloud-hypervisor's HTTP API as its OpenAPI file has it, without a machine and a guest.
//!
//! It becomes a client of the device when it is given one, and leaves when its guest lets go. It has the bad habits of the
//! real one: it does one thing after the other however long that takes, it says yes to a removal and the guest decides; and
//! those that anything on a socket may have. Dropping it is what the death of a VMM is: the socket's file stays.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vfio_user::client::{Client, Options};

use crate::command::wait_for;

/// What the VMM is like when it begins.
#[derive(Debug, Clone)]
pub struct Machine {
    /// As `vmm.ping` tells it.
    pub version: String,
    /// Whether the guest's memory is shared.
    pub is_shared: bool,
    /// How many PCI segments there are.
    pub segments: u16,
    /// Whether the machine is on.
    pub is_on: bool,
    /// Where events go.
    pub events: Option<PathBuf>,
    /// Whether it becomes a client of the devices it is given.
    pub connects: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            version: "54.0.0".to_owned(),
            is_shared: true,
            segments: 2,
            is_on: true,
            events: None,
            connects: true,
        }
    }
}

/// What a VMM does instead of what it should.
#[derive(Debug, Clone)]
pub enum Habit {
    /// It takes this long before it does it, and does nothing else meanwhile.
    Slow(Duration),
    /// It does not do it, and answers with this status and body.
    Refuse(u16, String),
    /// It does it, and closes the connection in the middle of the answer.
    Break,
    /// It does it, and its answer has no end.
    Endless,
    /// It does not do it, and says that it did.
    Lie,
}

/// A VMM that ends when it is dropped.
#[derive(Debug)]
pub struct CloudHypervisor {
    inner: Arc<Inner>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    state: Mutex<State>,
    /// Held during a call: there is one thread for all of them.
    api: Mutex<()>,
}

#[derive(Default)]
struct State {
    is_on: bool,
    /// What the machine has when it is turned on: the socket and the segment.
    configured: BTreeMap<String, (PathBuf, u16)>,
    /// What it has while it is on.
    present: BTreeMap<String, Present>,
    guest_keeps: bool,
    habits: BTreeMap<String, VecDeque<Habit>>,
    calls: Vec<String>,
    events: Option<File>,
    streams: Vec<UnixStream>,
    is_over: bool,
}

struct Present {
    address: String,
    client: Option<Client>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.present.keys()).finish()
    }
}

impl CloudHypervisor {
    /// Listens at `path`.
    pub fn start(path: &Path, machine: Machine) -> Result<Self> {
        let listener = UnixListener::bind(path).context("listen for HTTP")?;
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        let events = machine.events.as_ref();
        let events = events.map(|path| options.open(path)).transpose()?;
        let state = State {
            is_on: machine.is_on,
            events,
            ..State::default()
        };
        let inner = Arc::new(Inner {
            machine,
            state: Mutex::new(state),
            api: Mutex::new(()),
        });
        let shared = inner.clone();
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                let mut state = shared.state();
                if state.is_over {
                    break;
                }
                state.streams.extend(stream.try_clone());
                drop(state);
                let shared = shared.clone();
                connections.push(thread::spawn(move || {
                    // The other side may leave at any time.
                    let _ = shared.serve(stream);
                }));
            }
            // Nobody gets in any more once others see that it has ended.
            drop(listener);
            for stream in shared.state().streams.drain(..) {
                // It may be closed already.
                let _ = stream.shutdown(Shutdown::Both);
            }
            for connection in connections {
                // One that panicked has said so.
                let _ = connection.join();
            }
        });
        Ok(Self {
            inner,
            path: path.to_owned(),
            thread: Some(thread),
        })
    }

    /// The names of the devices that the machine has.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        self.inner.state().present.keys().cloned().collect()
    }

    /// The names of the devices that it has when it is turned on the next time.
    #[must_use]
    pub fn configured(&self) -> Vec<String> {
        self.inner.state().configured.keys().cloned().collect()
    }

    /// What it was asked for up to now.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.inner.state().calls.clone()
    }

    /// Whether the guest keeps the devices that it is asked for from now on.
    pub fn guest_keeps(&self, keeps: bool) {
        self.inner.state().guest_keeps = keeps;
    }

    /// The guest lets go of a device.
    pub fn eject(&self, id: &str) {
        self.inner.state().eject(id);
    }

    /// What it does the next time that it is asked for `operation`, after what it was told so before.
    pub fn habit(&self, operation: &str, habit: Habit) {
        let mut state = self.inner.state();
        let habits = state.habits.entry(operation.to_owned()).or_default();
        habits.push_back(habit);
    }

    /// Turns the machine on, with the devices that are configured.
    pub fn boot(&self) -> Result<()> {
        let mut state = self.inner.state();
        state.is_on = true;
        for (id, (socket, segment)) in state.configured.clone() {
            let client = self.inner.connect(&socket)?;
            state.put(id, segment, client);
        }
        state.tell("vm", "booted", &[]);
        Ok(())
    }

    /// The guest reboots: the machine is made anew, and connects to its devices again.
    pub fn reboot(&self) -> Result<()> {
        let _turn = self.inner.api.lock();
        let mut state = self.inner.state();
        state.tell("vm", "rebooting", &[]);
        state.present.clear();
        for (id, (socket, segment)) in state.configured.clone() {
            // A program that another thread just starts has a copy of what was closed here, until it runs.
            let client = wait_for("the device", Duration::from_secs(1), || {
                Ok(self.inner.connect(&socket).ok())
            })?;
            state.put(id, segment, client);
        }
        state.tell("vm", "rebooted", &[]);
        Ok(())
    }

    /// Writes these bytes to where the events go.
    pub fn write_events(&self, bytes: &[u8]) -> Result<()> {
        let mut state = self.inner.state();
        let events = state.events.as_mut().context("no events")?;
        Ok(events.write_all(bytes)?)
    }
}

impl Drop for CloudHypervisor {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.is_over = true;
        state.present.clear();
        state.events = None;
        drop(state);
        // Wakes the thread, which waits for a connection. If the socket has been removed it waits on, and ends with us.
        let is_awake = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_awake) {
            let _ = thread.join();
        }
    }
}

type Answer = (u16, Value);

/// As the API tells why not: from the outermost cause to the innermost.
fn refusal(status: u16, causes: &[&str]) -> Answer {
    (status, json!(causes))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn serve(&self, stream: UnixStream) -> Result<()> {
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        while let Some((method, operation, body)) = next_request(&mut reader)? {
            // What was asked for before comes first.
            let turn = self.api.lock();
            let mut state = self.state();
            state.calls.push(operation.clone());
            let habit = state.habits.get_mut(&operation);
            let habit = habit.and_then(VecDeque::pop_front);
            drop(state);
            let (status, body) = match &habit {
                Some(Habit::Lie) => (204, Value::Null),
                Some(Habit::Refuse(status, body)) => (*status, Value::String(body.clone())),
                _ => {
                    if let Some(Habit::Slow(time)) = habit {
                        self.sleep(time);
                        if self.state().is_over {
                            break;
                        }
                    }
                    self.carry_out(&method, &operation, &body)
                }
            };
            drop(turn);
            let text = match body {
                Value::Null => String::new(),
                Value::String(text) => text,
                body => body.to_string(),
            };
            match habit {
                Some(Habit::Break) => {
                    let half = match status {
                        204 => "Server: Cloud",
                        _ => "Content-Length: 1000\r\n\r\n{",
                    };
                    write!(writer, "HTTP/1.1 {status} \r\n{half}")?;
                    writer.shutdown(Shutdown::Both)?;
                    break;
                }
                Some(Habit::Endless) => {
                    // Without a body it is the headers that have no end.
                    let (begin, more) = match status {
                        204 => ("", "X: y\r\n"),
                        _ => ("Content-Length: 1000000000000\r\n\r\n", " "),
                    };
                    write!(writer, "HTTP/1.1 {status} \r\n{begin}")?;
                    loop {
                        writer.write_all(more.repeat(1000).as_bytes())?;
                    }
                }
                _ => {}
            }
            let length = match status {
                204 => String::new(),
                _ => format!(
                    "Content-Type: application/json\r\nContent-Length: {}\r\n",
                    text.len()
                ),
            };
            // Without a word for the status, as the original has it.
            write!(
                writer,
                "HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n{length}\r\n{text}"
            )?;
        }
        Ok(())
    }

    /// Unless the VMM ends before that.
    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.state().is_over {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn connect(&self, socket: &Path) -> Result<Option<Client>> {
        if !self.machine.connects {
            return Ok(None);
        }
        let client = Client::connect(socket, &Options::default());
        Ok(Some(client.with_context(|| socket.display().to_string())?))
    }

    fn carry_out(&self, method: &str, operation: &str, body: &[u8]) -> Answer {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match (method, operation) {
            ("GET", "vmm.ping") => {
                let version = &self.machine.version;
                let features = json!(["kvm", "io_uring"]);
                let pid = std::process::id();
                let ping = json!({"build_version": format!("v{version}"), "version": version, "pid": pid, "features": features});
                (200, ping)
            }
            ("GET", "vm.info") => (200, self.info()),
            ("PUT", "vm.add-user-device") => self.add(&body),
            ("PUT", "vm.remove-device") => {
                let id = body["id"].as_str().unwrap_or_default();
                self.state().remove(id)
            }
            _ => refusal(404, &["Not Found"]),
        }
    }

    fn add(&self, body: &Value) -> Answer {
        const API: &str = "Error from API";
        const WHY: &str = "The user device could not be added to the VM";
        let mut state = self.state();
        let Some(socket) = body["socket"].as_str().map(PathBuf::from) else {
            return refusal(
                400,
                &["Failed to deserialize JSON", "missing field `socket`"],
            );
        };
        let id = match body["id"].as_str() {
            Some(id) => id.to_owned(),
            None => format!("_vfio_user{}", state.configured.len()),
        };
        let segment = body["pci_segment"].as_u64().unwrap_or(0);
        let segment = u16::try_from(segment).unwrap_or(u16::MAX);
        if segment >= self.machine.segments {
            return refusal(400, &[API, WHY, "Invalid PCI segment"]);
        }
        if !self.machine.is_shared {
            let why = "User devices require shared memory";
            return refusal(400, &[API, WHY, why]);
        }
        if state.configured.contains_key(&id) || state.present.contains_key(&id) {
            return refusal(409, &[API, WHY, "Identifier is not unique"]);
        }
        if state.configured.values().any(|(it, _)| *it == socket) {
            return refusal(500, &[API, WHY, "Socket is in use"]);
        }
        state
            .configured
            .insert(id.clone(), (socket.clone(), segment));
        if !state.is_on {
            return (204, Value::Null);
        }
        // Others can look at the state meanwhile, and nobody at the API.
        drop(state);
        let client = self.connect(&socket);
        let mut state = self.state();
        match client {
            Ok(client) => {
                let address = state.put(id.clone(), segment, client);
                (200, json!({"id": id, "bdf": address}))
            }
            Err(error) => {
                state.configured.remove(&id);
                refusal(500, &[API, WHY, &format!("{error:#}")])
            }
        }
    }

    fn info(&self) -> Value {
        let state = self.state();
        let devices = state.configured.iter();
        let devices: Vec<_> = devices
            .map(|(id, (socket, segment))| json!({"id": id, "socket": socket, "pci_segment": segment}))
            .collect();
        let mut info = json!({
            "config": {
                "memory": {"size": 512 << 20, "shared": self.machine.is_shared, "hugepages": false, "mergeable": false},
                "platform": {"num_pci_segments": self.machine.segments, "iommu_segments": null},
                "disks": [{"id": "_disk0", "path": "/images/disk.raw", "pci_segment": 0}],
                "user_devices": devices,
                "serial": {"mode": "Null"},
            },
            "state": if state.is_on { "Running" } else { "Created" },
            "memory_actual_size": 512 << 20,
        });
        if !state.is_on {
            return info;
        }
        let node = |id: &str, children: &[&str], address: Option<&str>| json!({"id": id, "resources": [], "children": children, "pci_bdf": address});
        let mut tree = json!({
            "_virtio-pci-_disk0": node("_virtio-pci-_disk0", &["_disk0"], Some("0000:00:01.0")),
            "_disk0": node("_disk0", &[], None),
            "__serial": node("__serial", &[], None),
        });
        for (id, present) in &state.present {
            tree[id] = node(id, &[], Some(&present.address));
        }
        info["device_tree"] = tree;
        info
    }
}

impl State {
    fn put(&mut self, id: String, segment: u16, client: Option<Client>) -> String {
        let address = |slot: usize| format!("{segment:04x}:00:{slot:02x}.0");
        let is_free = |it: &String| self.present.values().all(|other| other.address != *it);
        let address = (2..32).map(address).find(is_free).unwrap_or_default();
        let present = Present {
            address: address.clone(),
            client,
        };
        self.present.insert(id, present);
        address
    }

    fn remove(&mut self, id: &str) -> Answer {
        let was_configured = self.configured.remove(id).is_some();
        let is_there = match self.is_on {
            true => self.present.contains_key(id),
            false => was_configured,
        };
        if !is_there {
            let why = format!("Unknown device id: {id}");
            return refusal(
                404,
                &["Error from API", "The device could not be removed", &why],
            );
        }
        if self.is_on && !self.guest_keeps {
            self.eject(id);
        }
        (204, Value::Null)
    }

    fn eject(&mut self, id: &str) {
        let Some(Present { address, client }) = self.present.remove(id) else {
            return;
        };
        self.tell("vm", "device-removed", &[("id", id), ("bdf", &address)]);
        drop(client);
    }

    fn tell(&mut self, source: &str, event: &str, properties: &[(&str, &str)]) {
        let Some(events) = &mut self.events else {
            return;
        };
        let properties: BTreeMap<_, _> = properties.iter().copied().collect();
        let properties = (!properties.is_empty()).then_some(properties);
        let timestamp = json!({"secs": 1, "nanos": 2});
        let event = json!({"timestamp": timestamp, "source": source, "event": event, "properties": properties});
        // The original does not care either.
        let _ = write!(events, "{event:#}\n\n");
    }
}

/// Method, operation and body; nothing when the other side has left.
fn next_request(reader: &mut impl BufRead) -> io::Result<Option<(String, String, Vec<u8>)>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, path) = words.next().zip(words.next()).ok_or_else(|| bad(&line))?;
    let operation = path.strip_prefix("/api/v1/").ok_or_else(|| bad(path))?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| bad(value))?;
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    Ok(Some((method.to_owned(), operation.to_owned(), body)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    /// Status and body of the answer to one request.
    fn ask(stream: &UnixStream, method: &str, operation: &str, body: &Value) -> (u16, Value) {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let mut writer = stream;
        let length = body.len();
        write!(
            writer,
            "{method} /api/v1/{operation} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body).unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[test]
    fn it_is_the_devices_client_until_its_guest_lets_go() {
        let device = Device::start(Device::dir().unwrap(), "e1000", "{}").unwrap();
        let path = device.path().join("api.sock");
        let events = device.path().join("events");
        let machine = Machine {
            events: Some(events.clone()),
            ..Machine::default()
        };
        let vmm = CloudHypervisor::start(&path, machine).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).unwrap();
        let put = |operation: &str, body: Value| ask(&stream, "PUT", operation, &body);
        let info = || ask(&stream, "GET", "vm.info", &Value::Null).1;
        let ping = ask(&stream, "GET", "vmm.ping", &Value::Null);
        assert_eq!((ping.0, &ping.1["version"]), (200, &json!("54.0.0")));

        let nic0 = json!({"id": "nic0", "socket": device.socket(), "pci_segment": 1});
        let added = put("vm.add-user-device", nic0.clone());
        assert_eq!(added, (200, json!({"id": "nic0", "bdf": "0001:00:02.0"})));
        assert_eq!(put("vm.add-user-device", nic0).0, 409);
        assert_eq!(info()["device_tree"]["nic0"]["pci_bdf"], "0001:00:02.0");

        vmm.guest_keeps(true);
        let id = json!({"id": "nic0"});
        assert_eq!(put("vm.remove-device", id.clone()).0, 204);
        assert_eq!(info()["config"]["user_devices"], json!([]));
        assert_eq!(vmm.devices(), ["nic0"]);
        assert_eq!(std::fs::read_to_string(&events).unwrap(), "");
        vmm.eject("nic0");
        assert_eq!(put("vm.remove-device", id).0, 404);
        let told = std::fs::read_to_string(&events).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["source"], &told["event"]),
            (&json!("vm"), &json!("device-removed"))
        );
        assert_eq!(told["properties"]["id"], "nic0");
        drop(vmm);
        assert!(UnixStream::connect(&path).is_err(), "it listens still");
    }
}
