//! Devices go into cloud-hypervisor and out of it: a double of it that is their client, and has its habits.

use proto::v1::{
    Attachment, DiagnoseDeviceRequest, PlugDeviceRequest, UnplugDeviceRequest, Vmm, attachment,
    finding::Severity, vmm::Endpoint,
};
use tests::{
    CloudHypervisor,
    cloud_hypervisor::{Habit, Machine},
};

use super::*;

const ADD: &str = "vm.add-user-device";
const REMOVE: &str = "vm.remove-device";

/// An agent with device `nic0`, and a VMM.
struct Bench {
    vmm: Option<CloudHypervisor>,
    host: Host,
    devices: Devices,
    events: Option<PathBuf>,
}

impl Bench {
    async fn new(change: impl FnOnce(&mut Machine, &Host)) -> Self {
        let host = Host::start().await;
        let mut devices = host.devices().await;
        create(&mut devices, nic("nic0")).await;
        let mut machine = Machine::default();
        change(&mut machine, &host);
        let events = machine.events.clone();
        let vmm = CloudHypervisor::start(&host.path("api.sock"), machine).unwrap();
        Self {
            vmm: Some(vmm),
            host,
            devices,
            events,
        }
    }

    async fn with_events() -> Self {
        Self::new(|machine, host| machine.events = Some(host.path("events"))).await
    }

    fn vmm(&self) -> &CloudHypervisor {
        self.vmm.as_ref().unwrap()
    }

    /// The VMM dies.
    async fn kill_vmm(&mut self) {
        let vmm = self.vmm.take().unwrap();
        tokio::task::spawn_blocking(move || drop(vmm))
            .await
            .unwrap();
    }

    fn plugging(&self) -> PlugDeviceRequest {
        let api = self.host.path("api.sock").display().to_string();
        let events = self.events.as_ref().map(|it| it.display().to_string());
        PlugDeviceRequest {
            name: "devices/nic0".to_owned(),
            vmm: Some(Vmm {
                endpoint: Some(Endpoint::CloudHypervisorSocketPath(api)),
                event_monitor_path: events.unwrap_or_default(),
            }),
            ..PlugDeviceRequest::default()
        }
    }

    async fn plug(&mut self) -> Result<Device, Status> {
        let request = self.plugging();
        Ok(self.devices.plug_device(request).await?.into_inner())
    }

    async fn unplug(&mut self, seconds: i64) -> Result<Device, Status> {
        let request = unplugging(seconds);
        Ok(self.devices.unplug_device(request).await?.into_inner())
    }

    async fn until(&mut self, what: &str, is: impl Fn(&Device) -> bool) -> Device {
        wait_for(&mut self.devices, "nic0", what, is).await
    }

    async fn is_plugged(&mut self) -> Attachment {
        let is = |it: &Device| is_plugged(it) && state(it) == State::Connected;
        let device = self.until("plugged", is).await;
        assert_eq!(self.vmm().devices(), ["nic0"]);
        attached(&device).unwrap().clone()
    }

    async fn is_unplugged(&mut self) {
        let is = |it: &Device| attached(it).is_none() && state(it) == State::Ready;
        self.until("unplugged", is).await;
    }

    /// Waits until the VMM has been asked for this so often.
    async fn asked(&self, operation: &str, count: usize) {
        asked(self.vmm(), operation, count).await;
    }

    /// The agent dies, and another one comes.
    async fn succeed(&mut self) {
        self.host.end_agent(Signal::SIGKILL);
        self.start_agent().await;
    }

    async fn start_agent(&mut self) {
        self.host.start_agent().await;
        self.devices = self.host.devices().await;
    }

    /// What an agent that dies at this step answers.
    async fn die_at(&mut self, step: &str) {
        self.host.end_agent(Signal::SIGKILL);
        self.host.env = vec![("VFU_DIE_AT".to_owned(), step.to_owned())];
        self.start_agent().await;
        self.host.env.clear();
    }

    /// The next agent, after one that has died by itself.
    async fn follow(&mut self) {
        let mut agent = self.host.agent.take().unwrap();
        command::wait_for("the end of the agent", LIMIT, || Ok(agent.try_wait()?)).unwrap();
        self.start_agent().await;
    }
}

async fn asked(vmm: &CloudHypervisor, operation: &str, count: usize) {
    let wait = async {
        while vmm.calls().iter().filter(|it| *it == operation).count() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, wait).await;
    waited.unwrap_or_else(|_| panic!("the VMM is never asked for {operation}"));
}

fn unplugging(seconds: i64) -> UnplugDeviceRequest {
    UnplugDeviceRequest {
        name: "devices/nic0".to_owned(),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..UnplugDeviceRequest::default()
    }
}

