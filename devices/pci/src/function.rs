//! One PCI function: a model behind its configuration space, as the regions and interrupts that VFIO knows.

use std::{os::fd::BorrowedFd, time::Instant};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as bindings;
use vfio_user::{IrqInfo, Lent, RegionInfo};

use crate::{
    Device,
    bus::Bus,
    config::{CONFIG_BYTES, ConfigSpace},
};

/// The IRQ index of INTx.
pub(crate) const INTX: u32 = bindings::VFIO_PCI_INTX_IRQ_INDEX;
const BAR_COUNT: usize = 6;

/// A model with its configuration space: what a vfio-user session serves.
#[derive(Debug)]
pub struct Function<D> {
    device: D,
    config: ConfigSpace,
    software_resets: u64,
    regions: [RegionInfo; bindings::VFIO_PCI_NUM_REGIONS as usize],
    irqs: [IrqInfo; bindings::VFIO_PCI_NUM_IRQS as usize],
}

impl<D: Device> Function<D> {
    /// The function in its power-on state.
    #[must_use]
    pub fn new(device: D) -> Self {
        let identity = device.identity();
        let mut regions = [RegionInfo::default(); _];
        for (region, bar) in regions.iter_mut().zip(identity.bars) {
            region.size_bytes = bar.map_or(0, |bar| u64::from(bar.size_bytes()));
        }
        regions[bindings::VFIO_PCI_CONFIG_REGION_INDEX as usize].size_bytes = CONFIG_BYTES as u64;
        let mut irqs = [IrqInfo::default(); _];
        irqs[INTX as usize] = IrqInfo {
            count: identity.interrupt_pin.into(),
            level: true,
        };
        // Every function has these two, or QEMU warns; this one has no error to report, and asks for nothing yet.
        for index in [
            bindings::VFIO_PCI_ERR_IRQ_INDEX,
            bindings::VFIO_PCI_REQ_IRQ_INDEX,
        ] {
            irqs[index as usize] = IrqInfo {
                count: 1,
                level: false,
            };
        }
        Self {
            config: ConfigSpace::new(&identity),
            device,
            software_resets: 0,
            regions,
            irqs,
        }
    }

    /// The model's descriptor to wait for.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    /// When the model wants to run at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.device.deadline()
    }

    /// Lets the model do what has become possible.
    pub fn run(&mut self, lent: &mut Lent, now: Instant) {
        let (device, mut bus) = self.split(lent);
        device.run(&mut bus, now);
    }

    /// How often the guest's driver reset the device through its registers.
    #[must_use]
    pub fn software_resets(&self) -> u64 {
        self.software_resets
    }

    fn split<'a>(&'a mut self, lent: &'a mut Lent) -> (&'a mut D, Bus<'a>) {
        let Self {
            device,
            config,
            software_resets,
            ..
        } = self;
        (
            device,
            Bus {
                lent,
                config,
                software_resets,
            },
        )
    }

    fn write_config(&mut self, lent: &mut Lent, offset: usize, data: &[u8]) {
        let was_on = self.config.is_on();
        self.config.write(offset, data);
        let is_on = self.config.is_on();
        let (device, mut bus) = self.split(lent);
        if is_on && !was_on {
            // PCI Power Management 1.1, 5.4.1: a function leaves D3hot through a reset of what it does inside.
            bus.set_intx(false);
            device.reset(&mut bus);
        }
        bus.update_intx();
    }

    /// The BAR that a region is, if it answers now: in D0 with its kind of access enabled in Command or not, since a
    /// client decodes addresses itself and asks only for what its guest mapped.
    fn bar(&self, region: u32) -> Option<usize> {
        usize::try_from(region)
            .ok()
            .filter(|bar| *bar < BAR_COUNT && self.config.is_on())
    }
}

impl<D: Device> vfio_user::Device for Function<D> {
    fn regions(&self) -> &[RegionInfo] {
        &self.regions
    }

    fn irqs(&self) -> &[IrqInfo] {
        &self.irqs
    }

    fn read(
        &mut self,
        lent: &mut Lent,
        region: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        if region == bindings::VFIO_PCI_CONFIG_REGION_INDEX {
            self.config
                .read(usize::try_from(offset).map_err(|_| Errno::EINVAL)?, data);
        } else if let Some(bar) = self.bar(region) {
            let (device, mut bus) = self.split(lent);
            device.read(&mut bus, bar, offset, data);
        } else {
            // Nobody answers: master abort.
            data.fill(0xff);
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
        if region == bindings::VFIO_PCI_CONFIG_REGION_INDEX {
            self.write_config(
                lent,
                usize::try_from(offset).map_err(|_| Errno::EINVAL)?,
                data,
            );
        } else if let Some(bar) = self.bar(region) {
            let (device, mut bus) = self.split(lent);
            device.write(&mut bus, bar, offset, data);
        }
        Ok(())
    }

    fn reset(&mut self, lent: &mut Lent) {
        self.config.reset();
        let (device, mut bus) = self.split(lent);
        bus.set_intx(false);
        device.reset(&mut bus);
    }
}
