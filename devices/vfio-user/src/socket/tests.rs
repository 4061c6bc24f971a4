//! The socket alone, against a peer that sends bytes and descriptors as it likes.

use std::{
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    process,
};

use nix::sys::{
    resource::{Resource, setrlimit},
    socket::{ControlMessage, MsgFlags, sendmsg},
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::{
    raw::{CONTROL_WORDS, FDS_PER_PACKET, receive_message},
    *,
};
use crate::message::{Command, Header};

fn message(id: u16, payload: &[u8]) -> Vec<u8> {
    let size_bytes = 16 + payload.len() as u32;
    let header = Header {
        id,
        command: Command(1),
        size_bytes,
        ..Header::default()
    };
    [header.as_bytes(), payload].concat()
}

fn send_with_fds(stream: &UnixStream, bytes: &[u8], count: usize) {
    let fds = vec![stream.as_fd().as_raw_fd(); count];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &rights,
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn frames_cut_at_every_byte_are_put_together() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let bytes = [message(1, b"abc"), message(2, b""), message(3, &[7; 100])].concat();
    for cut in 0..=bytes.len() {
        let mut inbox = Inbox::new(256);
        let mut seen = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            theirs.write_all(part).unwrap();
            inbox.receive(&ours).unwrap();
            while let Some(frame) = inbox.next().unwrap() {
                seen.push((frame.header.id, inbox.payload(&frame).to_vec()));
            }
        }
        assert_eq!(
            seen,
            [(1, b"abc".to_vec()), (2, vec![]), (3, vec![7; 100])],
            "cut at {cut}"
        );
    }
}

#[test]
fn descriptors_stay_with_their_message() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&message(1, b"")).unwrap();
    send_with_fds(&theirs, &message(2, b"xy"), 2);
    theirs.write_all(&message(3, b"")).unwrap();
    send_with_fds(&theirs, &message(4, b""), 1);
    let mut inbox = Inbox::new(256);
    let mut seen = Vec::new();
    for _ in 0..4 {
        inbox.receive(&ours).unwrap();
    }
    while let Some(frame) = inbox.next().unwrap() {
        seen.push((frame.header.id, frame.fds.len()));
    }
    assert_eq!(seen, [(1, 0), (2, 2), (3, 0), (4, 1)]);
}

#[test]
fn a_size_smaller_than_a_header_ends_the_connection() {
    for size_bytes in [0, 1, 15] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(
                Header {
                    size_bytes,
                    ..Header::default()
                }
                .as_bytes(),
            )
            .unwrap();
        let mut inbox = Inbox::new(256);
        inbox.receive(&ours).unwrap();
        assert!(
            matches!(inbox.next(), Err(Closed::Protocol(_))),
            "{size_bytes}"
        );
    }
}

#[test]
fn descriptors_of_a_message_that_was_cut_are_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (pipe, held) = nix::unistd::pipe().unwrap();
    let rights = [held.as_raw_fd(); FDS_PER_PACKET];
    let rights = [ControlMessage::ScmRights(&rights)];
    let iov = [IoSlice::new(b"x")];
    sendmsg::<()>(theirs.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
    drop(held);
    // Room for a third of them: the kernel opens these and cuts the rest, as at the limit of open files.
    let mut control = [0; CONTROL_WORDS / 3];
    let mut fds = Vec::new();
    let (count, flags) = receive_message(&ours, &mut [0; 16], &mut control, &mut fds, 0).unwrap();
    assert_eq!((count, flags & libc::MSG_CTRUNC), (1, libc::MSG_CTRUNC));
    assert!(!fds.is_empty() && fds.len() < FDS_PER_PACKET);
    drop(fds);
    // The pipe has no writer any more: none of the descriptors is left open.
    nix::unistd::write(&theirs, b"end").unwrap();
    assert_eq!(nix::unistd::read(&pipe, &mut [0; 1]), Ok(0));
}

