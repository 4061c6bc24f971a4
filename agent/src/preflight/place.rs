//! Whether the VMM has a place for the device, under the name that it shall have there.

use super::{Finding, Scene};
use crate::vmm::{Bus, Endpoint, Facts, Wanted};

/// How many places are named to who has chosen one that is none.
const NAMED: usize = 8;

const ANOTHER_NAME: &str =
    "choose another name (vmm_device_id; vfuctl: --id), or unplug that device";

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let Some((endpoint, answer)) = &scene.vmm else {
        return Vec::new();
    };
    let wanted = &scene.question.wanted;
    let mut found = Vec::new();
    let Ok(facts) = answer else {
        return found;
    };
    // It has its place, and one that is too old has not told of any.
    if scene.is_there() || facts.version_needed.is_some() {
        return found;
    }
    if let Some(device) = &scene.question.device {
        found.extend(name(facts, &scene.question.vmm_device_id));
        found.extend(scene.question.rivals.iter().map(|rival| {
            Finding::error(
                "VMM_DEVICE_ID_TAKEN",
                &scene.question.vmm_device_id,
                format!("devices/{rival} is plugged into this VMM under this name"),
                ANOTHER_NAME,
            )
        }));
        let mut devices = facts.devices.iter();
        if let Some(twin) = devices.find(|it| it.device_socket.as_ref() == Some(&device.socket)) {
            found.push(Finding::error(
                "DEVICE_IN_VMM",
                &twin.id,
                format!("the VMM has devices/{} already, under this name", device.id),
                "unplug it first",
            ));
        }
    }
    if found.is_empty() {
        found.push(match endpoint {
            Endpoint::Qmp { .. } => place(facts, wanted),
            Endpoint::CloudHypervisor { .. } => segment(facts, wanted),
        });
    }
    found
}

/// The bus that the device would be on, where there is one.
pub(super) fn bus<'a>(facts: &'a Facts, endpoint: &Endpoint, wanted: &Wanted) -> Option<&'a Bus> {
    let segment = wanted.pci_segment.unwrap_or(0).to_string();
    let mut buses = facts.buses.iter();
    match endpoint {
        Endpoint::CloudHypervisor { .. } => buses.find(|it| it.name == segment),
        Endpoint::Qmp { .. } if wanted.bus.is_empty() => buses.find(|it| fits(it, wanted)),
        Endpoint::Qmp { .. } => buses.find(|it| it.name == wanted.bus),
    }
}

/// Whether a bus that nobody has chosen takes the device.
fn fits(bus: &Bus, wanted: &Wanted) -> bool {
    let mut slots = bus.free_slots.iter();
    bus.has_place() && slots.any(|slot| is_slot(slot, &wanted.slot))
}

/// Whether the name is free.
fn name(facts: &Facts, id: &str) -> Option<Finding> {
    let on_buses = facts.buses.iter().flat_map(|it| &it.devices);
    let mut ids = on_buses.chain(facts.devices.iter().map(|it| &it.id));
    ids.any(|it| it == id).then(|| {
        Finding::error(
            "VMM_DEVICE_ID_TAKEN",
            id,
            "the VMM has another device of this name",
            ANOTHER_NAME,
        )
    })
}

/// Whether `free`, a slot as a bus has it, is the one that is wanted.
fn is_slot(free: &str, wanted: &str) -> bool {
    wanted.is_empty() || number(wanted).is_some_and(|it| number(free) == Some(it))
}

/// A slot as QEMU reads it: hexadecimal, `5` and `5.0` are the same.
fn number(slot: &str) -> Option<u8> {
    let slot = slot.strip_suffix(".0").unwrap_or(slot);
    u8::from_str_radix(slot.strip_prefix("0x").unwrap_or(slot), 16).ok()
}

