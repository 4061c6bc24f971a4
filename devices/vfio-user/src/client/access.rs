//! Reading and writing regions.

use zerocopy::{FromBytes, IntoBytes};

use super::{Client, Error, Memory, connection::Request};
use crate::message::{self, Command, Header, RegionAccess, RegionWriteMulti};

/// One of several writes in one message.
#[derive(Clone, Copy, Debug)]
pub struct MultiWrite<'a> {
    /// Index of the region.
    pub region: u32,
    /// Where in the region.
    pub offset: u64,
    /// At most 8 bytes.
    pub data: &'a [u8],
}

impl<M: Memory> Client<M> {
    /// REGION_READ: fills `data`.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let access = self.access(region, offset, data.len())?;
        let reply = self.call(read(&access))?;
        let (answer, bytes) = parse(&reply.payload)?;
        if answer.as_bytes() != access.as_bytes() || bytes.len() != data.len() {
            return Err(Error::Protocol("a read was answered with other data"));
        }
        data.copy_from_slice(bytes);
        Ok(())
    }

    /// REGION_WRITE: stores `data`, and waits until that is done.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        let access = self.access(region, offset, data.len())?;
        let reply = self.call(write(&access, data))?;
        let (answer, _) = parse(&reply.payload)?;
        if answer.as_bytes() != access.as_bytes() {
            return Err(Error::Protocol("another write was answered"));
        }
        Ok(())
    }

    /// REGION_WRITE with No_reply: sends it, and does not learn what became of it.
    ///
    /// # Errors
    /// What the connection says.
    pub fn region_post(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.queue_post(region, offset, data)?;
        self.flush()
    }

    /// REGION_WRITE_MULTI: all of `writes` in their order; returns how many were done.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn region_write_multi(&mut self, writes: &[MultiWrite<'_>]) -> Result<u64, Error> {
        let array = array(writes)?;
        if array.len() > self.negotiated.max_transfer_bytes() {
            return Err(Error::Argument("more writes than the server takes at once"));
        }
        let head = RegionWriteMulti {
            write_count: writes.len() as u64,
        };
        let reply = self.call(Request {
            parts: [head.as_bytes(), &array, &[]],
            max_reply_bytes: size_of::<RegionWriteMulti>(),
            ..Request::new(Command::REGION_WRITE_MULTI)
        })?;
        let (done, _) = RegionWriteMulti::read_from_prefix(&reply.payload)
            .map_err(|_| Error::Protocol("a reply is too short"))?;
        if done.write_count > head.write_count {
            return Err(Error::Protocol("more was written than was asked for"));
        }
        Ok(done.write_count)
    }

    /// A REGION_READ for [`Client::flush`]; the data is behind the first 16 bytes of the reply.
    ///
    /// # Errors
    /// When it can't be sent.
    pub fn queue_read(&mut self, region: u32, offset: u64, count: usize) -> Result<(), Error> {
        let access = self.access(region, offset, count)?;
        self.connection.queue(&read(&access)).map(drop)
    }

    /// A REGION_WRITE for [`Client::flush`].
    ///
    /// # Errors
    /// When it can't be sent.
    pub fn queue_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        let access = self.access(region, offset, data.len())?;
        self.connection.queue(&write(&access, data)).map(drop)
    }

    /// A REGION_WRITE with No_reply for [`Client::flush`].
    ///
    /// # Errors
    /// When it can't be sent.
    pub fn queue_post(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        let access = self.access(region, offset, data.len())?;
        let request = Request {
            flags: Header::NO_REPLY,
            ..write(&access, data)
        };
        self.connection.queue(&request).map(drop)
    }

    fn access(&self, region: u32, offset: u64, len: usize) -> Result<RegionAccess, Error> {
        if len > self.negotiated.max_transfer_bytes() {
            return Err(Error::Argument("more data than the server takes at once"));
        }
        Ok(RegionAccess {
            offset,
            region,
            count: len as u32,
        })
    }
}

fn read(access: &RegionAccess) -> Request<'_> {
    Request {
        parts: [access.as_bytes(), &[], &[]],
        max_reply_bytes: size_of::<RegionAccess>() + access.count as usize,
        ..Request::new(Command::REGION_READ)
    }
}

fn write<'a>(access: &'a RegionAccess, data: &'a [u8]) -> Request<'a> {
    Request {
        parts: [access.as_bytes(), data, &[]],
        max_reply_bytes: size_of::<RegionAccess>(),
        ..Request::new(Command::REGION_WRITE)
    }
}

fn parse(payload: &[u8]) -> Result<(RegionAccess, &[u8]), Error> {
    RegionAccess::read_from_prefix(payload).map_err(|_| Error::Protocol("a reply is too short"))
}

fn array(writes: &[MultiWrite<'_>]) -> Result<Vec<u8>, Error> {
    let mut array = Vec::with_capacity(writes.len() * size_of::<message::MultiWrite>());
    for write in writes {
        let mut data = [0; 8];
        data.get_mut(..write.data.len())
            .ok_or(Error::Argument("one of several writes has at most 8 bytes"))?
            .copy_from_slice(write.data);
        let write = message::MultiWrite {
            offset: write.offset,
            region: write.region,
            count: write.data.len() as u32,
            data,
        };
        array.extend_from_slice(write.as_bytes());
    }
    Ok(array)
}
