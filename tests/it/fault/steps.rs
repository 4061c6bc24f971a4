//! An agent is killed at every step between two side effects.

use std::{
    collections::VecDeque,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
};

use proto::v1::{DrainRequest, ShutDownDevicesRequest, UndrainRequest};

use super::*;

/// How many agents are killed at once.
const THREADS: usize = 4;
/// Steps that are passed for different things one after the other, and how many of those are tried.
const REPEATED: [(&str, u32); 8] = [
    ("file.hidden", 4),
    ("socket.hidden", 4),
    // The second time, the process refuses.
    ("update.recorded", 2),
    ("update.told", 2),
    ("update.answered", 2),
    // The first time, the guest refuses; the device is plugged still.
    ("unplug.recorded", 2),
    ("unplug.answered", 2),
    ("plug.done", 2),
];

/// What is done to the agent and its devices.
#[derive(Debug, Clone)]
enum Action {
    /// The caller of this number makes a call.
    Call(usize, Op),
    /// The process of its device is killed.
    Kill(usize),
    /// A directory is there that belongs to no device.
    Stray,
    /// The agent is ended in order, and another one started.
    Restart,
    /// A change that the device's process refuses.
    Refused(usize),
    /// The device is to leave its VMM, and the guest keeps it.
    Kept(usize),
    Drain,
    ShutDown,
    Undrain,
}

fn actions() -> Vec<Action> {
    use Action::*;
    let create = |label: &str| Op::Create(label.to_owned());
    let update = |label: &str, link| Op::Update(label.to_owned(), link);
    vec![
        Call(0, create("a")),
        Call(1, create("b")),
        Call(0, update("c", "down")),
        Refused(0),
        Call(0, Op::Reset),
        Call(1, Op::Restart),
        Call(0, Op::Plug),
        Kept(0),
        Call(0, Op::Unplug),
        Call(0, Op::Plug),
        Kill(1),
        Stray,
        Restart,
        Call(0, update("d", "up")),
        Call(1, Op::Plug),
        Call(1, Op::Unplug),
        Call(0, Op::Unplug),
        Call(1, Op::Delete),
        Call(1, create("e")),
        Drain,
        Undrain,
        ShutDown,
        Undrain,
        Call(0, Op::Plug),
        Call(0, Op::Delete),
    ]
}

