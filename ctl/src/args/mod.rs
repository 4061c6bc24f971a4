//! The command line.
//!
//! Here is what holds for every command and those commands that only read; the others are in files by what they are about.

mod agent;
mod device;
mod early;
mod observe;
mod plug;
mod values;

use std::{path::PathBuf, time::Duration};

use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};

pub(crate) use self::{
    agent::{Drain, ShowAgent, ShutDownDevices, Undrain},
    device::{
        BackendLossPolicy, Create, Delete, Get, Limits, List, Reset, Restart, RestartPolicy, Update,
    },
    early::Early,
    observe::{Events, Logs, Stats, Watch},
    plug::{Doctor, Plug, Unplug, Wait},
    values::Goal,
};
use crate::{endpoint::Endpoint, error::EXIT_CODES, output::Format, tls::Tls};

const EXAMPLES: &str = "\
Examples:
  vfuctl models                                  what this host can serve
  vfuctl create e1000 --help                     the flags of model e1000
  vfuctl create e1000 nic0 --net.tap.ifname vfu0
  vfuctl list -o wide
  vfuctl cmdline nic0 --vmm qemu                 how a VMM uses it
  vfuctl plug nic0 --qmp /run/vm1/vfu.qmp        puts it into a running VM; vfuctl unplug takes it out
  vfuctl doctor nic0 --qmp /run/vm1/vfu.qmp      why that can't be
  vfuctl update nic0 --set link=down             pulls the cable while a guest uses it
  vfuctl probe nic0                              what a guest will see
  vfuctl watch                                   what changes, as it does
  vfuctl logs nic0 -f
  vfuctl delete nic0";

/// Creates, shows, changes and deletes the PCI devices that vfu-agent serves to virtual machines on this host.
#[derive(Debug, Parser)]
#[command(name = "vfuctl", version, color = ColorChoice::Never, max_term_width = 120)]
#[command(after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) globals: Globals,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// How to print the result
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Where the agent listens: unix://PATH, or https://HOST:PORT with the --tls flags
    #[arg(
        long,
        global = true,
        env = "VFU_ENDPOINT",
        hide_env_values = true,
        value_name = "URL"
    )]
    #[arg(default_value = "unix:///run/vfu/agent.sock")]
    pub(crate) endpoint: Endpoint,
    /// How long to wait for each answer of the agent, for a probe, and in `vfuctl wait`
    #[arg(long, global = true, value_name = "SECONDS", value_parser = values::seconds)]
    #[arg(default_value = "30")]
    pub(crate) timeout: Duration,
    /// Certificates.
    #[command(flatten)]
    pub(crate) tls: Tls,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(Create),
    Get(Get),
    List(List),
    Update(Update),
    Delete(Delete),
    Reset(Reset),
    Restart(Restart),
    Plug(Plug),
    Unplug(Unplug),
    Doctor(Doctor),
    Wait(Wait),
    Watch(Watch),
    Logs(Logs),
    Events(Events),
    Stats(Stats),
    Models(Models),
    Cmdline(Cmdline),
    Probe(Probe),
    Agent(ShowAgent),
    Drain(Drain),
    Undrain(Undrain),
    ShutdownDevices(ShutDownDevices),
    Version(Version),
    Completion(Completion),
}

/// List the models of this host, or show one with the fields of its configuration
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl models
  vfuctl models e1000
  vfuctl models e1000 -o json          the model with its JSON Schema")]
pub(crate) struct Models {
    /// Name of a model
    #[arg(value_name = "MODEL")]
    pub(crate) name: Option<String>,
}

/// Show the versions of vfuctl and of the agent
#[derive(Debug, Args)]
pub(crate) struct Version {}

/// Print a script that completes vfuctl's words in a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  source <(vfuctl completion bash)")]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Print what to add to a VMM's command line, so that its guest gets the devices
///
/// With -o json the arguments are a list, for programs; else they are quoted for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl cmdline nic0 --vmm qemu
  eval \"qemu-system-x86_64 -nographic $(vfuctl cmdline nic0 nic1 --vmm qemu --memory 1G)\"
  vfuctl cmdline nic0 --vmm cloud-hypervisor -o json")]
pub(crate) struct Cmdline {
    /// Ids of devices
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
    /// The VMM
    #[arg(long, value_enum)]
    pub(crate) vmm: Vmm,
    /// Memory of the guest, which has to be shared with the devices
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::size)]
    pub(crate) memory: String,
}

/// Show what a vfio-user socket has to offer, as `lspci -vvv` would
///
/// The device is asked, and nothing is written to it. A device that a VMM uses is left alone: it has one client at a time.
/// Where something else listens than a vfio-user server, it is named. Sockets need no agent.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl probe nic0
  vfuctl probe ./vfio-user.sock -o json")]
pub(crate) struct Probe {
    /// Id of a device, or path of a socket, with a / in it
    #[arg(value_name = "DEVICE|SOCKET")]
    pub(crate) target: PathBuf,
    /// The program that asks [default: vfu-device beside this program, else in PATH]
    #[arg(long, value_name = "PATH", env = "VFU_DEVICE_PROGRAM")]
    pub(crate) device_program: Option<PathBuf>,
}

/// The VMMs that `vfuctl cmdline` knows.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Vmm {
    /// QEMU from 10.1.1 on
    Qemu,
    /// cloud-hypervisor
    CloudHypervisor,
}
