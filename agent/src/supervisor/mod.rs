//! The set of devices: who asks for a device comes here, and what a device does is in its task.
//!
//! One task owns one device (`device.rs`), decides by a pure function (`state.rs`), takes requests
//! by mpsc and shows how it is by watch. The set knows each task by those two ends.

mod backoff;
mod birth;
mod cgroup;
mod child;
mod control;
mod device;
mod drain;
mod error;
mod fd;
mod find;
mod history;
mod leave;
mod log;
mod request;
mod reset;
mod restart;
mod rundir;
mod serve;
mod start;
mod state;
mod update;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::cgroup::Cgroups;
pub(crate) use self::control::RefusalKind;
use self::device::{Begin, Task};
use self::drain::Drain;
pub(crate) use self::error::{Error, StartError, chain};
pub(crate) use self::fd::watch as watch_fd;
use self::request::Request;
pub(crate) use self::request::Update;
use self::rundir::RunDir;
use self::update::UPDATE_TIMEOUT;
pub(crate) use self::view::{Configured, Life, View};
use crate::changes::Changes;
use crate::config::{Config, Live};
use crate::events::Events;
use crate::limits::{self, Limits};
use crate::models::Models;
use crate::rpc;
use crate::socket;
use crate::steps;
use crate::store::{Call, Contents, Record, Store};

/// How long a device process may take to answer a request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer than SIGTERM to SIGKILL a deletion may take.
const DELETE_SLACK: Duration = Duration::from_secs(5);
/// Device processes that may be starting at once, per processor, unless the configuration says how many.
const STARTS_PER_CPU: usize = 4;
/// Requests that wait for one device.
const QUEUE: usize = 16;

/// What all tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: Live,
    pub(crate) models: Models,
    pub(crate) boot_id: String,
    pub(crate) changes: Arc<Changes>,
    pub(crate) events: Events,
    pub(crate) cgroups: Cgroups,
    store: Store,
    pub(crate) drain: Drain,
    starts: Arc<Semaphore>,
    /// Device processes that may be starting at once.
    pub(crate) start_limit: usize,
    devices: Mutex<BTreeMap<String, Handle>>,
    /// Ids of devices whose records can't be read. Nothing of them is touched.
    unreadable: BTreeSet<String>,
}

impl Shared {
    /// The configuration as it is now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    /// What is wrong with the configuration as it was last read again.
    pub(crate) fn config_error(&self) -> Option<Arc<str>> {
        self.config.error()
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.devices.lock().expect("no holder panics")
    }

    /// The path of a device's vfio-user socket.
    pub(crate) fn socket_path(&self, id: &str) -> String {
        self.dir(id).socket().display().to_string()
    }

    /// The file in which a device's process keeps its counters.
    pub(crate) fn stats_path(&self, id: &str) -> PathBuf {
        self.dir(id).stats()
    }

    /// Shows how a device is to all who list and watch. Nothing may take that back, not even a crash.
    fn show(&self, device: Device) {
        let record = device.record.clone();
        let message = rpc::encode(device, self.socket_path(&record.id));
        self.changes.publish(&record.id, &record.uid, message);
    }

    /// The path of a device's log.
    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.dir(id).log()
    }

    fn dir(&self, id: &str) -> RunDir {
        RunDir::new(&self.config().devices_dir(), id)
    }
}

/// The two ends of a task.
#[derive(Debug, Clone)]
struct Handle {
    requests: mpsc::Sender<Request>,
    device: watch::Receiver<Device>,
}

impl Handle {
    fn device(&self) -> Device {
        self.device.borrow().clone()
    }
}

/// A device as it is now.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) record: Arc<Record>,
    pub(crate) view: View,
}

impl Device {
    /// The device as an update would make it; what the update makes up is as it was.
    pub(crate) fn planned(self, update: &Update) -> Result<Self, Error> {
        let planned = update.plan(&self.record)?;
        let record = Record {
            etag: self.record.etag.clone(),
            update_time: self.record.update_time,
            ..planned
        };
        let record = Arc::new(record);
        Ok(Self { record, ..self })
    }
}

impl Record {
    /// Whether `etag`, when there is one, is the device's.
    pub(crate) fn check_etag(&self, etag: &str) -> Result<(), Error> {
        if etag.is_empty() || etag == self.etag {
            return Ok(());
        }
        Err(Error::Etag {
            id: self.id.clone(),
            given: etag.to_owned(),
            current: self.etag.clone(),
        })
    }
}

