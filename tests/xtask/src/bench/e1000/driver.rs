//! The driver that measures: rings in shared memory, doorbells as posted writes, and one way to learn of anything, the
//! interrupt's eventfd. Offsets and bits are those of Intel's manual.
//!
//! It does with the device what Linux's driver does: every frame has RS, the FCS of received ones is left in place,
//! checksums are verified by the device, and buffers are given back a few at a time. Once woken it takes what is done,
//! reads ICR and ends the interrupt (both in one packet to the server), looks again, and waits.
//!
//! What it sends it has written once, and what it received it does not read: that is the guest's work and not the device's.

use std::{
    io::{ErrorKind, Read, Write},
    num::NonZeroUsize,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use ::tests::command::{check_interrupted, wait_for};
use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::sched_yield,
    sys::eventfd::{EfdFlags, EventFd},
};
use vfio_user::{
    Access,
    client::{Action, Client, Interrupts, NoMemory, Options},
};

use super::{
    frame::{self, Size},
    memory::Memory,
};

const MEMORY_BYTES: NonZeroUsize = NonZeroUsize::new(16 << 20).expect("not zero");
const TX_RING: u64 = 0;
const RX_RING: u64 = 0x1_0000;
const TX_DATA: u64 = 0x10_0000;
const RX_DATA: u64 = 0x40_0000;
const BUFFER_BYTES: u64 = 2048;
const DESCRIPTOR_BYTES: u64 = 16;
/// Where what is sent lies, in turn.
const TX_BUFFERS: u64 = 256;
/// Transmit descriptors for large packets: what 64 of them take, and more.
const RING_OF_SEGMENTS: u64 = 2048;
/// How much of a large packet one descriptor has: a guest's page.
const PAGE_BYTES: u64 = 4096;

const CTRL: u64 = 0x0;
const STATUS: u64 = 0x8;
const ICR: u64 = 0xc0;
const IMS: u64 = 0xd0;
const IMC: u64 = 0xd8;
const RCTL: u64 = 0x100;
const TCTL: u64 = 0x400;
const RDBAL: u64 = 0x2800;
const RDLEN: u64 = 0x2808;
const RDT: u64 = 0x2818;
const TDBAL: u64 = 0x3800;
const TDLEN: u64 = 0x3808;
const TDT: u64 = 0x3818;
const RXCSUM: u64 = 0x5000;

const RESET: u32 = 1 << 26;
const SET_LINK_UP: u32 = 1 << 6;
const LINK_UP: u32 = 1 << 1;
/// TXDW; and RXT0, RXO and RXDMT0.
const SEND_CAUSES: u32 = 0x1;
const RECEIVE_CAUSES: u32 = 0xd0;
/// EN, PSP, and the usual collision fields.
const TRANSMIT: u32 = 0x0004_00fa;
/// EN and BAM, and buffers of 2048 bytes.
const RECEIVE: u32 = 0x8002;
/// IPOFL and TUOFL.
const VERIFY: u32 = 0x300;

/// EOP, IFCS and RS.
const LEGACY: u64 = 0x0b << 24;
/// DEXT and TSE, of a data descriptor; and EOP, IFCS and RS in the last one. POPTS asks for both checksums.
const DATA: u64 = 0x2410_0000 | 0x3 << 40;
const DATA_LAST: u64 = DATA | 0x0b << 24;
/// IPv4 and TCP, TSE, DEXT; the header ends at byte 54, and segments have 1460 bytes.
const CONTEXT_LOW: u64 = 14 | 24 << 8 | 33 << 16 | 34 << 32 | 50 << 40;
const CONTEXT_HIGH: u64 = 0x2700_0000 | 54 << 40 | 1460 << 48;
const DONE: u64 = 1 << 32;

const BAR: u32 = 0;
const CONFIG: u32 = 7;
const INTX: u32 = 0;
const HEADER_BYTES: usize = 16;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const SET_IRQS: u16 = 8;
const NO_REPLY: u32 = 1 << 4;
const READ_REPLY_BYTES: usize = 36;
/// DATA_NONE and ACTION_UNMASK.
const UNMASK: u32 = 1 | 1 << 4;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A device that owes an interrupt for so long has lost it.
const INTERRUPT_LIMIT: Duration = Duration::from_millis(500);
/// A device that has lost so many is not measured any more.
const LOST_INTERRUPTS: u64 = 10;

/// A device, its rings and its interrupt.
pub(super) struct Driver {
    stream: UnixStream,
    memory: Memory,
    interrupt: EventFd,
    /// How often the eventfd was waited for, and how often in vain.
    pub(super) interrupts: u64,
    pub(super) lost_interrupts: u64,
    /// A read of ICR, and the end of the interrupt.
    acknowledgement: Vec<u8>,
    /// Descriptors of each ring.
    ring: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    InTime,
    Late,
}

