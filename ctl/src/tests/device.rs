//! Commands that make, show, change and delete devices.

use std::ffi::OsString;

use proto::v1::{ResourceLimits, device_spec::RestartPolicy, device_status};
use serde_json::{Value, json};
use tokio::{net::UnixListener, task::JoinSet};

use super::{Host, run_words};
use crate::output::from_struct;

#[tokio::test]
async fn create_sends_the_configuration() {
    let host = Host::new();
    let text = host
        .good("create e1000 nic0 --mac 52:54:00:12:34:56 --set net.tap.ifname=vfu0 --label a=b")
        .await;
    assert_eq!(
        text,
        "devices/nic0 created, socket /run/vfu/devices/nic0/vfio-user.sock\n"
    );
    assert_eq!(
        host.config("nic0"),
        json!({"mac": "52:54:00:12:34:56", "net": {"tap": {"ifname": "vfu0"}}})
    );
    assert_eq!(
        host.fake.devices.lock().unwrap()["devices/nic0"].labels["a"],
        "b"
    );
    let deadline = host.fake.asked.lock().unwrap().deadline.clone();
    assert_eq!(deadline.unwrap(), "30000000u");
}

#[tokio::test]
async fn create_takes_a_file_and_flags_over_it() {
    let host = Host::new();
    let file = host.dir.path().join("nic.json");
    std::fs::write(&file, r#"{"queues":8,"net":{"null":{}}}"#).unwrap();
    let line = format!(
        "create e1000 nic0 --config @{} --net.loopback -o name",
        file.display()
    );
    assert_eq!(host.good(&line).await, "devices/nic0\n");
    assert_eq!(
        host.config("nic0"),
        json!({"queues": 8, "net": {"loopback": {}}})
    );
}

#[tokio::test]
async fn validation_creates_nothing() {
    let host = Host::new();
    let text = host.good("create e1000 nic0 --validate-only").await;
    assert_eq!(text, "devices/nic0 is valid; nothing was created\n");
    assert!(host.fake.devices.lock().unwrap().is_empty());
}

#[tokio::test]
async fn create_says_what_is_wrong() {
    let host = Host::new();
    assert_eq!(
        host.bad("create e1000 nic0 --mac bad").await,
        (
            2,
            "vfuctl: the configuration is wrong\n  device.spec.config.mac (--mac): not a MAC address".into()
        )
    );
    assert_eq!(
        host.bad("create e1001 nic0").await,
        (3, "vfuctl: models/e1001: no such model".into())
    );
    host.good("create e1000 nic0").await;
    assert_eq!(
        host.bad("create e1000 nic0").await,
        (4, "vfuctl: devices/nic0: exists".into())
    );
    for line in [
        "create e1000 nic1 --colour red",
        "create e1000 nic1 --queues many",
        "create e1000 nic1 --set colour=red",
        "create e1000 nic1 --net.tap --net.null",
        "create e1000 nic1 --config []",
        "create e1000 nic1 --label a",
        "create --mac 52:54:00:12:34:56 e1000 nic1",
        "create",
    ] {
        assert_eq!(host.bad(line).await.0, 2, "{line}");
    }
    assert_eq!(host.fake.devices.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn update_sends_what_changes_and_names_it() {
    let host = Host::new();
    host.good("create e1000 nic0 --queues 2 --net.tap.ifname vfu0")
        .await;
    let sent = || host.fake.asked.lock().unwrap().update.take().unwrap();
    let text = host
        .good("update nic0 --set queues=3 --label a/b.c=d --unlabel e --etag now")
        .await;
    assert_eq!(text, "devices/nic0 updated\n");
    let request = sent();
    let mask = request.update_mask.unwrap().paths;
    assert_eq!(mask, ["labels.`a/b.c`", "labels.`e`", "spec.config.queues"]);
    let device = request.device.unwrap();
    assert_eq!((&*device.etag, &*device.labels["a/b.c"]), ("now", "d"));
    let config = from_struct(&device.spec.unwrap().config.unwrap());
    assert_eq!(config["queues"], 3);

    let text = host.good("update nic0 --unset queues --dry-run").await;
    assert_eq!(text, "devices/nic0 is valid; nothing was changed\n");
    let request = sent();
    assert!(request.validate_only);
    let config = from_struct(&request.device.unwrap().spec.unwrap().config.unwrap());
    assert_eq!(config, json!({"net": {"tap": {"ifname": "vfu0"}}}));
    let json = host.good("update nic0 --label a=b -o json").await;
    assert!(json.contains("\"devices/nic0\""), "{json}");
    assert_eq!(sent().device.unwrap().spec, None, "only labels");
}

#[tokio::test]
async fn update_says_what_is_wrong() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    assert_eq!(
        host.bad("update nic0 --set mac=x").await,
        (
            2,
            "vfuctl: device.spec.config.mac (--set mac): can't change".into()
        )
    );
    assert_eq!(
        host.bad("update nic0 --set net.stream.mode=both").await.1,
        "vfuctl: --set net.stream.mode=both: `both` is not one of connect, listen"
    );
    for (line, code) in [
        ("update nic0", 2),
        ("update", 2),
        ("update nic0 --set queues=many", 2),
        ("update nic0 --set colour=red", 2),
        ("update nic0 --unset colour", 2),
        ("update nic0 --label a", 2),
        ("update nic0 --label a=b --unlabel a", 2),
        ("update nic9 --set queues=1", 3),
        ("update nic9 --label a=b", 3),
        ("update nic0 --label a=b --etag then", 4),
    ] {
        assert_eq!(host.bad(line).await.0, code, "{line}");
    }
}

#[tokio::test]
async fn help_of_create_lists_the_models_flags() {
    let host = Host::new();
    let (code, text) = host.bad("create e1000 --help").await;
    assert_eq!(code, 0);
    for word in [
        "Configuration of e1000:",
        "--net.tap.ifname <STRING>",
        "--validate-only",
        "Examples:",
    ] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[tokio::test]
async fn help_of_create_works_without_an_agent() {
    let words = [
        "vfuctl",
        "create",
        "e1000",
        "--help",
        "--endpoint",
        "unix:///nonexistent.sock",
    ];
    let words = words.map(OsString::from);
    let error = run_words(&words).await.1.unwrap_err();
    assert_eq!(error.exit_code(), 0);
    let text = error.to_string();
    for word in [
        "flags of model e1000 are not shown",
        "/nonexistent.sock does not exist",
        "--endpoint",
        "--set",
    ] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[tokio::test]
async fn without_an_agent_commands_fail_with_the_cure() {
    let words = ["vfuctl", "list", "--endpoint", "unix:///nonexistent.sock"].map(OsString::from);
    let error = run_words(&words).await.1.unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.lines()[0].contains("start vfu-agent"));
}

#[tokio::test]
async fn get_and_list_print_devices() {
    let host = Host::new();
    for id in ["nic0", "nic1", "nic2"] {
        host.good(&format!("create e1000 {id} --label {id}=x"))
            .await;
    }
    let json: Value = serde_json::from_str(&host.good("get nic1 -o json").await).unwrap();
    assert_eq!(json["name"], "devices/nic1");
    let json: Value = serde_json::from_str(&host.good("get nic1 nic0 -o json").await).unwrap();
    assert_eq!(json["devices"][1]["name"], "devices/nic0");
    let names = "devices/nic0\ndevices/nic1\ndevices/nic2\n";
    assert_eq!(host.good("list -o name").await, names);
    assert_eq!(host.good("get -o name").await, names);
    assert!(
        host.good("get devices/nic0")
            .await
            .starts_with("NAME   MODEL   STATE")
    );
    assert!(
        host.good("list -o wide")
            .await
            .contains("/run/vfu/devices/nic2/vfio-user.sock")
    );

    let (text, result) = host.vfuctl("get nic0 nic9 nic2 -o name").await;
    assert_eq!(text, "devices/nic0\ndevices/nic2\n");
    assert_eq!(result.unwrap_err().exit_code(), 3);
}

#[tokio::test]
async fn delete_goes_on_after_a_failure() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    let (text, result) = host.vfuctl("delete nic8 nic0 nic9").await;
    assert_eq!(text, "devices/nic0 deleted\n");
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert_eq!(
        error.lines(),
        [
            "vfuctl: devices/nic8: no such device",
            "vfuctl: devices/nic9: no such device"
        ]
    );
    host.good("delete nic0 --allow-missing").await;
}

#[tokio::test]
async fn reset_models_version_and_cmdline_answer() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    assert_eq!(host.good("reset nic0").await, "devices/nic0 reset\n");
    assert!(host.good("models").await.contains("8086:100e"));
    assert!(host.good("models e1000").await.contains("net.tap.ifname"));
    assert_eq!(host.bad("models e1001").await.0, 3);
    assert_eq!(
        host.good("version").await,
        format!("vfuctl {}\nvfu-agent 9.9.9\n", env!("CARGO_PKG_VERSION"))
    );
    let argv: Value = serde_json::from_str(
        &host
            .good("cmdline nic0 --vmm cloud-hypervisor -o json")
            .await,
    )
    .unwrap();
    assert_eq!(
        argv,
        json!([
            "--memory",
            "size=512M,shared=on",
            "--user-device",
            "socket=/run/vfu/devices/nic0/vfio-user.sock"
        ])
    );
    assert_eq!(host.bad("cmdline nic9 --vmm qemu").await.0, 3);
}

#[tokio::test]
async fn version_is_told_without_an_agent() {
    let words = ["vfuctl", "version", "--endpoint", "/nonexistent.sock"].map(OsString::from);
    let (text, result) = run_words(&words).await;
    assert_eq!(result.unwrap_err().exit_code(), 7);
    assert!(text.starts_with("vfuctl "));
}

#[tokio::test]
async fn a_late_answer_is_not_waited_for() {
    let host = Host::new();
    let (code, text) = host.bad("create e1000 slow --timeout 0.2").await;
    assert_eq!(
        (code, text.as_str()),
        (
            8,
            "vfuctl: no answer from the agent within 0.2 s (see --timeout)"
        )
    );
}

#[tokio::test]
async fn what_is_not_an_agent_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 hello\r\n").await;
        }
    });
    let words = ["vfuctl", "list", "--endpoint", path.to_str().unwrap()].map(OsString::from);
    let error = run_words(&words).await.1.unwrap_err();
    assert_eq!(error.exit_code(), 7, "{error}");
    assert!(
        error.to_string().contains("no vfu agent listens there"),
        "{error}"
    );
}

