//! How the allocator uses memory: as a process does that starts, and then is one of a thousand that mostly sleep.
//!
//! Untold, glibc takes a model's buffers, of which a device without traffic uses nothing, from what the start has used and
//! given back: they are cleared, and so become memory that is there. And what the start needs it keeps.

#![expect(
    unsafe_code,
    reason = "the allocator's settings have no safe interface"
)]

use nix::libc::{M_MMAP_THRESHOLD, c_int, malloc_trim, mallopt};

/// What is as long gets pages of its own, which are there once they are touched.
const MMAP_THRESHOLD_BYTES: c_int = 32 << 10;

/// To be called before there is anything else.
pub(crate) fn set_up() {
    // SAFETY: plain numbers. Where it can't be had, the process takes some more memory.
    unsafe { mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) };
}

/// Gives back what was used and is free now.
pub(crate) fn trim() {
    // SAFETY: it touches nothing that is in use.
    unsafe { malloc_trim(0) };
}
