//! What every [`Backend`] keeps, whatever lies behind it.

use std::{
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Backend, Interest, Offload};

/// The other end of a backend's link.
pub(crate) trait Peer {
    fn send(&mut self, frame: &[u8]);

    /// The next frame, or `None` when none comes for a while.
    fn receive(&mut self) -> Option<Vec<u8>>;

    /// Whether what the peer does not take waits for it, so that the backend's queue can fill up.
    fn holds_back(&self) -> bool;
}

/// Makes a backend anew, connected to a peer.
pub(crate) type Open<'a> = &'a mut dyn FnMut() -> (Box<dyn Backend>, Box<dyn Peer>);

const PATIENCE: Duration = Duration::from_secs(10);
const RECEIVE: Interest = Interest {
    receive: true,
    send: false,
};
const SEND: Interest = Interest {
    receive: false,
    send: true,
};
const NOTHING: Interest = Interest {
    receive: false,
    send: false,
};

/// A frame of this length, of a type for experiments, to everybody, with contents that depend on the number.
pub(crate) fn frame(length: usize, number: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.extend((16..length).map(|index| (index * 31 + usize::from(number) * 7) as u8));
    frame.truncate(length);
    frame
}

/// Whether the backend's descriptor is or becomes readable.
pub(crate) fn readable(backend: &dyn Backend, timeout_ms: u16) -> bool {
    let Some(fd) = backend.fd() else { return false };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(timeout_ms)).unwrap() > 0
}

/// Waits as an event loop does until `done` holds.
pub(crate) fn run_until(backend: &mut dyn Backend, mut done: impl FnMut(&mut dyn Backend) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done(backend) {
        assert!(Instant::now() < end, "nothing happened for {PATIENCE:?}");
        let due = |deadline: Instant| {
            deadline
                .saturating_duration_since(Instant::now())
                .as_millis() as u16
        };
        readable(backend, backend.deadline().map_or(100, due).min(100));
        backend.run(Instant::now());
    }
}

/// Waits for a frame as a model does.
pub(crate) fn receive(backend: &mut dyn Backend, buffer_bytes: usize) -> Vec<u8> {
    receive_with_verdict(backend, buffer_bytes).0
}

/// Waits for a frame as a model does. Returns also whether its checksum is known to be right.
pub(crate) fn receive_with_verdict(
    backend: &mut dyn Backend,
    buffer_bytes: usize,
) -> (Vec<u8>, bool) {
    let mut buffer = vec![0; buffer_bytes];
    let mut received = None;
    backend.wait_for(RECEIVE);
    run_until(backend, |backend| {
        received = backend.receive(&mut buffer);
        received.is_some()
    });
    backend.wait_for(NOTHING);
    let received = received.unwrap();
    buffer.truncate(received.frame_bytes);
    (buffer, received.checksum_is_right)
}

/// What holds without a peer.
pub(crate) fn check_alone(open: &mut dyn FnMut() -> Box<dyn Backend>) {
    without_peer(open().as_mut());
}

/// All that a backend with a peer keeps.
pub(crate) fn check(open: Open<'_>) {
    for case in [
        with_a_quiet_peer,
        frames_go_out_exactly,
        frames_come_in_exactly,
        batches_keep_their_order,
        full_ends_when_the_peer_takes_frames,
        a_buffer_too_small_costs_that_frame,
        what_is_not_waited_for_is_not_reported,
        what_is_waited_for_is_reported_until_it_is_taken,
    ] {
        let (mut backend, mut peer) = open();
        case(backend.as_mut(), peer.as_mut());
    }
}

fn with_a_quiet_peer(backend: &mut dyn Backend, _peer: &mut dyn Peer) {
    without_peer(backend);
}

fn without_peer(backend: &mut dyn Backend) {
    descriptor_is_quiet_and_stays_the_same(backend);
    invents_no_frame(backend);
    takes_or_refuses_any_length(backend);
}

fn descriptor_is_quiet_and_stays_the_same(backend: &mut dyn Backend) {
    let number = |backend: &dyn Backend| backend.fd().map(|fd| fd.as_fd().as_raw_fd());
    let before = number(backend);
    for interest in [NOTHING, RECEIVE, SEND, NOTHING] {
        backend.wait_for(interest);
        backend.run(Instant::now());
        backend.flush();
        assert_eq!(number(backend), before);
    }
    assert!(!readable(backend, 20), "nothing is waited for");
    backend.wait_for(RECEIVE);
    assert!(!readable(backend, 20), "there is no frame");
    backend.wait_for(NOTHING);
}

fn invents_no_frame(backend: &mut dyn Backend) {
    let mut buffer = [0x5a; 2048];
    for _ in 0..3 {
        backend.run(Instant::now());
        assert_eq!(backend.receive(&mut buffer), None);
    }
    assert_eq!(backend.receive(&mut []), None);
}

