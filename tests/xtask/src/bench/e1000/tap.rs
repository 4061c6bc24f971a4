//! A TAP without a device behind it: for the limit, and as the peer of one.

#![expect(unsafe_code, reason = "the ioctl that attaches to an interface")]

use std::{
    ffi::{c_int, c_short},
    fs::{File, OpenOptions},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use nix::libc;

use super::frame::{Size, TCP_HEADERS_BYTES};

/// `struct virtio_net_hdr` precedes each frame.
pub(super) const HEADER_BYTES: usize = 10;

nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_header_size, libc::TUNSETVNETHDRSZ, c_int);

/// Attaches to an interface of this thread's network namespace.
pub(super) fn open(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: an ifreq is integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
    // SAFETY: TUNSETIFF reads an ifreq, whose name ends with a zero, and writes no more than that; TUNSETVNETHDRSZ reads an
    // int.
    unsafe {
        set_interface(file.as_raw_fd(), &request).context("attach to a TAP")?;
        set_header_size(file.as_raw_fd(), &(HEADER_BYTES as c_int)).context("set up a TAP")?;
    }
    Ok(file)
}

/// A frame behind its header, which asks the kernel to cut what is to be cut.
pub(super) fn record(size: Size) -> Vec<u8> {
    let mut header = [0; HEADER_BYTES];
    if size == Size::Segments {
        // NEEDS_CSUM, TCPV4; the header's bytes, a segment's, where the sum begins, and where it goes.
        header[..2].copy_from_slice(&[1, 1]);
        for (at, value) in [(2, TCP_HEADERS_BYTES as u16), (4, 1460), (6, 34), (8, 16)] {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    [&header[..], &size.frame()].concat()
}
