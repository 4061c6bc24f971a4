//! Configuration space, read: what its registers say, and its capabilities.
//!
//! The bytes come from a server that may say anything. What lies outside of them reads as zero, and a list of capabilities
//! that goes round in a circle ends where it comes to a place for the second time.

use std::collections::BTreeSet;

use super::{
    report::{Bar, BarKind, Capability, Function, Region, Rom},
    spec::{
        BarLow, Command, DeviceCapabilities, DeviceControl, ExpressCapabilities, ExtendedHeader,
        Link, MsiControl, MsixControl, MsixTable, PowerCapabilities, PowerControl, RomAddress,
        Status, capability_name, class_name, extended_name,
    },
};

/// Conventional configuration space; what is behind it has the extended capabilities.
const CONVENTIONAL_BYTES: usize = 256;
/// The header, behind which capabilities are.
const HEADER_BYTES: usize = 64;
const ROM_REGION: u32 = 6;

/// The bytes of configuration space.
pub(super) struct Space<'a>(&'a [u8]);

impl<'a> Space<'a> {
    /// `None`: they are not even a header.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= HEADER_BYTES).then_some(Self(bytes))
    }

    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn long(&self, at: usize) -> u32 {
        let [low, high] = [self.word(at), self.word(at + 2)];
        u32::from(low) | u32::from(high) << 16
    }

    /// Everything, with the sizes that `regions` have.
    pub(super) fn function(&self, regions: &[Region]) -> Function {
        let class_code = self.long(0x08) >> 8;
        let command = Command::from(self.word(0x04));
        let status = Status::from(self.word(0x06));
        let pin = self.byte(0x3d);
        Function {
            vendor_id: self.word(0x00),
            device_id: self.word(0x02),
            subsystem_vendor_id: self.word(0x2c),
            subsystem_id: self.word(0x2e),
            revision_id: self.byte(0x08),
            class_code,
            class: class_name(class_code).into(),
            command: command.into(),
            status: status.into(),
            control_flags: control_flags(command),
            status_flags: status_flags(status),
            interrupt_pin: (1..=4).contains(&pin).then(|| char::from(b'A' + pin - 1)),
            interrupt_line: self.byte(0x3c),
            bars: self.bars(regions),
            expansion_rom: self.rom(regions),
            capabilities: self.capabilities(status),
            extended_capabilities: self.extended_capabilities(),
        }
    }

    fn bars(&self, regions: &[Region]) -> Vec<Bar> {
        let mut bars = Vec::new();
        let mut indexes = 0..6u32;
        while let Some(index) = indexes.next() {
            let at = 0x10 + 4 * index as usize;
            let low = BarLow::from(self.long(at));
            let wide = !low.io_space() && low.kind() == BarLow::KIND_64_BIT && index < 5;
            let kind = match (low.io_space(), wide) {
                (true, _) => BarKind::Io,
                (false, wide) => BarKind::Memory {
                    bits: if wide { 64 } else { 32 },
                    prefetchable: low.prefetchable(),
                },
            };
            let address = match kind {
                BarKind::Io => u64::from(u32::from(low) & BarLow::IO_ADDRESS),
                BarKind::Memory { .. } => u64::from(u32::from(low) & BarLow::MEMORY_ADDRESS),
            };
            let mut high = 0;
            if wide {
                high = self.long(at + 4);
                indexes.next();
            }
            let size_bytes = size(regions, index);
            if size_bytes > 0 {
                bars.push(Bar {
                    index,
                    kind,
                    address: address | u64::from(high) << 32,
                    size_bytes,
                });
            }
        }
        bars
    }

    fn rom(&self, regions: &[Region]) -> Option<Rom> {
        let address = RomAddress::from(self.long(0x30));
        let size_bytes = size(regions, ROM_REGION);
        (size_bytes > 0).then(|| Rom {
            address: u64::from(address.page()) * RomAddress::PAGE_BYTES,
            size_bytes,
            enabled: address.enabled(),
        })
    }

    fn capabilities(&self, status: Status) -> Vec<Capability> {
        let mut capabilities = Vec::new();
        let mut seen = BTreeSet::new();
        let mut at = usize::from(self.byte(0x34)) & !3;
        while status.capabilities() && at >= HEADER_BYTES && seen.insert(at) {
            let id = self.byte(at);
            capabilities.push(Capability {
                offset: at as u16,
                id: id.into(),
                name: capability_name(id),
                details: self.details(id, at),
            });
            at = usize::from(self.byte(at + 1)) & !3;
        }
        capabilities
    }

    fn extended_capabilities(&self) -> Vec<Capability> {
        let mut capabilities = Vec::new();
        let mut seen = BTreeSet::new();
        let mut at = CONVENTIONAL_BYTES;
        while at >= CONVENTIONAL_BYTES && at < self.0.len() && seen.insert(at) {
            let header = ExtendedHeader::from(self.long(at));
            // All zero, or all ones: there are none.
            if matches!(header.id(), 0 | 0xffff) {
                break;
            }
            capabilities.push(Capability {
                offset: at as u16,
                id: header.id(),
                name: extended_name(header.id()),
                details: vec![format!("Version: {}", header.version())],
            });
            at = usize::from(header.next()) & !3;
        }
        capabilities
    }

    /// What a capability says.
    fn details(&self, id: u8, at: usize) -> Vec<String> {
        match id {
            0x01 => self.power_management(at),
            0x05 => self.msi(at),
            0x09 => vec![format!("Length: {}", self.byte(at + 2))],
            0x10 => self.express(at),
            0x11 => self.msix(at),
            _ => Vec::new(),
        }
    }

    fn power_management(&self, at: usize) -> Vec<String> {
        let can = PowerCapabilities::from(self.word(at + 2));
        let is = PowerControl::from(self.word(at + 4));
        let state = ["D0", "D1", "D2", "D3"][usize::from(is.state())];
        let current = [0, 55, 100, 160, 220, 270, 320, 375][usize::from(can.aux_current())];
        vec![
            format!("Version: {}", can.version()),
            format!(
                "Flags: {} AuxCurrent={current}mA PME({})",
                flags(&[
                    ("PMEClk", can.pme_clock()),
                    ("DSI", can.device_specific_initialization()),
                    ("D1", can.d1()),
                    ("D2", can.d2()),
                ]),
                flags(&[
                    ("D0", can.pme_d0()),
                    ("D1", can.pme_d1()),
                    ("D2", can.pme_d2()),
                    ("D3hot", can.pme_d3hot()),
                    ("D3cold", can.pme_d3cold()),
                ])
                .replace(' ', ",")
            ),
            format!(
                "Status: {state} {} DSel={} DScale={} {}",
                flags(&[
                    ("NoSoftRst", is.no_soft_reset()),
                    ("PME-Enable", is.pme_enable()),
                ]),
                is.data_select(),
                is.data_scale(),
                flags(&[("PME", is.pme_status())]),
            ),
        ]
    }

    fn msi(&self, at: usize) -> Vec<String> {
        let control = MsiControl::from(self.word(at + 2));
        let vectors = |logarithm: u8| 1u32 << logarithm;
        let state = format!(
            "{} Count={}/{} {}",
            flags(&[("Enable", control.enable())]),
            vectors(control.enabled()),
            vectors(control.capable()),
            flags(&[
                ("Maskable", control.maskable()),
                ("64bit", control.address64()),
            ]),
        );
        let low = u64::from(self.long(at + 4));
        let (address, behind) = if control.address64() {
            (low | u64::from(self.long(at + 8)) << 32, at + 12)
        } else {
            (low, at + 8)
        };
        let width = if control.address64() { 16 } else { 8 };
        let mut lines = vec![
            state,
            format!(
                "Address: {address:0width$x}  Data: {:04x}",
                self.word(behind)
            ),
        ];
        if control.maskable() {
            let [mask, pending] = [self.long(behind + 4), self.long(behind + 8)];
            lines.push(format!("Masking: {mask:08x}  Pending: {pending:08x}"));
        }
        lines
    }

    fn msix(&self, at: usize) -> Vec<String> {
        let control = MsixControl::from(self.word(at + 2));
        let table = |name: &str, at: usize| {
            let table = MsixTable::from(self.long(at));
            format!("{name}: BAR={} offset={:08x}", table.bar(), table.offset())
        };
        vec![
            format!(
                "{} Count={} {}",
                flags(&[("Enable", control.enable())]),
                control.table_size_z() + 1,
                flags(&[("Masked", control.masked())]),
            ),
            table("Vector table", at + 4),
            table("PBA", at + 8),
        ]
    }

    fn express(&self, at: usize) -> Vec<String> {
        let express = ExpressCapabilities::from(self.word(at + 2));
        let can = DeviceCapabilities::from(self.long(at + 4));
        let does = DeviceControl::from(self.word(at + 8));
        let bytes = |logarithm: u8| 128u32 << logarithm;
        let link = |name: &str, link: Link| {
            let (speed, width) = (link.speed_name(), link.width());
            format!("{name}: Speed {speed}, Width x{width}")
        };
        vec![
            format!(
                "Version: {}, {}, IntMsgNum {}, {}",
                express.version(),
                express.kind_name(),
                express.message_number(),
                flags(&[("Slot", express.slot())]),
            ),
            format!(
                "DevCap: MaxPayload {} bytes, PhantFunc {}, {}",
                bytes(can.max_payload()),
                can.phantom_functions(),
                flags(&[
                    ("ExtTag", can.extended_tag()),
                    ("FLReset", can.function_level_reset()),
                ]),
            ),
            format!(
                "DevCtl: {}, MaxPayload {} bytes, MaxReadReq {} bytes",
                flags(&[
                    ("CorrErr", does.correctable_errors()),
                    ("NonFatalErr", does.non_fatal_errors()),
                    ("FatalErr", does.fatal_errors()),
                    ("UnsupReq", does.unsupported_requests()),
                    ("RlxdOrd", does.relaxed_ordering()),
                ]),
                bytes(does.max_payload()),
                bytes(does.max_read_request()),
            ),
            link("LnkCap", Link::from(self.long(at + 0x0c))),
            link("LnkSta", Link::from(u32::from(self.word(at + 0x12)))),
        ]
    }
}