/// All devices of this host.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
    pub(crate) shutdown: watch::Receiver<bool>,
}

impl Supervisor {
    /// Finds the devices of the agent before this one, or starts them anew, all at once.
    pub(crate) fn start(
        config: Live,
        (store, contents): (Store, Contents),
        models: Models,
        boot_id: String,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let Contents {
            records,
            unreadable,
            drain,
        } = contents;
        for (id, error) in &unreadable {
            tracing::error!(id, %error, "record can't be read: the device is left as it is");
        }
        let drain = Drain::new(store.clone(), drain, boot_id.clone());
        let settings = config.get();
        let kept = settings.limits.watch_changes as usize;
        let changes = Changes::open(&settings.changes_dir(), &boot_id, kept);
        let uids: HashMap<_, _> = records.iter().map(|it| (&*it.id, &*it.uid)).collect();
        changes.retain(|it| uids.get(&*it.id) == Some(&&*it.uid));
        let starting = settings.limits.starting.map_or_else(
            || {
                let cpus = std::thread::available_parallelism();
                STARTS_PER_CPU * cpus.map_or(1, std::num::NonZero::get)
            },
            |it| it as usize,
        );
        let cgroups = Cgroups::find(&settings.cgroup.path, &settings.run_dir);
        if !cgroups.error().is_empty() {
            tracing::warn!("{}", cgroups.error());
        }
        let shared = Arc::new(Shared {
            cgroups,
            config,
            models,
            boot_id,
            changes: Arc::new(changes),
            events: Events::open(&settings.state_dir),
            store,
            drain,
            starts: Arc::new(Semaphore::new(starting)),
            start_limit: starting,
            devices: Mutex::default(),
            unreadable: unreadable.into_iter().map(|(id, _)| id).collect(),
        });
        let supervisor = Self {
            shared,
            tasks: Mutex::default(),
            shutdown,
        };
        supervisor.sweep(&records);
        supervisor.attach(log::keep(
            supervisor.shared.clone(),
            supervisor.shutdown.clone(),
        ));
        for record in records {
            let mut devices = supervisor.shared.devices();
            supervisor.launch(&mut devices, record, Begin::Find);
        }
        supervisor
    }

    /// Removes the directories of devices that have no record and no process.
    fn sweep(&self, records: &[Record]) {
        let is_known = |id: &str| records.iter().any(|record| record.id == id);
        self.shared.cgroups.sweep(is_known);
        let Ok(entries) = std::fs::read_dir(self.shared.config().devices_dir()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str() else { continue };
            let known = self.shared.unreadable.contains(id);
            if known || records.iter().any(|record| record.id == id) {
                continue;
            }
            let dir = self.shared.dir(id);
            if dir.is_served() {
                tracing::warn!(
                    path = %dir.path().display(),
                    "left alone: a process serves a device that no record knows"
                );
            } else if let Err(error) = dir.remove() {
                tracing::warn!(path = %dir.path().display(), %error, "remove stale directory");
            } else {
                steps::reached("sweep.removed");
            }
        }
    }

    fn launch(
        &self,
        devices: &mut BTreeMap<String, Handle>,
        record: Record,
        begin: Begin,
    ) -> Handle {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let id = record.id.clone();
        let (task, device) = Task::new(self.shared.clone(), Arc::new(record), begin, inbox);
        let handle = Handle { requests, device };
        // What was shown of it before is true until its task knows better.
        let Device { record, .. } = handle.device();
        if begin == Begin::Find && !self.shared.changes.has(&record.id, &record.uid) {
            self.shared.show(handle.device());
        }
        devices.insert(id, handle.clone());
        self.attach(task.run(begin, self.shutdown.clone()));
        handle
    }

