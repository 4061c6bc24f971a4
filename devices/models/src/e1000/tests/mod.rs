//! Drives the controller as a driver does. Offsets and bits are the manual's, written as numbers.

mod checksums;
mod eeprom;
mod filters;
mod flow;
mod hostile;
mod interrupts;
mod mdio;
mod messages;
mod phy;
mod readme;
mod receive;
mod registers;
mod resets;
mod saved;
mod segmentation;
mod statistics;
mod table;
mod transmit;
mod wakeups;
mod write_back;

use std::{
    collections::VecDeque,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard},
};

use net::{Full, Interest, Offload, Offloads};
use pci::testing::Guest;

use super::{Controller, Link, MacAddress};

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

const CTRL: u64 = 0x0000;
const STATUS: u64 = 0x0008;
const EECD: u64 = 0x0010;
const MDIC: u64 = 0x0020;
const ICR: u64 = 0x00c0;
const ICS: u64 = 0x00c8;
const IMS: u64 = 0x00d0;
const IMC: u64 = 0x00d8;
const RCTL: u64 = 0x0100;
const TCTL: u64 = 0x0400;
const RDBAL: u64 = 0x2800;
const RDLEN: u64 = 0x2808;
const RDH: u64 = 0x2810;
const RDT: u64 = 0x2818;
const TDBAL: u64 = 0x3800;
const TDLEN: u64 = 0x3808;
const TDH: u64 = 0x3810;
const TDT: u64 = 0x3818;

const TX_RING: u64 = 0x1_0000;
const RX_RING: u64 = 0x4_0000;
const TX_DATA: u64 = 0x10_0000;
const RX_DATA: u64 = 0x40_0000;
/// Distance of receive buffers, more than any buffer size in these tests.
const RX_STRIDE: u64 = 0x4000;

/// LSC.
const LSC: u32 = 0x4;

const EOP: u64 = 0x01 << 24;
const IFCS: u64 = 0x02 << 24;
const RS: u64 = 0x08 << 24;
const DEXT: u64 = 0x20 << 24;
const VLE: u64 = 0x40 << 24;
const IDE: u64 = 0x80 << 24;

/// The other end of the cable.
#[derive(Clone)]
struct Wire(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sent: Vec<(Vec<u8>, Offload)>,
    arriving: VecDeque<Vec<u8>>,
    /// It has verified the checksums of what arrives.
    vouches: bool,
    /// How many frames more it takes; `None`: any number.
    room: Option<usize>,
    offloads: Offloads,
    interest: Interest,
    flushes: usize,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn arrive(&self, frame: &[u8]) {
        self.state().arriving.push_back(frame.to_vec());
    }

    /// What was sent since the last call.
    fn sent(&self) -> Vec<Vec<u8>> {
        let sent = std::mem::take(&mut self.state().sent);
        sent.into_iter().map(|(frame, _)| frame).collect()
    }
}

impl net::Backend for Wire {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wait_for(&mut self, interest: Interest) {
        self.state().interest = interest;
    }

    fn offloads(&self) -> Offloads {
        self.state().offloads
    }

    fn send(&mut self, frame: &[u8], offload: Offload) -> Result<(), Full> {
        let mut state = self.state();
        if let Some(room) = &mut state.room {
            *room = room.checked_sub(1).ok_or(Full)?;
        }
        state.sent.push((frame.to_vec(), offload));
        Ok(())
    }

    fn flush(&mut self) {
        self.state().flushes += 1;
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<net::Received> {
        let frame = self.state().arriving.pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some(net::Received {
            frame_bytes: frame.len(),
            checksum_is_right: self.state().vouches,
        })
    }
}

/// A guest with a driver.
struct Driver {
    guest: Guest<Controller>,
    wire: Wire,
    tx_count: u32,
    /// Where the next transmit descriptor goes.
    tx_next: u32,
    /// Where the next data goes.
    data: u64,
    rx_count: u32,
}

impl Driver {
    /// The controller after power-on.
    fn new() -> Self {
        let wire = Wire(Arc::default());
        let controller = Controller::new(MacAddress(MAC), Box::new(wire.clone()));
        Self {
            guest: Guest::new(controller),
            wire,
            tx_count: 0,
            tx_next: 0,
            data: TX_DATA,
            rx_count: 0,
        }
    }

    /// With the link up and a transmit ring.
    fn transmitting(count: u32) -> Self {
        let mut driver = Self::new();
        driver.set_up_transmit(count);
        driver
    }

    /// With the link up and a receive ring that has descriptors for all buffers but one.
    fn receiving(count: u32, rctl: u32) -> Self {
        let mut driver = Self::new();
        driver.set_up_receive(count, rctl);
        driver
    }

    fn read(&mut self, register: u64) -> u32 {
        self.guest.read32(0, register)
    }

    fn write(&mut self, register: u64, value: u32) {
        self.guest.write32(0, register, value);
    }

    fn set(&mut self, register: u64, bits: u32) {
        let now = self.read(register);
        self.write(register, now | bits);
    }

