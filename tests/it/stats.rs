//! The counters of devices, as WatchStats sends them.

use std::{
    collections::BTreeMap, fs::File, io::Write, os::unix::net::UnixStream, path::Path,
    time::Duration,
};

use nix::sys::signal::Signal;
use peer_vfio_user::Client;
use prost_types::{Duration as ProtoDuration, Timestamp};
use proto::v1::{
    Device, ResetDeviceRequest, WatchStatsRequest, WatchStatsResponse, device_status::State,
};
use serde_json::json;
use tonic::{Code, Streaming};

use crate::{
    agent::{Devices, Host, LIMIT, create, deletion, e1000, get, nic, pid, send, state, wait_for},
    device::drive_at,
    driver::{Driver, Registers, frame},
};

const TENTH: ProtoDuration = ProtoDuration {
    seconds: 0,
    nanos: 100_000_000,
};

/// What one answer says.
#[derive(Debug)]
struct Sample {
    name: String,
    start_time: Option<Timestamp>,
    values: BTreeMap<String, u64>,
}

impl Sample {
    fn new(answer: WatchStatsResponse) -> Self {
        let values = answer.stats.into_iter();
        Self {
            name: answer.name,
            start_time: answer.start_time,
            values: values.map(|stat| (stat.name, stat.value)).collect(),
        }
    }

    fn get(&self, name: &str) -> u64 {
        let value = self.values.get(name).copied();
        value.unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    fn counted<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        names.map(|name| self.get(name))
    }
}

