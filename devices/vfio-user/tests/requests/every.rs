//! What holds for every request.

use std::os::fd::AsRawFd;

use nix::errno::Errno;

use crate::{
    support::{Client, Fake},
    wire::{access, longs, words},
};

/// A request of every command, as long as it has to be, and for which the fake has an answer: command, payload. One may
/// need what one before it did.
fn requests() -> Vec<(u16, Vec<u8>)> {
    vec![
        // DMA_MAP, DMA_UNMAP.
        (2, [words(&[32, 3]), longs(&[0, 0x1000, 0x1000])].concat()),
        (3, [words(&[24, 0]), longs(&[0x1000, 0x1000])].concat()),
        // GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO.
        (4, words(&[16, 0, 0, 0])),
        (5, words(&[32, 0, 0, 0, 0, 0, 0, 0])),
        (6, words(&[16, 0, 0, 0])),
        (7, words(&[16, 0, 0, 0])),
        // SET_IRQS: messages 0 and 1 are masked.
        (8, [words(&[22, 0x0a, 1, 0, 2]), vec![1, 1]].concat()),
        // REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.
        (9, access(0, 0, 8)),
        (10, [access(0, 0, 3), vec![1, 2, 3]].concat()),
        (15, [longs(&[1]), access(8, 0, 4), longs(&[4])].concat()),
        // DEVICE_FEATURE: logging is started, reported and stopped, and the device goes to STOP_COPY.
        (
            16,
            [words(&[64, 2 << 16 | 6]), longs(&[0x1000, 0])].concat(),
        ),
        (
            16,
            [words(&[64, 1 << 16 | 8]), longs(&[0, 0x1000, 0x1000])].concat(),
        ),
        (16, words(&[64, 2 << 16 | 7])),
        (16, words(&[64, 2 << 16 | 2, 3, 0])),
        // MIG_DATA_READ, and MIG_DATA_WRITE on the way to RESUMING.
        (17, words(&[108, 100])),
        (16, words(&[64, 2 << 16 | 2, 4, 0])),
        (18, [words(&[12, 4]), b"fake".to_vec()].concat()),
    ]
}

fn movable() -> Client {
    Client::new(Fake {
        is_movable: true,
        ..Fake::default()
    })
}

#[test]
fn a_request_that_is_cut_short_is_refused() {
    let mut client = movable();
    for (command, payload) in requests() {
        for cut in 0..payload.len() {
            let errno = client.refused(command, &payload[..cut]);
            assert_eq!(errno, Errno::EINVAL, "{command}: {cut}");
        }
        client.call(command, &payload);
    }
}

#[test]
fn a_request_may_be_longer_than_its_structure() {
    let mut client = movable();
    for (command, mut payload) in requests() {
        payload.extend([0xee; 16]);
        client.call(command, &payload);
    }
}

#[test]
fn no_request_with_no_reply_is_answered() {
    let mut client = movable();
    for (command, payload) in requests() {
        client.post(command, &payload);
        client.post(command, &payload[..1]);
        // RESET as well, and what no server serves.
        client.post(if command == 18 { 13 } else { 14 }, &[]);
    }
    // This reply is the only one, and what was posted was done.
    assert_eq!(client.call(9, &access(0, 0, 1))[16..], [0]);
    assert_eq!(client.session.device_resets(), 1);
    assert_eq!(client.device.writes.len(), 2);
}

#[test]
fn descriptors_that_nobody_wants_are_closed() {
    let mut client = movable();
    for (command, payload) in requests() {
        let (pipe, sent) = nix::unistd::pipe().unwrap();
        client.call_with(command, &payload, &[sent.as_raw_fd(); 16]);
        drop(sent);
        // Without a writer left, a read returns.
        assert_eq!(nix::unistd::read(&pipe, &mut [0]), Ok(0), "{command}");
    }
}

#[test]
fn commands_that_are_not_for_servers_are_refused() {
    let mut client = movable();
    for command in [0, 11, 12, 14, 19, 255, 0xffff] {
        for payload in [&[][..], &[0; 64]] {
            assert_eq!(client.refused(command, payload), Errno::ENOTSUP);
        }
    }
    // Once is enough.
    assert_eq!(client.refused(1, &[0, 0, 1, 0]), Errno::EINVAL);
}

#[test]
fn mutated_requests_leave_the_session_usable() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 16) as usize % below
    };
    let mut client = movable();
    let file = tempfile::tempfile().unwrap();
    let requests = requests();
    let interesting = [0, 1, 0x7f, 0x80, 0xff];
    let mut answered = 0;
    for _ in 0..20_000 {
        let (command, mut payload) = requests[next(requests.len())].clone();
        for _ in 0..next(4) {
            let at = next(payload.len());
            payload[at] = interesting[next(interesting.len())];
        }
        payload.truncate(payload.len() - next(2) * next(payload.len()));
        let fds = vec![file.as_raw_fd(); [0, 0, 0, 1, 2, 16][next(6)]];
        let reply = client.call_with(command, &payload, &fds);
        assert!(reply.flags == 1 || reply.flags == 0x21 && reply.payload.is_empty());
        answered += u32::from(reply.flags == 1);
        if next(50) == 0 {
            client.call(13, &[]);
        }
    }
    assert!(answered > 1000);
    client.call(13, &[]);
    assert_eq!(client.call(9, &access(0, 0, 1)).len(), 17);
}
