//! What happens to the whole host: its processes are killed at random, it boots again, its clock is set.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use nix::mount::MsFlags;
use proto::v1::{WatchDevicesRequest, device_service_client::DeviceServiceClient};
use tests::require;
use tokio::task::JoinSet;

use super::{
    mounts::{in_own_mounts, mount_at},
    random::Dice,
    *,
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How many device processes are killed.
const KILLS: u32 = 60;
/// One more end within a minute, and the agent gives a device up.
const KILLS_OF_ONE: i64 = 4;

/// Makes and deletes devices until it is told to end, and has one then.
async fn churn(devices: Devices, id: String, mut until: tokio::sync::watch::Receiver<bool>) {
    let mut caller = Caller::new(&id);
    loop {
        for op in [
            Op::Create("a".to_owned()),
            Op::Update("b".to_owned(), "down"),
            Op::Update("c".to_owned(), "up"),
        ] {
            let call = caller.call(op);
            insist(&caller, &devices, &call).await;
        }
        // Long enough for some of them to be killed.
        let rest = Duration::from_millis(300);
        if timeout(rest, until.wait_for(|it| *it)).await.is_ok() {
            return;
        }
        let call = caller.call(Op::Delete);
        insist(&caller, &devices, &call).await;
    }
}

/// Makes a call until it is answered: the process that it needs may have been killed under it.
async fn insist(caller: &Caller, devices: &Devices, call: &Call) {
    let deadline = Instant::now() + LIMIT;
    while let Err(status) = caller.send(devices, call).await {
        assert!(!is_death(&status), "{call:?}: {status:?}");
        if call.op == Op::Delete && status.code() == Code::NotFound {
            return;
        }
        let passing = [Code::Unavailable, Code::FailedPrecondition];
        assert!(passing.contains(&status.code()), "{call:?}: {status:?}");
        assert!(Instant::now() < deadline, "{call:?}: {status:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn device_processes_killed_at_random_come_back_and_are_counted() {
    let mut dice = Dice::new();
    let mut world = World::new(&[]);
    world.start(&[]).await.unwrap();
    let (end, ending) = tokio::sync::watch::channel(false);
    let mut churners = JoinSet::new();
    for index in 0..6 {
        churners.spawn(churn(
            world.devices(),
            format!("nic{index}"),
            ending.clone(),
        ));
    }
    let mut killed: HashMap<String, (i64, i32)> = HashMap::new();
    let mut kills = 0;
    let deadline = Instant::now() + 3 * LIMIT;
    while kills < KILLS {
        assert!(Instant::now() < deadline, "{kills} of {KILLS} kills");
        sleep(Duration::from_millis(dice.roll(20))).await;
        let list = world.list().await.unwrap();
        let running: Vec<_> = list.iter().filter(|it| state(it) == State::Ready).collect();
        if running.is_empty() {
            continue;
        }
        let index = usize::try_from(dice.roll(running.len() as u64)).unwrap();
        let victim = running[index];
        let (count, last) = killed.entry(victim.uid.clone()).or_default();
        // One that was deleted meanwhile is nobody to kill, and the same one is not killed twice.
        let is_there = world.host.processes().contains(&pid(victim));
        if is_there && *count < KILLS_OF_ONE && *last != pid(victim) {
            send(pid(victim), Signal::SIGKILL);
            (*count, *last) = (*count + 1, pid(victim));
            kills += 1;
        }
    }
    end.send_replace(true);
    while let Some(ended) = churners.join_next().await {
        ended.unwrap();
    }
    let list = world.settled().await.unwrap();
    assert_eq!(list.len(), 6);
    for device in &list {
        let restarts = device.status.as_ref().unwrap().restart_count;
        let kills = killed.get(&device.uid).map_or(0, |it| it.0);
        assert_eq!(restarts, kills, "{}", device.name);
    }
    let agent = world.host.agent.as_ref().unwrap().id();
    assert_eq!(children(agent).len(), 6, "no zombies");
    world.callers = list
        .iter()
        .map(|device| {
            let mut caller = Caller::new(&device.name["devices/".len()..]);
            caller.pending = Some(caller.call(Op::Create("c".to_owned())));
            caller.learn(device, &Op::Create("c".to_owned()));
            caller.pending = None;
            // Beyond those that were made while the device came to be.
            caller.count = 1000;
            caller
        })
        .collect();
    world.finish().await;
}

/// What is left of a host that has booted: no process, but perhaps a run directory on a disk.
fn lose_power(world: &mut World) {
    world.channel = None;
    if world.host.agent.is_some() {
        world.host.end_agent(Signal::SIGKILL);
    }
    for pid in world.host.processes() {
        send(pid, Signal::SIGKILL);
    }
    let gone = || Ok(world.host.processes().is_empty().then_some(()));
    command::wait_for("the end of all processes", LIMIT, gone).unwrap();
    for caller in &mut world.callers {
        if let Some(known) = &mut caller.known {
            known.pid = None;
        }
    }
}

#[test]
fn a_host_that_has_booted_starts_what_should_run_and_cleans_what_was() {
    require!(Root);
    in_own_mounts(|| async {
        let mut world = World::new(&["nic0", "nic1", "nic2"]);
        let boot = world.host.path("boot_id");
        fs::copy(BOOT_ID, &boot).unwrap();
        mount_at(boot.to_str().unwrap(), BOOT_ID, "", MsFlags::MS_BIND, "");
        let death = "delete.recorded".to_owned();
        world.start(&[("VFU_DIE_AT", death)]).await.unwrap();
        let devices = world.devices();
        for caller in &mut world.callers {
            let call = caller.call(Op::Create("a".to_owned()));
            caller.make(&devices, call).await.unwrap();
        }
        let version = DeviceServiceClient::new(world.channel())
            .list_devices(ListDevicesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .resource_version;
        let going = &mut world.callers[2];
        let call = going.call(Op::Delete);
        assert!(going.make(&devices, call).await.is_err());
        world.bury();

        for (boots, is_kept) in [(1, true), (2, false)] {
            lose_power(&mut world);
            // A process of this boot that has the number of one of the boot before.
            let mut bystander = std::process::Command::new("sleep")
                .arg("1000")
                .spawn()
                .unwrap();
            if is_kept {
                let manifest = world.host.path("run/devices/nic0/manifest.json");
                let text = fs::read(&manifest).unwrap();
                let mut value: serde_json::Value = serde_json::from_slice(&text).unwrap();
                value["pid"] = bystander.id().into();
                fs::write(manifest, value.to_string()).unwrap();
                fs::create_dir(world.host.path("run/devices/stray")).unwrap();
            } else {
                fs::remove_dir_all(world.host.path("run")).unwrap();
            }
            fs::write(
                &boot,
                format!("00000000-0000-4000-8000-00000000000{boots}\n"),
            )
            .unwrap();
            world.start(&[]).await.unwrap();
            world.check().await.unwrap();
            if let Some(going) = &mut world.callers[2].pending.take() {
                assert_eq!(going.op, Op::Delete);
                world.callers[2].known = None;
                world.check().await.unwrap();
            }
            assert!(bystander.try_wait().unwrap().is_none(), "it was spared");
            bystander.kill().unwrap();
            bystander.wait().unwrap();

            let request = WatchDevicesRequest {
                resource_version: version.clone(),
                ..WatchDevicesRequest::default()
            };
            let refused = async {
                let mut stream = world.devices().watch_devices(request).await?.into_inner();
                stream.message().await
            };
            let status = refused.await.expect_err("a version of another boot");
            assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
            let list = world.list().await.unwrap();
            for device in list {
                let status = device.status.unwrap();
                let condition = &status.conditions[0];
                assert_eq!(condition.reason, "SERVED", "{condition:?}");
            }
        }
        world.finish().await;
    });
}

fn since_epoch(time: Option<&prost_types::Timestamp>) -> Duration {
    let time = SystemTime::try_from(*time.expect("a time")).unwrap();
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// The agent's wall clock is set a day forth and two days back while it waits, adopts, restarts and updates.
#[tokio::test]
async fn a_clock_that_is_set_delays_nothing_and_turns_no_times_round() {
    const DAY: i64 = 86_400;
    let mut world = World::new(&["nic0"]);
    let clock = world.host.path("clock");
    let set = |seconds: i64| {
        // By rename: the agent never reads half of it.
        let new = clock.with_extension("set");
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(new, &clock).unwrap();
    };
    set(0);
    let env = [("VFU_CLOCK_FILE", clock.display().to_string())];
    world.start(&env).await.unwrap();
    let devices = world.devices();
    let call = world.callers[0].call(Op::Create("a".to_owned()));
    world.callers[0].make(&devices, call).await.unwrap();
    let begun = Instant::now();
    let mut updated = Duration::ZERO;
    for (round, seconds) in [DAY, -DAY, 0, -2 * DAY].into_iter().enumerate() {
        set(seconds);
        // A pause before a restart goes by another clock.
        let known = world.callers[0].known.as_mut().unwrap();
        let killed = known.pid.take().unwrap();
        send(killed, Signal::SIGKILL);
        let deadline = Instant::now() + LIMIT;
        while world
            .list()
            .await
            .unwrap()
            .iter()
            .any(|it| pid(it) == killed)
        {
            assert!(Instant::now() < deadline, "its end is not seen");
            sleep(Duration::from_millis(5)).await;
        }
        world.check().await.unwrap();
        let devices = world.devices();
        let call = world.callers[0].call(Op::Update(format!("round{round}"), "down"));
        world.callers[0].make(&devices, call).await.unwrap();
        let list = world.list().await.unwrap();
        let [device] = &list[..] else {
            panic!("{list:?}")
        };
        let created = since_epoch(device.create_time.as_ref());
        let now = since_epoch(device.update_time.as_ref());
        assert!(created <= now, "{device:?}");
        assert!(updated <= now, "an earlier update is later: {device:?}");
        updated = now;
        let status = device.status.as_ref().unwrap();
        assert_eq!(status.restart_count, i64::try_from(round).unwrap() + 1);
        if seconds == DAY {
            // The next agent finds a day that the one before has seen already.
            world.host.end_agent(Signal::SIGKILL);
            set(-DAY);
            world.start(&env).await.unwrap();
            world.check().await.unwrap();
        }
    }
    assert!(begun.elapsed() < 3 * LIMIT, "{:?}", begun.elapsed());
    world.finish().await;
}
