//! Logs of devices, read through the agent. The tests write to a device's log as its process does: they append to it.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime},
};

use nix::sys::signal::Signal;
use prost_types::Timestamp;
use proto::v1::{
    DeleteDeviceRequest, LogLine, ReadLogsRequest, ReadLogsResponse, ResourceLimits,
    device_spec::RestartPolicy, device_status::State,
};
use tests::command;
use tonic::{Code, Streaming};

use crate::agent::{
    Devices, Host, LIMIT, create, deletion, nic, pid, reason, send, spec, state, wait_for,
};

fn log(host: &Host, id: &str) -> File {
    let path = host.run_dir.join("devices").join(id).join("log");
    File::options().append(true).open(path).unwrap()
}

fn logs_of(id: &str) -> ReadLogsRequest {
    ReadLogsRequest {
        name: format!("devices/{id}"),
        ..ReadLogsRequest::default()
    }
}

fn follow(id: &str) -> ReadLogsRequest {
    ReadLogsRequest {
        follow: true,
        ..logs_of(id)
    }
}

async fn open(devices: &mut Devices, request: ReadLogsRequest) -> Streaming<ReadLogsResponse> {
    devices.read_logs(request).await.unwrap().into_inner()
}

/// The next lines; none when the stream is over.
async fn next(stream: &mut Streaming<ReadLogsResponse>) -> Vec<LogLine> {
    let message = tokio::time::timeout(LIMIT, stream.message());
    let message = message.await.expect("lines in time").unwrap();
    message.map_or(Vec::new(), |it| it.lines)
}

