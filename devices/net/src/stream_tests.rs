//! A stream against a peer that knows nothing of ours but the framing.

use std::{
    io::{Read, Write},
    time::Duration,
};

use super::*;
use crate::conformance::{self, Peer, frame, readable, receive, run_until};

const RECEIVE: Interest = Interest {
    receive: true,
    send: false,
};

struct Socket(UnixStream);

impl Socket {
    fn new(socket: UnixStream) -> Self {
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        Self(socket)
    }
}

impl Peer for Socket {
    fn send(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap();
        self.0
            .write_all(&[&length.to_be_bytes()[..], frame].concat())
            .unwrap();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).unwrap();
        Some(frame)
    }

    fn holds_back(&self) -> bool {
        true
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("net.sock")
    }

    fn open(&self, mode: Mode) -> Stream {
        Stream::open(&config::Stream {
            path: self.path(),
            mode,
        })
        .unwrap()
    }

    /// A peer of a stream that listens.
    fn join(&self, stream: &mut dyn Backend) -> Socket {
        let socket = Socket::new(UnixStream::connect(self.path()).unwrap());
        assert!(readable(stream, 1000));
        stream.run(Instant::now());
        socket
    }

    fn pair(&self, mode: Mode) -> (Stream, Socket) {
        match mode {
            Mode::Listen => {
                let mut stream = self.open(mode);
                let socket = self.join(&mut stream);
                (stream, socket)
            }
            Mode::Connect => {
                let listener = UnixListener::bind(self.path()).unwrap();
                let stream = self.open(mode);
                let socket = Socket::new(listener.accept().unwrap().0);
                fs::remove_file(self.path()).unwrap();
                (stream, socket)
            }
        }
    }
}

fn error(path: PathBuf, mode: Mode) -> Error {
    Stream::open(&config::Stream { path, mode }).err().unwrap()
}

#[test]
fn conforms_when_it_listens() {
    let place = Place::new();
    conformance::check(&mut || {
        let (stream, socket) = place.pair(Mode::Listen);
        (Box::new(stream), Box::new(socket))
    });
}

#[test]
fn conforms_when_it_connects() {
    let place = Place::new();
    conformance::check(&mut || {
        let (stream, socket) = place.pair(Mode::Connect);
        (Box::new(stream), Box::new(socket))
    });
}

#[test]
fn conforms_alone_while_it_waits() {
    for mode in [Mode::Listen, Mode::Connect] {
        let place = Place::new();
        conformance::check_alone(&mut || Box::new(place.open(mode)));
    }
}

#[test]
fn a_frame_cut_at_any_byte_is_put_together() {
    let place = Place::new();
    let (mut stream, mut socket) = place.pair(Mode::Listen);
    let bytes = [
        &60_u32.to_be_bytes()[..],
        &frame(60, 1),
        &61_u32.to_be_bytes(),
        &frame(61, 2),
    ]
    .concat();
    let mut buffer = [0; 100];
    for cut in 1..bytes.len() {
        let mut received = Vec::new();
        for part in [&bytes[..cut], &bytes[cut..]] {
            socket.0.write_all(part).unwrap();
            while let Some(Received {
                frame_bytes: length,
                ..
            }) = stream.receive(&mut buffer)
            {
                received.push(buffer[..length].to_vec());
            }
        }
        assert_eq!(received, [frame(60, 1), frame(61, 2)], "cut at {cut}");
    }
}

#[test]
fn the_longest_frame_goes_both_ways_and_a_longer_one_is_an_error() {
    let place = Place::new();
    let (mut stream, mut socket) = place.pair(Mode::Listen);
    let longest = frame(MAX_FRAME_BYTES, 1);
    stream.send(&longest, Offload::None).unwrap();
    stream
        .send(&frame(MAX_FRAME_BYTES + 1, 2), Offload::None)
        .unwrap();
    stream.send(&frame(60, 3), Offload::None).unwrap();
    stream.flush();
    assert_eq!(socket.receive().unwrap(), longest);
    assert_eq!(socket.receive().unwrap(), frame(60, 3));
    socket.send(&longest);
    assert_eq!(receive(&mut stream, MAX_FRAME_BYTES), longest);
    for length in [0, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        socket.send(&frame(70, 4));
        socket.0.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(
            receive(&mut stream, 100),
            frame(70, 4),
            "what came before is not lost"
        );
        stream.wait_for(RECEIVE);
        run_until(&mut stream, |stream| {
            assert_eq!(stream.receive(&mut [0; 100]), None);
            socket.0.set_nonblocking(true).unwrap();
            socket.0.read(&mut [0; 1]).is_ok_and(|count| count == 0)
        });
        assert!(!readable(&stream, 20));
        socket = place.join(&mut stream);
    }
}

