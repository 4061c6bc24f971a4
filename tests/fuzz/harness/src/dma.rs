//! DMA maps and accesses to memory, beside a model that has a list of maps and each file as an array.

use std::{ops::RangeInclusive, os::unix::fs::FileExt};

use arbitrary::{Arbitrary, Unstructured};
use vfio_user::{Access, AccessError, Lent};

use crate::{
    descriptors::{FILE_BYTES, FILES, PAGE, Pool},
    leaks::Before,
};

/// More steps than this are not taken.
const MAX_STEPS: usize = 512;

/// Plays what the bytes say, as [`Arbitrary`] reads them.
pub fn dma(data: &[u8]) {
    let before = Before::new(|| _ = Pool::get());
    if let Ok(steps) = <Vec<Step>>::arbitrary(&mut Unstructured::new(data)) {
        let mut lent = Lent::default();
        let mut model = Model::default();
        for step in steps.into_iter().take(MAX_STEPS) {
            model.play(&mut lent, &step);
        }
        model.check_files();
    }
    Pool::get().restore();
    before.check();
}

#[derive(Arbitrary, Debug)]
enum Step {
    Map {
        at: Place,
        size: Size,
        read: bool,
        write: bool,
        /// The kind of descriptor, and where in it.
        file: Option<(u8, u8, bool)>,
    },
    Unmap {
        at: Place,
        size: Size,
    },
    UnmapAll,
    Read {
        at: Place,
        size: u16,
    },
    Write {
        at: Place,
        size: u16,
        seed: u8,
    },
    SetLength {
        file: u8,
        sixteenths: u8,
    },
}

/// Addresses are few, so that maps touch and overlap.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Page(u8),
    NearPage(u8, i8),
    Last(u8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Pages(u8),
    NearPages(u8, i8),
    ToTheEnd,
    Any(u64),
}

impl Place {
    fn address(self) -> u64 {
        match self {
            Self::Page(page) => u64::from(page % 32) * PAGE,
            Self::NearPage(page, more) => {
                (u64::from(page % 32) * PAGE).wrapping_add_signed(more.into())
            }
            Self::Last(pages) => 0_u64.wrapping_sub(u64::from(pages % 4) * PAGE),
            Self::Any(address) => address,
        }
    }
}

impl Size {
    fn bytes(self, at: u64) -> u64 {
        match self {
            Self::Pages(pages) => u64::from(pages % 20) * PAGE,
            Self::NearPages(pages, more) => {
                (u64::from(pages % 20) * PAGE).wrapping_add_signed(more.into())
            }
            Self::ToTheEnd => 0_u64.wrapping_sub(at),
            Self::Any(bytes) => bytes,
        }
    }
}

struct Map {
    range: RangeInclusive<u64>,
    access: Access,
    backing: Backing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Backing {
    /// A file that is lent, and where in it the map begins.
    File { file: usize, offset: u64 },
    /// Something else, of which it is not known what it has.
    Other,
    /// The client, who is not there.
    Remote,
}

struct File {
    bytes: Vec<u8>,
    length: u64,
    /// It was shorter once: then maps of it may have lost something.
    was_cut: bool,
}

struct Model {
    maps: Vec<Map>,
    files: [File; FILES],
}

impl Default for Model {
    fn default() -> Self {
        Self {
            maps: Vec::new(),
            files: std::array::from_fn(|_| File {
                bytes: vec![0; FILE_BYTES as usize],
                length: FILE_BYTES,
                was_cut: false,
            }),
        }
    }
}

fn range(at: u64, size: u64) -> Option<RangeInclusive<u64>> {
    let last = at.checked_add(size.checked_sub(1)?)?;
    Some(at..=last)
}

fn touches(one: &RangeInclusive<u64>, other: &RangeInclusive<u64>) -> bool {
    one.start() <= other.end() && other.start() <= one.end()
}

impl Model {
    fn play(&mut self, lent: &mut Lent, step: &Step) {
        match *step {
            Step::Map {
                at,
                size,
                read,
                write,
                file,
            } => {
                let at = at.address();
                self.map(lent, at, size.bytes(at), Access { read, write }, file);
            }
            Step::Unmap { at, size } => self.unmap(lent, at.address(), size.bytes(at.address())),
            Step::UnmapAll => {
                let sum = self.maps.drain(..).fold(0, |sum: u64, map| {
                    sum.wrapping_add(map.range.end() - map.range.start() + 1)
                });
                assert_eq!(lent.memory_mut().unmap_all(), sum);
            }
            Step::Read { at, size } => self.read(lent, at.address(), size.into()),
            Step::Write { at, size, seed } => self.write(lent, at.address(), size.into(), seed),
            Step::SetLength { file, sixteenths } => {
                let number = usize::from(file) % FILES;
                let length = FILE_BYTES / 16 * u64::from(sixteenths % 17);
                Pool::get().set_length(number, length);
                let file = &mut self.files[number];
                file.was_cut |= length < FILE_BYTES;
                file.length = length;
            }
        }
    }

