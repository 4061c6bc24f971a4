//! The agent is killed, its devices are killed, the disk is full, the clock jumps: nothing that was promised is lost,
//! nothing is there twice, and nothing is left over.
//!
//! [`World`] is a host whose agent dies, and callers who know what they were promised. Each caller owns one device, makes
//! one call after the other, and repeats the one that was cut off with its request id.

mod host;
mod mounts;
mod random;
mod steps;
mod storage;

mod upgrade;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use prost_types::FieldMask;
use proto::v1::{
    CreateDeviceRequest, DeleteDeviceRequest, Device, GetAgentRequest, ListDevicesRequest,
    PlugDeviceRequest, ResetDeviceRequest, RestartDeviceRequest, UnplugDeviceRequest,
    UpdateDeviceRequest, agent_service_client::AgentServiceClient, attachment, condition,
    device_status::State, vmm,
};
use serde_json::json;
use tests::{Vmm, command};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::agent::{
    Devices, Host, LIMIT, deletion, liar, nic, pid, reason, send, state, to_struct,
};

/// The agent did not answer: it is dead.
#[derive(Debug)]
struct Died;

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq)]
enum Op {
    /// A device with this label.
    Create(String),
    /// Another label, and a link that is up or down.
    Update(String, &'static str),
    Reset,
    Restart,
    /// Into the VMM of this host, and out of it.
    Plug,
    Unplug,
    /// By force where there is a VMM, which may have it.
    Delete,
}

#[derive(Debug, Clone)]
struct Call {
    op: Op,
    request_id: String,
}

/// A device as its caller was told.
#[derive(Debug, Clone)]
struct Known {
    uid: String,
    label: String,
    link: &'static str,
    /// Of its process, until somebody kills that.
    pid: Option<i32>,
    is_plugged: bool,
}

/// Who owns one device.
#[derive(Debug)]
struct Caller {
    id: String,
    known: Option<Known>,
    /// What was answered last.
    last: Option<Call>,
    /// What was cut off.
    pending: Option<Call>,
    count: u32,
    /// The VMM's QMP socket, where there is a VMM.
    qmp: Option<PathBuf>,
    /// How often the VMM was given the device.
    plugs: u32,
}

impl Caller {
    fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            known: None,
            last: None,
            pending: None,
            count: 0,
            qmp: None,
            plugs: 0,
        }
    }

    /// A call with a request id that no other has.
    fn call(&mut self, op: Op) -> Call {
        self.count += 1;
        let id = self
            .id
            .bytes()
            .fold(0_u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
        let request_id = format!("{id:08x}-0000-4000-8000-{:012x}", self.count);
        Call { op, request_id }
    }

    /// Makes the call that was cut off, if one was.
    async fn resume(&mut self, devices: &Devices) -> Result<(), Died> {
        match self.pending.take() {
            Some(call) => self.make(devices, call).await,
            None => Ok(()),
        }
    }

    /// Makes the call that was answered last once more, which changes nothing.
    async fn repeat(&mut self, devices: &Devices) -> Result<(), Died> {
        let Some(call) = self.last.clone() else {
            return Ok(());
        };
        let mut again = vec![call.clone()];
        if matches!(call.op, Op::Plug | Op::Unplug) {
            // Where the device is already it needs no request id to be taken for there.
            let request_id = String::new();
            again.push(Call { request_id, ..call });
        }
        for call in again {
            match self.send(devices, &call).await {
                Err(status) if is_death(&status) => return Err(Died),
                Err(status) => panic!("{}: {call:?} again: {status:?}", self.id),
                Ok(Some(device)) => {
                    let before = self.known.as_ref().unwrap();
                    assert_eq!(device.uid, before.uid, "{call:?} again");
                    assert_eq!(device.labels["app"], before.label, "{call:?} again");
                    assert_eq!(is_plugged(&device), before.is_plugged, "{call:?} again");
                    if let Some(process) = before.pid {
                        assert_eq!(pid(&device), process, "{call:?} again");
                    }
                }
                Ok(None) => {}
            }
        }
        Ok(())
    }

    /// Makes a call, and takes in what was answered.
    async fn make(&mut self, devices: &Devices, call: Call) -> Result<(), Died> {
        if let (Some(known), Op::Restart) = (&mut self.known, &call.op) {
            known.pid = None;
        }
        let repeated = self.pending.replace(call.clone()).is_some();
        assert!(!repeated, "one call at a time");
        let answer = self.send(devices, &call).await;
        match (answer, &call.op) {
            (Err(status), _) if is_death(&status) => return Err(Died),
            (Err(status), op) => panic!("{}: {op:?}: {status:?}", self.id),
            (Ok(None), _) => self.known = None,
            (Ok(Some(device)), op) => self.learn(&device, op),
        }
        self.pending = None;
        self.last = Some(call);
        Ok(())
    }

    fn learn(&mut self, device: &Device, op: &Op) {
        let started = matches!(op, Op::Create(_) | Op::Restart);
        let known = self.known.get_or_insert_with(|| Known {
            uid: device.uid.clone(),
            label: String::new(),
            link: "up",
            pid: Some(pid(device)),
            is_plugged: false,
        });
        match op {
            Op::Create(label) => known.label.clone_from(label),
            Op::Update(label, link) => {
                known.label.clone_from(label);
                known.link = link;
            }
            Op::Restart => known.pid = Some(pid(device)),
            Op::Plug => {
                known.is_plugged = true;
                self.plugs += 1;
            }
            Op::Unplug => known.is_plugged = false,
            Op::Reset | Op::Delete => {}
        }
        assert_eq!(is_plugged(device), known.is_plugged, "{op:?}");
        assert_eq!(device.uid, known.uid, "{op:?}");
        assert_eq!(device.labels["app"], known.label, "{op:?}");
        if started {
            assert_eq!(state(device), State::Ready, "{op:?}");
        }
    }

    async fn send(&self, devices: &Devices, call: &Call) -> Result<Option<Device>, Status> {
        let mut devices = devices.clone();
        let request_id = call.request_id.clone();
        let name = format!("devices/{}", self.id);
        let answer = async {
            match &call.op {
                Op::Create(label) => {
                    let mut request = CreateDeviceRequest {
                        request_id,
                        ..nic(&self.id)
                    };
                    let labels = &mut request.device.as_mut().unwrap().labels;
                    labels.insert("app".to_owned(), label.clone());
                    devices.create_device(request).await.map(Some)
                }
                Op::Update(label, link) => {
                    let mut device = nic(&self.id).device.unwrap();
                    device.name = name;
                    device.labels.insert("app".to_owned(), label.clone());
                    device.spec.as_mut().unwrap().config = Some(to_struct(json!({"link": link})));
                    let paths = ["labels.app", "spec.config.link"];
                    let request = UpdateDeviceRequest {
                        device: Some(device),
                        update_mask: Some(FieldMask {
                            paths: paths.map(str::to_owned).to_vec(),
                        }),
                        request_id,
                        ..UpdateDeviceRequest::default()
                    };
                    devices.update_device(request).await.map(Some)
                }
                Op::Reset => {
                    let request = ResetDeviceRequest {
                        name,
                        request_id,
                        ..ResetDeviceRequest::default()
                    };
                    devices.reset_device(request).await.map(Some)
                }
                Op::Restart => {
                    let request = RestartDeviceRequest {
                        name,
                        request_id,
                        ..RestartDeviceRequest::default()
                    };
                    devices.restart_device(request).await.map(Some)
                }
                Op::Plug => {
                    let request = PlugDeviceRequest {
                        name,
                        vmm: self.qmp.as_deref().map(qemu),
                        request_id,
                        ..PlugDeviceRequest::default()
                    };
                    devices.plug_device(request).await.map(Some)
                }
                Op::Unplug => {
                    let request = UnplugDeviceRequest {
                        name,
                        request_id,
                        ..UnplugDeviceRequest::default()
                    };
                    devices.unplug_device(request).await.map(Some)
                }
                Op::Delete => {
                    let request = DeleteDeviceRequest {
                        request_id,
                        force: self.qmp.is_some(),
                        ..deletion(&self.id)
                    };
                    devices.delete_device(request).await.map(|_| None)
                }
            }
        };
        let answer = timeout(LIMIT, answer).await;
        let answer = answer.unwrap_or_else(|_| panic!("{}: {call:?}: no answer", self.id));
        answer.map(|it| it.map(tonic::Response::into_inner))
    }

    /// Whether the device may be as it was found, by what this caller was told. Learns what a call that was cut off did.
    fn check(&mut self, found: Option<&Device>) {
        let pending = self.pending.as_ref().map(|it| &it.op);
        let what = format!("{}: known {:?}, pending {pending:?}", self.id, self.known);
        let (known, found) = match (&mut self.known, found) {
            (None, None) => return,
            (Some(_), None) => {
                assert_eq!(pending, Some(&Op::Delete), "lost: {what}");
                return;
            }
            (None, Some(found)) => {
                let Some(Op::Create(label)) = pending else {
                    panic!("nobody made {found:?}: {what}");
                };
                assert_eq!(&found.labels["app"], label, "{what}");
                return;
            }
            (Some(known), Some(found)) => (known, found),
        };
        assert_eq!(found.uid, known.uid, "{what}");
        assert!(!has_mac(found), "what was refused is recorded: {found:?}");
        let is_as_known = (&*found.labels["app"], link(found)) == (&*known.label, known.link);
        let is_as_asked = matches!(pending, Some(Op::Update(label, asked))
            if (&*found.labels["app"], link(found)) == (&**label, *asked));
        assert!(is_as_known || is_as_asked, "{what}: {found:?}");
        let may_have_moved = matches!(pending, Some(Op::Plug | Op::Unplug | Op::Delete));
        assert!(
            is_plugged(found) == known.is_plugged || may_have_moved,
            "{what}: {found:?}"
        );
        let pid_before = *known.pid.get_or_insert(pid(found));
        assert_eq!(pid(found), pid_before, "it was started again: {what}");
    }
}