fn takes_or_refuses_any_length(backend: &mut dyn Backend) {
    for length in [
        0,
        1,
        13,
        14,
        15,
        59,
        1515,
        9018,
        65_535,
        crate::MAX_FRAME_BYTES,
        crate::MAX_FRAME_BYTES + 1,
        1 << 20,
    ] {
        let _ = backend.send(&frame(length, 0), Offload::None);
        backend.flush();
    }
}

fn frames_go_out_exactly(backend: &mut dyn Backend, peer: &mut dyn Peer) {
    for length in 60..=1514 {
        let frame = frame(length, length as u16);
        backend.send(&frame, Offload::None).unwrap();
        backend.flush();
        assert_eq!(peer.receive(), Some(frame));
    }
}

fn frames_come_in_exactly(backend: &mut dyn Backend, peer: &mut dyn Peer) {
    for length in 60..=1514 {
        peer.send(&frame(length, length as u16));
        assert_eq!(receive(backend, 1514), frame(length, length as u16));
    }
    let mut buffer = [0; 1514];
    assert_eq!(backend.receive(&mut buffer), None);
}

fn batches_keep_their_order(backend: &mut dyn Backend, peer: &mut dyn Peer) {
    let mut number = 0;
    for batch in [1, 2, 3, 16, 50] {
        let numbers = number..number + batch;
        for number in numbers.clone() {
            backend
                .send(&frame(60 + usize::from(number), number), Offload::None)
                .unwrap();
        }
        backend.flush();
        for number in numbers.clone() {
            assert_eq!(
                peer.receive(),
                Some(frame(60 + usize::from(number), number))
            );
            peer.send(&frame(1514 - usize::from(number), number));
        }
        for number in numbers {
            assert_eq!(
                receive(backend, 1514),
                frame(1514 - usize::from(number), number)
            );
        }
        number += batch;
    }
}

fn full_ends_when_the_peer_takes_frames(backend: &mut dyn Backend, peer: &mut dyn Peer) {
    if !peer.holds_back() {
        return;
    }
    let mut sent = 0;
    while backend.send(&frame(1514, sent), Offload::None).is_ok() {
        sent += 1;
        assert!(sent < 10_000, "the queue has no bound");
    }
    backend.wait_for(SEND);
    assert!(
        !readable(backend, 20),
        "the queue is full and the peer takes nothing"
    );
    backend.wait_for(NOTHING);
    assert!(!readable(backend, 20), "nobody waits for room");
    backend.wait_for(SEND);
    let mut received = 0;
    run_until(backend, |backend| {
        while received < sent && !readable(backend, 0) {
            assert_eq!(peer.receive(), Some(frame(1514, received)));
            received += 1;
        }
        readable(backend, 0) && backend.send(&frame(1514, sent), Offload::None).is_ok()
    });
    backend.wait_for(NOTHING);
    while received <= sent {
        backend.run(Instant::now());
        backend.flush();
        assert_eq!(peer.receive(), Some(frame(1514, received)));
        received += 1;
    }
}

fn a_buffer_too_small_costs_that_frame(backend: &mut dyn Backend, peer: &mut dyn Peer) {
    for length in [600, 601, 1514, 599] {
        peer.send(&frame(length, 1));
    }
    assert_eq!(receive(backend, 600), frame(600, 1));
    assert_eq!(receive(backend, 600), frame(599, 1));
    peer.send(&frame(600, 2));
    peer.send(&frame(60, 3));
    assert_eq!(receive(backend, 599), frame(60, 3));
}

fn what_is_not_waited_for_is_not_reported(backend: &mut dyn Backend, peer: &mut dyn Peer) {
    for number in 0..20 {
        peer.send(&frame(200, number));
    }
    assert!(!readable(backend, 50), "frames are not waited for");
    backend.wait_for(RECEIVE);
    assert!(readable(backend, 1000));
    backend.run(Instant::now());
    backend.wait_for(NOTHING);
    assert!(!readable(backend, 50), "frames are not waited for any more");
    for number in 0..20 {
        assert_eq!(receive(backend, 200), frame(200, number));
    }
    backend.wait_for(NOTHING);
    assert!(!readable(backend, 50));
}

fn what_is_waited_for_is_reported_until_it_is_taken(
    backend: &mut dyn Backend,
    peer: &mut dyn Peer,
) {
    for number in 0..20 {
        peer.send(&frame(60, number));
    }
    for number in 0..20 {
        // Others have been read ahead since the first.
        backend.wait_for(NOTHING);
        backend.wait_for(RECEIVE);
        assert!(readable(backend, 1000), "frame {number} waits");
        backend.run(Instant::now());
        assert!(readable(backend, 1000), "frame {number} still waits");
        let mut buffer = [0; 60];
        assert_eq!(backend.receive(&mut buffer).unwrap().frame_bytes, 60);
        assert_eq!(buffer[..], frame(60, number));
    }
    backend.run(Instant::now());
    assert!(!readable(backend, 50), "all are taken");
    backend.wait_for(SEND);
    assert!(readable(backend, 1000), "there is room");
    backend.send(&frame(60, 99), Offload::None).unwrap();
    backend.flush();
    assert_eq!(peer.receive(), Some(frame(60, 99)));
}
