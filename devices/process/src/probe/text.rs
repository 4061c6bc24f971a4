//! A report for people, in the manner of `lspci -vvv`.

use std::fmt::Write as _;

use super::report::{Bar, BarKind, Function, Irq, Protocol, Region, Report};

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut lines = Lines::default();
    match &report.function {
        Some(function) => head(&mut lines, function),
        None => lines.add(0, "Device without a PCI configuration space"),
    }
    lines.add(1, &format!("Socket: {}", report.socket.display()));
    lines.add(1, &format!("Protocol: {}", protocol(&report.protocol)));
    lines.add(1, &format!("Device: {}", abilities(report)));
    if let Some(function) = &report.function {
        registers(&mut lines, function);
    }
    for region in report.regions.iter().filter(|it| it.size_bytes > 0) {
        region_lines(&mut lines, region);
    }
    for irq in report.irqs.iter().filter(|it| it.count > 0) {
        lines.add(1, &irq_line(irq));
    }
    if let Some(function) = &report.function {
        for capability in function
            .capabilities
            .iter()
            .chain(&function.extended_capabilities)
        {
            let at = capability.offset;
            lines.add(1, &format!("Capabilities: [{at:02x}] {}", capability.name));
            for detail in &capability.details {
                lines.add(2, detail);
            }
        }
    }
    lines.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, depth: usize, line: &str) {
        self.0.push_str(&"\t".repeat(depth));
        // What a server says may be anything.
        self.0
            .extend(line.chars().map(|c| if c.is_control() { '?' } else { c }));
        self.0.push('\n');
    }
}

fn head(lines: &mut Lines, function: &Function) {
    lines.add(
        0,
        &format!(
            "{} [{:04x}]: [{:04x}:{:04x}] (rev {:02x}) (prog-if {:02x})",
            function.class,
            function.class_code >> 8,
            function.vendor_id,
            function.device_id,
            function.revision_id,
            function.class_code & 0xff,
        ),
    );
    lines.add(
        1,
        &format!(
            "Subsystem: [{:04x}:{:04x}]",
            function.subsystem_vendor_id, function.subsystem_id
        ),
    );
}

fn registers(lines: &mut Lines, function: &Function) {
    lines.add(1, &format!("Control: {}", function.control_flags));
    lines.add(1, &format!("Status: {}", function.status_flags));
    if let Some(pin) = function.interrupt_pin {
        let line = function.interrupt_line;
        lines.add(1, &format!("Interrupt: pin {pin} routed to IRQ {line}"));
    }
    for bar in &function.bars {
        lines.add(1, &bar_line(bar));
    }
    if let Some(rom) = &function.expansion_rom {
        let disabled = if rom.enabled { "" } else { " [disabled]" };
        lines.add(
            1,
            &format!(
                "Expansion ROM at {:08x}{disabled} [size={}]",
                rom.address,
                size(rom.size_bytes)
            ),
        );
    }
}

fn bar_line(bar: &Bar) -> String {
    let Bar {
        index,
        kind,
        address,
        size_bytes,
    } = bar;
    let size = size(*size_bytes);
    match kind {
        BarKind::Io => format!("Region {index}: I/O ports at {address:04x} [size={size}]"),
        BarKind::Memory { bits, prefetchable } => {
            let not = if *prefetchable { "" } else { "non-" };
            let width = usize::from(*bits) / 4;
            format!(
                "Region {index}: Memory at {address:0width$x} ({bits}-bit, {not}prefetchable) [size={size}]"
            )
        }
    }
}

fn protocol(protocol: &Protocol) -> String {
    let capabilities = &protocol.capabilities;
    let mut text = format!("vfio-user {}", protocol.version);
    let numbers = [
        ("max_msg_fds", capabilities.max_msg_fds),
        ("max_data_xfer_size", capabilities.max_data_xfer_size),
        ("max_dma_maps", capabilities.max_dma_maps),
        ("pgsizes", capabilities.pgsizes),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            // Writing to a string can't fail.
            let _ = write!(text, ", {name}={value}");
        }
    }
    let twin = capabilities.twin_socket.is_some_and(|it| it.supported);
    let multi = capabilities.write_multiple == Some(true);
    let words = [
        ("twin_socket", twin),
        ("write_multiple", multi),
        ("migration", capabilities.migration.is_some()),
    ];
    for (name, set) in words {
        let _ = write!(text, ", {name}{}", if set { '+' } else { '-' });
    }
    text
}

fn abilities(report: &Report) -> String {
    let reset = if report.resettable { '+' } else { '-' };
    let migration = match report.migration.as_deref() {
        None | Some([]) => "no".to_owned(),
        Some(words) => words.join(", "),
    };
    let logging = if report.dma_logging { '+' } else { '-' };
    format!("Reset{reset}, Migration: {migration}, DMA logging{logging}")
}

fn region_lines(lines: &mut Lines, region: &Region) {
    let mut text = format!("vfio-user region {} ({})", region.index, region.name);
    let words = [
        (region.read, "read"),
        (region.write, "write"),
        (region.mmap, "mmap"),
    ];
    let words = words.into_iter().filter(|(can, _)| *can);
    let words: Vec<_> = words.map(|(_, word)| word).collect();
    let _ = write!(
        text,
        ": {} [size={}]",
        words.join(" "),
        size(region.size_bytes)
    );
    if let Some((kind, subtype)) = region.kind {
        let _ = write!(text, " [type {kind:#x}, subtype {subtype:#x}]");
    }
    lines.add(1, &text);
    for area in region.sparse_areas.iter().flatten() {
        let size = size(area.size_bytes);
        lines.add(2, &format!("mmap area at {:#x} [size={size}]", area.offset));
    }
}