#[test]
fn a_peer_that_never_stops_keeps_nobody() {
    let place = Place::new();
    let (mut stream, socket) = place.pair(Mode::Listen);
    stream.wait_for(RECEIVE);
    let flood = std::thread::spawn(move || {
        let mut socket = socket;
        let frames = [&600_u32.to_be_bytes()[..], &frame(600, 1)]
            .concat()
            .repeat(100);
        while socket.0.write_all(&frames).is_ok() {}
    });
    // All are too long for the buffer, so that a call that took what there is would never return.
    for _ in 0..500 {
        assert!(readable(&stream, 1000));
        stream.run(Instant::now());
        assert_eq!(stream.receive(&mut [0; 100]), None);
    }
    assert_eq!(receive(&mut stream, 600), frame(600, 1));
    drop(stream);
    flood.join().unwrap();
}

#[test]
fn a_frame_that_never_ends_wakes_nobody() {
    let place = Place::new();
    for mode in [Mode::Listen, Mode::Connect] {
        let (mut stream, mut socket) = place.pair(mode);
        stream.wait_for(RECEIVE);
        socket.0.write_all(&1514_u32.to_be_bytes()).unwrap();
        for byte in frame(1513, 1) {
            socket.0.write_all(&[byte]).unwrap();
            assert!(readable(&stream, 1000));
            stream.run(Instant::now());
            assert_eq!(stream.receive(&mut [0; 1514]), None);
            assert!(!readable(&stream, 0));
        }
    }
}

#[test]
fn connects_when_the_peer_comes_and_again_when_it_comes_back() {
    let place = Place::new();
    let mut stream = place.open(Mode::Connect);
    for round in 0..3 {
        let due = stream.deadline().expect("there is nobody yet");
        assert!(!readable(&stream, 0));
        stream.send(&frame(60, 0), Offload::None).unwrap();
        stream.flush();
        stream.run(due - Duration::from_millis(1));
        assert_eq!(stream.deadline(), Some(due), "it is not due yet");
        stream.run(due);
        assert_eq!(stream.deadline(), Some(due + RETRY), "still nobody");

        let listener = UnixListener::bind(place.path()).unwrap();
        stream.run(due + RETRY);
        assert_eq!(stream.deadline(), None);
        let mut socket = Socket::new(listener.accept().unwrap().0);
        stream.send(&frame(60, 1), Offload::None).unwrap();
        stream.flush();
        assert_eq!(
            socket.receive(),
            Some(frame(60, 1)),
            "and not what was sent to nobody"
        );
        socket.send(&frame(80, round));
        socket.0.write_all(&[0, 0, 0]).unwrap();
        drop((socket, listener));
        fs::remove_file(place.path()).unwrap();

        stream.wait_for(if round == 1 {
            RECEIVE
        } else {
            Interest::default()
        });
        let mut received = None;
        let mut buffer = [0; 100];
        run_until(&mut stream, |stream| {
            // Without interest only the hang-up wakes the loop, and the frame is taken later.
            if round == 1 || stream.deadline().is_some() {
                received = received.or(stream.receive(&mut buffer));
            }
            received.is_some() && stream.deadline().is_some()
        });
        assert_eq!(buffer[..received.unwrap().frame_bytes], frame(80, round));
        assert!(
            !readable(&stream, 20),
            "a peer that is gone does not keep the loop awake"
        );
    }
}

