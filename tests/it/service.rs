//! The agent as a service: what it tells the service manager, what it takes from it, how it reads its configuration again
//! and how it ends.

use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use proto::v1::{
    GetAgentRequest, ListDevicesRequest, WatchDevicesRequest,
    agent_service_client::AgentServiceClient, device_status::State,
};
use tests::{agent::programs, command};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::agent::{Host, LIMIT, create, nic, pid, send, state, wait_for};

/// Where the service manager hears what a service says.
fn manager(host: &mut Host) -> UnixDatagram {
    let path = host.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let path = path.display().to_string();
    host.env.push(("NOTIFY_SOCKET".to_owned(), path));
    manager
}

/// Hears until the service says this; all that it said until then.
fn hear(manager: &UnixDatagram, wanted: &str) -> Vec<String> {
    let mut said = Vec::new();
    loop {
        let mut bytes = [0; 4096];
        let count = manager.recv(&mut bytes);
        let count = count.unwrap_or_else(|error| panic!("{wanted}: {error}; but {said:?}"));
        let text = str::from_utf8(&bytes[..count]).unwrap();
        said.extend(text.lines().map(str::to_owned));
        if said.iter().any(|it| it == wanted) {
            return said;
        }
    }
}

fn configure(host: &mut Host, text: &str) {
    write(host, text);
    let path = host.path("etc/agent.toml").display().to_string();
    host.flags.extend(["--config".to_owned(), path]);
}

/// Puts another file in the place of the configuration, as an editor does.
fn write(host: &Host, text: &str) {
    fs::create_dir_all(host.path("etc")).unwrap();
    fs::write(host.path("etc/.new"), text).unwrap();
    fs::rename(host.path("etc/.new"), host.path("etc/agent.toml")).unwrap();
}

async fn agent(host: &Host) -> proto::v1::Agent {
    let mut agent = AgentServiceClient::new(host.channel().await);
    let request = GetAgentRequest::default();
    agent.get_agent(request).await.unwrap().into_inner()
}

