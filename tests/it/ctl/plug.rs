//! Devices go into running VMs and out of them by `vfuctl`.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::{
    CloudHypervisor, cloud_hypervisor::Machine, command::wait_for, require,
    require::cloud_hypervisor,
};

use super::{vmm::Vmm, *};

/// What `vfuctl` is told of a cloud-hypervisor whose sockets are in this folder.
fn place(dir: &Path) -> String {
    let (api, events) = (dir.join("api.sock"), dir.join("events"));
    format!(
        "--cloud-hypervisor {} --events {}",
        api.display(),
        events.display()
    )
}

/// Waits for this state of `nic0`.
fn until(agent: &Agent, state: &str) -> Result<()> {
    agent.ctl_ok(&format!("wait nic0 --for state={state} --timeout 20"))?;
    Ok(())
}

/// A guest that asked to let go of `nic0` does nothing: the caller is told, and the device works on.
fn guest_is_late(agent: &Agent) -> Result<()> {
    let words = ["nic0", "the guest has not let go"];
    fails(agent, &["unplug", "nic0", "--timeout", "1"], 8, &words)?;
    let device = json(agent, "get nic0")?;
    assert_eq!(device["status"]["state"], "CONNECTED");
    assert_eq!(device["status"]["attachment"]["state"], "PLUGGED");
    Ok(())
}

#[test]
fn a_device_goes_into_cloud_hypervisor_and_out_again() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let dir = TempDir::new()?;
    let machine = Machine {
        events: Some(dir.path().join("events")),
        ..Machine::default()
    };
    let vmm = CloudHypervisor::start(&dir.path().join("api.sock"), machine)?;
    let place = place(dir.path());
    agent.ctl_ok(&format!("doctor nic0 {place}"))?;
    agent.ctl_ok(&format!("plug nic0 {place} --dry-run"))?;
    assert_eq!(vmm.devices(), [""; 0]);
    let plugged = agent.ctl_ok(&format!("plug nic0 {place}"))?;
    assert!(
        plugged.contains("plugged, bus 0, address 0000:00:02.0"),
        "{plugged}"
    );
    until(&agent, "CONNECTED")?;
    vmm.guest_keeps(true);
    guest_is_late(&agent)?;
    vmm.guest_keeps(false);
    agent.ctl_ok("unplug nic0")?;
    assert_eq!(vmm.devices(), [""; 0]);
    until(&agent, "READY")?;
    agent.ctl_ok("delete nic0")?;
    only(&agent, &[])
}

#[test]
fn the_real_cloud_hypervisor_takes_a_device_before_it_boots_and_while_it_runs() -> Result<()> {
    require!(CloudHypervisor);
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let dir = TempDir::new()?;
    let kernel = dir.path().join("kernel");
    fs::write(&kernel, halting_kernel())?;
    let api = dir.path().join("api.sock");
    let program = cloud_hypervisor().context("the program")?;
    let vmm = Command::new(program)
        .arg("--api-socket")
        .arg(&api)
        .arg("--event-monitor")
        .arg(format!("path={}", dir.path().join("events").display()))
        .stdin(Stdio::null())
        .spawn()?;
    let vmm = Vmm(vmm);
    wait_for("the API of cloud-hypervisor", LIMIT, || {
        Ok(UnixStream::connect(&api).ok())
    })?;
    let place = place(dir.path());

    // There is no machine yet.
    let why = ["no machine yet"];
    fails(&agent, &words(&format!("plug nic0 {place}")), 5, &why)?;
    put(&api, "vm.create", &machine(&kernel))?;
    agent.ctl_ok(&format!("plug nic0 {place}"))?;
    agent.ctl_ok("unplug nic0")?;
    agent.ctl_ok(&format!("plug nic0 {place}"))?;
    put(&api, "vm.boot", "")?;
    until(&agent, "CONNECTED")?;
    guest_is_late(&agent)?;

    agent.ctl_ok("create e1000 nic1 --net.null")?;
    agent.ctl_ok(&format!("doctor nic1 {place}"))?;
    let plugged = agent.ctl_ok(&format!("plug nic1 {place}"))?;
    assert!(plugged.contains("address 0000:00:"), "{plugged}");
    agent.ctl_ok("wait nic1 --for state=CONNECTED --timeout 20")?;

    // It leaves its devices, and comes back to the one that it was not asked to let go of.
    let lost = || Ok::<_, anyhow::Error>(json(&agent, "get nic1")?["status"]["resets"].take());
    let before = lost()?;
    put(&api, "vm.reboot", "")?;
    wait_for("the device's leave", LIMIT, || {
        Ok((lost()? != before).then_some(()))
    })?;
    agent.ctl_ok("wait nic1 --for state=CONNECTED --timeout 20")?;
    let status = json(&agent, "get nic1")?["status"].take();
    assert_eq!(status["attachment"]["state"], "PLUGGED", "{status}");
    wait_for("the place of the other", LIMIT, || {
        let status = json(&agent, "get nic0")?["status"].take();
        let is_out = status["state"] == "READY" && status["attachment"].is_null();
        Ok(is_out.then_some(()))
    })?;
    // It does not come back by itself to a device whose process has ended, and the next reboot brings it back.
    let pid = json(&agent, "get nic1")?["status"]["pid"].as_i64();
    let pid = Pid::from_raw(pid.context("a pid")?.try_into()?);
    kill(pid, Signal::SIGKILL)?;
    backend_lost(&agent, true)?;
    put(&api, "vm.reboot", "")?;
    agent.ctl_ok("wait nic1 --for state=CONNECTED --timeout 20")?;
    backend_lost(&agent, false)?;

    drop(vmm);
    agent.ctl_ok("wait nic1 --for state=READY --timeout 20")?;
    until(&agent, "READY")?;
    agent.ctl_ok("delete nic0 nic1")?;
    only(&agent, &[])
}

