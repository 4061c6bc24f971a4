//! A driver for the e1000 with two small rings, by the offsets of Intel's manual, behind whatever client; and the station
//! at the other end of the device's `stream` backend.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    memfd::{MFdFlags, memfd_create},
};
use tests::Device;

pub(crate) const MEMORY_BYTES: u64 = 1 << 20;
const TX_RING: u64 = 0x1000;
const RX_RING: u64 = 0x2000;
const TX_BUFFER: u64 = 0x1_0000;
const RX_BUFFER: u64 = 0x8000;
const TX_STRIDE: u64 = 0x800;
const RX_STRIDE: u64 = 0x800;
/// Descriptors of each ring.
pub(crate) const RING: u64 = 8;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// What a driver needs of a client that is connected to the device.
pub(crate) trait Registers {
    /// Reads a register of BAR 0.
    fn read(&mut self, offset: u64) -> u32;
    /// Writes one.
    fn write(&mut self, offset: u64, value: u32);
    /// Unmasks INTx, as a VMM does at the end of the interrupt.
    fn unmask(&mut self);
}

/// The driver. What it remembers is in the guest's memory and in the device.
pub(crate) struct Driver<C> {
    pub(crate) client: C,
    pub(crate) memory: File,
    pub(crate) interrupt: EventFd,
}

/// Guest memory.
pub(crate) fn memory() -> File {
    let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    memory.set_len(MEMORY_BYTES).unwrap();
    memory
}

/// A counter that does not block.
pub(crate) fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

impl<C: Registers> Driver<C> {
    pub(crate) fn read(&mut self, offset: u64) -> u32 {
        self.client.read(offset)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.client.write(offset, value);
    }

    pub(crate) fn wait_interrupt(&mut self) -> u32 {
        let deadline = Instant::now() + LIMIT;
        while self.interrupt.read().is_err() {
            assert!(Instant::now() < deadline, "no interrupt");
            std::thread::sleep(Duration::from_millis(1));
        }
        let cause = self.read(0xc0);
        self.client.unmask();
        cause
    }

    /// Both rings with all descriptors, promiscuous, frames of any length, interrupts for what is sent and received.
    pub(crate) fn open(&mut self) {
        for index in 0..RING {
            self.put_buffer(index);
        }
        self.write(0x3800, TX_RING as u32);
        self.write(0x3808, RING as u32 * 16);
        self.write(0x2800, RX_RING as u32);
        self.write(0x2808, RING as u32 * 16);
        self.write(0x2818, RING as u32 - 1);
        // CTRL: set link up. IMS: TXDW, RXT0.
        self.write(0x0, 0x40);
        self.write(0xd0, 0x81);
        self.write(0x400, 0x2);
        // EN, UPE, MPE, LPE, BAM, SECRC.
        self.write(0x100, 0x0400_803a);
    }

    /// Fills a transmit descriptor, and moves the tail behind it.
    pub(crate) fn send(&mut self, index: u64, frame: &[u8]) {
        let buffer = TX_BUFFER + index * TX_STRIDE;
        self.memory.write_all_at(frame, buffer).unwrap();
        // EOP, IFCS, RS.
        let command = 0x0b00_0000 | frame.len() as u64;
        self.memory
            .write_all_at(&descriptor(buffer, command), TX_RING + index * 16)
            .unwrap();
        self.write(0x3818, (index + 1) as u32 % RING as u32);
    }

    /// A frame that was received into one buffer.
    pub(crate) fn received(&mut self, index: u64) -> Option<Vec<u8>> {
        let (data, is_last) = self.buffer(index)?;
        assert!(is_last, "the frame fits into one buffer");
        Some(data)
    }

    /// What was received into a buffer, and whether the frame ends there.
    pub(crate) fn buffer(&mut self, index: u64) -> Option<(Vec<u8>, bool)> {
        let mut descriptor = [0; 16];
        self.memory
            .read_exact_at(&mut descriptor, RX_RING + index * 16)
            .unwrap();
        let [length_low, length_high] = [descriptor[8], descriptor[9]];
        // DD, and EOP.
        (descriptor[12] & 1 == 1).then(|| {
            let length = u16::from_le_bytes([length_low, length_high]);
            let mut data = vec![0; usize::from(length)];
            self.memory
                .read_exact_at(&mut data, RX_BUFFER + index * RX_STRIDE)
                .unwrap();
            (data, descriptor[12] & 2 == 2)
        })
    }

    pub(crate) fn wait_received(&mut self, index: u64) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(frame) = self.received(index) {
                return frame;
            }
            assert!(Instant::now() < deadline, "no frame in buffer {index}");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Gives a buffer to the device again.
    pub(crate) fn give_back(&mut self, index: u64) {
        self.put_buffer(index);
        self.write(0x2818, index as u32);
    }

    fn put_buffer(&mut self, index: u64) {
        let descriptor = descriptor(RX_BUFFER + index * RX_STRIDE, 0);
        self.memory
            .write_all_at(&descriptor, RX_RING + index * 16)
            .unwrap();
    }

    /// One frame each way, both announced by interrupts.
    pub(crate) fn exchange(&mut self, peer: &mut UnixStream) {
        self.open();
        let sent = frame(300);
        self.send(0, &sent);
        assert_eq!(self.wait_interrupt() & 0x1, 1, "TXDW");
        assert_eq!(read_frame(peer), sent);
        let received = frame(1000);
        write_frame(peer, &received);
        assert_eq!(self.wait_interrupt() & 0x80, 0x80, "RXT0");
        assert_eq!(self.received(0).unwrap(), received);
    }
}

fn descriptor(address: u64, rest: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..].copy_from_slice(&rest.to_le_bytes());
    bytes
}

/// An e1000 and the station at the other end of its `stream` backend.
pub(crate) fn e1000_with_peer() -> (Device, UnixStream) {
    e1000_with_peer_under(&["env"], &[])
}

/// The same under a command that becomes the device, and with more arguments.
pub(crate) fn e1000_with_peer_under(wrapper: &[&str], args: &[&str]) -> (Device, UnixStream) {
    let dir = Device::dir().unwrap();
    let path = dir.path().join("peer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let config = format!(
        r#"{{"mac":"52:54:00:12:34:56","net":{{"stream":{{"path":"{}","mode":"connect"}}}}}}"#,
        path.display()
    );
    let device = Device::start_under(wrapper, dir, "e1000", &config, args).unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    (device, peer)
}

pub(crate) fn read_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

pub(crate) fn write_frame(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

/// A broadcast frame of so many bytes.
pub(crate) fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 12];
    frame.extend([0x88, 0xb5]);
    frame.extend((14..len).map(|i| (i * 7 + len) as u8));
    frame
}
