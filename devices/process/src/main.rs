//! `vfu-device`: one process that serves one emulated PCI device over vfio-user.
//!
//! It works alone, by the conventions for vfio-user backend programs (`--socket-path` or `--fd`, SIGTERM ends it, no
//! daemonising), and under an agent, which passes the bound sockets and talks to it through the control socket.

mod args;
mod control;
mod failure;
mod inherit;
mod server;
mod throttle;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use tracing::{error, info};

use crate::{
    args::{Args, Command, LogFormat, Serve},
    control::Control,
    failure::Failure,
    server::Server,
};

fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr(args.serve.log_format);
    match args.command {
        Some(Command::Models { json }) => print_models(json),
        None if args.serve.print_capabilities => print_capabilities(&args.serve),
        None => serve(args.serve),
    }
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("VFU_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
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
    let server = match Server::open(&args, &mut control) {
        Ok(server) => server,
        Err(failure) => {
            control.send_failure(&failure);
            return give_up(&failure);
        }
    };
    info!(model = args.model, "serving");
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
