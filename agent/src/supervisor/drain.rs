//! A host that is taken out of service: the agent makes no new devices, or ends the processes of all.
//!
//! Both are durable before they have an effect, and an agent that dies in between goes on with them. A drain holds until
//! it is taken back; a shutdown until then, or until the host boots, because it is for a host that goes down.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::error::{Drained, Error};
use super::request::Request;
use super::view::Life;
use super::{Handle, Supervisor};
use crate::clock;
use crate::steps;
use crate::store::{self, Store};

/// What came of a shutdown.
#[derive(Debug, Default)]
pub(crate) struct ShutDown {
    /// How many devices were stopped.
    pub(crate) stopped: usize,
    /// The ids of those that were not, in time.
    pub(crate) remaining: Vec<String>,
}

/// Whether the agent is drained, and its devices shut down.
#[derive(Debug)]
pub(crate) struct Drain {
    store: Store,
    boot_id: String,
    now: watch::Sender<store::Drain>,
    /// Held by whoever changes it.
    changing: Mutex<()>,
}

impl Drain {
    pub(super) fn new(store: Store, now: store::Drain, boot_id: String) -> Self {
        Self {
            store,
            boot_id,
            now: watch::Sender::new(now),
            changing: Mutex::default(),
        }
    }

    /// Since when no devices are made, and why.
    pub(crate) fn drained(&self) -> Option<store::Drained> {
        self.now.borrow().drained.clone()
    }

    /// When the devices were shut down.
    pub(crate) fn shut_down_time(&self) -> Option<SystemTime> {
        let now = self.now.borrow();
        let shut_down = now.shut_down.as_ref();
        let shut_down = shut_down.filter(|it| it.boot_id == self.boot_id);
        shut_down.map(|it| it.time)
    }

    pub(super) fn is_shut_down(&self) -> bool {
        self.shut_down_time().is_some()
    }

    /// Whether devices are made.
    pub(super) fn check_creation(&self) -> Result<(), Error> {
        if self.is_shut_down() {
            return Err(Error::Drained(Drained::ShutDown));
        }
        match self.drained() {
            Some(drained) => Err(Error::Drained(Drained::Asked {
                reason: drained.reason,
            })),
            None => Ok(()),
        }
    }

    async fn change(
        &self,
        change: &'static str,
        make: impl FnOnce(&mut store::Drain),
    ) -> Result<(), Error> {
        let _changing = self.changing.lock().await;
        let mut now = self.now.borrow().clone();
        make(&mut now);
        if now == *self.now.borrow() {
            return Ok(());
        }
        let put = self.store.put_drain(&now).await;
        put.map_err(|source| Error::DrainNotDurable { change, source })?;
        steps::reached("drain.recorded");
        self.now.send_replace(now);
        Ok(())
    }
}

impl Supervisor {
    /// Makes no devices from now on.
    pub(crate) async fn drain(&self, reason: String) -> Result<(), Error> {
        let change = |now: &mut store::Drain| {
            let earlier = now.drained.as_ref().map(|it| it.time);
            let time = earlier.unwrap_or_else(clock::now);
            now.drained = Some(store::Drained { time, reason });
        };
        self.change_drain("makes no devices", change).await?;
        info!("drained: no devices are made");
        Ok(())
    }

    /// Makes devices again, and starts those that were shut down.
    pub(crate) async fn undrain(&self) -> Result<(), Error> {
        let change = |now: &mut store::Drain| *now = store::Drain::default();
        self.change_drain("makes devices again", change).await?;
        info!("undrained: devices are made");
        Ok(())
    }

