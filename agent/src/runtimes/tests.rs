//! Folders with description files, good and bad.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

fn card() -> Value {
    json!({
        "version": 1,
        "name": "card",
        "description": "a card",
        "command": ["/bin/sh", "{socket}", "[{config.x}]"],
        "config_schema": {"type": "object", "properties": {"x": {"type": "string"}}},
        "readiness": "socket",
    })
}

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    path
}

async fn error_of(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "a.json", text);
    write(&folder, "b.json", &card().to_string());
    let described = Runtimes::new(vec![folder.path().to_owned()]).get().await;
    assert!(
        described.models.contains_key("card"),
        "the other file counts"
    );
    let [(bad, why)] = &described.bad[..] else {
        return String::new();
    };
    assert_eq!(*bad, path);
    why.clone()
}

#[tokio::test]
async fn a_bad_file_is_named_with_cause_and_cure_and_the_others_count() {
    let with = |key: &str, value: Value| {
        let mut file = card();
        file["name"] = "other".into();
        file[key] = value;
        file.to_string()
    };
    for (text, part) in [
        ("{".to_owned(), "EOF"),
        ("{} x".to_owned(), "missing field"),
        (with("version", 2.into()), "it reads 1"),
        (with("name", "A b".into()), "lower-case"),
        (with("vendor_id", 0x1_0000.into()), "vendor_id"),
        (with("class_code", 0x100_0000.into()), "24 bits"),
        (with("colour", 1.into()), "unknown field"),
        (with("command", json!([])), "the program"),
        (with("command", json!(["{config.x}"])), "command[0]"),
        (
            with("command", json!(["/bin/sh", "{config.y}"])),
            "config.y",
        ),
        (with("command", json!(["/bin/sh"])), "{socket}"),
        (
            with("command", json!(["/bin/sh", "{socket}", "{fd}"])),
            "{fd}",
        ),
        (with("readiness", "fd".into()), "{fd}"),
        (with("readiness", json!({"line": ""})), "readiness.line"),
        (with("readiness", "soon".into()), "readiness"),
        (with("cannot", json!(["fly"])), "cannot[0]"),
        (with("monitor", "qmp".into()), "{monitor}"),
        (
            with("command", json!(["/bin/sh", "{socket}", "{monitor}"])),
            "monitor",
        ),
        (
            with(
                "requires",
                json!([{"arguments": [], "prints": "", "cure": "c"}]),
            ),
            "requires[0]: prints",
        ),
        (
            with(
                "config_schema",
                json!({"type": "object", "properties": {"x": {"x-vfu-mutable": true}}}),
            ),
            "x-vfu-mutable",
        ),
        (with("config_schema", json!({"type": "array"})), "object"),
        (with("runtime", "/x".into()), "runtime"),
        (card().to_string() + &" ".repeat(300 << 10), "longer"),
    ] {
        let why = error_of(&text).await;
        assert!(why.contains(part), "{part}: {why}");
    }
    let mut file = card();
    file["name"] = "other".into();
    file["config_schema"]["properties"]["x"] = json!({"type": 12});
    assert!(
        error_of(&file.to_string())
            .await
            .contains("config_schema: ")
    );
    let why = error_of(&with("name", "other".into())).await;
    assert_eq!(why, "");
}

#[tokio::test]
async fn a_file_that_others_can_write_and_what_is_no_file_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "a.json", &card().to_string());
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o664)).unwrap();
    let pipe = folder.path().join("b.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    write(&folder, ".c.json", "hidden");
    write(&folder, "README", "not one");
    let runtimes = Runtimes::new(vec![folder.path().to_owned()]);
    let described = runtimes.get().await;
    assert!(described.models.is_empty());
    let why: Vec<_> = described.bad.iter().map(|(_, why)| why.as_str()).collect();
    assert!(why[0].contains("chmod go-w"), "{why:?}");
    assert!(why[1].contains("regular file"), "{why:?}");
    assert_eq!(why.len(), 2);

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(runtimes.get().await.models.contains_key("card"), "mended");
}

#[tokio::test]
async fn the_first_folder_counts_and_changes_are_seen() {
    let (etc, usr) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let missing = PathBuf::from("/nonexistent");
    let folders = [&missing, etc.path(), usr.path()].map(|it: &Path| it.to_owned());
    let runtimes = Runtimes::new(folders.to_vec());
    assert!(runtimes.get().await.models.is_empty());

    write(&usr, "a.json", &card().to_string());
    let first = runtimes.get().await;
    assert_eq!(first.models["card"].description, "a card");
    assert!(Arc::ptr_eq(&first, &runtimes.get().await));

    let mut file = card();
    file["description"] = "mine".into();
    write(&etc, "a.json", &file.to_string());
    let replaced = runtimes.get().await;
    assert_eq!(replaced.models["card"].description, "mine");
    assert_eq!(replaced.bad, []);

    let second = write(&usr, "b.json", &card().to_string());
    let twice = runtimes.get().await;
    assert_eq!(twice.bad[0].0, second);
    assert!(twice.bad[0].1.contains("rename"), "{:?}", twice.bad);
    std::fs::remove_file(etc.path().join("a.json")).unwrap();
    assert_eq!(runtimes.get().await.models["card"].description, "a card");
}