#[test]
fn an_outbox_that_is_never_empty_does_not_grow() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut outbox = Outbox::default();
    let mut chunk = [0; 4096];
    for _ in 0..5000 {
        outbox.bytes.extend_from_slice(&[7; 4096]);
        outbox.flush(&ours).unwrap();
        if outbox.len() > 32 << 10 {
            theirs.read_exact(&mut chunk).unwrap();
        }
    }
    assert!(outbox.len() > 0 && outbox.bytes.len() < 1 << 20);
}

#[test]
fn buffers_for_an_access_are_kept_and_longer_ones_are_given_back() {
    const MIB: usize = 1 << 20;
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut outbox = Outbox::default();
    let mut reply = Reply::default();
    for (size, is_kept) in [(MIB + 16, true), (8 * MIB, false)] {
        reply.bytes.resize(size, 7);
        outbox.push(&Header::default(), &mut reply);
        let mut rest = vec![0; 16 + size];
        while outbox.len() > 0 {
            outbox.flush(&ours).unwrap();
            theirs.set_nonblocking(true).unwrap();
            while theirs.read(&mut rest).is_ok_and(|count| count > 0) {}
        }
        reply.clear();
        let capacities = [reply.bytes.capacity(), outbox.bytes.capacity()];
        assert!(capacities.iter().all(|kept| (*kept >= MIB) == is_kept));
    }
}

#[test]
fn hoarded_descriptors_end_the_connection() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut inbox = Inbox::new(256);
    let bytes = message(1, &[0; 64]);
    let result = bytes.chunks(1).take(4).try_for_each(|byte| {
        send_with_fds(&theirs, byte, FDS_PER_PACKET);
        inbox.receive(&ours).map(|_| ())
    });
    assert!(matches!(result, Err(Closed::Protocol(_))));
}

/// What is sent: how large the message says it is, how many bytes and descriptors go with it.
#[derive(Clone, Debug)]
struct Sent {
    payload: Vec<u8>,
    fds: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    // Of the inboxes below, 128 is the largest message: 16 and 112.
    let len = prop_oneof![0..=112_usize, 113..=600_usize, Just(112), Just(113)];
    let fds = prop_oneof![Just(0), 0..4_usize, Just(16), Just(17)];
    (len, fds, any::<u8>()).prop_map(|(len, fds, byte)| Sent {
        payload: vec![byte; len],
        fds,
    })
}

/// How many files this process has open that are the other end of `pipe`: none, once it has seen its end.
fn is_closed(pipe: &std::os::fd::OwnedFd) -> bool {
    nix::unistd::read(pipe, &mut [0; 1]) == Ok(0)
}

