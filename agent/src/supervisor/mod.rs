//! The set of devices: who asks for a device comes here, and what a device does is in its task.
//!
//! One task owns one device (`device.rs`), decides by a pure function (`state.rs`), takes requests
//! by mpsc and shows how it is by watch. The set knows each task by those two ends.

mod attach;
pub(crate) mod backoff;
mod birth;
mod calls;
mod cgroup;
mod child;
mod control;
mod create;
mod device;
mod drain;
mod error;
mod fd;
mod find;
mod history;
mod leave;
mod log;
mod loss;
mod names;
mod place;
mod plug;
mod release;
mod request;
mod reset;
mod restart;
mod rundir;
mod serve;
mod start;
mod state;
mod undo;
mod update;
mod view;
mod vmm_call;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::cgroup::Cgroups;
pub(crate) use self::control::RefusalKind;
use self::device::{Begin, Task};
use self::drain::Drain;
pub(crate) use self::error::{Error, StartError};
pub(crate) use self::fd::watch as watch_fd;
use self::names::Names;
pub(crate) use self::plug::{Method, Plug};
use self::request::Request;
pub(crate) use self::request::Update;
use self::rundir::RunDir;
pub(crate) use self::view::{Configured, Life, View};
use crate::chain::chain;
use crate::changes::Changes;
use crate::config::{Config, Live};
use crate::events::Events;
use crate::models::Models;
use crate::models::model::Model;
use crate::runtimes::For;
use crate::runtimes::external::External;
use crate::schema::Violation;
use crate::steps;
use crate::store::{Contents, Record, Store};
use crate::vmm::Vmms;

/// How long a device process may take to answer a request.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// How much longer than SIGTERM to SIGKILL a deletion may take.
const DELETE_SLACK: Duration = Duration::from_secs(5);
/// Device processes that may be starting at once, per processor, unless the configuration says how many.
const STARTS_PER_CPU: usize = 4;
/// Requests that wait for one device.
const QUEUE: usize = 16;

/// Makes the message of a device, with the path of its socket, that those who list and watch get.
type Encode = fn(Device, String) -> Vec<u8>;

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
    pub(crate) vmms: Vmms,
    names: Names,
    starts: Arc<Semaphore>,
    /// Device processes that may be starting at once.
    pub(crate) start_limit: usize,
    devices: Mutex<BTreeMap<String, Handle>>,
    encode: Encode,
    /// What is wrong with the records that can't be read, by the ids of their devices. Nothing of those is touched.
    pub(crate) unreadable: BTreeMap<String, String>,
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

    /// What is to be started for a device that another program serves, or every value that can't be in its command.
    pub(crate) fn launch(
        &self,
        model: &Model,
        external: &External,
        program: &Path,
        record: &Record,
    ) -> Result<serde_json::Value, Vec<Violation>> {
        let dir = self.dir(&record.id);
        let device = For {
            id: &record.id,
            run_dir: dir.path(),
            socket_path: &dir.socket(),
            socket: record.spec.socket.unwrap_or_default(),
            config: &record.spec.config,
        };
        external.launch(model, program, device)
    }

    /// The file in which a device's process keeps its counters.
    pub(crate) fn stats_path(&self, id: &str) -> PathBuf {
        self.dir(id).stats()
    }

    /// Shows how a device is to all who list and watch. Nothing may take that back, not even a crash.
    fn show(&self, device: Device) {
        let record = device.record.clone();
        let message = (self.encode)(device, self.socket_path(&record.id));
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
        encode: Encode,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let Contents {
            records,
            unreadable,
            drain,
        } = contents;
        let unreadable: BTreeMap<_, _> = unreadable
            .into_iter()
            .map(|(id, error)| (id, error.to_string()))
            .collect();
        for (id, error) in &unreadable {
            tracing::error!(
                id,
                error,
                "record can't be read: the device is left as it is"
            );
        }
        let drain = Drain::new(store.clone(), drain, boot_id.clone());
        let settings = config.get();
        let kept = settings.limits.watch_changes as usize;
        let changes = Changes::open(&settings.changes_dir(), &boot_id, kept);
        let uids: HashMap<_, _> = records.iter().map(|it| (&*it.id, &*it.uid)).collect();
        // Nobody can say of a device without a readable record that it is gone.
        changes
            .retain(|it| uids.get(&*it.id) == Some(&&*it.uid) || unreadable.contains_key(&it.id));
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
            vmms: Vmms::new(shutdown.clone()),
            names: Names::default(),
            starts: Arc::new(Semaphore::new(starting)),
            start_limit: starting,
            devices: Mutex::default(),
            encode,
            unreadable,
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
            let known = self.shared.unreadable.contains_key(id);
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
        // What was shown of it before is true until its task knows better. But that it shall go its record says, also when
        // the agent that wrote that has died before it could show it.
        let Device { record, .. } = handle.device();
        let was_shown = self.shared.changes.has(&record.id, &record.uid);
        if begin == Begin::Find && (!was_shown || record.delete_time.is_some()) {
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

    /// The device of this id.
    pub(crate) fn get(&self, id: &str) -> Result<Device, Error> {
        self.handle(id).map(|it| it.device())
    }

    /// How this device is from now on. Its end is that of the device, or of the agent.
    pub(crate) fn follow(&self, id: &str) -> Result<watch::Receiver<Device>, Error> {
        self.handle(id).map(|it| it.device)
    }

    fn handle(&self, id: &str) -> Result<Handle, Error> {
        self.shared.devices().get(id).cloned().ok_or_else(|| {
            match self.shared.unreadable.contains_key(id) {
                true => Error::Unreadable { id: id.to_owned() },
                false => Error::Missing { id: id.to_owned() },
            }
        })
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
            self.shared.vmms.join().await;
        })
        .await
        .is_err()
        {
            tracing::warn!("device tasks did not end in time");
        }
        self.shared.cgroups.close();
    }
}
