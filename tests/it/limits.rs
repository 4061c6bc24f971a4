//! What the processes of devices may use, and their cgroups.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::Command,
    time::SystemTime,
};

use nix::{sys::signal::Signal, unistd::geteuid};
use prost_types::FieldMask;
use proto::v1::{
    Agent, CreateDeviceRequest, Device, DeviceSpec, GetAgentRequest, ListDevicesRequest,
    ResourceLimits, SocketSpec, UpdateDeviceRequest, agent_service_client::AgentServiceClient,
    device_status::State,
};
use tests::{command, require};
use tokio::task::JoinSet;
use tonic::Code;

use crate::agent::{
    Host, LIMIT, create, deletion, get, nic, pid, reason, send, spec, state, wait_for,
};
use crate::service::{begin, slow_program};

fn limited(id: &str, limits: ResourceLimits) -> CreateDeviceRequest {
    let mut request = nic(id);
    spec(&mut request).limits = Some(limits);
    request
}

pub(crate) async fn agent(host: &Host) -> Agent {
    let mut agent = AgentServiceClient::new(host.channel().await);
    let agent = agent.get_agent(GetAgentRequest::default()).await;
    agent.unwrap().into_inner()
}

/// A resource limit of a process, as /proc names it.
pub(crate) fn limit(pid: i32, name: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|it| it.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_device_has_its_limits_from_its_first_start_on_and_an_update_s_from_the_next() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let limits = ResourceLimits {
        memory_bytes: 16 << 20,
        open_files: 100,
        ..ResourceLimits::default()
    };
    let device = create(&mut devices, limited("nic0", limits)).await;
    assert_eq!(device.spec.clone().unwrap().limits, Some(limits));
    assert_eq!(limit(pid(&device), "Max data size"), "16777216");
    assert_eq!(limit(pid(&device), "Max open files"), "100");
    assert_eq!(limit(pid(&device), "Max core file size"), "0");

    let update = UpdateDeviceRequest {
        device: Some(Device {
            name: "devices/nic0".to_owned(),
            spec: Some(DeviceSpec {
                limits: Some(ResourceLimits {
                    open_files: 200,
                    ..ResourceLimits::default()
                }),
                ..DeviceSpec::default()
            }),
            ..Device::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["spec.limits.open_files".to_owned()],
        }),
        ..UpdateDeviceRequest::default()
    };
    let updated = devices.update_device(update).await.unwrap().into_inner();
    assert_eq!(updated.spec.unwrap().limits.unwrap().open_files, 200);
    let before = pid(&device);
    send(before, Signal::SIGKILL);
    let after = wait_for(&mut devices, "nic0", "served again", |it| {
        state(it) == State::Ready && pid(it) != before
    })
    .await;
    assert_eq!(limit(pid(&after), "Max open files"), "200");
    assert_eq!(limit(pid(&after), "Max data size"), "16777216");
}

#[tokio::test]
async fn limits_that_nobody_can_enforce_are_refused_by_name() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let error = agent(&host).await.cgroup_error;
    let cpu = limited(
        "nic0",
        ResourceLimits {
            cpu_millis: 1500,
            ..ResourceLimits::default()
        },
    );
    if error.is_empty() {
        create(&mut devices, cpu).await;
        let path = PathBuf::from(agent(&host).await.cgroup).join("nic0/cpu.max");
        assert_eq!(fs::read_to_string(path).unwrap(), "150000 100000\n");
    } else {
        let refused = devices.create_device(cpu).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused), "LIMIT_UNENFORCEABLE");
        assert!(refused.message().contains("cpu_millis"), "{refused}");
        assert!(refused.message().contains(&error), "{refused}");
    }

    let most = limit(
        host.agent.as_ref().unwrap().id().try_into().unwrap(),
        "Max open files",
    );
    let files = ResourceLimits {
        open_files: most.parse::<u32>().unwrap() + 1,
        ..ResourceLimits::default()
    };
    let refused = devices.create_device(limited("nic1", files)).await;
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), "LIMIT_UNENFORCEABLE");
    assert!(refused.message().contains("LimitNOFILE="), "{refused}");
}

