//! The other end of a wire: a station that the test plays itself, on the UNIX stream socket of a `stream` backend.
//!
//! On the stream each frame follows its length, 4 bytes big-endian. The station sends ICMP echo requests it makes byte
//! by byte; the guest's kernel answers each with the same content. So every size of frame goes both ways through the
//! device, byte for byte, and the guest needs no tool for it.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::guest::Guest;
use crate::traffic;

/// Lengths of Ethernet frames without their checksum: from the least to the most that is not a jumbo frame.
pub const FRAME_LENGTHS: std::ops::RangeInclusive<usize> = 60..=1514;

/// The station's address.
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0xee, 0xee, 0xee];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 1);
const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 2);

const LIMIT: Duration = Duration::from_secs(20);
/// How long one read waits at most, so that an interruption is noticed.
const SLICE: Duration = Duration::from_millis(200);

const ETHERNET: usize = 14;
const IP: usize = 20;
const ICMP: usize = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// The station.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Peer {
    /// Plays the station on a connected socket.
    pub fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(SLICE))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Waits for the device to connect.
    pub fn accept(listener: &UnixListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let (stream, _) = command::wait_for("the device's connection", LIMIT, || {
            match listener.accept() {
                Ok(accepted) => Ok(Some(accepted)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        stream.set_nonblocking(false)?;
        Self::new(stream)
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let mut message = u32::try_from(frame.len())?.to_be_bytes().to_vec();
        message.extend_from_slice(frame);
        self.stream.write_all(&message).context("send a frame")
    }

    /// The next frame, whatever it is.
    pub fn receive(&mut self) -> Result<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some((header, rest)) = self.buffer.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*header) as usize;
                if let Some(frame) = rest.get(..length) {
                    let frame = frame.to_vec();
                    self.buffer.drain(..4 + length);
                    return Ok(frame);
                }
            }
            command::check_interrupted()?;
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the device closed the stream"),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if command::is_pause(&error) => {
                    ensure!(Instant::now() < deadline, "no frame within {LIMIT:?}");
                }
                Err(error) => return Err(error).context("receive a frame"),
            }
        }
    }

    /// Sends a frame of each length to the guest's interface and checks every byte of what comes back.
    pub fn echo(
        &mut self,
        guest: &mut Guest,
        interface: &str,
        lengths: impl IntoIterator<Item = usize>,
    ) -> Result<()> {
        let guest_mac = self.meet(guest, interface)?;
        self.exchange(guest_mac, lengths)
    }

    /// Brings the guest's interface up, lets the guest know the station, and returns the interface's MAC address. From
    /// then on the guest sends nothing by itself.
    pub fn meet(&mut self, guest: &mut Guest, interface: &str) -> Result<[u8; 6]> {
        guest.sh(&format!(
            "sysctl -q -w net.ipv6.conf.{interface}.disable_ipv6=1"
        ))?;
        traffic::configure(guest, interface, &format!("{GUEST_ADDRESS}/30"))?;
        let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
        // The answer to the guest's ARP request is thereby known, and echoes are not limited to some per second.
        guest.sh(&format!(
            "arp -i {interface} -s {ADDRESS} {mac}; sysctl -q -w net.ipv4.icmp_ratelimit=0"
        ))?;
        parse_mac(&guest.sh(&format!("cat /sys/class/net/{interface}/address"))?)
    }

    /// Sends a frame of each length to a guest that it has met, and checks every byte of what comes back.
    pub fn exchange(
        &mut self,
        guest_mac: [u8; 6],
        lengths: impl IntoIterator<Item = usize>,
    ) -> Result<()> {
        for (number, length) in (1..).zip(lengths) {
            let request = echo_request(guest_mac, number, length);
            self.send(&request)?;
            self.expect_reply(&request)
                .with_context(|| format!("echo of a frame of {length} bytes"))?;
        }
        Ok(())
    }

    /// Passes over what a Linux guest sends by itself.
    fn expect_reply(&mut self, request: &[u8]) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let reply = self.receive()?;
            if is_echo_reply(&reply) {
                return check_reply(request, &reply);
            }
            ensure!(Instant::now() < deadline, "no echo reply within {LIMIT:?}");
        }
    }
}

/// An echo request that fills a frame of this length, with content that differs from frame to frame.
fn echo_request(to: [u8; 6], number: u16, length: usize) -> Vec<u8> {
    let mut icmp = vec![ECHO_REQUEST, 0, 0, 0, 0x76, 0x66];
    icmp.extend_from_slice(&number.to_be_bytes());
    icmp.extend(traffic::noise(
        u64::from(number),
        length - ETHERNET - IP - ICMP,
    ));
    let sum = checksum(&icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);

    let total = u16::try_from(IP + icmp.len()).expect("a frame is shorter than 64 KiB");
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&total.to_be_bytes());
    ip.extend_from_slice(&number.to_be_bytes());
    let (dont_fragment, time_to_live, protocol_icmp) = ([0x40, 0], 64, 1);
    ip.extend_from_slice(&dont_fragment);
    ip.extend_from_slice(&[time_to_live, protocol_icmp, 0, 0]);
    ip.extend_from_slice(&ADDRESS.octets());
    ip.extend_from_slice(&GUEST_ADDRESS.octets());
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);

    [&to[..], &MAC, &[0x08, 0x00], &ip, &icmp].concat()
}

fn is_echo_reply(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x00])
        && frame.get(ETHERNET + 9) == Some(&1)
        && frame.get(ETHERNET + IP) == Some(&ECHO_REPLY)
}

/// The reply is the request with its addresses exchanged and its type changed. Time to live and identification are the
/// guest's own choice; the checksum over them must be right.
fn check_reply(request: &[u8], reply: &[u8]) -> Result<()> {
    ensure!(
        reply.len() == request.len(),
        "the reply has {} bytes",
        reply.len()
    );
    ensure!(
        reply[..6] == request[6..12] && reply[6..12] == request[..6],
        "its MAC addresses are wrong"
    );
    let (ip, icmp) = reply[ETHERNET..].split_at(IP);
    let (request_ip, request_icmp) = request[ETHERNET..].split_at(IP);
    ensure!(ip[..4] == request_ip[..4], "its IP length is wrong");
    ensure!(
        ip[12..16] == request_ip[16..] && ip[16..] == request_ip[12..16],
        "its IP addresses are wrong"
    );
    ensure!(checksum(ip) == 0, "its IP checksum is wrong");
    ensure!(checksum(icmp) == 0, "its ICMP checksum is wrong");
    let wrong = icmp[4..]
        .iter()
        .zip(&request_icmp[4..])
        .position(|(got, sent)| got != sent);
    match wrong {
        None => Ok(()),
        Some(position) => bail!("its byte {} is wrong", ETHERNET + IP + 4 + position),
    }
}

/// The Internet checksum (RFC 1071); 0 over what contains a right one.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded into 16 bits")
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect();
    bytes
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("not a MAC address: {text}"))
}
