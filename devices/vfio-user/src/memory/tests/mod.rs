//! Guest memory as a device sees it.

mod access;
mod dirty;
mod lost;
mod model;
mod saved;

use std::{fs::File, os::fd::OwnedFd};

use super::*;
use crate::link::Link;

const RW: Access = Access {
    read: true,
    write: true,
};
const PAGE: u64 = 4096;

/// A new file of so many pages.
fn file(pages: u64) -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE).unwrap();
    file.into()
}

/// Memory with one map of so many pages from `iova` on, and the file behind it.
fn mapped(iova: u64, pages: u64) -> (Memory, File) {
    let file = File::from(file(pages));
    let mut memory = Memory::default();
    map(&mut memory, iova, pages, &file, 0);
    (memory, file)
}

fn map(memory: &mut Memory, iova: u64, pages: u64, file: &File, offset_pages: u64) {
    let fd = file.try_clone().unwrap().into();
    memory
        .map(iova, pages * PAGE, RW, Some((fd, offset_pages * PAGE)))
        .unwrap();
}

/// Reads without a client.
fn read(memory: &mut Memory, iova: u64, data: &mut [u8]) -> Result<(), AccessError> {
    memory.read(&mut None::<Link>, iova, data)
}

/// Writes bytes without a client.
fn write_each(
    memory: &mut Memory,
    iova: u64,
    stride: usize,
    places: u64,
    byte: u8,
) -> Result<(), AccessError> {
    memory.write_each(&mut None::<Link>, iova, stride, places, byte)
}

/// Writes without a client.
fn write(memory: &mut Memory, iova: u64, data: &[u8]) -> Result<(), AccessError> {
    memory.write(&mut None::<Link>, iova, data)
}
