//! Commands about the agent itself.

use serde_json::Value;

use super::Host;

#[tokio::test]
async fn the_agent_is_shown_drained_and_undrained() {
    let host = Host::new();
    let page = host.good("agent").await;
    assert!(page.starts_with("Version:         9.9.9\n"), "{page}");
    assert!(page.contains("New devices:     made\n"), "{page}");
    assert_eq!(host.good("agent -o name").await, "agent\n");

    let told = host.good("drain --reason reboot").await;
    assert_eq!(told, "agent drained: it makes no new devices\n");
    let page = host.good("agent").await;
    assert!(page.contains(": reboot; vfuctl undrain"), "{page}");
    let json: Value = serde_json::from_str(&host.good("drain -o json").await).unwrap();
    assert_eq!(json["drainTime"], "1970-01-01T00:00:00Z");
    let request = host.fake.asked.lock().unwrap().drain.take().unwrap();
    assert_eq!(request.reason, "");

    let told = host.good("undrain").await;
    assert_eq!(told, "agent undrained: it makes devices\n");
    let yaml = host.good("agent -o yaml").await;
    assert!(!yaml.contains("drainTime"), "{yaml}");
}

#[tokio::test]
async fn a_shut_down_says_what_is_left() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    let told = host.good("shutdown-devices --force --timeout 1.5").await;
    assert_eq!(told, "2 devices stopped\n");
    let request = host.fake.asked.lock().unwrap().shut_down.take().unwrap();
    assert!(request.force);
    let timeout = request.timeout.unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (1, 500_000_000));
    let table = host.good("list").await;
    assert!(table.contains("nic0   e1000   STOPPED"), "{table}");

    *host.fake.remaining.lock().unwrap() = vec!["devices/nic0".into()];
    let (text, result) = host.vfuctl("shutdown-devices -o json").await;
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["remaining"][0], "devices/nic0");
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 8);
    assert!(error.lines()[0].contains("within 30 s (see --timeout): devices/nic0"));
    assert!(
        !host
            .fake
            .asked
            .lock()
            .unwrap()
            .shut_down
            .take()
            .unwrap()
            .force
    );
}
