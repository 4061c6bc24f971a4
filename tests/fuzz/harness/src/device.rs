//! A device that has one of everything, and does with guest memory what the client says.

use std::{os::fd::OwnedFd, sync::Arc};

use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
    },
    unistd::ftruncate,
};
use vfio_user::{Device, IoEvent, IrqInfo, IrqKind, Lent, Mapping, Migration, Region};

use crate::client::Client;

/// Bytes of region 0.
pub(crate) const BYTES: usize = 256;
/// A write here copies guest memory: two addresses of 8 bytes, and how many bytes, 4 bytes.
pub(crate) const COPY: u64 = 0x20;
/// More than this is not copied at once.
const MAX_COPY: u32 = 0x3000;
/// More copies than this are not made for one client: each may need another thread.
const MAX_COPIES: usize = 32;

/// Region 0 keeps what is written to it. Writing its byte 0 sets the level of the line by bit 0, and writing its byte 1
/// triggers that message; writing [`COPY`] copies guest memory. A page of region 1 can be mapped, and two of its registers have
/// eventfds. Region 2 can only be read, region 3 only written, and region 4 is not there. The state that is moved is region 0.
pub(crate) struct Scratch {
    regions: [Region; 5],
    irqs: [IrqInfo; 4],
    pub(crate) bytes: [u8; BYTES],
    client: Arc<Client>,
    copies: usize,
    is_running: bool,
}

impl Scratch {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        let mut only_read = Region::new(0x100);
        only_read.access.write = false;
        let mut only_written = Region::new(u64::MAX);
        only_written.access.read = false;
        let irq = |count, kind| IrqInfo { count, kind };
        Self {
            regions: [
                Region::new(BYTES as u64),
                mapped(),
                only_read,
                only_written,
                Region::new(0),
            ],
            irqs: [
                irq(1, IrqKind::Level),
                irq(4, IrqKind::Message),
                irq(0, IrqKind::Message),
                irq(1, IrqKind::Notice),
            ],
            bytes: [0; BYTES],
            client,
            copies: 0,
            is_running: true,
        }
    }

    /// What one copy read and wrote, as far as it came.
    fn copy(&mut self, lent: &mut Lent, data: &[u8]) {
        let (Some(from), Some(to), Some(count)) = (
            data.get(..8)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap())),
            data.get(8..16)
                .map(|word| u64::from_le_bytes(word.try_into().unwrap())),
            data.get(16..20)
                .map(|word| u32::from_le_bytes(word.try_into().unwrap())),
        ) else {
            return;
        };
        if self.copies >= MAX_COPIES || !self.is_running {
            return;
        }
        self.copies += 1;
        let mut bytes = vec![0; count.min(MAX_COPY) as usize];
        let client = Arc::clone(&self.client);
        client.answer_while(|| {
            // Whether it may is the client's business; that it comes back is ours.
            let _ = lent.read(from, &mut bytes);
            let _ = lent.write(to, &bytes);
        });
    }
}

fn mapped() -> Region {
    let file = memfd_create("vfu-region", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&file, 0x4000).unwrap();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
    let eventfd = Arc::new(OwnedFd::from(eventfd));
    let event = |offset, value| IoEvent {
        offset,
        size_bytes: 4,
        value,
        eventfd: Arc::clone(&eventfd),
    };
    Region {
        mapping: Some(Mapping {
            file,
            offset_bytes: 0x1000,
            areas: std::iter::once(0x1000..0x2000).collect(),
        }),
        io_events: vec![event(0x18, None), event(0x1c, Some(7))],
        ..Region::new(0x3000)
    }
}

impl Device for Scratch {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }

    fn read(
        &mut self,
        _: &mut Lent,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        let size = self.regions[region as usize].size_bytes;
        assert!(offset.checked_add(data.len() as u64).unwrap() <= size && !data.is_empty());
        assert!(region != 3, "a region that can't be read");
        if region == 0 {
            let at = offset as usize;
            data.copy_from_slice(&self.bytes[at..at + data.len()]);
        }
        Ok(())
    }

    fn write(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        let size = self.regions[region as usize].size_bytes;
        assert!(offset.checked_add(data.len() as u64).unwrap() <= size && !data.is_empty());
        assert!(region != 2, "a region that can't be written");
        if region != 0 {
            return Ok(());
        }
        let at = offset as usize;
        self.bytes[at..at + data.len()].copy_from_slice(data);
        match offset {
            0 => lent.irqs.set_level(0, data[0] & 1 == 1),
            1 => lent
                .irqs
                .trigger(u32::from(data[0] >> 4), u32::from(data[0] & 0xf)),
            COPY => self.copy(lent, data),
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self, lent: &mut Lent) {
        self.bytes = [0; BYTES];
        self.is_running = true;
        lent.irqs.set_level(0, false);
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Scratch {
    fn set_running(&mut self, _: &mut Lent, running: bool) {
        self.is_running = running;
    }

    fn save(&mut self) -> Result<Vec<u8>, Errno> {
        Ok(self.bytes.to_vec())
    }

    fn load(&mut self, _: &mut Lent, state: &[u8]) -> Result<(), Errno> {
        self.bytes = state.try_into().map_err(|_| Errno::EINVAL)?;
        Ok(())
    }
}