fn place(facts: &Facts, wanted: &Wanted) -> Finding {
    let places = facts.buses.iter().filter(|it| it.has_place());
    let named: Vec<_> = places.map(|it| it.name.as_str()).take(NAMED).collect();
    let others = match &named[..] {
        [] => "there is no other either: start QEMU with more `-device pcie-root-port`s, or unplug a device".to_owned(),
        names => format!("use another, such as {}", names.join(", ")),
    };
    if !wanted.bus.is_empty() {
        let Some(bus) = facts.buses.iter().find(|it| it.name == wanted.bus) else {
            let why = "the VMM has no such bus that a PCI device could be on";
            return Finding::error("BUS_UNKNOWN", &wanted.bus, why, others);
        };
        return on(bus, wanted, others);
    }
    match facts.buses.iter().find(|it| fits(it, wanted)) {
        Some(bus) => on(bus, wanted, others),
        None if named.is_empty() => Finding::error(
            "NO_FREE_PLACE",
            &facts.machine,
            "no bus or root port that takes a device while the guest runs is free",
            "start QEMU with more ports, such as -device pcie-root-port,id=rp1,chassis=1, or unplug a device",
        ),
        None => Finding::error(
            "SLOT_TAKEN",
            &wanted.slot,
            "no bus that takes a device while the guest runs has this slot free",
            "leave the slot to the VMM, or name the bus too",
        ),
    }
}

fn on(bus: &Bus, wanted: &Wanted, others: String) -> Finding {
    let Bus { name, kind, .. } = bus;
    if !bus.is_hotpluggable {
        let why = format!("{kind} takes no device while the guest runs");
        return Finding::error("BUS_NOT_HOTPLUGGABLE", name, why, others);
    }
    let mut slots = bus.free_slots.iter();
    let first = slots.next();
    match bus.free_slots.iter().find(|it| is_slot(it, &wanted.slot)) {
        Some(slot) => Finding::ok("PLACE", name, format!("{kind}, slot {slot} is free")),
        None if first.is_none() => {
            let why = format!("{kind} is full: it has {}", bus.devices.join(", "));
            Finding::error("BUS_FULL", name, why, others)
        }
        None => {
            let slot = number(&wanted.slot).map(|it| format!("{it:x}"));
            let why = match slot.and_then(|it| bus.occupant(&it)) {
                Some(device) => format!("this slot of {name} has {device}"),
                None => format!("{name} has no such slot"),
            };
            let cure = format!("use slot {}", first.map_or("", String::as_str));
            Finding::error("SLOT_TAKEN", &wanted.slot, why, cure)
        }
    }
}

