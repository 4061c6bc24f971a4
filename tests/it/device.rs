//! `vfu-device` under a third-party client: the crate `vfio_user`, which cloud-hypervisor uses.

use std::{
    fs::File,
    io::{IoSlice, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    libc::linger,
    sys::{
        signal::{Signal, kill},
        socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt},
    },
    unistd::Pid,
};
use peer_vfio_user::Client;
use tests::{Device, agent::programs, command};

use crate::{
    control::Control,
    driver::{
        self, Driver, MEMORY_BYTES, RING, Registers, e1000_with_peer, e1000_with_peer_under, frame,
        read_frame, write_frame,
    },
};

const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// Connects, once nobody else is connected. A client that this process has closed may be held open a little longer by a
/// program that another test is just starting: between fork and exec that has all descriptors.
pub(crate) fn connect(socket: &Path) -> Client {
    let connected = command::wait_for("a connection", Duration::from_secs(10), || {
        Ok(Client::new(socket).ok())
    });
    connected.unwrap()
}

impl Registers for Client {
    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.region_read(BAR0, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.region_write(BAR0, offset, &value.to_le_bytes())
            .unwrap();
    }

    fn unmask(&mut self) {
        // DATA_NONE | ACTION_UNMASK.
        self.set_irqs(0, 0x11, 0, 1, &[]).unwrap();
    }
}

/// Connects, maps memory, enables the function and its interrupt.
pub(crate) fn drive(device: &Device) -> Driver<Client> {
    drive_at(&device.socket())
}

/// The same with the device at this socket.
pub(crate) fn drive_at(socket: &Path) -> Driver<Client> {
    let mut client = connect(socket);
    let memory = driver::memory();
    client
        .dma_map(0, 0, MEMORY_BYTES, memory.as_raw_fd())
        .unwrap();
    let interrupt = driver::eventfd();
    // DATA_EVENTFD | ACTION_TRIGGER on INTx.
    client
        .set_irqs(0, 0x24, 0, 1, &[interrupt.as_fd().as_raw_fd()])
        .unwrap();
    // I/O, memory, bus master.
    client.region_write(CONFIG, 4, &7u16.to_le_bytes()).unwrap();
    Driver {
        client,
        memory,
        interrupt,
    }
}

pub(crate) fn open_files(device: &Device) -> usize {
    let folder = format!("/proc/{}/fd", device.pid());
    std::fs::read_dir(folder).unwrap().count()
}

/// Processor time that the device has taken, in ticks.
fn ticks(device: &Device) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", device.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = fields.split_whitespace().collect();
    // utime and stime.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn info_regions_and_configuration_space() {
    let (device, _peer) = e1000_with_peer();
    let mut client = connect(&device.socket());
    let sizes: Vec<u64> = (0..9)
        .map(|index| client.region(index).unwrap().size)
        .collect();
    assert_eq!(sizes, [128 << 10, 0, 64, 0, 0, 0, 0, 256, 0]);
    let intx = client.get_irq_info(0).unwrap();
    assert_eq!((intx.count, intx.flags), (1, 7));
    assert_eq!(client.get_irq_info(2).unwrap().count, 0);
    let mut config = [0; 256];
    client.region_read(CONFIG, 0, &mut config).unwrap();
    assert_eq!(config[..4], [0x86, 0x80, 0x0e, 0x10]);
    assert_eq!(config[0x3d], 1, "INTA#");
    for at in 0..256 {
        let mut byte = [0];
        client.region_read(CONFIG, at, &mut byte).unwrap();
        assert_eq!(byte[0], config[at as usize], "whole and in pieces");
    }
    client.region_write(CONFIG, 0x10, &[0xff; 4]).unwrap();
    let mut bar = [0; 4];
    client.region_read(CONFIG, 0x10, &mut bar).unwrap();
    assert_eq!(u32::from_le_bytes(bar), 0xfffe_0000);
}

#[test]
fn a_frame_each_way_reset_and_reconnect() {
    let (device, mut peer) = e1000_with_peer();
    let mut driver = drive(&device);
    driver.exchange(&mut peer);
    assert_eq!(driver.read(0x8) & 2, 2, "STATUS: link up");
    driver.client.reset().unwrap();
    assert_eq!(driver.read(0x3818), 0, "TDT after DEVICE_RESET");
    driver
        .client
        .region_write(CONFIG, 4, &7u16.to_le_bytes())
        .unwrap();
    driver.exchange(&mut peer);
    // The client vanishes, and the next one finds the device as after power-on.
    drop(driver);
    let mut driver = drive(&device);
    assert_eq!(driver.read(0x3818), 0);
    driver.exchange(&mut peer);
    assert!(device.stop().unwrap().success());
}

