//! Commands that bring devices into VMMs, out of them, and tell why that can't be.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use proto::v1::{self, unplug_device_request, vmm};

use super::values;

/// Give a device to a running VMM, whose guest sees a card that is put in
///
/// Ends when the VMM has the device. All that `vfuctl doctor` looks for is checked before. The agent stays connected to a QMP
/// socket while the device is plugged: give it one of its own (`-qmp unix:PATH,server=on,wait=off`).
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("vmm").required(true).args(["qmp", "cloud_hypervisor"])))]
#[command(after_help = "\
Examples:
  vfuctl plug nic0 --qmp /run/vm1/vfu.qmp
  vfuctl plug nic0 --qmp /run/vm1/vfu.qmp --bus rp3 --dry-run
  vfuctl plug nic0 --cloud-hypervisor /run/vm2/api.sock --events /run/vm2/events --timeout 60")]
pub(crate) struct Plug {
    /// Id of the device
    pub(crate) id: String,
    /// Which VMM, and where in it.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Check everything and plug nothing
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// When to do it, and how often.
    #[command(flatten)]
    pub(crate) guard: super::device::Guard,
}

/// Take devices out of the VMMs that have them; the devices stay, and are ready for the next VMM
///
/// The guest is asked to let go, and the command ends when it has. A guest that refuses, or takes longer than --timeout,
/// keeps a device that works. Goes on with the next after a failure; the exit code is that of the first failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl unplug nic0
  vfuctl unplug nic0 --method client-request      the device itself asks its client, which must listen")]
pub(crate) struct Unplug {
    /// Ids of devices
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// Who is asked to give the device up
    #[arg(long, value_enum, default_value = "vmm")]
    pub(crate) method: Method,
    /// Check everything and unplug nothing
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// When to do it, and how often.
    #[command(flatten)]
    pub(crate) guard: super::device::Guard,
}

/// Wait until devices are as asked for, no longer than --timeout
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl wait nic0 --for plugged
  vfuctl wait nic0 --for state=CONNECTED --timeout 120
  vfuctl wait nic0 nic1 --for condition=BackendLost=false
  vfuctl delete nic0 && vfuctl wait nic0 --for deleted")]
pub(crate) struct Wait {
    /// Ids of devices
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// What for: state=STATE, plugged, unplugged, deleted, or condition=TYPE[=true|false|unknown]
    #[arg(long = "for", value_name = "WHAT", value_parser = values::goal)]
    pub(crate) goal: values::Goal,
}

/// Find out what keeps a VMM from taking a device, or what is wrong with either of them
///
/// Changes nothing. Each finding has a code, what it is, and the cure. The exit code is 1 when one of them is an ERROR. With a
/// DEVICE alone, the device is looked at and the VMM that it is in; with a VMM alone, that VMM.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("vmm").args(["qmp", "cloud_hypervisor"])))]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["id", "qmp", "cloud_hypervisor"])))]
#[command(after_help = "\
Examples:
  vfuctl doctor nic0
  vfuctl doctor nic0 --qmp /run/vm1/vfu.qmp
  vfuctl doctor --cloud-hypervisor /run/vm2/api.sock -o json")]
pub(crate) struct Doctor {
    /// Id of a device
    #[arg(value_name = "DEVICE")]
    pub(crate) id: Option<String>,
    /// Which VMM, and where in it.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// A VMM, and a place for a device in it.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// QMP socket of a QEMU, one that nobody else uses
    #[arg(long, value_name = "PATH")]
    pub(crate) qmp: Option<PathBuf>,
    /// API socket of a cloud-hypervisor
    #[arg(long, value_name = "PATH")]
    pub(crate) cloud_hypervisor: Option<PathBuf>,
    /// File or FIFO of its events (--event-monitor path=), by which the end of an unplug is seen
    #[arg(
        long,
        value_name = "PATH",
        requires = "cloud_hypervisor",
        conflicts_with = "qmp"
    )]
    pub(crate) events: Option<PathBuf>,
    /// Name of the device inside the VMM [default: the device's id]
    #[arg(long = "id", value_name = "NAME", requires = "vmm")]
    pub(crate) vmm_device_id: Option<String>,
    /// Bus or root port, by its id in QEMU [default: the first free one]
    #[arg(
        long,
        value_name = "BUS",
        requires = "qmp",
        conflicts_with = "cloud_hypervisor"
    )]
    pub(crate) bus: Option<String>,
    /// Slot on the bus, hexadecimal as in QEMU's addr= and in lspci: 5, 1f or 1f.0 [default: the first free one]
    #[arg(
        long,
        value_name = "SLOT",
        requires = "qmp",
        conflicts_with = "cloud_hypervisor"
    )]
    pub(crate) slot: Option<String>,
    /// PCI segment in cloud-hypervisor [default: 0]
    #[arg(
        long,
        value_name = "SEGMENT",
        requires = "cloud_hypervisor",
        conflicts_with = "qmp"
    )]
    pub(crate) segment: Option<u32>,
}

impl Place {
    /// The VMM, if one is named. The agent has another working directory, so that paths are made absolute.
    pub(crate) fn vmm(&self) -> Option<v1::Vmm> {
        let absolute = |path: &Path| {
            // Only an empty path has no absolute form, and the agent says what is wrong with that.
            let path = std::path::absolute(path).unwrap_or_default();
            path.to_string_lossy().into_owned()
        };
        let endpoint = match (&self.qmp, &self.cloud_hypervisor) {
            (Some(path), _) => vmm::Endpoint::QmpSocketPath(absolute(path)),
            (None, Some(path)) => vmm::Endpoint::CloudHypervisorSocketPath(absolute(path)),
            (None, None) => return None,
        };
        Some(v1::Vmm {
            endpoint: Some(endpoint),
            event_monitor_path: self.events.as_deref().map(absolute).unwrap_or_default(),
        })
    }
}

/// Who is asked to give a device up.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Method {
    /// The VMM that `vfuctl plug` gave it to
    Vmm,
    /// Whoever uses the device, by the VFIO request interrupt; QEMU up to 11.1 does not listen for that
    ClientRequest,
}

impl From<Method> for unplug_device_request::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Vmm => Self::Vmm,
            Method::ClientRequest => Self::ClientRequest,
        }
    }
}