/// Waits until the VMM of `nic1` has no process of it, or has one.
fn backend_lost(agent: &Agent, is_lost: bool) -> Result<()> {
    wait_for("what became of the backend", LIMIT, || {
        let conditions = json(agent, "get nic1")?["status"]["conditions"].take();
        let conditions = conditions.as_array().context("conditions")?;
        let is = conditions.iter().any(|it| it["type"] == "BackendLost");
        Ok((is == is_lost).then_some(()))
    })
}

fn words(args: &str) -> Vec<&str> {
    args.split_whitespace().collect()
}

fn machine(kernel: &Path) -> String {
    serde_json::json!({
        "payload": {"kernel": kernel},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 64 << 20, "shared": true},
        "serial": {"mode": "Null"},
        "console": {"mode": "Off"},
    })
    .to_string()
}

/// Asks cloud-hypervisor for what vfu leaves to others.
fn put(api: &Path, operation: &str, body: &str) -> Result<()> {
    let mut stream = UnixStream::connect(api)?;
    let length = body.len();
    write!(
        stream,
        "PUT /api/v1/{operation} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut status = String::new();
    BufReader::new(stream).read_line(&mut status)?;
    ensure!(status.starts_with("HTTP/1.1 204"), "{operation}: {status}");
    Ok(())
}

/// The least that boots: an ELF file whose note has the entry for PVH, where the processor halts.
fn halting_kernel() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    const NOTE: u64 = 64 + 2 * 56;
    const CODE: u64 = 0x1000;
    // cli; hlt; jmp to the hlt.
    const INSTRUCTIONS: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
    const NOTE_BYTES: u64 = 12 + 4 + 8;

    let mut file = Vec::new();
    // 64 bits, little endian, version 1; an executable for x86-64.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    // The entry, the program headers, no section headers.
    file.extend([ENTRY, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    for (kind, flags, offset, address, bytes, alignment) in [
        (1_u32, 5_u32, CODE, ENTRY, INSTRUCTIONS.len() as u64, CODE),
        (4, 4, NOTE, 0, NOTE_BYTES, 4),
    ] {
        file.extend([kind, flags].map(u32::to_le_bytes).concat());
        let rest = [offset, address, address, bytes, bytes, alignment];
        file.extend(rest.map(u64::to_le_bytes).concat());
    }
    // XEN_ELFNOTE_PHYS32_ENTRY.
    file.extend([4_u32, 8, 18].map(u32::to_le_bytes).concat());
    file.extend(b"Xen\0");
    file.extend(ENTRY.to_le_bytes());
    file.resize(CODE as usize, 0);
    file.extend(INSTRUCTIONS);
    file
}
