//! An agent is followed by another build of itself, and a guest notices nothing of what agents die of.

use std::{
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tests::{Guest, Netns, require, traffic};

use super::*;
use crate::agent::{create, e1000, get, wait_for};

/// How often the agent is killed under a guest.
const KILLS: u32 = 20;
const HOST: &str = "198.18.0.1";
const GUEST: &str = "198.18.0.2/30";

/// Programs as another build leaves them: other files.
fn build(host: &Host, name: &str) -> PathBuf {
    let folder = host.path(name);
    fs::create_dir(&folder).unwrap();
    for program in ["vfu-agent", "vfu-device"] {
        fs::copy(host.program.with_file_name(program), folder.join(program)).unwrap();
    }
    folder
}

/// The file that a process runs.
fn inode(path: impl AsRef<Path>) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

fn runs(pid: i32) -> (u64, u64) {
    inode(format!("/proc/{pid}/exe"))
}

#[tokio::test]
async fn another_build_goes_on_with_the_devices_and_starts_new_ones_from_its_own_program() {
    let mut host = Host::new();
    let first = build(&host, "first");
    let second = build(&host, "second");
    host.program = first.join("vfu-agent");
    host.start_agent().await;
    let mut devices = host.devices().await;
    let old = create(&mut devices, nic("old")).await;
    assert_eq!(runs(pid(&old)), inode(first.join("vfu-device")));

    // As a package does it: the new file takes the name of the old one, which runs on without a name.
    let replaced = first.join("vfu-device.new");
    fs::copy(second.join("vfu-device"), &replaced).unwrap();
    fs::rename(&replaced, first.join("vfu-device")).unwrap();
    let after = create(&mut devices, nic("after")).await;
    assert_eq!(runs(pid(&after)), inode(first.join("vfu-device")));
    assert_ne!(runs(pid(&old)), runs(pid(&after)));

    for program in [first.clone(), second] {
        host.end_agent(Signal::SIGKILL);
        host.program = program.join("vfu-agent");
        host.start_agent().await;
        devices = host.devices().await;
        for device in [&old, &after] {
            let id = &device.name["devices/".len()..];
            let adopted =
                wait_for(&mut devices, id, "adopted", |it| state(it) == State::Ready).await;
            assert_eq!(pid(&adopted), pid(device));
            assert_eq!(adopted.uid, device.uid);
        }
        let new = create(&mut devices, nic("new")).await;
        assert_eq!(runs(pid(&new)), inode(program.join("vfu-device")));
        devices.delete_device(deletion("new")).await.unwrap();
    }
    // What is started again is the program of now.
    send(pid(&old), Signal::SIGKILL);
    let again = wait_for(&mut devices, "old", "started again", |it| {
        state(it) == State::Ready && pid(it) != pid(&old)
    })
    .await;
    assert_eq!(
        runs(pid(&again)),
        inode(host.program.with_file_name("vfu-device"))
    );
    for id in ["old", "after"] {
        devices.delete_device(deletion(id)).await.unwrap();
    }
    host.assert_empty().await;
}

#[tokio::test]
async fn a_guest_loses_no_reply_while_its_agent_is_killed_again_and_again() {
    require!(Qemu, Tap);
    let mut host = Host::new();
    let programs = [build(&host, "first"), build(&host, "second")];
    host.start_agent().await;
    let netns = Netns::new().unwrap();
    let tap = json!({"ifname": "vfu0", "netns": netns.path()});
    let request = e1000("nic0", json!({"net": {"tap": tap}}));
    let device = create(&mut host.devices().await, request).await;
    netns.ip(&format!("addr add {HOST}/30 dev vfu0")).unwrap();
    let socket = host.path("run/devices/nic0/vfio-user.sock");
    let mut guest = Guest::builder().nic(socket).boot().unwrap();
    traffic::configure(&mut guest, "eth0", GUEST).unwrap();
    let address: IpAddr = HOST.parse().unwrap();
    traffic::ping(&mut guest, address, 3).unwrap();

    guest
        .sh(&format!(
            "ping -i 0.05 -W 5 {address} >/tmp/replies 2>&1 & echo $! >/tmp/pinger"
        ))
        .unwrap();
    for kill in 0..KILLS {
        host.end_agent(Signal::SIGKILL);
        host.program = programs[kill as usize % 2].join("vfu-agent");
        host.start_agent().await;
        let mut devices = host.devices().await;
        let adopted = wait_for(&mut devices, "nic0", "connected", |it| {
            state(it) == State::Connected
        })
        .await;
        assert_eq!(pid(&adopted), pid(&device), "after {kill} kills");
        assert_eq!(adopted.status.unwrap().restart_count, 0);
        // That there is traffic under every agent.
        let replies = guest.sh("wc -l </tmp/replies").unwrap();
        let replies: u32 = replies.trim().parse().unwrap();
        command::wait_for("more replies", LIMIT, || {
            let now: u32 = guest.sh("wc -l </tmp/replies")?.trim().parse()?;
            Ok((now > replies).then_some(()))
        })
        .unwrap();
    }
    guest
        .sh("kill -INT $(cat /tmp/pinger); while kill -0 $(cat /tmp/pinger); do usleep 10000; done 2>/dev/null; true")
        .unwrap();
    let replies = guest.sh("cat /tmp/replies").unwrap();
    let sequence: Vec<u32> = replies
        .lines()
        .filter_map(|line| {
            line.split_once("seq=")?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    let whole: Vec<u32> = (0..u32::try_from(sequence.len()).unwrap()).collect();
    assert_eq!(sequence, whole, "{replies}");
    assert!(sequence.len() >= KILLS as usize, "{replies}");
    // What was sent last may have been on its way.
    let sent = replies
        .lines()
        .find_map(|line| line.split_once(" packets transmitted"));
    let sent: usize = sent.unwrap().0.parse().unwrap();
    assert!(sent <= sequence.len() + 1, "{replies}");
    eprintln!("{KILLS} kills, {sent} requests, {} replies", sequence.len());

    guest.quit().unwrap();
    let mut devices = host.devices().await;
    wait_for(&mut devices, "nic0", "ready", |it| {
        state(it) == State::Ready
    })
    .await;
    assert_eq!(pid(&get(&mut devices, "nic0").await), pid(&device));
    devices.delete_device(deletion("nic0")).await.unwrap();
    host.assert_empty().await;
}