#[test]
fn frames_of_every_length_pass_unchanged() {
    let (device, mut peer) = e1000_with_peer();
    let mut driver = drive(&device);
    driver.open();
    for (count, len) in (60..=1514).enumerate() {
        let index = count as u64 % RING;
        let sent = frame(len);
        driver.send(index, &sent);
        assert_eq!(read_frame(&mut peer), sent);
        write_frame(&mut peer, &sent);
        assert_eq!(driver.wait_received(index), sent);
        driver.give_back(index);
    }
}

#[test]
fn an_address_that_is_made_up_stays_the_socket_s() {
    let address = |dir| {
        let device = Device::start(dir, "e1000", "{}").unwrap();
        let mut driver = drive(&device);
        let address = (driver.read(0x5400), driver.read(0x5404));
        drop(driver);
        (address, device.into_dir().unwrap())
    };
    let (first, dir) = address(Device::dir().unwrap());
    let (again, _dir) = address(dir);
    let (other, _dir) = address(Device::dir().unwrap());
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert_eq!(first.0 & 3, 2, "locally administered, one station");
}

#[test]
fn a_second_client_is_closed_at_once_and_the_first_goes_on() {
    let (device, mut peer) = e1000_with_peer();
    let mut driver = drive(&device);
    assert!(Client::new(&device.socket()).is_err());
    driver.exchange(&mut peer);
    assert!(device.log().contains("a second client was closed"));
}

#[test]
fn a_client_that_sends_garbage_costs_only_its_session() {
    let (device, mut peer) = e1000_with_peer();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[0xff; 4096],
        b"\x01\0\x01\0\x10",
    ] {
        let mut stream = UnixStream::connect(device.socket()).unwrap();
        // The device may have closed already.
        let _ = stream.write_all(garbage);
    }
    let mut driver = drive(&device);
    driver.exchange(&mut peer);
    assert!(device.stop().unwrap().success());
}