proptest! {
    /// Glued together and cut anywhere, messages come out as they were sent, each with its own descriptors; what is over a
    /// limit comes out as refused; and afterwards no descriptor is left open.
    #[test]
    fn frames_come_out_as_they_were_sent(
        messages in prop::collection::vec(sent(), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (pipe, held) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let mut inbox = Inbox::new(128);
        let mut seen = Vec::new();
        let mut take = |inbox: &mut Inbox| {
            // More than one may be needed: the kernel ends a recvmsg where descriptors came.
            for _ in 0..40 {
                inbox.receive(&ours).unwrap();
                while let Some(frame) = inbox.next().unwrap() {
                    let payload = inbox.payload(&frame).to_vec();
                    seen.push((frame.header.id, payload, frame.fds.len(), frame.refused));
                }
            }
        };
        let total: usize = messages.iter().map(|message| 16 + message.payload.len()).sum();
        let cuts: std::collections::BTreeSet<_> = cuts.iter().map(|cut| cut.index(total)).collect();
        let mut at = 0;
        for (id, sent) in messages.iter().enumerate() {
            let bytes = message(id as u16, &sent.payload);
            let mut from = 0;
            let ends = cuts.iter().filter_map(|cut| cut.checked_sub(at));
            for end in ends.filter(|end| *end < bytes.len()).chain([bytes.len()]) {
                // A client sends descriptors with the first byte of their message.
                let count = if from == 0 && end > 0 { sent.fds } else { 0 };
                let rights = vec![held.as_raw_fd(); count];
                let rights = [ControlMessage::ScmRights(&rights)];
                let rights = if count == 0 { &[][..] } else { &rights[..] };
                let iov = [IoSlice::new(&bytes[from..end])];
                if end > from {
                    sendmsg::<()>(theirs.as_raw_fd(), &iov, rights, MsgFlags::empty(), None).unwrap();
                }
                if end < bytes.len() {
                    take(&mut inbox);
                }
                from = end;
            }
            at += bytes.len();
        }
        take(&mut inbox);
        let expected: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(id, sent)| {
                let refused = if sent.payload.len() > 112 {
                    Some(Errno::EMSGSIZE)
                } else if sent.fds > 16 {
                    Some(Errno::E2BIG)
                } else {
                    None
                };
                match refused {
                    Some(_) => (id as u16, Vec::new(), 0, refused),
                    None => (id as u16, sent.payload.clone(), sent.fds, None),
                }
            })
            .collect();
        prop_assert_eq!(seen, expected);
        drop((held, inbox));
        prop_assert!(is_closed(&pipe));
    }

    /// A reply that is waited for is found behind requests, which stay in order and keep their descriptors.
    #[test]
    fn replies_are_taken_from_among_requests(
        kinds in prop::collection::vec((any::<bool>(), 0..200_usize, 0..3_usize), 1..12),
        glued in any::<bool>(),
    ) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::new(4096);
        let mut replies = Vec::new();
        for (id, (is_reply, len, fds)) in kinds.iter().enumerate() {
            let mut bytes = message(id as u16, &vec![id as u8; *len]);
            bytes[8] = u8::from(*is_reply);
            if *fds == 0 {
                (&theirs).write_all(&bytes).unwrap();
            } else {
                send_with_fds(&theirs, &bytes, *fds);
            }
            if glued && id + 1 < kinds.len() {
                continue;
            }
            for _ in 0..12 {
                inbox.receive(&ours).unwrap();
                while let Some(reply) = inbox.next_reply().unwrap() {
                    replies.push((reply.header.id, inbox.payload(&reply).to_vec()));
                    inbox.discard(reply);
                }
            }
        }
        let mut requests = Vec::new();
        while let Some(frame) = inbox.next().unwrap() {
            requests.push((frame.header.id, inbox.payload(&frame).to_vec(), frame.fds.len()));
        }
        let of = |wanted: bool| {
            let kinds = kinds.iter().enumerate();
            kinds.filter(move |(_, (is_reply, ..))| *is_reply == wanted)
        };
        prop_assert_eq!(replies, of(true).map(|(id, (_, len, _))| (id as u16, vec![id as u8; *len])).collect::<Vec<_>>());
        prop_assert_eq!(requests, of(false).map(|(id, (_, len, fds))| (id as u16, vec![id as u8; *len], *fds)).collect::<Vec<_>>());
    }
}

#[test]
fn a_refusal_waits_for_its_turn_wherever_it_is_moved() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut inbox = Inbox::new(128);
    let reply = || {
        let mut bytes = message(9, &[0; 16]);
        bytes[8] = 1;
        bytes
    };
    let too_large = message(2, &[0; 200]);
    let requests = [message(1, &[1; 100]), too_large, message(3, &[3; 60])].concat();
    theirs.write_all(&[requests, reply()].concat()).unwrap();
    let answered = |inbox: &mut Inbox| {
        for _ in 0..9 {
            inbox.receive(&ours).unwrap();
            if let Some(reply) = inbox.next_reply().unwrap() {
                inbox.discard(reply);
                return true;
            }
        }
        false
    };
    assert!(answered(&mut inbox));
    assert_eq!(inbox.next().unwrap().unwrap().header.id, 1);
    // While that is served, another reply is waited for, and finds no room behind the others where they are.
    theirs
        .write_all(&[message(4, &[4; 60]), reply()].concat())
        .unwrap();
    assert!(answered(&mut inbox));
    let mut rest = Vec::new();
    while let Some(frame) = inbox.next().unwrap() {
        rest.push((frame.header.id, frame.refused, inbox.payload(&frame).len()));
    }
    let refused = Some(Errno::EMSGSIZE);
    assert_eq!(rest, [(2, refused, 0), (3, None, 60), (4, None, 60)]);
}

