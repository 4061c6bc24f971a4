//! The choice of a place.

use super::*;

fn bus(name: &str, is_hotpluggable: bool, free: &[&str]) -> Bus {
    Bus {
        name: name.to_owned(),
        kind: "pcie-root-port".to_owned(),
        is_hotpluggable,
        free_slots: free.iter().map(|it| (*it).to_owned()).collect(),
        devices: vec!["disk".to_owned()],
        taken_slots: vec![("4".to_owned(), "disk".to_owned())],
        windows: Windows::default(),
    }
}

fn wanted(bus: &str, slot: &str) -> Wanted {
    Wanted {
        bus: bus.to_owned(),
        slot: slot.to_owned(),
        pci_segment: None,
    }
}

fn place(wanted: &Wanted) -> Result<String, String> {
    let buses = [
        bus("pcie.0", false, &["2"]),
        bus("full", true, &[]),
        bus("rp1", true, &["0"]),
        bus("pci.0", true, &["3", "1f"]),
    ];
    match choose(&buses, wanted) {
        Ok((bus, slot)) => Ok(format!("{bus} {slot}")),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn the_first_bus_is_chosen_that_fits_what_is_wanted() {
    for (bus, slot, chosen) in [
        ("", "", "rp1 0"),
        ("", "0", "rp1 0"),
        ("", "3", "pci.0 3"),
        ("pci.0", "", "pci.0 3"),
        ("pci.0", "1f", "pci.0 1f"),
        ("pci.0", "0x1F.0", "pci.0 1f"),
        ("pci.0", "03", "pci.0 3"),
    ] {
        assert_eq!(place(&wanted(bus, slot)).as_deref(), Ok(chosen));
    }
}

#[test]
fn a_place_that_is_none_is_refused_with_those_that_are_free() {
    let free = "free are `rp1`, `pci.0` (2 slots from 3 on)";
    for (bus, slot, why) in [
        ("pcie.0", "", "takes no devices while the machine is on"),
        ("full", "", "is full: it has `disk`"),
        ("rp1", "5", "has no slot 5"),
        (
            "pci.0",
            "0x4",
            "slot 4 of bus `pci.0` (pcie-root-port) has `disk`",
        ),
        ("rp9", "", "there is no bus `rp9`"),
        ("", "7", "no bus that takes devices has a free slot 7"),
    ] {
        let error = place(&wanted(bus, slot)).unwrap_err();
        assert!(error.contains(why) && error.ends_with(free), "{error}");
    }
    for slot in ["x", "20", "-1", "+1", "5.1", "1.0.0", " 5", "0x"] {
        let error = place(&wanted("", slot)).unwrap_err();
        assert!(error.contains("is no slot"), "{error}");
    }
    let mut segment = wanted("", "");
    segment.pci_segment = Some(1);
    assert!(place(&segment).unwrap_err().contains("no PCI segments"));
}

#[test]
fn a_machine_without_a_place_is_told_how_to_get_one() {
    let error = choose(&[bus("full", true, &[])], &wanted("", "")).unwrap_err();
    assert!(error.to_string().contains("more root ports"), "{error}");
}

#[test]
fn what_a_port_reserves_for_its_devices_is_read() {
    let told = |io: &str| {
        let properties = format!(
            r#"[{{"name": "io-reserve", "type": "size", "value": {io}}},
                {{"name": "mem-reserve", "type": "size", "value": 65536}}]"#
        );
        let properties = serde_json::from_str(&properties).unwrap();
        Object::new(Properties { properties }).windows
    };
    assert_eq!(told("18446744073709551615").io_bytes, None);
    let none = told("0");
    assert_eq!((none.io_bytes, none.memory_bytes), (Some(0), Some(65536)));
}
