//! Commands that make, change and delete devices.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::{Agent, command::wait_for};

use super::{LIMIT, MAC, fails, json, only};

#[test]
fn a_device_is_created_shown_and_deleted() -> Result<()> {
    let agent = Agent::start()?;
    let socket = agent.device_socket("nic0");
    let created = agent.ctl_ok(&format!(
        "create e1000 nic0 --mac {MAC} --net.loopback --label tenant=blue"
    ))?;
    assert_eq!(
        created,
        format!("devices/nic0 created, socket {}\n", socket.display())
    );
    let device = json(&agent, "get nic0")?;
    assert_eq!(device["name"], "devices/nic0");
    assert_eq!(device["labels"], json!({"tenant": "blue"}));
    assert_eq!(device["spec"]["model"], "e1000");
    assert_eq!(
        device["spec"]["config"],
        json!({"mac": MAC, "net": {"loopback": {}}})
    );
    assert_eq!(device["status"]["state"], "READY");
    assert_eq!(device["status"]["socketPath"], json!(socket));
    assert!(socket.exists());

    let yaml = agent.ctl_ok("get nic0 -o yaml")?;
    assert!(yaml.contains(&format!("    mac: \"{MAC}\"\n")), "{yaml}");
    assert!(yaml.contains("  state: READY\n"), "{yaml}");
    let table = agent.ctl_ok("list")?;
    let lines: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        ["NAME", "MODEL", "STATE", "ATTACHMENT", "CLIENT", "AGE"]
    );
    assert_eq!(lines[1][..4], ["nic0", "e1000", "READY", "<none>"]);
    let wide = agent.ctl_ok("list -o wide")?;
    let pid = device["status"]["pid"].to_string();
    for word in [
        socket.to_str().unwrap(),
        &pid,
        device["uid"].as_str().unwrap(),
    ] {
        assert!(wide.contains(word), "no {word} in\n{wide}");
    }
    only(&agent, &["nic0"])?;

    assert_eq!(agent.ctl_ok("reset nic0")?, "devices/nic0 reset\n");
    // A process tells its counters now and then, not with each reset.
    wait_for("the reset to be counted", LIMIT, || {
        let device = json(&agent, "get nic0")?;
        Ok((device["status"]["resets"]["api"] == "1").then_some(()))
    })?;

    assert_eq!(agent.ctl_ok("delete nic0")?, "devices/nic0 deleted\n");
    only(&agent, &[])?;
    agent.stop()
}

#[test]
fn set_and_files_mean_the_same_as_flags() -> Result<()> {
    let agent = Agent::start()?;
    let file = agent.dir().join("nic.json");
    fs::write(&file, json!({"mac": MAC, "net": {"null": {}}}).to_string())?;
    agent.ctl_ok(&format!("create e1000 flags --mac {MAC} --net.loopback"))?;
    agent.ctl_ok(&format!(
        "create e1000 sets --set mac={MAC} --set net.loopback"
    ))?;
    agent.ctl_ok(&format!(
        "create e1000 file --config @{} --net.loopback",
        file.display()
    ))?;
    for id in ["flags", "sets", "file"] {
        let device = json(&agent, &format!("get {id}"))?;
        assert_eq!(
            device["spec"]["config"],
            json!({"mac": MAC, "net": {"loopback": {}}}),
            "{id}"
        );
    }
    let listed = json(&agent, "list")?;
    assert_eq!(listed["devices"].as_array().map(Vec::len), Some(3));
    only(&agent, &["file", "flags", "sets"])?;
    let answer = agent.ctl_ok("create e1000 nic0 --net.null --validate-only")?;
    assert_eq!(answer, "devices/nic0 is valid; nothing was created\n");
    agent.ctl_ok("delete file flags sets")?;
    only(&agent, &[])
}

#[test]
fn a_living_device_is_updated_by_name_of_field() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --link down")?;
    let config =
        |agent: &Agent| -> Result<Value> { Ok(json(agent, "get nic0")?["spec"]["config"].clone()) };
    ensure!(config(&agent)? == json!({"link": "down"}));
    let told = agent.ctl_ok("update nic0 --set link=up --label tenant=blue")?;
    ensure!(told == "devices/nic0 updated\n", "{told}");
    let device = json(&agent, "get nic0")?;
    ensure!(
        device["spec"]["config"] == json!({"link": "up"}),
        "{device}"
    );
    ensure!(device["labels"] == json!({"tenant": "blue"}), "{device}");
    ensure!(device["generation"] == "2", "{device}");
    let told = agent.ctl_ok("update nic0 --unset link --dry-run")?;
    ensure!(told.contains("nothing was changed"), "{told}");
    ensure!(config(&agent)? == json!({"link": "up"}));
    agent.ctl_ok("update nic0 --unset link --unlabel tenant")?;
    ensure!(config(&agent)? == json!({}));

    let set = |field| ["update", "nic0", "--set", field];
    let words = ["device.spec.config.mac (--set mac)", "create it anew"];
    let mac = format!("mac={MAC}");
    fails(&agent, &set(&mac), 2, &words)?;
    let words = ["`left` is not one of up, down"];
    fails(&agent, &set("link=left"), 2, &words)?;
    fails(&agent, &set("lnk=up"), 2, &["did you mean link?"])?;
    fails(
        &agent,
        &["update", "nic9", "--set", "link=up"],
        3,
        &["nic9"],
    )?;
    let stale = ["update", "nic0", "--label", "a=b", "--etag", "x"];
    fails(&agent, &stale, 4, &["has changed"])?;
    fails(&agent, &["update", "nic0"], 2, &["--set"])?;
    let page = agent.ctl_ok("models e1000")?;
    let link = page.lines().find(|line| line.starts_with("link "));
    ensure!(link.is_some_and(|it| it.contains(" yes ")), "{page}");
    agent.ctl_ok("delete nic0")?;
    only(&agent, &[])?;
    agent.stop()
}
