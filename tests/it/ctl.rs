//! `vfuctl` against a real agent and real device processes: what it prints, how it ends, and that nothing is left of what
//! failed.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Agent, Image, Netns, agent::programs, command::wait_for, require};

const MAC: &str = "52:54:00:12:34:56";
const LIMIT: Duration = Duration::from_secs(10);

/// The parsed answer of a command with `-o json`.
fn json(agent: &Agent, args: &str) -> Result<Value> {
    Ok(serde_json::from_str(
        &agent.ctl_ok(&format!("{args} -o json"))?,
    )?)
}

/// Runs a command that has to fail, and checks its exit code and that standard error names each of `words`.
fn fails(agent: &Agent, args: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let output = agent.ctl(args)?;
    let told = format!("vfuctl {args:?}: {}\n{}", output.status, output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "not exit code {code}: {told}"
    );
    ensure!(
        output.stdout.is_empty(),
        "printed {}: {told}",
        output.stdout
    );
    for word in words {
        ensure!(output.stderr.contains(word), "no `{word}`: {told}");
    }
    Ok(())
}

/// Checks that the agent has these devices and nothing of any other.
fn only(agent: &Agent, ids: &[&str]) -> Result<()> {
    let names: String = ids.iter().map(|id| format!("devices/{id}\n")).collect();
    let listed = agent.ctl_ok("list -o name")?;
    ensure!(listed == names, "listed: {listed}");
    let mut folders = Vec::new();
    let devices = agent.device_dir("x");
    let devices = devices.parent().context("the folder of devices")?;
    for entry in fs::read_dir(devices).into_iter().flatten() {
        folders.push(entry?.file_name().to_string_lossy().into_owned());
    }
    folders.sort();
    ensure!(folders == ids, "folders: {folders:?}");
    let processes = agent.device_processes()?;
    ensure!(processes.len() == ids.len(), "processes: {processes:?}");
    Ok(())
}

/// An agent that `script` starts, a line of shell in which `$AGENT` is the real one and `$@` its flags: `--run-dir DIR
/// --state-dir DIR --listen URL`. The folder has to live as long as the agent.
fn agent_by(script: &str) -> Result<(Agent, TempDir)> {
    let real = programs()?;
    let dir = tempfile::tempdir()?;
    for program in ["vfuctl", "vfu-device"] {
        symlink(real.join(program), dir.path().join(program))?;
    }
    let path = dir.path().join("vfu-agent");
    let real = real.join("vfu-agent");
    fs::write(
        &path,
        format!("#!/bin/sh\nAGENT='{}'\n{script}\n", real.display()),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((Agent::start_from(dir.path())?, dir))
}

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
    assert_eq!(lines[0], ["NAME", "MODEL", "STATE", "CLIENT", "AGE"]);
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

#[test]
fn help_lists_the_flags_of_the_model() -> Result<()> {
    let agent = Agent::start()?;
    let help = agent.ctl_ok("create e1000 --help")?;
    for word in [
        "Configuration of e1000:",
        "--mac <STRING>",
        "--net.tap\n",
        "--net.tap.ifname <STRING>",
        "--net.tap.bridge <STRING>",
        "--net.tap.netns <STRING>",
        "--net.stream.path <STRING>",
        "[required with net.stream]",
        "- connect:",
        "--net.loopback",
        "--net.null",
        "--validate-only",
    ] {
        assert!(help.contains(word), "no `{word}` in\n{help}");
    }
    let models = agent.ctl_ok("models")?;
    assert!(models.contains("e1000   8086:100e   020000"), "{models}");
    let model = agent.ctl_ok("models e1000")?;
    assert!(model.contains("net.tap.ifname"), "{model}");
    let version = agent.ctl_ok("version")?;
    assert_eq!(version.lines().count(), 2, "{version}");
    Ok(())
}

#[test]
fn the_command_line_for_a_vmm_survives_a_shell() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    agent.ctl_ok("create e1000 nic1 --net.null")?;
    for vmm in ["qemu", "cloud-hypervisor"] {
        let command = format!("cmdline nic0 nic1 --memory 256M --vmm {vmm}");
        let argv = json(&agent, &command)?;
        let argv: Vec<String> = serde_json::from_value(argv)?;
        let text = agent.ctl_ok(&command)?;
        let output = Command::new("sh")
            .args(["-c", &format!("printf '%s\\0' {text}")])
            .output()?;
        let words = String::from_utf8(output.stdout)?;
        assert_eq!(
            words.split_terminator('\0').collect::<Vec<_>>(),
            argv,
            "{vmm}"
        );
        for id in ["nic0", "nic1"] {
            let socket = agent.device_socket(id);
            let socket = socket.to_str().context("UTF-8")?;
            assert!(argv.iter().any(|word| word.contains(socket)), "{argv:?}");
        }
    }
    let argv = json(&agent, "cmdline nic0 --vmm qemu")?;
    let device = argv
        .as_array()
        .and_then(|argv| argv.last()?.as_str())
        .context("-device")?;
    assert_eq!(
        serde_json::from_str::<Value>(device)?,
        json!({"driver": "vfio-user-pci", "socket": {"path": agent.device_socket("nic0"), "type": "unix"}})
    );
    Ok(())
}

