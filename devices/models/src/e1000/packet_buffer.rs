//! The packet buffer as diagnostics see it, section 13.8.11: 64 KiB of memory behind the registers.
//!
//! Frames of the model pass by it, so that it only holds what software wrote there. It is made when that happens first:
//! drivers leave it alone.

use pci::{LoadError, saved::Bytes};

/// Where it is in BAR 0.
pub(super) const OFFSET: u32 = 0x1_0000;
const BYTES: usize = 64 << 10;

/// The memory.
#[derive(Debug, Default)]
pub(super) struct PacketBuffer(Option<Box<[u8]>>);

impl PacketBuffer {
    /// Reads the word at an offset in BAR 0.
    pub(super) fn read(&self, at: u32) -> u32 {
        let word = self.0.as_ref().and_then(|memory| memory.get(range(at)));
        word.and_then(|word| word.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }

    /// Writes the word at an offset in BAR 0.
    pub(super) fn write(&mut self, at: u32, data: u32) {
        let memory = self
            .0
            .get_or_insert_with(|| vec![0; BYTES].into_boxed_slice());
        if let Some(word) = memory.get_mut(range(at)) {
            word.copy_from_slice(&data.to_le_bytes());
        }
    }

    /// Power was lost.
    pub(super) fn power_on(&mut self) {
        self.0 = None;
    }

    pub(super) fn save(&self) -> Option<Bytes> {
        self.0.as_ref().map(|memory| Bytes(memory.to_vec()))
    }

    pub(super) fn restore(saved: Option<&Bytes>) -> Result<Self, LoadError> {
        let Some(Bytes(memory)) = saved else {
            return Ok(Self(None));
        };
        if memory.len() != BYTES {
            let problem = format!("has {} bytes, not {BYTES}", memory.len());
            return Err(LoadError::new("", problem));
        }
        Ok(Self(Some(memory.clone().into_boxed_slice())))
    }
}

fn range(at: u32) -> std::ops::Range<usize> {
    let start = at.saturating_sub(OFFSET) as usize;
    start..start + 4
}
