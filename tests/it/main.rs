//! Tests of the whole: processes, sockets, and a real VMM with a Linux guest.

mod device;
mod guest;
