//! Fixtures: what a test of the whole, the demo and the set-up need of a machine.
//!
//! [`Image`] is the QEMU and the Linux guest that set-up leaves in the cache, [`Guest`] a running one, [`QemuServer`] a QEMU that serves
//! devices, [`Netns`] a
//! network of its own on the host, [`Agent`] a running `vfu-agent` with its directories, [`traffic`] what goes over the
//! wire, [`Peer`] a station at its other end, [`Python`] a client that is not written in Rust. Every wait has a deadline,
//! every fixture cleans up in `Drop`, every error carries the logs that explain it.

pub mod agent;
pub mod cache;
pub mod cgroup;
pub mod cloud_hypervisor;
pub mod command;
pub mod device;
pub mod guest;
pub mod image;
pub mod netns;
pub mod peer;
pub mod published;
pub mod python;
pub mod require;
pub mod traffic;
pub mod vmm;

pub use agent::Agent;
pub use cloud_hypervisor::CloudHypervisor;
pub use device::Device;
pub use guest::Guest;
pub use image::{Image, QemuServer};
pub use netns::Netns;
pub use peer::Peer;
pub use python::Python;
pub use vmm::Vmm;
