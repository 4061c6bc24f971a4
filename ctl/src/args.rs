//! The command line.
//!
//! The flags of `vfuctl create MODEL` come from the model, and the model from the agent, whose address is on the command
//! line too. So the words are read twice: [`Early`] finds the model and the agent among words it does not all know, and
//! clap reads them all once the model's flags are added.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    ArgGroup, Args, ColorChoice, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind,
};

use crate::{client::Endpoint, error::EXIT_CODES, output::Format};

const EXAMPLES: &str = "\
Examples:
  vfuctl models                                  what this host can serve
  vfuctl create e1000 --help                     the flags of model e1000
  vfuctl create e1000 nic0 --net.tap.ifname vfu0
  vfuctl list -o wide
  vfuctl cmdline nic0 --vmm qemu                 how a VMM uses it
  vfuctl update nic0 --set link=down             pulls the cable while a guest uses it
  vfuctl probe nic0                              what a guest will see
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
    /// Socket of the agent
    #[arg(
        long,
        global = true,
        env = "VFU_ENDPOINT",
        hide_env_values = true,
        value_name = "unix://PATH"
    )]
    #[arg(default_value = "unix:///run/vfu/agent.sock")]
    pub(crate) endpoint: Endpoint,
    /// How long to wait for each answer of the agent, and for a probe
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    #[arg(default_value = "30")]
    pub(crate) timeout: Duration,
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
    Models(Models),
    Version(Version),
    Cmdline(Cmdline),
    Probe(Probe),
}

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
  vfuctl get nic0 nic1 -o wide")]
pub(crate) struct Get {
    /// Ids of devices
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

/// List all devices
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vfuctl list -o wide
  vfuctl delete $(vfuctl list -o name)")]
pub(crate) struct List {}

/// Change a device while it lives: fields of its configuration, and labels
///
/// A VMM stays connected, and its guest sees the change as it would see it on a real card. `vfuctl models MODEL` says which
/// fields of the configuration can change; for the others, delete the device and create it anew. What is changed stays so
/// when the device's process is started again.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args(["set", "unset", "label", "unlabel"])))]
#[command(after_help = "\
Examples:
  vfuctl update nic0 --set link=down
  vfuctl update nic0 --unset link --label tenant=blue
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
}

/// Put a device back to its power-on state; a connected VMM stays connected
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vfuctl reset nic0")]
pub(crate) struct Reset {
    /// Id of the device
    pub(crate) id: String,
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
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
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

/// What has to be known of a `vfuctl create MODEL` before the model's flags are.
#[derive(Debug)]
pub(crate) struct Early {
    /// The model.
    pub(crate) model: String,
    /// Where and how long to ask for it.
    pub(crate) globals: Globals,
}

impl Early {
    /// Finds them in `words`, the command line with the program's name. None when this is no `create` with a model:
    /// then clap alone reads it. Flags of the model may only follow it, because whether they take a value is unknown.
    pub(crate) fn find(words: &[OsString]) -> Result<Option<Self>, clap::Error> {
        #[derive(Parser)]
        #[command(name = "vfuctl", color = ColorChoice::Never)]
        struct OnlyGlobals {
            #[command(flatten)]
            globals: Globals,
        }

        let cli = Cli::command();
        let known: Vec<_> = cli
            .get_arguments()
            .chain(
                cli.find_subcommand("create")
                    .into_iter()
                    .flat_map(|it| it.get_arguments()),
            )
            .collect();
        let is = |arg: &clap::Arg, flag: &str| {
            let long = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            long.as_deref() == Some(flag) || short.as_deref() == Some(flag)
        };
        let takes_value = |flag: &str| {
            let mut arguments = known.iter();
            arguments.any(|arg| is(arg, flag) && arg.get_action().takes_values())
        };

        let mut positionals = Vec::new();
        let mut globals = vec![OsString::from("vfuctl")];
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let Some(text) = word.to_str() else { continue };
            if text == "--" {
                break;
            }
            let flag = match text.starts_with("--") {
                true => text.split('=').next().unwrap_or_default(),
                // A short flag's value may stick to it, as in `-ojson`.
                false => text.get(..2).unwrap_or(text),
            };
            if text.starts_with('-') && text != "-" {
                let ours =
                    known.iter().any(|arg| is(arg, flag)) || ["-h", "--help"].contains(&flag);
                if positionals == ["create"] && !ours && !text.contains('=') {
                    let why =
                        format!("{flag} comes before MODEL; flags of a model are given after it");
                    return Err(Cli::command().error(ErrorKind::UnknownArgument, why));
                }
                let value = match takes_value(flag) && flag == text {
                    true => words.next(),
                    false => None,
                };
                if flag == "--endpoint" || flag == "--timeout" {
                    globals.push(word.clone());
                    globals.extend(value.cloned());
                }
            } else {
                positionals.push(text);
            }
        }
        match positionals[..] {
            ["create", model, ..] => Ok(Some(Self {
                model: model.to_owned(),
                globals: OnlyGlobals::try_parse_from(globals)?.globals,
            })),
            _ => Ok(None),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|it| !it.is_zero() && *it <= Duration::from_secs(86400))
        .ok_or_else(|| "must be more than 0 and at most 86400".into())
}

/// A size that both VMMs read the same way.
fn size(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['K', 'M', 'G']);
    match digits.is_some_and(|it| it.parse::<u64>().is_ok_and(|it| it > 0)) {
        true => Ok(text.to_owned()),
        false => Err("must be a whole number with K, M or G, as 512M".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn early(line: &str) -> Option<Early> {
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        Early::find(&words).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn model_and_agent_are_found_among_unknown_flags() {
        let early = early(
            "vfuctl -o json create -oyaml --label a=b e1000 nic0 --net.tap.ifname vfu0 --endpoint unix:///x.sock --timeout=5",
        )
        .unwrap();
        assert_eq!(early.model, "e1000");
        assert_eq!(early.globals.endpoint.path.to_str(), Some("/x.sock"));
        assert_eq!(early.globals.timeout, Duration::from_secs(5));
    }

    #[test]
    fn other_commands_have_no_model() {
        assert!(early("vfuctl get nic0").is_none());
        assert!(early("vfuctl create --help").is_none());
        assert!(early("vfuctl help create").is_none());
        assert!(early("vfuctl").is_none());
    }

    #[test]
    fn a_bad_endpoint_is_wrong_usage() {
        let words = ["vfuctl", "create", "e1000", "--endpoint", "tcp"].map(OsString::from);
        assert_eq!(Early::find(&words).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn durations_and_sizes_are_checked() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("0").is_err() && seconds("-1").is_err() && seconds("nan").is_err());
        assert!(size("1G").is_ok());
        assert!(size("G").is_err() && size("1,x").is_err() && size("0M").is_err());
    }
}