    fn map(
        &mut self,
        lent: &mut Lent,
        at: u64,
        size: u64,
        access: Access,
        file: Option<(u8, u8, bool)>,
    ) {
        let pool = Pool::get();
        let file = file.map(|(kind, page, is_odd)| {
            let offset = u64::from(page % 20) * PAGE + u64::from(is_odd);
            (kind, pool.pick(kind), offset)
        });
        let passed = file.map(|(_, fd, offset)| (fd.try_clone_to_owned().unwrap(), offset));
        let result = lent.memory_mut().map(at, size, access, passed);
        let range = range(at, size).filter(|_| access.read || access.write);
        let free = range.filter(|range| !self.maps.iter().any(|map| touches(&map.range, range)));
        let Some(range) = free else {
            assert!(result.is_err(), "{at:#x}, {size:#x}");
            return;
        };
        let backing = match file {
            None => Backing::Remote,
            Some((kind, _, offset)) => match pool.file_number(kind) {
                Some(file) => {
                    let fits = offset
                        .checked_add(size)
                        .is_some_and(|end| end <= self.files[file].length);
                    if !fits || !offset.is_multiple_of(PAGE) {
                        assert!(result.is_err(), "{at:#x}, {size:#x}, file at {offset:#x}");
                        return;
                    }
                    Backing::File { file, offset }
                }
                None if result.is_err() => return,
                None => {
                    assert!(!access.write, "{} was mapped to be written", kind);
                    Backing::Other
                }
            },
        };
        assert_eq!(result, Ok(()), "{at:#x}, {size:#x}");
        self.maps.push(Map {
            range,
            access,
            backing,
        });
    }

    fn unmap(&mut self, lent: &mut Lent, at: u64, size: u64) {
        let result = lent.memory_mut().unmap(at, size);
        let Some(range) = range(at, size) else {
            assert!(result.is_err());
            return;
        };
        let is_inside =
            |map: &Map| range.contains(map.range.start()) && range.contains(map.range.end());
        let mut touched = self
            .maps
            .iter()
            .filter(|map| touches(&map.range, &range))
            .peekable();
        if touched.peek().is_none() || !touched.all(is_inside) {
            assert!(result.is_err(), "{range:#x?}");
            return;
        }
        let mut sum: u64 = 0;
        self.maps.retain(|map| {
            let goes = is_inside(map);
            if goes {
                sum = sum.wrapping_add(map.range.end() - map.range.start() + 1);
            }
            !goes
        });
        assert_eq!(result, Ok(sum));
    }

    fn read(&mut self, lent: &mut Lent, at: u64, size: usize) {
        let mut data = vec![0; size];
        let result = lent.read(at, &mut data);
        self.walk(
            at,
            size,
            result,
            |access| access.read,
            |files, file, offset, part| {
                let known = &files[file].bytes[offset..][..part.len()];
                assert!(data[part] == *known, "read at {at:#x}");
            },
        );
    }

    fn write(&mut self, lent: &mut Lent, at: u64, size: usize, seed: u8) {
        let data: Vec<u8> = (0..size)
            .map(|index| seed.wrapping_add(index as u8))
            .collect();
        let result = lent.write(at, &data);
        self.walk(
            at,
            size,
            result,
            |access| access.write,
            |files, file, offset, part| {
                files[file].bytes[offset..][..part.len()].copy_from_slice(&data[part]);
            },
        );
    }

    /// Goes through the pieces of an access, and checks that it came as far as it had to.
    fn walk(
        &mut self,
        at: u64,
        size: usize,
        result: Result<(), AccessError>,
        allows: impl Fn(&Access) -> bool,
        mut piece: impl FnMut(&mut [File; FILES], usize, usize, std::ops::Range<usize>),
    ) {
        let mut done = 0;
        while done < size {
            let here = at.wrapping_add(done as u64);
            let Some(map) = self.maps.iter().find(|map| map.range.contains(&here)) else {
                assert_eq!(result, Err(AccessError::Unmapped { iova: here }));
                return;
            };
            if !allows(&map.access) {
                assert_eq!(result, Err(AccessError::Denied { iova: here }));
                return;
            }
            let after = usize::try_from(map.range.end() - here).unwrap_or(usize::MAX);
            let part = done..size.min(done.saturating_add(after).saturating_add(1));
            match map.backing {
                Backing::Remote => {
                    let is_remote =
                        matches!(result, Err(AccessError::Remote { iova, .. }) if iova == here);
                    assert!(is_remote, "{here:#x}: {result:?}");
                    return;
                }
                Backing::File { file, .. } if self.files[file].was_cut => {
                    if let Err(AccessError::Lost { iova }) = result
                        && iova.wrapping_sub(here) < part.len() as u64
                    {
                        return;
                    }
                }
                Backing::File { file, offset } => {
                    let offset = offset + (here - map.range.start());
                    piece(&mut self.files, file, offset as usize, part.clone());
                }
                Backing::Other => {}
            }
            done = part.end;
        }
        assert_eq!(result, Ok(()), "{size} bytes at {at:#x}");
    }

    /// What was written is in the files, and nothing else is.
    fn check_files(&self) {
        for (number, file) in self.files.iter().enumerate() {
            if !file.was_cut {
                let mut bytes = vec![0; FILE_BYTES as usize];
                Pool::get()
                    .file(number)
                    .read_exact_at(&mut bytes, 0)
                    .unwrap();
                assert!(bytes == file.bytes, "file {number}");
            }
        }
    }
}
