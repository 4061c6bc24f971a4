//! Where in a QEMU a device can be plugged in: its PCI buses, what is on them, and the choice among them.
//!
//! They are read from QEMU's object tree, not from `query-pci`, which knows nothing behind a bridge before the guest's
//! firmware has numbered the buses.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::super::said;
use super::super::{Bus, Error, Wanted, Windows};
use super::wire::PERIPHERAL;

/// QEMU's types of PCI buses.
const BUS_TYPES: [&str; 6] = [
    "PCI",
    "PCIE",
    "CXL",
    "pxb-bus",
    "pxb-pcie-bus",
    "pxb-cxl-bus",
];

const SLOTS: u8 = 32;

/// An object of QEMU's with its properties.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Object {
    kind: String,
    /// Slot and function, as `slot << 3 | function`.
    address: Option<u8>,
    pub(super) parent_bus: Option<String>,
    /// Whether a port was told to take devices while the machine is on.
    hotplug: Option<bool>,
    /// Whether ACPI plugs and unplugs devices here.
    is_acpi: bool,
    hotplug_handler: Option<String>,
    /// What a port or a bridge asks the firmware to leave for devices that come later.
    windows: Windows,
    /// The buses that it has, by name.
    pub(super) buses: Vec<String>,
    /// The objects that have a place in it, by path.
    pub(super) links: Vec<String>,
    /// The names of the objects in it, and their types.
    pub(super) children: Vec<(String, String)>,
}

/// An object as `qom-list-get` tells it.
#[derive(Debug, Deserialize)]
pub(super) struct Properties {
    properties: Vec<Property>,
}

#[derive(Debug, Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: Value,
}

impl Object {
    pub(super) fn new(told: Properties) -> Self {
        let mut object = Self::default();
        for Property { name, kind, value } in told.properties {
            let text = || {
                value
                    .as_str()
                    .filter(|it| !it.is_empty())
                    .map(str::to_owned)
            };
            match name.as_str() {
                "type" => object.kind = text().unwrap_or_default(),
                "addr" => {
                    object.address = value.as_i64().and_then(|it| u8::try_from(it).ok());
                }
                "parent_bus" => object.parent_bus = text(),
                "hotplug" => object.hotplug = value.as_bool(),
                "io-reserve" => object.windows.io_bytes = reserved(&value),
                "mem-reserve" => object.windows.memory_bytes = reserved(&value),
                "acpi-pcihp-bsel" => object.is_acpi = true,
                "hotplug-handler" => object.hotplug_handler = text(),
                _ => match inner(&kind) {
                    Some(("child", kind)) if BUS_TYPES.contains(&kind) => object.buses.push(name),
                    Some(("child", kind)) => object.children.push((name, kind.to_owned())),
                    Some(("link", _)) if name.starts_with("child[") => object.links.extend(text()),
                    _ => {}
                },
            }
        }
        object
    }
}

/// A size that was given; the largest number is QEMU's word for none.
fn reserved(value: &Value) -> Option<u64> {
    value.as_u64().filter(|it| *it != u64::MAX)
}

/// `child<e1000>` is a child and an e1000.
pub(super) fn inner(kind: &str) -> Option<(&str, &str)> {
    let (what, of) = kind.strip_suffix('>')?.split_once('<')?;
    Some((what, of))
}

/// The objects that were asked for, by path.
pub(super) type Objects = BTreeMap<String, Object>;

/// The last part of a path.
pub(super) fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// The buses among the objects, the one first that is chosen first.
pub(super) fn buses(objects: &Objects) -> Vec<Bus> {
    let is_bus = |it: &(&String, &Object)| BUS_TYPES.contains(&it.1.kind.as_str());
    let mut buses: Vec<_> = objects
        .iter()
        .filter(is_bus)
        .map(|(path, bus)| (rank(objects, path), describe(objects, path, bus)))
        .collect();
    buses.sort_by(|(one, _), (other, _)| one.cmp(other));
    buses.into_iter().map(|(_, bus)| bus).collect()
}

/// A port before a bus with slots, because what a machine has ports for is this; then in the order of their addresses
/// from the root on.
fn rank(objects: &Objects, path: &str) -> (Kind, Vec<u8>) {
    let mut addresses = Vec::new();
    let mut owner = parent(path);
    let mut seen = BTreeSet::new();
    while let Some(object) = objects.get(owner).filter(|_| seen.insert(owner)) {
        addresses.extend(object.address);
        let Some(bus) = &object.parent_bus else { break };
        owner = parent(bus);
    }
    addresses.reverse();
    (Kind::of(objects, path), addresses)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Has one slot.
    Port,
    /// The machine's own bus.
    Root,
    /// A bus behind a bridge.
    Bridged,
}

impl Kind {
    fn of(objects: &Objects, path: &str) -> Self {
        let owner = objects.get(parent(path));
        let has_address = owner.is_some_and(|it| it.address.is_some() && it.parent_bus.is_some());
        match owner {
            // Only ports have the property.
            Some(owner) if owner.hotplug.is_some() => Self::Port,
            Some(_) if has_address => Self::Bridged,
            _ => Self::Root,
        }
    }

    /// The slots that there are: behind a bridge the first one can be the hot-plug controller's.
    fn slots(self) -> std::ops::Range<u8> {
        match self {
            Self::Port => 0..1,
            Self::Root => 0..SLOTS,
            Self::Bridged => 1..SLOTS,
        }
    }
}