#[tokio::test]
async fn more_files_than_are_read_are_told() {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..MAX_FILES + 3 {
        let mut file = card();
        file["name"] = format!("card{index}").into();
        write(&folder, &format!("{index:04}.json"), &file.to_string());
    }
    let described = Runtimes::new(vec![folder.path().to_owned()]).get().await;
    assert_eq!(described.models.len(), MAX_FILES);
    assert!(
        described.bad[0].1.contains("3 files"),
        "{:?}",
        described.bad
    );
}

#[tokio::test]
async fn the_files_that_are_deployed_are_good() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models.d");
    let folder = tempfile::tempdir().unwrap();
    for entry in files.read_dir().unwrap() {
        let entry = entry.unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        write(&folder, entry.file_name().to_str().unwrap(), &text);
    }
    let described = Runtimes::new(vec![folder.path().to_owned()]).get().await;
    assert_eq!(described.bad, []);
    let names: Vec<_> = described.models.keys().collect();
    assert_eq!(names, ["qemu", "usbvfiod"]);

    let model = &described.models["qemu"];
    let arguments = |config: Value| {
        assert!(model.check(&config).is_empty(), "{config}");
        let device = For {
            id: "a",
            run_dir: Path::new("/run/a,b"),
            socket_path: Path::new("/run/a,b/vfio-user.sock"),
            socket: crate::store::SocketSpec::default(),
            config: &config,
        };
        let external = model.external.as_ref().unwrap();
        let launch = external.launch(model, Path::new("/qemu"), device).unwrap();
        launch["arguments"].to_string()
    };
    let nvme = arguments(json!({
        "device": "nvme", "properties": {"serial": "a,drive=b"},
        "drive": {"file": "/x\",\"driver\":\"ssh"}, "auto_shutdown": true
    }));
    for part in [
        r#""nvme,id=device,serial=a,,drive=b""#,
        "auto-shutdown=true",
        "path=/run/a,,b/.b/s",
        r#"\"filename\":\"/x\\\",\\\"driver\\\":\\\"ssh\""#,
        "device.device.drive=drive",
    ] {
        assert!(nvme.contains(part), "{part}: {nvme}");
    }
    let nic = arguments(json!({"device": "e1000", "net": {"tap": {"ifname": "t,x"}}}));
    assert!(nic.contains("tap,id=net,ifname=t,,x,script=no"), "{nic}");
    for bad in [
        json!({"device": "e1000,addr=1"}),
        json!({"device": "e1000", "properties": {"id": "x"}}),
        json!({"device": "e1000", "properties": {"a": {}}}),
        json!({"device": "e1000", "net": {"user": true, "tap": {"ifname": "x"}}}),
        json!({"device": "e1000", "drive": {"file": "nbd:x"}}),
    ] {
        assert!(!model.check(&bad).is_empty(), "{bad}");
    }
}

#[tokio::test]
async fn a_program_that_can_t_is_told_with_the_cure_and_asked_again_when_it_has_changed() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let install = |says: &str| {
        // Another process writes it: a file that a fork of this one still has open for writing can't be run.
        let script = r#"printf '#!/bin/sh\necho %s\n' "$1" > "$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#;
        let mut shell = std::process::Command::new("/bin/sh");
        let written = shell.args(["-c", script, program.to_str().unwrap(), says]);
        assert!(written.status().unwrap().success());
    };
    let mut file = card();
    file["command"][0] = program.to_str().unwrap().into();
    file["requires"] = json!([{"arguments": ["-x"], "prints": "abc", "cure": "get another"}]);
    write(&folder, "a.json", &file.to_string());
    let runtimes = Runtimes::new(vec![folder.path().to_owned()]);
    let described = runtimes.get().await;
    let external = described.models["card"].external.as_ref().unwrap();
    let why = runtimes.program(external).await.unwrap_err();
    assert!(why.contains("no program"), "{why}");
    install("xyz");
    let why = runtimes.program(external).await.unwrap_err();
    assert!(why.contains("does not print \"abc\": get another"), "{why}");
    install("xabcz");
    assert_eq!(runtimes.program(external).await.unwrap(), program);
}
