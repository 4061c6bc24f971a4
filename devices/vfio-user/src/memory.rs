//! Guest memory: the client's DMA maps, and access to them by IO virtual address.
//!
//! A map that came with a file descriptor is mmapped and reached by copying. Guest memory is copied in and out, never
//! borrowed as a slice: the guest writes to it meanwhile. Maps are kept sorted and disjoint, so that a lookup is a binary
//! search, after a look at the map that was hit last.
//!
//! A map without a descriptor (QEMU sends such for ROM) is reached by asking the client: [`Remote`].

#![expect(unsafe_code, reason = "guest memory is mmapped, and unmapped again")]

use std::{
    cell::Cell,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        mman::{MapFlags, ProtFlags, mmap, munmap},
        stat::{SFlag, fstat},
    },
};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

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
    /// The client was asked for the memory and did not serve it.
    #[error("the client did not serve its memory at {iova:#x}")]
    Remote {
        /// Where the access that failed began.
        iova: u64,
        /// What the client said, or what became of the connection.
        #[source]
        errno: Errno,
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
    fn prot(self) -> ProtFlags {
        let mut prot = ProtFlags::PROT_NONE;
        prot.set(ProtFlags::PROT_READ, self.read);
        prot.set(ProtFlags::PROT_WRITE, self.write);
        prot
    }
}

