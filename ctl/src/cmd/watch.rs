//! `vfuctl watch`, and what `get` and `list` do with `--watch`.
//!
//! What was shown last of each device is kept here, so that a line is printed for a change and for nothing else: not for
//! what an agent sends again after a restart, and not for all devices when they have to be listed anew because the agent
//! does not know any more what has changed since the last version.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::v1::{Device, WatchDevicesRequest, WatchDevicesResponse, watch_devices_response::Type};
use tokio::time::Instant;
use tonic::Code;

use super::read;
use crate::{
    args::Watch,
    client::Client,
    error::Error,
    output::{Changes, Output},
};

/// An agent sends something every 15 s; one that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(45);

/// The first and the longest pause before the agent is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Shows what changes.
pub(crate) async fn run(
    args: Watch,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let mut watcher = Watcher::new(client);
    watcher.filter = args.filter;
    match args.resource_version {
        Some(version) => watcher.version = version,
        None => watcher.list(output).await?,
    }
    watcher.run(output).await
}

/// Shows the devices that `filter` chooses, and then what changes.
pub(super) async fn filter(
    filter: String,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let mut watcher = Watcher::new(client);
    watcher.filter = filter;
    watcher.list(output).await?;
    watcher.run(output).await
}

/// The same for the devices of these names; all, where there are none.
pub(super) async fn names(
    names: BTreeSet<String>,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    for name in &names {
        // The agent says best what is wrong with a name.
        read::one(client, name).await?;
    }
    let mut watcher = Watcher::new(client);
    watcher.names = names;
    watcher.list(output).await?;
    watcher.run(output).await
}

struct Watcher {
    client: Client,
    filter: String,
    /// Only these, unless there are none.
    names: BTreeSet<String>,
    /// After which version to go on.
    version: String,
    /// What was shown last.
    shown: BTreeMap<String, Device>,
    changes: Changes,
    /// Whether the devices have been listed, so that `shown` has all of them.
    listed: bool,
    /// Whether the agent has ever agreed to send changes.
    began: bool,
    /// Whether it has sent anything on the present stream.
    heard: bool,
    /// Until when an agent that has gone is waited for.
    until: Option<Instant>,
}

impl Watcher {
    fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            filter: String::new(),
            names: BTreeSet::new(),
            version: String::new(),
            shown: BTreeMap::new(),
            changes: Changes::default(),
            listed: false,
            began: false,
            heard: false,
            until: None,
        }
    }

    /// Follows the changes over all that can happen to the agent. Ends with an error only.
    async fn run(&mut self, output: &mut Output<'_>) -> Result<(), Error> {
        loop {
            self.heard = false;
            let Err(error) = self.follow(output).await else {
                // The agent ends a stream when it stops.
                self.back(None, output).await?;
                continue;
            };
            match error {
                Error::Refused { status, .. } if status.code() == Code::OutOfRange => {
                    output.note(&format!("{}; listing the devices again", status.message()));
                    self.list(output).await?;
                }
                Error::Refused { status, .. }
                    if self.heard && status.code() == Code::ResourceExhausted =>
                {
                    output.note(&format!("{}; going on from there", status.message()));
                }
                // A first call that fails is a failure of this command, unless the agent has answered another already.
                error if (self.began || self.listed) && is_loss(&error) => {
                    self.back(Some(error), output).await?
                }
                error => return Err(error),
            }
        }
    }

    /// Shows what the agent sends until it stops to.
    async fn follow(&mut self, output: &mut Output<'_>) -> Result<(), Error> {
        let request = WatchDevicesRequest {
            resource_version: self.version.clone(),
            filter: self.filter.clone(),
        };
        let mut devices = self.client.devices();
        let mut stream = self.client.answer(devices.watch_devices(request)).await?;
        self.began = true;
        while let Some(change) = self.client.next(&mut stream, Some(SILENCE)).await? {
            self.heard = true;
            self.until = None;
            self.version.clone_from(&change.resource_version);
            self.show(vec![change], output)?;
        }
        Ok(())
    }

    /// Waits until there is an agent to ask again. `lost` is why that has to be.
    async fn back(&mut self, lost: Option<Error>, output: &mut Output<'_>) -> Result<(), Error> {
        let why = lost.as_ref().map(Error::to_string);
        let why = why.as_deref().unwrap_or("the agent stops");
        output.note(&format!("{why}; waiting for the agent"));
        let timeout = self.client.timeout();
        // One that can be reached and does not serve is not back.
        let until = *self.until.get_or_insert_with(|| Instant::now() + timeout);
        let [mut pause, longest] = PAUSES;
        loop {
            tokio::time::sleep(pause).await;
            pause = longest.min(pause * 2);
            match self.client.again().await {
                Ok(client) if Instant::now() < until => {
                    self.client = client;
                    output.note("the agent is back");
                    return Ok(());
                }
                Ok(_) => return Err(lost.unwrap_or(Error::Late(timeout))),
                Err(error) if is_loss(&error) && Instant::now() < until => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Shows how the devices differ from those that were shown last.
    async fn list(&mut self, output: &mut Output<'_>) -> Result<(), Error> {
        let listed = read::all(&self.client, &self.filter).await?;
        let change = |kind: Type, device: Device| WatchDevicesResponse {
            r#type: kind.into(),
            resource_version: listed.resource_version.clone(),
            device: Some(device),
        };
        let present: BTreeSet<_> = listed.devices.iter().map(|it| it.name.clone()).collect();
        let gone = self.shown.values().filter(|it| !present.contains(&it.name));
        let mut changes: Vec<_> = gone
            .map(|device| change(Type::Deleted, device.clone()))
            .collect();
        for device in listed.devices {
            match self.shown.get(&device.name) {
                None => changes.push(change(Type::Added, device)),
                Some(before) if before.uid != device.uid => {
                    changes.push(change(Type::Deleted, before.clone()));
                    changes.push(change(Type::Added, device));
                }
                Some(_) => changes.push(change(Type::Modified, device)),
            }
        }
        self.version.clone_from(&listed.resource_version);
        self.listed = true;
        // Nothing to show is a head without lines, so that it is seen that there is nothing.
        self.show(changes, output)
    }

    /// Shows those changes that are asked for, and are some.
    fn show(
        &mut self,
        mut changes: Vec<WatchDevicesResponse>,
        output: &mut Output<'_>,
    ) -> Result<(), Error> {
        changes.retain(|change| {
            let Some(device) = &change.device else {
                return false;
            };
            if !self.names.is_empty() && !self.names.contains(&device.name) {
                return false;
            }
            match change.r#type() {
                Type::Deleted => self.shown.remove(&device.name).is_some() || !self.listed,
                _ => {
                    let before = self.shown.insert(device.name.clone(), device.clone());
                    before.as_ref() != Some(device)
                }
            }
        });
        output.changes(&mut self.changes, &changes)
    }
}

/// Whether an agent that is restarted explains `error`.
pub(super) fn is_loss(error: &Error) -> bool {
    match error {
        Error::Broken { .. } | Error::Late(_) => true,
        Error::Unreachable { source, .. } => source.kind() != std::io::ErrorKind::PermissionDenied,
        Error::Refused { status, .. } => {
            matches!(status.code(), Code::Unavailable | Code::Cancelled)
        }
        _ => false,
    }
}
