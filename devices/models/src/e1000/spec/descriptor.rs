//! Descriptors in guest memory, sections 3.2.3 and 3.3.

use bitfield_struct::bitfield;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U64},
};

/// Bytes of every descriptor.
pub(in crate::e1000) const DESCRIPTOR_BYTES: u32 = 16;
/// Where a transmit descriptor has its status.
pub(in crate::e1000) const TRANSMIT_STATUS_OFFSET: u64 = 12;
/// DD, the status of a transmit descriptor that is done.
pub(in crate::e1000) const TRANSMIT_DONE: u8 = 0x01;

const _: () = assert!(size_of::<Transmit>() == DESCRIPTOR_BYTES as usize);
const _: () = assert!(size_of::<Receive>() == DESCRIPTOR_BYTES as usize);

/// A transmit descriptor of any kind: what its words mean depends on [`Legacy::extended`] and [`Data::kind`].
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::e1000) struct Transmit {
    pub low: U64,
    pub high: U64,
}

/// The second word of a legacy transmit descriptor, section 3.3.3.
#[bitfield(u64)]
pub(in crate::e1000) struct Legacy {
    pub length: u16,
    /// CSO.
    pub checksum_offset: u8,
    pub end_of_packet: bool,
    /// IFCS.
    pub insert_fcs: bool,
    /// IC.
    pub insert_checksum: bool,
    /// RS.
    pub report_status: bool,
    __: bool,
    /// DEXT: not a legacy descriptor.
    pub extended: bool,
    /// VLE.
    pub vlan: bool,
    /// IDE.
    pub delay_interrupt: bool,
    __: u8,
    /// CSS.
    pub checksum_start: u8,
    /// The VLAN tag.
    pub special: u16,
}

/// The second word of a data descriptor, section 3.3.7.
#[bitfield(u64)]
pub(in crate::e1000) struct Data {
    #[bits(20)]
    pub length: u32,
    /// DTYP: 0 context, 1 data.
    #[bits(4)]
    pub kind: u8,
    pub end_of_packet: bool,
    pub insert_fcs: bool,
    /// TSE.
    pub segment: bool,
    pub report_status: bool,
    __: bool,
    pub extended: bool,
    pub vlan: bool,
    pub delay_interrupt: bool,
    __: u8,
    /// IXSM.
    pub insert_ip_checksum: bool,
    /// TXSM.
    pub insert_tcp_checksum: bool,
    #[bits(6)]
    __: u8,
    pub special: u16,
}

/// The first word of a context descriptor, section 3.3.6.
#[bitfield(u64)]
pub(in crate::e1000) struct ContextOffsets {
    /// IPCSS.
    pub ip_start: u8,
    /// IPCSO.
    pub ip_offset: u8,
    /// IPCSE, inclusive.
    pub ip_end: u16,
    /// TUCSS.
    pub tcp_start: u8,
    /// TUCSO.
    pub tcp_offset: u8,
    /// TUCSE, inclusive; 0: the end of the packet.
    pub tcp_end: u16,
}

/// The second word of a context descriptor.
#[bitfield(u64)]
pub(in crate::e1000) struct ContextSegments {
    /// PAYLEN.
    #[bits(20)]
    pub payload_bytes: u32,
    #[bits(4)]
    __: u8,
    /// 0: UDP.
    pub tcp: bool,
    /// 0: IPv6.
    pub ipv4: bool,
    pub segment: bool,
    pub report_status: bool,
    __: bool,
    pub extended: bool,
    __: bool,
    pub delay_interrupt: bool,
    __: u8,
    /// HDRLEN.
    pub header_bytes: u8,
    /// MSS.
    pub segment_bytes: u16,
}

/// A receive descriptor, section 3.2.3.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::e1000) struct Receive {
    pub address: U64,
    pub length: U16,
    /// The packet checksum, from RXCSUM.PCSS on.
    pub checksum: U16,
    pub status: u8,
    pub errors: u8,
    /// The VLAN tag.
    pub special: U16,
}

/// Status of a receive descriptor, section 3.2.3.1.
#[bitfield(u8)]
pub(in crate::e1000) struct ReceiveStatus {
    /// DD.
    pub done: bool,
    /// EOP.
    pub end_of_packet: bool,
    /// IXSM.
    pub ignore_checksum: bool,
    /// VP.
    pub vlan: bool,
    __: bool,
    /// TCPCS.
    pub tcp_checked: bool,
    /// IPCS.
    pub ip_checked: bool,
    /// PIF.
    pub inexact: bool,
}

/// Errors of a receive descriptor, section 3.2.3.2.
#[bitfield(u8)]
pub(in crate::e1000) struct ReceiveErrors {
    #[bits(5)]
    __: u8,
    /// TCPE.
    pub tcp: bool,
    /// IPE.
    pub ip: bool,
    __: bool,
}
