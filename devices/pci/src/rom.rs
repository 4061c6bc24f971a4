//! The expansion ROM: code that a guest's firmware copies and runs (PCI 3.0, section 6.3), from a file.
//!
//! A ROM is a chain of images, each for one kind of machine, and each with a PCI Data Structure that says which device it
//! drives. Firmware runs an image only for the device that it names, while one file often drives a whole family: where
//! the vendor is right and the device is another, the images are made to name this one, as QEMU does with its own.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::OFlag;

/// The signature of an image, and of the ROM.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// In this unit images say how long they are.
const UNIT_BYTES: usize = 512;
/// Where an image says where its PCI Data Structure is.
const POINTER: usize = 0x18;
/// Code type: PC-AT compatible, the one kind of image with a checksum.
const PC_AT: u8 = 0;
/// A byte of PC-AT images that means nothing to firmware. iPXE keeps it for the checksum.
const CHECKSUM: usize = 6;

/// An expansion ROM, and the register that decodes it.
#[derive(Clone, Debug)]
pub struct Rom {
    content: Arc<[u8]>,
    size_bytes: u32,
    made_for: Option<u16>,
}

/// Why a file is no expansion ROM for the device: the file, the cause and the cure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "each variant's text says what it is, and its fields are what the text names"
)]
pub enum RomError {
    #[error("expansion ROM {}: no such file: {}", path.display(), where_to_look(path))]
    Missing { path: PathBuf },
    #[error("expansion ROM {}: permission denied: let the device's user read it", path.display())]
    Permission { path: PathBuf },
    #[error("expansion ROM {}: not a regular file: name one", path.display())]
    NotAFile { path: PathBuf },
    #[error("read the expansion ROM {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("expansion ROM {}: the file is empty: name one with an image", path.display())]
    Empty { path: PathBuf },
    #[error(
        "expansion ROM {}: more than {} bytes, the most that a client reads: name a smaller one",
        path.display(),
        Rom::BYTES_MAX
    )]
    TooLong { path: PathBuf },
    #[error(
        "expansion ROM {}: no ROM image: it has to begin with the bytes 55 AA and point to a PCI Data Structure",
        path.display()
    )]
    NoImage { path: PathBuf },
    #[error(
        "expansion ROM {}: the image at {at:#x} says that it has {bytes} bytes, and the file ends before: copy the file again",
        path.display()
    )]
    CutShort {
        path: PathBuf,
        at: usize,
        bytes: usize,
    },
    #[error(
        "expansion ROM {}: it is for the device {vendor:04x}:{device:04x}, and this is {for_vendor:04x}:{for_device:04x}: name one for this device",
        path.display()
    )]
    OtherVendor {
        path: PathBuf,
        vendor: u16,
        device: u16,
        for_vendor: u16,
        for_device: u16,
    },
}

fn where_to_look(path: &Path) -> &'static str {
    if path.is_absolute() {
        "create it or name another"
    } else {
        "name it by its absolute path"
    }
}

impl Rom {
    /// The longest ROM. QEMU's client reads all of it in one request, which takes no more.
    pub const BYTES_MAX: usize = 1 << 20;
    /// The smallest size that the register can have (section 6.2.5.2).
    const REGISTER_BYTES_MIN: u32 = 2048;

    /// Reads a ROM for the device with these ids.
    ///
    /// # Errors
    /// [`RomError`].
    pub fn open(path: &Path, vendor: u16, device: u16) -> Result<Self, RomError> {
        let mut content = read(path)?;
        let images = images(&content).map_err(|problem| problem.of(path))?;
        let mine = |image: &&Image| image.vendor == vendor;
        if !images.iter().any(|image| mine(&image)) {
            return Err(RomError::OtherVendor {
                path: path.to_owned(),
                vendor: images[0].vendor,
                device: images[0].device,
                for_vendor: vendor,
                for_device: device,
            });
        }
        let names = |image: &Image| image.device == device || image.lists(&content, device);
        let made_for = if images.iter().filter(mine).any(names) {
            None
        } else {
            images.iter().find(mine).map(|image| image.device)
        };
        for image in images.iter().filter(mine) {
            image.set_device(&mut content, device);
        }
        Ok(Self {
            made_for,
            ..Self::of(&content)
        })
    }