/// Whether there was nobody who answers: what the agent itself says has a reason.
fn is_death(status: &Status) -> bool {
    status.get_details_error_info().is_none()
}

fn link(device: &Device) -> &str {
    let config = device.spec.as_ref().unwrap().config.as_ref().unwrap();
    let link = config.fields.get("link").and_then(|it| it.kind.as_ref());
    match link {
        Some(prost_types::value::Kind::StringValue(link)) => link,
        _ => "up",
    }
}

/// Whether it has what a process refuses to become.
fn has_mac(device: &Device) -> bool {
    let config = device.spec.as_ref().unwrap().config.as_ref().unwrap();
    config.fields.contains_key("mac")
}

/// The VMM of this QMP socket.
fn qemu(qmp: &Path) -> proto::v1::Vmm {
    let path = qmp.display().to_string();
    proto::v1::Vmm {
        endpoint: Some(vmm::Endpoint::QmpSocketPath(path)),
        ..proto::v1::Vmm::default()
    }
}

/// How far the device is between a VMM and none.
fn stage(device: &Device) -> Option<attachment::State> {
    let attachment = device.status.as_ref()?.attachment.as_ref();
    attachment.map(proto::v1::Attachment::state)
}

fn is_plugged(device: &Device) -> bool {
    stage(device) == Some(attachment::State::Plugged)
}

