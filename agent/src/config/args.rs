//! The agent's flags.

use std::path::PathBuf;

use clap::Parser;

use super::LogFormat;

/// Serves PCI devices outside of the VMM: the agent of one host.
///
/// Every key of the configuration file can be set by a variable too, VFU_LIMITS_DEVICES for devices of limits, and by
/// --set. Flags win over variables, and those over the file.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "vfu-agent", version)]
pub struct Args {
    /// Configuration file [env: VFU_CONFIG] [default: /etc/vfu/agent.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Set a key of the configuration, such as limits.devices=10
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Print the configuration that all of this makes, or all that is wrong with it, and end
    #[arg(long)]
    pub check_config: bool,

    /// Directory of sockets and of all that goes with a boot [env: VFU_RUN_DIR] [default: /run/vfu]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory of what survives a boot [env: VFU_STATE_DIR] [default: /var/lib/vfu]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where to serve the API [env: VFU_LISTEN] [default: unix://RUN_DIR/agent.sock]
    #[arg(long, value_name = "unix://PATH")]
    pub listen: Option<String>,

    /// The program that serves devices [env: VFU_DEVICE_PROGRAM] [default: vfu-device beside this program, else in PATH]
    #[arg(long, value_name = "PATH")]
    pub device_program: Option<PathBuf>,

    /// Form of the logs on stderr [env: VFU_LOG_FORMAT] [default: text]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,

    /// How much to log, such as debug or agent=debug [env: VFU_LOG] [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,

    /// Print the steps at which tests can have the agent die
    #[cfg(debug_assertions)]
    #[arg(long, hide = true)]
    pub steps: bool,
}