/// What the receiver's other end knows of what is still to come.
pub(super) trait Source {
    /// The driver has given so many buffers more.
    fn grant(&self, buffers: u64);
    /// How many frames there will have been, once that is known.
    fn total(&self) -> Option<u64>;
    /// Whether frames may get lost on their way to the device.
    fn is_lossy(&self) -> bool;
}

impl Driver {
    /// Connects as soon as somebody listens, and sets up what no reset undoes.
    pub(super) fn connect(path: &Path, ring: u64) -> Result<Self> {
        let stream = wait_for("the server's socket", CONNECT_LIMIT, || {
            Ok(UnixStream::connect(path).ok())
        })?;
        let ours = stream.try_clone().context("share a socket")?;
        let memory = Memory::new(MEMORY_BYTES)?;
        let interrupt = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .context("make an eventfd")?;
        let mut client = Client::with_memory(stream, &Options::default(), NoMemory)?;
        let both = Access {
            read: true,
            write: true,
        };
        let bytes = MEMORY_BYTES.get() as u64;
        client.dma_map(0, bytes, both, Some((memory.file.as_fd(), 0)))?;
        client.set_irqs(
            INTX,
            0,
            Action::Trigger,
            Interrupts::Eventfds(&[interrupt.as_fd()]),
        )?;
        // Memory space and bus master.
        client.region_write(CONFIG, 4, &[6, 0])?;
        // From here on each doorbell is one send, and each reply is waited for asleep.
        ours.set_nonblocking(false)?;
        ours.set_read_timeout(Some(CONNECT_LIMIT))?;
        ours.set_write_timeout(Some(CONNECT_LIMIT))?;
        let mut acknowledgement = message(REGION_READ, 0, &access(ICR));
        let unmask = [20, UNMASK, INTX, 0, 1].map(u32::to_le_bytes).concat();
        acknowledgement.extend(message(SET_IRQS, NO_REPLY, &unmask));
        Ok(Self {
            stream: ours,
            memory,
            interrupt,
            interrupts: 0,
            lost_interrupts: 0,
            acknowledgement,
            ring,
        })
    }

    /// Sends packets of this size for as long as `time` or until there were `most`, with a doorbell every so many. Returns
    /// how many, when the last is done.
    pub(super) fn send(
        &mut self,
        size: Size,
        doorbell: u64,
        time: Duration,
        most: u64,
    ) -> Result<u64> {
        let mut ring = self.start_sending(size)?;
        let started = Instant::now();
        let (mut sent, mut announced) = (0, 0);
        let mut is_over = false;
        while !is_over || ring.reclaimed < sent {
            while !is_over && ring.has_room() {
                ring.put(&self.memory);
                sent += 1;
                is_over = sent == most;
                if is_over || sent - announced == doorbell {
                    self.write(TDT, ring.tail as u32)?;
                    announced = sent;
                    is_over |= started.elapsed() >= time;
                    // Who shares the processor, the peer, has its turn.
                    sched_yield()?;
                }
            }
            if ring.reclaim(&self.memory) > 0 {
                continue;
            }
            if ring.reclaimed == announced {
                // The ring is full, and the device has done all that it knows of.
                self.write(TDT, ring.tail as u32)?;
                announced = sent;
            }
            self.wait_surely()?;
            ring.reclaim(&self.memory);
            self.acknowledge()?;
        }
        Ok(sent)
    }

    /// Receives until the source says that it was all, and gives so many buffers back at a time. Returns how many frames
    /// came.
    pub(super) fn receive(
        &mut self,
        source: &dyn Source,
        doorbell: u64,
        begin: impl FnOnce() -> Result<()>,
    ) -> Result<u64> {
        self.start_receiving()?;
        source.grant(self.ring - 1);
        begin()?;
        let (mut received, mut kept) = (0, 0);
        let is_over = |source: &dyn Source, received| source.total() == Some(received);
        while !is_over(source, received) {
            if source.is_lossy() {
                let is_late = self.wait()? == Woken::Late;
                if is_late && source.total().is_some() && !self.has_received(received) {
                    break;
                }
                self.lost_interrupts += u64::from(is_late);
            } else {
                self.wait_surely()?;
            }
            for acknowledged in [false, true] {
                if acknowledged {
                    self.acknowledge()?;
                }
                while self.has_received(received) {
                    let slot = received % self.ring;
                    let at = RX_RING + slot * DESCRIPTOR_BYTES + 8;
                    self.memory.store(at, 0);
                    received += 1;
                    kept += 1;
                    if kept == doorbell {
                        // One descriptor stays ours, or head and tail would be equal.
                        self.write(RDT, ((received + self.ring - 1) % self.ring) as u32)?;
                        source.grant(kept);
                        kept = 0;
                    }
                }
            }
        }
        Ok(received)
    }

