//! A session from its beginning to its end, turn by turn.

use std::{
    os::fd::{AsFd, RawFd},
    sync::Arc,
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_user::{Closed, Saved, SavedSession, Session};

use crate::{
    client::Client,
    descriptors::{FILE_BYTES, FILES, Pool},
    device::Scratch,
    expected::Fate,
    wire::{DEVICE_GET_INFO, VERSION, device_info, message, version},
};

/// More turns than any input keeps a server busy for.
const MAX_TURNS: usize = 100_000;

pub(crate) struct Run {
    client: Arc<Client>,
    device: Scratch,
    /// `None`: it could not be put together again.
    session: Option<Session>,
    closed: Option<Closed>,
    /// That it ended has been looked at.
    is_over: bool,
    /// A file that the client lends was shorter once.
    was_cut: bool,
}

impl Run {
    /// A client has connected. `manners` say how it answers what the server asks.
    pub(crate) fn new(manners: &[u8]) -> Self {
        let (client, theirs) = Client::pair(manners);
        let client = Arc::new(client);
        let device = Scratch::new(Arc::clone(&client));
        Self {
            session: Some(Session::new(theirs, &device, Instant::now()).unwrap()),
            client,
            device,
            closed: None,
            is_over: false,
            was_cut: false,
        }
    }

    /// Sends all of it, and gives the server turns as long as it takes less.
    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let mut sent = self.client.send(bytes, fds);
        while sent < bytes.len() && self.is_open() {
            self.settle();
            let more = self.client.send(&bytes[sent..], &[]);
            if more == 0 && sent == 0 {
                // The kernel does not send such descriptors.
                return;
            }
            sent += more;
        }
    }

    pub(crate) fn negotiate(&mut self, json: &str) {
        self.send(&message(1, VERSION, 0, &version(json)), &[]);
        self.settle();
    }

    /// One turn of the server's.
    pub(crate) fn serve(&mut self) {
        let (None, Some(session)) = (&self.closed, &mut self.session) else {
            return;
        };
        self.closed = session.serve(&mut self.device).err();
        let lent = session.lent();
        if lent.irqs.fd().is_some_and(|fd| is_readable(&fd)) {
            lent.irqs.serve();
        }
    }

    /// Lets the server and the client do all that they can, and looks at what came of it.
    pub(crate) fn settle(&mut self) {
        if self.is_over || self.session.is_none() {
            return;
        }
        let mut turns = 0;
        while self.closed.is_none() {
            self.serve();
            let received = self.client.receive();
            if !received && !self.is_busy() {
                break;
            }
            turns += 1;
            assert!(turns < MAX_TURNS, "the server has never done");
        }
        self.client.receive();
        self.is_over = self.closed.is_some();
        match (self.client.settle(), &self.closed) {
            (Fate::GoesOn, Some(closed)) => panic!("the connection ended: {closed}"),
            (Fate::Ends, None) => panic!(
                "the connection goes on, with a request unanswered or behind what is no message"
            ),
            _ => {}
        }
    }

    fn is_open(&self) -> bool {
        self.closed.is_none() && self.session.is_some()
    }

    fn is_busy(&self) -> bool {
        self.session.as_ref().is_some_and(|session| {
            session.has_requests() || session.wants_write() || is_readable(session)
        })
    }

    /// Changes the length of a file that the client lends.
    pub(crate) fn set_length(&mut self, file: u8, sixteenths: u8) {
        let bytes = FILE_BYTES / 16 * u64::from(sixteenths % 17);
        self.was_cut |= bytes < FILE_BYTES;
        Pool::get().set_length(usize::from(file) % FILES, bytes);
    }

    /// The session is taken apart and put together again, of which the client notices nothing. `damage` is done to a copy
    /// of it, of which something may become, or nothing.
    pub(crate) fn hand_over(&mut self, damage: Option<(u16, u8)>) {
        let (None, Some(session)) = (&self.closed, self.session.take()) else {
            return;
        };
        let saved = match session.into_saved() {
            Ok(saved) => saved,
            // It is over, and nobody has looked yet.
            Err(not_saved) => {
                self.session = Some(*not_saved.session);
                return;
            }
        };
        let text = serde_json::to_vec(&saved.value).unwrap();
        if let Some((at, with)) = damage {
            let mut damaged = text.clone();
            let at = usize::from(at) % damaged.len();
            damaged[at] = with;
            let mut other = Scratch::new(Arc::clone(&self.client));
            let fds = saved.fds.iter().map(|fd| fd.try_clone().unwrap());
            if let Ok(value) = serde_json::from_slice::<SavedSession>(&damaged) {
                let saved = Saved {
                    value,
                    fds: fds.collect(),
                };
                drop(Session::from_saved(saved, &mut other, Instant::now()));
            }
        }
        let value = serde_json::from_slice(&text).unwrap();
        let fds = saved.fds;
        let restored = Session::from_saved(Saved { value, fds }, &mut self.device, Instant::now());
        match restored {
            Ok(session) => self.session = Some(session),
            // Maps of what a file no longer has can't be made again.
            Err(_) if self.was_cut => {}
            Err(error) => panic!("not put together: {error}, {error:?}"),
        }
    }

    /// A valid request is answered, or the connection has ended; the client leaves, and then it has.
    pub(crate) fn finish(mut self) {
        self.settle();
        while self.is_open()
            && let Some(lacking @ 1..) = self.client.lacking()
        {
            self.send(&vec![0; lacking], &[]);
            self.settle();
        }
        if self.is_open() && self.client.lacking() == Some(0) {
            if !self.client.has_negotiated() {
                self.negotiate("{}");
            }
            if self.is_open() {
                let asked = message(0x1234, DEVICE_GET_INFO, 0, &device_info());
                self.send(&asked, &[]);
                self.settle();
            }
        }
        self.client.hang_up();
        let mut turns = 0;
        while self.is_open() {
            self.serve();
            turns += 1;
            assert!(turns < MAX_TURNS, "the client has left, and is served");
        }
    }
}

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