async fn watch(devices: &mut Devices, name: &str) -> Streaming<WatchStatsResponse> {
    let request = WatchStatsRequest {
        name: name.to_owned(),
        interval: Some(TENTH),
    };
    devices.watch_stats(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<WatchStatsResponse>) -> Option<Sample> {
    let message = tokio::time::timeout(LIMIT, stream.message()).await;
    message.expect("an answer").unwrap().map(Sample::new)
}

/// The first answer that is as asked.
async fn sample(
    stream: &mut Streaming<WatchStatsResponse>,
    what: &str,
    is: impl Fn(&Sample) -> bool,
) -> Sample {
    let wait = async {
        loop {
            let sample = next(stream).await.expect("the stream goes on");
            if is(&sample) {
                return sample;
            }
        }
    };
    let found = tokio::time::timeout(LIMIT, wait).await;
    found.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A client that knows how often it accessed registers.
struct Counted {
    client: Client,
    reads: u64,
    writes: u64,
}

impl Registers for Counted {
    fn read(&mut self, offset: u64) -> u32 {
        self.reads += 1;
        self.client.read(offset)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.writes += 1;
        self.client.write(offset, value);
    }

    fn unmask(&mut self) {
        self.client.unmask();
    }
}

fn counted(socket: &Path) -> Driver<Counted> {
    let Driver {
        client,
        memory,
        interrupt,
    } = drive_at(socket);
    let client = Counted {
        client,
        reads: 0,
        writes: 0,
    };
    Driver {
        client,
        memory,
        interrupt,
    }
}

fn socket(host: &Host, id: &str) -> std::path::PathBuf {
    host.run_dir.join("devices").join(id).join("vfio-user.sock")
}

#[tokio::test]
async fn counters_are_what_a_client_did() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(
        &mut devices,
        e1000("nic0", json!({"net": {"loopback": {}}})),
    )
    .await;
    let mut stats = watch(&mut devices, "devices/nic0").await;
    let first = next(&mut stats).await.unwrap();
    assert_eq!(first.name, "devices/nic0");
    assert!(first.values.values().all(|value| *value == 0), "{first:?}");

    let mut driver = counted(&socket(&host, "nic0"));
    driver.open();
    // The loopback brings it back.
    driver.send(0, &frame(300));
    let (mut signals, mut causes) = (0, 0);
    while causes & 0x81 != 0x81 {
        match driver.interrupt.read() {
            Ok(count) => {
                signals += count;
                causes |= driver.read(0xc0);
                driver.client.unmask();
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(driver.received(0).unwrap(), frame(300));
    for _ in 0..1000 {
        driver.read(8);
    }
    let (reads, writes) = (driver.client.reads, driver.client.writes);
    let done = |sample: &Sample| sample.get("region.reads") == reads;
    let sample = sample(&mut stats, "all reads", done).await;
    signals += driver.interrupt.read().unwrap_or(0);
    let names = [
        "region.writes",
        "config.reads",
        "config.writes",
        "interrupts.intx",
        "interrupts.msi",
        "client.connections",
    ];
    assert_eq!(sample.counted(names), [writes, 0, 1, signals, 0, 1]);
    for way in ["sent", "received"] {
        let names = ["packets", "bytes", "drops", "errors"];
        let counts = names.map(|what| sample.get(&format!("network.{way}_{what}")));
        assert_eq!(counts, [1, 300, 0, 0], "{way}");
    }
    // The frame, and a descriptor at least.
    assert!(sample.get("dma.read_bytes") >= 316, "{sample:?}");
    assert!(sample.get("dma.written_bytes") >= 316, "{sample:?}");

    let name = "devices/nic0".to_owned();
    let reset = ResetDeviceRequest {
        name,
        ..ResetDeviceRequest::default()
    };
    devices.reset_device(reset).await.unwrap();
    drop(driver);
    let client = drive_at(&socket(&host, "nic0"));
    // Another stream begins with what there is by now.
    let again = |sample: &Sample| sample.get("client.connections") == 2;
    self::sample(&mut stats, "another client", again).await;
    let mut second = watch(&mut devices, "devices/-").await;
    let later = next(&mut second).await.unwrap();
    let names = [
        "region.reads",
        "network.sent_packets",
        "resets.api",
        "resets.lost_connection",
        "resets.software",
    ];
    assert_eq!(later.counted(names), [reads, 1, 1, 1, 0]);
    assert_eq!(later.start_time, first.start_time);
    drop(client);
}

#[tokio::test]
async fn counters_begin_anew_with_another_process_and_end_with_the_device() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let mut stats = watch(&mut devices, "devices/nic0").await;
    let client = UnixStream::connect(socket(&host, "nic0")).unwrap();
    let before = sample(&mut stats, "a client", |it| {
        it.values.get("client.connections") == Some(&1)
    })
    .await;
    send(pid(&device), Signal::SIGKILL);
    let after = sample(&mut stats, "another process", |it| {
        it.start_time != before.start_time && !it.values.is_empty()
    })
    .await;
    assert!(after.start_time.is_some());
    assert_eq!(after.get("client.connections"), 0);
    drop(client);
    let all = watch(&mut devices, "devices/-").await;
    devices.delete_device(deletion("nic0")).await.unwrap();
    let wait = async { while next(&mut stats).await.is_some() {} };
    tokio::time::timeout(LIMIT, wait).await.unwrap();

    // Whoever watches all devices goes on, with none and with others.
    let mut all = all;
    create(&mut devices, nic("nic1")).await;
    sample(&mut all, "the other device", |it| {
        it.name == "devices/nic1" && !it.values.is_empty()
    })
    .await;
}

#[tokio::test]
async fn counters_go_on_while_the_agent_is_dead() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let mut driver = counted(&socket(&host, "nic0"));
    driver.read(8);
    let mut stats = watch(&mut devices, "devices/nic0").await;
    let before = sample(&mut stats, "a read", |it| it.get("region.reads") == 1).await;
    host.end_agent(Signal::SIGKILL);
    for _ in 0..10 {
        driver.read(8);
    }
    host.start_agent().await;
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "adopted", |it| {
        state(it) == State::Connected
    })
    .await;
    let after = next(&mut watch(&mut devices, "devices/nic0").await).await;
    let after = after.unwrap();
    assert_eq!(after.get("region.reads"), 11);
    assert_eq!(after.start_time, before.start_time);
}

#[tokio::test]
async fn garbage_is_no_counters_and_said_once() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("bad")).await;
    create(&mut devices, nic("good")).await;
    let path = host.run_dir.join("devices/bad/stats");
    let mut file = File::options().write(true).open(path).unwrap();
    file.write_all(&b"garbage!".repeat(1024)).unwrap();
    let mut stats = watch(&mut devices, "devices/-").await;
    for _ in 0..5 {
        let [bad, good] = [next(&mut stats).await, next(&mut stats).await].map(Option::unwrap);
        assert_eq!((&*bad.name, bad.values.len()), ("devices/bad", 0));
        assert_eq!(good.name, "devices/good");
        assert_eq!(good.get("region.reads"), 0);
    }
    let said = host.log().matches("device without counters").count();
    assert_eq!(said, 1, "{}", host.log());
    // The device is as it was.
    drive_at(&socket(&host, "bad"));
    let device: Device = get(&mut devices, "bad").await;
    assert_ne!(pid(&device), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_checked_and_the_end_is_said() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let ask = |name: &str, interval| WatchStatsRequest {
        name: name.to_owned(),
        interval,
    };
    let nanos = |seconds, nanos| Some(ProtoDuration { seconds, nanos });
    for (request, code) in [
        (ask("devices/nic1", None), Code::NotFound),
        (ask("nic0", None), Code::InvalidArgument),
        (
            ask("devices/nic0", nanos(0, 99_000_000)),
            Code::InvalidArgument,
        ),
        (ask("devices/nic0", nanos(3601, 0)), Code::InvalidArgument),
        (
            ask("devices/nic0", nanos(i64::MIN, -1)),
            Code::InvalidArgument,
        ),
    ] {
        let refused = devices.watch_stats(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{request:?}");
    }
    let hourly = ask("devices/nic0", nanos(3600, 0));
    let mut streams = Vec::new();
    let mut clients = Vec::new();
    let refused = loop {
        // A connection has a limit of its own.
        if streams.len() % 16 == 0 {
            clients.push(host.devices().await);
        }
        let client = clients.last_mut().unwrap();
        match client.watch_stats(hourly.clone()).await {
            Ok(stream) => streams.push(stream.into_inner()),
            Err(refused) => break refused,
        }
        assert!(streams.len() < 10_000, "no limit");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    streams.pop();
    let wait = async {
        while devices.watch_stats(hourly.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap();

    let mut stream = streams.swap_remove(0);
    assert!(next(&mut stream).await.is_some(), "the first comes at once");
    host.end_agent(Signal::SIGTERM);
    let ended = tokio::time::timeout(LIMIT, stream.message()).await.unwrap();
    let ended = ended.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
}
