//! Commands that make, show, change and delete devices.

use clap::{ArgGroup, Args, ValueEnum};
use proto::v1::device_spec;

use super::values;

/// What `vfuctl update` can change; one of them has to be given.
const CHANGES: [&str; 12] = [
    "set",
    "unset",
    "label",
    "unlabel",
    "annotation",
    "unannotate",
    "restart_policy",
    "backend_loss_policy",
    "memory",
    "cpu",
    "open_files",
    "log_bytes",
];

/// Create a device; each model has flags of its own, see `vfuctl create MODEL --help`
///
/// The device is ready for a VMM when the command ends; when it fails nothing is left of the device.
///
/// The model's flags come from its schema, which the agent knows: `vfuctl create MODEL --help` lists them, and they are
/// given after MODEL. `--set net.tap.ifname=vfu0` is the same as `--net.tap.ifname vfu0`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl create e1000 nic0 --mac 52:54:00:12:34:56 --net.tap.ifname vfu0
  vfuctl create e1000 nic0 --set net.tap.ifname=vfu0 --label tenant=blue
  vfuctl create e1000 nic0 --memory 64M --cpu 500m --socket-gid 107 --socket-mode 660
  vfuctl create e1000 nic0 --config @nic0.json --validate-only")]
pub(crate) struct Create {
    /// Model of the device; `vfuctl models` lists them
    pub(crate) model: String,
    /// Id of the device: a-z, 0-9 and -, at most 63 bytes; the agent makes one when absent
    pub(crate) id: Option<String>,
    /// One field of the configuration; may be repeated
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) set: Vec<String>,
    /// The configuration as JSON, or @FILE to read it from (@- is standard input); flags and --set win over it
    #[arg(long, value_name = "JSON|@FILE")]
    pub(crate) config: Option<String>,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// An annotation; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// What happens when the device's process ends by itself [default: always]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) restart_policy: Option<RestartPolicy>,
    /// What happens when the process ends while a VMM uses the device [default: hold]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) backend_loss_policy: Option<BackendLossPolicy>,
    /// What the device's process may use.
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Owner of the vfio-user socket, a numeric user id [default: the agent's]
    #[arg(long, value_name = "UID")]
    pub(crate) socket_uid: Option<u32>,
    /// Group of the vfio-user socket, a numeric group id [default: the agent's]
    #[arg(long, value_name = "GID")]
    pub(crate) socket_gid: Option<u32>,
    /// Mode of the vfio-user socket, in octal [default: 600]
    #[arg(long, value_name = "MODE", value_parser = values::mode)]
    pub(crate) socket_mode: Option<u32>,
    /// Check everything and create nothing
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// Makes it safe to run the command again: the second time answers with the device of the first
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<String>,
}

/// Show devices: those named, or all
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl get nic0 -o yaml
  vfuctl get nic0 nic1 -o wide
  vfuctl get nic0 --watch              shows the device, then each change of it")]
pub(crate) struct Get {
    /// Ids of devices
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// After that show each change, as `vfuctl watch` does
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// List all devices, or those that a filter chooses
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl list -o wide
  vfuctl list --filter 'state = \"FAILED\" AND labels.tenant = \"blue\"'
  vfuctl delete $(vfuctl list -o name)")]
pub(crate) struct List {
    /// Which devices, as `state = "READY" AND labels.app = "x" AND model = "e1000"`
    #[arg(
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) filter: String,
    /// After that show each change, as `vfuctl watch` does
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Change a device while it lives: fields of its configuration, labels, limits and policies
///
/// A VMM stays connected, and its guest sees the change as it would see it on a real card. `vfuctl models MODEL` says which
/// fields of the configuration can change; for the others, delete the device and create it anew. What is changed stays so
/// when the device's process is started again.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(CHANGES)))]
#[command(after_help = "\
Examples:
  vfuctl update nic0 --set link=down
  vfuctl update nic0 --unset link --label tenant=blue
  vfuctl update nic0 --memory 128M --cpu none
  vfuctl update nic0 --set link=up --dry-run")]
pub(crate) struct Update {
    /// Id of the device
    pub(crate) id: String,
    /// One field of the configuration; may be repeated
    #[arg(long, value_name = "FIELD=VALUE")]
    pub(crate) set: Vec<String>,
    /// A field of the configuration that is to be what it is when not given; may be repeated
    #[arg(long, value_name = "FIELD")]
    pub(crate) unset: Vec<String>,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// A label to take away; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) unlabel: Vec<String>,
    /// An annotation; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// An annotation to take away; may be repeated
    #[arg(long, value_name = "KEY")]
    pub(crate) unannotate: Vec<String>,
    /// What happens when the device's process ends by itself
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) restart_policy: Option<RestartPolicy>,
    /// What happens when the process ends while a VMM uses the device
    #[arg(long, value_enum, value_name = "POLICY")]
    pub(crate) backend_loss_policy: Option<BackendLossPolicy>,
    /// What the device's process may use.
    #[command(flatten)]
    pub(crate) limits: Limits,
    /// Change the device only while this is its etag, as `vfuctl get -o json` shows it
    #[arg(long, value_name = "ETAG")]
    pub(crate) etag: Option<String>,
    /// Check everything and change nothing
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// Makes it safe to run the command again: the second time changes nothing
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<String>,
}

