//! The catalogue, and what is said of a configuration that is wrong.

use serde_json::{Value, json};

use super::*;

const SEED: Seed = Seed([0xff, 1, 2, 3, 4, 5, 6, 7]);

fn refuse(config: Value) -> Error {
    open("e1000", config, SEED)
        .err()
        .expect("a configuration that is wrong")
}

#[test]
fn the_catalogue_shows_ids_and_schema() {
    let shown = serde_json::to_value(catalogue()).unwrap();
    let e1000 = &shown[0];
    assert_eq!(e1000["name"], "e1000");
    assert_eq!(e1000["vendor_id"], 32902);
    assert_eq!(e1000["device_id"], 4110);
    assert_eq!(e1000["class_code"], 131_072);
    assert_eq!(
        e1000["bars"],
        json!([
            {"index": 0, "kind": "MEMORY_32", "size_bytes": 131_072, "prefetchable": false},
            {"index": 2, "kind": "IO", "size_bytes": 64, "prefetchable": false},
        ])
    );
    let schema = &e1000["config_schema"];
    assert_eq!(*schema, catalogue()[0].config_schema());
    assert_eq!(schema["type"], "object");
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["mac"]["type"], "string");
    assert!(schema["properties"]["mac"]["pattern"].is_string());
    assert!(schema["properties"]["mac"]["description"].is_string());
    let net = &schema["properties"]["net"];
    assert_eq!(net["oneOf"].as_array().unwrap().len(), 4);
    assert_eq!(net["default"], json!({"null": {}}));
    assert_eq!(schema.get("required"), None);
}

#[test]
fn a_device_opens_with_nothing_configured() {
    let device = open("e1000", json!({}), SEED).unwrap();
    assert_eq!(device.identity().device_id, 0x100e);
    assert_eq!(device.identity().bars, catalogue()[0].bars);
    open(
        "e1000",
        json!({"mac": "52:54:00:AB:cd:ef", "net": {"loopback": {}}}),
        SEED,
    )
    .unwrap();
}

#[test]
fn an_address_that_is_made_up_is_a_station_of_its_own() {
    let config = serde_json::from_value(json!({})).unwrap();
    let mut guest = pci::testing::Guest::new(e1000::open(config, SEED).unwrap());
    // RAL0 and RAH0.
    assert_eq!(guest.read32(0, 0x5400), 0x0302_01fe);
    assert_eq!(guest.read32(0, 0x5404), 0x8000_0504);
}

#[test]
fn an_unknown_model_is_refused_with_those_there_are() {
    let error = open("e1001", json!({}), SEED).err().unwrap();
    assert_eq!((error.kind, error.field), (Kind::Invalid, None));
    assert!(error.message.contains("e1000"));
}

#[test]
fn the_field_that_is_wrong_is_named() {
    for (config, field) in [
        (json!({"mac": "52:54:00:12:34"}), "mac"),
        (json!({"mac": "52:54:00:12:34:56:78"}), "mac"),
        (json!({"mac": "52-54-00-12-34-56"}), "mac"),
        (json!({"mac": "+2:54:00:12:34:56"}), "mac"),
        (json!({"mac": 7}), "mac"),
        (json!({"mac": "00:00:00:00:00:00"}), "mac"),
        (json!({"mac": "ff:ff:ff:ff:ff:ff"}), "mac"),
        (json!({"mac": "01:00:5e:00:00:01"}), "mac"),
        (json!({"link": "off"}), "link"),
        (json!({"chip": "82546eb"}), "chip"),
        (
            json!({"subsystem_vendor_id": "8086"}),
            "subsystem_vendor_id",
        ),
        (json!({"subsystem_id": 0x1_0000}), "subsystem_id"),
        (json!({"revision_id": -1}), "revision_id"),
        (json!({"link": true}), "link"),
        (json!({"mtu": 1500}), "mtu"),
        (json!({"net": {"tap": {"ifname": 1}}}), "net.tap.ifname"),
        (
            json!({"net": {"stream": {"path": "/x", "mode": "both"}}}),
            "net.stream.mode",
        ),
        (
            json!({"net": {"tap": {"ifname": "longer-than-fifteen"}}}),
            "net.tap.ifname",
        ),
    ] {
        let error = refuse(config.clone());
        assert_eq!(error.kind, Kind::Invalid, "{config}");
        assert_eq!(error.field.as_deref(), Some(field), "{config}: {error}");
        assert!(!error.message.is_empty());
    }
}