/// The cgroup of a process.
pub(crate) fn cgroup(pid: i32) -> String {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    lines
        .lines()
        .find_map(|it| it.strip_prefix("0::"))
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_device_has_a_cgroup_of_its_own_for_as_long_as_it_lives() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    let path = agent(&host).await.cgroup;
    if path.is_empty() {
        assert!(!geteuid().is_root(), "{}", agent(&host).await.cgroup_error);
        return;
    }
    let path = PathBuf::from(path).join("nic0");
    let device = create(&mut devices, nic("nic0")).await;
    let own = cgroup(pid(&device));
    assert!(
        own.starts_with("/vfu.slice/") && own.ends_with("/nic0"),
        "{own}"
    );
    assert!(path.ends_with(own.trim_start_matches('/')), "{own}");

    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "adopted", |it| pid(it) != 0).await;
    assert_eq!(pid(&adopted), pid(&device));
    assert_eq!(cgroup(pid(&adopted)), own);

    // What a device's process has started goes with it.
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
    devices.delete_device(deletion("nic0")).await.unwrap();
    command::wait_for("the end of the child", LIMIT, || Ok(child.try_wait()?)).unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn without_cgroups_devices_are_served_and_the_agent_says_what_is_missing() {
    let off = |host: &mut Host| host.flags.push("--set=cgroup.path=off".to_owned());
    let host = Host::start_with(off).await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    assert_eq!(state(&get(&mut devices, "nic0").await), State::Ready);
    let agent = agent(&host).await;
    assert_eq!(agent.cgroup, "");
    assert!(
        agent.cgroup_error.contains("cpu_millis"),
        "{}",
        agent.cgroup_error
    );
    assert!(agent.limits.unwrap().log_bytes > 0);
}

