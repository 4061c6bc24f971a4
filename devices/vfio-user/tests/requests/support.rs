//! A device to ask, and a client that writes bytes as the specification lays them out.

use std::{
    os::{fd::RawFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use vfio_user::{Device, IrqInfo, IrqKind, Lent, Migration, Region, Session};

use crate::wire::{self, Message, access, message};

/// Every test ends by then.
const DEADLINE: Duration = Duration::from_secs(20);

/// A device of 256 bytes that every region shows from the first on. A write to [`FAILS`] fails with `EIO`; one of eight
/// bytes to [`DMA`] makes it write the byte 0x5a to guest memory at that address; one to [`LINE`] sets the level of its
/// first interrupt, and one to [`MESSAGE`] sends the message of that number.
pub(crate) struct Fake {
    pub(crate) regions: Vec<Region>,
    pub(crate) irqs: Vec<IrqInfo>,
    pub(crate) bytes: [u8; 256],
    /// Region, offset and data of each write.
    pub(crate) writes: Vec<(u32, u64, Vec<u8>)>,
    /// Whether it can be migrated; its state is "fake" and its bytes.
    pub(crate) is_movable: bool,
    /// What saving fails with.
    pub(crate) save_error: Option<Errno>,
    pub(crate) is_running: bool,
}

pub(crate) const FAILS: u64 = 0xf0;
pub(crate) const DMA: u64 = 0x80;
pub(crate) const LINE: u64 = 0x90;
pub(crate) const MESSAGE: u64 = 0x91;

impl Default for Fake {
    fn default() -> Self {
        Self {
            regions: vec![Region::new(256), Region::new(0)],
            irqs: vec![
                IrqInfo {
                    count: 1,
                    kind: IrqKind::Level,
                },
                IrqInfo {
                    count: 4,
                    kind: IrqKind::Message,
                },
                IrqInfo::default(),
                IrqInfo {
                    count: 1,
                    kind: IrqKind::Notice,
                },
            ],
            bytes: std::array::from_fn(|i| i as u8),
            writes: Vec::new(),
            is_movable: false,
            save_error: None,
            is_running: true,
        }
    }
}

impl Device for Fake {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }

    fn read(&mut self, _: &mut Lent, _: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.bytes[at as usize % 256];
        }
        Ok(())
    }

    fn write(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        if offset == FAILS {
            return Err(Errno::EIO);
        }
        if let (DMA, Ok(iova)) = (offset, data.try_into()) {
            let iova = u64::from_le_bytes(iova);
            return lent.write(iova, &[0x5a]).map_err(|_| Errno::EFAULT);
        }
        match (offset, data) {
            (LINE, [level]) => lent.irqs.set_level(0, *level != 0),
            (MESSAGE, [number]) => lent.irqs.trigger(1, (*number).into()),
            _ => {}
        }
        for (byte, at) in data.iter().zip(offset..) {
            self.bytes[at as usize % 256] = *byte;
        }
        self.writes.push((region, offset, data.to_vec()));
        Ok(())
    }

    fn reset(&mut self, _: &mut Lent) {
        self.bytes = [0; 256];
        self.is_running = true;
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        self.is_movable.then_some(self as _)
    }
}

impl Migration for Fake {
    fn set_running(&mut self, _: &mut Lent, running: bool) {
        assert_ne!(self.is_running, running);
        self.is_running = running;
    }

    fn save(&mut self) -> Result<Vec<u8>, Errno> {
        assert!(!self.is_running);
        match self.save_error {
            Some(errno) => Err(errno),
            None => Ok([b"fake", &self.bytes[..]].concat()),
        }
    }

    fn load(&mut self, _: &mut Lent, state: &[u8]) -> Result<(), Errno> {
        assert!(!self.is_running);
        let bytes = state.strip_prefix(b"fake").ok_or(Errno::EILSEQ)?;
        self.bytes = bytes.try_into().map_err(|_| Errno::EILSEQ)?;
        Ok(())
    }
}

/// Both ends of a connection, driven by turns.
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) session: Session,
    pub(crate) device: Fake,
}

impl Client {
    /// A client of `device` that takes 16 descriptors in a message.
    pub(crate) fn new(device: Fake) -> Self {
        Self::proposing(device, r#"{"capabilities":{"max_msg_fds":16}}"#)
    }

    /// A client of `device` that proposes `capabilities` for VERSION.
    pub(crate) fn proposing(device: Fake, capabilities: &str) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let session = Session::new(theirs, &device, Instant::now()).unwrap();
        let mut client = Self {
            stream,
            session,
            device,
        };
        let version = [b"\0\0\x01\0", capabilities.as_bytes(), b"\0"].concat();
        client.call(1, &version);
        client
    }

    /// Makes the device do something: see [`Fake`].
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let request = [&access(offset, 0, data.len() as u32)[..], data].concat();
        match self.call_with(10, &request, &[]).error {
            0 => Ok(()),
            errno => Err(Errno::from_raw(errno as i32)),
        }
    }

    /// Sends a request that gets no reply, and lets it be served.
    pub(crate) fn post(&mut self, command: u16, payload: &[u8]) {
        self.send(command, 0x10, payload, &[]);
        self.session.serve(&mut self.device).unwrap();
    }

    pub(crate) fn send(&mut self, command: u16, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let bytes = message(0x77, command, flags, payload);
        let start = Instant::now();
        wire::send_with(&self.stream, &bytes, fds, || {
            assert!(start.elapsed() < DEADLINE, "the server takes nothing");
            self.session.serve(&mut self.device).unwrap();
        });
    }

    /// The next message that the server sends.
    pub(crate) fn receive(&mut self) -> Message {
        let start = Instant::now();
        let message = wire::receive_with(&self.stream, || {
            assert!(start.elapsed() < DEADLINE, "no reply");
            self.session.serve(&mut self.device).unwrap();
        });
        message.unwrap()
    }

    pub(crate) fn call_with(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> Message {
        self.send(command, 0, payload, fds);
        let reply = self.receive();
        assert_eq!((reply.id, reply.command), (0x77, command), "echoed");
        reply
    }

    /// A request that is answered.
    pub(crate) fn call(&mut self, command: u16, payload: &[u8]) -> Vec<u8> {
        let reply = self.call_with(command, payload, &[]);
        assert_eq!((reply.flags, reply.error), (1, 0), "{command}: {payload:?}");
        assert!(reply.fds.is_empty());
        reply.payload
    }

    /// The error of a request that is refused.
    pub(crate) fn refused(&mut self, command: u16, payload: &[u8]) -> Errno {
        self.refused_with(command, payload, &[])
    }

    pub(crate) fn refused_with(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> Errno {
        let reply = self.call_with(command, payload, fds);
        assert_eq!(
            (reply.flags, reply.payload.len(), reply.fds.len()),
            (0x21, 0, 0),
            "an error reply is a header with Error set: {command}: {payload:?}"
        );
        Errno::from_raw(reply.error as i32)
    }
}
