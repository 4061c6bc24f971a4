//! Saved state: what a driver could tell from a controller after power-on, as plain values.
//!
//! A field that is added, taken away or read otherwise makes a new [`VERSION`], and [`pci::Device::load`] says what it
//! does with older ones. Where a packet lies in a buffer of ours is not part of it.

use pci::{regs, saved::Bytes};
use serde::{Deserialize, Serialize};

/// The version of this format.
pub(super) const VERSION: u32 = 2;

/// The whole controller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Controller {
    /// With the filters, the statistics and the interrupt causes, which are registers.
    pub(super) registers: regs::Saved,
    pub(super) io_address: u32,
    /// If software has written to it.
    pub(super) packet_buffer: Option<Bytes>,
    pub(super) eeprom: Eeprom,
    pub(super) phy: Phy,
    pub(super) mdio: Mdio,
    pub(super) transmitter: Transmitter,
    pub(super) receiver: Receiver,
    pub(super) flow: Flow,
    pub(super) interrupts: Interrupts,
}

/// The EEPROM's content, and the command that is being clocked into it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Eeprom {
    pub(super) words: Vec<u16>,
    pub(super) write_enabled: bool,
    /// As bits of EECD.
    pub(super) pins: u32,
    /// Bits of the command so far.
    pub(super) taken: u32,
    pub(super) shift: u32,
    pub(super) output: bool,
}

/// The PHY.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Phy {
    pub(super) registers: Vec<u16>,
    /// Those that are reached by two of the others.
    pub(super) window: Vec<u16>,
    /// What took effect of Control and of the advertisements when the PHY last began.
    pub(super) applied: u16,
    pub(super) advertised: u16,
    pub(super) advertised_gigabit: u16,
    pub(super) link_lost: bool,
    pub(super) page_received: bool,
    /// There was a cable: where the state is loaded, another one may be plugged in or not.
    pub(super) cable: bool,
    /// It is in reset.
    pub(super) held: bool,
}

/// The 82543GC's management interface within a frame.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mdio {
    pub(super) clock: bool,
    /// Bits of the frame so far.
    pub(super) taken: u32,
    pub(super) frame: u32,
    pub(super) answer: Option<u16>,
}

/// The transmitter between descriptors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transmitter {
    /// For checksums, and for segmentation.
    pub(super) contexts: [Context; 2],
    pub(super) packet: Option<Packet>,
    pub(super) full: bool,
    pub(super) more: bool,
    pub(super) retry: Option<Retry>,
    pub(super) done: Done,
}

/// When descriptors that could not be read are tried again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    /// In how long.
    pub(super) due_ns: u64,
    /// How long that was at first.
    pub(super) after_ns: u64,
}

/// Transmit descriptors that are done and not written back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Done {
    /// Where in the ring the first is.
    pub(super) first: u16,
    pub(super) count: u8,
    /// A bit for each that has RS.
    pub(super) reported: u64,
    /// Some have RS without IDE.
    pub(super) at_once: bool,
    /// Some have RS with IDE.
    pub(super) delayed: bool,
    /// In how long they are written back at the latest.
    pub(super) due_ns: Option<u64>,
}

/// A context descriptor, in two words as in the guest's memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    pub(super) offsets: u64,
    pub(super) segments: u64,
}

/// A packet on its way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Packet {
    /// More descriptors are to come.
    Gathering(Gathering),
    /// Complete; goes out as one frame.
    Frame(Frame),
    /// Complete; goes out in segments, of which some may have been sent.
    Segments(Segments),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gathering {
    pub(super) options: Options,
    pub(super) spoilt: bool,
    pub(super) data: Bytes,
}

/// What the packet's first descriptor said.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Options {
    Legacy {
        checksum_start: u8,
    },
    Data {
        insert_ip_checksum: bool,
        insert_tcp_checksum: bool,
    },
    Segments {
        insert_ip_checksum: bool,
        insert_tcp_checksum: bool,
        tag: Option<u16>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Frame {
    pub(super) data: Bytes,
    /// What is still to be summed.
    pub(super) checksum: Option<Checksum>,
}

/// From `start` to the frame's end; the sum goes to `at`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checksum {
    pub(super) start: u16,
    pub(super) at: u16,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Segments {
    pub(super) insert_ip_checksum: bool,
    pub(super) insert_tcp_checksum: bool,
    /// Of every segment.
    pub(super) header: Bytes,
    /// There is a VLAN tag in the header.
    pub(super) tagged: bool,
    /// What was not sent.
    pub(super) payload: Bytes,
    /// How many segments were.
    pub(super) sent: u32,
}

/// The receiver between frames.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Receiver {
    /// A frame that waits for descriptors.
    pub(super) waiting: Option<Waiting>,
    pub(super) blocked: bool,
    pub(super) more: bool,
}

/// A frame that has passed the filters.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Waiting {
    /// All of it, as it goes to memory.
    pub(super) data: Bytes,
    /// How many bytes of it are there already.
    pub(super) stored: usize,
    /// What its last descriptor will say.
    pub(super) checksum: u16,
    pub(super) status: u8,
    pub(super) errors: u8,
    pub(super) special: u16,
}

/// Flow control between frames.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Flow {
    /// For how long the partner wants nothing to be sent yet.
    pub(super) paused_ns: Option<u64>,
    pub(super) holds_back: bool,
    pub(super) full: bool,
}

/// Interrupts that are held back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interrupts {
    pub(super) receive: Delay,
    pub(super) transmit: Delay,
    pub(super) throttle: Throttle,
}

/// Timers that run, with what is left of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delay {
    pub(super) packet_ns: Option<u64>,
    pub(super) absolute_ns: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Throttle {
    /// Since an interrupt was asserted: how long one has to wait now depends on ITR.
    pub(super) passed_ns: Option<u64>,
    /// One waits.
    pub(super) waiting: bool,
}
