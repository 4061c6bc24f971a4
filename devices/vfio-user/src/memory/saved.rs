//! DMA maps taken apart into values and descriptors, and put together again, maybe in another process.

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc};

use nix::{errno::Errno, sys::stat::fstat};
use serde::{Deserialize, Serialize};

use super::{
    Access, Backing, Memory,
    dirty::{DirtyLog, SavedLog},
    mapping::file_bytes,
};

/// A session's guest memory. The descriptors that belong to it travel beside it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMemory {
    file_count: usize,
    maps: Vec<SavedMap>,
    dirty: Option<SavedLog>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedMap {
    iova: u64,
    size_bytes: u64,
    read: bool,
    write: bool,
    backing: SavedBacking,
}

#[derive(Debug, Serialize, Deserialize)]
enum SavedBacking {
    Remote,
    File { file: usize, offset_bytes: u64 },
    Lost,
}

impl Memory {
    /// Takes the maps and the log of writes apart. Appends to `fds` what [`Memory::restore`] wants.
    ///
    /// # Errors
    /// When a descriptor can't be duplicated.
    pub fn save(&self, fds: &mut Vec<OwnedFd>) -> std::io::Result<SavedMemory> {
        let mut files = HashMap::new();
        let maps = self.maps.iter().map(|map| {
            let backing = match &map.backing {
                Backing::Remote => SavedBacking::Remote,
                Backing::Lost => SavedBacking::Lost,
                Backing::File { mapping, offset } => {
                    let offset_bytes = mapping.file_offset() + *offset as u64;
                    let count = files.len();
                    let file = *files
                        .entry(Arc::as_ptr(mapping.descriptor()))
                        .or_insert(count);
                    if file == count {
                        fds.push(mapping.descriptor().try_clone()?);
                    }
                    if *offset as u64 + map.size_bytes() > mapping.intact_bytes() {
                        SavedBacking::Lost
                    } else {
                        SavedBacking::File { file, offset_bytes }
                    }
                }
            };
            Ok(SavedMap {
                iova: map.start,
                size_bytes: map.size_bytes(),
                read: map.access.read,
                write: map.access.write,
                backing,
            })
        });
        Ok(SavedMemory {
            maps: maps.collect::<std::io::Result<_>>()?,
            file_count: files.len(),
            dirty: self.dirty.as_ref().map(DirtyLog::save),
        })
    }

    /// Puts together what [`Memory::save`] took apart, with the descriptors that it gave, in their order. Both may come from
    /// anywhere: they are checked as what a client sends. A file that is shorter than its map has been lost meanwhile.
    ///
    /// # Errors
    /// As for [`Memory::map`]; `EINVAL` when a descriptor is missing, or for a log that can't be.
    pub fn restore(
        saved: SavedMemory,
        fds: &mut impl Iterator<Item = OwnedFd>,
    ) -> Result<Self, Errno> {
        let files: Vec<_> = fds.take(saved.file_count).map(Arc::new).collect();
        if files.len() < saved.file_count {
            return Err(Errno::EINVAL);
        }
        let mut memory = Self::default();
        for map in saved.maps {
            let access = Access {
                read: map.read,
                write: map.write,
            };
            memory.add(map.iova, map.size_bytes, access, |known| {
                let (file, offset_bytes) = match map.backing {
                    SavedBacking::Remote => return Ok(Backing::Remote),
                    SavedBacking::Lost => return Ok(Backing::Lost),
                    SavedBacking::File { file, offset_bytes } => (file, offset_bytes),
                };
                let file = files.get(file).ok_or(Errno::EINVAL)?;
                let end = offset_bytes
                    .checked_add(map.size_bytes)
                    .ok_or(Errno::EINVAL)?;
                if file_bytes(&fstat(file)?)? < end {
                    return Ok(Backing::Lost);
                }
                let file = Arc::clone(file);
                let (mapping, offset) = known.map(file, offset_bytes, map.size_bytes, access)?;
                Ok(Backing::File { mapping, offset })
            })?;
        }
        memory.dirty = saved.dirty.map(DirtyLog::restore).transpose()?;
        Ok(memory)
    }
}
