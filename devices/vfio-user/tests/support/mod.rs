//! A device to be served, and a thread that serves it.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use vfio_user::{Closed, Device, IrqInfo, Lent, Region, Session};

/// Region 0 has 256 bytes. Writing byte 0 raises the line of IRQ index 0 with 1 and lowers it with 0; writing byte 1 sends
/// the message of that number of IRQ index 1; writing 24 bytes at 0x20 (two addresses and a count) copies guest memory.
/// Region 1 is not there.
pub(crate) struct Scratch {
    regions: [Region; 2],
    irqs: [IrqInfo; 2],
    pub(crate) bytes: [u8; 256],
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            regions: [Region::new(256), Region::new(0)],
            irqs: [
                IrqInfo {
                    count: 1,
                    kind: vfio_user::IrqKind::Level,
                },
                IrqInfo {
                    count: 4,
                    kind: vfio_user::IrqKind::Message,
                },
            ],
            bytes: [0; 256],
        }
    }

    /// Serves it to a client until that leaves. Returns the client's end, and a thread that ends with the device and why.
    pub(crate) fn serve(self) -> (UnixStream, JoinHandle<(Self, Closed)>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (theirs, thread::spawn(|| self.run(ours)))
    }

    fn run(mut self, stream: UnixStream) -> (Self, Closed) {
        let mut session = Session::new(stream, &self, Instant::now()).unwrap();
        loop {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, !session.is_blocked());
            events.set(PollFlags::POLLOUT, session.wants_write());
            let mut fds = [PollFd::new(session.as_fd(), events)];
            poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
            if let Err(closed) = session.serve(&mut self) {
                return (self, closed);
            }
        }
    }
}

fn word(data: &[u8], at: usize) -> Result<u64, Errno> {
    let bytes = data.get(at..at + 8).ok_or(Errno::EINVAL)?;
    Ok(u64::from_le_bytes(bytes.try_into().unwrap()))
}

impl Device for Scratch {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }

    fn read(&mut self, _: &mut Lent, _: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let at = offset as usize;
        data.copy_from_slice(&self.bytes[at..at + data.len()]);
        Ok(())
    }

    fn write(&mut self, lent: &mut Lent, _: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let at = offset as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        match offset {
            0 => lent.irqs.set_level(0, data[0] == 1),
            1 => lent.irqs.trigger(1, data[0].into()),
            0x20 => {
                let mut bytes = vec![0; word(data, 16)? as usize];
                lent.read(word(data, 0)?, &mut bytes)
                    .map_err(|_| Errno::EFAULT)?;
                lent.write(word(data, 8)?, &bytes)
                    .map_err(|_| Errno::EFAULT)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self, lent: &mut Lent) {
        self.bytes = [0; 256];
        lent.irqs.set_level(0, false);
    }
}

/// Waits until `done`, and fails if that takes longer than it may on the busiest machine.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}
