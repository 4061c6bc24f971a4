//! PlugDevice and UnplugDevice with a guest that runs: the agent is killed in between, the guest refuses, the VMM dies.

use nix::sys::signal::Signal;
use proto::v1::{
    Attachment, Device, ListEventsRequest, PlugDeviceRequest, UnplugDeviceRequest, Vmm, attachment,
    device_status::State, unplug_device_request::Method, vmm::Endpoint,
};
use tests::require;
use tonic::{Code, Status};

use super::*;
use crate::agent::{Host, create, e1000, get, reason, state};

const ID: &str = "nic0";

/// A host with an agent and one card, and a guest on it.
struct Bench {
    guest: Guest,
    host: Host,
    cable: Cable,
    calls: u32,
}

impl Bench {
    async fn new(builder: impl Fn() -> Builder) -> Result<Self> {
        let cable = Cable::new()?;
        let host = Host::start().await;
        let card = e1000(ID, cable.card());
        create(&mut host.devices().await, card).await;
        cable.configure()?;
        Ok(Self {
            guest: boot(builder(), &host)?,
            host,
            cable,
            calls: 0,
        })
    }

    async fn device(&self) -> Device {
        get(&mut self.host.devices().await, ID).await
    }

    async fn attachment(&self) -> Option<Attachment> {
        self.device().await.status?.attachment
    }

    /// A request to plug that no other one is.
    fn plugging(&mut self, port: &str) -> PlugDeviceRequest {
        let path = self.host.path("vmm.qmp").display().to_string();
        PlugDeviceRequest {
            name: format!("devices/{ID}"),
            vmm: Some(Vmm {
                endpoint: Some(Endpoint::QmpSocketPath(path)),
                ..Vmm::default()
            }),
            bus: port.to_owned(),
            request_id: self.request_id(),
            ..PlugDeviceRequest::default()
        }
    }

    /// A request to unplug that no other one is.
    fn unplugging(&mut self, method: Method, seconds: i64) -> UnplugDeviceRequest {
        UnplugDeviceRequest {
            name: format!("devices/{ID}"),
            method: method.into(),
            timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
            request_id: self.request_id(),
            ..UnplugDeviceRequest::default()
        }
    }

    fn request_id(&mut self) -> String {
        self.calls += 1;
        format!("00000000-0000-4000-8000-{:012x}", self.calls)
    }

    async fn plug(&self, request: PlugDeviceRequest) -> Result<Device, Status> {
        let mut devices = self.host.devices().await;
        Ok(devices.plug_device(request).await?.into_inner())
    }

    async fn unplug(&self, request: UnplugDeviceRequest) -> Result<Device, Status> {
        let mut devices = self.host.devices().await;
        Ok(devices.unplug_device(request).await?.into_inner())
    }

    /// The agent dies, unless it has already, and another one comes.
    async fn succeed(&mut self) {
        if self.host.agent.is_some() {
            self.host.end_agent(Signal::SIGKILL);
        }
        self.host.env.clear();
        self.host.start_agent().await;
    }

    /// Checks that the card is in the guest on this port, and works.
    async fn is_plugged(&mut self, port: &str) -> Result<()> {
        let attachment = self.wait(attachment::State::Plugged).await?;
        ensure!(attachment.bus == port, "{attachment:?}");
        self.cable.meet(&mut self.guest)
    }

    /// Checks that the card is in no guest, and ready for the next.
    async fn is_unplugged(&mut self) -> Result<()> {
        self.is_ready().await?;
        has_no_card(&mut self.guest)
    }

    async fn is_ready(&self) -> Result<()> {
        self.until("READY without an attachment", |device| {
            let status = device.status.as_ref();
            status.is_some_and(|it| it.attachment.is_none()) && state(device) == State::Ready
        })
        .await?;
        Ok(())
    }

    async fn wait(&self, goal: attachment::State) -> Result<Attachment> {
        let attached = |device: &Device| device.status.as_ref()?.attachment.clone();
        let device = self
            .until(goal.as_str_name(), |device| {
                attached(device).is_some_and(|it| it.state() == goal)
            })
            .await?;
        attached(&device).context("an attachment")
    }