#[test]
fn a_configuration_that_is_no_object_has_no_field() {
    assert_eq!(refuse(json!([1])).field, None);
    assert_eq!(refuse(json!("x")).field, None);
}

#[test]
fn an_expansion_rom_comes_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("card.rom");
    let config = json!({"rom_file": path});
    let error = refuse(config.clone());
    assert_eq!(error.kind, Kind::NotFound);
    assert_eq!(error.field.as_deref(), Some("rom_file"));
    std::fs::write(&path, "no ROM").unwrap();
    let error = refuse(config.clone());
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.message.contains("card.rom"), "{error}");
    let mut image = vec![0; 1024];
    image[..3].copy_from_slice(&[0x55, 0xaa, 2]);
    image[0x18] = 0x1c;
    image[0x1c..0x24].copy_from_slice(b"PCIR\x86\x80\x0e\x10");
    image[0x2c] = 2;
    std::fs::write(&path, &image).unwrap();
    let mut guest = pci::testing::Guest::new(open("e1000", config, SEED).unwrap());
    let mut register = [0; 4];
    guest.config_write(0x30, &[0xff; 4]);
    guest.config_read(0x30, &mut register);
    assert_eq!(register, [1, 0, 0xff, 0xff], "64 KiB, the smallest Flash");
    // VFIO_PCI_ROM_REGION_INDEX.
    let mut content = vec![0; 2048];
    guest.read(6, 0, &mut content);
    assert_eq!(content[..1024], image);
    assert!(content[1024..].iter().all(|byte| *byte == 0xff));
}

fn living(config: Value) -> pci::testing::Guest<Box<dyn pci::Device>> {
    pci::testing::Guest::new(open("e1000", config, SEED).unwrap())
}

#[test]
fn a_living_device_is_told_its_whole_configuration_again_and_again() {
    let mut guest = living(json!({}));
    for config in [
        json!({"link": "down"}),
        json!({"link": "down", "net": {"null": {}}}),
        json!({"link": "up"}),
        json!({}),
    ] {
        let told = guest.update(&config);
        assert_eq!(told, Ok(()), "{config}");
    }
}

#[test]
fn what_changes_on_a_living_device_is_what_the_schema_says() {
    let present = json!({"mac": "52:54:00:12:34:56"});
    let values = json!({
        "mac": "52:54:00:12:34:57",
        "chip": "82545em",
        "subsystem_vendor_id": 0x1028,
        "subsystem_id": 0x0151,
        "revision_id": 3,
        "rom_file": "/rom",
        "link": "down",
        "net": {"loopback": {}},
    });
    let schema = catalogue()[0].config_schema();
    for (name, node) in schema["properties"].as_object().unwrap() {
        let mut config = present.clone();
        assert!(!values[name].is_null(), "give {name} a value");
        config[name] = values[name].clone();
        let told = living(present.clone()).update(&config);
        match node.get("x-vfu-mutable") {
            Some(mark) => assert_eq!((mark, told), (&json!(true), Ok(()))),
            None => {
                let error = told.unwrap_err();
                assert_eq!(error.field.unwrap().split('.').next(), Some(&**name));
                assert!(
                    error.message.contains("create it anew"),
                    "{}",
                    error.message
                );
            }
        }
    }
}

#[test]
fn a_change_that_is_refused_changes_nothing() {
    let mut guest = living(json!({}));
    let before = guest.save();
    for (config, field) in [
        (
            json!({"link": "down", "mac": "52:54:00:12:34:56"}),
            Some("mac"),
        ),
        (
            json!({"link": "down", "net": {"loopback": {}}}),
            Some("net.null"),
        ),
        (json!({"link": "left"}), Some("link")),
        (json!({"link": "down", "mtu": 1500}), Some("mtu")),
        (json!([]), None),
    ] {
        let told = guest.update(&config);
        assert_eq!(told.unwrap_err().field.as_deref(), field, "{config}");
        assert_eq!(guest.save(), before, "{config}");
    }
}
