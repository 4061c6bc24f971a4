//! DEVICE_FEATURE: the rules for all features.

use nix::errno::Errno;

use crate::{
    support::{Client, Fake},
    wire::{longs, words},
};

const FEATURE: u16 = 16;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
/// The features' indexes.
const MIGRATION: u32 = 1;
const DEVICE_STATE: u32 = 2;

fn movable() -> Client {
    Client::new(Fake {
        is_movable: true,
        ..Fake::default()
    })
}

#[test]
fn a_probe_succeeds_when_all_its_methods_are_there() {
    let mut client = movable();
    for (feature, methods) in [
        (MIGRATION, vec![0, GET]),
        (DEVICE_STATE, vec![0, GET, SET, GET | SET]),
    ] {
        for asked in [0, GET, SET, GET | SET] {
            let request = words(&[8, PROBE | asked | feature]);
            if methods.contains(&asked) {
                assert_eq!(client.call(FEATURE, &request), request);
            } else {
                assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
            }
        }
    }
    // Whatever follows is not looked at, and comes back if it may.
    let request = words(&[16, PROBE | SET | DEVICE_STATE, 99, 99]);
    assert_eq!(client.call(FEATURE, &request), request);
    let request = words(&[15, PROBE | SET | DEVICE_STATE, 99, 99]);
    assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
}

#[test]
fn unknown_features_are_told_from_bad_requests() {
    let mut client = movable();
    for feature in [0, 3, 4, 5, 9, 10, 11, 0xffff] {
        for method in [GET, SET, PROBE, PROBE | GET, 0] {
            let request = words(&[4096, method | feature, 0, 0]);
            assert_eq!(client.refused(FEATURE, &request), Errno::ENOTTY);
        }
    }
    for bad in [
        words(&[4096, MIGRATION, 0, 0]),
        words(&[4096, GET | SET | DEVICE_STATE, 2, 0]),
        words(&[4096, GET | 1 << 19 | MIGRATION]),
        words(&[4096, GET | 1 << 31 | MIGRATION]),
        words(&[4096, SET | MIGRATION, 0, 0]),
        words(&[7, GET | MIGRATION]),
        words(&[7, PROBE | MIGRATION]),
        words(&[4096]),
        Vec::new(),
    ] {
        assert_eq!(client.refused(FEATURE, &bad), Errno::EINVAL, "{bad:?}");
    }
}

#[test]
fn a_device_that_can_not_be_moved_has_no_features() {
    let mut client = Client::new(Fake::default());
    for feature in [1, 2, 6, 7, 8] {
        for method in [GET, SET, PROBE] {
            let request = words(&[4096, method | feature, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(client.refused(FEATURE, &request), Errno::ENOTTY);
        }
    }
    assert!(client.session.is_running());
}

#[test]
fn migration_says_which_states_there_are() {
    let mut client = movable();
    // STOP_COPY and PRE_COPY, not P2P.
    let reply = [words(&[16, GET | MIGRATION]), longs(&[5])].concat();
    for argsz in [16, 4096] {
        let request = words(&[argsz, GET | MIGRATION]);
        assert_eq!(client.call(FEATURE, &request), reply);
    }
    for argsz in [8, 15] {
        let request = words(&[argsz, GET | MIGRATION]);
        assert_eq!(client.refused(FEATURE, &request), Errno::EINVAL);
    }
}

#[test]
fn the_device_state_is_got_and_set() {
    let mut client = movable();
    let get = words(&[16, GET | DEVICE_STATE]);
    let is_in = |state| words(&[16, GET | DEVICE_STATE, state, u32::MAX]);
    assert_eq!(client.call(FEATURE, &get), is_in(2));
    let set = words(&[16, SET | DEVICE_STATE, 1, 7]);
    assert_eq!(client.call(FEATURE, &set), set, "the reply is the request");
    assert_eq!(client.call(FEATURE, &get), is_in(1));
    for bad in [
        // No room for the reply, no room for the state, half a state.
        words(&[15, SET | DEVICE_STATE, 2, 0]),
        words(&[16, SET | DEVICE_STATE]),
        words(&[16, SET | DEVICE_STATE, 2]),
        words(&[15, GET | DEVICE_STATE]),
    ] {
        assert_eq!(client.refused(FEATURE, &bad), Errno::EINVAL, "{bad:?}");
    }
    assert_eq!(client.call(FEATURE, &get), is_in(1), "nothing was done");
}
