//! `vfuctl wait`
//!
//! What is waited for is looked for in the device as it is, and then in each change of it. An agent that is restarted
//! meanwhile is waited for, and the device is looked at anew: nothing depends on having seen every change.

use std::time::Duration;

use proto::v1::{Device, WatchDevicesRequest};
use tokio::time::Instant;
use tonic::Code;

use super::{device_name, outcome, read, watch::is_loss};
use crate::{
    args::{Goal, Wait},
    client::Client,
    error::Error,
    output::{Output, situation},
};

/// The first and the longest pause before the agent is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// Waits for each device, for all of them no longer than the deadline.
pub(crate) async fn run(args: Wait, client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    let until = Instant::now() + client.timeout();
    let mut failures = Vec::new();
    for id in &args.ids {
        let mut wait = Waiting {
            client: client.clone(),
            name: device_name(id),
            goal: &args.goal,
            uid: None,
            last: "never seen".to_owned(),
        };
        let waited = match tokio::time::timeout_at(until, wait.end(output)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Unmet {
                device: wait.name.clone(),
                goal: args.goal.to_string(),
                last: wait.last.clone(),
                timeout: client.timeout(),
            }),
        };
        match waited {
            Ok(device) => {
                let what = match args.goal {
                    Goal::Deleted => "is deleted".to_owned(),
                    _ => format!("is {}", wait.last),
                };
                output.done(&wait.name, &what, device.as_ref())?;
            }
            Err(error) => failures.push(error),
        }
    }
    outcome(failures)
}

/// One device that is waited for.
struct Waiting<'a> {
    client: Client,
    name: String,
    goal: &'a Goal,
    /// Which device of that name it is, once it has been seen.
    uid: Option<String>,
    /// How it was when it was seen last.
    last: String,
}

impl Waiting<'_> {
    /// Waits without an end for the device to be as asked for. None: there is no device, as was asked for.
    async fn end(&mut self, output: &mut Output<'_>) -> Result<Option<Device>, Error> {
        let [first, longest] = PAUSES;
        let mut pause = first;
        let mut began = false;
        loop {
            let lost = match self.follow(&mut began).await {
                Ok(end) => return Ok(end),
                Err(Outcome::Again) => None,
                Err(Outcome::Failed(error)) if began && is_loss(&error) => Some(error),
                Err(Outcome::Failed(error)) => return Err(error),
            };
            if let Some(error) = lost {
                output.note(&format!("{error}; waiting for the agent"));
            }
            loop {
                tokio::time::sleep(pause).await;
                pause = longest.min(pause * 2);
                match self.client.again().await {
                    Ok(client) => {
                        self.client = client;
                        break;
                    }
                    Err(error) if is_loss(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Looks at the device, and at its changes while the agent sends them. `began` becomes true with its first answer.
    async fn follow(&mut self, began: &mut bool) -> Result<Option<Device>, Outcome> {
        let resource_version = read::version(&self.client).await?;
        *began = true;
        match read::one(&self.client, &self.name).await {
            Ok(device) if self.is_met(&device)? => return Ok(Some(device)),
            Ok(_) => {}
            Err(Error::Refused { status, flags }) if status.code() == Code::NotFound => {
                return match (self.goal, &self.uid) {
                    (Goal::Deleted, _) => Ok(None),
                    (_, None) => Err(Error::Refused { status, flags }.into()),
                    (_, Some(_)) => Err(self.deleted().into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
        let request = WatchDevicesRequest {
            resource_version,
            filter: String::new(),
        };
        let mut devices = self.client.devices();
        let mut stream = self.client.answer(devices.watch_devices(request)).await?;
        loop {
            let change = match self.client.next(&mut stream, None).await {
                Ok(Some(change)) => change,
                Ok(None) => return Err(Outcome::Again),
                // This program has fallen behind.
                Err(Error::Refused { status, .. }) if status.code() == Code::ResourceExhausted => {
                    return Err(Outcome::Again);
                }
                Err(error) => return Err(error.into()),
            };
            let kind = change.r#type();
            let Some(device) = change.device.filter(|it| it.name == self.name) else {
                continue;
            };
            if kind == proto::v1::watch_devices_response::Type::Deleted {
                return match self.goal {
                    Goal::Deleted => Ok(None),
                    _ => Err(self.deleted().into()),
                };
            }
            if self.is_met(&device)? {
                return Ok(Some(device));
            }
        }
    }

    /// Whether `device` is as asked for; an error if it is another one of that name.
    fn is_met(&mut self, device: &Device) -> Result<bool, Outcome> {
        let known = self.uid.get_or_insert_with(|| device.uid.clone());
        if *known != device.uid {
            return match self.goal {
                Goal::Deleted => Ok(true),
                _ => Err(self.deleted().into()),
            };
        }
        self.last = situation(device);
        Ok(self.goal.is_met(device))
    }

    fn deleted(&self) -> Error {
        let why = format!("{} was deleted, and is not {}", self.name, self.goal);
        tonic::Status::not_found(why).into()
    }
}

/// Why a look at the device came to no end.
enum Outcome {
    /// The agent sends no more changes, or has no more those from the version on that was asked for.
    Again,
    Failed(Error),
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused { status, .. } if status.code() == Code::OutOfRange => Self::Again,
            error => Self::Failed(error),
        }
    }
}
