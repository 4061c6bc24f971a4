//! What a hostile client or guest may do, decided by bytes, and what must hold whatever it does.
//!
//! Each function takes bytes from a fuzzer, or from the corpus that is kept beside it, and panics when something does not
//! hold. That it does not panic by itself is the least: replies are compared with what was asked, guest memory with a
//! model of it, and afterwards everything that a client passed in is closed and unmapped again.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of this is a test, which ends where something fails"
)]

mod client;
mod configuration;
mod descriptors;
mod device;
mod dma;
mod expected;
mod leaks;
mod messages;
mod replies;
mod run;
mod socket;
mod values;
mod wire;

pub use configuration::configuration;
pub use dma::dma;
pub use messages::messages;
pub use socket::socket;
