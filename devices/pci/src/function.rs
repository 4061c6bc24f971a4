//! One PCI function: a model behind its configuration space, as the regions and interrupts that VFIO knows.

use std::{os::fd::BorrowedFd, time::Instant};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as bindings;
use vfio_user::{IrqInfo, Lent, Region};

use crate::{
    Device,
    bus::{Bus, INTX},
    config::{CONFIG_BYTES, ConfigSpace},
};

const BAR_COUNT: usize = 6;

/// A model with its configuration space: what a vfio-user session serves.
#[derive(Debug)]
pub struct Function<D> {
    device: D,
    config: ConfigSpace,
    software_resets: u64,
    regions: [Region; bindings::VFIO_PCI_NUM_REGIONS as usize],
    irqs: [IrqInfo; bindings::VFIO_PCI_NUM_IRQS as usize],
}

impl<D: Device> Function<D> {
    /// The function in its power-on state.
    #[must_use]
    pub fn new(device: D) -> Self {
        let identity = device.identity();
        let mut regions: [Region; _] = std::array::from_fn(|_| Region::new(0));
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
    fn regions(&self) -> &[Region] {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bar, Capability, Identity, testing::Guest};

    /// Four bytes that keep what is written. A one in the first raises the line; bit 7 of it copies the second to guest
    /// memory at 0x100.
    struct Scratch([u8; 4]);

    impl Device for Scratch {
        fn identity(&self) -> Identity {
            let mut bars = [None; 6];
            bars[0] = Some(Bar::Memory { size_bytes: 16 });
            Identity {
                interrupt_pin: true,
                bars,
                capabilities: vec![(0x40, Capability::PowerManagement)],
                ..Identity::default()
            }
        }
        fn read(&mut self, _: &mut Bus<'_>, _: usize, offset: u64, data: &mut [u8]) {
            data.fill(self.0[offset as usize % 4]);
        }
        fn write(&mut self, bus: &mut Bus<'_>, _: usize, offset: u64, data: &[u8]) {
            self.0[offset as usize % 4] = data[0];
            bus.set_intx(self.0[0] & 1 == 1);
            if self.0[0] & 0x80 != 0 && bus.write(0x100, &self.0[1..2]).is_err() {
                self.0[3] = 0xee;
            }
        }
        fn reset(&mut self, _: &mut Bus<'_>) {
            self.0 = [0; 4];
        }
    }

    fn byte(guest: &mut Guest<Scratch>, offset: u64) -> u8 {
        let mut data = [0];
        guest.read(0, offset, &mut data);
        data[0]
    }

    #[test]
    fn a_function_in_d3hot_is_silent_and_leaves_it_through_a_reset() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 0, &[1]);
        assert!(guest.interrupted());
        guest.config_write(0x44, &[3]);
        assert!(guest.interrupted(), "the one from before");
        assert!(!guest.interrupted());
        assert_eq!(byte(&mut guest, 0), 0xff);
        guest.write(0, 2, &[7]);
        guest.config_write(0x44, &[0]);
        assert!(!guest.interrupted());
        assert_eq!((byte(&mut guest, 0), byte(&mut guest, 2)), (0, 0));
    }

    #[test]
    fn dma_needs_bus_master_enable() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.write(0, 1, &[42]);
        guest.config_write(4, &[3]);
        guest.write(0, 0, &[0x80]);
        assert_eq!((guest.load(0x100, 1), byte(&mut guest, 3)), (vec![0], 0xee));
        guest.config_write(4, &[7]);
        guest.write(0, 0, &[0x80]);
        assert_eq!(guest.load(0x100, 1), [42]);
    }

    #[test]
    fn interrupt_disable_takes_effect_at_once_both_ways() {
        let mut guest = Guest::new(Scratch([0; 4]));
        guest.config_write(5, &[4]);
        guest.write(0, 0, &[1]);
        assert!(!guest.interrupted());
        guest.config_write(5, &[0]);
        assert!(guest.interrupted());
        assert!(
            guest.interrupted(),
            "still asserted at the end of the interrupt"
        );
        guest.reset();
        assert!(guest.interrupted(), "the one from before");
        assert!(!guest.interrupted());
    }
}
