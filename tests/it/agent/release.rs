//! A device's client is asked to let go of it, without a word to its VMM. The client is one that connects the interrupt by
//! which it is asked, as QEMU does for a `vfio-pci` and not yet for a `vfio-user-pci`.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::eventfd::EventFd;
use peer_vfio_user::Client;
use proto::v1::{ListEventsRequest, UnplugDeviceRequest, unplug_device_request::Method};

use super::*;
use crate::{device::connect, driver::eventfd};

/// `VFIO_PCI_REQ_IRQ_INDEX`.
const REQUEST: u32 = 4;
/// `DATA_EVENTFD | ACTION_TRIGGER`.
const TRIGGER: u32 = 0x24;

/// A client that can be asked, and where it hears of it.
struct Asked {
    client: Client,
    interrupt: EventFd,
}

impl Asked {
    fn connect(device: &Device) -> Self {
        let socket = &device.status.as_ref().unwrap().socket_path;
        let mut client = connect(Path::new(socket));
        let interrupt = eventfd();
        client
            .set_irqs(REQUEST, TRIGGER, 0, 1, &[interrupt.as_fd().as_raw_fd()])
            .unwrap();
        Self { client, interrupt }
    }

    /// Waits until it is asked.
    fn hear(&self) {
        let heard = || Ok(self.interrupt.read().ok());
        let times = command::wait_for("a request for the device", LIMIT, heard).unwrap();
        assert_eq!(times, 1, "it is asked once for each call");
    }
}

fn release(seconds: i64) -> UnplugDeviceRequest {
    UnplugDeviceRequest {
        name: "devices/nic0".to_owned(),
        method: Method::ClientRequest.into(),
        timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..UnplugDeviceRequest::default()
    }
}

async fn is_connected(devices: &mut Devices) {
    wait_for(devices, "nic0", "its client", |it| {
        state(it) == State::Connected
    })
    .await;
}

async fn requests(devices: &mut Devices) -> usize {
    let request = ListEventsRequest {
        parent: "devices/nic0".to_owned(),
        filter: "reason = \"RELEASE_REQUESTED\"".to_owned(),
        ..ListEventsRequest::default()
    };
    let listed = devices.list_events(request).await.unwrap().into_inner();
    let counts = listed.events.iter().map(|it| it.count);
    usize::try_from(counts.sum::<i64>()).unwrap()
}

#[tokio::test]
async fn a_client_that_is_asked_for_the_device_lets_go_of_it() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let asked = Asked::connect(&device);
    is_connected(&mut devices).await;
    let gone = std::thread::spawn(move || {
        asked.hear();
        drop(asked);
    });
    let mut request = release(60);
    request.request_id = "00000000-0000-4000-8000-000000000001".to_owned();
    let released = devices.unplug_device(request.clone()).await.unwrap();
    let released = released.into_inner();
    assert_eq!(state(&released), State::Ready, "{released:?}");
    assert_eq!(released.status.unwrap().attachment, None);
    gone.join().unwrap();
    assert_eq!(requests(&mut devices).await, 1);

    // Once more, and of a device that nobody has, it is done already.
    devices.unplug_device(request).await.unwrap();
    devices.unplug_device(release(60)).await.unwrap();
    assert_eq!(requests(&mut devices).await, 1);
    devices.delete_device(deletion("nic0")).await.unwrap();
}

#[tokio::test]
async fn a_client_that_keeps_the_device_uses_it_on_and_can_be_asked_again() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let mut asked = Asked::connect(&device);
    is_connected(&mut devices).await;
    let late = devices.unplug_device(release(1)).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert_eq!(reason(&late), "GUEST_LATE");
    asked.hear();
    // It has the vendor still, and the device is its.
    let mut vendor = [0; 2];
    let configuration_space = 7;
    asked
        .client
        .region_read(configuration_space, 0, &mut vendor)
        .unwrap();
    assert_eq!(u16::from_le_bytes(vendor), 0x8086);
    assert_eq!(state(&get(&mut devices, "nic0").await), State::Connected);
    let refused = devices.delete_device(deletion("nic0")).await.unwrap_err();
    assert_eq!(reason(&refused), "CLIENT_CONNECTED");

    let gone = std::thread::spawn(move || {
        asked.hear();
        drop(asked);
    });
    let released = devices.unplug_device(release(60)).await.unwrap();
    assert_eq!(state(&released.into_inner()), State::Ready);
    gone.join().unwrap();
}

#[tokio::test]
async fn a_device_whose_process_dies_while_its_client_is_asked_has_no_client() {
    let host = Host::start().await;
    let mut devices = host.devices().await;
    let device = create(&mut devices, nic("nic0")).await;
    let asked = Asked::connect(&device);
    is_connected(&mut devices).await;
    let process = pid(&device);
    let killed = std::thread::spawn(move || {
        asked.hear();
        send(process, Signal::SIGKILL);
    });
    devices.unplug_device(release(60)).await.unwrap();
    killed.join().unwrap();
    wait_for(&mut devices, "nic0", "served again", |it| {
        state(it) == State::Ready
    })
    .await;
}
