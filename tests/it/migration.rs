//! A device is moved from one `vfu-device` to another while a driver uses it, as a VMM does it: by the migration states
//! and the data that goes through the client.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use tests::{Device, command};
use vfio_user::{
    Access, MigrationState as State,
    client::{Action, Client, Error, Interrupts, Options},
};

use crate::{
    control::Control,
    device::wait_idle,
    driver::{
        Driver, MEMORY_BYTES, RING, Registers, e1000_with_peer, eventfd, frame, memory, read_frame,
        write_frame,
    },
};

const BAR0: u32 = 0;
const CONFIG: u32 = 7;
const INTX: u32 = 0;
const LIMIT: Duration = Duration::from_secs(10);
/// How much of the state goes into one message: less than all of it.
const PIECE_BYTES: usize = 3000;

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
        self.set_irqs(INTX, 0, Action::Unmask, Interrupts::All(1))
            .unwrap();
    }
}

/// Connects, once nobody else is connected; see the tests of a device.
fn connect(socket: &Path) -> Client {
    let connected = command::wait_for("a connection", LIMIT, || {
        Ok(Client::connect(socket, &Options::default()).ok())
    });
    connected.unwrap()
}

/// A VMM with this memory at the device: DMA map and interrupt, and nothing of what the guest does.
fn plug(device: &Device, memory: std::fs::File) -> Driver<Client> {
    let mut client = connect(&device.socket());
    let access = Access {
        read: true,
        write: true,
    };
    client
        .dma_map(0, MEMORY_BYTES, access, Some((memory.as_fd(), 0)))
        .unwrap();
    let interrupt = eventfd();
    let eventfds = [interrupt.as_fd()];
    client
        .set_irqs(INTX, 0, Action::Trigger, Interrupts::Eventfds(&eventfds))
        .unwrap();
    Driver {
        client,
        memory,
        interrupt,
    }
}

/// The same, and a driver that has set up the card.
pub(crate) fn drive(device: &Device) -> Driver<Client> {
    let mut driver = plug(device, memory());
    enable(&mut driver);
    driver.open();
    driver
}

/// I/O, memory, bus master.
fn enable(driver: &mut Driver<Client>) {
    let command = 7u16.to_le_bytes();
    driver.client.region_write(CONFIG, 4, &command).unwrap();
}

/// Stops the device and reads its state.
fn save(client: &mut Client) -> Vec<u8> {
    client.set_migration_state(State::STOP_COPY).unwrap();
    let mut state = Vec::new();
    loop {
        let piece = client.mig_data_read(PIECE_BYTES).unwrap();
        state.extend_from_slice(&piece);
        if piece.len() < PIECE_BYTES {
            return state;
        }
    }
}

/// Has the device take over a state; it is stopped then.
fn load(client: &mut Client, state: &[u8]) -> Result<(), Error> {
    client.set_migration_state(State::RESUMING)?;
    for piece in state.chunks(PIECE_BYTES) {
        client.mig_data_write(piece)?;
    }
    client.set_migration_state(State::STOP)
}

/// Numbers in frames: what went out, in order.
fn numbered(number: usize) -> Vec<u8> {
    let mut frame = frame(1400);
    frame[14..22].copy_from_slice(&number.to_le_bytes());
    frame
}

/// Reads every frame that the station gets until it has got the last.
fn read_until(peer: &mut UnixStream, sent: &mut Vec<Vec<u8>>, last: &[u8]) {
    while sent.last().is_none_or(|frame| frame != last) {
        sent.push(read_frame(peer));
    }
}

/// Sends until the station, which reads nothing, has everything full, and descriptors wait. Returns how many were sent.
fn send_until_full(driver: &mut Driver<Client>) -> usize {
    let mut count = 0;
    loop {
        let next = (count as u64 + 1) % RING;
        let begin = Instant::now();
        while u64::from(driver.read(0x3810)) == next {
            // The ring is full, and stays so: the device waits for the backend.
            if begin.elapsed() > Duration::from_millis(500) {
                return count;
            }
        }
        driver.send(count as u64 % RING, &numbered(count));
        count += 1;
    }
}

fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> Errno {
    match result {
        Err(Error::Refused { errno, .. }) => errno,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn traffic_goes_on_in_another_process_and_nothing_is_lost_or_doubled() {
    let (source, mut station) = e1000_with_peer();
    let mut driver = drive(&source);
    for index in 0..5 {
        write_frame(&mut station, &frame(100 + index as usize));
        assert_eq!(driver.wait_received(index), frame(100 + index as usize));
    }
    assert_eq!(driver.wait_interrupt() & 0x80, 0x80, "RXT0");
    // Buffers 5 and 6 are left: this one needs one more, and its end waits in the card.
    let long = frame(5000);
    write_frame(&mut station, &long);
    let begun = command::wait_for("a frame to begin", LIMIT, || Ok(driver.buffer(6)));
    assert!(!begun.unwrap().1, "the frame goes on");
    let count = send_until_full(&mut driver);
    assert!(count > RING as usize);

    let state = save(&mut driver.client);
    let (head, tail) = (driver.read(0x3810), driver.read(0x3818));
    assert_ne!(head, tail, "there are frames to be sent");
    let refused = driver.client.region_write(BAR0, 0x3818, &[0; 4]);
    assert_eq!(errno(refused), Errno::EBUSY);

    let (destination, mut new_station) = e1000_with_peer();
    let Driver { client, memory, .. } = driver;
    let mut driver = plug(&destination, memory);
    load(&mut driver.client, &state).unwrap();
    let mut command = [0; 2];
    driver.client.region_read(CONFIG, 4, &mut command).unwrap();
    assert_eq!(command, [7, 0]);
    assert_eq!((driver.read(0x3810), driver.read(0x3818)), (head, tail));
    driver.client.set_migration_state(State::RUNNING).unwrap();

    // What the source has taken is the source's to deliver; the rest comes from here.
    drop(client);
    let mut sent = Vec::new();
    let waiting = (u64::from(tail) + RING - u64::from(head)) % RING;
    let last_there = numbered(count - 1 - waiting as usize);
    read_until(&mut station, &mut sent, &last_there);
    read_until(&mut new_station, &mut sent, &numbered(count - 1));
    let expected: Vec<_> = (0..count).map(numbered).collect();
    assert!(sent == expected, "{} of {count} frames", sent.len());

    // The frame that waited gets its buffers here.
    for index in 0..3 {
        driver.give_back(index);
    }
    let mut received = Vec::new();
    for index in [5, 6, 7] {
        let part = command::wait_for("the long frame", LIMIT, || Ok(driver.buffer(index)));
        let (data, is_last) = part.unwrap();
        received.extend(data);
        assert_eq!(is_last, index == 7);
    }
    assert_eq!(received, long);
    assert_ne!(driver.wait_interrupt() & 0x81, 0, "TXDW or RXT0");

    // And on.
    for index in 3..8 {
        driver.give_back(index);
    }
    for number in 0..50 {
        let index = number % RING;
        let arriving = frame(60 + number as usize);
        write_frame(&mut new_station, &arriving);
        assert_eq!(driver.wait_received(index), arriving);
        driver.give_back(index);
        let tail = u64::from(driver.read(0x3818));
        driver.send(tail, &arriving);
        assert_eq!(read_frame(&mut new_station), arriving);
    }

    // The source has forgotten the guest.
    let mut fresh = drive(&source);
    assert_eq!(fresh.read(0x3818), 0);
    fresh.exchange(&mut station);
    assert!(source.stop().unwrap().success() && destination.stop().unwrap().success());
}

#[test]
fn an_interrupt_that_nobody_has_taken_is_signalled_at_the_destination() {
    let (source, _station) = e1000_with_peer();
    let mut driver = drive(&source);
    driver.send(0, &frame(60));
    let came = command::wait_for("an interrupt", LIMIT, || Ok(driver.interrupt.read().ok()));
    came.unwrap();
    let state = save(&mut driver.client);
    driver.client.unmask();
    assert!(driver.interrupt.read().is_err(), "not while it is stopped");
    let (destination, _new_station) = e1000_with_peer();
    let mut driver = plug(&destination, driver.memory);
    load(&mut driver.client, &state).unwrap();
    assert!(driver.interrupt.read().is_err());
    driver.client.set_migration_state(State::RUNNING).unwrap();
    assert_eq!(driver.wait_interrupt() & 1, 1, "TXDW");
}

#[test]
fn a_move_that_is_given_up_goes_on_at_the_source() {
    let (source, mut station) = e1000_with_peer();
    let mut driver = drive(&source);
    driver.client.set_migration_state(State::PRE_COPY).unwrap();
    driver.send(0, &frame(60));
    assert_eq!(read_frame(&mut station), frame(60), "it still runs");
    save(&mut driver.client);
    write_frame(&mut station, &frame(70));
    // A frame that nobody takes does not keep it busy.
    wait_idle(&source);
    assert_eq!(driver.received(0), None);
    driver.client.set_migration_state(State::RUNNING).unwrap();
    assert_eq!(driver.wait_received(0), frame(70));
    driver.send(1, &frame(61));
    assert_eq!(read_frame(&mut station), frame(61));
}

#[test]
fn a_reset_by_the_agent_leaves_a_stopped_device_stopped() {
    let (device, control) = Control::e1000();
    let mut driver = drive(&device);
    driver.client.set_migration_state(State::STOP).unwrap();
    control.ask("reset").unwrap();
    assert_eq!(driver.read(0x2808), 0, "RDLEN after power-on");
    let write = driver.client.region_write(BAR0, 0x2808, &[0x80, 0, 0, 0]);
    assert_eq!(errno(write), Errno::EBUSY);
    driver.client.set_migration_state(State::RUNNING).unwrap();
    driver.write(0x2808, 0x80);
    assert_eq!(driver.read(0x2808), 0x80);
    // DEVICE_RESET is the client's own way out of every state.
    driver.client.set_migration_state(State::STOP).unwrap();
    driver.client.reset().unwrap();
    driver.write(0x2808, 0x100);
    assert_eq!(driver.read(0x2808), 0x100);
}

#[test]
fn a_state_that_can_not_be_is_refused_and_named() {
    let (source, _station) = e1000_with_peer();
    let state = save(&mut drive(&source).client);
    let text = String::from_utf8(state).unwrap();
    for (from, to, named) in [
        ("\"e1000\"", "\"e1001\"", "device.model"),
        ("\"RCTL\":[", "\"RCTL\":[1", "device.state.registers.RCTL"),
        ("\"registers\":{", "\"registers\":[", "device.state"),
        ("{", "", ": "),
    ] {
        let bad = text.replacen(from, to, 1);
        assert_ne!(bad, text);
        let (destination, mut station) = e1000_with_peer();
        let mut driver = plug(&destination, memory());
        assert_eq!(
            errno(load(&mut driver.client, bad.as_bytes())),
            Errno::EINVAL
        );
        assert_eq!(driver.client.migration_state().unwrap(), State::ERROR);
        let said = command::wait_for("the log", LIMIT, || {
            let log = destination.log();
            let refused = log
                .lines()
                .rfind(|line| line.contains("saved state was not loaded"));
            Ok(refused
                .is_some_and(|line| line.contains(named))
                .then_some(()))
        });
        said.unwrap_or_else(|error| panic!("{named}: {error}: {}", destination.log()));
        let refused = driver.client.set_migration_state(State::RUNNING);
        assert_eq!(errno(refused), Errno::EINVAL);
        driver.client.reset().unwrap();
        enable(&mut driver);
        driver.exchange(&mut station);
    }
}
