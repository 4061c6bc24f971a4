//! The memory that a server reaches by messages: what the client was asked to provide, and the answers.

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::channel::Channel;
use crate::{
    message::{Command, DmaAccess, Header},
    socket::{Frame, Reply},
};

/// What a server reads and writes by DMA_READ and DMA_WRITE.
pub trait Memory {
    /// Fills `data` from `address` on.
    ///
    /// # Errors
    /// What the server is answered.
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Stores `data` from `address` on.
    ///
    /// # Errors
    /// What the server is answered.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Errno>;
}

/// No memory: every access is answered with `EFAULT`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMemory;

impl Memory for NoMemory {
    fn read(&mut self, _address: u64, _data: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }

    fn write(&mut self, _address: u64, _data: &[u8]) -> Result<(), Errno> {
        Err(Errno::EFAULT)
    }
}

/// Bytes that begin at an address; others are answered with `EFAULT`.
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    /// Where the first byte is.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Buffer {
    fn range(&mut self, address: u64, len: usize) -> Result<&mut [u8], Errno> {
        let start = address.checked_sub(self.address);
        let start = start.and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range
            .and_then(|range| self.bytes.get_mut(range))
            .ok_or(Errno::EFAULT)
    }
}

impl Memory for Buffer {
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.copy_from_slice(self.range(address, data.len())?);
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.range(address, data.len())?.copy_from_slice(data);
        Ok(())
    }
}

/// Answers one request of the server.
pub(super) fn answer(
    memory: &mut dyn Memory,
    max_transfer_bytes: usize,
    channel: &mut Channel,
    frame: &Frame,
) {
    let no_reply = frame.header.flags & Header::NO_REPLY != 0;
    if no_reply && frame.header.command == Command::DMA_READ {
        // Thirty bytes of request would have a megabyte read, as often as the server likes.
        return;
    }
    let payload = channel.inbox.payload(frame);
    let mut reply = Reply::default();
    let result = match (frame.refused, frame.header.command) {
        (Some(errno), _) => Err(errno),
        (None, Command::DMA_READ) => read(memory, max_transfer_bytes, payload, &mut reply.bytes),
        (None, Command::DMA_WRITE) => write(memory, max_transfer_bytes, payload, &mut reply.bytes),
        _ => Err(Errno::ENOTSUP),
    };
    if no_reply {
        return;
    }
    let mut header = Header {
        flags: Header::TYPE_REPLY,
        error: 0,
        ..frame.header
    };
    if let Err(errno) = result {
        reply.clear();
        header.flags |= Header::ERROR;
        header.error = errno as u32;
    }
    header.size_bytes = (size_of::<Header>() + reply.bytes.len()) as u32;
    channel.push_answer(&header, &mut reply);
}

fn read(
    memory: &mut dyn Memory,
    max: usize,
    payload: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), Errno> {
    let (access, _) = parse(payload)?;
    let count = check(&access, max)?;
    reply.extend_from_slice(access.as_bytes());
    let start = reply.len();
    reply.resize(start + count, 0);
    memory.read(access.address, &mut reply[start..])
}

fn write(
    memory: &mut dyn Memory,
    max: usize,
    payload: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), Errno> {
    let (access, data) = parse(payload)?;
    let data = data.get(..check(&access, max)?).ok_or(Errno::EINVAL)?;
    memory.write(access.address, data)?;
    reply.extend_from_slice(access.as_bytes());
    Ok(())
}

fn parse(payload: &[u8]) -> Result<(DmaAccess, &[u8]), Errno> {
    DmaAccess::read_from_prefix(payload).map_err(|_| Errno::EINVAL)
}

fn check(access: &DmaAccess, max: usize) -> Result<usize, Errno> {
    let count = usize::try_from(access.count).map_err(|_| Errno::EINVAL)?;
    if count == 0 || count > max {
        return Err(Errno::EINVAL);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_bytes_from_its_address_on_and_no_others() {
        let mut buffer = Buffer {
            address: 0x1000,
            bytes: vec![1, 2, 3, 4],
        };
        let mut data = [0; 2];
        assert_eq!(buffer.read(0x1002, &mut data), Ok(()));
        assert_eq!(data, [3, 4]);
        for (address, len) in [(0xfff, 1), (0x1003, 2), (u64::MAX, 1), (0, 0x1004)] {
            assert_eq!(buffer.read(address, &mut vec![0; len]), Err(Errno::EFAULT));
            assert_eq!(buffer.write(address, &vec![9; len]), Err(Errno::EFAULT));
        }
        assert_eq!(buffer.write(0x1000, &[9]), Ok(()));
        assert_eq!(buffer.bytes, [9, 2, 3, 4]);
    }
}