fn describe(objects: &Objects, path: &str, bus: &Object) -> Bus {
    let owner_path = parent(path);
    let owner = objects.get(owner_path);
    let handles_itself = bus.hotplug_handler.as_deref() == Some(owner_path);
    let allowed = owner.and_then(|it| it.hotplug) != Some(false);
    let named = |path: &String| {
        let device = objects.get(path);
        let name = match path.strip_prefix(PERIPHERAL) {
            Some(id) => said::text(id),
            None => device.map(|it| said::text(&it.kind)).unwrap_or_default(),
        };
        let slot = device.and_then(|it| it.address).map(|it| it >> 3);
        (slot, name)
    };
    let devices: Vec<_> = bus.links.iter().map(named).collect();
    let taken: BTreeSet<u8> = devices.iter().filter_map(|(slot, _)| *slot).collect();
    let kind = Kind::of(objects, path);
    // A device elsewhere than in its first slot fills a port, too.
    let is_full = kind == Kind::Port && !taken.is_empty();
    let free = kind
        .slots()
        .filter(|slot| !is_full && !taken.contains(slot));
    Bus {
        name: said::text(name(path)),
        kind: owner.map(|it| said::text(&it.kind)).unwrap_or_default(),
        // A bus that neither ACPI nor its own bridge or port serves has a handler all the same, which refuses.
        is_hotpluggable: bus.is_acpi || (handles_itself && allowed),
        free_slots: free.map(|slot| format!("{slot:x}")).collect(),
        windows: owner.map(|it| it.windows).unwrap_or_default(),
        taken_slots: devices
            .iter()
            .filter_map(|(slot, name)| Some((format!("{:x}", (*slot)?), name.clone())))
            .collect(),
        devices: devices.into_iter().map(|(_, name)| name).collect(),
    }
}

/// The bus and the slot for a device.
pub(super) fn choose(buses: &[Bus], wanted: &Wanted) -> Result<(String, String), Error> {
    let no_place = |why: String| Error::NoPlace {
        why,
        cure: free_places(buses),
    };
    if wanted.pci_segment.is_some_and(|it| it != 0) {
        return Err(Error::NoPlace {
            why: "QEMU has no PCI segments to choose from".to_owned(),
            cure: "leave the segment out".to_owned(),
        });
    }
    let slot = match wanted.slot.as_str() {
        "" => None,
        text => Some(slot(text).ok_or_else(|| Error::NoPlace {
            why: format!("`{}` is no slot", said::text(text)),
            cure:
                "name one as QEMU does: hexadecimal from 0 to 1f, as `5`, `1f` or `5.0`".to_owned(),
        })?),
    };
    let fits = |bus: &Bus| {
        let chosen = slot.as_ref().or(bus.free_slots.first())?;
        let is_free = bus.free_slots.contains(chosen);
        (bus.is_hotpluggable && is_free).then(|| (bus.name.clone(), chosen.clone()))
    };
    if wanted.bus.is_empty() {
        return buses.iter().find_map(fits).ok_or_else(|| {
            no_place(match &slot {
                Some(slot) => format!("no bus that takes devices has a free slot {slot}"),
                None => "no bus or root port that takes devices is free".to_owned(),
            })
        });
    }
    let bus = (buses.iter().find(|bus| bus.name == wanted.bus))
        .ok_or_else(|| no_place(format!("there is no bus `{}`", said::text(&wanted.bus))))?;
    fits(bus).ok_or_else(|| {
        let Bus { name, kind, .. } = bus;
        no_place(if !bus.is_hotpluggable {
            format!("bus `{name}` ({kind}) takes no devices while the machine is on")
        } else if let Some(slot) = slot.filter(|_| bus.has_place()) {
            match bus.occupant(&slot) {
                Some(device) => format!("slot {slot} of bus `{name}` ({kind}) has `{device}`"),
                None => format!("bus `{name}` ({kind}) has no slot {slot}"),
            }
        } else {
            let devices = bus.devices.join("`, `");
            format!("bus `{name}` ({kind}) is full: it has `{devices}`")
        })
    })
}

/// A slot in the form that [`Bus`] has them.
fn slot(text: &str) -> Option<String> {
    let text = text.strip_suffix(".0").unwrap_or(text);
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    let number = u8::from_str_radix(digits, 16).ok()?;
    (number < SLOTS).then(|| format!("{number:x}"))
}

/// How many free buses an error names.
const NAMED: usize = 8;

fn free_places(buses: &[Bus]) -> String {
    let free: Vec<_> = buses.iter().filter(|bus| bus.has_place()).collect();
    if free.is_empty() {
        return "start QEMU with more root ports (-device pcie-root-port,id=rp0,chassis=1), or unplug something"
            .to_owned();
    }
    let named = |bus: &&&Bus| match bus.free_slots.len() {
        1 => format!("`{}`", bus.name),
        count => format!(
            "`{}` ({count} slots from {} on)",
            bus.name, bus.free_slots[0]
        ),
    };
    let names: Vec<_> = free.iter().take(NAMED).map(|bus| named(&bus)).collect();
    let more = match free.len().saturating_sub(NAMED) {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    format!("free are {}{more}", names.join(", "))
}

#[cfg(test)]
mod tests;
