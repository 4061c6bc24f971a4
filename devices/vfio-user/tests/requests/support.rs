//! A device to ask, and a client that writes bytes as the specification lays them out.

use std::{
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use vfio_user::{Device, IrqInfo, IrqKind, Lent, Migration, Region, Session};

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

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) flags: u32,
    pub(crate) error: i32,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
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
            errno => Err(Errno::from_raw(errno)),
        }
    }

    /// Sends a request that gets no reply, and lets it be served.
    pub(crate) fn post(&mut self, command: u16, payload: &[u8]) {
        self.send(command, 0x10, payload, &[]);
        self.session.serve(&mut self.device).unwrap();
    }

    pub(crate) fn send(&mut self, command: u16, flags: u32, payload: &[u8], fds: &[RawFd]) {
        let mut bytes = [0x77u16.to_le_bytes(), command.to_le_bytes()].concat();
        bytes.extend(words(&[16 + payload.len() as u32, flags, 0]));
        bytes.extend(payload);
        let rights = [ControlMessage::ScmRights(fds)];
        let mut rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let mut rest = &bytes[..];
        let start = Instant::now();
        while !rest.is_empty() {
            assert!(start.elapsed() < DEADLINE, "the server takes nothing");
            let iov = [IoSlice::new(rest)];
            match sendmsg::<()>(
                self.stream.as_raw_fd(),
                &iov,
                rights,
                MsgFlags::empty(),
                None,
            ) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    rights = &[];
                }
                Err(Errno::EAGAIN) => self.session.serve(&mut self.device).unwrap(),
                Err(errno) => unreachable!("{errno}"),
            }
        }
    }

    /// The next message that the server sends.
    pub(crate) fn receive(&mut self) -> (u16, u16, Reply) {
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        let start = Instant::now();
        loop {
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let missing = match bytes.len() {
                got @ 0..16 => 16 - got,
                got => word(4) as usize - got,
            };
            if missing == 0 {
                let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let reply = Reply {
                    flags: word(8),
                    error: word(12) as i32,
                    payload: bytes[16..].to_vec(),
                    fds,
                };
                return (half(0), half(2), reply);
            }
            assert!(start.elapsed() < DEADLINE, "no reply");
            let mut room = vec![0; missing];
            match self.receive_some(&mut room, &mut fds) {
                Ok(count) => bytes.extend_from_slice(&room[..count]),
                Err(Errno::EAGAIN) => self.session.serve(&mut self.device).unwrap(),
                Err(errno) => unreachable!("{errno}"),
            }
        }
    }

    #[expect(
        unsafe_code,
        reason = "descriptors that recvmsg returns are not owned yet"
    )]
    fn receive_some(&self, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
        let mut control = cmsg_space!([RawFd; 253]);
        let mut iov = [IoSliceMut::new(room)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.stream.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut iov, Some(&mut control), flags)?;
        for rights in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = rights {
                // SAFETY: the kernel has just opened these for this process.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        assert!(message.bytes > 0, "the server closed the connection");
        Ok(message.bytes)
    }

    pub(crate) fn call_with(&mut self, command: u16, payload: &[u8], fds: &[RawFd]) -> Reply {
        self.send(command, 0, payload, fds);
        let (id, answered, reply) = self.receive();
        assert_eq!((id, answered), (0x77, command), "echoed");
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
        Errno::from_raw(reply.error)
    }
}

/// Little-endian 32-bit words.
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian 64-bit words.
pub(crate) fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// What REGION_READ and REGION_WRITE begin with.
pub(crate) fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}