#[test]
fn a_client_that_passes_too_many_descriptors_leaves_none_behind() {
    let (device, mut peer) = e1000_with_peer_under(&["prlimit", "--nofile=64"], &[]);
    let before = open_files(&device);
    for _ in 0..3 {
        let stream = UnixStream::connect(device.socket()).unwrap();
        let fds = [stream.as_raw_fd(); 200];
        let rights = [ControlMessage::ScmRights(&fds)];
        let iov = [IoSlice::new(&[1, 0, 1, 0, 16, 0, 0, 0])];
        sendmsg::<()>(stream.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        let closed = (&stream).read(&mut [0; 1]);
        assert!(!matches!(closed, Ok(1..)), "{closed:?}");
    }
    command::wait_for(
        "the descriptors to be closed",
        Duration::from_secs(10),
        || Ok((open_files(&device) == before).then_some(())),
    )
    .unwrap();
    drive(&device).exchange(&mut peer);
}

/// A message of no meaning, with a TCP connection that has data unsent: its last close would wait for a minute. Returns
/// the connection's peer, which reads nothing.
fn send_lingering_socket(stream: &UnixStream) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    tcp.set_nonblocking(true).unwrap();
    while (&tcp).write(&[0; 1 << 16]).is_ok() {}
    tcp.set_nonblocking(false).unwrap();
    let minute = linger {
        l_onoff: 1,
        l_linger: 60,
    };
    setsockopt(&tcp, sockopt::Linger, &minute).unwrap();
    let fds = [tcp.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let iov = [IoSlice::new(&[0; 16])];
    sendmsg::<()>(stream.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
    peer
}

#[test]
fn nobody_waits_for_what_a_client_has_left_unsent() {
    let (device, mut peer) = e1000_with_peer();
    let pid = Pid::from_raw(device.pid() as i32);
    let mut driver = drive(&device);
    // While the device sleeps, a second client comes, sends, and goes.
    kill(pid, Signal::SIGSTOP).unwrap();
    let second = UnixStream::connect(device.socket()).unwrap();
    let _tcp = send_lingering_socket(&second);
    drop(second);
    let begin = Instant::now();
    kill(pid, Signal::SIGCONT).unwrap();
    driver.exchange(&mut peer);
    drop(driver);
    // And the first one sends and goes.
    let stream = command::wait_for("a connection", Duration::from_secs(10), || {
        let mut stream = UnixStream::connect(device.socket())?;
        // VERSION 0.1, without more.
        stream.write_all(&[7, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])?;
        Ok(stream.read_exact(&mut [0; 20]).ok().map(|()| stream))
    });
    let stream = stream.unwrap();
    kill(pid, Signal::SIGSTOP).unwrap();
    let _tcp = send_lingering_socket(&stream);
    drop(stream);
    kill(pid, Signal::SIGCONT).unwrap();
    drive(&device).exchange(&mut peer);
    assert!(begin.elapsed() < Duration::from_secs(30));
}

/// Until the device takes no processor time.
pub(crate) fn wait_idle(device: &Device) {
    let idle = command::wait_for("the device to sleep", Duration::from_secs(10), || {
        let before = ticks(device);
        std::thread::sleep(Duration::from_millis(300));
        Ok((ticks(device) == before).then_some(()))
    });
    idle.unwrap();
}

#[test]
fn a_line_that_is_unmasked_by_eventfd_is_signalled_again_while_it_is_up() {
    let (device, _peer) = e1000_with_peer();
    let mut driver = drive(&device);
    driver.open();
    let unmask = driver::eventfd();
    // DATA_EVENTFD | ACTION_UNMASK on INTx.
    let fds = [unmask.as_fd().as_raw_fd()];
    driver.client.set_irqs(0, 0x14, 0, 1, &fds).unwrap();
    driver.send(0, &frame(60));
    let came = |what| {
        let limit = Duration::from_secs(10);
        command::wait_for(what, limit, || Ok(driver.interrupt.read().ok())).unwrap()
    };
    came("TXDW");
    for _ in 0..3 {
        unmask.write(1).unwrap();
        came("TXDW, which nobody has cleared");
    }
    assert_eq!(driver.read(0xc0) & 1, 1);
    unmask.write(1).unwrap();
    wait_idle(&device);
    assert!(driver.interrupt.read().is_err(), "it was cleared");
}

#[test]
fn guest_memory_that_is_taken_away_is_an_error_and_not_the_end() {
    let (device, mut peer) = e1000_with_peer();
    let mut driver = drive(&device);
    let error = driver::eventfd();
    // DATA_EVENTFD | ACTION_TRIGGER on VFIO_PCI_ERR_IRQ_INDEX.
    let fds = [error.as_fd().as_raw_fd()];
    driver.client.set_irqs(3, 0x24, 0, 1, &fds).unwrap();
    driver.exchange(&mut peer);
    assert!(error.read().is_err());
    driver.memory.set_len(0).unwrap();
    driver.write(0x3818, 3);
    write_frame(&mut peer, &frame(60));
    wait_idle(&device);
    assert_eq!(error.read(), Ok(1));
    drop(driver);
    drive(&device).exchange(&mut peer);
    assert!(device.stop().unwrap().success());
}

#[test]
fn a_device_that_spins_serves_all_and_sleeps_when_nobody_asks() {
    let (device, mut peer) = e1000_with_peer_under(&["env"], &["--spin-us", "1000"]);
    let mut driver = drive(&device);
    driver.exchange(&mut peer);
    wait_idle(&device);
    // A client that never lets it rest keeps nobody else waiting.
    let flood = std::thread::spawn(move || {
        let mut data = [0; 4];
        while driver.client.region_read(BAR0, 8, &mut data).is_ok() {}
    });
    assert!(Client::new(&device.socket()).is_err(), "a second client");
    assert!(device.stop().unwrap().success());
    flood.join().unwrap();
}

#[test]
fn a_device_that_spins_sends_all_to_a_client_that_reads_late() {
    let (device, _peer) = e1000_with_peer_under(&["env"], &["--spin-us", "1000"]);
    let connected = command::wait_for("a connection", Duration::from_secs(10), || {
        Ok(vfio_user::client::Client::connect(&device.socket(), &Default::default()).ok())
    });
    let mut client = connected.unwrap();
    for _ in 0..3 {
        // From the first on the device looks for more; then there is more than the socket holds.
        client.region_read(BAR0, 8, &mut [0; 4]).unwrap();
        for _ in 0..8 {
            client.queue_read(BAR0, 0, 128 << 10).unwrap();
        }
        client.flush().unwrap();
        // Longer than it looks.
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..8 {
            let reply = client.next_reply().unwrap();
            assert_eq!(reply.payload.len(), 16 + (128 << 10));
        }
    }
}

#[test]
fn a_client_is_asked_to_release_the_device() {
    let (device, control) = Control::e1000();
    let ask = || control.ask("request-release");
    let why = ask().unwrap_err();
    assert!(why.contains("no client"), "{why}");
    let mut client = connect(&device.socket());
    let why = ask().unwrap_err();
    assert!(why.contains("has not connected"), "{why}");
    assert!(why.contains("through the VMM's own"), "{why}");
    let asked = driver::eventfd();
    // DATA_EVENTFD | ACTION_TRIGGER on VFIO_PCI_REQ_IRQ_INDEX.
    client
        .set_irqs(4, 0x24, 0, 1, &[asked.as_fd().as_raw_fd()])
        .unwrap();
    assert_eq!(ask(), Ok(()));
    assert_eq!(asked.read(), Ok(1));
}

#[test]
fn a_log_that_can_not_be_written_costs_lines_only() {
    let dir = Device::dir().unwrap();
    let socket = dir.path().join("s.sock");
    let mut child = Command::new(programs().unwrap().join("vfu-device"))
        .args(["e1000", "--socket-path"])
        .arg(&socket)
        .stderr(File::options().write(true).open("/dev/full").unwrap())
        .spawn()
        .unwrap();
    drop(connect(&socket));
    drop(connect(&socket));
    let ended = child.try_wait();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ended.unwrap(), None, "it lives on");
}

#[test]
fn a_silent_client_is_closed_after_five_seconds() {
    let (device, _peer) = e1000_with_peer();
    let mut silent = UnixStream::connect(device.socket()).unwrap();
    silent
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // To the end: a read alone may be interrupted.
    assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 0);
    connect(&device.socket());
}