async fn read(devices: &mut Devices, request: ReadLogsRequest) -> Vec<String> {
    let mut stream = open(devices, request).await;
    let mut all = Vec::new();
    loop {
        let lines = next(&mut stream).await;
        if lines.is_empty() {
            return all;
        }
        all.extend(lines.into_iter().map(|it| it.text));
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

#[tokio::test]
async fn a_log_is_read_whole_and_by_its_end_and_from_a_time_on() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let mut first = next(&mut open(&mut devices, logs_of("nic0")).await).await;
    let serving = first.remove(0);
    assert!(serving.text.contains("serving"), "{}", serving.text);
    let age = now().seconds - serving.time.unwrap().seconds;
    assert!((0..60).contains(&age), "{age} s");

    let future = "9000-01-01T00:00:00.000001Z  INFO later";
    let mut log = log(&host, "nic0");
    log.write_all(format!("none\n{future}\n").as_bytes())
        .unwrap();
    log.write_all(b"half \xff").unwrap();
    let all = read(&mut devices, logs_of("nic0")).await;
    assert_eq!(all[1..], ["none", future, "half \u{fffd}"]);
    let tail = |tail_lines| ReadLogsRequest {
        tail_lines: Some(tail_lines),
        ..logs_of("nic0")
    };
    assert_eq!(read(&mut devices, tail(2)).await, all[2..]);
    assert_eq!(read(&mut devices, tail(0)).await, [""; 0]);
    assert_eq!(read(&mut devices, tail(i32::MAX)).await, all);
    let later = ReadLogsRequest {
        since: Some(now()),
        ..logs_of("nic0")
    };
    assert_eq!(read(&mut devices, later.clone()).await, all[2..]);
    let last = ReadLogsRequest {
        tail_lines: Some(1),
        ..later
    };
    assert_eq!(read(&mut devices, last).await, [""; 0]);

    let error = devices.read_logs(tail(-1)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("tail_lines"), "{error}");
    let error = devices.read_logs(logs_of("nic1")).await.unwrap_err();
    assert_eq!(reason(&error), "DEVICE_NOT_FOUND");
}

#[tokio::test]
async fn who_follows_gets_each_line_once_over_restarts_and_dropped_lines() {
    const LOG_BYTES: u64 = 64 << 10;
    const BURSTS: usize = 40;
    const BURST: usize = 500;
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    spec(&mut request).limits = Some(ResourceLimits {
        log_bytes: LOG_BYTES,
        ..ResourceLimits::default()
    });
    let device = create(&mut devices, request).await;
    let mut stream = open(&mut devices, follow("nic0")).await;
    let mut log = log(&host, "nic0");
    let (mut read, mut serving) = (0, 0);
    for burst in 0..BURSTS {
        if burst == BURSTS / 2 {
            send(pid(&device), Signal::SIGKILL);
        }
        for number in burst * BURST..(burst + 1) * BURST {
            log.write_all(format!("line {number:050}\n").as_bytes())
                .unwrap();
        }
        // The process that came in the place of the killed one writes to it, too.
        while read < (burst + 1) * BURST || (burst > BURSTS / 2 && serving < 2) {
            for line in next(&mut stream).await {
                match line.text.strip_prefix("line ") {
                    Some(number) => {
                        assert_eq!(number.parse(), Ok(read));
                        read += 1;
                    }
                    None if line.text.contains("serving") => serving += 1,
                    None => panic!("{}", line.text),
                }
            }
        }
    }
    assert_eq!(serving, 2);
    assert_eq!(read, BURSTS * BURST);
    command::wait_for("older lines to be dropped", LIMIT, || {
        Ok((log.metadata()?.blocks() * 512 <= LOG_BYTES).then_some(()))
    })
    .unwrap();
    let lines = self::read(&mut devices, logs_of("nic0")).await;
    let kept: usize = lines.iter().map(|line| line.len() + 1).sum();
    assert!(
        (LOG_BYTES / 2..LOG_BYTES).contains(&(kept as u64)),
        "{kept}"
    );
    assert!(lines.last().unwrap().ends_with(&format!("{}", read - 1)));

    devices
        .delete_device(DeleteDeviceRequest {
            force: true,
            ..deletion("nic0")
        })
        .await
        .unwrap();
    // The last words, then the end.
    loop {
        let lines = next(&mut stream).await;
        if lines.is_empty() {
            break;
        }
        assert!(lines[0].text.contains("ended by signal"), "{lines:?}");
    }
}

#[tokio::test]
async fn a_failed_device_has_a_log() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let mut request = nic("nic0");
    spec(&mut request).restart_policy = RestartPolicy::Never.into();
    let device = create(&mut devices, request).await;
    send(pid(&device), Signal::SIGKILL);
    wait_for(&mut devices, "nic0", "failed", |it| {
        state(it) == State::Failed
    })
    .await;
    let lines = read(&mut devices, logs_of("nic0")).await;
    assert!(lines[0].contains("serving"), "{lines:?}");
}

#[tokio::test]
async fn readers_are_counted_and_end_with_the_agent() {
    let mut host = Host::start().await;
    let mut devices = host.devices().await;
    create(&mut devices, nic("nic0")).await;
    let mut streams = Vec::new();
    let error = loop {
        match devices.read_logs(follow("nic0")).await {
            Ok(stream) => streams.push(stream.into_inner()),
            Err(error) => break error,
        }
        assert!(streams.len() <= 1000);
        if streams.len().is_multiple_of(50) {
            // A connection has so many streams at most.
            devices = host.devices().await;
        }
    };
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert_eq!(reason(&error), "TOO_MANY_STREAMS");
    streams.pop();
    // The agent hears of the cancellation a little later.
    let again = async {
        loop {
            if let Ok(stream) = devices.read_logs(follow("nic0")).await {
                return stream.into_inner();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut stream = tokio::time::timeout(LIMIT, again).await.unwrap();
    assert!(next(&mut stream).await[0].text.contains("serving"));
    host.end_agent(Signal::SIGTERM);
    let ended = tokio::time::timeout(LIMIT, stream.message()).await.unwrap();
    assert!(matches!(ended, Ok(None) | Err(_)), "{ended:?}");
}
