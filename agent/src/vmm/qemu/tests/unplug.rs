//! What a guest makes of the request to give a device up.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

use super::double::{Command, Peer, serve};
use super::{LIMIT, endpoint, vmms};
use crate::vmm::{Error, STUBBORN};

const OURS: (&str, &str) = ("nic0", "vfio-user-pci");

/// Unplugs `nic0` from a QEMU that has it, until `device_del` has done what this does and says that it has not any more.
async fn unplug(
    patience: Duration,
    mut device_del: impl FnMut(&mut Peer, &Command, usize) -> bool + Send + 'static,
) -> (Result<(), Error>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let (tell, told) = mpsc::channel();
    let mut is_there = true;
    let mut count = 0;
    serve(&path, move |_, mut peer| {
        peer.greet(11);
        while let Some(command) = peer.next() {
            if command.operation == "device_del" {
                assert_eq!(command.arguments, json!({"id": "nic0"}));
                count += 1;
                tell.send(()).unwrap();
                is_there = device_del(&mut peer, &command, count);
            } else {
                peer.machine(&command, if is_there { &[OURS] } else { &[] });
            }
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let result = vm.unplug("nic0", patience).await;
    (result, told.try_iter().count())
}

fn deleted(peer: &mut Peer, path: &str) {
    let id = path.rsplit('/').next();
    peer.event("DEVICE_DELETED", json!({"device": id, "path": path}));
}

#[tokio::test]
async fn a_device_is_gone_when_qemu_has_said_so_and_does_not_find_it() {
    let (result, count) = unplug(LIMIT, |peer, command, _| {
        deleted(peer, "/machine/peripheral/nic7");
        peer.answer(command, json!({}));
        deleted(peer, "/machine/peripheral/nic0");
        false
    })
    .await;
    result.unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn the_request_is_repeated_to_a_guest_that_was_not_ready() {
    let (result, count) = unplug(LIMIT, |peer, command, count| {
        match count {
            1 => peer.answer(command, json!({})),
            2 => peer.refuse(
                command,
                "GenericError",
                "Device nic0 is already in the process of unplug",
            ),
            _ => peer.refuse(command, "DeviceNotFound", "Device 'nic0' not found"),
        };
        count < 3
    })
    .await;
    result.unwrap();
    assert_eq!(count, 3);
}

#[tokio::test]
async fn a_guest_that_refuses_keeps_the_device() {
    let (result, _) = unplug(LIMIT, |peer, command, _| {
        peer.answer(command, json!({}));
        let data = json!({"device": "other", "path": "/machine/peripheral/other"});
        peer.event("DEVICE_UNPLUG_GUEST_ERROR", data);
        let data = json!({"device": "nic0", "path": "/machine/peripheral/nic0"});
        peer.event("DEVICE_UNPLUG_GUEST_ERROR", data)
    })
    .await;
    let error = result.unwrap_err();
    assert!(matches!(error, Error::GuestRefused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_does_nothing_is_late_but_was_asked_at_least_once() {
    for patience in [Duration::ZERO, Duration::from_millis(1200)] {
        let (result, count) =
            unplug(patience, |peer, command, _| peer.answer(command, json!({}))).await;
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{error:?}");
        assert!(count >= 1, "{count}");
    }
}

#[tokio::test]
async fn a_guest_that_goes_on_doing_nothing_refuses() {
    let (result, count) =
        unplug(STUBBORN, |peer, command, _| peer.answer(command, json!({}))).await;
    let error = result.unwrap_err();
    assert!(matches!(error, Error::GuestRefused { .. }), "{error:?}");
    assert!(error.to_string().contains("acpiphp"), "{error}");
    assert!(count >= 3, "{count}");
}

#[tokio::test]
async fn what_qemu_refuses_is_told_in_its_words() {
    let (result, count) = unplug(LIMIT, |peer, command, _| {
        peer.refuse(
            command,
            "GenericError",
            "Bus 'x' does not support hotplugging",
        )
    })
    .await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("does not support hotplugging"), "{error}");
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_device_of_another_type_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    serve(&path, |_, mut peer| {
        peer.greet(11);
        while let Some(command) = peer.next() {
            assert_ne!(command.operation, "device_del");
            peer.machine(&command, &[("disk", "virtio-blk-pci")]);
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let error = vm.unplug("disk", LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    vm.unplug("nothing", LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_connection_lost_on_the_way_does_not_lose_the_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    serve(&path, |number, mut peer| {
        peer.greet(11);
        while let Some(command) = peer.next() {
            if command.operation == "device_del" {
                peer.answer(&command, json!({}));
                // The guest lets go while nobody listens.
                return true;
            }
            peer.machine(&command, if number == 0 { &[OURS] } else { &[] });
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    vm.unplug("nic0", LIMIT).await.unwrap();
}
