//! Files that the client lends, in our address space.
//!
//! A file is mapped as a whole when the first DMA map of it comes, and the others share that: a guest with an IOMMU makes
//! tens of thousands of maps into one file, and the kernel allows a process no more mappings than that. For the same reason
//! one descriptor is kept per file, so that the maps can be handed to another process.
//!
//! Memory is copied in and out, never borrowed as a slice: the guest writes to it meanwhile.

#![expect(unsafe_code, reason = "guest memory is mmapped, and unmapped again")]

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    sys::{
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap},
        stat::{FileStat, SFlag, fstat},
        statfs::{HUGETLBFS_MAGIC, fstatfs},
    },
    unistd::{SysconfVar, sysconf},
};
use vm_memory::{VolatileMemory, VolatileSlice};

use super::{
    Access,
    fault::{self, Window},
    ones, span,
};

/// Distinct files of one session, each of which costs a descriptor.
const MAX_FILES: usize = 512;
/// Mappings of the process: a third of what the kernel allows, since each becomes two when its file shrinks, and the
/// allocator needs some.
const MAX_MAPPINGS: usize = 21 << 10;
/// Address space that mappings may take: half of what a process has.
const MAX_MAPPED_BYTES: usize = 1 << 46;
/// A longer file is mapped in parts, as the client asks for them.
const MAX_WHOLE_BYTES: u64 = 1 << 40;

/// What is longer is data, of which nobody looks at a part before he is told of the whole: a copy is faster.
const WORDS_BYTES: usize = 512;

static MAPPINGS: AtomicUsize = AtomicUsize::new(0);
static MAPPED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The files behind a session's DMA maps.
#[derive(Debug, Default)]
pub(super) struct Files {
    known: BTreeMap<Key, Known>,
}

/// What makes two descriptors stand for the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    device: u64,
    inode: u64,
    open_mode: i32,
    /// Mapped for writing: what may be opened for it may still be sealed against it.
    writable: bool,
}

#[derive(Debug)]
struct Known {
    descriptor: Weak<OwnedFd>,
    /// The newest mapping of the whole file.
    whole: Weak<Mapping>,
}

/// A piece of a file in our address space.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<libc::c_void>,
    len: usize,
    /// Where in the file it begins.
    file_offset: u64,
    key: Key,
    descriptor: Arc<OwnedFd>,
    window: Window,
}

// SAFETY: the mapping is the process's, not a thread's. Its memory is only ever copied to and from, as something that others
// change meanwhile, which the guest does in any case.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A part of a mapping is gone: the file was shortened. Says from which of the bytes that were to be copied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost(pub(super) usize);

impl Files {
    /// A mapping that has `size_bytes` of the file from `offset_bytes` on, and where in it they begin.
    ///
    /// # Errors
    /// `EINVAL` when this is no regular file, or does not have that range, or the offset is not page aligned; `EACCES` when
    /// the file is not open for what `access` says; `ENOSPC` for too many files; `ENOMEM` for too many or too long
    /// mappings; what mmap says otherwise.
    pub(super) fn map(
        &mut self,
        file: Arc<OwnedFd>,
        offset_bytes: u64,
        size_bytes: u64,
        access: Access,
    ) -> Result<(Arc<Mapping>, usize), Errno> {
        let end = offset_bytes.checked_add(size_bytes).ok_or(Errno::EINVAL)?;
        let stat = fstat(&file)?;
        let file_bytes = file_bytes(&stat)?;
        if size_bytes == 0 || end > file_bytes || !offset_bytes.is_multiple_of(system_page_bytes()?)
        {
            return Err(Errno::EINVAL);
        }
        let open_mode = fcntl(&file, FcntlArg::F_GETFL)? & OFlag::O_ACCMODE.bits();
        let key = Key {
            device: stat.st_dev,
            inode: stat.st_ino,
            open_mode,
            writable: access.write,
        };
        let known = self.known.get(&key);
        if let Some(whole) = known.and_then(|known| known.whole.upgrade())
            && end <= whole.intact_bytes()
        {
            return Ok((whole, offset_bytes as usize));
        }
        let descriptor = match known.and_then(|known| known.descriptor.upgrade()) {
            Some(descriptor) => descriptor,
            None if self.known.len() >= MAX_FILES => return Err(Errno::ENOSPC),
            None => file,
        };
        let whole = (file_bytes <= MAX_WHOLE_BYTES)
            .then(|| Mapping::new(key, &descriptor, 0, file_bytes))
            .transpose();
        // Where the whole file is too much, what was asked for may still fit.
        let mapping = match whole {
            Ok(Some(whole)) => Arc::new(whole),
            Ok(None) | Err(Errno::ENOMEM) => {
                Arc::new(Mapping::new(key, &descriptor, offset_bytes, end)?)
            }
            Err(errno) => return Err(errno),
        };
        let known = self.known.entry(key).or_insert_with(|| Known {
            descriptor: Arc::downgrade(&descriptor),
            whole: Weak::new(),
        });
        if mapping.file_offset == 0 {
            known.whole = Arc::downgrade(&mapping);
        }
        let start = (offset_bytes - mapping.file_offset) as usize;
        Ok((mapping, start))
    }