    async fn until(&self, what: &str, is: impl Fn(&Device) -> bool) -> Result<Device> {
        let mut devices = self.host.devices().await;
        let wait = async {
            loop {
                let device = get(&mut devices, ID).await;
                if is(&device) {
                    return device;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let waited = tokio::time::timeout(UNPLUG_LIMIT, wait).await;
        waited.with_context(|| format!("the device never is {what}"))
    }

    /// Whether something of this reason has happened to the device.
    async fn has_event(&self, reason: &str) -> Result<bool> {
        let mut devices = self.host.devices().await;
        let request = ListEventsRequest {
            parent: format!("devices/{ID}"),
            filter: format!("reason = \"{reason}\""),
            ..ListEventsRequest::default()
        };
        let listed = devices.list_events(request).await?.into_inner();
        Ok(!listed.events.is_empty())
    }
}

/// Boots a guest whose second monitor is the agent's.
fn boot(builder: Builder, host: &Host) -> Result<Guest> {
    let path = host.path("vmm.qmp");
    let monitor = format!("unix:{},server=on,wait=off", path.display());
    builder.arg("-qmp").arg(monitor).boot()
}

/// The steps at which an agent of this build can be made to die, of those that begin so.
fn steps(host: &Host, prefix: &str) -> Result<Vec<String>> {
    let mut agent = std::process::Command::new(&host.program);
    let steps = tests::command::run(agent.arg("--steps"))?;
    let steps = steps.lines().filter(|step| step.starts_with(prefix));
    let steps: Vec<_> = steps.map(str::to_owned).collect();
    ensure!(!steps.is_empty(), "no steps {prefix}");
    Ok(steps)
}

#[tokio::test]
async fn a_card_is_plugged_used_and_unplugged_fifty_times() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(|| machine(Way::Acpi)).await?;
    for count in 0..50 {
        let port = format!("port{}", count % 2);
        let request = bench.plugging(&port);
        bench.plug(request).await?;
        let plugged = bench.is_plugged(&port).await;
        plugged.with_context(|| format!("stay {count}"))?;
        let request = bench.unplugging(Method::Vmm, 30);
        let device = bench.unplug(request).await?;
        ensure!(device.status.context("a status")?.attachment.is_none());
        let unplugged = bench.is_unplugged().await;
        unplugged.with_context(|| format!("stay {count}"))?;
    }
    let request = bench.plugging("");
    bench.plug(request).await?;
    bench.is_plugged("port0").await?;
    bench.cable.transfer(&mut bench.guest)?;
    Ok(())
}

#[tokio::test]
async fn an_agent_killed_at_any_step_of_plug_and_unplug_is_followed_by_one_that_goes_on()
-> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(|| machine(Way::Acpi)).await?;
    for step in steps(&bench.host, "plug.")? {
        bench.host.end_agent(Signal::SIGKILL);
        bench.host.env = vec![("VFU_DIE_AT".to_owned(), step.clone())];
        bench.host.start_agent().await;
        let request = bench.plugging("port0");
        let answer = bench.plug(request.clone()).await;
        ensure!(answer.is_err(), "the agent has not died at {step}");
        bench.succeed().await;
        bench.plug(request).await.with_context(|| step.clone())?;
        bench.is_plugged("port0").await?;
        let request = bench.unplugging(Method::Vmm, 30);
        bench.unplug(request).await.with_context(|| step.clone())?;
        bench.is_unplugged().await?;
    }
    for step in steps(&bench.host, "unplug.")? {
        bench.host.end_agent(Signal::SIGKILL);
        bench.host.env = vec![("VFU_DIE_AT".to_owned(), step.clone())];
        bench.host.start_agent().await;
        let request = bench.plugging("port1");
        bench.plug(request).await?;
        bench.is_plugged("port1").await?;
        let request = bench.unplugging(Method::Vmm, 30);
        let answer = bench.unplug(request.clone()).await;
        ensure!(answer.is_err(), "the agent has not died at {step}");
        bench.succeed().await;
        bench.unplug(request).await.with_context(|| step.clone())?;
        bench.is_unplugged().await?;
    }
    Ok(())
}

/// Native hot-plug leaves five seconds between the request, which the guest takes for a press of the slot's button, and its
/// consent.
#[tokio::test]
async fn what_a_guest_lets_go_of_while_there_is_no_agent_is_seen_by_the_next() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(|| machine(Way::Native)).await?;
    let request = bench.plugging("port0");
    bench.plug(request).await?;
    bench.is_plugged("port0").await?;
    let request = bench.unplugging(Method::Vmm, 30);
    let mut devices = bench.host.devices().await;
    tokio::select! {
        answer = devices.unplug_device(request) => anyhow::bail!("answered at once: {answer:?}"),
        attachment = bench.wait(attachment::State::Unplugging) => attachment?,
    };
    // The agent goes on without its caller.
    let asked = "until dmesg | grep -iE 'will power off|powering off'; do sleep 0.1; done";
    bench.guest.sh(asked)?;
    bench.host.end_agent(Signal::SIGKILL);
    let deleted = bench.guest.event("DEVICE_DELETED", UNPLUG_LIMIT)?;
    deleted.context("the guest does not let go")?;
    bench.succeed().await;
    bench.is_unplugged().await?;
    let request = bench.plugging("port1");
    bench.plug(request).await?;
    bench.is_plugged("port1").await
}