#[test]
fn qemu_takes_the_command_line_and_shows_as_the_client() -> Result<()> {
    require!(Qemu);
    let image = Image::find()?.context("the image")?;
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let vmm = Command::new("sh")
        .arg("-c")
        .arg(r#"eval "exec $QEMU -nodefaults -no-user-config -display none -accel tcg $($VFUCTL cmdline nic0 --vmm qemu)""#)
        .env("QEMU", &image.qemu)
        .env("VFUCTL", programs()?.join("vfuctl"))
        .env("VFU_ENDPOINT", agent.endpoint())
        .stdin(Stdio::null())
        .spawn()?;
    let vmm = Vmm(vmm);
    let state = |state: &str| {
        wait_for(state, LIMIT, || {
            let device = json(&agent, "get nic0")?;
            Ok((device["status"]["state"] == state).then_some(device))
        })
    };
    let device = state("CONNECTED")?;
    let client = &device["status"]["client"];
    let program = client["executable"].as_str().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default();
    let shown = format!(" {program}({}) ", client["pid"]);
    let table = agent.ctl_ok("list")?;
    assert!(table.contains(&shown), "no `{shown}` in\n{table}");

    fails(&agent, &["delete", "nic0"], 5, &["nic0", "--force"])?;
    only(&agent, &["nic0"])?;
    drop(vmm);
    state("READY")?;
    agent.ctl_ok("delete nic0")?;
    only(&agent, &[])
}

/// A VMM that is killed when dropped.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bad_input_is_named_and_leaves_nothing() -> Result<()> {
    let agent = Agent::start()?;
    let long = format!("/{}", "x".repeat(107));
    let cases: [(&[&str], i32, &[&str]); 16] = [
        (&["create", "e1001", "nic0"], 3, &["e1001"]),
        // What vfuctl sees itself.
        (
            &["create", "e1000", "nic0", "--colour", "red"],
            2,
            &["--colour"],
        ),
        (
            &["create", "e1000", "nic0", "--set", "net.tap.ifnam=x"],
            2,
            &["did you mean net.tap.ifname?"],
        ),
        (
            &["create", "e1000", "nic0", "--net.tap", "--net.null"],
            2,
            &["--net.tap and --net.null exclude"],
        ),
        (
            &["create", "e1000", "nic0", "--net.stream.mode", "call"],
            2,
            &["--net.stream.mode", "connect"],
        ),
        // What the agent sees by the schema.
        (
            &["create", "e1000", "nic0", "--config", r#"{"colour":"red"}"#],
            2,
            &["colour"],
        ),
        (
            &["create", "e1000", "nic0", "--config", r#"{"mac":5}"#],
            2,
            &["device.spec.config.mac (--mac)"],
        ),
        (
            &["create", "e1000", "nic0", "--mac", "52:54:00"],
            2,
            &["device.spec.config.mac (--mac)"],
        ),
        (
            &["create", "e1000", "nic0", "--net.stream.mode", "listen"],
            2,
            &["net.stream", "path"],
        ),
        (
            &[
                "create",
                "e1000",
                "nic0",
                "--net.stream.mode",
                "listen",
                "--net.stream.path",
                &long,
            ],
            2,
            &["(--net.stream.path)", "107"],
        ),
        (&["create", "e1000", "Nic_0"], 2, &["device_id (ID)"]),
        (&["create", "e1000", "nic0", "--label=-=x"], 2, &["--label"]),
        // What the host can't give.
        (
            &[
                "create",
                "e1000",
                "nic0",
                "--net.tap.ifname",
                "vfu0",
                "--net.tap.netns",
                "/nonexistent/netns",
            ],
            5,
            &["/nonexistent/netns"],
        ),
        // What does not exist.
        (&["get", "nic0"], 3, &["nic0"]),
        (&["delete", "nic0", "nic1"], 3, &["nic0", "nic1"]),
        (&["cmdline", "nic0", "--vmm", "qemu"], 3, &["nic0"]),
    ];
    for (args, code, words) in cases {
        fails(&agent, args, code, words)?;
        only(&agent, &[]).with_context(|| format!("after {args:?}"))?;
    }
    agent.ctl_ok("delete nic0 --allow-missing")?;

    agent.ctl_ok("create e1000 nic0 --net.null")?;
    fails(
        &agent,
        &["create", "e1000", "nic0", "--net.loopback"],
        4,
        &["nic0"],
    )?;
    only(&agent, &["nic0"])?;
    let device = json(&agent, "get nic0")?;
    assert_eq!(device["spec"]["config"], json!({"net": {"null": {}}}));
    Ok(())
}

#[test]
fn a_busy_tap_is_named_and_leaves_nothing() -> Result<()> {
    require!(Tap);
    let netns = Netns::new()?;
    let agent = Agent::start()?;
    let tap = format!(
        "--net.tap.ifname vfu0 --net.tap.netns {}",
        netns.path().display()
    );
    agent.ctl_ok(&format!("create e1000 nic0 {tap}"))?;
    let second = format!("create e1000 nic1 {tap}");
    let args: Vec<_> = second.split(' ').collect();
    fails(&agent, &args, 5, &["vfu0", "(--net.tap.ifname)"])?;
    only(&agent, &["nic0"])?;
    agent.ctl_ok("delete nic0")?;
    only(&agent, &[])?;
    assert!(netns.ip("link show vfu0").is_err(), "the interface is left");
    Ok(())
}

#[test]
fn a_missing_permission_is_named_and_leaves_nothing() -> Result<()> {
    require!(Tap);
    // Root without the right to make interfaces.
    let (agent, _dir) = agent_by(r#"exec setpriv --bounding-set=-net_admin "$AGENT" "$@""#)?;
    let args = ["create", "e1000", "nic0", "--net.tap.ifname", "vfuperm0"];
    fails(&agent, &args, 5, &["vfuperm0", "CAP_NET_ADMIN"])?;
    only(&agent, &[])?;
    assert!(!Path::new("/sys/class/net/vfuperm0").exists());
    Ok(())
}

#[test]
fn a_missing_device_program_is_named() -> Result<()> {
    let (agent, _dir) = agent_by(r#"exec "$AGENT" --device-program /nonexistent/vfu-device "$@""#)?;
    for args in [&["create", "e1000", "nic0"][..], &["models"]] {
        fails(&agent, args, 5, &["/nonexistent/vfu-device"])?;
    }
    only(&agent, &[])
}

#[test]
fn a_socket_path_over_107_bytes_is_refused() -> Result<()> {
    let (agent, _dir) = agent_by(
        r#"exec "$AGENT" --run-dir "$2/of-a-quite-long-path" --state-dir "$4" --listen "$6""#,
    )?;
    let id = "a".repeat(63);
    fails(
        &agent,
        &["create", "e1000", &id, "--net.null"],
        2,
        &["107", "device_id (ID)"],
    )?;
    assert_eq!(agent.ctl_ok("list -o name")?, "");
    assert!(agent.device_processes()?.is_empty());
    let device = json(&agent, "create e1000 nic0 --net.null")?;
    assert_eq!(device["status"]["state"], "READY");
    Ok(())
}

#[test]
fn without_an_agent_the_socket_is_named() -> Result<()> {
    let agent = Agent::start()?;
    let elsewhere = ["--endpoint", "unix:///nonexistent/agent.sock"];
    let list = [&["list"], &elsewhere[..]].concat();
    fails(
        &agent,
        &list,
        7,
        &["/nonexistent/agent.sock does not exist", "start vfu-agent"],
    )?;
    let help = [&["create", "e1000", "--help"], &elsewhere[..]].concat();
    let output = agent.ctl(help)?;
    assert!(output.status.success());
    assert!(
        output.stdout.contains("flags of model e1000 are not shown"),
        "{}",
        output.stdout
    );
    let output = agent.ctl([&["version"], &elsewhere[..]].concat())?;
    assert_eq!(output.status.code(), Some(7));
    assert!(output.stdout.starts_with("vfuctl "), "{}", output.stdout);
    Ok(())
}

#[test]
fn a_reader_that_has_gone_is_no_failure() -> Result<()> {
    let agent = Agent::start()?;
    for args in [
        &["list"][..],
        &["models", "e1000", "-o", "json"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(programs()?.join("vfuctl"))
            .args(args)
            .env("VFU_ENDPOINT", agent.endpoint())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()?;
        assert!(output.status.success(), "{args:?}: {}", output.status);
        assert!(output.stderr.is_empty(), "{args:?}");
    }
    Ok(())
}
