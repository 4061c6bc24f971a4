//! Guest memory: the client's DMA maps, and access to them by IO virtual address.
//!
//! A map that came with a file descriptor is mmapped and reached by copying. Guest memory is copied in and out, never
//! borrowed as a slice: the guest writes to it meanwhile. Maps are kept sorted and disjoint, so that a lookup is a binary
//! search, after a look at the map that was hit last.
//!
//! A map without a descriptor (QEMU sends such for ROM) is recorded, and reaching into it is an error.

use std::{cell::Cell, fs::File, os::fd::OwnedFd};

use nix::{errno::Errno, libc};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, mmap::MmapRegionBuilder};

/// What the guest's memory map says about one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// No map covers this address.
    #[error("no DMA map at {iova:#x}")]
    Unmapped {
        /// The first address that is not covered.
        iova: u64,
    },
    /// The map is there and does not allow this.
    #[error("the DMA map at {iova:#x} does not allow this access")]
    Denied {
        /// The first address that is refused.
        iova: u64,
    },
}

/// What the device may do with a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

impl Access {
    fn prot(self) -> i32 {
        (if self.read { libc::PROT_READ } else { 0 })
            | (if self.write { libc::PROT_WRITE } else { 0 })
    }
}

/// The DMA maps of one session.
#[derive(Debug, Default)]
pub struct Memory {
    /// Sorted by address, disjoint.
    maps: Vec<Map>,
    last_hit: Cell<usize>,
}

#[derive(Debug)]
struct Map {
    start: u64,
    /// Inclusive, so that a map may end with the address space.
    last: u64,
    access: Access,
    /// `None`: the client gave no descriptor.
    region: Option<MmapRegion>,
}

impl Map {
    /// Length, or 0 for the one map that has all 2^64 bytes.
    fn size_bytes(&self) -> u64 {
        (self.last - self.start).wrapping_add(1)
    }
}

impl Memory {
    /// More maps than this are refused; what the server announces as `max_dma_maps`.
    pub const MAX_MAPS: usize = 65_535;

    /// Adds a map of `size_bytes` at `iova`, backed by `file` from `offset_bytes` on.
    ///
    /// # Errors
    /// `EINVAL` for an empty or wrapping range, no access at all, an offset that is not page aligned, or a range past the
    /// end of the file; `EEXIST` when it overlaps a map; `ENOSPC` above [`Memory::MAX_MAPS`]; what mmap says otherwise.
    pub fn map(
        &mut self,
        iova: u64,
        size_bytes: u64,
        access: Access,
        file: Option<(OwnedFd, u64)>,
    ) -> Result<(), Errno> {
        let last = size_bytes
            .checked_sub(1)
            .and_then(|n| iova.checked_add(n))
            .ok_or(Errno::EINVAL)?;
        if !access.read && !access.write {
            return Err(Errno::EINVAL);
        }
        if self.maps.len() >= Self::MAX_MAPS {
            return Err(Errno::ENOSPC);
        }
        let at = self.maps.partition_point(|map| map.last < iova);
        if self.maps.get(at).is_some_and(|next| next.start <= last) {
            return Err(Errno::EEXIST);
        }
        let region = file
            .map(|(fd, offset)| mmap(fd, offset, size_bytes, access))
            .transpose()?;
        self.maps.insert(
            at,
            Map {
                start: iova,
                last,
                access,
                region,
            },
        );
        Ok(())
    }