    /// A ROM with this content, whatever it is.
    pub(crate) fn of(content: &[u8]) -> Self {
        let size_bytes = (content.len() as u32).next_power_of_two();
        Self {
            content: content.into(),
            size_bytes: size_bytes.max(Self::REGISTER_BYTES_MIN),
            made_for: None,
        }
    }

    /// The same in a larger chip: the register decodes at least `size_bytes`, a power of two.
    #[must_use]
    pub fn in_at_least(self, size_bytes: u32) -> Self {
        assert!(
            size_bytes.is_power_of_two(),
            "a register decodes a power of two"
        );
        Self {
            size_bytes: self.size_bytes.max(size_bytes),
            ..self
        }
    }

    /// How many bytes the register decodes.
    #[must_use]
    pub fn size_bytes(&self) -> u32 {
        self.size_bytes
    }

    /// The device that the file names, where that is another one of the same vendor's.
    #[must_use]
    pub fn made_for(&self) -> Option<u16> {
        self.made_for
    }

    /// Copies what is at `offset`: behind the file's end all ones, as in an erased chip.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.content.get(offset..))
            .unwrap_or_default();
        let (inside, beyond) = data.split_at_mut(rest.len().min(data.len()));
        inside.copy_from_slice(&rest[..inside.len()]);
        beyond.fill(0xff);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, RomError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => RomError::Missing { path: path.into() },
        io::ErrorKind::PermissionDenied => RomError::Permission { path: path.into() },
        _ => RomError::Read {
            path: path.into(),
            source,
        },
    };
    // A FIFO without a writer would be waited for.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(RomError::NotAFile { path: path.into() });
    }
    let mut content = Vec::new();
    file.take(Rom::BYTES_MAX as u64 + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    match content.len() {
        0 => Err(RomError::Empty { path: path.into() }),
        1..=Rom::BYTES_MAX => Ok(content),
        _ => Err(RomError::TooLong { path: path.into() }),
    }
}

/// One image: where it is, and what its PCI Data Structure says.
#[derive(Debug, PartialEq, Eq)]
struct Image {
    at: usize,
    bytes: usize,
    /// Where the PCI Data Structure is in the ROM.
    data: usize,
    vendor: u16,
    device: u16,
    code: u8,
}

#[derive(Debug, PartialEq, Eq)]
enum Problem {
    NoImage,
    CutShort { at: usize, bytes: usize },
}

impl Problem {
    fn of(self, path: &Path) -> RomError {
        let path = path.to_owned();
        match self {
            Self::NoImage => RomError::NoImage { path },
            Self::CutShort { at, bytes } => RomError::CutShort { path, at, bytes },
        }
    }
}

/// The images of a ROM, at least one: what follows the last is no image.
fn images(rom: &[u8]) -> Result<Vec<Image>, Problem> {
    const LAST: u8 = 0x80;
    let mut images = Vec::new();
    let mut at = 0;
    while let Some(image) = image(rom, at) {
        let indicator = rom[image.data + 0x15];
        at += image.bytes;
        if at > rom.len() {
            let (at, bytes) = (image.at, image.bytes);
            return Err(Problem::CutShort { at, bytes });
        }
        images.push(image);
        if indicator & LAST != 0 {
            break;
        }
    }
    if images.is_empty() {
        return Err(Problem::NoImage);
    }
    Ok(images)
}

