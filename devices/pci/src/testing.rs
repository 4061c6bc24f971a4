//! A guest for tests of models: memory, an interrupt controller with one line and one message, and a driver's view of
//! BARs.
//!
//! It reaches the model through [`Function`], as a client does, so that Command, INTx and guest memory behave as they do
//! under a VMM.

#![expect(
    clippy::unwrap_used,
    reason = "a test that can't set up its guest ends there"
)]

use std::{
    collections::BTreeMap,
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        memfd::{MFdFlags, memfd_create},
    },
};
use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX as CONFIG;
use vfio_user::{Access, Device as _, IrqAction, Irqs, Lent, Migration as _};

use crate::{
    Bus, Device, Function, LoadError, UpdateError,
    bus::{ERROR, INTX, MSI},
    stats::{Interrupts, Kind, Sink},
};

/// Bytes of guest memory, from address 0 on.
pub const MEMORY_BYTES: u64 = 16 << 20;

/// Takes numbers whose names and units are as they have to be.
struct Collected(Vec<(&'static str, u64)>);

impl Sink for Collected {
    fn put(&mut self, name: &'static str, unit: &'static str, _: Kind, value: u64) {
        let is_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.');
        assert!(name.len() <= 40 && name.bytes().all(is_name), "{name}");
        let is_unit = |byte: u8| byte.is_ascii_graphic();
        assert!((1..=16).contains(&unit.len()), "{name}: {unit}");
        assert!(unit.bytes().all(is_unit), "{name}: {unit}");
        self.0.push((name, value));
    }
}

/// A guest whose only device is `D`.
#[derive(Debug)]
pub struct Guest<D> {
    function: Function<D>,
    lent: Lent,
    memory: File,
    intx: EventFd,
    messages: EventFd,
    errors: EventFd,
    /// Only the test moves the clock.
    clock_is_stopped: bool,
}

impl<D: Device> Guest<D> {
    /// A guest whose firmware has enabled memory, I/O and bus mastering.
    #[must_use]
    pub fn new(device: D) -> Self {
        let memory = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
        memory.set_len(MEMORY_BYTES).unwrap();
        let mut guest = Self::with_memory(device, memory);
        guest.config_write(4, &7u16.to_le_bytes());
        guest
    }

    fn with_memory(device: D, memory: File) -> Self {
        let function = Function::new(device);
        let mut lent = Lent::default();
        lent.irqs = Irqs::new(function.irqs());
        lent.memory_mut()
            .map(
                0,
                MEMORY_BYTES,
                Access {
                    read: true,
                    write: true,
                },
                Some((memory.try_clone().unwrap().into(), 0)),
            )
            .unwrap();
        let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let guest = Self {
            function,
            lent,
            memory,
            intx: eventfd(),
            messages: eventfd(),
            errors: eventfd(),
            clock_is_stopped: false,
        };
        guest.connected()
    }

    /// With the eventfds of the interrupts that the device has.
    fn connected(mut self) -> Self {
        for (index, eventfd) in [
            (INTX, &self.intx),
            (MSI, &self.messages),
            (ERROR, &self.errors),
        ] {
            if self.function.irqs()[index as usize].count > 0 {
                let theirs = [Some(eventfd.as_fd().try_clone_to_owned().unwrap())];
                let irqs = &mut self.lent.irqs;
                irqs.connect(index, IrqAction::Trigger, 0, theirs.into_iter())
                    .unwrap();
            }
        }
        self
    }

    /// Reads a 32-bit register.
    pub fn read32(&mut self, bar: usize, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read(bar, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub fn write32(&mut self, bar: usize, offset: u64, value: u32) {
        self.write(bar, offset, &value.to_le_bytes());
    }

    /// Reads any number of bytes of a BAR.
    pub fn read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        self.function
            .read(&mut self.lent, bar as u32, offset, data)
            .unwrap();
    }

    /// Writes any number of bytes of a BAR.
    pub fn write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        self.try_write(bar, offset, data).unwrap();
    }

    /// The same where it may be refused.
    ///
    /// # Errors
    /// What a client would be answered.
    pub fn try_write(&mut self, bar: usize, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let written = self
            .function
            .write(&mut self.lent, bar as u32, offset, data);
        self.function.end_batch(&mut self.lent);
        written
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.function
            .write(&mut self.lent, CONFIG, offset, data)
            .unwrap();
    }

    /// Reads configuration space.
    pub fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        self.function
            .read(&mut self.lent, CONFIG, offset, data)
            .unwrap();
    }

    /// Copies out guest memory.
    #[must_use]
    pub fn load(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_exact_at(&mut data, address).unwrap();
        data
    }

    /// Fills guest memory.
    pub fn store(&mut self, address: u64, data: &[u8]) {
        self.memory.write_all_at(data, address).unwrap();
    }

    /// Whether an interrupt came since the last call. Ends it as an interrupt controller does, so that a line that is
    /// still asserted interrupts again.
    pub fn interrupted(&mut self) -> bool {
        let came = self.intx.read().is_ok();
        self.lent
            .irqs
            .set_mask(INTX, 0, 1, false, |_| true)
            .unwrap();
        came
    }

    /// What the host does to the device, with the bus.
    pub fn with_device<R>(&mut self, act: impl FnOnce(&mut D, &mut Bus<'_>) -> R) -> R {
        let (device, mut bus) = self.function.split(&mut self.lent);
        act(device, &mut bus)
    }

    /// Has the device brought to this configuration while it lives.
    ///
    /// # Errors
    /// [`UpdateError`], as an agent is told.
    pub fn update(&mut self, config: &serde_json::Value) -> Result<(), UpdateError> {
        self.function.update(&mut self.lent, config)
    }

    /// Masks the message as a client can, or unmasks it.
    pub fn mask_messages(&mut self, masked: bool) {
        let irqs = &mut self.lent.irqs;
        irqs.set_mask(MSI, 0, 1, masked, |_| true).unwrap();
    }

    /// How many messages came since the last call.
    pub fn messages(&mut self) -> u64 {
        self.messages.read().unwrap_or(0)
    }

    /// Takes the file behind guest memory away, as a client can at any time.
    pub fn lose_memory(&mut self) {
        self.memory.set_len(0).unwrap();
    }

    /// How many errors the device has told since the last call.
    pub fn errors(&mut self) -> u64 {
        self.errors.read().unwrap_or(0)
    }

    /// Stops the clock, and sets it forward by so much. Nothing is run.
    pub fn advance(&mut self, by: Duration) {
        let now = self.function.now();
        self.function.set_clock(now + by);
        self.clock_is_stopped = true;
    }

    /// How long it is until the model wants to run.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let deadline = self.function.deadline()?;
        Some(deadline.saturating_duration_since(self.function.now()))
    }

    /// Lets the model run, as the event loop does.
    pub fn run(&mut self) {
        let now = self.function.now();
        self.function.run(&mut self.lent, now);
    }

    /// Runs the model until it has no work left that is due.
    pub fn run_until_idle(&mut self) {
        self.run();
        while self
            .function
            .deadline()
            .is_some_and(|deadline| deadline <= self.function.now())
        {
            self.run();
        }
    }

    /// The client's DEVICE_RESET. Configuration space is enabled again.
    pub fn reset(&mut self) {
        self.function.reset(&mut self.lent);
        self.config_write(4, &7u16.to_le_bytes());
    }

    /// When the model wants to run.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.function.deadline()
    }

    /// Stops the device, or lets it go on.
    pub fn set_running(&mut self, running: bool) {
        self.function.set_running(&mut self.lent, running);
    }

    /// The device's saved state.
    pub fn save(&mut self) -> Vec<u8> {
        self.function.save().unwrap()
    }

    /// Loads a saved state into the device.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn load_state(&mut self, state: &[u8]) -> Result<(), LoadError> {
        let loaded = self.function.load(&mut self.lent, state);
        loaded.map_err(|_| self.function.take_refusal().unwrap())
    }

    /// The same guest with another device, which has taken over the state of the one before. A clock that is stopped shows
    /// another time there: nothing else does where clocks run, as hosts have each their own.
    ///
    /// # Errors
    /// Why the state was refused.
    pub fn moved_to(mut self, device: D) -> Result<Self, LoadError> {
        self.set_running(false);
        let state = self.save();
        let mut there = Self::with_memory(device, self.memory);
        there.set_running(false);
        if self.clock_is_stopped {
            there.function.set_clock(self.function.now());
            there.advance(Duration::from_secs(86_400));
        }
        there.load_state(&state)?;
        there.set_running(true);
        Ok(there)
    }

    /// What function and model have counted, by name.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        let mut stats = Collected(Vec::new());
        self.function.stats(&mut stats);
        Interrupts::of(&self.lent.irqs).tell(&mut stats);
        let count = stats.0.len();
        let stats: BTreeMap<_, _> = stats.0.into_iter().collect();
        assert_eq!(stats.len(), count, "a name is used twice");
        stats
    }

    /// How often the driver reset the device.
    #[must_use]
    pub fn software_resets(&self) -> u64 {
        self.function.software_resets()
    }
}