#[test]
fn an_agent_killed_at_any_step_is_followed_by_one_that_goes_on() {
    let host = Host::new();
    let listed = Command::new(&host.program).arg("--steps").output().unwrap();
    assert!(
        listed.status.success(),
        "this agent has no steps: build it with debug assertions"
    );
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut deaths: VecDeque<(String, u32)> = VecDeque::new();
    for step in listed.lines() {
        let repeated = REPEATED.iter().find(|(name, _)| *name == step);
        for time in 1..=repeated.map_or(1, |it| it.1) {
            deaths.push_back((step.to_owned(), time));
        }
    }
    assert!(deaths.len() > 20, "{listed}");

    let deaths = Mutex::new(deaths);
    let next = || {
        let mut deaths = deaths.lock().unwrap_or_else(PoisonError::into_inner);
        deaths.pop_front()
    };
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some((step, time)) = next() {
                    let death = format!("{step}:{time}");
                    let one = thread::Builder::new().name(death.clone());
                    let lived = one.spawn(move || runtime().block_on(die_at(&step, time)));
                    if lived.unwrap().join().is_err() {
                        failed.lock().unwrap().push(death);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{failed:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Does everything with an agent that dies at this step, and goes on with another one.
async fn die_at(step: &str, time: u32) {
    let mut world = World::with_vmm(&["nic0", "nic1"]);
    world.host.flags = vec!["--device-program".to_owned(), liar(&world.host)];
    let mut death = vec![("VFU_DIE_AT", format!("{step}:{time}"))];
    if world.start(&death).await.is_err() {
        death.clear();
        revive(&mut world).await;
    }
    for action in actions() {
        if act(&mut world, &action, &death).await.is_err() {
            assert!(!death.is_empty(), "an agent died that was to live");
            death.clear();
            revive(&mut world).await;
            world.resume().await.unwrap();
            if !matches!(action, Action::Call(..) | Action::Kill(_) | Action::Restart) {
                act(&mut world, &action, &death).await.unwrap();
            }
        }
        let devices = world.devices();
        for caller in &mut world.callers {
            if death.is_empty() {
                caller.repeat(&devices).await.unwrap();
            }
        }
    }
    assert!(death.is_empty(), "nothing that is done here passes {step}");
    world.check().await.unwrap();
    world.finish().await;
}

async fn revive(world: &mut World) {
    world.bury();
    world.start(&[]).await.unwrap();
    if !world.rests {
        world.check().await.unwrap();
    }
}

async fn act(world: &mut World, action: &Action, death: &[(&str, String)]) -> Result<(), Died> {
    match action {
        Action::Call(index, op) => {
            let devices = world.devices();
            let caller = &mut world.callers[*index];
            let call = caller.call(op.clone());
            caller.make(&devices, call).await
        }
        Action::Kill(index) => world.kill(*index).await,
        Action::Stray => {
            let stray = world.host.run_dir.join("devices/stray");
            fs::create_dir_all(stray).unwrap();
            Ok(())
        }
        Action::Restart => {
            if world.host.agent.is_some() {
                world.host.end_agent(Signal::SIGTERM);
            }
            world.start(death).await?;
            world.check().await
        }
        Action::Refused(index) => world.refuse(*index).await,
        Action::Kept(index) => world.keep(*index).await,
        Action::Drain => {
            let reason = "new disks".to_owned();
            let drained = world.agent().drain(DrainRequest { reason }).await;
            drained.map(drop).or_else(dead)
        }
        Action::ShutDown => {
            world.rests = true;
            for known in world.callers.iter_mut().filter_map(|it| it.known.as_mut()) {
                known.pid = None;
            }
            let request = ShutDownDevicesRequest::default();
            let Err(status) = world.agent().shut_down_devices(request).await else {
                assert_eq!(world.host.processes(), Vec::<i32>::new());
                return Ok(());
            };
            dead(status)
        }
        Action::Undrain => {
            let undrained = world.agent().undrain(UndrainRequest {}).await;
            undrained.map(drop).or_else(dead)?;
            world.rests = false;
            world.check().await
        }
    }
}

impl World {
    /// Kills the process of a device, and waits for another one.
    async fn kill(&mut self, index: usize) -> Result<(), Died> {
        let known = self.callers[index].known.as_mut().unwrap();
        let killed = known.pid.take().expect("a process that nobody killed");
        let uid = known.uid.clone();
        send(killed, Signal::SIGKILL);
        let deadline = Instant::now() + LIMIT;
        loop {
            let list = self.list().await?;
            let found = list.iter().find(|it| it.uid == uid).expect("the device");
            if is_settled(found) && pid(found) != killed {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "not started again: {found:?}");
            sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// Asks for another MAC address, which the catalogue allows and the process does not.
    async fn refuse(&mut self, index: usize) -> Result<(), Died> {
        let known = self.callers[index].known.clone().unwrap();
        let mut device = nic(&self.callers[index].id).device.unwrap();
        device.name = format!("devices/{}", self.callers[index].id);
        let config = json!({"mac": "52:54:00:12:34:56"});
        device.spec.as_mut().unwrap().config = Some(to_struct(config));
        let request = UpdateDeviceRequest {
            device: Some(device),
            update_mask: Some(FieldMask {
                paths: vec!["spec.config.mac".to_owned()],
            }),
            ..UpdateDeviceRequest::default()
        };
        let status = self.devices().update_device(request).await.unwrap_err();
        if is_death(&status) {
            return Err(Died);
        }
        assert!(status.message().contains("create it anew"), "{status:?}");
        let list = self.settled().await?;
        let found = list.iter().find(|it| it.uid == known.uid).unwrap();
        assert!(!has_mac(found), "{found:?}");
        Ok(())
    }

    /// Asks for a device that the guest does not let go of.
    async fn keep(&mut self, index: usize) -> Result<(), Died> {
        let vmm = self.vmm.as_ref().unwrap();
        vmm.guest_refuses(true);
        let request = UnplugDeviceRequest {
            name: format!("devices/{}", self.callers[index].id),
            ..UnplugDeviceRequest::default()
        };
        let status = self.devices().unplug_device(request).await.unwrap_err();
        if is_death(&status) {
            return Err(Died);
        }
        assert_eq!(reason(&status), "GUEST_REFUSED_UNPLUG", "{status:?}");
        vmm.guest_refuses(false);
        self.check().await
    }
}

/// The agent did not answer.
fn dead(status: Status) -> Result<(), Died> {
    assert!(is_death(&status), "{status:?}");
    Err(Died)
}