fn size(regions: &[Region], index: u32) -> u64 {
    let region = regions.iter().find(|region| region.index == index);
    region.map_or(0, |region| region.size_bytes)
}

/// Names with + or -, as lspci has them.
fn flags(flags: &[(&str, bool)]) -> String {
    let words: Vec<_> = flags
        .iter()
        .map(|(name, set)| format!("{name}{}", if *set { '+' } else { '-' }))
        .collect();
    words.join(" ")
}

fn control_flags(command: Command) -> String {
    flags(&[
        ("I/O", command.io_space()),
        ("Mem", command.memory_space()),
        ("BusMaster", command.bus_master()),
        ("SpecCycle", command.special_cycles()),
        ("MemWINV", command.memory_write_and_invalidate()),
        ("VGASnoop", command.vga_palette_snoop()),
        ("ParErr", command.parity_error_response()),
        ("Stepping", command.stepping()),
        ("SERR", command.serr()),
        ("FastB2B", command.fast_back_to_back()),
        ("DisINTx", command.interrupt_disable()),
    ])
}

fn status_flags(status: Status) -> String {
    let devsel = ["fast", "medium", "slow", "reserved"][usize::from(status.devsel())];
    let before = flags(&[
        ("Cap", status.capabilities()),
        ("66MHz", status.mhz66()),
        ("UDF", status.user_definable()),
        ("FastB2B", status.fast_back_to_back()),
        ("ParErr", status.master_parity_error()),
    ]);
    let after = flags(&[
        (">TAbort", status.signaled_target_abort()),
        ("<TAbort", status.received_target_abort()),
        ("<MAbort", status.received_master_abort()),
        (">SERR", status.signaled_system_error()),
        ("<PERR", status.detected_parity_error()),
        ("INTx", status.interrupt()),
    ]);
    format!("{before} DEVSEL={devsel} {after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(index: u32, size_bytes: u64) -> Region {
        Region {
            index,
            name: String::new(),
            size_bytes,
            read: true,
            write: true,
            mmap: false,
            sparse_areas: None,
            kind: None,
        }
    }

    fn put(space: &mut [u8], at: usize, bytes: &[u8]) {
        space[at..at + bytes.len()].copy_from_slice(bytes);
    }

    #[test]
    fn bars_have_their_kind_and_the_size_of_their_region() {
        let mut space = vec![0; 256];
        put(&mut space, 0x10, &0xfebc_0000u32.to_le_bytes());
        put(&mut space, 0x14, &0xc001u32.to_le_bytes());
        put(&mut space, 0x18, &0xe000_000cu32.to_le_bytes());
        put(&mut space, 0x1c, &1u32.to_le_bytes());
        put(&mut space, 0x30, &0xfea0_0001u32.to_le_bytes());
        let regions = [(0, 128 << 10), (1, 64), (2, 1 << 30), (6, 64 << 10)];
        let regions = regions.map(|(index, size)| region(index, size));
        let function = Space::new(&space).unwrap().function(&regions);
        let memory = |bits, prefetchable| BarKind::Memory { bits, prefetchable };
        let bars: Vec<_> = function
            .bars
            .iter()
            .map(|bar| (bar.index, bar.kind, bar.address, bar.size_bytes))
            .collect();
        assert_eq!(
            bars,
            [
                (0, memory(32, false), 0xfebc_0000, 128 << 10),
                (1, BarKind::Io, 0xc000, 64),
                (2, memory(64, true), 0x1_e000_0000, 1 << 30),
            ]
        );
        assert_eq!(
            function.expansion_rom,
            Some(Rom {
                address: 0xfea0_0000,
                size_bytes: 64 << 10,
                enabled: true
            })
        );
    }

    #[test]
    fn capabilities_say_what_lspci_says() {
        let mut space = vec![0; 4096];
        // Capabilities in Status; PM, MSI with 64 bits and masks, MSI-X, Express, one that nobody knows.
        put(&mut space, 0x06, &[0x10]);
        space[0x34] = 0x40;
        put(&mut space, 0x40, &[0x01, 0x50, 0x22, 0xc8, 0x08, 0x01]);
        put(&mut space, 0x50, &[0x05, 0x70, 0xa5, 0x01]);
        put(&mut space, 0x54, &0xfee0_0000u32.to_le_bytes());
        put(&mut space, 0x5c, &[0x22, 0x41, 0, 0, 2, 0, 0, 0, 1]);
        put(&mut space, 0x70, &[0x11, 0x80, 0x04, 0xc0]);
        put(&mut space, 0x74, &[0x03, 0, 0, 0, 0x03, 0x08]);
        put(&mut space, 0x80, &[0x10, 0xf0, 0x02, 0x00]);
        put(&mut space, 0x84, &[0x01, 0x80, 0x00, 0x10, 0x10, 0x28]);
        put(&mut space, 0x8c, &[0x13, 0x01]);
        put(&mut space, 0x92, &[0x12, 0x00]);
        put(&mut space, 0xf0, &[0x77, 0x00]);
        put(&mut space, 0x100, &[0x03, 0x00, 0x01, 0x15]);
        put(&mut space, 0x150, &[0x99, 0x00, 0x02, 0x00]);
        let function = Space::new(&space).unwrap().function(&[]);
        let all = function.capabilities.iter();
        let all: Vec<_> = all.chain(&function.extended_capabilities).collect();
        let names: Vec<_> = all.iter().map(|it| (it.offset, it.name.as_str())).collect();
        assert_eq!(
            names,
            [
                (0x40, "Power Management"),
                (0x50, "MSI"),
                (0x70, "MSI-X"),
                (0x80, "Express"),
                (0xf0, "Unknown capability 0x77"),
                (0x100, "Device Serial Number"),
                (0x150, "Unknown extended capability 0x0099"),
            ]
        );
        let says = |index: usize| all[index].details.join("\n");
        assert_eq!(says(6), "Version: 2");
        assert_eq!(
            says(0),
            "Version: 2\nFlags: PMEClk- DSI+ D1- D2- AuxCurrent=0mA PME(D0+,D1-,D2-,D3hot+,D3cold+)\n\
             Status: D0 NoSoftRst+ PME-Enable+ DSel=0 DScale=0 PME-"
        );
        assert_eq!(
            says(1),
            "Enable+ Count=4/4 Maskable+ 64bit+\n\
             Address: 00000000fee00000  Data: 4122\n\
             Masking: 00000002  Pending: 00000001"
        );
        assert_eq!(
            says(2),
            "Enable+ Count=5 Masked+\nVector table: BAR=3 offset=00000000\nPBA: BAR=3 offset=00000800"
        );
        assert_eq!(
            says(3),
            "Version: 2, Endpoint, IntMsgNum 0, Slot-\n\
             DevCap: MaxPayload 256 bytes, PhantFunc 0, ExtTag- FLReset+\n\
             DevCtl: CorrErr- NonFatalErr- FatalErr- UnsupReq- RlxdOrd+, MaxPayload 128 bytes, MaxReadReq 512 bytes\n\
             LnkCap: Speed 8GT/s, Width x17\nLnkSta: Speed 5GT/s, Width x1"
        );
    }

    #[test]
    fn lists_that_go_round_come_to_an_end() {
        let mut space = vec![0xff; 4096];
        let capabilities = |space: &[u8]| {
            let function = Space::new(space).unwrap().function(&[]);
            (
                function.capabilities.len(),
                function.extended_capabilities.len(),
            )
        };
        assert_eq!(capabilities(&space), (1, 0));
        space[0x34] = 0x40;
        put(&mut space, 0x40, &[9, 0x48]);
        put(&mut space, 0x48, &[9, 0x40]);
        put(&mut space, 0x100, &[1, 0, 1, 0x10]);
        assert_eq!(capabilities(&space), (2, 1));
        assert!(Space::new(&space[..63]).is_none());
        assert_eq!(capabilities(&space[..64]).1, 0);
    }

    #[test]
    fn the_registers_are_in_words() {
        let mut space = vec![0; 256];
        put(
            &mut space,
            0x00,
            &[0x86, 0x80, 0x0e, 0x10, 0x07, 0x04, 0x30, 0x02],
        );
        put(&mut space, 0x08, &[3, 0, 0, 2]);
        put(&mut space, 0x2c, &[0xf4, 0x1a, 0x00, 0x11]);
        put(&mut space, 0x3c, &[11, 1]);
        let function = Space::new(&space).unwrap().function(&[]);
        assert_eq!((function.vendor_id, function.device_id), (0x8086, 0x100e));
        assert_eq!(
            (function.subsystem_vendor_id, function.subsystem_id),
            (0x1af4, 0x1100)
        );
        assert_eq!((function.class_code, function.revision_id), (0x02_0000, 3));
        assert_eq!(function.class, "Ethernet controller");
        assert_eq!(
            (function.interrupt_pin, function.interrupt_line),
            (Some('A'), 11)
        );
        assert_eq!(
            function.control_flags,
            "I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+"
        );
        assert_eq!(
            function.status_flags,
            "Cap+ 66MHz+ UDF- FastB2B- ParErr- DEVSEL=medium >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-"
        );
    }
}
