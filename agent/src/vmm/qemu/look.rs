//! What QEMU is and has.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::said;
use super::super::{Bus, Error, Facts, Found, Memory, Placed};
use super::buses::{self, Object, Objects, Properties};
use super::connection::stranger;
use super::wire::PERIPHERAL;
use super::{DRIVER, NEEDED, Qemu, is_id};

/// All answers that make up the facts.
const FACTS: Duration = Duration::from_secs(20);

/// Objects that one question is about: what is said of one is a few kilobytes.
const OBJECTS_PER_QUESTION: usize = 16;
/// More than any machine has: a PCI domain has 256 buses.
const MAX_OBJECTS: usize = 4096;

/// What has a name in QEMU.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    Nothing,
    /// A vfio-user device.
    Ours,
    /// Something of another type.
    Other(String),
}

#[derive(Debug, Deserialize)]
struct Status {
    status: String,
}

#[derive(Debug, Deserialize)]
struct MemoryBackend {
    id: Option<String>,
    size: u64,
    share: bool,
}

#[derive(Debug, Deserialize)]
struct Item {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct PciBus {
    devices: Vec<PciDevice>,
}

#[derive(Debug, Deserialize)]
struct PciDevice {
    bus: u8,
    slot: u8,
    function: u8,
    #[serde(default)]
    qdev_id: String,
    pci_bridge: Option<PciBridge>,
}

#[derive(Debug, Deserialize)]
struct PciBridge {
    #[serde(default)]
    devices: Vec<PciDevice>,
}

impl PciDevice {
    /// The address of the device of this name, if it is this one or behind it.
    fn find(&self, id: &str) -> Option<String> {
        if self.qdev_id == id {
            let Self {
                bus,
                slot,
                function,
                ..
            } = self;
            return Some(format!("0000:{bus:02x}:{slot:02x}.{function:x}"));
        }
        let behind = &self.pci_bridge.as_ref()?.devices;
        behind.iter().find_map(|device| device.find(id))
    }
}

impl Qemu {
    pub(in super::super) async fn facts(&self) -> Result<Facts, Error> {
        let late = Error::Unanswered {
            operation: "what it is and has",
            waited: FACTS,
        };
        timeout(FACTS, self.look()).await.unwrap_or(Err(late))
    }

    async fn look(&self) -> Result<Facts, Error> {
        let version = self.session.version;
        let is_new = version >= NEEDED;
        let Status { status } = self.typed("query-status", Value::Null).await?;
        let property = json!({"path": "/machine", "property": "type"});
        let machine: String = self.typed("qom-get", property).await?;
        let kinds = json!({"implements": DRIVER});
        let kinds: Vec<Value> = self.typed("qom-list-types", kinds).await?;
        let buses = if is_new {
            self.buses().await?
        } else {
            Vec::new()
        };
        let mut devices = Vec::new();
        for item in self.peripherals().await? {
            if is_new && is_ours(&item) && is_id(&item.name) {
                // It can have gone meanwhile.
                devices.extend(self.find(&item.name).await?);
            }
        }
        Ok(Facts {
            program: "QEMU",
            version: version.to_string(),
            version_needed: (!is_new).then(|| NEEDED.to_string()),
            takes_vfio_user: !kinds.is_empty(),
            owner: self.session.owner,
            machine: said::text(machine.strip_suffix("-machine").unwrap_or(&machine)),
            run_state: said::text(&status),
            memory: self.memory().await?,
            buses,
            devices,
            unheard: None,
        })
    }

    /// What the guest's memory is made of: the machine's own piece, and where it has none all that there are.
    async fn memory(&self) -> Result<Vec<Memory>, Error> {
        let property = json!({"path": "/machine", "property": "memory-backend"});
        let main = self.ask("qom-get", property).await?.unwrap_or_default();
        let main = main.as_str().map(buses::name).unwrap_or_default();
        let all: Vec<MemoryBackend> = self.typed("query-memdev", Value::Null).await?;
        let is_main = |it: &MemoryBackend| it.id.as_deref() == Some(main);
        let has_main = all.iter().any(is_main);
        let memory = all.into_iter().filter(|it| !has_main || is_main(it));
        Ok(memory
            .map(|it| Memory {
                id: it.id.as_deref().map(said::text).unwrap_or_default(),
                size_bytes: it.size,
                is_shared: it.share,
            })
            .collect())
    }

    pub(in super::super) async fn find(&self, id: &str) -> Result<Option<Found>, Error> {
        if self.named(id).await? != Named::Ours {
            return Ok(None);
        }
        match self.placed(id).await {
            Ok(placed) => Ok(Some(Found {
                id: id.to_owned(),
                device_socket: None,
                placed,
            })),
            // It has gone meanwhile, or there is something wrong indeed.
            Err(error) => match self.named(id).await? {
                Named::Ours => Err(error),
                _ => Ok(None),
            },
        }
    }

    /// What has this name.
    pub(super) async fn named(&self, id: &str) -> Result<Named, Error> {
        let items = self.peripherals().await?;
        let item = items.into_iter().find(|it| it.name == id);
        Ok(match item {
            Some(item) if is_ours(&item) => Named::Ours,
            Some(item) => match buses::inner(&item.kind) {
                Some(("child", kind)) => Named::Other(said::text(kind)),
                // A property of the container itself.
                _ => Named::Nothing,
            },
            None => Named::Nothing,
        })
    }

    async fn peripherals(&self) -> Result<Vec<Item>, Error> {
        let path = json!({"path": PERIPHERAL.trim_end_matches('/')});
        self.typed("qom-list", path).await
    }