fn attached(device: &Device) -> Option<&Attachment> {
    device.status.as_ref()?.attachment.as_ref()
}

fn is_plugged(device: &Device) -> bool {
    attached(device).is_some_and(|it| it.state() == attachment::State::Plugged)
}

fn refusal() -> Habit {
    let body = r#"["Error from API", "The VM is migrating"]"#;
    Habit::Refuse(500, body.to_owned())
}

/// The steps of the agent that begin so.
fn steps(host: &Host, prefix: &str) -> Vec<String> {
    let mut agent = Command::new(&host.program);
    let steps = command::run(agent.arg("--steps")).unwrap();
    let steps = steps.lines().filter(|step| step.starts_with(prefix));
    let steps: Vec<_> = steps.map(str::to_owned).collect();
    assert!(!steps.is_empty(), "no steps {prefix}");
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_goes_into_cloud_hypervisor_and_out_again_with_events_and_without() {
    for has_events in [true, false] {
        let mut bench = match has_events {
            true => Bench::with_events().await,
            false => Bench::new(|_, _| {}).await,
        };
        for _ in 0..2 {
            let place = attached(&bench.plug().await.unwrap()).unwrap().clone();
            assert_eq!(place.state(), attachment::State::Plugged);
            assert_eq!(place.vmm_device_id, "nic0");
            assert_eq!((&*place.bus, &*place.address), ("0", "0000:00:02.0"));
        }
        bench.is_plugged().await;
        let deletion = bench.devices.delete_device(deletion("nic0")).await;
        assert_eq!(reason(&deletion.unwrap_err()), "CLIENT_CONNECTED");
        let mut other = bench.plugging();
        other.vmm_device_id = "other".to_owned();
        let refused = bench.devices.plug_device(other).await.unwrap_err();
        assert_eq!(reason(&refused), "ALREADY_PLUGGED");

        for _ in 0..2 {
            let unplugged = bench.unplug(20).await.unwrap();
            assert_eq!(attached(&unplugged), None);
        }
        bench.is_unplugged().await;
        assert_eq!(bench.vmm().devices(), [""; 0]);
        let calls = bench.vmm().calls();
        let count = |name: &str| calls.iter().filter(|it| *it == name).count();
        assert_eq!((count(ADD), count(REMOVE)), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yes_to_a_removal_is_not_taken_for_one() {
    for has_events in [true, false] {
        let mut bench = match has_events {
            true => Bench::with_events().await,
            false => Bench::new(|_, _| {}).await,
        };
        bench.plug().await.unwrap();
        bench.vmm().guest_keeps(true);
        let late = bench.unplug(1).await.unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
        assert_eq!(reason(&late), "GUEST_LATE");
        // It works on, also for an agent that has not seen this.
        bench.is_plugged().await;
        bench.succeed().await;
        bench.is_plugged().await;
        // A guest that lets go later is as good.
        let mut devices = bench.devices.clone();
        let (unplugged, ()) = tokio::join!(devices.unplug_device(unplugging(20)), async {
            bench.asked(REMOVE, 3).await;
            bench.vmm().eject("nic0");
        });
        assert_eq!(attached(&unplugged.unwrap().into_inner()), None);
        bench.is_unplugged().await;
        // One that does it unasked, too.
        bench.plug().await.unwrap();
        bench.is_plugged().await;
        bench.vmm().eject("nic0");
        bench.is_unplugged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_off_takes_a_device_and_connects_when_it_is_turned_on() {
    let mut bench = Bench::new(|machine, host| {
        machine.is_on = false;
        machine.events = Some(host.path("events"));
    })
    .await;
    let plugged = bench.plug().await.unwrap();
    let place = attached(&plugged).unwrap();
    assert!(is_plugged(&plugged), "{place:?}");
    assert_eq!((&*place.bus, &*place.address), ("0", ""));
    assert_eq!(state(&plugged), State::Ready);
    bench.succeed().await;
    let is_cold = |it: &Device| is_plugged(it) && state(it) == State::Ready;
    bench.until("plugged and not connected", is_cold).await;
    bench.unplug(20).await.unwrap();
    assert_eq!(bench.vmm().configured(), [""; 0]);
    bench.plug().await.unwrap();
    tokio::task::block_in_place(|| bench.vmm().boot()).unwrap();
    bench.is_plugged().await;
    let has_address = |it: &Device| attached(it).is_some_and(|it| it.address == "0000:00:02.0");
    bench.until("where the guest sees it", has_address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reboots_keeps_its_device() {
    let mut bench = Bench::with_events().await;
    bench.plug().await.unwrap();
    let before = bench.is_plugged().await;
    for _ in 0..3 {
        tokio::task::block_in_place(|| bench.vmm().reboot()).unwrap();
        assert_eq!(bench.is_plugged().await, before);
    }
    // Nor is it taken for lost afterwards.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.is_plugged().await, before);
    let device = get(&mut bench.devices, "nic0").await;
    let conditions = device.status.unwrap().conditions;
    let is_lost = conditions.iter().any(|it| it.r#type == "BackendLost");
    assert!(!is_lost, "{conditions:?}");
    bench.unplug(20).await.unwrap();
    bench.is_unplugged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_refuses_changes_nothing_and_is_quoted() {
    let mut bench = Bench::new(|_, _| {}).await;
    bench.vmm().habit(ADD, refusal());
    let refused = bench.plug().await.unwrap_err();
    assert_eq!(reason(&refused), "VMM_REFUSED");
    assert!(
        refused.message().contains("The VM is migrating"),
        "{refused}"
    );
    bench.is_unplugged().await;
    bench.plug().await.unwrap();
    bench.vmm().habit(REMOVE, refusal());
    let refused = bench.unplug(20).await.unwrap_err();
    assert_eq!(reason(&refused), "VMM_REFUSED");
    bench.is_plugged().await;
    // It says that it does, and does nothing: it is asked again.
    bench.vmm().habit(REMOVE, Habit::Lie);
    bench.unplug(20).await.unwrap();
    bench.is_unplugged().await;
    bench.vmm().habit(ADD, Habit::Lie);
    let refused = bench.plug().await.unwrap_err();
    assert_eq!(reason(&refused), "VMM_REFUSED");
    bench.is_unplugged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_leaves_what_the_vmm_says_afterwards() {
    let mut bench = Bench::new(|_, _| {}).await;
    for habit in [Habit::Break, Habit::Endless] {
        bench.vmm().habit(ADD, habit.clone());
        let lost = bench.plug().await.unwrap_err();
        assert_eq!(reason(&lost), "VMM_NO_ANSWER");
        bench.is_plugged().await;
        bench.vmm().habit(REMOVE, habit);
        let lost = bench.unplug(20).await.unwrap_err();
        assert_eq!(reason(&lost), "VMM_NO_ANSWER");
        bench.is_unplugged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_vmm_costs_its_caller_time_and_nobody_else() {
    let mut bench = Bench::new(|_, _| {}).await;
    create(&mut bench.devices, nic("nic1")).await;
    bench.vmm().habit(ADD, Habit::Slow(Duration::from_secs(3)));
    let mut request = Request::new(bench.plugging());
    request.set_timeout(Duration::from_millis(500));
    let given_up = bench.devices.plug_device(request).await.unwrap_err();
    let is_late = matches!(given_up.code(), Code::DeadlineExceeded | Code::Cancelled);
    assert!(is_late, "{given_up}");
    // Others are served, this device is shown.
    let other = deletion("nic1");
    bench.devices.delete_device(other).await.unwrap();
    let shown = get(&mut bench.devices, "nic0").await;
    let stage = attached(&shown).unwrap().state();
    assert_eq!(stage, attachment::State::Plugging);
    // It goes on without its caller.
    bench.is_plugged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_deleted_while_a_vmm_takes_it_leaves_that_first() {
    let mut bench = Bench::new(|_, _| {}).await;
    bench.vmm().habit(ADD, Habit::Slow(Duration::from_secs(2)));
    let mut devices = bench.devices.clone();
    let plugging = devices.plug_device(bench.plugging());
    let (answer, ()) = tokio::join!(plugging, async {
        let is_on_its_way = |it: &Device| attached(it).is_some();
        bench.until("on its way", is_on_its_way).await;
        let mut request = deletion("nic0");
        let refused = bench.devices.delete_device(request.clone()).await;
        assert_eq!(reason(&refused.unwrap_err()), "ALREADY_PLUGGED");
        request.force = true;
        bench.devices.delete_device(request).await.unwrap();
    });
    assert_eq!(reason(&answer.unwrap_err()), "UNPLUGGED_MEANWHILE");
    bench.asked(REMOVE, 1).await;
    assert_eq!(bench.vmm().configured(), [""; 0]);
    bench.host.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_leaves_a_device_that_is_ready_for_the_next() {
    let mut bench = Bench::with_events().await;
    bench.plug().await.unwrap();
    bench.is_plugged().await;
    bench.kill_vmm().await;
    bench.is_unplugged().await;
    let refused = bench.plug().await.unwrap_err();
    assert_eq!(reason(&refused), "VMM_UNREACHABLE");
    fs::remove_file(bench.host.path("api.sock")).unwrap();
    let next = CloudHypervisor::start(&bench.host.path("api.sock"), Machine::default());
    bench.vmm = Some(next.unwrap());
    bench.plug().await.unwrap();
    bench.is_plugged().await;
    // In the middle of a request.
    bench.unplug(20).await.unwrap();
    bench.is_unplugged().await;
    bench.vmm().habit(ADD, Habit::Slow(LIMIT));
    let request = bench.plugging();
    let mut devices = bench.devices.clone();
    let (lost, ()) = tokio::join!(devices.plug_device(request), async {
        bench.asked(ADD, 2).await;
        bench.kill_vmm().await;
    });
    assert_eq!(reason(&lost.unwrap_err()), "VMM_GONE");
    bench.is_unplugged().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_any_step_is_followed_by_one_that_goes_on_with_cloud_hypervisor() {
    let mut bench = Bench::with_events().await;
    for step in steps(&bench.host, "plug.") {
        bench.die_at(&step).await;
        bench.plug().await.unwrap_err();
        bench.follow().await;
        bench.plug().await.unwrap();
        bench.is_plugged().await;
        bench.unplug(20).await.unwrap();
        bench.is_unplugged().await;
    }
    for step in steps(&bench.host, "unplug.") {
        bench.die_at(&step).await;
        bench.plug().await.unwrap();
        bench.unplug(20).await.unwrap_err();
        bench.follow().await;
        bench.unplug(20).await.unwrap();
        bench.is_unplugged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_cloud_hypervisor_is_at_it_is_followed_by_one_that_asks() {
    let mut bench = Bench::with_events().await;
    // It takes the device when the agent that has asked for that is dead.
    bench.vmm().habit(ADD, Habit::Slow(Duration::from_secs(2)));
    let request = bench.plugging();
    let mut devices = bench.devices.clone();
    let calling = async {
        // Its agent dies.
        let _ = devices.plug_device(request).await;
    };
    tokio::join!(calling, async {
        bench.asked(ADD, 1).await;
        bench.host.end_agent(Signal::SIGKILL);
    });
    bench.start_agent().await;
    bench.is_plugged().await;
    // It gives it up when there is no agent, and when there is the next.
    for is_between in [true, false] {
        bench.vmm().guest_keeps(true);
        let removals = |it: &CloudHypervisor| it.calls().iter().filter(|it| *it == REMOVE).count();
        let before = removals(bench.vmm());
        let mut devices = bench.devices.clone();
        let calling = async {
            let _ = devices.unplug_device(unplugging(20)).await;
        };
        tokio::join!(calling, async {
            bench.asked(REMOVE, before + 1).await;
            bench.host.end_agent(Signal::SIGKILL);
        });
        if is_between {
            bench.vmm().eject("nic0");
            bench.start_agent().await;
        } else {
            let before = removals(bench.vmm());
            bench.start_agent().await;
            bench.asked(REMOVE, before + 1).await;
            bench.vmm().eject("nic0");
        }
        bench.is_unplugged().await;
        bench.vmm().guest_keeps(false);
        bench.plug().await.unwrap();
        bench.is_plugged().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_thing_that_a_cloud_hypervisor_lacks_is_an_error_of_its_own() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let good = Machine::default;
    let old = Machine {
        version: "29.0.0".to_owned(),
        ..good()
    };
    let private = Machine {
        is_shared: false,
        ..good()
    };
    let off = Machine {
        is_on: false,
        ..good()
    };
    for (name, machine, segment, events, codes) in [
        ("good", good(), 0, "", &[][..]),
        ("far", good(), 1, "", &["BAR_WITHOUT_IO_WINDOW"]),
        ("old", old, 0, "", &["VMM_TOO_OLD"]),
        ("private", private, 0, "", &["VMM_MEMORY_NOT_SHARED"]),
        ("off", off, 0, "", &["VMM_NOT_RUNNING"]),
        ("small", good(), 2, "", &["SEGMENT_UNKNOWN"]),
        ("deaf", good(), 0, "/nowhere", &["VMM_EVENTS_UNREADABLE"]),
    ] {
        let path = host.path(name);
        let vmm = CloudHypervisor::start(&path, machine).unwrap();
        let request = DiagnoseDeviceRequest {
            name: "devices/nic0".to_owned(),
            vmm: Some(Vmm {
                endpoint: Some(Endpoint::CloudHypervisorSocketPath(
                    path.display().to_string(),
                )),
                event_monitor_path: events.to_owned(),
            }),
            pci_segment: Some(segment),
            ..DiagnoseDeviceRequest::default()
        };
        let answer = devices.diagnose_device(request).await.unwrap();
        let findings = answer.into_inner().findings;
        let wrong = findings.iter().filter(|it| it.severity() != Severity::Ok);
        let wrong: Vec<_> = wrong.map(|it| &*it.code).collect();
        assert_eq!(wrong, codes, "{name}: {findings:#?}");
        // To ask costs the VMM nothing.
        assert_eq!(vmm.devices(), [""; 0]);
    }
}
