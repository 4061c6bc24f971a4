//! The agent's flags, and the configuration made of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::access::Rules;

/// Serves PCI devices outside of the VMM: the agent of one host.
#[derive(Debug, Parser)]
#[command(name = "vfu-agent", version)]
pub struct Args {
    /// Directory of sockets and of all that goes with a boot
    #[arg(
        long,
        value_name = "DIR",
        env = "VFU_RUN_DIR",
        default_value = "/run/vfu"
    )]
    pub run_dir: PathBuf,

    /// Directory of what survives a boot
    #[arg(
        long,
        value_name = "DIR",
        env = "VFU_STATE_DIR",
        default_value = "/var/lib/vfu"
    )]
    pub state_dir: PathBuf,

    /// Where to serve the API [default: unix://RUN_DIR/agent.sock]
    #[arg(long, value_name = "unix://PATH", env = "VFU_LISTEN", value_parser = unix_path)]
    pub listen: Option<PathBuf>,

    /// The program that serves devices [default: vfu-device beside this program, else in PATH]
    #[arg(long, value_name = "PATH", env = "VFU_DEVICE_PROGRAM")]
    pub device_program: Option<PathBuf>,

    /// Form of the logs on stderr; VFU_LOG says how much, such as `debug` or `agent=debug`
    #[arg(long, value_enum, env = "VFU_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Print the steps at which tests can have the agent die
    #[cfg(debug_assertions)]
    #[arg(long, hide = true)]
    pub steps: bool,
}

/// Form of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object per line.
    Json,
}

/// What the agent goes by.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of sockets and of all that goes with a boot. Absolute.
    pub run_dir: PathBuf,
    /// Directory of what survives a boot. Absolute.
    pub state_dir: PathBuf,
    /// The API's socket. Absolute.
    pub listen: PathBuf,
    /// The device program, when it was named.
    pub device_program: Option<PathBuf>,
    /// From spawn to the first status of a device's process.
    pub start_timeout: Duration,
    /// From SIGTERM to SIGKILL of a device's process.
    pub stop_timeout: Duration,
    /// How many devices there may be.
    pub max_devices: usize,
    /// How many calls may be under way.
    pub max_calls: usize,
    /// Who may call.
    pub access: Rules,
    /// Where the audit log is. Absolute.
    pub audit_path: PathBuf,
    /// Its size, from which on it is put aside.
    pub audit_max_bytes: u64,
}

impl Config {
    /// The configuration that the flags ask for.
    pub fn new(args: &Args) -> std::io::Result<Self> {
        let run_dir = std::path::absolute(&args.run_dir)?;
        let state_dir = std::path::absolute(&args.state_dir)?;
        Ok(Self {
            listen: args
                .listen
                .clone()
                .unwrap_or_else(|| run_dir.join("agent.sock")),
            audit_path: state_dir.join("audit.log"),
            audit_max_bytes: 16 << 20,
            access: Rules::default(),
            state_dir,
            device_program: args
                .device_program
                .as_deref()
                .map(std::path::absolute)
                .transpose()?,
            run_dir,
            start_timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(5),
            max_devices: 4096,
            max_calls: 256,
        })
    }

    /// Where a device has its sockets.
    pub(crate) fn devices_dir(&self) -> PathBuf {
        self.run_dir.join("devices")
    }

    /// Where changes are written down for the next agent.
    pub(crate) fn changes_dir(&self) -> PathBuf {
        self.run_dir.join("changes")
    }
}

fn unix_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://").map(Path::new) {
        Some(path) if path.is_absolute() => Ok(path.to_owned()),
        _ => Err("expected unix:// and an absolute path, as in unix:///run/vfu/agent.sock".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn the_socket_is_in_the_run_directory_unless_named() {
        let config = |args: &[&str]| Config::new(&Args::parse_from(args)).unwrap();
        assert_eq!(
            config(&["vfu-agent", "--run-dir", "/r"]).listen,
            Path::new("/r/agent.sock")
        );
        assert_eq!(
            config(&["vfu-agent", "--listen", "unix:///x.sock"]).listen,
            Path::new("/x.sock")
        );
        assert!(Args::try_parse_from(["vfu-agent", "--listen", "unix://x.sock"]).is_err());
        assert!(Args::try_parse_from(["vfu-agent", "--listen", "tcp://0.0.0.0:1"]).is_err());
    }
}