#[tokio::test]
async fn a_guest_that_refuses_keeps_a_card_that_works() -> Result<()> {
    require!(Qemu, Tap);
    let deaf = || machine(Way::Acpi).kernel_option("acpiphp.disable=1");
    let mut bench = Bench::new(deaf).await?;
    let request = bench.plugging("port0");
    bench.plug(request).await?;
    bench.guest.sh("echo 1 >/sys/bus/pci/rescan")?;
    bench.is_plugged("port0").await?;
    // A guest that runs can't be only late for ever.
    for (seconds, code, why) in [
        (3, Code::DeadlineExceeded, "GUEST_LATE"),
        (12, Code::FailedPrecondition, "GUEST_REFUSED_UNPLUG"),
    ] {
        let request = bench.unplugging(Method::Vmm, seconds);
        let Err(status) = bench.unplug(request).await else {
            anyhow::bail!("the guest has let go");
        };
        ensure!(status.code() == code, "{status:?}");
        ensure!(reason(&status) == why, "{status:?}");
        ensure!(state(&bench.device().await) == State::Connected);
        bench.cable.transfer(&mut bench.guest)?;
    }
    // The guest lets go when it starts anew, and the agent sees that.
    let _companion = companion(&mut bench.guest, "port1")?;
    bench.guest.reset()?;
    bench.is_ready().await
}

#[tokio::test]
async fn a_card_whose_vmm_is_killed_is_ready_for_the_next_one() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(|| machine(Way::Acpi)).await?;
    let request = bench.plugging("port0");
    bench.plug(request).await?;
    bench.is_plugged("port0").await?;
    let Bench {
        guest,
        host,
        cable,
        calls,
    } = bench;
    guest.kill()?;
    let guest = boot(machine(Way::Acpi), &host)?;
    let mut bench = Bench {
        guest,
        host,
        cable,
        calls,
    };
    bench.is_ready().await?;
    ensure!(bench.has_event("CLIENT_GONE").await?);
    let request = bench.plugging("port1");
    bench.plug(request).await?;
    bench.is_plugged("port1").await
}

#[tokio::test]
async fn a_vmm_is_asked_for_its_card_without_its_monitor() -> Result<()> {
    require!(Qemu, Tap);
    let mut bench = Bench::new(|| machine(Way::Acpi)).await?;
    let request = bench.plugging("port0");
    bench.plug(request).await?;
    bench.is_plugged("port0").await?;
    let listens = listens_for_requests(&mut bench.guest)?;
    let request = bench.unplugging(Method::ClientRequest, 30);
    let answer = bench.unplug(request).await;
    if listens {
        answer?;
        return bench.is_unplugged().await;
    }
    let status = answer.err().context("QEMU was asked, and has no ear")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    ensure!(reason(&status) == "CLIENT_TAKES_NO_REQUEST", "{status:?}");
    ensure!(bench.attachment().await.context("it is gone")?.bus == "port0");
    bench.cable.meet(&mut bench.guest)?;
    let request = bench.unplugging(Method::Vmm, 30);
    bench.unplug(request).await?;
    bench.is_unplugged().await
}
