//! Bits of the registers.

use bitfield_struct::bitfield;

/// Device Control, section 13.4.1: the bits that the model acts on.
#[bitfield(u32)]
pub(in crate::e1000) struct Ctrl {
    pub full_duplex: bool,
    #[bits(4)]
    __: u8,
    /// ASDE.
    pub detect_speed: bool,
    /// SLU: the MAC may talk to the PHY.
    pub set_link_up: bool,
    __: bool,
    /// 0: 10, 1: 100, 2: 1000 Mb/s.
    #[bits(2)]
    pub speed: u8,
    __: bool,
    pub force_speed: bool,
    pub force_duplex: bool,
    #[bits(5)]
    __: u8,
    /// SDP0_DATA and SDP1_DATA.
    #[bits(2)]
    pub pins: u8,
    /// ADVD3WUC.
    pub advertise_d3cold: bool,
    /// EN_PHY_PWR_MGMT.
    pub manage_phy_power: bool,
    /// SDP0_IODIR and SDP1_IODIR: which are outputs.
    #[bits(2)]
    pub pin_outputs: u8,
    /// Of the 82543GC: SWDPIO2 and SWDPIO3, which make the two bits before [`Ctrl::pin_outputs`] the PHY's data and clock.
    pub mdio_output: bool,
    pub mdc_output: bool,
    /// RST: self-clearing.
    pub reset: bool,
    /// RFCE: PAUSE frames are obeyed.
    pub receive_flow_control: bool,
    /// TFCE: PAUSE frames are sent.
    pub transmit_flow_control: bool,
    __: bool,
    /// VME.
    pub vlan_mode: bool,
    /// PHY_RST: the PHY is in reset while it is set.
    pub phy_reset: bool,
}

/// Device Status, section 13.4.2.
#[bitfield(u32)]
pub(in crate::e1000) struct Status {
    pub full_duplex: bool,
    pub link_up: bool,
    #[bits(2)]
    __: u8,
    /// TXOFF.
    pub transmission_paused: bool,
    __: bool,
    /// As in [`Ctrl`].
    #[bits(2)]
    pub speed: u8,
    /// ASDV: what the MAC saw itself.
    #[bits(2)]
    pub detected_speed: u8,
    __: bool,
    pub pci66: bool,
    #[bits(20)]
    __: u32,
}

/// EEPROM/Flash Control, section 13.4.3.
#[bitfield(u32)]
pub(in crate::e1000) struct Eecd {
    /// SK, to the part.
    pub clock: bool,
    /// CS.
    pub select: bool,
    /// DI, to the part.
    pub data_in: bool,
    /// DO, from the part.
    pub data_out: bool,
    #[bits(2)]
    pub flash_write_enable: u8,
    pub request: bool,
    pub grant: bool,
    pub present: bool,
    #[bits(23)]
    __: u32,
}

impl Eecd {
    /// The bits that are not reserved.
    pub(in crate::e1000) const USED: u32 = 0x1ff;
}

/// EEPROM Read, section 13.4.4.
#[bitfield(u32)]
pub(in crate::e1000) struct Eerd {
    pub start: bool,
    #[bits(3)]
    __: u8,
    pub done: bool,
    #[bits(3)]
    __: u8,
    pub address: u8,
    pub data: u16,
}