    /// Runs a task that ends with the agent at the latest.
    fn attach(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("no holder panics");
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "task");
            }
        }
        tasks.spawn(task);
    }

    /// Whether this device could be made: its path fits, and nobody has its id.
    pub(crate) fn check(&self, record: &Record) -> Result<(), Error> {
        let devices = self.shared.devices();
        match repeated(&devices, record)? {
            Some(_) => Ok(()),
            None => self.check_free(&devices, &record.id),
        }
    }

    /// Whether this host can hold a device to its limits.
    pub(crate) fn check_limits(&self, limits: &Limits) -> Result<(), Error> {
        let most = limits::open_files_of_agent();
        if let Some(files) = limits.open_files.filter(|it| u64::from(*it) > most) {
            let why = format!(
                "{files} is more than the {most} that the agent itself may have; ask for less, or raise LimitNOFILE= of \
                 its service"
            );
            let limit = "open_files";
            return Err(Error::Unenforceable { limit, why });
        }
        let cpu = limits
            .cpu_millis
            .map_or(Ok(()), |_| self.shared.cgroups.check_cpu());
        let limit = "cpu_millis";
        cpu.map_err(|why| Error::Unenforceable { limit, why })
    }

    fn check_free(&self, devices: &BTreeMap<String, Handle>, id: &str) -> Result<(), Error> {
        let dir = self.shared.dir(id);
        for path in [dir.socket(), dir.control()] {
            socket::check_path(&path).map_err(Error::Path)?;
        }
        if devices.contains_key(id) {
            let id = id.to_owned();
            return Err(Error::Exists { id });
        }
        if self.shared.unreadable.contains(id) {
            let id = id.to_owned();
            return Err(Error::Unreadable { id });
        }
        // Under the lock of the devices: a shutdown that comes later finds the device among them.
        self.shared.drain.check_creation()?;
        let limit = self.shared.config().limits.devices;
        if devices.len() >= limit as usize {
            return Err(Error::Full { limit });
        }
        if dir.path().exists() && dir.is_served() {
            return Err(Error::Orphan {
                id: id.to_owned(),
                path: dir.path().to_owned(),
            });
        }
        Ok(())
    }

    /// Makes a device and waits until it is ready. Goes on when the caller does not wait any more;
    /// who calls again with the same request id gets the same device.
    pub(crate) async fn create(&self, record: Record) -> Result<Device, Error> {
        let handle = {
            let mut devices = self.shared.devices();
            match repeated(&devices, &record)? {
                Some(handle) => handle,
                None => {
                    self.check_free(&devices, &record.id)?;
                    steps::reached("create.checked");
                    self.launch(&mut devices, record, Begin::Create)
                }
            }
        };
        settled(handle).await
    }

    /// The device of this id.
    pub(crate) fn get(&self, id: &str) -> Result<Device, Error> {
        self.handle(id).map(|it| it.device())
    }

    /// How this device is from now on. Its end is that of the device, or of the agent.
    pub(crate) fn follow(&self, id: &str) -> Result<watch::Receiver<Device>, Error> {
        self.handle(id).map(|it| it.device)
    }

    fn handle(&self, id: &str) -> Result<Handle, Error> {
        self.shared
            .devices()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::Missing { id: id.to_owned() })
    }

    /// At most `count` devices after the id `after`, and whether there are more.
    pub(crate) fn list(&self, after: Option<&str>, count: usize) -> (Vec<Device>, bool) {
        let devices = self.shared.devices();
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = devices.range::<str, _>((after, Bound::Unbounded));
        let page = rest.by_ref().take(count).map(|(_, it)| it.device());
        let page = page.collect();
        (page, rest.next().is_some())
    }

    /// How many devices are in which state.
    pub(crate) fn count(&self, life: Life) -> usize {
        let devices = self.shared.devices();
        devices
            .values()
            .filter(|it| it.device.borrow().view.life == life)
            .count()
    }

    /// Takes a device down and waits until nothing is left of it.
    pub(crate) async fn delete(
        &self,
        id: &str,
        etag: String,
        force: bool,
        call: Option<Call>,
    ) -> Result<(), Error> {
        // Before the device is looked for: there may be another one of that name.
        if self.has_deleted(id, call.as_ref())? {
            return Ok(());
        }
        let patience = self.shared.config().timeouts.stop + DELETE_SLACK;
        let request = |reply| Request::Delete {
            etag,
            force,
            call,
            reply,
        };
        self.ask(id, patience, request).await
    }

    /// Whether this call has deleted a device already.
    pub(crate) fn has_deleted(&self, id: &str, call: Option<&Call>) -> Result<bool, Error> {
        let Some(call) = call else {
            return Ok(false);
        };
        let deleted = self.shared.store.has_deleted(call);
        deleted.map_err(|()| Error::RequestReused {
            request_id: call.request_id.clone(),
            id: id.to_owned(),
        })
    }

    /// Replaces a device's process, and waits until the new one serves.
    pub(crate) async fn restart(
        &self,
        id: &str,
        etag: String,
        force: bool,
        call: Option<Call>,
    ) -> Result<Device, Error> {
        let config = self.shared.config();
        let patience = config.timeouts.stop + config.timeouts.start + DELETE_SLACK;
        self.ask(id, patience, |reply| Request::Restart {
            etag,
            force,
            call,
            reply,
        })
        .await?;
        self.get(id)
    }

    /// Whether a device could be restarted now, as far as can be seen without asking its process.
    pub(crate) fn check_restart(&self, id: &str, etag: &str, force: bool) -> Result<Device, Error> {
        let device = self.get(id)?;
        device.record.check_etag(etag)?;
        let id = id.to_owned();
        match device.view.life {
            Life::Deleting | Life::Gone => return Err(Error::Deleting { id }),
            Life::Stopped => return Err(Error::ShutDown { id }),
            Life::Starting | Life::Ready | Life::Connected | Life::Failed => {}
        }
        device.view.check_use(&id, force)?;
        Ok(device)
    }

    /// Resets a device's model.
    pub(crate) async fn reset(
        &self,
        id: &str,
        etag: String,
        call: Option<Call>,
    ) -> Result<Device, Error> {
        self.ask(id, REPLY_TIMEOUT, |reply| Request::Reset {
            etag,
            call,
            reply,
        })
        .await?;
        self.get(id)
    }

    /// Changes a device. Goes on when the caller does not wait any more.
    pub(crate) async fn update(&self, id: &str, update: Update) -> Result<Device, Error> {
        let update = Box::new(update);
        let patience = REPLY_TIMEOUT + UPDATE_TIMEOUT;
        self.ask(id, patience, |reply| Request::Update { update, reply })
            .await?;
        self.get(id)
    }

    async fn ask(
        &self,
        id: &str,
        patience: Duration,
        request: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Request,
    ) -> Result<(), Error> {
        let handle = self.handle(id)?;
        let (reply, answer) = oneshot::channel();
        let asked = async {
            handle.requests.send(request(reply)).await.ok()?;
            answer.await.ok()
        };
        match timeout(patience, asked).await {
            Ok(Some(answer)) => answer,
            // The task has ended: the device is gone, or the agent is about to be.
            Ok(None) if *self.shutdown.borrow() => Err(Error::ShuttingDown),
            Ok(None) => Err(Error::Missing { id: id.to_owned() }),
            Err(_) => Err(Error::NoAnswer {
                id: id.to_owned(),
                patience,
            }),
        }
    }

    /// Comes to an end when the store answers and nothing holds the devices for good.
    pub(crate) async fn probe(&self) -> Result<(), String> {
        let shared = self.shared.clone();
        let probe = move || drop(shared.devices());
        let probed = tokio::task::spawn_blocking(probe).await;
        probed.map_err(|it| it.to_string())?;
        self.shared.store.probe().await.map_err(|it| chain(&it))
    }

    /// Waits for the tasks, which end because of the shutdown; the devices' processes stay.
    pub(crate) async fn join(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().expect("no holder panics"));
        if timeout(REPLY_TIMEOUT, async {
            while tasks.join_next().await.is_some() {}
        })
        .await
        .is_err()
        {
            tracing::warn!("device tasks did not end in time");
        }
        self.shared.cgroups.close();
    }
}

