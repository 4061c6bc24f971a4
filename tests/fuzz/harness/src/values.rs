//! Values in messages, chosen where something may happen.

use arbitrary::Arbitrary;

use crate::{descriptors::PAGE, wire::version};

/// Numbers at which something may happen.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Number {
    Small(u8),
    Pages(u8),
    NearPage(u8, i8),
    NearEnd(u8),
    PowerOfTwo(u8),
    Any(u64),
}

impl Number {
    pub(crate) fn long(self) -> u64 {
        match self {
            Self::Small(number) => number.into(),
            Self::Pages(pages) => u64::from(pages % 64) * PAGE,
            Self::NearPage(pages, more) => {
                (u64::from(pages % 64) * PAGE).wrapping_add_signed(more.into())
            }
            Self::NearEnd(before) => u64::MAX - u64::from(before),
            Self::PowerOfTwo(exponent) => 1 << (exponent % 64),
            Self::Any(number) => number,
        }
    }

    pub(crate) fn word(self) -> u32 {
        self.long() as u32
    }
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Text {
    Empty,
    Twin,
    /// One capability with some value.
    Capability(u8, u8),
    Bytes([u8; 24]),
}

impl Text {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        const NAMES: [&str; 8] = [
            "max_msg_fds",
            "max_data_xfer_size",
            "pgsizes",
            "max_dma_maps",
            "migration",
            "write_multiple",
            "twin_socket",
            "unknown",
        ];
        const VALUES: [&str; 12] = [
            "0",
            "1",
            "4096",
            "-1",
            "18446744073709551616",
            "1e3",
            "true",
            "null",
            "{}",
            "[[[[[[[[]]]]]]]]",
            r#"{"pgsize":4096,"max_bitmap_size":8}"#,
            r#"{"supported":true}"#,
        ];
        match self {
            Self::Empty => vec![0, 0, 1, 0],
            Self::Twin => version(r#"{"capabilities":{"twin_socket":{"supported":true}}}"#),
            Self::Capability(name, value) => version(&format!(
                r#"{{"capabilities":{{"{}":{}}}}}"#,
                NAMES[usize::from(*name) % NAMES.len()],
                VALUES[usize::from(*value) % VALUES.len()]
            )),
            Self::Bytes(bytes) => bytes.to_vec(),
        }
    }
}
