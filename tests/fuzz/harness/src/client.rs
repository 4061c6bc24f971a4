//! The client's end of a connection: what was sent, what came back, and whether that is what has to come back.
//!
//! While the device uses memory that only the client has, a thread answers for it, in ways that the input decides.

use std::{
    collections::VecDeque,
    io::IoSliceMut,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockType, getsockopt, recvmsg, sendmsg,
            sockopt,
        },
    },
};

use crate::{
    descriptors::own,
    expected::{Expected, Fate},
    wire::{
        DEVICE_GET_INFO, DMA_READ, DMA_WRITE, ERROR, HEADER_BYTES, Header, REPLY, device_info,
        message,
    },
};

/// Longer frames are not brought to an end: the connection is.
const MAX_COMPLETED_BYTES: usize = 64 << 10;
/// Longer than a server takes for anything.
const LIMIT: Duration = Duration::from_secs(20);

/// A message from the server.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Client {
    stream: UnixStream,
    /// Tells the thread that answers to end.
    stop: EventFd,
    state: Mutex<State>,
}

struct State {
    expected: Expected,
    main: Vec<u8>,
    replies: VecDeque<Message>,
    twin: Option<UnixStream>,
    twin_bytes: Vec<u8>,
    /// How the server's next requests are answered.
    manners: VecDeque<u8>,
    hung_up: bool,
    server_left: bool,
}

impl Client {
    /// The client's end of a connection, and the server's.
    pub(crate) fn pair(manners: &[u8]) -> (Self, UnixStream) {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let client = Self {
            stream,
            stop: EventFd::from_flags(flags).unwrap(),
            state: Mutex::new(State {
                expected: Expected::default(),
                main: Vec::new(),
                replies: VecDeque::new(),
                twin: None,
                twin_bytes: Vec::new(),
                manners: manners.iter().copied().collect(),
                hung_up: false,
                server_left: false,
            }),
        };
        (client, theirs)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sends as much as the server takes now, with descriptors at its first byte. Returns how much that was.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[RawFd]) -> usize {
        self.state().send(&self.stream, bytes, fds)
    }

    /// Takes what the server has sent. Returns whether that was anything.
    pub(crate) fn receive(&self) -> bool {
        let state = &mut *self.state();
        let received = state.receive(&self.stream);
        state.sort();
        received
    }

    /// Compares the replies with what was sent, once the server has nothing more to do.
    pub(crate) fn settle(&self) -> Fate {
        let state = &mut *self.state();
        let fate = state.expected.settle(&mut state.replies);
        if state.hung_up { Fate::MayEnd } else { fate }
    }

    /// How many bytes the message that was begun still lacks; none, when it is too long to be completed.
    pub(crate) fn lacking(&self) -> Option<usize> {
        let lacking = self.state().expected.lacking();
        (lacking <= MAX_COMPLETED_BYTES).then_some(lacking)
    }

    /// Whether VERSION has been answered.
    pub(crate) fn has_negotiated(&self) -> bool {
        self.state().expected.has_negotiated()
    }

    /// Closes the connection for everybody who has a descriptor of it.
    pub(crate) fn hang_up(&self) {
        self.state().hang_up(&self.stream);
    }

    /// Does `work`, while the server is answered.
    pub(crate) fn answer_while(&self, work: impl FnOnce()) {
        thread::scope(|scope| {
            let answering = scope.spawn(|| self.answer());
            work();
            self.stop.write(1).unwrap();
            // Its end, not only that of its work: what a thread leaves is gone then.
            answering.join().unwrap();
        });
        self.stop.read().unwrap();
        self.state().forget(&self.stream);
    }

    fn answer(&self) {
        loop {
            let mut state = self.state();
            state.receive(&self.stream);
            state.sort_and_answer(&self.stream);
            let twin = state.twin.as_ref().map(|twin| twin.try_clone().unwrap());
            let left = state.server_left || state.hung_up;
            drop(state);
            let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
            if !left {
                fds.push(PollFd::new(self.stream.as_fd(), PollFlags::POLLIN));
                fds.extend(
                    twin.iter()
                        .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
                );
            }
            poll(&mut fds, PollTimeout::NONE).unwrap();
            if fds[0].any() == Some(true) {
                return;
            }
        }
    }
}

impl State {
    fn hang_up(&mut self, stream: &UnixStream) {
        self.hung_up = true;
        // The server may have been faster.
        let _ = stream.shutdown(Shutdown::Both);
        if let Some(twin) = &self.twin {
            let _ = twin.shutdown(Shutdown::Both);
        }
    }

