//! What one run of either direction may do before the loop gets a turn.

/// What one run may spend before the loop gets a turn, in bytes moved.
pub(super) const BUDGET_BYTES: u32 = 512 << 10;
/// What a descriptor or a frame costs beside its bytes.
pub(super) const OVERHEAD_BYTES: u32 = 256;