fn is_settled(device: &Device) -> bool {
    let conditions = &device.status.as_ref().unwrap().conditions;
    let at_rest = match stage(device) {
        None => State::Ready,
        Some(attachment::State::Plugged) => State::Connected,
        Some(_) => return false,
    };
    state(device) == at_rest
        && conditions
            .iter()
            .any(|it| it.r#type == "Configured" && it.status() == condition::Status::True)
}

/// A host, its agent while it lives, and those who call it.
struct World {
    /// Goes before the directory that its socket is in.
    vmm: Option<Vmm>,
    host: Host,
    callers: Vec<Caller>,
    channel: Option<Channel>,
    /// Where its devices have cgroups, when they have.
    cgroup: String,
    /// Whether the devices may be shut down.
    rests: bool,
}

impl World {
    fn new(ids: &[&str]) -> Self {
        Self {
            vmm: None,
            host: Host::new(),
            callers: ids.iter().map(|id| Caller::new(id)).collect(),
            channel: None,
            cgroup: String::new(),
            rests: false,
        }
    }

    /// A world with a VMM, which takes these devices.
    fn with_vmm(ids: &[&str]) -> Self {
        let mut world = Self::new(ids);
        let qmp = world.host.path("qmp");
        world.vmm = Some(Vmm::start(&qmp).unwrap());
        for caller in &mut world.callers {
            caller.qmp = Some(qmp.clone());
        }
        world
    }

    /// Starts an agent with these variables.
    async fn start(&mut self, env: &[(&str, String)]) -> Result<(), Died> {
        let owned = |(name, value): &(&str, String)| ((*name).to_owned(), value.clone());
        self.host.env = env.iter().map(owned).collect();
        let deadline = Instant::now() + LIMIT;
        let mut ended = self.host.try_start_agent();
        while ended.is_none() && !self.connect().await {
            assert!(Instant::now() < deadline, "the agent never answered");
            sleep(std::time::Duration::from_millis(5)).await;
            ended = self.host.agent.as_mut().unwrap().try_wait().unwrap();
        }
        match ended {
            Some(ended) => {
                assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{ended}");
                Err(Died)
            }
            None => Ok(()),
        }
    }

    /// Whether it is this agent that answers: a child that the one before had just forked has its listening socket
    /// until it has become a device.
    async fn connect(&mut self) -> bool {
        let uri = format!("unix://{}", self.host.run_dir.join("agent.sock").display());
        let endpoint = Endpoint::from_shared(uri).unwrap();
        let Ok(channel) = endpoint.connect_timeout(LIMIT).connect().await else {
            return false;
        };
        let request = GetAgentRequest::default();
        let mut client = AgentServiceClient::new(channel.clone());
        let Ok(answer) = client.get_agent(request).await else {
            return false;
        };
        let agent = answer.into_inner();
        self.channel = Some(channel);
        self.cgroup = agent.cgroup;
        let started = self.host.agent.as_ref().map(std::process::Child::id);
        started == u32::try_from(agent.pid).ok()
    }

    /// Sees that the agent is dead, by SIGKILL, and nothing else.
    fn bury(&mut self) {
        self.channel = None;
        let Some(mut agent) = self.host.agent.take() else {
            return;
        };
        let ended = command::wait_for("the agent's death", LIMIT, || Ok(agent.try_wait()?));
        let ended = ended.unwrap();
        assert_eq!(ended.signal(), Some(Signal::SIGKILL as i32), "{ended}");
    }

    fn devices(&self) -> Devices {
        Devices::new(self.channel())
    }

    fn agent(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel())
    }

    fn channel(&self) -> Channel {
        self.channel.clone().expect("the agent was started")
    }

    async fn list(&self) -> Result<Vec<Device>, Died> {
        let request = ListDevicesRequest {
            page_size: 1000,
            ..ListDevicesRequest::default()
        };
        match self.devices().list_devices(request).await {
            Ok(list) => Ok(list.into_inner().devices),
            Err(status) if is_death(&status) => Err(Died),
            Err(status) => panic!("list: {status:?}"),
        }
    }

    /// Waits until every device is ready and configured, and what was to go is gone.
    async fn settled(&self) -> Result<Vec<Device>, Died> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let list = self.list().await?;
            if list.iter().all(is_settled) {
                return Ok(list);
            }
            assert!(Instant::now() < deadline, "never settled: {list:#?}");
            sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Compares what there is with what was promised.
    async fn check(&mut self) -> Result<(), Died> {
        let list = self.settled().await?;
        let ids: Vec<_> = list
            .iter()
            .map(|it| it.name["devices/".len()..].to_owned())
            .collect();
        for caller in &mut self.callers {
            let found = ids.iter().position(|id| *id == caller.id);
            caller.check(found.map(|index| &list[index]));
        }
        let strangers = ids
            .iter()
            .filter(|id| self.callers.iter().all(|it| it.id != **id));
        assert_eq!(strangers.count(), 0, "{ids:?}");

        if let Some(vmm) = &self.vmm {
            let plugged = list.iter().zip(&ids).filter(|(it, _)| is_plugged(it));
            let plugged: Vec<_> = plugged.map(|(_, id)| id.clone()).collect();
            assert_eq!(vmm.devices(), plugged, "what the VMM has");
            for caller in &self.callers {
                let is_plug = |call: &Call| call.op == Op::Plug;
                let is_new = caller.pending.as_ref().is_some_and(is_plug);
                let plugs = caller.plugs + u32::from(is_new && plugged.contains(&caller.id));
                assert_eq!(vmm.additions(&caller.id), plugs, "how often {}", caller.id);
            }
        }

        let mut named: Vec<_> = list.iter().map(pid).collect();
        let mut running = self.host.processes();
        named.sort_unstable();
        running.sort_unstable();
        assert_eq!(running, named, "processes that run, and those of devices");
        let run = self.host.run_dir.join("devices");
        assert_eq!(directories(run), ids, "directories");
        if !self.cgroup.is_empty() {
            assert_eq!(directories(&self.cgroup), ids, "cgroups");
        }
        // The one for its client and the one for the agent.
        let two = ids.iter().map(|id| (id.clone(), 2)).collect();
        assert_eq!(self.listeners(), two, "listening sockets");
        Ok(())
    }

    /// How many sockets listen in the directory of each device, whoever has them.
    fn listeners(&self) -> BTreeMap<String, usize> {
        let prefix = format!("{}/devices/", self.host.run_dir.display());
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string("/proc/net/unix").unwrap().lines() {
            // Num RefCount Protocol Flags Type St Inode Path, where the flag is __SO_ACCEPTCON.
            let words: Vec<_> = line.split_whitespace().collect();
            let [_, _, _, "00010000", _, _, _, path] = words[..] else {
                continue;
            };
            if let Some((id, _)) = path.strip_prefix(&prefix).and_then(|it| it.split_once('/')) {
                *counts.entry(id.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// Makes the calls that were cut off.
    async fn resume(&mut self) -> Result<(), Died> {
        let devices = self.devices();
        for caller in &mut self.callers {
            caller.resume(&devices).await?;
        }
        Ok(())
    }

    /// Deletes every device, and sees that nothing is left of any.
    async fn finish(mut self) {
        let devices = self.devices();
        for caller in &mut self.callers {
            if caller.known.is_some() {
                let call = caller.call(Op::Delete);
                caller.make(&devices, call).await.unwrap();
            }
        }
        self.check().await.unwrap();
        self.host.assert_empty().await;
        let agent = self.host.agent.as_ref().unwrap().id();
        assert_eq!(children(agent), Vec::<String>::new(), "children");
        self.host.end_agent(Signal::SIGTERM);
        let left = |name: &str| {
            let entries = fs::read_dir(self.host.path(name)).unwrap();
            let mut names: Vec<_> = entries
                .map(|it| it.unwrap().file_name().into_string().unwrap())
                .filter(|it| it.contains("new"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(left("run"), Vec::<String>::new(), "unfinished files");
        assert_eq!(left("state"), Vec::<String>::new(), "unfinished files");
    }
}

/// The names of the directories in this one.
fn directories(path: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .filter(|it| it.file_type().unwrap().is_dir())
        .map(|it| it.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The processes whose parent is this one, zombies too, as `/proc` tells them.
fn children(parent: u32) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap();
    let stats = entries.filter_map(|it| fs::read_to_string(it.ok()?.path().join("stat")).ok());
    stats
        .filter(|stat| {
            // After the name, which may have anything in it: state, parent.
            let rest = stat.rsplit_once(')').map(|it| it.1).unwrap_or_default();
            rest.split_whitespace().nth(1) == Some(&parent.to_string())
        })
        .collect()
}