/// Extended Device Control, section 13.4.6.
#[bitfield(u32)]
pub(in crate::e1000) struct CtrlExt {
    __: bool,
    /// PHYINT_EN (GPI_EN bit 1): the PHY's interrupt is a cause in ICR.
    pub phy_interrupt_enable: bool,
    #[bits(2)]
    __: u8,
    /// SDP4_DATA of the 82543GC: the PHY's reset pin, which is active low.
    pub phy_reset_pin: bool,
    /// PHYINT: the level of the PHY's interrupt.
    pub phy_interrupt: bool,
    /// SDP6_DATA and SDP7_DATA.
    #[bits(2)]
    pub pins: u8,
    /// SDP4_IODIR of the 82543GC; reserved, and one, in the others.
    pub phy_reset_output: bool,
    __: bool,
    /// SDP6_IODIR and SDP7_IODIR: which are outputs.
    #[bits(2)]
    pub pin_outputs: u8,
    /// ASDCHK: self-clearing.
    pub check_speed: bool,
    /// EE_RST: self-clearing.
    pub eeprom_reset: bool,
    /// IPS0.
    pub invert_power_state_0: bool,
    /// SPD_BYPS: as [`Ctrl::force_speed`], and stronger.
    pub bypass_speed: bool,
    /// IPS1.
    pub invert_power_state_1: bool,
    #[bits(15)]
    __: u16,
}

/// LED Control, section 13.4.15: what the EEPROM sets.
#[bitfield(u32)]
pub(in crate::e1000) struct Ledctl {
    pub led0: u8,
    __: u8,
    pub led2: u8,
    __: u8,
}

/// Wakeup Control, section 13.6.1.
#[bitfield(u32)]
pub(in crate::e1000) struct Wuc {
    /// APME.
    pub apm_enable: bool,
    /// PME_En, of configuration space.
    pub pme_enable: bool,
    __: bool,
    /// APMPME.
    pub assert_pme_on_apm: bool,
    #[bits(28)]
    __: u32,
}

/// MDI Control, section 13.4.7.
#[bitfield(u32)]
pub(in crate::e1000) struct Mdic {
    pub data: u16,
    #[bits(5)]
    pub register: u8,
    #[bits(5)]
    pub phy: u8,
    /// 1: write, 2: read.
    #[bits(2)]
    pub operation: u8,
    pub ready: bool,
    pub interrupt: bool,
    pub error: bool,
    __: bool,
}

/// Interrupt causes, section 13.4.17: ICR, ICS, IMS and IMC.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(in crate::e1000) struct Causes {
    /// TXDW.
    pub transmit_written_back: bool,
    /// TXQE.
    pub transmit_queue_empty: bool,
    /// LSC.
    pub link_change: bool,
    /// RXSEQ.
    pub receive_sequence: bool,
    /// RXDMT0.
    pub receive_minimum_threshold: bool,
    __: bool,
    /// RXO.
    pub receive_overrun: bool,
    /// RXT0.
    pub receive_timer: bool,
    __: bool,
    /// MDAC.
    pub mdio_complete: bool,
    #[bits(2)]
    __: u8,
    /// PHYINT.
    pub phy: bool,
    #[bits(2)]
    __: u8,
    /// TXD_LOW.
    pub transmit_low: bool,
    /// SRPD.
    pub small_receive: bool,
    #[bits(15)]
    __: u16,
}

impl Causes {
    pub(in crate::e1000) fn add(&mut self, more: Self) {
        *self = Self::from_bits(self.into_bits() | more.into_bits());
    }

    /// The bits that ICR has; the reserved ones among them can be set by ICS as well.
    pub(in crate::e1000) const DEFINED: u32 = 0x0001_ffff;
}

/// Receive Delay Timer, section 13.4.30.
#[bitfield(u32)]
pub(in crate::e1000) struct Rdtr {
    pub delay: u16,
    #[bits(15)]
    __: u16,
    /// FPD: self-clearing.
    pub flush: bool,
}