/// Waits until the agent has this limit of devices.
async fn limited(host: &Host, devices: i32) {
    let wait = async {
        while agent(host).await.limits.unwrap().devices != devices {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limited = tokio::time::timeout(LIMIT, wait).await;
    limited.expect("the limit changes in time");
}

fn agent_pid(host: &Host) -> i32 {
    host.agent.as_ref().unwrap().id().try_into().unwrap()
}

fn ended(host: &mut Host) -> ExitStatus {
    let mut agent = host.agent.take().unwrap();
    command::wait_for("the end of the agent", LIMIT, || Ok(agent.try_wait()?)).unwrap()
}

/// A device program whose devices start when the file `go` is there. It notes in `begun` that it has begun.
pub(crate) fn slow_program(host: &mut Host) {
    let path = host.path("slow-device");
    let real = programs().unwrap().join("vfu-device");
    let dir = host.dir.path().display().to_string();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" != models ]; then\n: >{dir}/begun\nwhile [ ! -e {dir}/go ]; do sleep 0.05; done\nfi\n\
         exec {} \"$@\"\n",
        real.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let path = path.display().to_string();
    host.flags.extend(["--device-program".to_owned(), path]);
}

/// Begins to make a device with the slow program; returns when its process runs.
pub(crate) async fn begin(host: &Host) -> JoinSet<Result<proto::v1::Device, tonic::Status>> {
    let mut devices = host.devices().await;
    let mut creation = JoinSet::new();
    creation.spawn(async move {
        let created = devices.create_device(nic("nic0")).await;
        created.map(tonic::Response::into_inner)
    });
    let begun = host.path("begun");
    command::wait_for("the device's process", LIMIT, || {
        Ok(begun.exists().then_some(()))
    })
    .unwrap();
    creation
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_when_the_agent_serves_lives_and_ends() {
    let mut host = Host::new();
    let manager = manager(&mut host);
    host.env
        .push(("WATCHDOG_USEC".to_owned(), "200000".to_owned()));
    host.start_agent().await;
    hear(&manager, "READY=1");
    for _ in 0..3 {
        hear(&manager, "WATCHDOG=1");
    }
    // What speaks for the agent is not for its devices.
    let device = create(&mut host.devices().await, nic("nic0")).await;
    let environment = fs::read(format!("/proc/{}/environ", pid(&device))).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        assert!(!environment.contains(name), "{environment}");
    }
    send(agent_pid(&host), Signal::SIGTERM);
    hear(&manager, "STOPPING=1");
    assert!(ended(&mut host).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_stopped_gives_no_sign_of_life() {
    let mut host = Host::new();
    let manager = manager(&mut host);
    host.env
        .push(("WATCHDOG_USEC".to_owned(), "200000".to_owned()));
    host.start_agent().await;
    hear(&manager, "WATCHDOG=1");
    send(agent_pid(&host), Signal::SIGSTOP);
    // What was on its way is heard first.
    manager
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while manager.recv(&mut [0; 512]).is_ok() {}
    send(agent_pid(&host), Signal::SIGCONT);
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    hear(&manager, "WATCHDOG=1");
}

/// Starts the agent with this as file descriptor 3, as the service manager passes sockets.
fn activate(host: &mut Host, passed: OwnedFd, names: &str) {
    let agent = host.command();
    let log = File::create(host.path("agent.log")).unwrap();
    let script = "exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=\"$0\" \"$@\" 3<&0 </dev/null";
    let started = Command::new("/bin/sh")
        .args(["-c", script, names])
        .arg(agent.get_program())
        .args(agent.get_args())
        .stdin(Stdio::from(passed))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    host.agent = Some(started.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_the_service_manager_listens_on_outlives_the_agent() {
    let mut host = Host::new();
    fs::create_dir(&host.run_dir).unwrap();
    let path = host.run_dir.join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut pids = Vec::new();
    for name in ["nic0", "nic1"] {
        activate(&mut host, listener.try_clone().unwrap().into(), "api");
        let device = create(&mut host.devices().await, nic(name)).await;
        pids.push(pid(&device));
        send(agent_pid(&host), Signal::SIGTERM);
        assert!(ended(&mut host).success());
        // Callers can still come, and wait for the next agent.
        UnixStream::connect(&path).unwrap();
    }
    assert!(pids.iter().all(|pid| host.processes().contains(pid)));
    for pid in pids {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(!environment.contains("LISTEN_"), "{environment}");
    }
}

#[test]
fn what_is_no_socket_for_the_api_is_refused_from_the_service_manager() {
    let mut host = Host::new();
    let unnamed = || UnixDatagram::unbound().unwrap().into();
    let listening = || UnixListener::bind(host.path("other.sock")).unwrap().into();
    for (passed, names, why) in [
        (
            File::open("/dev/null").unwrap().into(),
            "api",
            "a socket of UNIX addresses",
        ),
        (unnamed(), "api", "is not a stream"),
        (listening(), "metrics", "expected one socket"),
    ] {
        activate(&mut host, passed, names);
        assert_eq!(ended(&mut host).code(), Some(1));
        assert!(host.log().contains(why), "{why}: {}", host.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_changes_with_the_file_and_a_mistake_changes_nothing() {
    let mut host = Host::new();
    let manager = manager(&mut host);
    configure(&mut host, "[limits]\ndevices = 1\n");
    host.start_agent().await;
    hear(&manager, "READY=1");
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let refused = devices.create_device(nic("nic1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("limits.devices"), "{refused}");

    write(&host, "[limits]\ndevices = 2\n");
    hear(&manager, "RELOADING=1");
    hear(&manager, "READY=1");
    limited(&host, 2).await;
    create(&mut devices, nic("nic1")).await;
    assert!(host.log().contains("limits.devices"), "{}", host.log());

    write(&host, "[limits]\ndevces = 3\n");
    let said = hear(&manager, "READY=1");
    let status = said
        .iter()
        .find(|it| it.contains("did you mean limits.devices?"));
    assert!(status.is_some(), "{said:?}");
    let told = agent(&host).await;
    assert!(told.config_error.contains("limits.devces"), "{told:?}");
    assert_eq!(told.limits.unwrap().devices, 2);
    assert!(
        host.log().contains("agent.toml:2:1: limits.devces"),
        "{}",
        host.log()
    );
    let refused = devices.create_device(nic("nic2")).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);

    write(&host, "run_dir = '/elsewhere'\n[limits]\ndevices = 3\n");
    limited(&host, 3).await;
    assert_eq!(agent(&host).await.config_error, "");
    create(&mut devices, nic("nic2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_has_the_configuration_read_again() {
    let mut host = Host::new();
    let manager = manager(&mut host);
    configure(&mut host, "log = 'info'\n");
    host.start_agent().await;
    hear(&manager, "READY=1");
    send(agent_pid(&host), Signal::SIGHUP);
    let said = hear(&manager, "RELOADING=1");
    let time = said
        .iter()
        .find_map(|it| it.strip_prefix("MONOTONIC_USEC="));
    assert!(time.unwrap().parse::<u64>().unwrap() > 0);
    hear(&manager, "READY=1");
    assert!(
        host.log().contains("configuration read again"),
        "{}",
        host.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_call_and_what_is_logged_change_with_the_file() {
    let mut host = Host::new();
    configure(&mut host, "log = 'error'\n[timeouts]\nstop = '1s'\n");
    host.start_agent().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    assert!(!host.log().contains("device process started"));
    write(&host, "log = 'debug'\n[limits]\ndevices = 7\n");
    limited(&host, 7).await;
    create(&mut devices, nic("nic1")).await;
    assert!(
        host.log().contains("device process started"),
        "{}",
        host.log()
    );
}

#[test]
fn a_configuration_is_checked_without_touching_anything() {
    let mut host = Host::new();
    configure(&mut host, "[limits]\ndevices = 5\n");
    let check = |host: &Host| {
        let mut command = host.command();
        command::output(command.arg("--check-config"), LIMIT).unwrap()
    };
    let output = check(&host);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.starts_with("ok\n"), "{output:?}");
    assert!(output.stdout.contains("devices = 5"), "{output:?}");
    write(&host, "[limits]\ndevices = 0\nwatches = 'all'\n");
    let output = check(&host);
    assert_eq!(output.status.code(), Some(1));
    for wrong in [
        "agent.toml:2:1: limits.devices",
        "agent.toml:3:1: limits.watches",
    ] {
        assert!(output.stderr.contains(wrong), "{output:?}");
    }
    assert!(!host.run_dir.exists());
    assert!(!host.path("state").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_told_to_end_finishes_its_calls_and_leaves_devices() {
    let mut host = Host::new();
    slow_program(&mut host);
    host.flags
        .extend(["--set", "timeouts.shutdown=60s"].map(str::to_owned));
    host.start_agent().await;
    let mut devices = host.devices().await;
    let watch = devices.watch_devices(WatchDevicesRequest::default()).await;
    let mut watch = watch.unwrap().into_inner();
    let mut health = HealthClient::new(host.channel().await);
    let health = health.watch(HealthCheckRequest::default()).await;
    let mut health = health.unwrap().into_inner();
    let first = health.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let mut creation = begin(&host).await;

    send(agent_pid(&host), Signal::SIGTERM);
    let not = health.message().await.unwrap().unwrap();
    assert_eq!(not.status(), ServingStatus::NotServing);
    let cut = async {
        loop {
            if let Err(status) = watch.message().await {
                return status;
            }
        }
    };
    let cut = tokio::time::timeout(LIMIT, cut)
        .await
        .expect("the watch ends");
    assert_eq!(cut.code(), Code::Unavailable);
    let refused = devices.list_devices(ListDevicesRequest::default()).await;
    let code = refused.unwrap_err().code();
    // The latter is what the client makes of a connection that takes no more calls.
    assert!(
        matches!(code, Code::Unavailable | Code::Cancelled),
        "{code}"
    );

    // The creation is under way all the while.
    assert!(host.agent.as_mut().unwrap().try_wait().unwrap().is_none());
    File::create(host.path("go")).unwrap();
    let created = creation.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(state(&created), State::Ready);
    assert_eq!(ended(&mut host).code(), Some(0));
    assert_eq!(host.processes(), [pid(&created)]);
    host.start_agent().await;
    let mut devices = host.devices().await;
    let adopted = wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!(pid(&adopted), pid(&created));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_take_too_long_and_a_second_signal_do_not_hold_up_the_end() {
    for (patience, signals, code) in [("100ms", 1, 0), ("1h", 2, 1)] {
        let mut host = Host::new();
        slow_program(&mut host);
        let patience = format!("timeouts.shutdown={patience}");
        host.flags.extend(["--set".to_owned(), patience]);
        host.start_agent().await;
        let mut creation = begin(&host).await;
        send(agent_pid(&host), Signal::SIGTERM);
        if signals == 2 {
            // Two signals at once are one.
            command::wait_for("the first signal to be taken", LIMIT, || {
                Ok(host.log().contains("ending; devices live on").then_some(()))
            })
            .unwrap();
            send(agent_pid(&host), Signal::SIGINT);
        }
        assert_eq!(ended(&mut host).code(), Some(code), "{}", host.log());
        let cut = creation.join_next().await.unwrap().unwrap().unwrap_err();
        // After the second signal there is nobody left to say why.
        assert!(signals == 2 || cut.code() == Code::Unavailable, "{cut}");
        assert_ne!(host.processes(), [0; 0], "the device lives");
        // The next agent goes on with it.
        File::create(host.path("go")).unwrap();
        host.start_agent().await;
        let mut devices = host.devices().await;
        wait_for(&mut devices, "nic0", "ready", |it| {
            state(it) == State::Ready
        })
        .await;
    }
}

#[test]
fn the_units_are_what_the_service_manager_takes() {
    let analyze = Path::new("/usr/bin/systemd-analyze");
    if !analyze.exists() {
        println!("skipped: there is no {}", analyze.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    let mut paths = Vec::new();
    for name in ["vfu-agent.service", "vfu-agent.socket"] {
        // The program is looked for, too.
        let agent = programs().unwrap().join("vfu-agent");
        let unit = fs::read_to_string(units.join(name)).unwrap();
        let unit = unit.replace("/usr/bin/vfu-agent", agent.to_str().unwrap());
        fs::write(dir.path().join(name), unit).unwrap();
        paths.push(dir.path().join(name));
    }
    let mut command = Command::new(analyze);
    command.arg("verify").args(&paths);
    let output = command::output(&mut command, LIMIT).unwrap();
    assert!(output.status.success(), "{output:?}");
    let complaints: Vec<_> = output
        .stderr
        .lines()
        .filter(|it| it.contains("vfu-agent"))
        .collect();
    assert_eq!(complaints, [""; 0]);
}
