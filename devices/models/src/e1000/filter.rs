//! Which frames the receiver takes, sections 3.2.1 and 9.3: addresses, then VLAN.

use pci::regs::Regs;

use super::{
    spec::{
        self,
        bits::{Rah, Rctl},
    },
    statistics::Cast,
};

/// How far the destination's last 16 bits are shifted to make a table index, by RCTL.MO.
const MULTICAST_SHIFT: [u32; 4] = [4, 3, 2, 0];
/// The tag's Canonical Form Indicator and VLAN id, IEEE 802.1Q.
const TAG_CFI: u16 = 0x1000;
const TAG_ID: u16 = 0x0fff;
/// Addresses are numbers whose lowest byte is the first on the wire, as in RAL and RAH.
const BROADCAST: u64 = 0xffff_ffff_ffff;
const GROUP: u64 = 1;

/// What the filters look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    destination: u64,
    source: u64,
    /// The VLAN tag, if the frame's type is that of tagged frames.
    pub(super) tag: Option<u16>,
}

/// A frame passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    /// Not by an exact match: software has to look again.
    pub(super) inexact: bool,
    /// As what statistics have it: the broadcast address is that while it is accepted as such (section 13.7.28).
    pub(super) counts_as: Cast,
}

/// What the registers say of addresses, for one run. The tables are looked at for the frames that need it.
#[derive(Debug)]
pub(super) struct Filter {
    rctl: Rctl,
    tag_type: u16,
    destinations: Addresses,
    sources: Addresses,
}

/// Some of the sixteen receive addresses.
#[derive(Debug, Default)]
struct Addresses {
    count: usize,
    addresses: [u64; spec::RECEIVE_ADDRESSES as usize],
}

impl Header {
    /// `None`: there is no room for a header and a tag.
    pub(super) fn of(frame: &[u8], tag_type: u16) -> Option<Self> {
        let [
            a,
            b,
            c,
            d,
            e,
            f, // Destination.
            g,
            h,
            i,
            j,
            k,
            l, // Source.
            type_high,
            type_low,
            tag_high,
            tag_low,
            ..,
        ] = *frame
        else {
            return None;
        };
        let is_tagged = u16::from_be_bytes([type_high, type_low]) == tag_type;
        Some(Self {
            destination: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            source: u64::from_le_bytes([g, h, i, j, k, l, 0, 0]),
            tag: is_tagged.then(|| u16::from_be_bytes([tag_high, tag_low])),
        })
    }

    fn cast(&self) -> Cast {
        match self.destination {
            BROADCAST => Cast::Broadcast,
            address if address & GROUP != 0 => Cast::Multicast,
            _ => Cast::Unicast,
        }
    }
}

impl Accepted {
    /// A frame for which the filters don't count.
    pub(super) fn exactly(header: &Header) -> Self {
        Self {
            inexact: false,
            counts_as: header.cast(),
        }
    }
}

impl Filter {
    pub(super) fn load(regs: &Regs, rctl: Rctl) -> Self {
        let mut filter = Self {
            rctl,
            tag_type: regs.get(spec::VET) as u16,
            destinations: Addresses::default(),
            sources: Addresses::default(),
        };
        for index in 0..spec::RECEIVE_ADDRESSES {
            let offset = index * spec::RECEIVE_ADDRESS_STRIDE;
            let high = Rah::from_bits(regs.get(spec::RAH + offset));
            let address = u64::from(high.address()) << 32 | u64::from(regs.get(spec::RAL + offset));
            match high.select() {
                _ if !high.valid() => {}
                0 => filter.destinations.add(address),
                1 => filter.sources.add(address),
                _ => {}
            }
        }
        filter
    }

    /// The type of tagged frames, VET.
    pub(super) fn tag_type(&self) -> u16 {
        self.tag_type
    }

    /// Puts a frame through the filters.
    pub(super) fn accept(&self, regs: &Regs, header: &Header) -> Option<Accepted> {
        let accepted = self.accept_address(regs, header)?;
        match header.tag {
            Some(tag) if !self.accept_tag(regs, tag) => None,
            _ => Some(accepted),
        }
    }

    fn accept_address(&self, regs: &Regs, header: &Header) -> Option<Accepted> {
        let rctl = self.rctl;
        let cast = header.cast();
        let is_broadcast = cast == Cast::Broadcast && rctl.accept_broadcast();
        let exact = is_broadcast
            || self.destinations.have(header.destination)
            || self.sources.have(header.source);
        let passes = exact
            || match cast {
                Cast::Unicast => rctl.unicast_promiscuous(),
                // The broadcast address is a group's as well (RCTL.BAM).
                Cast::Multicast | Cast::Broadcast => {
                    rctl.multicast_promiscuous() || self.table_has(regs, header.destination)
                }
            };
        passes.then_some(Accepted {
            inexact: !exact,
            counts_as: match cast {
                Cast::Broadcast if !is_broadcast => Cast::Multicast,
                cast => cast,
            },
        })
    }

    /// The multicast table, section 13.5.1: an imperfect filter.
    fn table_has(&self, regs: &Regs, address: u64) -> bool {
        let shift = MULTICAST_SHIFT[usize::from(self.rctl.multicast_offset())];
        bit(regs, spec::MTA, (address >> 32) as u16 >> shift)
    }

    fn accept_tag(&self, regs: &Regs, tag: u16) -> bool {
        if !self.rctl.vlan_filter() {
            return true;
        }
        let cfi_passes = !self.rctl.cfi_filter() || (tag & TAG_CFI != 0) == self.rctl.cfi();
        cfi_passes && bit(regs, spec::VFTA, tag & TAG_ID)
    }
}

impl Addresses {
    fn add(&mut self, address: u64) {
        if let Some(place) = self.addresses.get_mut(self.count) {
            *place = address;
            self.count += 1;
        }
    }

    fn have(&self, address: u64) -> bool {
        self.addresses[..self.count].contains(&address)
    }
}

/// One of the 4096 bits of a table.
fn bit(regs: &Regs, table: u32, index: u16) -> bool {
    let index = u32::from(index) & 0xfff;
    regs.get(table + index / 32 * 4) >> (index % 32) & 1 == 1
}