    /// Sends one frame, and waits for its interrupt. Returns how long that was.
    pub(super) fn latencies_of_sending(&mut self, count: usize) -> Result<Vec<u64>> {
        let mut ring = self.start_sending(Size::Small)?;
        let mut waits = Vec::with_capacity(count);
        for _ in 0..count {
            ring.put(&self.memory);
            let began = Instant::now();
            self.write(TDT, ring.tail as u32)?;
            self.wait_surely()?;
            waits.push(began.elapsed().as_nanos() as u64);
            ring.reclaim(&self.memory);
            self.acknowledge()?;
        }
        Ok(waits)
    }

    /// Has a frame sent to the device, and waits for its interrupt. Returns how long that was.
    pub(super) fn latencies_of_receiving(
        &mut self,
        count: usize,
        mut arrive: impl FnMut() -> Result<()>,
    ) -> Result<Vec<u64>> {
        self.start_receiving()?;
        let mut waits = Vec::with_capacity(count);
        for number in 0..count as u64 {
            let began = Instant::now();
            arrive()?;
            self.wait_surely()?;
            waits.push(began.elapsed().as_nanos() as u64);
            self.memory
                .store(RX_RING + number % self.ring * DESCRIPTOR_BYTES + 8, 0);
            self.acknowledge()?;
            self.write(RDT, (number % self.ring) as u32)?;
        }
        Ok(waits)
    }

    fn start_sending(&mut self, size: Size) -> Result<TransmitRing> {
        self.reset()?;
        let ring = TransmitRing::new(&self.memory, size, self.ring);
        self.write(TDBAL, TX_RING as u32)?;
        self.write(TDLEN, (ring.count * DESCRIPTOR_BYTES) as u32)?;
        self.write(TCTL, TRANSMIT)?;
        self.write(IMS, SEND_CAUSES)?;
        Ok(ring)
    }

    fn start_receiving(&mut self) -> Result<()> {
        self.reset()?;
        for slot in 0..self.ring {
            let at = RX_RING + slot * DESCRIPTOR_BYTES;
            self.memory.store(at, RX_DATA + slot * BUFFER_BYTES);
            self.memory.store(at + 8, 0);
        }
        self.write(RDBAL, RX_RING as u32)?;
        self.write(RDLEN, (self.ring * DESCRIPTOR_BYTES) as u32)?;
        self.write(RXCSUM, VERIFY)?;
        self.write(RDT, (self.ring - 1) as u32)?;
        self.write(IMS, RECEIVE_CAUSES)?;
        self.write(RCTL, RECEIVE)?;
        // The device has done all of this when it answers.
        self.read(STATUS).map(drop)
    }

    /// As after power-on, but with a link, and with no interrupt on its way.
    fn reset(&mut self) -> Result<()> {
        self.write(IMC, u32::MAX)?;
        self.write(CTRL, RESET)?;
        self.write(CTRL, SET_LINK_UP)?;
        let mut answer = || Ok((self.read(STATUS)? & LINK_UP != 0).then_some(()));
        wait_for("the link", CONNECT_LIMIT, &mut answer)?;
        self.acknowledge()?;
        // What was signalled before is old.
        let _ = self.interrupt.read();
        Ok(())
    }

    fn has_received(&self, number: u64) -> bool {
        let at = RX_RING + number % self.ring * DESCRIPTOR_BYTES + 8;
        self.memory.load(at) & DONE != 0
    }

    /// Waits for an interrupt that has to come: another is lost.
    fn wait_surely(&mut self) -> Result<()> {
        if self.wait()? == Woken::Late {
            self.lost_interrupts += 1;
            ensure!(
                self.lost_interrupts < LOST_INTERRUPTS,
                "{LOST_INTERRUPTS} interrupts did not come"
            );
        }
        Ok(())
    }

    /// Waits for the interrupt's eventfd, and for nothing else.
    fn wait(&mut self) -> Result<Woken> {
        self.interrupts += 1;
        let limit = PollTimeout::try_from(INTERRUPT_LIMIT)?;
        let mut has_slept = false;
        loop {
            match self.interrupt.read() {
                Ok(_) => return Ok(Woken::InTime),
                Err(Errno::EAGAIN) if has_slept => return Ok(Woken::Late),
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno).context("read the interrupt's eventfd"),
            }
            let mut fds = [PollFd::new(self.interrupt.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, limit) {
                Ok(_) => has_slept = true,
                Err(Errno::EINTR) => check_interrupted()?,
                Err(errno) => return Err(errno).context("wait for the interrupt"),
            }
        }
    }

