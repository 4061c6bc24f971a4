//! A peer that is no QEMU, is broken, or goes away.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::double::{Peer, serve};
use super::{LIMIT, ask, endpoint, next, plug, vmms};
use crate::vmm::{Error, Event};

fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    (dir, path)
}

/// What is said of a socket whose peer does this.
async fn refusal(mut script: impl FnMut(&mut Peer) + Send + 'static) -> String {
    let (_dir, path) = socket();
    serve(&path, move |_, mut peer| {
        script(&mut peer);
        true
    });
    let (_stop, vmms) = vmms();
    let error = vmms.open(&endpoint(&path)).await.unwrap_err();
    assert!(matches!(error, Error::Stranger { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.len() < 2000, "{} bytes", text.len());
    text
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_told_with_the_cure() {
    let error = refusal(|peer| while peer.next().is_some() {}).await;
    assert!(error.contains("another program is connected"), "{error}");
    assert!(error.contains("a socket of its own (-qmp unix:"), "{error}");
}

#[tokio::test]
async fn what_is_no_qmp_is_told_by_what_it_says() {
    let error = refusal(|peer| {
        peer.bytes(b"QEMU 11.1.3 monitor - type 'help' for more information\r\n(qemu) ");
        peer.next();
    });
    let error = error.await;
    assert!(error.contains("monitor for people"), "{error}");
    let error = refusal(|peer| {
        peer.bytes(b"SSH-2.0-x\x1b[2J\r\n");
    });
    let error = error.await;
    assert!(error.contains("first words are `SSH-2.0-x [2J"), "{error}");
    let error = refusal(|_| ()).await;
    assert!(error.contains("closed the connection before"), "{error}");
    let error = refusal(|peer| while peer.bytes(&[b'x'; 4096]) {}).await;
    assert!(error.contains("a line longer than 1048576"), "{error}");
    let error = refusal(|peer| {
        peer.bytes(
            b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 11, \"minor\": 0, \"micro\": 0}}}}\n",
        );
        let command = peer.next().unwrap();
        peer.refuse(&command, "GenericError", "not today");
    });
    let error = error.await;
    assert!(error.contains("refuses to begin: not today"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let (_dir, path) = socket();
    let (_stop, vmms) = vmms();
    let error = vmms.open(&endpoint(&path)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let long = endpoint(&path.with_file_name("x".repeat(200)));
    let error = vmms.open(&long).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_finds_who_asked_among_everything_else_that_is_said() {
    let (_dir, path) = socket();
    serve(&path, |_, mut peer| {
        peer.greet(11);
        while let Some(command) = peer.next() {
            if command.operation == "slow" {
                // Its caller gives up before that.
                std::thread::sleep(Duration::from_millis(300));
            }
            peer.event("NEWER_THAN_ANY_SCHEMA", json!({"x": [1]}));
            peer.say(&json!({"event": "RESET", "data": {"guest": false}}));
            peer.say(&json!({"return": "of nobody", "id": 999_999}));
            peer.say(&json!({"return": "of nobody", "id": "text"}));
            peer.say(&json!({"return": "of nobody"}));
            peer.say(&json!({"error": {"class": "GenericError", "desc": "of nobody"}}));
            peer.say(&json!({"what": "is this"}));
            peer.answer(&command, json!(command.operation));
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let mut events = vm.events();
    let (one, other) = tokio::join!(ask(&vm, "one", LIMIT), ask(&vm, "other", LIMIT));
    assert_eq!((&*one.unwrap(), &*other.unwrap()), ("\"one\"", "\"other\""));
    assert_eq!(next(&mut events).await, Event::Reset);
    let late = ask(&vm, "slow", Duration::from_millis(50)).await;
    assert!(
        matches!(
            late,
            Err(Error::Unanswered {
                operation: "slow",
                ..
            })
        ),
        "{late:?}"
    );
    assert_eq!(ask(&vm, "later", LIMIT).await.unwrap(), "\"later\"");
}

#[tokio::test]
async fn one_that_never_stops_talking_is_listened_to_slowly() {
    const LINES: u32 = 1000;
    let (_dir, path) = socket();
    serve(&path, |_, mut peer| {
        peer.greet(11);
        while let Some(command) = peer.next() {
            for _ in 0..LINES {
                peer.event("DEVICE_DELETED", json!({"device": "nic0"}));
            }
            peer.answer(&command, json!(command.operation));
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let mut events = vm.events();
    let begun = std::time::Instant::now();
    assert_eq!(ask(&vm, "flood", LIMIT).await.unwrap(), "\"flood\"");
    // At 1280 lines a second, the first 128 of which come at once.
    assert!(begun.elapsed() > Duration::from_millis(600), "too fast");
    assert_eq!(next(&mut events).await, Event::Missed);
    let unplugged = Event::Unplugged {
        id: "nic0".to_owned(),
    };
    assert_eq!(next(&mut events).await, unplugged);
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_and_those_who_wait_are_told() {
    let (_dir, path) = socket();
    let (tell, told) = mpsc::channel();
    serve(&path, move |number, mut peer| {
        peer.greet(11);
        let command = peer.next();
        let operation = command.as_ref().map(|it| it.operation.clone());
        tell.send((number, operation)).unwrap();
        match number {
            0 => {}
            1 => drop(peer.bytes(b"no JSON\n")),
            2 => while peer.bytes(&[b'x'; 4096]) {},
            _ => {
                peer.answer(&command.unwrap(), json!("well"));
                while peer.next().is_some() {}
            }
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let mut events = vm.events();
    for operation in ["dropped", "garbled", "endless"] {
        let lost = ask(&vm, operation, LIMIT).await;
        assert!(matches!(lost, Err(Error::Unanswered { .. })), "{lost:?}");
        assert_eq!(next(&mut events).await, Event::Missed);
    }
    assert_eq!(ask(&vm, "at last", LIMIT).await.unwrap(), "\"well\"");
    let seen: Vec<_> = told
        .try_iter()
        .filter_map(|(_, operation)| operation)
        .collect();
    assert_eq!(seen, ["dropped", "garbled", "endless", "at last"]);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_asked_after_a_pause() {
    let (_dir, path) = socket();
    let (go_on, hold) = mpsc::channel::<()>();
    serve(&path, move |number, mut peer| {
        if number > 0 {
            let _ = hold.recv();
        }
        peer.greet(11);
        let Some(command) = peer.next() else {
            return true;
        };
        if number > 0 {
            peer.answer(&command, json!(command.operation));
            while peer.next().is_some() {}
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let (lost, given_up) = tokio::join!(ask(&vm, "lost", LIMIT), async {
        let mut given_up = ask(&vm, "given up", Duration::from_millis(200)).await;
        // Until the first one has ended the connection, this one may have been answered.
        for _ in 0..3 {
            given_up = ask(&vm, "given up", Duration::from_millis(200)).await;
        }
        drop(go_on);
        given_up
    });
    assert!(matches!(lost, Err(Error::Unanswered { .. })), "{lost:?}");
    assert!(
        matches!(given_up, Err(Error::Unanswered { .. })),
        "{given_up:?}"
    );
    assert_eq!(ask(&vm, "now", LIMIT).await.unwrap(), "\"now\"");
}

#[tokio::test]
async fn the_end_of_a_vmm_is_told_to_all_and_the_next_one_is_another() {
    let (_dir, path) = socket();
    let (tell, told) = mpsc::channel();
    let script = move |_, mut peer: Peer| {
        peer.greet(11);
        tell.send(()).unwrap();
        while peer.next().is_some_and(|it| it.operation != "die") {}
        false
    };
    serve(&path, script.clone());
    let (_stop, vmms) = vmms();
    let endpoint = endpoint(&path);
    let vm = vmms.open(&endpoint).await.unwrap();
    let mut events = vm.events();
    let (slow, dying) = tokio::join!(ask(&vm, "slow", LIMIT), ask(&vm, "die", LIMIT));
    for error in [slow.unwrap_err(), dying.unwrap_err()] {
        assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    }
    assert_eq!(next(&mut events).await, Event::Gone);
    assert_eq!(next(&mut vm.events()).await, Event::Gone);
    let error = vm.facts().await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    let error = vmms.open(&endpoint).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

    std::fs::remove_file(&path).unwrap();
    serve(&path, script);
    let other = vmms.open(&endpoint).await.unwrap();
    let error = vm.facts().await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    // Another one in its place while the way to this one is broken is found out, too.
    std::fs::remove_file(&path).unwrap();
    serve(&path, |_, mut peer| {
        peer.greet(11);
        while peer.next().is_some() {}
        true
    });
    let error = ask(&other, "die", LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    vmms.open(&endpoint).await.unwrap();
    assert_eq!(told.try_iter().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_use_a_vmm_share_a_connection_which_ends_with_the_last_of_them() {
    let (_dir, path) = socket();
    let (tell, told) = mpsc::channel();
    serve(&path, move |number, mut peer| {
        peer.greet(11);
        while peer.next().is_some() {}
        tell.send(number).unwrap();
        true
    });
    let (stop, vmms) = vmms();
    let endpoint = endpoint(&path);
    let (one, other) = tokio::join!(vmms.open(&endpoint), vmms.open(&endpoint));
    let events = other.unwrap().events();
    drop(one);
    drop(vmms.open(&endpoint).await.unwrap());
    let later = vmms.open(&endpoint).await.unwrap();
    drop(events);
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(later);
    assert_eq!(told.recv_timeout(LIMIT), Ok(0));
    // Opened anew, it ends with the agent.
    let vm = vmms.open(&endpoint).await.unwrap();
    let mut events = vm.events();
    stop.send_replace(true);
    vmms.join().await;
    assert_eq!(told.recv_timeout(LIMIT), Ok(1));
    assert_eq!(events.next().await, None);
    let error = vm.facts().await.unwrap_err();
    assert!(matches!(error, Error::Unanswered { .. }), "{error:?}");
}

#[tokio::test]
async fn answers_of_the_wrong_kind_are_told_and_harm_nobody() {
    let (_dir, path) = socket();
    serve(&path, |_, mut peer| {
        peer.greet(11);
        let mut answers = [
            json!(null),
            json!({"return": 1}),
            json!([{"name": 7}]),
            json!("x".repeat(100_000)),
        ];
        let mut at = 0;
        while let Some(command) = peer.next() {
            peer.answer(&command, answers[at].take());
            at = (at + 1) % answers.len();
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    for _ in 0..8 {
        let error = vm.find("nic0").await.unwrap_err();
        assert!(matches!(error, Error::Stranger { .. }), "{error:?}");
        assert!(error.to_string().len() < 2000);
    }
}

#[tokio::test]
async fn an_old_qemu_is_told_and_given_nothing() {
    let (_dir, path) = socket();
    serve(&path, |_, mut peer| {
        peer.greet(9);
        while let Some(command) = peer.next() {
            peer.machine(&command, &[]);
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let facts = vm.facts().await.unwrap();
    assert_eq!(facts.version, "9.1.3");
    assert_eq!(facts.version_needed.as_deref(), Some("10.1.1"));
    let error = vm.plug(&plug(&path, "nic0", "", "")).await.unwrap_err();
    assert!(matches!(error, Error::TooOld { .. }), "{error:?}");
}

#[tokio::test]
async fn a_device_is_plugged_in_where_there_is_a_place_and_named_as_qemu_takes_it() {
    let (_dir, path) = socket();
    serve(&path, |_, mut peer| {
        peer.greet(11);
        let mut devices = vec![("disk", "virtio-blk-pci")];
        while let Some(command) = peer.next() {
            if command.operation == "device_add" {
                let expected = json!({"driver": "vfio-user-pci", "id": "nic0", "bus": "rp0", "addr": "0",
                    "socket": {"type": "unix", "path": "/run/nic0.sock"}});
                assert_eq!(command.arguments, expected);
                devices.push(("nic0", "vfio-user-pci"));
                peer.answer(&command, json!({}));
            } else {
                peer.machine(&command, &devices);
            }
        }
        true
    });
    let (_stop, vmms) = vmms();
    let vm = vmms.open(&endpoint(&path)).await.unwrap();
    let device = PathBuf::from("/run/nic0.sock");
    for (id, why) in [
        ("disk", "is the name of a virtio-blk-pci"),
        ("../x", "is no name for a device"),
        ("0x", "is no name for a device"),
        ("", "is no name for a device"),
    ] {
        let error = vm.plug(&plug(&device, id, "", "")).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let placed = vm.plug(&plug(&device, "nic0", "", "")).await.unwrap();
    assert_eq!((&*placed.bus, &*placed.address), ("rp0", "0000:02:00.0"));
}