#[test]
fn a_message_that_is_too_large_is_skipped_and_not_stored() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut inbox = Inbox::new(128);
    let mut bytes = message(1, &[]);
    bytes[4..8].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    theirs.write_all(&bytes).unwrap();
    inbox.receive(&ours).unwrap();
    let frame = inbox.next().unwrap().unwrap();
    assert_eq!((frame.header.id, frame.refused), (1, Some(Errno::EMSGSIZE)));
    // Descriptors in the middle of it are closed when they come, not kept until its end.
    let (pipe, held) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    let rights = [held.as_raw_fd(); FDS_PER_PACKET];
    let mut left = (1 << 20) - 16;
    for _ in 0..100 {
        let rights = [ControlMessage::ScmRights(&rights)];
        let iov = [IoSlice::new(&[0xff; 100])];
        sendmsg::<()>(theirs.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        inbox.receive(&ours).unwrap();
        assert!(inbox.next().unwrap().is_none());
        left -= 100;
    }
    drop(held);
    assert!(is_closed(&pipe));
    while left > 0 {
        let count = left.min(200);
        theirs.write_all(&vec![0xff; count]).unwrap();
        inbox.receive(&ours).unwrap();
        left -= count;
    }
    theirs.write_all(&message(2, b"next")).unwrap();
    inbox.receive(&ours).unwrap();
    let frame = inbox.next().unwrap().unwrap();
    assert_eq!((frame.header.id, inbox.payload(&frame)), (2, &b"next"[..]));
}

/// Sends a TCP connection with data that is unsent: its last close would wait for a minute. Returns its peer, which reads
/// nothing.
fn send_lingering_socket(theirs: &UnixStream) -> std::net::TcpStream {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[0; 1 << 16]).is_ok() {}
    let minute = libc::linger {
        l_onoff: 1,
        l_linger: 60,
    };
    setsockopt(&stream, sockopt::Linger, &minute).unwrap();
    let rights = [stream.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&rights)];
    let bytes = message(1, b"");
    let iov = [IoSlice::new(&bytes)];
    sendmsg::<()>(theirs.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
    // A socket that is blocking waits on close.
    stream.set_nonblocking(false).unwrap();
    peer
}

#[test]
fn closing_a_socket_that_lingers_takes_no_time() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let _peer = send_lingering_socket(&theirs);
    let mut inbox = Inbox::new(256);
    let begin = std::time::Instant::now();
    inbox.receive(&ours).unwrap();
    let frame = inbox.next().unwrap().unwrap();
    assert_eq!(frame.fds.len(), 1);
    drop(frame);
    assert!(begin.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn a_connection_is_closed_at_once_whatever_lies_in_it() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    (&ours).write_all(b"the last reply").unwrap();
    let _peers = [(); 3].map(|()| send_lingering_socket(&theirs));
    theirs.write_all(&[7; 10_000]).unwrap();
    let begin = std::time::Instant::now();
    drain(&ours);
    drop(ours);
    assert!(begin.elapsed() < std::time::Duration::from_secs(30));
    let mut seen = Vec::new();
    theirs.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"the last reply");
    theirs.write_all(b"more").unwrap_err();
}

#[test]
fn descriptors_that_can_not_be_opened_end_the_connection() {
    let alone = "socket::tests::the_last_descriptors_are_taken";
    let output = process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", alone, "--ignored"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "lowers the limit of open files: run by the test above, in a process of its own"]
fn the_last_descriptors_are_taken() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut inbox = Inbox::new(256);
    // Numbers are given from below, so that there is one left.
    let next = ours.try_clone().unwrap().as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, next + 1, next + 1).unwrap();
    send_with_fds(&theirs, &message(1, b""), 1);
    assert!(inbox.receive(&ours).unwrap());
    assert_eq!(inbox.next().unwrap().unwrap().fds.len(), 1);
    send_with_fds(&theirs, &message(2, b""), 2);
    let closed = inbox.receive(&ours).unwrap_err();
    assert!(matches!(closed, Closed::Protocol(_)), "{closed}");
}
