//! `vfu-device`: one process that serves one emulated PCI device over vfio-user.
//!
//! It works alone, by the conventions for vfio-user backend programs (`--socket-path` or `--fd`, SIGTERM ends it, no
//! daemonising), and under an agent, which passes the bound sockets and talks to it through the control socket.

mod args;
mod control;
mod external;
mod failure;
mod heap;
mod inherit;
mod probe;
mod server;
mod stats;
mod throttle;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Args, Command, LogFormat, Probe, Serve},
    control::Control,
    failure::Failure,
    server::Server,
    stats::Stats,
};

fn main() -> ExitCode {
    heap::set_up();
    let args = Args::parse();
    if let Err(failure) = log_to_stderr(args.serve.log_format) {
        let _ = writeln!(std::io::stderr(), "vfu-device: {failure}");
        return failure::exit_code(&failure);
    }
    match args.command {
        Some(Command::Models { json }) => print_models(json),
        Some(Command::Probe(args)) => print_probe(&args),
        Some(Command::External(args)) => external::run(&args),
        None if args.serve.print_capabilities => print_capabilities(&args.serve),
        None => serve(args.serve),
    }
}

fn log_to_stderr(format: LogFormat) -> Result<(), Failure> {
    let filter = match std::env::var("VFU_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .map_err(|error| Failure::invalid(format!("VFU_LOG={text}: {error}")))?,
        Err(_) => EnvFilter::new("info"),
    };
    // A line that can't be written is lost: telling of that on standard error, which it may be about, would panic.
    let builder = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

fn print_models(json: bool) -> ExitCode {
    let text = if json {
        format!(
            "{:#}\n",
            serde_json::json!({ "models": models::catalogue() })
        )
    } else {
        models::catalogue()
            .iter()
            .map(|model| format!("{:12} {}\n", model.name, model.description))
            .collect()
    };
    print(&text)
}

/// A failure is a line for the person who asked, not a log.
fn print_probe(args: &Probe) -> ExitCode {
    match probe::run(args) {
        Ok(text) => print(&text),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "vfu-device: {failure}");
            failure::exit_code(&failure)
        }
    }
}

/// What a program that starts backends asks first.
fn print_capabilities(serve: &Serve) -> ExitCode {
    print(&format!(
        "{:#}\n",
        serde_json::json!({ "type": "vfio-user", "model": serve.model, "features": ["fd"] })
    ))
}

fn print(text: &str) -> ExitCode {
    // A reader that has closed the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn serve(args: Serve) -> ExitCode {
    let mut control = match Control::new(args.control_fd) {
        Ok(control) => control,
        Err(failure) => return give_up(&failure),
    };
    let server =
        match Stats::open(args.stats_fd).and_then(|stats| Server::open(&args, &control, stats)) {
            Ok(server) => server,
            Err(failure) => {
                control.send_failure(&failure);
                return give_up(&failure);
            }
        };
    info!(model = args.model, "serving");
    heap::trim();
    match server.run(control) {
        Ok(signal) => {
            info!(%signal, "ended by signal");
            ExitCode::SUCCESS
        }
        Err(errno) => give_up(&Failure::internal(format!("wait for events: {errno}"))),
    }
}

fn give_up(failure: &Failure) -> ExitCode {
    error!(field = failure.field, kind = ?failure.kind, "{}", failure.message);
    failure::exit_code(failure)
}