#[test]
fn a_peer_that_goes_while_frames_are_queued_is_noticed() {
    let place = Place::new();
    let (mut stream, socket) = place.pair(Mode::Listen);
    while stream.send(&frame(1514, 0), Offload::None).is_ok() {}
    stream.wait_for(Interest {
        receive: false,
        send: true,
    });
    drop(socket);
    assert!(readable(&stream, 1000));
    stream.run(Instant::now());
    assert!(
        readable(&stream, 1000),
        "a frame that was refused is taken now"
    );
    stream.send(&frame(1514, 0), Offload::None).unwrap();
    stream.wait_for(RECEIVE);
    assert!(!readable(&stream, 20));
    let mut socket = place.join(&mut stream);
    stream.send(&frame(60, 1), Offload::None).unwrap();
    stream.flush();
    assert_eq!(
        socket.receive(),
        Some(frame(60, 1)),
        "nothing that was meant for the peer before"
    );
}

#[test]
fn a_second_peer_is_closed_and_the_first_stays() {
    let place = Place::new();
    let (mut stream, mut first) = place.pair(Mode::Listen);
    for _ in 0..3 {
        let mut second = place.join(&mut stream);
        assert_eq!(second.receive(), None);
        assert!(!readable(&stream, 20));
    }
    stream.send(&frame(60, 1), Offload::None).unwrap();
    stream.flush();
    assert_eq!(first.receive(), Some(frame(60, 1)));
    drop(first);
    let mut third = place.join(&mut stream);
    third.send(&frame(60, 2));
    assert_eq!(
        receive(&mut stream, 100),
        frame(60, 2),
        "it takes the place of one that is gone"
    );
}

#[test]
fn the_next_peer_can_come_before_the_end_of_the_last_was_read() {
    let place = Place::new();
    let (mut stream, mut first) = place.pair(Mode::Listen);
    stream.wait_for(RECEIVE);
    first.send(&frame(60, 1));
    drop(first);
    let mut second = place.join(&mut stream);
    second.send(&frame(61, 2));
    assert_eq!(receive(&mut stream, 100), frame(60, 1));
    assert_eq!(receive(&mut stream, 100), frame(61, 2));
    stream.send(&frame(62, 3), Offload::None).unwrap();
    stream.flush();
    assert_eq!(second.receive(), Some(frame(62, 3)));
}

#[test]
fn a_socket_that_somebody_listens_on_is_in_use_and_a_stale_one_is_replaced() {
    let place = Place::new();
    let stream = place.open(Mode::Listen);
    let busy = error(place.path(), Mode::Listen);
    assert!(matches!(busy, Error::SocketBusy { .. }), "{busy}");
    assert_eq!(
        (busy.field(), busy.kind()),
        ("stream.path", crate::Kind::InUse)
    );
    drop(stream);
    assert!(!place.path().exists(), "the socket is removed");

    drop(UnixListener::bind(place.path()).unwrap());
    assert!(place.path().exists());
    let mut stream = place.open(Mode::Listen);
    place.join(&mut stream);

    fs::remove_file(place.path()).unwrap();
    let theirs = UnixListener::bind(place.path()).unwrap();
    drop(stream);
    assert!(place.path().exists(), "a socket of somebody else is not");
    drop(theirs);
}

#[test]
fn paths_that_cannot_be_are_refused() {
    let place = Place::new();
    let directory = place.0.path();
    for mode in [Mode::Listen, Mode::Connect] {
        for path in [
            PathBuf::new(),
            directory.join("net\0sock"),
            directory.join("x".repeat(108 - directory.as_os_str().len() - 1)),
        ] {
            assert!(matches!(error(path, mode), Error::SocketPath { .. }));
        }
    }
    let longest = directory.join("x".repeat(107 - directory.as_os_str().len() - 1));
    Stream::open(&config::Stream {
        path: longest,
        mode: Mode::Listen,
    })
    .unwrap();
    let missing = error(directory.join("no/net.sock"), Mode::Listen);
    assert!(
        matches!(missing, Error::SocketDirectory { .. }),
        "{missing}"
    );
    fs::write(place.path(), "precious").unwrap();
    let file = error(place.path(), Mode::Listen);
    assert!(matches!(file, Error::NotASocket { .. }), "{file}");
    assert_eq!(fs::read(place.path()).unwrap(), b"precious");
}
