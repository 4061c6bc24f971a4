//! `vfuctl get` and `vfuctl list`

use super::{
    device_name, outcome,
    read::{all, one},
    watch,
};
use crate::{
    args::{Get, List},
    client::Client,
    error::Error,
    output::Output,
};

/// Shows the devices that are named, or all.
pub(crate) async fn run(args: Get, client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    if args.watch {
        let names = args.ids.iter().map(|id| device_name(id)).collect();
        return watch::names(names, client, output).await;
    }
    if args.ids.is_empty() {
        return output.devices(&all(client, "").await?.devices);
    }
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for id in &args.ids {
        match one(client, &device_name(id)).await {
            Ok(device) => found.push(device),
            Err(error) => failures.push(error),
        }
    }
    match &found[..] {
        [] => {}
        // Who asks for one thing gets that thing, not a list of it.
        [only] if args.ids.len() == 1 => output.device(only)?,
        found => output.devices(found)?,
    }
    outcome(failures)
}

/// Shows all devices that the filter chooses.
pub(crate) async fn list(
    args: List,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    match args.watch {
        true => watch::filter(args.filter, client, output).await,
        false => output.devices(&all(client, &args.filter).await?.devices),
    }
}