    /// Removes every map that lies in the range, and returns the sum of their sizes.
    ///
    /// # Errors
    /// `EINVAL` for an empty or wrapping range or one that would cut a map in two; `ENOENT` when no map lies in it.
    pub fn unmap(&mut self, iova: u64, size_bytes: u64) -> Result<u64, Errno> {
        let last = size_bytes
            .checked_sub(1)
            .and_then(|n| iova.checked_add(n))
            .ok_or(Errno::EINVAL)?;
        let from = self.maps.partition_point(|map| map.last < iova);
        let to = from + self.maps[from..].partition_point(|map| map.start <= last);
        let inside = &self.maps[from..to];
        match (inside.first(), inside.last()) {
            (Some(first), Some(end)) if first.start >= iova && end.last <= last => Ok(self
                .maps
                .drain(from..to)
                .fold(0, |sum, map| sum + map.size_bytes())),
            (None, _) => Err(Errno::ENOENT),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Removes every map, and returns the sum of their sizes.
    pub fn unmap_all(&mut self) -> u64 {
        self.maps
            .drain(..)
            .fold(0, |sum, map| sum.wrapping_add(map.size_bytes()))
    }

    /// The number of maps.
    #[must_use]
    pub fn map_count(&self) -> usize {
        self.maps.len()
    }

    /// Copies guest memory from `iova` on into `data`; the range may span adjacent maps.
    ///
    /// # Errors
    /// [`AccessError`]; some of `data` may have been filled.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let mut rest = data;
        let mut at = iova;
        while !rest.is_empty() {
            let (region, offset, len) = self.piece(at, rest.len(), |access| access.read)?;
            let (now, later) = rest.split_at_mut(len);
            let slice = region
                .get_slice(offset, len)
                .map_err(|_| AccessError::Unmapped { iova: at })?;
            slice.copy_to(now);
            rest = later;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Copies `data` to guest memory at `iova`; the range may span adjacent maps.
    ///
    /// # Errors
    /// [`AccessError`]; some of `data` may have been written.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut rest = data;
        let mut at = iova;
        while !rest.is_empty() {
            let (region, offset, len) = self.piece(at, rest.len(), |access| access.write)?;
            let (now, later) = rest.split_at(len);
            let slice = region
                .get_slice(offset, len)
                .map_err(|_| AccessError::Unmapped { iova: at })?;
            slice.copy_from(now);
            rest = later;
            at = at.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// The mapping that holds `iova`, the offset in it, and how many of `len` bytes it has.
    fn piece(
        &self,
        iova: u64,
        len: usize,
        allows: impl Fn(Access) -> bool,
    ) -> Result<(&MmapRegion, usize, usize), AccessError> {
        let map = self.find(iova).ok_or(AccessError::Unmapped { iova })?;
        let region = match &map.region {
            Some(region) if allows(map.access) => region,
            _ => return Err(AccessError::Denied { iova }),
        };
        // Both fit: the region was mmapped with this size.
        let offset = (iova - map.start) as usize;
        Ok((region, offset, len.min(region.size() - offset)))
    }

    fn find(&self, iova: u64) -> Option<&Map> {
        let holds = |map: &&Map| map.start <= iova && iova <= map.last;
        if let Some(map) = self.maps.get(self.last_hit.get()).filter(holds) {
            return Some(map);
        }
        let at = self.maps.partition_point(|map| map.last < iova);
        let map = self.maps.get(at).filter(holds)?;
        self.last_hit.set(at);
        Some(map)
    }
}

fn mmap(
    fd: OwnedFd,
    offset_bytes: u64,
    size_bytes: u64,
    access: Access,
) -> Result<MmapRegion, Errno> {
    let size = usize::try_from(size_bytes).map_err(|_| Errno::EINVAL)?;
    let end = offset_bytes.checked_add(size_bytes).ok_or(Errno::EINVAL)?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(errno)?;
    // Only a file whose size is known can be checked; a pipe, a socket or a device can't be guest memory.
    if !metadata.is_file() || end > metadata.len() {
        return Err(Errno::EINVAL);
    }
    MmapRegionBuilder::new(size)
        .with_file_offset(FileOffset::new(file, offset_bytes))
        .with_mmap_prot(access.prot())
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| match error {
            vm_memory::mmap::MmapRegionError::Mmap(source) => errno(source),
            _ => Errno::EINVAL,
        })
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RW: Access = Access {
        read: true,
        write: true,
    };
    const PAGE: u64 = 4096;

    fn file(pages: u64) -> OwnedFd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(pages * PAGE).unwrap();
        file.into()
    }

    #[test]
    fn access_spans_adjacent_maps() {
        let mut memory = Memory::default();
        memory.map(0x2000, PAGE, RW, Some((file(1), 0))).unwrap();
        memory.map(0x1000, PAGE, RW, Some((file(3), PAGE))).unwrap();
        let data: Vec<u8> = (0..64).collect();
        memory.write(0x2000 - 20, &data).unwrap();
        let mut back = [0; 64];
        memory.read(0x2000 - 20, &mut back).unwrap();
        assert_eq!(back[..], data[..]);
        assert_eq!(
            memory.read(0x3000 - 1, &mut [0; 2]),
            Err(AccessError::Unmapped { iova: 0x3000 })
        );
        assert_eq!(
            memory.read(0xfff, &mut [0; 1]),
            Err(AccessError::Unmapped { iova: 0xfff })
        );
        assert_eq!(
            memory.read(u64::MAX, &mut [0; 4]),
            Err(AccessError::Unmapped { iova: u64::MAX })
        );
    }

    #[test]
    fn access_flags_are_honoured() {
        let mut memory = Memory::default();
        memory
            .map(
                0,
                PAGE,
                Access {
                    read: true,
                    write: false,
                },
                Some((file(1), 0)),
            )
            .unwrap();
        memory
            .map(
                PAGE,
                PAGE,
                Access {
                    read: false,
                    write: true,
                },
                Some((file(1), 0)),
            )
            .unwrap();
        memory.map(2 * PAGE, PAGE, RW, None).unwrap();
        assert!(memory.read(0, &mut [0; 8]).is_ok());
        assert_eq!(
            memory.write(0, &[0; 8]),
            Err(AccessError::Denied { iova: 0 })
        );
        assert_eq!(
            memory.read(PAGE, &mut [0; 8]),
            Err(AccessError::Denied { iova: PAGE })
        );
        assert_eq!(
            memory.read(2 * PAGE, &mut [0; 8]),
            Err(AccessError::Denied { iova: 2 * PAGE })
        );
    }

    #[test]
    fn bad_maps_are_refused() {
        let mut memory = Memory::default();
        assert_eq!(memory.map(0, 0, RW, Some((file(1), 0))), Err(Errno::EINVAL));
        assert_eq!(
            memory.map(u64::MAX, 2, RW, Some((file(1), 0))),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            memory.map(
                0,
                PAGE,
                Access {
                    read: false,
                    write: false
                },
                None
            ),
            Err(Errno::EINVAL)
        );
        assert_eq!(
            memory.map(0, PAGE, RW, Some((file(1), PAGE))),
            Err(Errno::EINVAL),
            "past the file's end"
        );
        assert_eq!(
            memory.map(0, PAGE, RW, Some((file(2), 100))),
            Err(Errno::EINVAL),
            "offset not aligned"
        );
        assert_eq!(
            memory.map(0, PAGE, RW, Some((file(1), u64::MAX))),
            Err(Errno::EINVAL)
        );
        let (read_end, _write_end) = nix::unistd::pipe().unwrap();
        assert_eq!(
            memory.map(0, PAGE, RW, Some((read_end, 0))),
            Err(Errno::EINVAL),
            "a pipe"
        );
        memory.map(PAGE, PAGE, RW, Some((file(1), 0))).unwrap();
        assert_eq!(
            memory.map(0, PAGE + 1, RW, Some((file(2), 0))),
            Err(Errno::EEXIST)
        );
        assert_eq!(
            memory.map(PAGE * 2 - 1, PAGE, RW, Some((file(2), 0))),
            Err(Errno::EEXIST)
        );
        assert_eq!(memory.map_count(), 1);
    }

    #[test]
    fn unmap_takes_whole_maps_only() {
        let mut memory = Memory::default();
        memory.map(PAGE, PAGE, RW, Some((file(1), 0))).unwrap();
        memory.map(2 * PAGE, PAGE, RW, Some((file(1), 0))).unwrap();
        assert_eq!(memory.unmap(PAGE, 10), Err(Errno::EINVAL));
        assert_eq!(memory.unmap(PAGE + 1, 2 * PAGE), Err(Errno::EINVAL));
        assert_eq!(memory.unmap(8 * PAGE, PAGE), Err(Errno::ENOENT));
        assert_eq!(memory.unmap(0, 0), Err(Errno::EINVAL));
        assert_eq!(memory.unmap(PAGE, 2 * PAGE), Ok(2 * PAGE));
        assert_eq!(
            memory.read(PAGE, &mut [0; 1]),
            Err(AccessError::Unmapped { iova: PAGE })
        );
        memory.map(0, 0u64.wrapping_sub(PAGE), RW, None).unwrap();
        assert_eq!(memory.unmap_all(), 0u64.wrapping_sub(PAGE));
    }
}