#[tokio::test]
async fn restart_replaces_a_process_and_names_a_client() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    host.good("create e1000 nic1").await;
    let text = host.good("restart nic0 nic1").await;
    assert_eq!(text, "devices/nic0 restarted\ndevices/nic1 restarted\n");
    let text = host.good("restart nic0 --dry-run").await;
    assert_eq!(text, "devices/nic0 can be restarted; nothing was\n");
    let uuid = "3fa85f64-5717-4562-b3fc-2c963f66afa6";
    let line = format!("restart nic0 --force --etag now --request-id {uuid} -o json");
    let json: Value = serde_json::from_str(&host.good(&line).await).unwrap();
    assert_eq!(json["name"], "devices/nic0");
    let request = host.fake.asked.lock().unwrap().restart.take().unwrap();
    assert!(request.force && !request.validate_only);
    assert_eq!((&*request.etag, &*request.request_id), ("now", uuid));

    host.state("nic0", device_status::State::Connected);
    let (code, text) = host.bad("restart nic0").await;
    assert_eq!(code, 5);
    assert!(text.contains("--force"), "{text}");
    assert_eq!(host.bad("restart nic9").await.0, 3);
    assert_eq!(host.bad("restart").await.0, 2);
}

#[tokio::test]
async fn what_is_for_one_device_is_refused_for_two() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    for line in [
        "restart nic0 nic1 --etag now",
        "reset nic0 nic1 --request-id x",
        "delete nic0 nic1 --etag now --request-id x",
    ] {
        let (code, text) = host.bad(line).await;
        assert_eq!(code, 2, "{line}");
        assert!(text.contains("is for one device"), "{text}");
    }
    assert_eq!(host.fake.devices.lock().unwrap().len(), 1);
    host.good("reset nic0 --etag now --request-id x").await;
    let request = host.fake.asked.lock().unwrap().reset.take().unwrap();
    assert_eq!((&*request.etag, &*request.request_id), ("now", "x"));
    let text = host
        .good("delete nic0 --etag now --request-id x --force --dry-run")
        .await;
    assert_eq!(text, "devices/nic0 can be deleted; nothing was\n");
    let request = host.fake.asked.lock().unwrap().delete.take().unwrap();
    assert_eq!((&*request.etag, &*request.request_id), ("now", "x"));
    assert!(request.validate_only && request.force);
}

