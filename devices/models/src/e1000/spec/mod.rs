//! The 82540EM's registers, by the manual's names (chapter 13). Data only: what they do is decided elsewhere.
//!
//! Power-on values are those before the EEPROM is read. Aliases are the offsets of older controllers, which the
//! 82540EM still decodes.

pub(super) mod bits;
pub(super) mod descriptor;
pub(super) mod eeprom;
pub(super) mod phy;

use pci::regs::Reg;

/// Bytes of BAR 0, the registers.
pub(super) const MEMORY_BAR_BYTES: u32 = 128 << 10;
/// Bytes of BAR 1, the window of section 13.2.2.
pub(super) const IO_BAR_BYTES: u32 = 64;
/// The window's address register.
pub(super) const IOADDR: u32 = 0;
/// Its bits that are not hard-wired to zero.
pub(super) const IOADDR_WRITABLE: u32 = 0x000f_ffff;
/// The window's data register.
pub(super) const IODATA: u32 = 4;

/// The smallest Flash, which the expansion ROM is in (section 13.2).
pub(super) const FLASH_BYTES_MIN: u32 = 64 << 10;

/// Receive addresses, section 13.5.2.
pub(super) const RECEIVE_ADDRESSES: u32 = 16;
/// Bytes from one receive address to the next.
pub(super) const RECEIVE_ADDRESS_STRIDE: u32 = 8;

/// The longest packet that the transmitter takes as one frame, section 3.3.
pub(super) const FRAME_BYTES_MAX: usize = 16_288;

const ALL: u32 = 0xffff_ffff;

/// The bits of MDIC that are not reserved.
pub(super) const MDIC_USED: u32 = 0x7fff_ffff;
/// The bits of LEDCTL that are not reserved.
pub(super) const LEDCTL_USED: u32 = 0xcfcf_cfcf;
/// The bits of MANC that are in the EEPROM, section 5.6.24.
pub(super) const MANC_IN_EEPROM: u32 = 0xa307;
/// IPAV.V40 and V60, which are in the EEPROM.
pub(super) const IPAV_V40: u32 = 0x0000_0001;
pub(super) const IPAV_V60: u32 = 0x0001_0000;

/// What CTRL.RST leaves as it is, section 14.7: addresses and tables, and the first wake-up. PBA takes effect by this
/// reset. Of RAH only the addresses stay, and not that they are valid.
pub(super) const KEPT_BY_RESET: &[u32] = &[
    PBA, RDBAL, RDBAH, MTA, RAL, RAH, VFTA, TIPG, TDBAL, TDBAH, WUS, IP4AT, IP6AT, WUPL, WUPM,
    FFMT, FFVT,
];

/// A statistics register, section 13.7: counted by the device, cleared by reading.
const fn statistic(offset: u32) -> Reg {
    Reg::at(offset).read_to_clear(ALL).driven(ALL)
}

