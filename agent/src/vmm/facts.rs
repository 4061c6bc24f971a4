//! What is known of a VMM.

use std::path::PathBuf;

use super::Placed;

/// What a VMM is and has, as it was when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `QEMU` or `cloud-hypervisor`.
    pub(crate) program: &'static str,
    /// Such as `11.1.3`.
    pub(crate) version: String,
    /// The least version whose vfio-user devices work, if this one is older. Then nothing is known of its buses and
    /// devices.
    pub(crate) version_needed: Option<String>,
    /// Whether it has vfio-user devices at all.
    pub(crate) takes_vfio_user: bool,
    /// The process that serves its control socket.
    pub(crate) owner: Owner,
    /// The kind of machine, such as `pc-q35-11.1`.
    pub(crate) machine: String,
    /// How the guest is, in the VMM's own word, such as `running` or `paused`.
    pub(crate) run_state: String,
    /// What the guest's memory is made of.
    pub(crate) memory: Vec<Memory>,
    /// Where a device could be, in the order in which a place is chosen.
    pub(crate) buses: Vec<Bus>,
    /// The vfio-user devices that it has.
    pub(crate) devices: Vec<Found>,
    /// Where its events are to come from, and why they can't be read there.
    pub(crate) unheard: Option<(PathBuf, String)>,
}

/// Who serves a socket, as far as this agent's namespaces show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) pid: Option<i32>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A piece of memory that a VMM has made for its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) id: String,
    pub(crate) size_bytes: u64,
    /// Whether another process can map it.
    pub(crate) is_shared: bool,
}

/// A bus or a port inside a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bus {
    /// As [`super::Wanted`] has it.
    pub(crate) name: String,
    /// What it belongs to, in the VMM's word, such as `pcie-root-port`.
    pub(crate) kind: String,
    /// Whether it takes a device while the machine is on.
    pub(crate) is_hotpluggable: bool,
    /// Its slots that are free, as [`super::Wanted`] has them, with the one first that is chosen.
    pub(crate) free_slots: Vec<String>,
    /// The names of the devices on it; those that have none are here by what they are.
    pub(crate) devices: Vec<String>,
    /// The same by slot, as far as the VMM tells who is where.
    pub(crate) taken_slots: Vec<(String, String)>,
    pub(crate) windows: Windows,
}

/// What of address space a bus leads on to its devices, in bytes. Nothing where its machine's firmware decides, which
/// leaves enough for most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) io_bytes: Option<u64>,
    /// Memory below 4 GiB that is not prefetchable.
    pub(crate) memory_bytes: Option<u64>,
}

impl Bus {
    /// Whether a device could be plugged into it.
    pub(crate) fn has_place(&self) -> bool {
        self.is_hotpluggable && !self.free_slots.is_empty()
    }

    /// Who is in this slot.
    pub(crate) fn occupant(&self, slot: &str) -> Option<&str> {
        let mut taken = self.taken_slots.iter();
        taken
            .find(|(it, _)| it == slot)
            .map(|(_, device)| device.as_str())
    }
}

/// A vfio-user device that a VMM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: String,
    /// Nothing where the VMM does not tell: QEMU keeps it to itself. Whether such a device is the one that was meant is
    /// seen from the other side: the process that is connected to the socket is the VMM's.
    pub(crate) device_socket: Option<PathBuf>,
    pub(crate) placed: Placed,
}