#[test]
fn bad_starts_name_the_field_and_exit_by_kind() {
    let dir = Device::dir().unwrap();
    let socket = dir.path().join("s.sock");
    let start = |model: &str, config: &str| {
        let output = Command::new(programs().unwrap().join("vfu-device"))
            .args([model, "--socket-path"])
            .arg(&socket)
            .args(["--config", config])
            .output()
            .unwrap();
        assert!(!socket.exists(), "{config}: the socket was left behind");
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    for (model, config, code, says) in [
        ("e1001", "{}", 78, "e1001"),
        ("e1000", "{", 78, "JSON"),
        ("e1000", r#"{"mac":"01:00:00:00:00:01"}"#, 78, "mac"),
        ("e1000", r#"{"mac":7}"#, 78, "mac"),
        ("e1000", r#"{"colour":1}"#, 78, "colour"),
        (
            "e1000",
            r#"{"net":{"tap":{"ifname":"sixteen-bytes-xx"}}}"#,
            78,
            "ifname",
        ),
        (
            "e1000",
            r#"{"net":{"tap":{"netns":"/run/netns/absent"}}}"#,
            73,
            "/run/netns/absent",
        ),
        (
            "e1000",
            r#"{"net":{"tap":{"bridge":"absent0"}}}"#,
            73,
            "absent0",
        ),
        ("e1000", "@/absent/file", 78, "/absent/file"),
    ] {
        let (actual, stderr) = start(model, config);
        assert_eq!(actual, code, "{config}: {stderr}");
        assert!(stderr.contains(says), "{config}: {stderr}");
    }
}

#[test]
fn the_catalogue_describes_the_models() {
    let output = Command::new(programs().unwrap().join("vfu-device"))
        .args(["models", "--json"])
        .output()
        .unwrap();
    let catalogue: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let e1000 = &catalogue["models"][0];
    assert_eq!(e1000["name"], "e1000");
    assert_eq!(e1000["vendor_id"], 0x8086);
    assert_eq!(e1000["device_id"], 0x100e);
    assert_eq!(e1000["config_schema"]["additionalProperties"], false);
    assert!(e1000["config_schema"]["properties"]["mac"]["description"].is_string());
}
