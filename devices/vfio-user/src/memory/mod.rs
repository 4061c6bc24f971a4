//! Guest memory: the client's DMA maps, and access to them by IO virtual address.
//!
//! A map that came with a file descriptor is mmapped and reached by copying; one without (QEMU sends such for ROM) is reached
//! by asking the client: [`Remote`]. Whoever accesses memory can't tell the difference.
//!
//! The file behind a map may shrink at any time. What is gone then is [`AccessError::Lost`], also if the file grows again, until
//! the client has unmapped it.

mod dirty;
mod fault;
mod mapping;
mod maps;
mod saved;
#[cfg(test)]
mod tests;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use nix::errno::Errno;

use dirty::DirtyLog;
pub(crate) use dirty::{MAX_BITMAP_BYTES, bitmap_bytes};
use mapping::{Files, Lost, Mapping};
use maps::Maps;
pub use saved::SavedMemory;

use crate::message::LoggingRange;

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
    /// The client has shortened the file behind the map.
    #[error("the file behind the DMA map no longer has what was at {iova:#x}")]
    Lost {
        /// The first address that is gone.
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
    maps: Maps,
    files: Files,
    /// Writes are logged.
    dirty: Option<DirtyLog>,
}

#[derive(Debug)]
struct Map {
    start: u64,
    /// Inclusive, so that a map may end with the address space.
    last: u64,
    access: Access,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    /// The client gave no descriptor.
    Remote,
    /// The file no longer had it when the map was put together again.
    Lost,
    File {
        mapping: Arc<Mapping>,
        /// Where in the mapping the map begins.
        offset: usize,
    },
}

impl Map {
    fn holds(&self, iova: u64) -> bool {
        self.start <= iova && iova <= self.last
    }

    /// It fits: a client says how long a map is by such a number.
    fn size_bytes(&self) -> u64 {
        self.last - self.start + 1
    }

    /// As many of `len` bytes from `iova` on as this map has.
    fn part(&self, iova: u64, len: usize) -> usize {
        usize::try_from(self.last - iova).map_or(len, |after| len.min(after.saturating_add(1)))
    }
}

impl Memory {
    /// More maps than this are refused; what the server announces as `max_dma_maps`.
    pub const MAX_MAPS: usize = 65_535;

    /// How many maps there are.
    pub(crate) fn map_count(&self) -> usize {
        self.maps.len()
    }

    /// Adds a map of `size_bytes` at `iova`, backed by `file` from `offset_bytes` on.
    ///
    /// # Errors
    /// `EINVAL` for an empty or wrapping range, no access at all, an offset that is not page aligned, or a range past the
    /// end of the file; `EEXIST` when it overlaps a map; `EACCES` when the descriptor is not open for such access; `ENOSPC`
    /// above [`Memory::MAX_MAPS`] or for too many different files; `ENOMEM` when they are too long; what mmap says
    /// otherwise.
    pub fn map(
        &mut self,
        iova: u64,
        size_bytes: u64,
        access: Access,
        file: Option<(OwnedFd, u64)>,
    ) -> Result<(), Errno> {
        self.add(iova, size_bytes, access, |files| match file {
            None => Ok(Backing::Remote),
            Some((file, offset_bytes)) => {
                let (mapping, offset) =
                    files.map(Arc::new(file), offset_bytes, size_bytes, access)?;
                Ok(Backing::File { mapping, offset })
            }
        })
    }

    /// Adds a map with the backing that is made once the rest has been checked.
    fn add(
        &mut self,
        iova: u64,
        size_bytes: u64,
        access: Access,
        backing: impl FnOnce(&mut Files) -> Result<Backing, Errno>,
    ) -> Result<(), Errno> {
        let last = last(iova, size_bytes)?;
        if !access.read && !access.write {
            return Err(Errno::EINVAL);
        }
        if self.maps.len() >= Self::MAX_MAPS {
            return Err(Errno::ENOSPC);
        }
        if self.maps.overlaps(iova, last) {
            return Err(Errno::EEXIST);
        }
        let backing = backing(&mut self.files)?;
        self.maps.insert(Map {
            start: iova,
            last,
            access,
            backing,
        });
        Ok(())
    }

    /// Removes every map that lies in the range, and returns the sum of their sizes.
    ///
    /// The specification knows only ranges that are exactly one map's, which is what clients send for RAM. QEMU has a range for
    /// several maps when a guest's IOMMU gets other tables, and VFIO in the kernel allows that, so that it is allowed here.
    /// Part of a map can't go.
    ///
    /// # Errors
    /// `EINVAL` for an empty or wrapping range or one that would cut a map in two; `ENOENT` when no map lies in it.
    pub fn unmap(&mut self, iova: u64, size_bytes: u64) -> Result<u64, Errno> {
        let files = &mut self.files;
        let maps = self.maps.remove(iova, last(iova, size_bytes)?)?;
        Ok(maps.fold(0, |sum, map| sum + drop_map(files, map)))
    }

    /// Removes every map, and returns the sum of their sizes.
    pub fn unmap_all(&mut self) -> u64 {
        let files = &mut self.files;
        let maps = self.maps.remove_all();
        maps.fold(0, |sum, map| sum.wrapping_add(drop_map(files, map)))
    }

