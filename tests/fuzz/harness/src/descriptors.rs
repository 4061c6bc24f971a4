//! Descriptors that a client passes: memory, eventfds, and what is neither.

#![expect(unsafe_code, reason = "recvmsg returns descriptors as numbers")]

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::OnceLock,
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        epoll::{Epoll, EpollCreateFlags},
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
        stat::Mode,
    },
    unistd::{ftruncate, pipe},
};

use crate::leaks::NAME;

pub(crate) const PAGE: u64 = 4096;
/// How long a file is that a client lends, as long as it does not shorten it.
pub(crate) const FILE_BYTES: u64 = 16 * PAGE;
/// Files that are lent for reading and writing: the first kinds of descriptors.
pub(crate) const FILES: usize = 3;

/// One of each kind; they stay open, and a client passes duplicates.
pub(crate) struct Pool(Vec<OwnedFd>);

impl Pool {
    pub(crate) fn get() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(Self::new)
    }

    fn new() -> Self {
        let memory = || memfd_create(NAME, MFdFlags::MFD_CLOEXEC).unwrap();
        let mut all: Vec<OwnedFd> = (0..FILES).map(|_| memory()).collect();
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into();
        let (read_end, write_end) = pipe().unwrap();
        let (one_end, other_end) = UnixStream::pair().unwrap();
        let system = |path, flags| open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        all.extend([
            eventfd(),
            eventfd(),
            read_end,
            write_end,
            one_end.into(),
            other_end.into(),
            system("/proc/self/exe", OFlag::O_RDONLY),
            system("/dev/null", OFlag::O_RDWR),
            system("/dev/zero", OFlag::O_RDWR),
            system("/", OFlag::O_RDONLY),
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0,
        ]);
        let pool = Self(all);
        pool.restore();
        pool
    }

    /// The kind that a byte stands for.
    pub(crate) fn pick(&self, kind: u8) -> BorrowedFd<'_> {
        self.0[usize::from(kind) % self.0.len()].as_fd()
    }

    /// Which of the files that are lent it is, if it is one.
    pub(crate) fn file_number(&self, kind: u8) -> Option<usize> {
        Some(usize::from(kind) % self.0.len()).filter(|index| *index < FILES)
    }

    /// Changes the length of a file that is lent.
    pub(crate) fn set_length(&self, file: usize, bytes: u64) {
        ftruncate(&self.0[file], bytes as i64).unwrap();
    }

    /// The files as they were at first.
    pub(crate) fn restore(&self) {
        for file in 0..FILES {
            self.set_length(file, 0);
            self.set_length(file, FILE_BYTES);
        }
    }

    /// A file, to look at what was written into it.
    pub(crate) fn file(&self, file: usize) -> File {
        self.0[file].try_clone().unwrap().into()
    }
}

/// A descriptor that has just been received.
pub(crate) fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just opened it for this process, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
