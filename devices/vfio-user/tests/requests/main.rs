//! Every request that a client may send, by the specification's tables: raw bytes where no client sends them.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

mod access;
mod dma;
mod every;
mod feature;
mod info;
mod irqs;
mod logging;
mod migration;
mod peer;
mod readme;
mod support;
#[path = "../support/wire.rs"]
mod wire;