    /// Begins to log writes to the ranges, or all writes if there are none, and returns the size of the pages that are told
    /// apart: the one that was asked for, if it is a power of two from 4 KiB to 1 GiB.
    ///
    /// # Errors
    /// `EINVAL` when writes are being logged, or for a range that is empty or wraps; `E2BIG` for too many ranges.
    pub(crate) fn start_dirty_log(
        &mut self,
        page_bytes: u64,
        ranges: &[LoggingRange],
    ) -> Result<u64, Errno> {
        if self.dirty.is_some() {
            return Err(Errno::EINVAL);
        }
        let dirty = self.dirty.insert(DirtyLog::new(page_bytes, ranges)?);
        Ok(dirty.page_bytes())
    }

    /// Ends logging, and forgets what was not reported.
    pub(crate) fn stop_dirty_log(&mut self) {
        self.dirty = None;
    }

    /// Whether writes are being logged.
    pub(crate) fn has_dirty_log(&self) -> bool {
        self.dirty.is_some()
    }

    /// Appends a bit for each `page_bytes` from `iova` on, in words of 64 bits: whether the device wrote anything there since
    /// it was last reported.
    ///
    /// # Errors
    /// `EINVAL` when nothing is being logged, for an empty or wrapping range, or for a page size that is no power of two;
    /// `E2BIG` when the bits would not fit into a message: ask for less at once.
    pub(crate) fn report_dirty(
        &mut self,
        iova: u64,
        size_bytes: u64,
        page_bytes: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let dirty = self.dirty.as_mut().ok_or(Errno::EINVAL)?;
        dirty.report(iova, size_bytes, page_bytes, out)
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
            let map = self
                .maps
                .find(at)
                .ok_or(AccessError::Unmapped { iova: at })?;
            if !map.access.read {
                return Err(AccessError::Denied { iova: at });
            }
            let (now, later) = rest.split_at_mut(map.part(at, rest.len()));
            match &map.backing {
                Backing::File { mapping, offset } => mapping
                    .read(offset + (at - map.start) as usize, now)
                    .map_err(|lost| lost.at(at))?,
                Backing::Lost => return Err(AccessError::Lost { iova: at }),
                Backing::Remote => remote
                    .read(at, now)
                    .map_err(|errno| AccessError::Remote { iova: at, errno })?,
            }
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        // What is read next was written before this, if this says so: data before the descriptor that points to it.
        fence(Ordering::Acquire);
        Ok(())
    }

    /// Writes `byte` at `iova + place * stride` for every place that is set, in ascending order.
    pub(crate) fn write_each(
        &mut self,
        remote: &mut dyn Remote,
        iova: u64,
        stride: usize,
        places: u64,
        byte: u8,
    ) -> Result<(), AccessError> {
        let len = span(stride, places);
        if let Some(map) = self.maps.find(iova)
            && map.access.write
            && map.part(iova, len) == len
            && let Backing::File { mapping, offset } = &map.backing
        {
            // As in `write`.
            fence(Ordering::Release);
            let offset = offset + (iova - map.start) as usize;
            let written = mapping.write_each(offset, stride, places, byte);
            if let Some(dirty) = self.dirty.as_mut().filter(|_| len > 0) {
                dirty.mark(iova, len);
            }
            return written.map_err(|lost| lost.at(iova));
        }
        for place in ones(places) {
            let at = iova.wrapping_add((place * stride) as u64);
            self.write(remote, at, &[byte])?;
        }
        Ok(())
    }

    /// Copies `data` to guest memory at `iova`; the range may span adjacent maps. Two, four or eight bytes at an address
    /// that is a multiple of their number are written at once, and up to 512 bytes that are such words of eight word by
    /// word, in their order: a guest that polls descriptors sees none that is half written.
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
            let map = self
                .maps
                .find(at)
                .ok_or(AccessError::Unmapped { iova: at })?;
            if !map.access.write {
                return Err(AccessError::Denied { iova: at });
            }
            let (now, later) = rest.split_at(map.part(at, rest.len()));
            let written = match &map.backing {
                Backing::File { mapping, offset } => mapping
                    .write(offset + (at - map.start) as usize, now)
                    .map_err(|lost| lost.at(at)),
                Backing::Lost => Err(AccessError::Lost { iova: at }),
                Backing::Remote => remote
                    .write(at, now)
                    .map_err(|errno| AccessError::Remote { iova: at, errno }),
            };
            // Some of it may have been written, even if not all was.
            if let Some(dirty) = &mut self.dirty {
                dirty.mark(at, now.len());
            }
            written?;
            at = at.wrapping_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }
}

/// The positions of the bits that are set.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        lowest
    })
}

/// How many bytes there are up to the last place that is set, and with it.
fn span(stride: usize, places: u64) -> usize {
    let last = places.checked_ilog2();
    last.map_or(0, |last| last as usize * stride + 1)
}

impl Lost {
    /// For bytes that were to be copied from or to `iova`.
    fn at(self, iova: u64) -> AccessError {
        AccessError::Lost {
            iova: iova.wrapping_add(self.0 as u64),
        }
    }
}

/// The last address of a range.
fn last(iova: u64, size_bytes: u64) -> Result<u64, Errno> {
    size_bytes
        .checked_sub(1)
        .and_then(|more| iova.checked_add(more))
        .ok_or(Errno::EINVAL)
}

/// Gives back what a map has, and says how long it was.
fn drop_map(files: &mut Files, map: Map) -> u64 {
    let size_bytes = map.size_bytes();
    if let Backing::File { mapping, .. } = map.backing {
        files.unmap(mapping);
    }
    size_bytes
}