fn irq_line(irq: &Irq) -> String {
    let words = [
        (irq.eventfd, "eventfd"),
        (irq.maskable, "maskable"),
        (irq.automasked, "automasked"),
        (irq.noresize, "noresize"),
    ];
    let words = words.into_iter().filter(|(can, _)| *can);
    let words: Vec<_> = words.map(|(_, word)| word).collect();
    let Irq {
        index, name, count, ..
    } = irq;
    format!(
        "vfio-user irq {index} ({name}): count {count}, {}",
        words.join(" ")
    )
}

/// A size as lspci writes it.
fn size(bytes: u64) -> String {
    let units = [(30, "G"), (20, "M"), (10, "K")];
    let whole = |shift: &u32| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift);
    match units.iter().find(|(shift, _)| whole(shift)) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use vfio_user::client::Capabilities;

    use super::{
        super::report::{Area, Capability, Rom},
        *,
    };

    #[test]
    fn sizes_are_whole() {
        let sizes = [64, 1 << 10, 128 << 10, (1 << 20) + 1, 3 << 30].map(size);
        assert_eq!(sizes, ["64", "1K", "128K", "1048577", "3G"]);
    }

    #[test]
    fn a_terminal_is_not_told_what_to_do() {
        let mut lines = Lines::default();
        lines.add(1, "a\u{1b}[2Jb\n");
        assert_eq!(lines.0, "\ta?[2Jb?\n");
    }

    #[test]
    fn a_page_reads_like_lspci_s() {
        let region = |index, name: &str, size_bytes, areas: &[(u64, u64)]| Region {
            index,
            name: name.into(),
            size_bytes,
            read: true,
            write: index != 6,
            mmap: !areas.is_empty(),
            sparse_areas: (!areas.is_empty()).then(|| {
                let areas = areas
                    .iter()
                    .map(|&(offset, size_bytes)| Area { offset, size_bytes });
                areas.collect()
            }),
            kind: (index == 9).then_some((1, 2)),
        };
        let report = Report {
            socket: "/run/x.sock".into(),
            protocol: Protocol {
                version: "0.1".into(),
                capabilities: Capabilities {
                    max_msg_fds: Some(8),
                    write_multiple: Some(true),
                    ..Capabilities::default()
                },
            },
            resettable: true,
            migration: None,
            dma_logging: false,
            function: Some(Function {
                vendor_id: 0x1b36,
                device_id: 0x10,
                subsystem_vendor_id: 0x1af4,
                subsystem_id: 0x1100,
                revision_id: 2,
                class_code: 0x01_0802,
                class: "Non-Volatile memory controller".into(),
                command: 6,
                status: 0x10,
                control_flags: "I/O- Mem+".into(),
                status_flags: "Cap+".into(),
                interrupt_pin: Some('A'),
                interrupt_line: 11,
                bars: vec![Bar {
                    index: 0,
                    kind: BarKind::Memory {
                        bits: 64,
                        prefetchable: false,
                    },
                    address: 0xfe00_0000,
                    size_bytes: 16 << 10,
                }],
                expansion_rom: Some(Rom {
                    address: 0,
                    size_bytes: 2048,
                    enabled: false,
                }),
                capabilities: vec![Capability {
                    offset: 0x40,
                    id: 0x11,
                    name: "MSI-X".into(),
                    details: vec!["Enable- Count=5 Masked-".into()],
                }],
                extended_capabilities: Vec::new(),
            }),
            regions: vec![
                region(0, "BAR0", 16 << 10, &[(0x1000, 0x1000)]),
                region(1, "BAR1", 0, &[]),
                region(6, "ROM", 2048, &[]),
                region(9, "region 9", 100, &[]),
            ],
            irqs: vec![Irq {
                index: 2,
                name: "MSI-X".into(),
                count: 5,
                eventfd: true,
                maskable: false,
                automasked: false,
                noresize: true,
            }],
        };
        assert_eq!(
            page(&report),
            "\
Non-Volatile memory controller [0108]: [1b36:0010] (rev 02) (prog-if 02)
\tSubsystem: [1af4:1100]
\tSocket: /run/x.sock
\tProtocol: vfio-user 0.1, max_msg_fds=8, twin_socket-, write_multiple+, migration-
\tDevice: Reset+, Migration: no, DMA logging-
\tControl: I/O- Mem+
\tStatus: Cap+
\tInterrupt: pin A routed to IRQ 11
\tRegion 0: Memory at 00000000fe000000 (64-bit, non-prefetchable) [size=16K]
\tExpansion ROM at 00000000 [disabled] [size=2K]
\tvfio-user region 0 (BAR0): read write mmap [size=16K]
\t\tmmap area at 0x1000 [size=4K]
\tvfio-user region 6 (ROM): read [size=2K]
\tvfio-user region 9 (region 9): read write [size=100] [type 0x1, subtype 0x2]
\tvfio-user irq 2 (MSI-X): count 5, eventfd noresize
\tCapabilities: [40] MSI-X
\t\tEnable- Count=5 Masked-
"
        );
    }
}