fn image(rom: &[u8], at: usize) -> Option<Image> {
    const STRUCTURE_BYTES: usize = 0x18;
    if rom.get(at..at + 2)? != SIGNATURE {
        return None;
    }
    let data = at + usize::from(word(rom, at + POINTER)?);
    let structure = rom.get(data..data + STRUCTURE_BYTES)?;
    let bytes = usize::from(word(structure, 0x10)?) * UNIT_BYTES;
    if &structure[..4] != b"PCIR" || bytes == 0 {
        return None;
    }
    Some(Image {
        at,
        bytes,
        data,
        vendor: word(structure, 4)?,
        device: word(structure, 6)?,
        code: structure[0x14],
    })
}

impl Image {
    /// Whether the image says of itself that it drives that device as well (revision 3 of the structure).
    fn lists(&self, rom: &[u8], device: u16) -> bool {
        let revision = rom[self.data + 0x0c];
        let list = word(rom, self.data + 8).map_or(0, usize::from);
        let ids = (self.data + list..self.at + self.bytes).step_by(2);
        revision >= 3
            && list != 0
            && ids
                .map_while(|at| word(rom, at).filter(|id| *id != 0))
                .any(|id| id == device)
    }

    /// Makes the image name that device. Its bytes still add up to what they did.
    fn set_device(&self, rom: &mut [u8], device: u16) {
        let change: u8 = [self.device, device]
            .map(|id| id.to_le_bytes())
            .map(|[low, high]| low.wrapping_add(high))
            .into_iter()
            .reduce(u8::wrapping_sub)
            .unwrap_or_default();
        rom[self.data + 6..self.data + 8].copy_from_slice(&device.to_le_bytes());
        if self.code == PC_AT {
            let checksum = &mut rom[self.at + CHECKSUM];
            *checksum = checksum.wrapping_add(change);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let word = bytes.get(at..at + 2)?;
    Some(u16::from_le_bytes([word[0], word[1]]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// An image of 1 KiB for that device, whose bytes add up to zero, and another kind of image behind it.
    fn rom(vendor: u16, device: u16, listed: &[u16]) -> Vec<u8> {
        let mut rom = vec![0; 1536];
        for (at, units, code, indicator) in [(0, 2, 0, 0), (1024, 1, 3, 0x80)] {
            let image = &mut rom[at..];
            image[..3].copy_from_slice(&[0x55, 0xaa, units]);
            image[0x18] = 0x1c;
            image[0x1c..0x20].copy_from_slice(b"PCIR");
            image[0x20..0x22].copy_from_slice(&vendor.to_le_bytes());
            image[0x22..0x24].copy_from_slice(&device.to_le_bytes());
            image[0x26] = 0x1c;
            image[0x28] = 3;
            image[0x2c] = units;
            image[0x30] = code;
            image[0x31] = indicator;
        }
        if !listed.is_empty() {
            rom[0x24] = 0x44;
            for (at, id) in (0x60..).step_by(2).zip(listed) {
                rom[at..at + 2].copy_from_slice(&id.to_le_bytes());
            }
        }
        let sum = rom[..1024].iter().copied().fold(0, u8::wrapping_add);
        rom[6] = sum.wrapping_neg();
        rom
    }

    fn file(content: &[u8]) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("card.rom");
        std::fs::write(&path, content).unwrap();
        (directory, path)
    }

    fn open(content: &[u8]) -> Result<Rom, RomError> {
        Rom::open(&file(content).1, 0x8086, 0x100e)
    }

    fn all(rom: &Rom) -> Vec<u8> {
        let mut content = vec![0; rom.size_bytes() as usize];
        rom.read(0, &mut content);
        content
    }

    #[test]
    fn a_rom_reads_as_its_file_and_ones_behind_it() {
        let content = rom(0x8086, 0x100e, &[]);
        let (_directory, path) = file(&content);
        let rom = Rom::open(&path, 0x8086, 0x100e).unwrap();
        assert_eq!((rom.size_bytes(), rom.made_for()), (2048, None));
        assert_eq!(all(&rom)[..1536], content);
        assert!(all(&rom)[1536..].iter().all(|byte| *byte == 0xff));
        for offset in [1535, 1536, 2047, u64::MAX] {
            let mut bytes = [7; 3];
            rom.read(offset, &mut bytes);
            assert_eq!(bytes[1..], [0xff, 0xff]);
        }
        let rom = rom.in_at_least(0x1_0000);
        assert_eq!(rom.size_bytes(), 0x1_0000);
        assert_eq!(rom.in_at_least(2048).size_bytes(), 0x1_0000);
    }

    #[test]
    fn an_image_for_another_device_of_the_vendor_is_made_to_name_this_one() {
        for listed in [&[][..], &[0x1004, 0x100e]] {
            let other = super::tests::rom(0x8086, 0x10d3, listed);
            let (_directory, path) = file(&other);
            let rom = Rom::open(&path, 0x8086, 0x100e).unwrap();
            assert_eq!(rom.made_for(), listed.is_empty().then_some(0x10d3));
            let content = all(&rom);
            for at in [0x22, 1024 + 0x22] {
                assert_eq!(content[at..at + 2], [0x0e, 0x10]);
            }
            let sum = content[..1024].iter().copied().fold(0, u8::wrapping_add);
            assert_eq!(sum, 0);
            assert_eq!(content[1024 + 6], 0, "this kind has no checksum");
        }
    }

    #[test]
    fn what_is_no_rom_for_the_device_is_refused_with_the_cause_and_the_cure() {
        let good = rom(0x8086, 0x100e, &[]);
        let mut unsigned = good.clone();
        unsigned[1] = 0;
        let mut no_structure = good.clone();
        no_structure[0x1c] = b'Q';
        let mut outside = good.clone();
        outside[0x19] = 0xff;
        for (content, words) in [
            (&[][..], "the file is empty: name"),
            (&[0x55], "no ROM image: it has to begin"),
            (&unsigned, "no ROM image: it has to begin"),
            (&no_structure, "no ROM image: it has to begin"),
            (&outside, "no ROM image: it has to begin"),
            (
                &good[..1023],
                "the image at 0x0 says that it has 1024 bytes",
            ),
            (
                &good[..1535],
                "the image at 0x400 says that it has 512 bytes",
            ),
            (
                &rom(0x10ec, 0x8139, &[]),
                "10ec:8139, and this is 8086:100e",
            ),
            (&vec![0; (1 << 20) + 1], "more than 1048576 bytes"),
        ] {
            let text = open(content).unwrap_err().to_string();
            assert!(text.contains("card.rom") && text.contains(words), "{text}");
        }
        let mut longest = good;
        longest.resize(1 << 20, 0);
        assert_eq!(open(&longest).unwrap().size_bytes(), 1 << 20);
    }

    #[test]
    fn a_file_that_is_none_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let paths = [fifo, directory.path().into(), directory.path().join("none")];
        std::thread::spawn(move || {
            for path in paths {
                let error = Rom::open(&path, 0x8086, 0x100e).unwrap_err();
                send.send(error.to_string()).unwrap();
            }
        });
        for words in [
            "fifo: not a regular file: name one",
            "not a regular file: name one",
            "none: no such file: create it or name another",
        ] {
            let text = receive.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(text.contains(words), "{text}");
        }
        let error = Rom::open(Path::new("no/such.rom"), 0, 0).unwrap_err();
        assert!(error.to_string().ends_with("name it by its absolute path"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(changes in prop::collection::vec((0usize..0x70, any::<u8>()), 0..8), listed in any::<bool>()) {
            let mut content = rom(0x8086, 0x10d3, if listed { &[0x100e] } else { &[] });
            for (at, byte) in changes {
                content[at] = byte;
            }
            if let Ok(rom) = open(&content) {
                prop_assert_eq!(rom.size_bytes(), 2048);
                prop_assert_eq!(&all(&rom)[0x80..1024], &content[0x80..1024]);
            }
        }
    }
}