pci::registers! {
    pub(in crate::e1000) static REGS;

    // Device control and status, 13.4.1 to 13.4.7. LRST and LINK_MODE are not for this controller; CTRL's bits 24 and 25
    // and CTRL_EXT's bit 4 are the 82543GC's only.
    CTRL = Reg::at(0x0000).aliases(&[0x0004]).power_on(0x0000_0a01).writable(0xdbfc_1be1);
    STATUS = Reg::at(0x0008).power_on(0x0800).driven(0x03d3);
    EECD = Reg::at(0x0010).power_on(0x0000_0110).writable(0x77).driven(0x88);
    EERD = Reg::at(0x0014).driven(0xffff_ff11);
    CTRL_EXT = Reg::at(0x0018).power_on(0x0000_0100).writable(0x0001_cfdf).driven(0x0000_0020);
    MDIC = Reg::at(0x0020).driven(MDIC_USED);

    // Flow control, VLAN type, LEDs and packet buffer, 13.4.8 to 13.4.16. The 82540EM has no use for TXCW, but Linux's
    // self-test finds it there.
    FCAL = Reg::at(0x0028).writable(ALL);
    FCAH = Reg::at(0x002c).writable(0xffff);
    FCT = Reg::at(0x0030).writable(0xffff);
    VET = Reg::at(0x0038).power_on(0x8100).writable(0xffff);
    FCTTV = Reg::at(0x0170).writable(0xffff);
    TXCW = Reg::at(0x0178).writable(0xc000_ffff);
    LEDCTL = Reg::at(0x0e00).power_on(0x0706_8302).writable(LEDCTL_USED);
    PBA = Reg::at(0x1000).power_on(0x0010_0030).writable(0x7f).driven(0x007f_0000);

    // Interrupts, 13.4.17 to 13.4.21.
    ICR = Reg::at(0x00c0).read_to_clear(ALL).write_one_to_clear(ALL).driven(bits::Causes::DEFINED);
    ITR = Reg::at(0x00c4).writable(0xffff);
    ICS = Reg::at(0x00c8);
    IMS = Reg::at(0x00d0).driven(bits::Causes::DEFINED);
    IMC = Reg::at(0x00d8);

    // Receive, 13.4.22 to 13.4.32, and 13.4.46 to 13.5.4.
    RCTL = Reg::at(0x0100).writable(0x06df_b3fe);
    FCRTL = Reg::at(0x2160).aliases(&[0x0168]).writable(0x8000_fff8);
    FCRTH = Reg::at(0x2168).aliases(&[0x0160]).writable(0xfff8);
    RDBAL = Reg::at(0x2800).aliases(&[0x0110]).writable(0xffff_fff0);
    RDBAH = Reg::at(0x2804).aliases(&[0x0114]).writable(ALL);
    RDLEN = Reg::at(0x2808).aliases(&[0x0118]).writable(0x000f_ff80);
    RDH = Reg::at(0x2810).aliases(&[0x0120]).writable(0xffff);
    RDT = Reg::at(0x2818).aliases(&[0x0128]).writable(0xffff);
    RDTR = Reg::at(0x2820).aliases(&[0x0108]).writable(0xffff);
    RXDCTL = Reg::at(0x2828).power_on(0x0101_0000).writable(0x013f_3f3f);
    RADV = Reg::at(0x282c).writable(0xffff);
    RSRPD = Reg::at(0x2c00).writable(0x0fff);
    RXCSUM = Reg::at(0x5000).writable(0x07ff);
    MTA = Reg::at(0x5200).aliases(&[0x0200]).array(128, 4).writable(ALL);
    RAL = Reg::at(0x5400).aliases(&[0x0040]).array(RECEIVE_ADDRESSES, RECEIVE_ADDRESS_STRIDE).writable(ALL);
    RAH = Reg::at(0x5404).aliases(&[0x0044]).array(RECEIVE_ADDRESSES, RECEIVE_ADDRESS_STRIDE).writable(0x8003_ffff);
    VFTA = Reg::at(0x5600).aliases(&[0x0600]).array(128, 4).writable(ALL);

    // Transmit, 13.4.33 to 13.4.45.
    TCTL = Reg::at(0x0400).writable(0x017f_fffa);
    TIPG = Reg::at(0x0410).power_on(0x0060_200a).writable(0x3fff_ffff);
    AIT = Reg::at(0x0458).writable(0xffff);
    TDBAL = Reg::at(0x3800).aliases(&[0x0420]).writable(0xffff_fff0);
    TDBAH = Reg::at(0x3804).aliases(&[0x0424]).writable(ALL);
    TDLEN = Reg::at(0x3808).aliases(&[0x0428]).writable(0x000f_ff80);
    TDH = Reg::at(0x3810).aliases(&[0x0430]).writable(0xffff);
    TDT = Reg::at(0x3818).aliases(&[0x0438]).writable(0xffff);
    TIDV = Reg::at(0x3820).aliases(&[0x0440]).writable(0xffff);
    TXDCTL = Reg::at(0x3828).writable(0xff3f_3f3f);
    TADV = Reg::at(0x382c).writable(0xffff);
    TSPMT = Reg::at(0x3830).power_on(0x0100_0400).writable(ALL);

    // Wake-up, 13.6, and management, of which the manual has no page: there, and without effect.
    // PME_En and PME_Status of WUC are in configuration space.
    WUC = Reg::at(0x5800).writable(0x0009);
    WUFC = Reg::at(0x5808).writable(0x000f_00ff);
    WUS = Reg::at(0x5810).write_one_to_clear(0x000f_00ff);
    MANC = Reg::at(0x5820).writable(0x0fff_ff3b);
    IPAV = Reg::at(0x5838).writable(0x0001_000f);
    IP4AT = Reg::at(0x5840).array(4, 8).writable(ALL);
    IP6AT = Reg::at(0x5880).array(4, 4).writable(ALL);
    WUPL = Reg::at(0x5900).writable(0x0fff);
    WUPM = Reg::at(0x5a00).array(32, 4).writable(ALL);
    FFLT = Reg::at(0x5f00).array(4, 8).writable(0x07ff);
    FFMT = Reg::at(0x9000).array(128, 8).writable(0xf);
    FFVT = Reg::at(0x9800).array(128, 8).writable(ALL);

    // Packet buffer diagnostics, 13.8: the model has no packet buffer, so these only keep what is written.
    RDFH = Reg::at(0x2410).aliases(&[0x8000]).writable(0x1fff);
    RDFT = Reg::at(0x2418).aliases(&[0x8008]).writable(0x1fff);
    RDFHS = Reg::at(0x2420).writable(0x1fff);
    RDFTS = Reg::at(0x2428).writable(0x1fff);
    RDFPC = Reg::at(0x2430).writable(0x1fff);
    TDFH = Reg::at(0x3410).aliases(&[0x8010]).writable(0x07ff);
    TDFT = Reg::at(0x3418).aliases(&[0x8018]).writable(0x07ff);
    TDFHS = Reg::at(0x3420).writable(0x1fff);
    TDFTS = Reg::at(0x3428).writable(0x1fff);
    TDFPC = Reg::at(0x3430).writable(0x1fff);

    // Statistics, 13.7.
    CRCERRS = statistic(0x4000);
    ALGNERRC = statistic(0x4004);
    SYMERRS = statistic(0x4008);
    RXERRC = statistic(0x400c);
    MPC = statistic(0x4010);
    SCC = statistic(0x4014);
    ECOL = statistic(0x4018);
    MCC = statistic(0x401c);
    LATECOL = statistic(0x4020);
    COLC = statistic(0x4028);
    DC = statistic(0x4030);
    TNCRS = statistic(0x4034);
    SEC = statistic(0x4038);
    CEXTERR = statistic(0x403c);
    RLEC = statistic(0x4040);
    XONRXC = statistic(0x4048);
    XONTXC = statistic(0x404c);
    XOFFRXC = statistic(0x4050);
    XOFFTXC = statistic(0x4054);
    FCRUC = statistic(0x4058);
    /// Six registers, by size: 64, 65-127, 128-255, 256-511, 512-1023 and more bytes.
    PRC = Reg::at(0x405c).array(6, 4).read_to_clear(ALL).driven(ALL);
    GPRC = statistic(0x4074);
    BPRC = statistic(0x4078);
    MPRC = statistic(0x407c);
    GPTC = statistic(0x4080);
    // The pairs of 64 bits clear together, when the upper half is read.
    GORCL = Reg::at(0x4088).driven(ALL);
    GORCH = Reg::at(0x408c).driven(ALL);
    GOTCL = Reg::at(0x4090).driven(ALL);
    GOTCH = Reg::at(0x4094).driven(ALL);
    RNBC = statistic(0x40a0);
    RUC = statistic(0x40a4);
    RFC = statistic(0x40a8);
    ROC = statistic(0x40ac);
    RJC = statistic(0x40b0);
    MGTPRC = statistic(0x40b4);
    MGTPDC = statistic(0x40b8);
    MGTPTC = statistic(0x40bc);
    TORL = Reg::at(0x40c0).driven(ALL);
    TORH = Reg::at(0x40c4).driven(ALL);
    TOTL = Reg::at(0x40c8).driven(ALL);
    TOTH = Reg::at(0x40cc).driven(ALL);
    TPR = statistic(0x40d0);
    TPT = statistic(0x40d4);
    /// Six registers, as [`PRC`].
    PTC = Reg::at(0x40d8).array(6, 4).read_to_clear(ALL).driven(ALL);
    MPTC = statistic(0x40f0);
    BPTC = statistic(0x40f4);
    TSCTC = statistic(0x40f8);
    TSCTFC = statistic(0x40fc);
}
