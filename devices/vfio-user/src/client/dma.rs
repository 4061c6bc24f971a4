//! What of the client's memory the server may use.

use std::os::fd::BorrowedFd;

use zerocopy::{FromBytes, IntoBytes};

use super::{
    Client, Error, MAX_TRANSFER_BYTES, Memory,
    connection::Request,
    migration::{bitmap, bitmap_bytes},
};
use crate::{
    Access,
    message::{Command, DirtyBitmap, DmaMap, DmaUnmap},
};

impl<M: Memory> Client<M> {
    /// DMA_MAP: lets the server use `size_bytes` from `address` on, as a map of `file` from an offset on, or, without a
    /// file, by messages that the client answers from its [`Memory`].
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_map(
        &mut self,
        address: u64,
        size_bytes: u64,
        access: Access,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), Error> {
        let mut flags = 0;
        if access.read {
            flags |= DmaMap::READABLE;
        }
        if access.write {
            flags |= DmaMap::WRITEABLE;
        }
        let map = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags,
            offset: file.map_or(0, |(_, offset)| offset),
            address,
            size_bytes,
        };
        self.call(Request {
            parts: [map.as_bytes(), &[], &[]],
            fds: file.map(|(fd, _)| fd).as_slice(),
            ..Request::new(Command::DMA_MAP)
        })
        .map(drop)
    }

    /// DMA_UNMAP: takes one map back.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_unmap(&mut self, address: u64, size_bytes: u64) -> Result<(), Error> {
        self.unmap(0, address, size_bytes).map(drop)
    }

    /// DMA_UNMAP with VFIO's flag ALL: takes every map back; returns how many bytes that were, where the server says.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_unmap_all(&mut self) -> Result<u64, Error> {
        self.unmap(DmaUnmap::ALL, 0, 0)
    }

    /// DMA_UNMAP with VFIO's flag GET_DIRTY_BITMAP: takes one map back, and returns which of its pages the device wrote.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_unmap_dirty(
        &mut self,
        address: u64,
        size_bytes: u64,
        page_size_bytes: u64,
    ) -> Result<Vec<u64>, Error> {
        const HEAD: usize = size_of::<DmaUnmap>() + size_of::<DirtyBitmap>();
        let bytes = bitmap_bytes(size_bytes, page_size_bytes)?;
        let unmap = DmaUnmap {
            argsz: (HEAD + bytes) as u32,
            flags: DmaUnmap::GET_DIRTY_BITMAP,
            address,
            size_bytes,
        };
        let wanted = DirtyBitmap {
            page_size_bytes,
            size_bytes: bytes as u64,
        };
        let reply = self.call(Request {
            parts: [unmap.as_bytes(), wanted.as_bytes(), &[]],
            max_reply_bytes: HEAD + MAX_TRANSFER_BYTES,
            ..Request::new(Command::DMA_UNMAP)
        })?;
        bitmap(reply.payload.get(HEAD..), bytes)
    }

    fn unmap(&mut self, flags: u32, address: u64, size_bytes: u64) -> Result<u64, Error> {
        let unmap = DmaUnmap {
            argsz: size_of::<DmaUnmap>() as u32,
            flags,
            address,
            size_bytes,
        };
        let reply = self.call(Request {
            parts: [unmap.as_bytes(), &[], &[]],
            max_reply_bytes: size_of::<DmaUnmap>(),
            ..Request::new(Command::DMA_UNMAP)
        })?;
        let (done, _) = DmaUnmap::read_from_prefix(&reply.payload)
            .map_err(|_| Error::Protocol("a reply is too short"))?;
        Ok(done.size_bytes)
    }
}