    /// Where the device of this name is.
    pub(super) async fn placed(&self, id: &str) -> Result<Placed, Error> {
        let property = json!({"path": format!("{PERIPHERAL}{id}"), "property": "parent_bus"});
        let bus: String = self.typed("qom-get", property).await?;
        let buses: Vec<PciBus> = self.typed("query-pci", Value::Null).await?;
        let mut devices = buses.iter().flat_map(|bus| &bus.devices);
        // Behind a bridge that has no number yet QEMU shows nothing.
        let address = devices.find_map(|device| device.find(id));
        Ok(Placed {
            bus: said::text(buses::name(&bus)),
            address: address.unwrap_or_default(),
        })
    }

    /// Whether the guest runs.
    pub(in super::super) async fn runs(&self) -> Result<bool, Error> {
        let Status { status } = self.typed("query-status", Value::Null).await?;
        Ok(status == "running")
    }

    /// Whether the guest is told by ACPI of what it is asked for, in a machine that has never run: a guest that boots
    /// forgets what it was told before, and QEMU does not repeat what it told before the machine's clock began.
    pub(super) async fn is_deaf(&self, id: &str) -> Result<bool, Error> {
        let Status { status } = self.typed("query-status", Value::Null).await?;
        if status != "prelaunch" {
            return Ok(false);
        }
        let property = json!({"path": format!("{PERIPHERAL}{id}"), "property": "parent_bus"});
        // Where the device is not there any more there is nothing to ask for.
        let Ok(bus) = self.ask("qom-get", property).await? else {
            return Ok(false);
        };
        let property = json!({"path": bus, "property": "acpi-pcihp-bsel"});
        Ok(self.ask("qom-get", property).await?.is_ok())
    }

    /// The machine's PCI buses.
    pub(super) async fn buses(&self) -> Result<Vec<Bus>, Error> {
        let mut objects = Objects::new();
        let machine: Vec<Item> = self.typed("qom-list", json!({"path": "/machine"})).await?;
        let is_container = |it: &Item| it.name == "peripheral" || it.name == "peripheral-anon";
        let is_host = |it: &Item| it.kind.ends_with("pcihost>");
        let tops = machine
            .iter()
            .filter(|it| is_container(it) || is_host(it))
            .map(|it| format!("/machine/{}", it.name));
        self.read(&mut objects, tops.collect()).await?;

        let children = |(path, object): (&String, &Object)| {
            let paths = object.children.iter();
            let paths = paths.map(|(name, _)| format!("{path}/{name}"));
            paths.collect::<Vec<_>>()
        };
        let is_list = |path: &str| path.starts_with("/machine/peripheral");
        let devices = objects.iter().filter(|(path, _)| is_list(path));
        let devices = devices.flat_map(children).collect();
        self.read(&mut objects, devices).await?;

        let own = |(path, object): (&String, &Object)| {
            let buses = object.buses.iter();
            let buses = buses.map(|name| format!("{path}/{name}"));
            buses.chain(object.parent_bus.clone()).collect::<Vec<_>>()
        };
        let buses = objects.iter().flat_map(own).collect();
        self.read(&mut objects, buses).await?;

        let links = objects.values().flat_map(|it| it.links.iter().cloned());
        let links = links.collect();
        self.read(&mut objects, links).await?;
        Ok(buses::buses(&objects))
    }

    /// Adds those of these objects that are not known yet and still there.
    async fn read(&self, objects: &mut Objects, mut paths: BTreeSet<String>) -> Result<(), Error> {
        paths.retain(|path| !objects.contains_key(path));
        if objects.len() + paths.len() > MAX_OBJECTS {
            let why = format!("it has more than {MAX_OBJECTS} devices and buses");
            return Err(stranger(self.session.path(), why));
        }
        let paths: Vec<String> = paths.into_iter().collect();
        for some in paths.chunks(OBJECTS_PER_QUESTION) {
            match self.properties(some).await? {
                Some(told) => objects.extend(some.iter().cloned().zip(told)),
                // One of them has gone, and QEMU does not say which.
                None => {
                    for path in some {
                        let told = self.properties(std::slice::from_ref(path)).await?;
                        let told = told.unwrap_or_default().into_iter();
                        objects.extend(told.map(|it| (path.clone(), it)));
                    }
                }
            }
        }
        Ok(())
    }

    /// These objects; nothing when one is not there.
    async fn properties(&self, paths: &[String]) -> Result<Option<Vec<Object>>, Error> {
        let operation = "qom-list-get";
        let told = match self.ask(operation, json!({"paths": paths})).await? {
            Ok(told) => told,
            Err(refusal) if refusal.is_missing() => return Ok(None),
            Err(refusal) => {
                let message = said::text(&refusal.desc);
                return Err(Error::Refused { operation, message });
            }
        };
        let told: Vec<Properties> = self.understand(operation, told)?;
        if told.len() != paths.len() {
            let why = format!("its answer to {operation} has another length");
            return Err(stranger(self.session.path(), why));
        }
        Ok(Some(told.into_iter().map(Object::new).collect()))
    }

    /// What QEMU says to a question that it must not refuse.
    async fn typed<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        arguments: Value,
    ) -> Result<T, Error> {
        let told = self.ask(operation, arguments).await?;
        let told = told.map_err(|refusal| Error::Refused {
            operation,
            message: said::text(&refusal.desc),
        })?;
        self.understand(operation, told)
    }

    fn understand<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        told: Value,
    ) -> Result<T, Error> {
        serde_json::from_value(told).map_err(|error| {
            let error = said::text(&error.to_string());
            let why = format!("its answer to {operation} is none: {error}");
            stranger(self.session.path(), why)
        })
    }
}

fn is_ours(item: &Item) -> bool {
    buses::inner(&item.kind) == Some(("child", DRIVER))
}
