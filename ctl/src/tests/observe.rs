//! Commands that show what goes on.

use prost_types::Timestamp;
use proto::v1::{Stat, WatchStatsResponse, stat::Kind};
use serde_json::Value;

use super::Host;

#[tokio::test]
async fn logs_are_lines() {
    let host = Host::new();
    host.good("create e1000 nic0").await;
    let text = host
        .good("logs nic0 -f --tail 5 --since 1970-01-01T00:00:07Z")
        .await;
    assert_eq!(text, "one\ntwo\u{fffd}\nthree\n");
    let request = host.fake.asked.lock().unwrap().logs.take().unwrap();
    assert!(request.follow);
    assert_eq!(request.tail_lines, Some(5));
    assert_eq!(request.since.unwrap().seconds, 7);
    host.good("logs nic0").await;
    let request = host.fake.asked.lock().unwrap().logs.take().unwrap();
    assert_eq!(
        (request.follow, request.tail_lines, request.since),
        (false, None, None)
    );

    let text = host.good("logs nic0 -o json").await;
    let second: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    assert_eq!(second["text"], "two\u{7}");
    assert_eq!(host.bad("logs nic9").await.0, 3);
    for line in ["logs", "logs nic0 --tail -1", "logs nic0 --since never"] {
        assert_eq!(host.bad(line).await.0, 2, "{line}");
    }
}

#[tokio::test]
async fn events_come_in_pages_up_to_a_limit() {
    let host = Host::new();
    let names = host.good("events -o name").await;
    assert_eq!(names.lines().count(), 5);
    let table = host.good("events nic0 --filter a=b --limit 3").await;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("PROCESS_EXITED   nic2     1"), "{table}");
    let request = host.fake.asked.lock().unwrap().events.take().unwrap();
    assert_eq!(
        (&*request.parent, &*request.filter),
        ("devices/nic0", "a=b")
    );
    let json: Value = serde_json::from_str(&host.good("events -o json --limit 1").await).unwrap();
    assert_eq!(json["events"][0]["severity"], "WARNING");
    let request = host.fake.asked.lock().unwrap().events.take().unwrap();
    assert_eq!(request.parent, "devices/-");
    assert_eq!(host.good("events --limit 0 -o name").await, "");
}

fn counters(id: &str, seconds: i64, value: u64) -> Result<WatchStatsResponse, tonic::Status> {
    let stat = |name: &str, value| Stat {
        name: name.into(),
        kind: Kind::Counter.into(),
        unit: "{access}".into(),
        value,
    };
    Ok(WatchStatsResponse {
        name: format!("devices/{id}"),
        time: Some(Timestamp { seconds, nanos: 0 }),
        stats: vec![stat("region.reads", value), stat("dma.errors", 0)],
        ..WatchStatsResponse::default()
    })
}

#[tokio::test]
async fn stats_have_rates() {
    let host = Host::new();
    let script = vec![
        counters("nic0", 0, 100),
        counters("nic1", 0, 7),
        counters("nic0", 2, 200),
        counters("nic1", 2, 7),
        counters("nic0", 4, 200),
    ];
    *host.fake.counters.lock().unwrap() = script;
    assert_eq!(
        host.good("stats --interval 2s").await,
        "\
DEVICE   COUNTER        VALUE   UNIT       PER SECOND
nic0     region.reads   200     {access}   50.0
nic1     region.reads   7       {access}   0
"
    );
    let request = host.fake.asked.lock().unwrap().stats.take().unwrap();
    assert_eq!(request.name, "devices/-");
    assert_eq!(request.interval.unwrap().seconds, 2);
    let watched = host.good("stats --watch --all").await;
    assert_eq!(watched.matches("DEVICE").count(), 3, "{watched}");
    assert!(
        watched.contains("nic0     dma.errors     0       {access}   0\n"),
        "{watched}"
    );

    let json: Value = serde_json::from_str(&host.good("stats -o json").await).unwrap();
    assert_eq!(json["stats"][1]["name"], "devices/nic1");
    let lines = host.good("stats --watch -o json").await;
    assert_eq!(lines.lines().count(), 5);
    *host.fake.counters.lock().unwrap() = vec![counters("nic0", 0, 1)];
    let json: Value = serde_json::from_str(&host.good("stats nic0 -o json").await).unwrap();
    assert_eq!(
        json["stats"][0]["value"], "1",
        "one device is no list: {json}"
    );
    let table = host.good("stats nic0").await;
    assert!(table.ends_with("1       {access}   <none>\n"), "{table}");
    assert_eq!(host.bad("stats --interval 5").await.0, 2);
}

#[tokio::test]
async fn without_counters_there_is_only_a_head() {
    let host = Host::new();
    let head = "DEVICE   COUNTER   VALUE   UNIT   PER SECOND\n";
    assert_eq!(host.good("stats").await, head);
    assert_eq!(host.good("stats --watch").await, head);
    let json: Value = serde_json::from_str(&host.good("stats -o json").await).unwrap();
    assert_eq!(json["stats"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn completion_needs_no_agent() {
    let words = [
        "vfuctl",
        "completion",
        "bash",
        "--endpoint",
        "/nonexistent.sock",
    ];
    let (script, result) = super::run_words(&words.map(Into::into)).await;
    result.unwrap();
    assert!(script.contains("shutdown-devices"), "{script}");
}
