//! A client that is not written in Rust: Python, with the gRPC that C++, Ruby and others have, too. It knows the API by
//! reflection only. The scripts check; here is what they are run against.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Agent, Python, command::output, require};

const LIMIT: Duration = Duration::from_secs(120);

/// Runs a scenario of the orchestrator against an agent of its own.
fn scenario(name: &str) -> Result<()> {
    let agent = Agent::start()?;
    let python = Python::find()?.context("Python")?;
    let socket = agent.endpoint();
    let socket = socket.strip_prefix("unix://").context("a UNIX socket")?;
    let mut script = python.script("orchestrator.py");
    let output = output(script.args([socket, name]), LIMIT)?;
    ensure!(
        output.status.success(),
        "{name}: {}\n{}{}--- agent ---\n{}",
        output.status,
        output.stdout,
        output.stderr,
        agent.log()
    );
    agent.stop()
}

#[test]
fn python_creates_watches_and_deletes_a_device() -> Result<()> {
    require!(Python);
    scenario("life")
}

#[test]
fn python_lists_in_pages_and_by_filter() -> Result<()> {
    require!(Python);
    scenario("pages")
}

#[test]
fn python_reads_the_details_of_errors() -> Result<()> {
    require!(Python);
    scenario("errors")
}

#[test]
fn python_follows_a_log_to_the_end_of_its_device() -> Result<()> {
    require!(Python);
    scenario("logs")
}

#[test]
fn python_learns_the_api_by_reflection() -> Result<()> {
    require!(Python);
    scenario("reflection")
}

#[test]
fn python_has_to_name_the_authority_of_an_absolute_path() -> Result<()> {
    require!(Python);
    scenario("authority")
}