    fn set_link_up(&mut self) {
        self.set(CTRL, 0x40);
    }

    fn set_up_transmit(&mut self, count: u32) {
        self.set_link_up();
        self.tx_count = count;
        self.write(TDBAL, TX_RING as u32);
        self.write(TDLEN, count * 16);
        // EN and PSP.
        self.write(TCTL, 0xa);
    }

    fn set_up_receive(&mut self, count: u32, rctl: u32) {
        self.set_link_up();
        self.rx_count = count;
        for index in 0..count {
            let address = RX_DATA + u64::from(index) * RX_STRIDE;
            self.descriptor(RX_RING, index, [address, 0]);
        }
        self.write(RDBAL, RX_RING as u32);
        self.write(RDLEN, count * 16);
        self.write(RCTL, rctl | 2);
        self.write(RDT, count - 1);
    }

    fn descriptor(&mut self, ring: u64, index: u32, words: [u64; 2]) {
        let at = ring + u64::from(index) * 16;
        self.guest.store(at, &words[0].to_le_bytes());
        self.guest.store(at + 8, &words[1].to_le_bytes());
    }

    /// Puts a transmit descriptor into the ring, without moving the tail. Returns its index.
    fn queue(&mut self, low: u64, high: u64) -> u32 {
        let index = self.tx_next;
        self.descriptor(TX_RING, index, [low, high]);
        self.tx_next = (index + 1) % self.tx_count;
        index
    }

    /// As [`Driver::queue`] with data, and its length in the descriptor.
    fn queue_data(&mut self, data: &[u8], high: u64) -> u32 {
        let at = self.data;
        self.data = at + data.len() as u64;
        self.guest.store(at, data);
        self.queue(at, high | data.len() as u64)
    }

    /// Moves the tail, and lets the controller finish.
    fn ring(&mut self) {
        let tail = self.tx_next;
        self.write(TDT, tail);
        self.guest.run_until_idle();
        self.data = TX_DATA;
    }

    fn transmit_status(&self, index: u32) -> u8 {
        self.guest.load(TX_RING + u64::from(index) * 16 + 12, 1)[0]
    }

    /// A frame comes in.
    fn arrive(&mut self, frame: &[u8]) {
        self.wire.arrive(frame);
        self.guest.run_until_idle();
    }

    fn received(&self, index: u32) -> Received {
        let bytes = self.guest.load(RX_RING + u64::from(index) * 16, 16);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let address = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        Received {
            data: self.guest.load(address, word(8).into()),
            checksum: word(10),
            status: bytes[12],
            errors: bytes[13],
            special: word(14),
        }
    }
}

/// What a receive descriptor says.
struct Received {
    data: Vec<u8>,
    checksum: u16,
    status: u8,
    errors: u8,
    special: u16,
}

/// A frame to `destination` of so many bytes.
fn frame(destination: [u8; 6], bytes: usize) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend((frame.len()..bytes).map(|at| at as u8));
    frame
}

/// The checksum as RFC 1071 defines it, one word at a time.
fn internet_checksum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in data.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The FCS as IEEE 802.3 defines it, one bit at a time.
fn fcs(frame: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in frame {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

/// What a transport packet's checksum covers: the pseudo-header, and the packet. `addresses` are both.
fn with_pseudo_header(addresses: &[u8], protocol: u8, packet: &[u8]) -> Vec<u8> {
    let mut covered = addresses.to_vec();
    covered.extend((packet.len() as u32).to_be_bytes());
    covered.extend(u32::from(protocol).to_be_bytes());
    covered.extend(packet);
    covered
}

/// An Ethernet frame with TCP or UDP in IPv4; every checksum is right.
fn ipv4_frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut transport = match protocol {
        6 => vec![
            0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x19, 0x20, 0, 0, 0, 0, 0,
        ],
        _ => vec![0x30, 0x39, 0, 53, 0, 0, 0, 0],
    };
    transport.extend(payload);
    if protocol == 17 {
        let length = transport.len() as u16;
        transport[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let mut ip = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    ip.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    let total = (ip.len() + transport.len()) as u16;
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = internet_checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let at = if protocol == 6 { 16 } else { 6 };
    let sum = internet_checksum(&with_pseudo_header(&ip[12..20], protocol, &transport));
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = MAC.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame.extend(ip);
    frame.extend(transport);
    frame
}

/// An Ethernet frame with TCP in IPv6; the checksum is right.
fn ipv6_frame(payload: &[u8]) -> Vec<u8> {
    let mut tcp = vec![
        0x30, 0x39, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 2, 0x50, 0x19, 0x20, 0, 0, 0, 0, 0,
    ];
    tcp.extend(payload);
    let mut ip = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
    ip.extend((0..32).map(|at| 0xa0 + at));
    let length = tcp.len() as u16;
    ip[4..6].copy_from_slice(&length.to_be_bytes());
    let sum = internet_checksum(&with_pseudo_header(&ip[8..40], 6, &tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut frame = MAC.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
    frame.extend(ip);
    frame.extend(tcp);
    frame
}
