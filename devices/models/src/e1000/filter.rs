//! Which frames the receiver takes, section 3.2.1 and 9.3: addresses, then VLAN.

use pci::regs::Regs;

use super::{
    spec::{
        self,
        bits::{Rah, Rctl},
    },
    statistics::Cast,
};

const ETHER_TYPE: usize = 12;
/// How far the destination's last 16 bits are shifted to make a table index, by RCTL.MO.
const MULTICAST_SHIFT: [u32; 4] = [4, 3, 2, 0];
/// The tag's Canonical Form Indicator and VLAN id, IEEE 802.1Q.
const TAG_CFI: u16 = 0x1000;
const TAG_ID: u16 = 0x0fff;

/// A frame passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    /// Not by an exact match: software has to look again.
    pub(super) inexact: bool,
}

/// The VLAN tag of a frame, if its type is what VET says.
pub(super) fn vlan_tag(regs: &Regs, frame: &[u8]) -> Option<u16> {
    let [a, b, c, d, ..] = *frame.get(ETHER_TYPE..)? else {
        return None;
    };
    let is_tagged = u32::from(u16::from_be_bytes([a, b])) == regs.get(spec::VET);
    is_tagged.then(|| u16::from_be_bytes([c, d]))
}

/// Puts a frame through the filters.
pub(super) fn accept(
    regs: &Regs,
    rctl: Rctl,
    frame: &[u8],
    cast: Cast,
    tag: Option<u16>,
) -> Option<Accepted> {
    let address = accept_address(regs, rctl, frame, cast)?;
    match tag {
        Some(tag) if !accept_tag(regs, rctl, tag) => None,
        _ => Some(address),
    }
}

fn accept_address(regs: &Regs, rctl: Rctl, frame: &[u8], cast: Cast) -> Option<Accepted> {
    let exact = Accepted { inexact: false };
    let inexact = Accepted { inexact: true };
    if cast == Cast::Broadcast && rctl.accept_broadcast() || matches_exactly(regs, frame) {
        return Some(exact);
    }
    let passes = match cast {
        Cast::Unicast => rctl.unicast_promiscuous(),
        Cast::Multicast => rctl.multicast_promiscuous() || matches_table(regs, rctl, frame),
        Cast::Broadcast => rctl.multicast_promiscuous(),
    };
    passes.then_some(inexact)
}

/// The sixteen receive addresses, sections 13.5.2 and 13.5.3.
fn matches_exactly(regs: &Regs, frame: &[u8]) -> bool {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *frame else {
        return false;
    };
    let destination = (u32::from_le_bytes([d0, d1, d2, d3]), [d4, d5]);
    let source = (u32::from_le_bytes([s0, s1, s2, s3]), [s4, s5]);
    (0..spec::RECEIVE_ADDRESSES).any(|index| {
        let offset = index * spec::RECEIVE_ADDRESS_STRIDE;
        let high = Rah::from_bits(regs.get(spec::RAH + offset));
        let compared = match high.select() {
            0 => destination,
            1 => source,
            _ => return false,
        };
        high.valid()
            && high.address() == u16::from_le_bytes(compared.1)
            && regs.get(spec::RAL + offset) == compared.0
    })
}

/// The multicast table, section 13.5.1: an imperfect filter.
fn matches_table(regs: &Regs, rctl: Rctl, frame: &[u8]) -> bool {
    let [_, _, _, _, d4, d5, ..] = *frame else {
        return false;
    };
    let shift = MULTICAST_SHIFT[usize::from(rctl.multicast_offset())];
    bit(regs, spec::MTA, u16::from_le_bytes([d4, d5]) >> shift)
}

fn accept_tag(regs: &Regs, rctl: Rctl, tag: u16) -> bool {
    if !rctl.vlan_filter() {
        return true;
    }
    let cfi_passes = !rctl.cfi_filter() || (tag & TAG_CFI != 0) == rctl.cfi();
    cfi_passes && bit(regs, spec::VFTA, tag & TAG_ID)
}

/// One of the 4096 bits of a table.
fn bit(regs: &Regs, table: u32, index: u16) -> bool {
    let index = u32::from(index) & 0xfff;
    regs.get(table + index / 32 * 4) >> (index % 32) & 1 == 1
}
