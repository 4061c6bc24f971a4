//! Whether a guest could reach the device's registers on the bus that it is to be on.
//!
//! None of it is an error: a guest may move its windows, and many a driver does without I/O ports.

use super::{Finding, Scene, place};
use crate::models::model::{Bar, BarKind};
use crate::vmm::{Bus, Endpoint, Windows};

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let (Some((endpoint, _)), Some(facts)) = (&scene.vmm, scene.facts()) else {
        return Vec::new();
    };
    let Some(device) = scene.question.device.as_ref() else {
        return Vec::new();
    };
    if device.bars.is_empty() || scene.is_there() || facts.version_needed.is_some() {
        return Vec::new();
    }
    let Some(bus) = place::bus(facts, endpoint, &scene.question.wanted) else {
        return Vec::new();
    };
    let name = format!("devices/{}", device.id);
    let bars = device.bars.iter();
    let lacks: Vec<_> = bars
        .filter_map(|bar| lack(&name, bar, bus, endpoint))
        .collect();
    match lacks.is_empty() {
        true => vec![Finding::ok(
            "BARS_FIT",
            name,
            format!(
                "nothing is known that keeps its guest from its registers on {}",
                bus.name
            ),
        )],
        false => lacks,
    }
}

/// What the bus lacks for this one.
fn lack(name: &str, bar: &Bar, bus: &Bus, endpoint: &Endpoint) -> Option<Finding> {
    let Windows {
        io_bytes,
        memory_bytes,
    } = bus.windows;
    let (code, window, what, property) = match bar.kind {
        BarKind::Io => ("BAR_WITHOUT_IO_WINDOW", io_bytes, "I/O ports", "io-reserve"),
        // Behind a bridge what is not prefetchable is below 4 GiB.
        BarKind::Memory32 | BarKind::Memory64 if !bar.prefetchable => (
            "BAR_WITHOUT_MEMORY_WINDOW",
            memory_bytes,
            "memory",
            "mem-reserve",
        ),
        BarKind::Memory32 | BarKind::Memory64 | BarKind::Unknown => return None,
    };
    let window = window.filter(|bytes| *bytes < bar.size_bytes)?;
    let Bar {
        index, size_bytes, ..
    } = bar;
    let place = &bus.name;
    let (place, cure) = match endpoint {
        Endpoint::CloudHypervisor { .. } => (
            format!("PCI segment {place}"),
            "plug it into segment 0, unless the guest's driver does without I/O ports".to_owned(),
        ),
        Endpoint::Qmp { .. } => (
            format!("{} {place}", bus.kind),
            format!(
                "start QEMU with a port that has no {property}, or a larger one, or use another bus"
            ),
        ),
    };
    let why = format!(
        "BAR {index} takes {size_bytes} bytes of {what}, and {place} has {window} for its devices: the guest may find no \
         address for it"
    );
    Some(Finding::warning(code, name, why, cure))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{qemu, question, scene, wrong};
    use super::super::{Question, Severity};
    use super::*;
    use crate::vmm::Facts;

    fn found(question: &Question, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = qemu();
        change(&mut facts);
        findings(&scene(question, Ok(facts)))
    }

    #[test]
    fn a_port_without_an_io_window_has_no_address_for_io_ports() {
        let without = |it: &mut Facts| it.buses[0].windows.io_bytes = Some(0);
        let lacking = found(&question(), without);
        let warning = [("BAR_WITHOUT_IO_WINDOW", Severity::Warning)];
        assert_eq!(wrong(&lacking), warning);
        assert!(
            lacking[0]
                .message
                .starts_with("BAR 2 takes 64 bytes of I/O ports")
        );
        assert!(lacking[0].cure.contains("io-reserve"));
        // It is the port that is chosen that counts.
        let mut other = question();
        other.wanted.bus = "rp1".to_owned();
        assert_eq!(found(&other, without)[0].code, "BARS_FIT");
        let mut silent = question();
        silent.device.as_mut().unwrap().bars.clear();
        assert_eq!(found(&silent, without), []);
    }

    #[test]
    fn a_window_of_memory_has_to_be_as_large_as_what_is_to_be_in_it() {
        let with = |bytes: u64| {
            found(&question(), |it| {
                it.buses[0].windows.memory_bytes = Some(bytes);
            })
        };
        let warning = [("BAR_WITHOUT_MEMORY_WINDOW", Severity::Warning)];
        assert_eq!(wrong(&with(64 << 10)), warning);
        assert_eq!(wrong(&with(128 << 10)), []);
    }

    #[test]
    fn only_the_first_segment_has_io_ports() {
        let mut question = question();
        question.endpoint = Some(Endpoint::CloudHypervisor {
            socket: "/run/api".into(),
            events: None,
        });
        let segments = |it: &mut Facts| {
            for (index, bus) in it.buses.iter_mut().enumerate() {
                bus.name = index.to_string();
                bus.windows.io_bytes = (index != 0).then_some(0);
            }
        };
        assert_eq!(wrong(&found(&question, segments)), []);
        question.wanted.pci_segment = Some(1);
        let lacking = found(&question, segments);
        assert_eq!(
            wrong(&lacking),
            [("BAR_WITHOUT_IO_WINDOW", Severity::Warning)]
        );
        assert!(lacking[0].cure.contains("segment 0"));
    }
}
