//! `vfuctl version`

use proto::v1::Agent;
use serde_json::json;

use super::agent;
use crate::{
    client::Client,
    error::Error,
    output::{Format, Output, json},
};

/// Prints vfuctl's own version first: it is known even when there is no agent.
pub(crate) async fn run(
    client: Result<Client, Error>,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    let agent = ask(client).await;
    match output.format() {
        Format::Json | Format::Yaml => {
            let mut value = json!({"client": {"version": version}});
            if let Ok(agent) = &agent {
                value["agent"] = json("Agent", agent)?;
            }
            output.value(&value)?;
        }
        Format::Table | Format::Wide | Format::Name => {
            let mut text = format!("vfuctl {version}\n");
            if let Ok(agent) = &agent {
                text.push_str(&format!("vfu-agent {}\n", agent.version));
            }
            output.text(&text)?;
        }
    }
    agent.map(|_| ())
}

async fn ask(client: Result<Client, Error>) -> Result<Agent, Error> {
    agent::get(&client?).await
}
