//! A device whose client alone has anything to say sleeps in its connection, and hears everybody else all the same.

use std::{
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::libc::SYS_recvmsg;
use peer_vfio_user::Client;
use tests::{Device, command};

use crate::{
    control::Control,
    device::{connect, drive, wait_idle},
    driver::{RING, e1000_with_peer, eventfd, frame, write_frame},
};

const BAR0: u32 = 0;
/// More requests in a row than a device waits for before it dozes.
const MANY: usize = 100;
const LIMIT: Duration = Duration::from_secs(10);

/// Brings the device to sleep in the connection: in recvmsg.
fn lull(device: &Device, client: &mut Client) {
    let dozes = command::wait_for("the device to doze", LIMIT, || {
        for _ in 0..MANY {
            client.region_read(BAR0, 8, &mut [0; 4])?;
        }
        std::thread::sleep(Duration::from_millis(1));
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", device.pid()))?;
        let number = call.split(' ').next().and_then(|word| word.parse().ok());
        Ok((number == Some(SYS_recvmsg)).then_some(()))
    });
    dozes.unwrap();
}

#[test]
fn a_frame_is_received_at_once() {
    let (device, mut peer) = e1000_with_peer();
    let mut driver = drive(&device);
    driver.open();
    for round in 0..3 {
        lull(&device, &mut driver.client);
        write_frame(&mut peer, &frame(60 + round));
        assert_eq!(driver.wait_interrupt() & 0x80, 0x80, "RXT0");
        assert_eq!(driver.received(round as u64).unwrap(), frame(60 + round));
    }
    wait_idle(&device);
}

#[test]
fn no_frame_is_missed_however_it_falls_between_requests() {
    let (device, mut peer) = e1000_with_peer();
    let mut driver = drive(&device);
    driver.open();
    for round in 0..400_usize {
        // Sometimes it dozes by then, sometimes not, and sometimes it is just about to.
        for _ in 0..round % MANY {
            driver.read(8);
        }
        write_frame(&mut peer, &frame(60));
        let index = round as u64 % RING;
        driver.wait_received(index);
        driver.give_back(index);
    }
}

#[test]
fn an_interrupt_that_is_unmasked_by_eventfd_is_signalled_again() {
    let (device, _peer) = e1000_with_peer();
    let mut driver = drive(&device);
    driver.open();
    let unmask = eventfd();
    // DATA_EVENTFD | ACTION_UNMASK on INTx.
    let fds = [unmask.as_fd().as_raw_fd()];
    driver.client.set_irqs(0, 0x14, 0, 1, &fds).unwrap();
    driver.send(0, &frame(60));
    for _ in 0..3 {
        let came = command::wait_for("TXDW", LIMIT, || Ok(driver.interrupt.read().ok()));
        came.unwrap();
        lull(&device, &mut driver.client);
        unmask.write(1).unwrap();
    }
}

#[test]
fn a_second_client_is_turned_away_and_the_next_one_served() {
    let (device, _peer) = e1000_with_peer();
    let mut client = connect(&device.socket());
    lull(&device, &mut client);
    assert!(Client::new(&device.socket()).is_err(), "a second client");
    lull(&device, &mut client);
    drop(client);
    let mut client = connect(&device.socket());
    lull(&device, &mut client);
    // What it holds of a client that has left, the next one would notice.
    let before = descriptors(&device);
    for _ in 0..5 {
        drop(client);
        client = connect(&device.socket());
        lull(&device, &mut client);
    }
    assert_eq!(descriptors(&device), before);
}

fn descriptors(device: &Device) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", device.pid()));
    fds.unwrap().count()
}

#[test]
fn the_agent_and_signals_are_heard() {
    let (device, control) = Control::e1000();
    let mut client = connect(&device.socket());
    for _ in 0..3 {
        lull(&device, &mut client);
        assert_eq!(control.ask("reset"), Ok(()));
    }
    lull(&device, &mut client);
    assert!(device.stop().unwrap().success());
}