/// Memory that is reached by messages.
pub(crate) trait Remote {
    /// Reads `data.len()` bytes, all in one map.
    fn read(&mut self, iova: u64, data: &mut [u8]) -> Result<(), Errno>;
    /// Writes `data`, all in one map.
    fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), Errno>;
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
    mapping: Option<Mapping>,
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
        let mapping = file
            .map(|(fd, offset)| Mapping::new(&fd, offset, size_bytes, access))
            .transpose()?;
        self.maps.insert(
            at,
            Map {
                start: iova,
                last,
                access,
                mapping,
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

    /// Copies guest memory from `iova` on into `data`; the range may span adjacent maps.
    pub(crate) fn read(
        &mut self,
        remote: &mut dyn Remote,
        iova: u64,
        data: &mut [u8],
    ) -> Result<(), AccessError> {
        let mut rest = data;
        let mut at = iova;
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len(), |access| access.read)?;
            let (now, later) = rest.split_at_mut(piece.len());
            match piece {
                Piece::Mapped(slice) => {
                    slice.copy_to(now);
                }
                Piece::Remote(_) => remote
                    .read(at, now)
                    .map_err(|errno| AccessError::Remote { iova: at, errno })?,
            };
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        // What is read next was written before this, if this says so: data before the descriptor that points to it.
        fence(Ordering::Acquire);
        Ok(())
    }

    /// Copies `data` to guest memory at `iova`; the range may span adjacent maps. Two, four or eight bytes at an address
    /// that is a multiple of their number are written at once.
    pub(crate) fn write(
        &mut self,
        remote: &mut dyn Remote,
        iova: u64,
        data: &[u8],
    ) -> Result<(), AccessError> {
        // A guest that sees this also sees what was written before: data before the status of its descriptor.
        fence(Ordering::Release);
        let mut rest = data;
        let mut at = iova;
        while !rest.is_empty() {
            let piece = self.piece(at, rest.len(), |access| access.write)?;
            let (now, later) = rest.split_at(piece.len());
            match piece {
                Piece::Mapped(slice) if !store_at_once(&slice, now) => slice.copy_from(now),
                Piece::Mapped(_) => {}
                Piece::Remote(_) => remote
                    .write(at, now)
                    .map_err(|errno| AccessError::Remote { iova: at, errno })?,
            }
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// As many of `len` bytes from `iova` on as one map has: at least one.
    fn piece(
        &self,
        iova: u64,
        len: usize,
        allows: impl Fn(Access) -> bool,
    ) -> Result<Piece<'_>, AccessError> {
        let map = self.find(iova).ok_or(AccessError::Unmapped { iova })?;
        if !allows(map.access) {
            return Err(AccessError::Denied { iova });
        }
        let left =
            usize::try_from(map.last - iova).map_or(len, |after| len.min(after.saturating_add(1)));
        let Some(mapping) = &map.mapping else {
            return Ok(Piece::Remote(left));
        };
        // It fits: the region was mmapped with the map's size.
        let offset = (iova - map.start) as usize;
        mapping
            .0
            .get_slice(offset, left)
            .map(Piece::Mapped)
            .map_err(|_| AccessError::Unmapped { iova })
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

/// The part of an access that lies in one map.
enum Piece<'a> {
    Mapped(VolatileSlice<'a>),
    /// So many bytes.
    Remote(usize),
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Mapped(slice) => slice.len(),
            Self::Remote(len) => *len,
        }
    }
}

/// Part of a file in our address space. The file's descriptor is not kept: a client may send more maps than a process
/// may have files open.
#[derive(Debug)]
struct Mapping(MmapRegion);

impl Mapping {
    fn new(
        file: &OwnedFd,
        offset_bytes: u64,
        size_bytes: u64,
        access: Access,
    ) -> Result<Self, Errno> {
        let size = usize::try_from(size_bytes).ok().and_then(NonZeroUsize::new);
        let size = size.ok_or(Errno::EINVAL)?;
        let offset = libc::off_t::try_from(offset_bytes).map_err(|_| Errno::EINVAL)?;
        let end = offset_bytes.checked_add(size_bytes).ok_or(Errno::EINVAL)?;
        let stat = fstat(file)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        // Only a file whose size is known can be checked; a pipe, a socket or a device can't be guest memory.
        if kind != SFlag::S_IFREG || !u64::try_from(stat.st_size).is_ok_and(|len| end <= len) {
            return Err(Errno::EINVAL);
        }
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel has room for it, which nothing else knows.
        let start = unsafe { mmap(None, size, access.prot(), flags, file, offset) }?;
        let (prot, flags) = (access.prot().bits(), flags.bits());
        // SAFETY: that mapping, with its size; it stays until the region has gone, in `drop`.
        let region =
            unsafe { MmapRegion::build_raw(start.as_ptr().cast(), size.get(), prot, flags) };
        Ok(Self(region.expect("the kernel maps at page boundaries")))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(start) = NonNull::new(self.0.as_ptr()) {
            // SAFETY: the mapping that `new` made. Slices of it borrow from `self`, so that there are none any more.
            let unmapped = unsafe { munmap(start.cast(), self.0.size()) };
            unmapped.expect("what was mapped can be unmapped");
        }
    }
}

/// Stores an aligned word so that nobody sees half of it. Returns whether it was one.
fn store_at_once(slice: &VolatileSlice<'_>, data: &[u8]) -> bool {
    let relaxed = Ordering::Relaxed;
    match *data {
        [a, b] => slice
            .get_atomic_ref::<AtomicU16>(0)
            .map(|word| word.store(u16::from_ne_bytes([a, b]), relaxed)),
        [a, b, c, d] => slice
            .get_atomic_ref::<AtomicU32>(0)
            .map(|word| word.store(u32::from_ne_bytes([a, b, c, d]), relaxed)),
        [a, b, c, d, e, f, g, h] => slice
            .get_atomic_ref::<AtomicU64>(0)
            .map(|word| word.store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), relaxed)),
        _ => return false,
    }
    .is_ok()
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;
    use crate::link::Link;

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
        memory.write(&mut None::<Link>, 0x2000 - 20, &data).unwrap();
        let mut back = [0; 64];
        memory
            .read(&mut None::<Link>, 0x2000 - 20, &mut back)
            .unwrap();
        assert_eq!(back[..], data[..]);
        assert_eq!(
            memory.read(&mut None::<Link>, 0x3000 - 1, &mut [0; 2]),
            Err(AccessError::Unmapped { iova: 0x3000 })
        );
        assert_eq!(
            memory.read(&mut None::<Link>, 0xfff, &mut [0; 1]),
            Err(AccessError::Unmapped { iova: 0xfff })
        );
        assert_eq!(
            memory.read(&mut None::<Link>, u64::MAX, &mut [0; 4]),
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
        assert!(memory.read(&mut None::<Link>, 0, &mut [0; 8]).is_ok());
        assert_eq!(
            memory.write(&mut None::<Link>, 0, &[0; 8]),
            Err(AccessError::Denied { iova: 0 })
        );
        assert_eq!(
            memory.read(&mut None::<Link>, PAGE, &mut [0; 8]),
            Err(AccessError::Denied { iova: PAGE })
        );
        assert_eq!(
            memory.read(&mut None::<Link>, 2 * PAGE, &mut [0; 8]),
            Err(AccessError::Remote {
                iova: 2 * PAGE,
                errno: Errno::ENOTCONN
            })
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
        assert_eq!(memory.maps.len(), 1);
    }

    #[test]
    fn words_are_written_whatever_their_alignment() {
        let mut memory = Memory::default();
        memory.map(0, PAGE, RW, Some((file(1), 0))).unwrap();
        for len in [1, 2, 3, 4, 7, 8, 9] {
            for at in 0..16 {
                let data: Vec<u8> = (0..len).map(|i| (i + at + 1) as u8).collect();
                memory.write(&mut None::<Link>, at, &data).unwrap();
                let mut back = vec![0; len as usize];
                memory.read(&mut None::<Link>, at, &mut back).unwrap();
                assert_eq!(back, data, "{len} bytes at {at}");
            }
        }
    }

    #[test]
    fn maps_hold_no_descriptors() {
        let mut memory = Memory::default();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(1024), hard).unwrap();
        let file = file(1);
        for iova in (0..2000).map(|index| index * PAGE) {
            let fd = file.try_clone().unwrap();
            memory.map(iova, PAGE, RW, Some((fd, 0))).unwrap();
        }
        memory.write(&mut None::<Link>, 1999 * PAGE, b"x").unwrap();
        assert_eq!(memory.unmap(0, 2000 * PAGE), Ok(2000 * PAGE));
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
            memory.read(&mut None::<Link>, PAGE, &mut [0; 1]),
            Err(AccessError::Unmapped { iova: PAGE })
        );
        memory.map(0, 0u64.wrapping_sub(PAGE), RW, None).unwrap();
        assert_eq!(memory.unmap_all(), 0u64.wrapping_sub(PAGE));
    }
}
