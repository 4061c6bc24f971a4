//! Messages as bytes, by the specification.

/// "Header" in the specification.
pub(crate) const HEADER_BYTES: usize = 16;
pub(crate) const NO_REPLY: u32 = 1 << 4;
pub(crate) const ERROR: u32 = 1 << 5;
pub(crate) const REPLY: u32 = 1;

pub(crate) const VERSION: u16 = 1;
pub(crate) const DEVICE_GET_INFO: u16 = 4;
pub(crate) const DMA_READ: u16 = 11;
pub(crate) const DMA_WRITE: u16 = 12;

/// What every message begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) size: u32,
    pub(crate) flags: u32,
    pub(crate) error: u32,
}

impl Header {
    /// The header at the front of `bytes`, once it is there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>()?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some(Self {
            id: word(0) as u16,
            command: (word(0) >> 16) as u16,
            size: word(4),
            flags: word(8),
            error: word(12),
        })
    }

    pub(crate) fn is_command(&self) -> bool {
        self.flags & 0xf == 0
    }
}

/// A message with the size that it has.
pub(crate) fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = (HEADER_BYTES + payload.len()) as u32;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(size.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// The payload of a VERSION request.
pub(crate) fn version(json: &str) -> Vec<u8> {
    let mut payload = vec![0, 0, 1, 0];
    payload.extend(json.as_bytes());
    payload.push(0);
    payload
}

/// The payload of a DEVICE_GET_INFO request.
pub(crate) fn device_info() -> Vec<u8> {
    let mut payload = 16_u32.to_le_bytes().to_vec();
    payload.resize(16, 0);
    payload
}