    /// Reads ICR, which lowers the line, and ends the interrupt, which lets the next one through.
    fn acknowledge(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.acknowledgement);
        let answered = self.send_bytes(&bytes).and_then(|()| self.take_reply());
        self.acknowledgement = bytes;
        answered.map(drop)
    }

    fn read(&mut self, offset: u64) -> Result<u32> {
        self.send_bytes(&message(REGION_READ, 0, &access(offset)))?;
        self.take_reply()
    }

    fn take_reply(&mut self) -> Result<u32> {
        let mut reply = [0; READ_REPLY_BYTES];
        self.stream.read_exact(&mut reply).map_err(late)?;
        ensure!(reply[8] == 1, "the server refused a read of a register");
        let [.., a, b, c, d] = reply;
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    /// A posted write, as QEMU sends it.
    fn write(&mut self, offset: u64, value: u32) -> Result<()> {
        let mut bytes = [0; 36];
        bytes[..16].copy_from_slice(&header(REGION_WRITE, NO_REPLY, 36));
        bytes[16..32].copy_from_slice(&access(offset));
        bytes[32..].copy_from_slice(&value.to_le_bytes());
        self.send_bytes(&bytes)
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(late)
    }
}

/// The transmit ring, from the driver's side.
struct TransmitRing {
    size: Size,
    count: u64,
    /// Descriptors of one packet.
    per_packet: u64,
    tail: u64,
    free: u64,
    /// The last descriptor of the oldest packet that is not done.
    oldest: u64,
    /// Packets that are done.
    reclaimed: u64,
}

impl TransmitRing {
    fn new(memory: &Memory, size: Size, ring: u64) -> Self {
        let data = size.frame();
        let (count, per_packet) = match size {
            Size::Segments => {
                memory.fill(TX_DATA, &data);
                let payload = (data.len() - frame::TCP_HEADERS_BYTES) as u64;
                (RING_OF_SEGMENTS, 2 + payload.div_ceil(PAGE_BYTES))
            }
            _ => {
                for slot in 0..TX_BUFFERS {
                    memory.fill(TX_DATA + slot * BUFFER_BYTES, &data);
                }
                (ring, 1)
            }
        };
        Self {
            size,
            count,
            per_packet,
            tail: 0,
            free: count - 1,
            oldest: per_packet - 1,
            reclaimed: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.free >= self.per_packet
    }

    /// Describes the next packet.
    fn put(&mut self, memory: &Memory) {
        self.free -= self.per_packet;
        let bytes = self.size.bytes();
        if self.size != Size::Segments {
            let buffer = TX_DATA + self.tail % TX_BUFFERS * BUFFER_BYTES;
            return self.push(memory, buffer, LEGACY | bytes);
        }
        let headers = frame::TCP_HEADERS_BYTES as u64;
        let payload = bytes - headers;
        self.push(memory, CONTEXT_LOW, CONTEXT_HIGH | payload);
        self.push(memory, TX_DATA, DATA | headers);
        let mut done = 0;
        while done < payload {
            let part = (payload - done).min(PAGE_BYTES);
            let kind = if done + part == payload {
                DATA_LAST
            } else {
                DATA
            };
            self.push(memory, TX_DATA + headers + done, kind | part);
            done += part;
        }
    }

    fn push(&mut self, memory: &Memory, low: u64, high: u64) {
        let at = TX_RING + self.tail * DESCRIPTOR_BYTES;
        memory.store(at, low);
        memory.store(at + 8, high);
        self.tail = (self.tail + 1) % self.count;
    }

    /// Takes back what the device has reported done. Returns how many packets that were.
    fn reclaim(&mut self, memory: &Memory) -> u64 {
        let before = self.reclaimed;
        while self.free < self.count - 1 {
            let at = TX_RING + self.oldest * DESCRIPTOR_BYTES + 8;
            if memory.load(at) & DONE == 0 {
                break;
            }
            self.oldest = (self.oldest + self.per_packet) % self.count;
            self.free += self.per_packet;
            self.reclaimed += 1;
        }
        self.reclaimed - before
    }
}

fn late(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::WouldBlock => anyhow!("the server does nothing for {CONNECT_LIMIT:?}"),
        ErrorKind::UnexpectedEof => anyhow!("the server closed the connection"),
        _ => anyhow::Error::new(error).context("talk to the server"),
    }
}

/// A command: header and payload.
fn message(command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = HEADER_BYTES + payload.len();
    [&header(command, flags, size as u32), payload].concat()
}

/// No reply is told apart by its id.
fn header(command: u16, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[2..4].copy_from_slice(&command.to_le_bytes());
    header[4..8].copy_from_slice(&size.to_le_bytes());
    header[8..12].copy_from_slice(&flags.to_le_bytes());
    header
}

/// Offset, BAR 0, 4 bytes.
fn access(offset: u64) -> [u8; 16] {
    let mut access = [0; 16];
    access[..8].copy_from_slice(&offset.to_le_bytes());
    access[8..12].copy_from_slice(&BAR.to_le_bytes());
    access[12..].copy_from_slice(&4_u32.to_le_bytes());
    access
}
