//! The PHY's management interface bit by bit, as the 82543GC has it: software drives clock and data by two pins of CTRL
//! (IEEE 802.3, 22.2.4.5).
//!
//! ```text
//! 32 ones, or none | 01 | 10: read, 01: write | PHY, 5 bits | register, 5 bits | turnaround, 2 bits | data, 16 bits
//! ```
//!
//! Both sides take a bit on the clock's rising edge. In a read the PHY drives the line from the turnaround's second bit on:
//! what it puts there after one edge is what software finds before the next.

use pci::LoadError;

use super::{phy::Phy, state};

/// Bits of a frame, without the ones before it.
const FRAME_BITS: u32 = 32;
/// Those up to the turnaround.
const HEADER_BITS: u32 = 14;
const READ: u32 = 0b10;
const WRITE: u32 = 0b01;

/// The interface between two edges.
#[derive(Debug, Default)]
pub(super) struct Mdio {
    clock: bool,
    /// Bits of a frame that were taken.
    taken: u32,
    frame: u32,
    /// What the PHY answers, while it does.
    answer: Option<u16>,
}

/// The pins as software drives them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pins {
    pub(super) clock: bool,
    pub(super) data: bool,
}

impl Mdio {
    /// Software has set the pins. Returns whether the link went away, if only for a moment.
    pub(super) fn drive(&mut self, pins: Pins, phy: &mut Phy) -> bool {
        let rises = pins.clock && !self.clock;
        self.clock = pins.clock;
        rises && self.take(pins.data, phy)
    }

    fn take(&mut self, bit: bool, phy: &mut Phy) -> bool {
        if self.taken == 0 && bit {
            return false;
        }
        self.frame = self.frame << 1 | u32::from(bit);
        self.taken += 1;
        let header = self.frame >> self.taken.saturating_sub(HEADER_BITS);
        let (operation, address) = (header >> 10 & 3, (header >> 5 & 0x1f) as u8);
        let register = (header & 0x1f) as u8;
        match self.taken {
            // Two zeros start nothing.
            2 if !bit => {
                self.taken = 0;
                self.frame = 0;
            }
            HEADER_BITS if operation == READ && phy.answers(address) => {
                self.answer = Some(phy.read(register));
            }
            FRAME_BITS => {
                let data = (self.frame & 0xffff) as u16;
                self.taken = 0;
                self.frame = 0;
                self.answer = None;
                if operation == WRITE && phy.answers(address) {
                    return phy.write(register, data);
                }
            }
            _ => {}
        }
        false
    }

    /// What the line has while software does not drive it: what the PHY puts there, or what its pull-up makes of it.
    pub(super) fn line(&self) -> bool {
        match (self.answer, self.taken.checked_sub(HEADER_BITS)) {
            (Some(_), Some(1)) => false,
            (Some(data), Some(bit @ 2..)) => data >> (FRAME_BITS - HEADER_BITS - 1 - bit) & 1 == 1,
            _ => true,
        }
    }

    pub(super) fn reset(&mut self) {
        let Self {
            clock,
            taken,
            frame,
            answer,
        } = self;
        *clock = false;
        *taken = 0;
        *frame = 0;
        *answer = None;
    }

    pub(super) fn save(&self) -> state::Mdio {
        let Self {
            clock,
            taken,
            frame,
            answer,
        } = self;
        state::Mdio {
            clock: *clock,
            taken: *taken,
            frame: *frame,
            answer: *answer,
        }
    }

    pub(super) fn restore(saved: &state::Mdio) -> Result<Self, LoadError> {
        let state::Mdio {
            clock,
            taken,
            frame,
            answer,
        } = saved;
        if *taken >= FRAME_BITS {
            let problem = format!("{taken} bits are more than a frame has");
            return Err(LoadError::new("taken", problem));
        }
        if u64::from(*frame) >> taken != 0 {
            let problem = format!("{frame:#x} has more than {taken} bits");
            return Err(LoadError::new("frame", problem));
        }
        Ok(Self {
            clock: *clock,
            taken: *taken,
            frame: *frame,
            answer: *answer,
        })
    }
}
