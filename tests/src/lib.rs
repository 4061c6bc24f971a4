//! Fixtures: what a test of the whole, the demo and the set-up need of a machine.
//!
//! [`Image`] is the QEMU and the Linux guest that set-up leaves in the cache, [`Guest`] a running one. Every wait has a
//! deadline, every fixture cleans up in `Drop`, every error carries the logs that explain it.

pub mod cache;
pub mod command;
pub mod guest;
pub mod image;
pub mod require;

pub use guest::Guest;
pub use image::Image;