/// Delete devices
///
/// Goes on with the next after a failure; the exit code is that of the first failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl delete nic0
  vfuctl delete nic0 nic1 --allow-missing")]
pub(crate) struct Delete {
    /// Ids of devices
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// Delete although a VMM is connected: its guest loses the card
    #[arg(long)]
    pub(crate) force: bool,
    /// A device that does not exist is no failure
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// Check everything and delete nothing
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// When to do it, and how often.
    #[command(flatten)]
    pub(crate) guard: Guard,
}

/// Put devices back to their power-on state; a connected VMM stays connected
///
/// Goes on with the next after a failure; the exit code is that of the first failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vfuctl reset nic0")]
pub(crate) struct Reset {
    /// Ids of devices
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// When to do it, and how often.
    #[command(flatten)]
    pub(crate) guard: Guard,
}

/// End the processes of devices and start them anew, on the sockets that they have
///
/// Brings a FAILED device back, and makes devices run the device program that is installed now. Goes on with the next
/// after a failure; the exit code is that of the first failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl restart nic0
  vfuctl restart nic0 --force          although a VMM uses it, whose guest loses the card")]
pub(crate) struct Restart {
    /// Ids of devices
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// Restart although a VMM is connected: its guest loses the card
    #[arg(long)]
    pub(crate) force: bool,
    /// Check everything and restart nothing
    #[arg(long, visible_alias = "dry-run")]
    pub(crate) validate_only: bool,
    /// When to do it, and how often.
    #[command(flatten)]
    pub(crate) guard: Guard,
}

/// What keeps a change from being made to something else, or twice.
#[derive(Debug, Args)]
pub(crate) struct Guard {
    /// Do it only while this is the device's etag, as `vfuctl get -o json` shows it
    #[arg(long, value_name = "ETAG")]
    pub(crate) etag: Option<String>,
    /// Makes it safe to run the command again: what the first run did is not done twice
    #[arg(long, value_name = "UUID")]
    pub(crate) request_id: Option<String>,
}

impl Guard {
    /// Checks that there is but one device where one is meant.
    pub(crate) fn check(&self, ids: &[String]) -> Result<(), String> {
        let flag = match (&self.etag, &self.request_id) {
            _ if ids.len() < 2 => return Ok(()),
            (Some(_), _) => "--etag",
            (None, Some(_)) => "--request-id",
            (None, None) => return Ok(()),
        };
        Err(format!(
            "{flag} is for one device, and there are {}; run the command once for each",
            ids.len()
        ))
    }
}

/// What a device's process may use.
#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// Private memory of the device's process, as 64M, or none
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub(crate) memory: Option<u64>,
    /// Processor time of the device's process, as 0.5 or 500m, or none
    #[arg(long, value_name = "CPUS", value_parser = values::cpu_millis)]
    pub(crate) cpu: Option<u32>,
    /// Files that the device's process may have open, or none for no limit
    #[arg(long, value_name = "COUNT", value_parser = values::count)]
    pub(crate) open_files: Option<u32>,
    /// Log that is kept of the device's process, as 1M, or none for no limit
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub(crate) log_bytes: Option<u64>,
}

/// What happens when a device's process ends by itself.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RestartPolicy {
    /// Starts again, until that has failed often
    Always,
    /// The same, but an end with exit code 0 is the last
    OnFailure,
    /// The device is FAILED
    Never,
}

impl From<RestartPolicy> for device_spec::RestartPolicy {
    fn from(policy: RestartPolicy) -> Self {
        match policy {
            RestartPolicy::Always => Self::Always,
            RestartPolicy::OnFailure => Self::OnFailure,
            RestartPolicy::Never => Self::Never,
        }
    }
}

/// What becomes of a device in a VMM whose process has ended: the VMM does not connect again by itself.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum BackendLossPolicy {
    /// Leaves the dead device in the VMM until somebody unplugs it
    Hold,
    /// Unplugs it and plugs it in again, which the guest sees, if `vfuctl plug` gave it to the VMM
    Replug,
    /// The device is FAILED
    Fail,
}

impl From<BackendLossPolicy> for device_spec::BackendLossPolicy {
    fn from(policy: BackendLossPolicy) -> Self {
        match policy {
            BackendLossPolicy::Hold => Self::Hold,
            BackendLossPolicy::Replug => Self::Replug,
            BackendLossPolicy::Fail => Self::Fail,
        }
    }
}
