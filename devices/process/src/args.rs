//! The command line.

use std::{os::fd::RawFd, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

/// Serves one emulated PCI device over vfio-user.
///
/// Exit codes: 0 ended by SIGTERM or SIGINT; 2 wrong usage; 70 internal failure; 73 a resource of the host can't be had
/// (a TAP in use, a network namespace that is not there), or a socket has nothing to probe; 77 no permission; 78 bad
/// configuration, or a socket of another protocol.
#[derive(Debug, Parser)]
#[command(
    name = "vfu-device",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the models that this program can serve.
    Models {
        /// With PCI ids and the JSON Schema of each model's configuration.
        #[arg(long)]
        json: bool,
    },
    Probe(Probe),
    External(External),
}

/// Runs another program as a device's server, for an agent: starts it, tells the agent of its clients, and ends with it.
#[derive(Debug, clap::Args)]
pub(crate) struct External {
    /// What to start, and what it is like: JSON, or @FILE to read it from.
    #[arg(long, value_name = "JSON|@FILE")]
    pub(crate) config: String,
    /// The inherited listening AF_UNIX stream socket that the program serves, when it takes one.
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<RawFd>,
    /// Take commands and report status on this inherited listening AF_UNIX seqpacket socket.
    #[arg(long, value_name = "N")]
    pub(crate) control_fd: RawFd,
}

/// Shows the device that a vfio-user server offers on a socket, as `lspci -vvv` would.
///
/// The device is asked and nothing is written to it. Of a device that a VMM uses nothing can be learned, and the VMM does
/// not notice. What is no vfio-user server is named.
#[derive(Debug, clap::Args)]
pub(crate) struct Probe {
    /// Path of the socket.
    #[arg(value_name = "SOCKET")]
    pub(crate) socket: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// How long to wait for answers; to find out what it is that gives none takes a second more.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|it| !it.is_zero() && *it <= Duration::from_secs(86400))
        .ok_or_else(|| "must be more than 0 and at most 86400".into())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The model to serve; `vfu-device models` lists them.
    #[arg(required = true, default_value = "")]
    pub(crate) model: String,
    /// Make a listening socket at this path, and remove it at the end.
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities"], conflicts_with = "fd")]
    pub(crate) socket_path: Option<PathBuf>,
    /// Serve this inherited listening AF_UNIX stream socket.
    #[arg(long, value_name = "N")]
    pub(crate) fd: Option<RawFd>,
    /// The model's configuration: JSON, or @FILE to read it from.
    #[arg(long, value_name = "JSON|@FILE", default_value = "{}")]
    pub(crate) config: String,
    /// Take commands and report status on this inherited listening AF_UNIX seqpacket socket.
    #[arg(long, value_name = "N")]
    pub(crate) control_fd: Option<RawFd>,
    /// Keep counters in this inherited file, for who reads it meanwhile.
    #[arg(long, value_name = "N")]
    pub(crate) stats_fd: Option<RawFd>,
    /// After a request, look for the next one for so many microseconds before sleeping: answers come sooner, and take more
    /// of a processor. 0: never.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub(crate) spin_us: u16,
    /// How log lines look. VFU_LOG sets what is logged (`info`, `debug`, `vfio_user=trace`).
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Print what this program can do, as JSON, and exit.
    #[arg(long)]
    pub(crate) print_capabilities: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn one_socket_is_needed() {
        assert!(parse("vfu-device e1000").is_err());
        assert!(parse("vfu-device --fd 3").is_err());
        assert!(parse("vfu-device e1000 --fd 3 --socket-path /x").is_err());
        assert_eq!(parse("vfu-device e1000 --fd 3").unwrap().serve.fd, Some(3));
        assert!(parse("vfu-device e1000 --print-capabilities").is_ok());
    }

    #[test]
    fn spinning_is_off_and_bounded() {
        let spin = |line| parse(line).map(|args| args.serve.spin_us).ok();
        assert_eq!(spin("vfu-device e1000 --fd 3"), Some(0));
        assert_eq!(spin("vfu-device e1000 --fd 3 --spin-us 1000"), Some(1000));
        assert_eq!(spin("vfu-device e1000 --fd 3 --spin-us 1001"), None);
    }

    #[test]
    fn a_probe_needs_a_socket_and_ends() {
        let timeout = |line: &str| match parse(line).map(|args| args.command) {
            Ok(Some(Command::Probe(probe))) => Some(probe.timeout),
            _ => None,
        };
        assert_eq!(timeout("vfu-device probe"), None);
        assert_eq!(timeout("vfu-device probe x"), Some(Duration::from_secs(5)));
        let tenth = timeout("vfu-device probe x --json --timeout 0.1");
        assert_eq!(tenth, Some(Duration::from_millis(100)));
        for wrong in ["0", "-1", "nan", "1e9", "x"] {
            let line = format!("vfu-device probe x --timeout={wrong}");
            assert_eq!(timeout(&line), None, "{wrong}");
        }
    }

    #[test]
    fn models_needs_nothing_else() {
        assert!(matches!(
            parse("vfu-device models --json").unwrap().command,
            Some(Command::Models { json: true })
        ));
    }
}