fn segment(facts: &Facts, wanted: &Wanted) -> Finding {
    let wanted = wanted.pci_segment.unwrap_or(0).to_string();
    let Some(bus) = facts.buses.iter().find(|it| it.name == wanted) else {
        return Finding::error(
            "SEGMENT_UNKNOWN",
            wanted,
            "the VMM has no such PCI segment",
            "choose another, or start it with --platform num_pci_segments=COUNT",
        );
    };
    if !bus.is_hotpluggable {
        return Finding::error(
            "BUS_NOT_HOTPLUGGABLE",
            wanted,
            format!("a {} takes no vfio-user device", bus.kind),
            "choose another segment",
        );
    }
    match bus.has_place() {
        true => Finding::ok("PLACE", wanted, "the PCI segment has a free slot"),
        false => Finding::error(
            "BUS_FULL",
            wanted,
            "the PCI segment has no free slot",
            "choose another segment, or unplug a device",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{qemu, question, scene, wrong};
    use super::super::{Question, Severity};
    use super::*;
    use crate::vmm::{Found, Placed};

    fn found(question: &Question, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = qemu();
        change(&mut facts);
        findings(&scene(question, Ok(facts)))
    }

    fn error(found: &[Finding]) -> &'static str {
        let wrong = wrong(found);
        assert_eq!(wrong.len(), 1, "{found:?}");
        assert_eq!(wrong[0].1, Severity::Error);
        wrong[0].0
    }

    fn wanting(bus: &str, slot: &str) -> Question {
        let mut question = question();
        question.wanted.bus = bus.to_owned();
        question.wanted.slot = slot.to_owned();
        question
    }

    fn full(bus: &mut Bus) {
        bus.free_slots.clear();
        bus.devices.push("disk0".to_owned());
    }

    #[test]
    fn the_first_free_port_is_the_place() {
        let found = found(&question(), |it| full(&mut it.buses[0]));
        assert_eq!((found[0].code, &*found[0].subject), ("PLACE", "rp1"));
    }

    #[test]
    fn without_a_free_port_there_is_no_place() {
        let none = found(&question(), |it| {
            full(&mut it.buses[0]);
            it.buses[1].is_hotpluggable = false;
        });
        assert_eq!(error(&none), "NO_FREE_PLACE");
        assert!(none[0].cure.contains("pcie-root-port"));
    }

    #[test]
    fn a_bus_that_is_asked_for_has_to_be_there_and_free() {
        let unknown = found(&wanting("rp9", ""), |_| {});
        assert_eq!(error(&unknown), "BUS_UNKNOWN");
        assert_eq!(unknown[0].cure, "use another, such as rp0, rp1");
        let cold = found(&wanting("rp0", ""), |it| {
            it.buses[0].is_hotpluggable = false
        });
        assert_eq!(error(&cold), "BUS_NOT_HOTPLUGGABLE");
        let taken = found(&wanting("rp0", ""), |it| full(&mut it.buses[0]));
        assert_eq!(error(&taken), "BUS_FULL");
        assert!(taken[0].message.ends_with("disk0"));
        assert_eq!(found(&wanting("rp1", ""), |_| {})[0].subject, "rp1");
    }

    #[test]
    fn a_slot_that_is_asked_for_has_to_be_free() {
        let slots = |it: &mut Facts| {
            it.buses[1].free_slots = vec!["4".to_owned(), "5".to_owned()];
            it.buses[1].taken_slots = vec![("3".to_owned(), "disk0".to_owned())];
        };
        let taken = found(&wanting("rp1", "0x3"), slots);
        assert_eq!(error(&taken), "SLOT_TAKEN");
        assert_eq!(taken[0].message, "this slot of rp1 has disk0");
        assert_eq!(taken[0].cure, "use slot 4");
        assert_eq!(error(&found(&wanting("", "3"), slots)), "SLOT_TAKEN");
        assert_eq!(error(&found(&wanting("rp1", "x"), slots)), "SLOT_TAKEN");
        for question in [
            wanting("rp1", "5"),
            wanting("rp1", "5.0"),
            wanting("", "5.0"),
        ] {
            let found = found(&question, slots);
            assert_eq!(found[0].message, "pcie-root-port, slot 5 is free");
        }
    }

    #[test]
    fn a_name_is_given_once() {
        let other = |it: &mut Facts| it.buses[1].devices.push("nic0".to_owned());
        assert_eq!(error(&found(&question(), other)), "VMM_DEVICE_ID_TAKEN");
        let mut rivalled = question();
        rivalled.rivals.push("nic1".to_owned());
        let taken = found(&rivalled, |_| {});
        assert_eq!(error(&taken), "VMM_DEVICE_ID_TAKEN");
        assert!(taken[0].message.starts_with("devices/nic1"));
        let ours = |it: &mut Facts| {
            it.devices.push(Found {
                id: "card".to_owned(),
                device_socket: Some("/run/vfu/devices/nic0/vfio-user.sock".into()),
                placed: Placed::default(),
            });
        };
        assert_eq!(error(&found(&question(), ours)), "DEVICE_IN_VMM");
    }

    #[test]
    fn a_segment_has_to_be_there_and_free() {
        let mut question = question();
        let socket = "/run/api".into();
        let events = None;
        question.endpoint = Some(Endpoint::CloudHypervisor { socket, events });
        question.wanted.pci_segment = Some(1);
        let segments = |it: &mut Facts| {
            it.buses[0].name = "0".to_owned();
            it.buses[1].name = "1".to_owned();
        };
        assert_eq!(found(&question, segments)[0].code, "PLACE");
        let full = found(&question, |it| {
            segments(it);
            full(&mut it.buses[1]);
        });
        assert_eq!(error(&full), "BUS_FULL");
        let fixed = found(&question, |it| {
            segments(it);
            it.buses[1].is_hotpluggable = false;
        });
        assert_eq!(error(&fixed), "BUS_NOT_HOTPLUGGABLE");
        question.wanted.pci_segment = Some(2);
        assert_eq!(error(&found(&question, segments)), "SEGMENT_UNKNOWN");
    }
}
