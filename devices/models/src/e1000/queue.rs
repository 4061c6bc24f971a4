//! A descriptor ring in guest memory, sections 3.2.6 and 3.4: head, tail, wrap.
//!
//! The values come from registers that the guest may have filled with nonsense. A ring whose head or tail lies outside,
//! or that has no length, has no descriptors for the device.

use pci::regs::Regs;

use super::spec::descriptor::DESCRIPTOR_BYTES;

/// Where the registers of a ring are.
#[derive(Debug)]
pub(super) struct Registers {
    pub(super) base_low: u32,
    pub(super) base_high: u32,
    pub(super) length: u32,
    pub(super) head: u32,
    pub(super) tail: u32,
}

/// A ring as the registers describe it at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    base: u64,
    /// Descriptors in the ring.
    pub(super) count: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    pub(super) fn load(regs: &Regs, registers: &Registers) -> Self {
        let base = u64::from(regs.get(registers.base_high)) << 32
            | u64::from(regs.get(registers.base_low));
        let ring = Self {
            base,
            count: regs.get(registers.length) / DESCRIPTOR_BYTES,
            head: regs.get(registers.head),
            tail: regs.get(registers.tail),
        };
        if ring.head < ring.count && ring.tail < ring.count {
            ring
        } else {
            Self {
                head: 0,
                tail: 0,
                ..ring
            }
        }
    }

    /// Descriptors from head to tail: the device's.
    pub(super) fn available(&self) -> u32 {
        if self.tail >= self.head {
            self.tail - self.head
        } else {
            self.count - self.head + self.tail
        }
    }

    /// Of these, how many lie behind one another in memory.
    pub(super) fn contiguous(&self) -> u32 {
        self.available().min(self.count - self.head)
    }

    /// The address of the descriptor at the head.
    pub(super) fn address(&self) -> u64 {
        self.address_of(self.head)
    }

    /// The address of a descriptor.
    pub(super) fn address_of(&self, index: u32) -> u64 {
        self.base
            .wrapping_add(u64::from(index) * u64::from(DESCRIPTOR_BYTES))
    }

    /// The head moves on by one descriptor.
    pub(super) fn advance(&mut self) {
        self.advance_by(1);
    }

    /// The head moves on by descriptors that lie behind one another in memory.
    pub(super) fn advance_by(&mut self, count: u32) {
        self.head += count;
        if self.head == self.count {
            self.head = 0;
        }
    }

    pub(super) fn head(&self) -> u32 {
        self.head
    }
}
