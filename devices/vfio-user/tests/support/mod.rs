//! A device to be served, and a thread that serves it.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use vfio_user::{Closed, Device, IoEvent, IrqInfo, Lent, Mapping, Migration, Region, Session};

/// Region 0 has 256 bytes. Writing byte 0 raises the line of IRQ index 0 with 1 and lowers it with 0; writing byte 1 sends
/// the message of that number of IRQ index 1; writing 24 bytes at 0x20 (two addresses and a count) copies guest memory.
/// A page of region 1 can be mapped and begins with "mapped"; a write of 7 to its four bytes at 0x18 can be told by an
/// eventfd. Region 2 is not there. The device can be migrated: its state is its bytes.
pub(crate) struct Scratch {
    regions: [Region; 3],
    irqs: [IrqInfo; 2],
    pub(crate) bytes: [u8; 256],
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            regions: [Region::new(256), page(), Region::new(0)],
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

/// Three pages, the second of which can be mapped.
fn page() -> Region {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x4000).unwrap();
    file.write_at(b"mapped", 0x2000).unwrap();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    Region {
        mapping: Some(Mapping {
            file: file.into(),
            offset_bytes: 0x1000,
            areas: std::iter::once(0x1000..0x2000).collect(),
        }),
        io_events: vec![IoEvent {
            offset: 0x18,
            size_bytes: 4,
            value: Some(7),
            eventfd: OwnedFd::from(eventfd).into(),
        }],
        ..Region::new(0x3000)
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

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Scratch {
    fn set_running(&mut self, _: &mut Lent, _: bool) {}

    fn save(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(self.bytes.to_vec())
    }

    fn load(&mut self, _: &mut Lent, state: &[u8]) -> Result<(), Errno> {
        self.bytes = state.try_into().map_err(|_| Errno::EINVAL)?;
        Ok(())
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
