//! The guest's memory: a memfd, which this process and the server both map.

#![expect(
    unsafe_code,
    reason = "memory that another process writes to has to be mapped"
)]

use std::{
    fs::File,
    num::NonZeroUsize,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    mman::{MapFlags, ProtFlags, mmap, munmap},
};

/// Guest memory from address 0 on, by words of 8 bytes.
pub(super) struct Memory {
    pub(super) file: File,
    begin: NonNull<AtomicU64>,
    bytes: NonZeroUsize,
}

impl Memory {
    /// So many bytes, a multiple of a page.
    pub(super) fn new(bytes: NonZeroUsize) -> Result<Self> {
        let file = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).context("make guest memory")?;
        let file = File::from(file);
        file.set_len(bytes.get() as u64)
            .context("make guest memory")?;
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let begin = unsafe {
            mmap(
                None,
                bytes,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
                &file,
                0,
            )
        };
        Ok(Self {
            file,
            begin: begin.context("map guest memory")?.cast(),
            bytes,
        })
    }

    pub(super) fn load(&self, address: u64) -> u64 {
        self.word(address).load(Ordering::Acquire)
    }

    pub(super) fn store(&self, address: u64, value: u64) {
        self.word(address).store(value, Ordering::Release);
    }

    /// Stores `data`, and zeros up to the end of its last word.
    pub(super) fn fill(&self, address: u64, data: &[u8]) {
        for (index, chunk) in data.chunks(size_of::<u64>()).enumerate() {
            let mut word = [0; size_of::<u64>()];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(address + 8 * index as u64, u64::from_le_bytes(word));
        }
    }

    fn word(&self, address: u64) -> &AtomicU64 {
        // SAFETY: the mapping has so many bytes, begins at a page and lives as long as `self`; zeros and whatever the server
        // writes are values of the type, which two processes may use at once.
        let words = unsafe {
            slice::from_raw_parts(self.begin.as_ptr(), self.bytes.get() / size_of::<u64>())
        };
        &words[address as usize / size_of::<u64>()]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this size, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.begin.cast(), self.bytes.get()) };
        unmapped.expect("what is mapped can be unmapped");
    }
}