#[tokio::test]
async fn the_agent_says_why_its_device_program_does_not_work() {
    let host = Host::start_with(|host| {
        let program = host.path("vfu-device");
        fs::write(&program, "no program").unwrap();
        let flag = format!("--device-program={}", program.display());
        host.flags.push(flag);
    })
    .await;
    let why = async |host: &Host| {
        let [runtime] = &agent(host).await.runtimes[..] else {
            panic!("not one runtime");
        };
        assert_eq!(runtime.name, "vfu-device");
        runtime.error.clone()
    };
    let error = why(&host).await;
    assert!(error.contains("Permission denied"), "{error}");
    assert!(error.contains("--device-program"), "{error}");
    fs::remove_file(host.path("vfu-device")).unwrap();
    let error = why(&host).await;
    assert!(error.contains("looked for"), "{error}");
    // The program that comes is found without a restart.
    let program = tests::agent::programs().unwrap().join("vfu-device");
    fs::copy(program, host.path("vfu-device")).unwrap();
    assert_eq!(why(&host).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_the_limit_is_refused_by_its_name_until_another_ends() {
    let host = Host::start_with(|host| {
        slow_program(host);
        host.flags
            .push("--set=limits.concurrent_calls=1".to_owned());
    })
    .await;
    let mut creation = begin(&host).await;
    let mut devices = host.devices().await;
    let error = devices
        .list_devices(ListDevicesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), &*reason(&error)),
        (Code::ResourceExhausted, "TOO_MANY_CALLS")
    );
    assert!(
        error.message().contains("limits.concurrent_calls"),
        "{error}"
    );
    File::create(host.path("go")).unwrap();
    creation.join_next().await.unwrap().unwrap().unwrap();
    devices
        .list_devices(ListDevicesRequest::default())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_processes_start_at_once_than_the_limit_says() {
    const COUNT: usize = 4;
    let host = Host::start_with(|host| {
        slow_program(host);
        host.flags.push("--set=limits.starting=2".to_owned());
    })
    .await;
    let mut devices = host.devices().await;
    let mut creations = JoinSet::new();
    for index in 0..COUNT {
        let mut devices = devices.clone();
        creations.spawn(async move { create(&mut devices, nic(&format!("nic{index}"))).await });
    }
    // All are recorded, and so on their way to a process.
    for index in 0..COUNT {
        let recorded = async {
            let name = format!("devices/nic{index}");
            let request = proto::v1::GetDeviceRequest { name };
            while devices.get_device(request.clone()).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, recorded).await.unwrap();
    }
    // The program is a script, whose children are not meant.
    let count = || {
        let commands = host.processes().into_iter();
        let commands = commands.filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
        let names = commands.map(|it| String::from_utf8_lossy(&it).into_owned());
        names.filter(|it| it.contains("slow-device")).count()
    };
    let two = || Ok((count() == 2).then_some(()));
    command::wait_for("two processes", LIMIT, two).unwrap();
    // A third would come at once.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(count(), 2);
    File::create(host.path("go")).unwrap();
    let made = creations.join_all().await;
    assert!(made.iter().all(|it| state(it) == State::Ready), "{made:?}");
}

#[tokio::test]
async fn a_device_that_waits_for_its_turn_to_start_can_be_deleted() {
    let host = Host::start_with(|host| {
        slow_program(host);
        host.flags.push("--set=limits.starting=1".to_owned());
    })
    .await;
    let mut creations = JoinSet::new();
    for id in ["nic0", "nic1"] {
        let mut devices = host.devices().await;
        creations.spawn(async move { devices.create_device(nic(id)).await });
    }
    let mut devices = host.devices().await;
    let one_has_the_turn = async {
        loop {
            let request = proto::v1::ListDevicesRequest::default();
            let list = devices.list_devices(request).await.unwrap().into_inner();
            let (started, waiting): (Vec<_>, Vec<_>) =
                list.devices.into_iter().partition(|it| pid(it) != 0);
            if let ([_], [waits]) = (&*started, &*waiting) {
                return waits.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let waits = tokio::time::timeout(LIMIT, one_has_the_turn).await.unwrap();
    let request = proto::v1::DeleteDeviceRequest {
        name: waits.name.clone(),
        ..proto::v1::DeleteDeviceRequest::default()
    };
    devices.delete_device(request).await.unwrap();
    File::create(host.path("go")).unwrap();
    let made = creations.join_all().await;
    assert_eq!(made.iter().filter(|it| it.is_ok()).count(), 1, "{made:?}");
}

#[tokio::test]
async fn a_device_whose_program_does_not_say_what_it_has_can_be_deleted() {
    let mut host = Host::new();
    let (program, asked) = (host.path("program"), host.path("asked"));
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = models ] && [ -e {dir}/hangs ]; then\n: >{dir}/asked\nexec sleep 60\nfi\n\
         exec {real} \"$@\"\n",
        dir = host.dir.path().display(),
        real = host.program.with_file_name("vfu-device").display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let flag = format!("--device-program={}", program.display());
    host.flags.push(flag);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    // A new build of the program is asked again.
    File::create(host.path("hangs")).unwrap();
    let program = File::open(program).unwrap();
    program.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    send(pid(&device), Signal::SIGKILL);
    command::wait_for("the question", LIMIT, || Ok(asked.exists().then_some(()))).unwrap();
    devices.delete_device(deletion("nic0")).await.unwrap();
    let request = proto::v1::ListEventsRequest {
        parent: "devices/nic0".to_owned(),
        ..proto::v1::ListEventsRequest::default()
    };
    let events = devices.list_events(request).await.unwrap().into_inner();
    let given_up = |it: &&proto::v1::Event| it.reason == "DEVICE_PROGRAM_FAILED";
    assert_eq!(events.events.iter().find(given_up), None, "deleted late");
    host.assert_empty().await;
}

#[tokio::test]
async fn a_socket_has_the_owner_group_and_mode_of_its_device_over_all_its_processes() {
    require!(Root);
    let mut host = Host::start().await;
    let mut request = nic("nic0");
    spec(&mut request).socket = Some(SocketSpec {
        uid: Some(1234),
        gid: Some(4321),
        mode: Some(0o660),
    });
    let device = create(&mut host.devices().await, request).await;
    let path = device.status.clone().unwrap().socket_path;
    let is = || {
        let found = fs::metadata(&path).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(is(), (1234, 4321, 0o660));
    // Another agent does not have the socket and makes a new one for the next process.
    host.end_agent(Signal::SIGKILL);
    host.start_agent().await;
    send(pid(&device), Signal::SIGKILL);
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "served again", |it| {
        state(it) == State::Ready && pid(it) != pid(&device)
    })
    .await;
    assert_eq!(is(), (1234, 4321, 0o660));
}