    /// Ends the processes of all devices, and waits for it until `timeout` is over.
    pub(crate) async fn shut_down(
        &self,
        force: bool,
        timeout: Duration,
    ) -> Result<ShutDown, Error> {
        let deadline = Instant::now() + timeout;
        if !force {
            self.check_unused()?;
        }
        let shut_down = store::ShutDown {
            time: clock::now(),
            boot_id: self.shared.boot_id.clone(),
        };
        let is_shut_down = self.shared.drain.is_shut_down();
        let change = move |now: &mut store::Drain| {
            if !is_shut_down {
                now.shut_down = Some(shut_down);
            }
        };
        let running = self.change_drain("shuts its devices down", change).await?;
        info!("devices are shut down");

        let mut came = ShutDown::default();
        for mut handle in running {
            let id = handle.device.borrow().record.id.clone();
            let at_rest = handle.device.wait_for(|device| {
                let life = device.view.life;
                device.view.pid.is_none() && matches!(life, Life::Stopped | Life::Failed)
            });
            match timeout_at(deadline, at_rest).await {
                Ok(Ok(_)) => came.stopped += 1,
                // It was deleted meanwhile.
                Ok(Err(_)) => {}
                Err(_) => came.remaining.push(id),
            }
        }
        Ok(came)
    }

    fn check_unused(&self) -> Result<(), Error> {
        let devices = self.shared.devices();
        let connected = devices.values().filter_map(|handle| {
            let device = handle.device.borrow();
            (device.view.life == Life::Connected).then(|| device.record.id.clone())
        });
        let connected: Vec<_> = connected.collect();
        match connected.is_empty() {
            true => Ok(()),
            false => Err(Error::InUse { connected }),
        }
    }

    /// Makes a change durable and has all devices look at it, to the end, also when who asked for it goes away meanwhile.
    /// Returns those that have a process, or are about to, as soon as the change is made.
    async fn change_drain(
        &self,
        what: &'static str,
        change: impl FnOnce(&mut store::Drain) + Send + 'static,
    ) -> Result<Vec<Handle>, Error> {
        let (reply, answer) = oneshot::channel();
        let shared = self.shared.clone();
        self.attach(async move {
            let changed = shared.drain.change(what, change).await;
            let is_changed = changed.is_ok();
            let handles: Vec<_> = shared.devices().values().cloned().collect();
            // What waits for its start may come to run before it looks.
            let runs = |handle: &&Handle| {
                let view = &handle.device.borrow().view;
                view.pid.is_some() || view.life == Life::Starting
            };
            let running = handles.iter().filter(runs).cloned().collect();
            // A caller that went away does not want the answer.
            let _ = reply.send(changed.map(|()| running));
            if is_changed {
                // A busy device keeps no other from it; one that is gone needs none.
                let told = handles.iter();
                join_all(told.map(|it| it.requests.send(Request::LookAtDrain))).await;
            }
        });
        // The task ends early with the agent only.
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::config::{CgroupPath, Config, Live};
    use crate::models::Models;

    #[tokio::test]
    async fn a_drain_whose_caller_goes_away_is_as_durable_as_it_is_true() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            run_dir: directory.path().join("run"),
            state_dir: directory.path().join("state"),
            ..Config::default()
        };
        config.cgroup.path = CgroupPath::Off;
        let (_shutdown, stopping) = watch::channel(false);
        let store = Store::open(&config.state_dir).unwrap();
        let live = Live::fixed(config);
        let models = Models::new(None, Vec::new());
        let boot_id = "boot".to_owned();
        let encode = crate::rpc::encode;
        let supervisor = Supervisor::start(live, store, models, boot_id, encode, stopping);
        let gone = supervisor.drain("disks".to_owned()).now_or_never();
        assert!(gone.is_none(), "it waits for the disk");
        let mut now = supervisor.shared.drain.now.subscribe();
        let drained = async { now.wait_for(|it| it.drained.is_some()).await.is_ok() };
        let drained = tokio::time::timeout(Duration::from_secs(10), drained).await;
        assert!(drained.is_ok(), "the store says so, and the agent does not");
        supervisor.undrain().await.unwrap();
        assert_eq!(supervisor.shared.drain.drained(), None);
    }
}
