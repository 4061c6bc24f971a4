//! Help, and what is no fault of a device.

use std::process::{Command, Stdio};

use anyhow::Result;
use tests::{Agent, agent::programs};

use super::fails;

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
