//! Writes an initramfs: a cpio archive of the kind "newc", uncompressed, the same bytes for the same content.

/// An archive under construction.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

impl Archive {
    /// Adds a directory; its parent comes first.
    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file, executable for everybody: a guest of one user has no use for finer modes.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, content);
    }

    /// Adds a symbolic link at `path` that points to `target`.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK, target.as_bytes());
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// A header of thirteen 8-digit hexadecimal fields, the name with its NUL, the content; the last two each padded
    /// to a multiple of four. Times are zero and numbers count up, so that nothing depends on the day.
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        let (user, group, modified) = (0, 0, 0);
        let device = 0;
        let checksum = 0;
        let fields = [
            self.entries,
            mode,
            user,
            group,
            links,
            modified,
            length(content.len()),
            device,
            device,
            device,
            device,
            length(path.len() + 1),
            checksum,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a file of an initramfs is far below 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_trailer_closes() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/x", b"12345");
        archive.symlink("sbin", "bin");
        let bytes = archive.finish();

        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..14], b"07070100000001");
        // "bin" with its NUL ends at 114, padded to 116: there the next header starts.
        assert_eq!(&bytes[116..122], b"070701");
        // The file's size is the seventh field.
        assert_eq!(&bytes[116 + 6 + 6 * 8..116 + 6 + 7 * 8], b"00000005");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }
}
