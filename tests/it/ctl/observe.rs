//! Logs, events and counters of real devices.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Agent, command::wait_for};

use super::{LIMIT, fails, json};

#[test]
fn the_log_of_a_device_is_shown() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    // The process has nothing to tell by itself: what it would have written is written here.
    let log = agent.device_dir("nic0").join("log");
    let mut text = std::fs::read_to_string(&log)?;
    text.push_str("one\ntwo\nthree\n");
    std::fs::write(&log, text)?;
    let all = agent.ctl_ok("logs nic0")?;
    ensure!(all.ends_with("one\ntwo\nthree\n"), "{all}");
    let last = agent.ctl_ok("logs nic0 --tail 2")?;
    ensure!(last == "two\nthree\n", "{last}");
    let line = agent.ctl_ok("logs nic0 --tail 1 -o json")?;
    let line: Value = serde_json::from_str(&line)?;
    ensure!(line["text"] == "three", "{line}");
    fails(&agent, &["logs", "nic9"], 3, &["nic9"])?;
    agent.stop()
}

#[test]
fn the_death_of_a_process_is_an_event() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let device = json(&agent, "get nic0")?;
    let pid = device["status"]["pid"].as_i64().context("pid")?;
    super::kill(pid.try_into()?)?;
    let events = wait_for("the event", LIMIT, || {
        let events = agent.ctl_ok("events nic0")?;
        Ok(events.contains("PROCESS_EXITED").then_some(events))
    })?;
    let line = events.lines().find(|it| it.contains("PROCESS_EXITED"));
    let line = line.context("the line")?;
    ensure!(
        line.contains("WARNING") && line.contains(" nic0 "),
        "{events}"
    );
    let filter = "severity=\"WARNING\"";
    let warnings = json(&agent, &format!("events --filter {filter}"))?;
    let warnings = warnings["events"].as_array().context("a list")?.clone();
    ensure!(
        !warnings.is_empty() && warnings.iter().all(|it| it["severity"] == "WARNING"),
        "{warnings:?}"
    );
    agent.stop()
}

#[test]
fn counters_have_rates() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let stats = json(&agent, "stats nic0")?;
    ensure!(stats["name"] == "devices/nic0", "{stats}");
    let names: Vec<_> = stats["stats"]
        .as_array()
        .context("counters")?
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    ensure!(!names.is_empty());
    let table = agent.ctl_ok("stats --all --interval 100ms")?;
    for name in names {
        ensure!(
            table.contains(&format!("nic0     {name} ")),
            "no {name} in\n{table}"
        );
    }
    ensure!(
        table.lines().any(|it| it.ends_with("   0")),
        "no rate in\n{table}"
    );
    fails(&agent, &["stats", "nic9"], 3, &["nic9"])?;
    fails(&agent, &["stats", "--interval", "1ms"], 2, &["interval"])?;
    agent.stop()
}