/// The device that an earlier call with this record's request id made, when it asked for the same.
fn repeated(devices: &BTreeMap<String, Handle>, record: &Record) -> Result<Option<Handle>, Error> {
    let Some(call) = &record.created_by else {
        return Ok(None);
    };
    let earlier = devices.values().find_map(|handle| {
        let device = handle.device.borrow();
        let earlier = device.record.created_by.as_ref();
        let earlier = earlier.filter(|it| it.request_id == call.request_id);
        earlier.map(|it| (it == call, device.record.id.clone(), handle))
    });
    match earlier {
        Some((false, id, _)) => Err(Error::RequestReused {
            request_id: call.request_id.clone(),
            id,
        }),
        earlier => Ok(earlier.map(|(_, _, handle)| handle.clone())),
    }
}

/// The device when its start has come to an end.
async fn settled(mut handle: Handle) -> Result<Device, Error> {
    let came = handle
        .device
        .wait_for(|device| device.view.life != Life::Starting)
        .await
        .map(|device| device.clone());
    let device = came.map_err(|_| Error::ShuttingDown)?;
    let id = device.record.id.clone();
    match (device.view.life, &device.view.failure) {
        // It was made, and rests with its host.
        (Life::Ready | Life::Connected | Life::Stopped, _) => Ok(device),
        (Life::Gone | Life::Failed | Life::Deleting, Some(failure)) => Err(Error::Start {
            id,
            failure: failure.clone(),
        }),
        _ => Err(Error::DeletedMeanwhile { id }),
    }
}
