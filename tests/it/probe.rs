//! `vfu-device probe` and `vfuctl probe`: what they show of a device, and what they say of everything else.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use serde_json::{Value, json};
use tests::{
    Agent, Device,
    agent::programs,
    command::{self, Output, wait_for},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `vfu-device probe` to its end.
fn probe(args: &[&str], socket: &Path) -> Result<Output> {
    let mut command = Command::new(programs()?.join("vfu-device"));
    command.arg("probe").args(args).arg(socket);
    command::output(&mut command, LIMIT)
}

/// A probe that has to fail with this exit code and name each of `words`.
fn fails(socket: &Path, code: i32, words: &[&str]) -> Result<()> {
    let output = probe(&["--timeout", "0.5"], socket)?;
    let told = format!("{}: {}\n{}", socket.display(), output.status, output.stderr);
    ensure!(output.status.code() == Some(code), "not {code}: {told}");
    ensure!(output.stdout.is_empty(), "printed {}", output.stdout);
    ensure!(output.stderr.lines().count() == 1, "not one line: {told}");
    ensure!(
        output.stderr.contains(&socket.display().to_string()),
        "not named: {told}"
    );
    for word in words {
        ensure!(output.stderr.contains(word), "no `{word}`: {told}");
    }
    Ok(())
}

fn e1000() -> Result<Device> {
    let config = json!({"mac": "52:54:00:12:34:56", "net": {"loopback": {}}});
    Device::start(Device::dir()?, "e1000", &config.to_string())
}

/// A server that does `serve` with each client.
fn serve(path: &Path, serve: impl Fn(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
}

#[test]
fn an_e1000_is_shown_as_lspci_shows_it() -> Result<()> {
    let device = e1000()?;
    let output = probe(&[], &device.socket())?;
    assert!(output.status.success(), "{}", output.stderr);
    let socket = format!("\tSocket: {}", device.socket().display());
    for line in [
        "Ethernet controller [0200]: [8086:100e] (rev 02) (prog-if 00)",
        "\tSubsystem: [8086:001e]",
        &socket,
        "\tControl: I/O- Mem- BusMaster- SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-",
        "\tInterrupt: pin A routed to IRQ 0",
        "\tRegion 0: Memory at 00000000 (32-bit, non-prefetchable) [size=128K]",
        "\tRegion 2: I/O ports at 0000 [size=64]",
        "\tvfio-user region 7 (config): read write [size=256]",
        "\tvfio-user irq 0 (INTx): count 1, eventfd maskable automasked",
        "\tCapabilities: [dc] Power Management",
        "\t\tVersion: 2",
    ] {
        assert!(
            output.stdout.lines().any(|it| it == line),
            "no `{line}` in\n{}",
            output.stdout
        );
    }
    for words in [
        "vfio-user 0.1",
        "max_data_xfer_size=1048576",
        "Reset+",
        "66MHz+",
    ] {
        assert!(
            output.stdout.contains(words),
            "no `{words}` in\n{}",
            output.stdout
        );
    }
    Ok(())
}

#[test]
fn programs_are_told_the_same_as_json() -> Result<()> {
    let device = e1000()?;
    let output = probe(&["--json"], &device.socket())?;
    let report: Value = serde_json::from_str(&output.stdout)?;
    let function = &report["function"];
    assert_eq!(function["vendor_id"], 0x8086);
    assert_eq!(function["device_id"], 0x100e);
    assert_eq!(function["class_code"], 0x02_0000);
    assert_eq!(function["interrupt_pin"], "A");
    assert_eq!(
        function["bars"],
        json!([
            {"index": 0, "kind": "memory", "bits": 32, "prefetchable": false, "address": 0, "size_bytes": 128 << 10},
            {"index": 2, "kind": "io", "address": 0, "size_bytes": 64},
        ])
    );
    assert_eq!(function["capabilities"][0]["name"], "Power Management");
    assert_eq!(report["protocol"]["version"], "0.1");
    assert_eq!(report["protocol"]["capabilities"]["max_msg_fds"], 16);
    assert_eq!(report["regions"][7]["name"], "config");
    assert_eq!(report["irqs"][0]["automasked"], true);
    assert_eq!(report["socket"], json!(device.socket()));
    Ok(())
}

#[test]
fn a_probe_changes_nothing() -> Result<()> {
    let device = e1000()?;
    let first = probe(&["--json"], &device.socket())?.stdout;
    let again = probe(&["--json"], &device.socket())?.stdout;
    assert_eq!(first, again);
    assert!(!device.log().contains("WARN"), "{}", device.log());
    device.stop()?;
    Ok(())
}

#[test]
fn a_device_in_use_is_left_alone() -> Result<()> {
    let device = e1000()?;
    let mut client = wait_for("a connection", LIMIT, || {
        Ok(peer_vfio_user::Client::new(&device.socket()).ok())
    })?;
    fails(&device.socket(), 73, &["one client at a time", "unplug it"])?;
    let mut id = [0; 4];
    client.region_read(7, 0, &mut id)?;
    assert_eq!(u32::from_le_bytes(id), 0x100e_8086);
    drop(client);
    wait_for("the client's leaving to be noticed", LIMIT, || {
        let output = probe(&[], &device.socket())?;
        Ok(output.status.success().then_some(()))
    })
}

#[test]
fn a_server_that_lets_others_wait_is_not_kept_waiting_for() -> Result<()> {
    let dir = Device::dir()?;
    let path = dir.path().join("busy sock");
    let listener = UnixListener::bind(&path)?;
    let _client = UnixStream::connect(&path)?;
    let _accepted = listener.accept()?;
    fails(&path, 73, &["somebody is connected to it", "unplug it"])?;
    listener.set_nonblocking(true)?;
    let next = listener.accept().map(drop);
    assert_eq!(next.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    Ok(())
}

#[test]
fn what_is_no_vfio_user_server_is_named_by_what_it_is() -> Result<()> {
    let dir = Device::dir()?;
    let at = |name: &str| dir.path().join(name);
    fails(&at("nothing"), 73, &["no such socket", "start the device"])?;
    fs::write(at("file"), "")?;
    fails(&at("file"), 78, &["is no socket"])?;
    fails(dir.path(), 78, &["is no socket"])?;
    fails(&at(&"x".repeat(110)), 78, &["107 bytes"])?;
    drop(UnixListener::bind(at("ended"))?);
    fails(&at("ended"), 73, &["nobody listens"])?;
    let _datagram = UnixDatagram::bind(at("datagram"))?;
    fails(&at("datagram"), 78, &["a datagram socket"])?;
    let packets = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&packets),
        &UnixAddr::new(&at("packets"))?,
    )?;
    listen(&packets, Backlog::new(4)?)?;
    fails(&at("packets"), 78, &["SOCK_SEQPACKET"])?;

    serve(&at("qmp"), |mut stream| {
        let _ =
            stream.write_all(b"{\"QMP\": {\"version\": {\"qemu\": {}}, \"capabilities\": []}}\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    fails(&at("qmp"), 78, &["QMP", "QEMU"])?;
    serve(&at("http"), |mut stream| {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => request.extend(byte),
                _ => return,
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    });
    fails(&at("http"), 78, &["HTTP", "cloud-hypervisor"])?;
    // libvhost-user answers what it does not know with a zero.
    serve(&at("vhost-user"), |mut stream| {
        let mut header = [0; 12];
        while stream.read_exact(&mut header).is_ok() {
            let reply = [&header[..4], &[5, 0, 0, 0, 8, 0, 0, 0], &[0; 8]].concat();
            if stream.write_all(&reply).is_err() {
                return;
            }
        }
    });
    fails(&at("vhost-user"), 78, &["vhost-user"])?;
    // Others close the connection at a request that they do not know.
    serve(&at("vhost-user-strict"), |mut stream| {
        let mut header = [0; 12];
        while stream.read_exact(&mut header).is_ok()
            && header == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        {
            let _ = stream.write_all(&[1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    });
    fails(&at("vhost-user-strict"), 78, &["vhost-user"])?;
    serve(&at("ssh"), |mut stream| {
        let _ = stream.write_all(b"SSH-2.0-x\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    fails(&at("ssh"), 78, &["something else", "SSH-2.0-x"])?;
    Ok(())
}

/// Answers as a PCI device does whose configuration space is read by registers, and otherwise not. It takes the rest of a
/// request that it does not know for another one, as a server in the field does.
fn registers_only(mut stream: UnixStream) {
    let words = |words: &[u32]| words.iter().flat_map(|it| it.to_le_bytes()).collect();
    let mut header = [0; 16];
    while stream.read_exact(&mut header).is_ok() {
        let word = |bytes: &[u8], at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut request = vec![0; word(&header, 4) as usize - 16];
        stream.read_exact(&mut request).unwrap();
        let reply: Option<Vec<u8>> = match header[2] {
            1 => Some(b"\0\0\x01\0{\"capabilities\":{\"max_data_xfer_size\":64}}\0".to_vec()),
            4 => Some(words(&[16, 2, 9, 5])),
            5 => {
                let index = word(&request, 8);
                let size = if index == 7 { 256 } else { 0 };
                Some(words(&[32, 3, index, 0, size, 0, 0, 0]))
            }
            7 => Some(words(&[16, 1, word(&request, 8), 0])),
            9 if word(&request, 12) <= 4 => {
                let count = word(&request, 12) as usize;
                let data = (0..count).map(|at| request[0].wrapping_add(at as u8));
                Some(request.iter().copied().chain(data).collect())
            }
            _ => None,
        };
        // A reply, or one that refuses with ENOTSUP, followed by another to what it took for a request.
        let message = match reply {
            Some(reply) => {
                let head: Vec<u8> = words(&[16 + reply.len() as u32, 1, 0]);
                [&header[..4], &head, &reply].concat()
            }
            None => {
                let head: Vec<u8> = words(&[16, 0x21, 95]);
                [&header[..4], &head, &request[..4], &head].concat()
            }
        };
        stream.write_all(&message).unwrap();
    }
}

#[test]
fn a_server_that_knows_registers_only_is_read_by_registers() -> Result<()> {
    let dir = Device::dir()?;
    let path = dir.path().join("registers");
    serve(&path, registers_only);
    let output = probe(&["--json"], &path)?;
    ensure!(output.status.success(), "{}", output.stderr);
    let report: Value = serde_json::from_str(&output.stdout)?;
    assert_eq!(report["function"]["vendor_id"], 0x0100);
    assert_eq!(report["function"]["subsystem_id"], 0x2f2e);
    assert_eq!(report["function"]["interrupt_line"], 0x3c);
    Ok(())
}

#[test]
fn a_server_that_hangs_or_breaks_the_protocol_is_told() -> Result<()> {
    let dir = Device::dir()?;
    let at = |name: &str| dir.path().join(name);
    serve(&at("silent"), |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    fails(&at("silent"), 73, &["no answer to VERSION", "--timeout"])?;
    let _unaccepted = UnixListener::bind(at("unaccepted"))?;
    fails(&at("unaccepted"), 73, &["no answer to VERSION"])?;
    // Replies to VERSION as specified, and then leaves, or says a size that is none.
    let version = |rest: &'static [u8]| {
        move |mut stream: UnixStream| {
            let mut header = [0; 16];
            if stream.read_exact(&mut header).is_err() {
                return;
            }
            let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
            let mut payload = vec![0; (size as usize).saturating_sub(16)];
            let _ = stream.read_exact(&mut payload);
            header[4..].copy_from_slice(&[20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
            let _ = stream.write_all(&[&header[..], &[0, 0, 1, 0], rest].concat());
            let _ = stream.read_exact(&mut [0; 32]);
        }
    };
    serve(&at("broken"), version(&[7; 16]));
    serve(&at("leaves"), version(&[]));
    fails(&at("leaves"), 73, &["in the middle", "look into its log"])?;
    fails(
        &at("broken"),
        73,
        &["broke the protocol", "look into its log"],
    )?;
    serve(&at("newer"), |mut stream| {
        let mut header = [0; 16];
        let _ = stream.read_exact(&mut header);
        header[4..].copy_from_slice(&[20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let _ = stream.write_all(&[&header[..], &[2, 0, 0, 0]].concat());
        let _ = stream.read_to_end(&mut Vec::new());
    });
    fails(&at("newer"), 73, &["vfio-user 2.0", "update"])
}

#[test]
fn a_socket_that_this_user_may_not_use_is_named() -> Result<()> {
    let device = e1000()?;
    let socket = device.socket();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000))?;
    // Root may everything, unless it gives that up.
    let program = programs()?.join("vfu-device");
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.arg("--bounding-set=-dac_override,-dac_read_search");
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    let output = command::output(command.arg("probe").arg(&socket), LIMIT)?;
    assert_eq!(output.status.code(), Some(77), "{}", output.stderr);
    assert!(
        output.stderr.contains("this user may not connect"),
        "{}",
        output.stderr
    );
    Ok(())
}

#[test]
fn the_agent_s_own_sockets_are_told_apart() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let grpc = agent.dir().join("agent.sock");
    fails(&grpc, 78, &["gRPC", "vfu-agent"])?;
    let control = agent.device_dir("nic0").join("control.sock");
    fails(&control, 78, &["control socket of a vfu-device"])?;
    agent.ctl_ok("delete nic0")?;
    agent.stop()
}

#[test]
fn vfuctl_probes_a_device_by_id_or_by_path() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let socket = agent.device_socket("nic0");
    for target in ["nic0", "devices/nic0", socket.to_str().unwrap()] {
        let page = agent.ctl_ok(&format!("probe {target}"))?;
        assert!(
            page.starts_with("Ethernet controller [0200]: [8086:100e]"),
            "{page}"
        );
    }
    let report: Value = serde_json::from_str(&agent.ctl_ok("probe nic0 -o json")?)?;
    assert_eq!(report["function"]["device_id"], 0x100e);
    let yaml = agent.ctl_ok("probe nic0 -o yaml")?;
    assert!(yaml.contains("  device_id: 4110\n"), "{yaml}");
    agent.ctl_ok("delete nic0")?;
    agent.stop()
}

#[test]
fn vfuctl_needs_no_agent_for_a_path() -> Result<()> {
    let device = e1000()?;
    let agent = Agent::start()?;
    let socket = device.socket();
    let socket = socket.to_str().unwrap();
    let elsewhere = ["--endpoint", "unix:///nonexistent/agent.sock"];
    let output = agent.ctl([&["probe", socket], &elsewhere[..]].concat())?;
    assert!(output.status.success(), "{}", output.stderr);
    assert!(
        output.stdout.starts_with("Ethernet controller"),
        "{}",
        output.stdout
    );
    let output = agent.ctl([&["probe", "nic0"], &elsewhere[..]].concat())?;
    assert_eq!(output.status.code(), Some(7), "{}", output.stderr);
    agent.stop()
}

#[test]
fn vfuctl_leaves_a_device_in_use_alone_and_says_whose_it_is() -> Result<()> {
    let agent = Agent::start()?;
    agent.ctl_ok("create e1000 nic0 --net.null")?;
    let socket = agent.device_socket("nic0");
    let client = wait_for("a connection", LIMIT, || {
        Ok(peer_vfio_user::Client::new(&socket).ok())
    })?;
    wait_for("the agent to know of the client", LIMIT, || {
        let device: Value = serde_json::from_str(&agent.ctl_ok("get nic0 -o json")?)?;
        Ok((device["status"]["state"] == "CONNECTED").then_some(()))
    })?;
    let link = agent.dir().join("link");
    std::os::unix::fs::symlink(&socket, &link)?;
    let targets = [PathBuf::from("nic0"), socket.clone(), link];
    let own = format!("({})", std::process::id());
    for target in &targets {
        let output = agent.ctl([Path::new("probe"), target])?;
        let told = format!("{}: {}", target.display(), output.stderr);
        assert_eq!(output.status.code(), Some(5), "{told}");
        for word in ["devices/nic0 is in use by", &own, "unplug it there"] {
            assert!(output.stderr.contains(word), "no `{word}`: {told}");
        }
    }
    drop(client);
    wait_for("the device to be free", LIMIT, || {
        Ok(agent.ctl(["probe", "nic0"])?.status.success().then_some(()))
    })?;
    agent.ctl_ok("delete nic0")?;
    agent.stop()
}

#[test]
fn vfuctl_says_what_the_probe_says() -> Result<()> {
    let agent = Agent::start()?;
    let endpoint = agent.dir().join("agent.sock");
    let nothing = agent.dir().join("nothing");
    let cases: [(&[&str], i32, &str); 4] = [
        (&["probe", "nic0"], 3, "nic0"),
        (&["probe", nothing.to_str().unwrap()], 5, "no such socket"),
        (&["probe", endpoint.to_str().unwrap()], 2, "gRPC"),
        (
            &[
                "probe",
                "./x",
                "--device-program",
                "/nonexistent/vfu-device",
            ],
            5,
            "/nonexistent/vfu-device",
        ),
    ];
    for (args, code, word) in cases {
        let output = agent.ctl(args)?;
        let told = format!("{args:?}: {}", output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(output.stderr.starts_with("vfuctl: "), "{told}");
        assert!(!output.stderr.contains("vfu-device: "), "{told}");
        assert!(output.stderr.contains(word), "no `{word}`: {told}");
    }
    agent.stop()
}
