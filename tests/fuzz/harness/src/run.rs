//! A session from its beginning to its end, turn by turn.

use std::{
    os::fd::{AsFd, RawFd},
    sync::Arc,
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_user::{Closed, Session};

use crate::{
    client::Client,
    device::Scratch,
    expected::Fate,
    wire::{DEVICE_GET_INFO, VERSION, device_info, message, version},
};

/// More turns than any input keeps a server busy for.
const MAX_TURNS: usize = 100_000;

pub(crate) struct Run {
    client: Arc<Client>,
    device: Scratch,
    session: Session,
    closed: Option<Closed>,
    /// That it ended has been looked at.
    is_over: bool,
}

impl Run {
    /// A client has connected. `manners` say how it answers what the server asks.
    pub(crate) fn new(manners: &[u8]) -> Self {
        let (client, theirs) = Client::pair(manners);
        let client = Arc::new(client);
        let device = Scratch::new(Arc::clone(&client));
        Self {
            session: Session::new(theirs, &device, Instant::now()).unwrap(),
            client,
            device,
            closed: None,
            is_over: false,
        }
    }

    /// Sends all of it, and gives the server turns as long as it takes less.
    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let mut sent = self.client.send(bytes, fds);
        while sent < bytes.len() && self.closed.is_none() {
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
        if self.closed.is_some() {
            return;
        }
        self.closed = self.session.serve(&mut self.device).err();
        let lent = self.session.lent();
        if lent.irqs.fd().is_some_and(|fd| is_readable(&fd)) {
            lent.irqs.serve();
        }
    }

    /// Lets the server and the client do all that they can, and looks at what came of it.
    pub(crate) fn settle(&mut self) {
        if self.is_over {
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

    fn is_busy(&self) -> bool {
        self.session.has_requests() || self.session.wants_write() || is_readable(&self.session)
    }

    /// A valid request is answered, or the connection has ended; the client leaves, and then it has.
    pub(crate) fn finish(mut self) {
        self.settle();
        while self.closed.is_none()
            && let Some(lacking @ 1..) = self.client.lacking()
        {
            self.send(&vec![0; lacking], &[]);
            self.settle();
        }
        if self.closed.is_none() && self.client.lacking() == Some(0) {
            if !self.client.has_negotiated() {
                self.negotiate("{}");
            }
            if self.closed.is_none() {
                let asked = message(0x1234, DEVICE_GET_INFO, 0, &device_info());
                self.send(&asked, &[]);
                self.settle();
            }
        }
        self.client.hang_up();
        let mut turns = 0;
        while self.closed.is_none() {
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