    /// Takes back what [`Files::map`] gave; the last one closes the file.
    pub(super) fn unmap(&mut self, mapping: Arc<Mapping>) {
        let key = mapping.key;
        drop(mapping);
        if self
            .known
            .get(&key)
            .is_some_and(|known| known.descriptor.strong_count() == 0)
        {
            self.known.remove(&key);
        }
    }
}

impl Mapping {
    /// Maps the file from `offset` to `end`, and as much around it as its page size wants.
    fn new(key: Key, descriptor: &Arc<OwnedFd>, offset: u64, end: u64) -> Result<Self, Errno> {
        fault::install()?;
        let page_bytes = page_bytes(descriptor)?;
        let file_offset = offset - offset % page_bytes;
        let len = end
            .checked_next_multiple_of(page_bytes)
            .and_then(|end| usize::try_from(end - file_offset).ok())
            .and_then(NonZeroUsize::new)
            .ok_or(Errno::EINVAL)?;
        let at = libc::off_t::try_from(file_offset).map_err(|_| Errno::EINVAL)?;
        let count = MAPPINGS.load(Ordering::Relaxed);
        let total = MAPPED_BYTES.load(Ordering::Relaxed);
        if count >= MAX_MAPPINGS || len.get() > MAX_MAPPED_BYTES.saturating_sub(total) {
            return Err(Errno::ENOMEM);
        }
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, key.writable);
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel has room for it, which nothing else knows.
        let start = unsafe { mmap(None, len, protection, flags, descriptor.as_fd(), at) }?;
        // SAFETY: the mapping that was just made. What the guest keeps in memory has no place in our core dumps; that it is
        // kept out of them is not worth an error.
        let _ = unsafe { madvise(start, len.get(), MmapAdvise::MADV_DONTDUMP) };
        MAPPINGS.fetch_add(1, Ordering::Relaxed);
        MAPPED_BYTES.fetch_add(len.get(), Ordering::Relaxed);
        let window = Window::new(
            start.as_ptr().addr(),
            len.get(),
            page_bytes as usize,
            protection.bits(),
        );
        Ok(Self {
            start,
            len: len.get(),
            file_offset,
            key,
            descriptor: Arc::clone(descriptor),
            window,
        })
    }

    /// How many bytes from the start of the mapping can be accessed, as far as anybody has noticed.
    pub(super) fn intact_bytes(&self) -> u64 {
        self.window.intact_bytes() as u64
    }

    /// The file.
    pub(super) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.descriptor
    }

    /// Where in the file the mapping begins.
    pub(super) fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// Copies the mapping from `offset` on into `data`.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), Lost> {
        let len = data.len();
        let slice = self.slice(offset, len)?;
        self.window.touch(|| slice.copy_to(data));
        self.check(offset, len)
    }

    /// Copies `data` into the mapping at `offset`. Nobody sees half of an aligned word, if `data` is that or a few of them.
    pub(super) fn write(&self, offset: usize, data: &[u8]) -> Result<(), Lost> {
        let slice = self.slice(offset, data.len())?;
        self.window.touch(|| {
            if !store_at_once(&slice, data) {
                slice.copy_from(data);
            }
        });
        self.check(offset, data.len())
    }

    /// Stores `byte` at every place that is set, `stride` bytes apart from `offset` on, in ascending order.
    pub(super) fn write_each(
        &self,
        offset: usize,
        stride: usize,
        places: u64,
        byte: u8,
    ) -> Result<(), Lost> {
        let len = span(stride, places);
        let slice = self.slice(offset, len)?;
        self.window.touch(|| {
            for place in ones(places) {
                if let Ok(there) = slice.get_atomic_ref::<AtomicU8>(place * stride) {
                    there.store(byte, Ordering::Relaxed);
                }
            }
        });
        self.check(offset, len)
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), Lost> {
        let intact = self.window.intact_bytes();
        if len <= intact.saturating_sub(offset) {
            Ok(())
        } else {
            Err(Lost(intact.saturating_sub(offset)))
        }
    }

    fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, Lost> {
        self.check(offset, len)?;
        // SAFETY: `check` says that the range lies in the mapping, which stays for as long as `self` is borrowed.
        Ok(unsafe { VolatileSlice::new(self.start.cast::<u8>().add(offset).as_ptr(), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made. Slices of it borrow from `self`, so that there are none any more.
        let unmapped = unsafe { munmap(self.start, self.len) };
        unmapped.expect("what was mapped can be unmapped");
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
        MAPPED_BYTES.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// How long a file is.
///
/// # Errors
/// `EINVAL` when its size is not known: a pipe, a socket or a device can't be guest memory.
pub(super) fn file_bytes(stat: &FileStat) -> Result<u64, Errno> {
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    u64::try_from(stat.st_size)
        .ok()
        .filter(|_| kind == SFlag::S_IFREG)
        .ok_or(Errno::EINVAL)
}

/// What a mapping of the file is a multiple of: huge pages where it has such.
fn page_bytes(file: &OwnedFd) -> Result<u64, Errno> {
    let stat = fstatfs(file)?;
    if stat.filesystem_type() != HUGETLBFS_MAGIC {
        return system_page_bytes();
    }
    u64::try_from(stat.block_size())
        .ok()
        .filter(|bytes| bytes.is_power_of_two())
        .ok_or(Errno::EINVAL)
}

fn system_page_bytes() -> Result<u64, Errno> {
    sysconf(SysconfVar::PAGE_SIZE)?
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or(Errno::EINVAL)
}

/// Stores aligned words so that nobody sees half of one: a word of two or four bytes, or a run of those of eight, in their
/// order. Returns whether it was that.
fn store_at_once(slice: &VolatileSlice<'_>, data: &[u8]) -> bool {
    let relaxed = Ordering::Relaxed;
    match *data {
        [a, b] => slice
            .get_atomic_ref::<AtomicU16>(0)
            .map(|word| word.store(u16::from_ne_bytes([a, b]), relaxed)),
        [a, b, c, d] => slice
            .get_atomic_ref::<AtomicU32>(0)
            .map(|word| word.store(u32::from_ne_bytes([a, b, c, d]), relaxed)),
        _ => return store_words(slice, data),
    }
    .is_ok()
}

fn store_words(slice: &VolatileSlice<'_>, data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<8>();
    let start = slice.ptr_guard_mut().as_ptr().cast::<u64>();
    if !rest.is_empty() || data.len() > WORDS_BYTES || !start.is_aligned() {
        return false;
    }
    for (at, word) in words.iter().enumerate() {
        // SAFETY: the slice has as many bytes as `data`, and its start is aligned. It is the guest's memory, which this
        // process reaches through atomics and volatile copies alone.
        let place = unsafe { AtomicU64::from_ptr(start.add(at)) };
        place.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
    }
    true
}
