//! `vfuctl version`

use proto::v1::{Agent, GetAgentRequest};
use serde_json::json;

use crate::{
    args::Globals,
    client::Client,
    error::Error,
    output::{Format, Output, json},
};

/// Prints vfuctl's own version first: it is known even when there is no agent.
pub(crate) async fn run(globals: &Globals, output: &mut Output<'_>) -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    let agent = agent(globals).await;
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

async fn agent(globals: &Globals) -> Result<Agent, Error> {
    let client = Client::connect(&globals.endpoint, globals.timeout).await?;
    let request = client.request(GetAgentRequest::default());
    client.answer(client.agent().get_agent(request)).await
}
