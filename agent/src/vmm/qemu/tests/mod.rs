//! The driver against a double that answers as it is told, and against a real QEMU.

mod real;