/// Receive Control, section 13.4.22.
#[bitfield(u32)]
pub(in crate::e1000) struct Rctl {
    __: bool,
    pub enable: bool,
    /// SBP.
    pub store_bad: bool,
    /// UPE.
    pub unicast_promiscuous: bool,
    /// MPE.
    pub multicast_promiscuous: bool,
    /// LPE.
    pub long_packets: bool,
    /// LBM: 1 is MAC loopback.
    #[bits(2)]
    pub loopback: u8,
    /// RDMTS: 0 half, 1 a quarter, 2 an eighth of the ring.
    #[bits(2)]
    pub minimum_threshold: u8,
    #[bits(2)]
    __: u8,
    /// MO.
    #[bits(2)]
    pub multicast_offset: u8,
    __: bool,
    /// BAM.
    pub accept_broadcast: bool,
    #[bits(2)]
    pub buffer_size: u8,
    /// VFE.
    pub vlan_filter: bool,
    /// CFIEN.
    pub cfi_filter: bool,
    /// CFI: the value that passes.
    pub cfi: bool,
    __: bool,
    /// DPF.
    pub discard_pause: bool,
    /// PMCF.
    pub pass_mac_control: bool,
    __: bool,
    /// BSEX.
    pub buffer_extension: bool,
    /// SECRC.
    pub strip_crc: bool,
    #[bits(5)]
    __: u8,
}

impl Rctl {
    /// The size of every receive buffer, section 13.4.22, BSIZE.
    pub(in crate::e1000) fn buffer_bytes(self) -> u32 {
        let shift = u32::from(self.buffer_size());
        if self.buffer_extension() {
            // Size 0 is reserved with BSEX and taken as the size before.
            (32 << 10) >> shift.max(1)
        } else {
            2048 >> shift
        }
    }
}

/// Transmit Control, section 13.4.33.
#[bitfield(u32)]
pub(in crate::e1000) struct Tctl {
    __: bool,
    pub enable: bool,
    __: bool,
    /// PSP.
    pub pad_short: bool,
    #[bits(18)]
    __: u32,
    /// SWXOFF: self-clearing.
    pub software_xoff: bool,
    #[bits(9)]
    __: u32,
}

/// Flow Control Receive Threshold Low, section 13.4.23.
#[bitfield(u32)]
pub(in crate::e1000) struct Fcrtl {
    #[bits(31)]
    __: u32,
    /// XONE.
    pub xon_enable: bool,
}

/// Flow Control Receive Threshold High, section 13.4.24.
#[bitfield(u32)]
pub(in crate::e1000) struct Fcrth {
    /// RTH, in bytes.
    pub threshold: u16,
    __: u16,
}

/// Transmit Descriptor Control, section 13.4.43. Nobody can tell when descriptors are fetched: the thresholds for that
/// are not here.
#[bitfield(u32)]
pub(in crate::e1000) struct Txdctl {
    __: u16,
    /// WTHRESH.
    #[bits(6)]
    pub write_back_threshold: u32,
    #[bits(2)]
    __: u8,
    /// GRAN: thresholds count descriptors, and not cache lines.
    pub by_descriptor: bool,
    /// LWTHRESH, in units of eight descriptors.
    #[bits(7)]
    pub low_threshold: u32,
}

/// Packet Buffer Allocation, section 13.4.16.
#[bitfield(u32)]
pub(in crate::e1000) struct Pba {
    /// RXA, of 64 KiB.
    #[bits(7)]
    pub receive_kib: u32,
    #[bits(9)]
    __: u16,
    /// TXA.
    #[bits(7)]
    pub transmit_kib: u32,
    #[bits(9)]
    __: u16,
}

/// Receive Checksum Control, section 13.4.47.
#[bitfield(u32)]
pub(in crate::e1000) struct Rxcsum {
    /// PCSS.
    pub packet_start: u8,
    /// IPOFLD.
    pub ip: bool,
    /// TUOFLD.
    pub tcp_udp: bool,
    /// IPV6OFL.
    pub ipv6: bool,
    #[bits(21)]
    __: u32,
}

/// Receive Address High, section 13.5.3.
#[bitfield(u32)]
pub(in crate::e1000) struct Rah {
    pub address: u16,
    /// AS: 0 compares the destination, 1 the source.
    #[bits(2)]
    pub select: u8,
    #[bits(13)]
    __: u16,
    /// AV.
    pub valid: bool,
}