#[tokio::test]
async fn limits_socket_and_policy_are_sent_in_the_apis_units() {
    let host = Host::new();
    let limits = "--memory 64M --cpu 500m --open-files 256 --log-bytes 1Mi";
    let line = format!(
        "create e1000 nic0 {limits} --restart-policy on-failure --socket-gid 107 --socket-mode 660 --annotation a=b"
    );
    host.good(&line).await;
    let request = host.fake.asked.lock().unwrap().create.take().unwrap();
    let device = request.device.unwrap();
    assert_eq!(device.annotations["a"], "b");
    let spec = device.spec.unwrap();
    let all = ResourceLimits {
        memory_bytes: 64 << 20,
        cpu_millis: 500,
        open_files: 256,
        log_bytes: 1 << 20,
    };
    assert_eq!(spec.limits, Some(all));
    assert_eq!(spec.restart_policy(), RestartPolicy::OnFailure);
    let socket = spec.socket.unwrap();
    assert_eq!(
        (socket.uid, socket.gid, socket.mode),
        (None, Some(107), Some(0o660))
    );

    host.good("create e1000 nic1").await;
    let request = host.fake.asked.lock().unwrap().create.take().unwrap();
    let spec = request.device.unwrap().spec.unwrap();
    assert_eq!(
        (spec.limits, spec.socket, spec.restart_policy),
        (None, None, 0)
    );

    host.good(
        "update nic0 --memory none --cpu 2 --restart-policy never --unannotate a --set queues=3",
    )
    .await;
    let request = host.fake.asked.lock().unwrap().update.take().unwrap();
    assert_eq!(
        request.update_mask.unwrap().paths,
        [
            "annotations.`a`",
            "spec.restart_policy",
            "spec.limits.memory_bytes",
            "spec.limits.cpu_millis",
            "spec.config.queues"
        ]
    );
    let spec = request.device.unwrap().spec.unwrap();
    assert_eq!(spec.restart_policy(), RestartPolicy::Never);
    let limits = spec.limits.unwrap();
    assert_eq!((limits.memory_bytes, limits.cpu_millis), (0, 2000));
    for line in [
        "create e1000 nic2 --memory lots",
        "update nic0 --cpu 0",
        "update nic0 --annotation a",
    ] {
        assert_eq!(host.bad(line).await.0, 2, "{line}");
    }
}