    fn send(&mut self, stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> usize {
        let sent = send(stream, bytes, fds);
        self.expected.sent(&bytes[..sent], fds.len());
        sent
    }

    /// Sends all of it, while the server waits for it.
    fn send_all(&mut self, stream: &UnixStream, bytes: &[u8]) {
        let begin = Instant::now();
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.send(stream, rest, &[]);
            rest = &rest[sent..];
            if sent == 0 {
                let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(100_u16)).unwrap();
                if fds[0].revents().unwrap().contains(PollFlags::POLLHUP) {
                    return;
                }
                assert!(begin.elapsed() < LIMIT, "the server takes nothing");
            }
        }
    }

    fn receive(&mut self, stream: &UnixStream) -> bool {
        let mut fds = Vec::new();
        let before = self.main.len();
        self.server_left |= receive(stream, &mut self.main, &mut fds);
        let mut received = self.main.len() > before;
        // The first descriptor that ever comes, if it is a socket, is where the server asks.
        for fd in fds {
            if self.twin.is_none() && getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream) {
                self.twin = Some(fd.into());
            }
        }
        if let Some(twin) = &self.twin {
            let before = self.twin_bytes.len();
            receive(twin, &mut self.twin_bytes, &mut Vec::new());
            received |= self.twin_bytes.len() > before;
        }
        received
    }

    /// Replies to where they are looked at. The server asks nothing, outside of an access to memory.
    fn sort(&mut self) {
        while let Some(message) = next_message(&mut self.main) {
            assert!(!message.header.is_command(), "asked for what: {message:?}");
            self.replies.push_back(message);
        }
        assert!(self.twin_bytes.is_empty(), "asked, and nobody waits");
    }

    /// What was asked and not looked at is over: a reply that was sent before the question has answered it.
    fn forget(&mut self, stream: &UnixStream) {
        self.receive(stream);
        while let Some(message) = next_message(&mut self.main) {
            if !message.header.is_command() {
                self.replies.push_back(message);
            }
        }
        self.twin_bytes.clear();
    }

    /// The same within an access to memory.
    fn sort_and_answer(&mut self, stream: &UnixStream) {
        while let Some(message) = next_message(&mut self.main) {
            if message.header.is_command() {
                assert!(self.twin.is_none(), "asked in band, beside a twin");
                self.complete(stream);
                self.answer(stream, None, &message);
            } else {
                self.replies.push_back(message);
            }
        }
        while let Some(message) = next_message(&mut self.twin_bytes) {
            let twin = self.twin.as_ref().unwrap().try_clone().unwrap();
            self.answer(stream, Some(&twin), &message);
        }
    }

    /// Nobody could tell an answer in the middle of another message.
    fn complete(&mut self, stream: &UnixStream) {
        while self.expected.lacking() > 0 && !self.hung_up {
            let lacking = self.expected.lacking();
            if lacking > MAX_COMPLETED_BYTES || self.server_left {
                self.hang_up(stream);
            } else {
                self.send_all(stream, &vec![0; lacking]);
                self.server_left |= self.expected.lacking() == lacking;
            }
        }
    }

    /// Answers DMA_READ or DMA_WRITE, on the twin socket if that is where it came.
    fn answer(&mut self, main: &UnixStream, twin: Option<&UnixStream>, asked: &Message) {
        let Header { id, command, .. } = asked.header;
        assert!([DMA_READ, DMA_WRITE].contains(&command), "{asked:?}");
        let (access, data) = asked.payload.split_at_checked(16).unwrap();
        let count = u32::from_le_bytes(access[8..12].try_into().unwrap()) as usize;
        assert!(count > 0 && count <= 1 << 20, "{count} bytes at once");
        assert_eq!(data.len(), if command == DMA_READ { 0 } else { count });
        let mut payload = access.to_vec();
        if command == DMA_READ {
            payload.resize(16 + count, 0xa5);
        }
        let good = message(id, command, REPLY, &payload);
        let answers = match self.manners.pop_front().unwrap_or(0) {
            1 => {
                let mut refusal = message(id, command, REPLY | ERROR, &[]);
                refusal[12] = 14;
                vec![refusal]
            }
            2 => vec![message(id, command, REPLY, &payload[..payload.len() - 1])],
            3 => vec![message(
                id,
                command,
                REPLY,
                &[&payload[..], &[0; 9]].concat(),
            )],
            4 => vec![message(id.wrapping_add(1), command, REPLY, &payload), good],
            5 => {
                let (front, back) = good.split_at(HEADER_BYTES + 3);
                vec![front.to_vec(), back.to_vec()]
            }
            6 => vec![[&good[..], &good].concat()],
            7 => {
                // A request of its own, in between.
                self.send_all(main, &message(7, DEVICE_GET_INFO, 0, &device_info()));
                vec![good]
            }
            8 => vec![message(id, command, REPLY, &[])],
            9 => {
                self.hang_up(main);
                return;
            }
            _ => vec![good],
        };
        for answer in answers {
            match twin {
                // Answers are few and short, so that any socket takes them.
                Some(twin) => _ = send(twin, &answer, &[]),
                None => self.send_all(main, &answer),
            }
        }
    }
}

/// Sends what fits, and says how much that was: nothing, where the other end is closed or the descriptors can't be sent.
fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> usize {
    if bytes.is_empty() {
        return 0;
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let iov = [std::io::IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(stream.as_raw_fd(), &iov, rights, flags, None).unwrap_or(0)
}

/// Takes all that is there. Returns whether the other end is closed.
fn receive(stream: &UnixStream, bytes: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> bool {
    let mut chunk = [0; 16 << 10];
    let mut space = cmsg_space!([RawFd; 253]);
    loop {
        let mut iov = [IoSliceMut::new(&mut chunk)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return false,
            Err(_) => return true,
        };
        for rights in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(numbers) = rights {
                fds.extend(numbers.into_iter().map(own));
            }
        }
        let count = received.bytes;
        if count == 0 {
            return true;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
}

/// The message at the front, once it is whole.
fn next_message(bytes: &mut Vec<u8>) -> Option<Message> {
    let header = Header::parse(bytes)?;
    let size = header.size as usize;
    assert!(
        (HEADER_BYTES..=HEADER_BYTES + 16 + (1 << 20)).contains(&size),
        "the server sent a message of {size} bytes"
    );
    let payload = bytes.get(HEADER_BYTES..size)?.to_vec();
    bytes.drain(..size);
    Some(Message { header, payload })
}
