//! `vfu-agent`: flags, logs, runtime, signals. What it does is in the library.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use agent::{Args, Config, LogFormat};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    #[cfg(debug_assertions)]
    if args.steps {
        println!("{}", agent::STEPS.join("\n"));
        return ExitCode::SUCCESS;
    }
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With all causes in one line, and without a backtrace: it is the operator's to mend.
            eprintln!("vfu-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> anyhow::Result<()> {
    init_logs(args.log_format)?;
    let config = Config::new(args).context("find the current directory")?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };

    let lock = agent::lock(&config)?;
    let path = config.listen.clone();
    let listener = agent::bind_api(&path)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %path.display(),
        run_dir = %config.run_dir.display(),
        state_dir = %config.state_dir.display(),
        "starting"
    );
    let result = agent::run(config, lock, listener, shutdown).await;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "remove the API's socket");
        }
        _ => {}
    }
    Ok(result?)
}

fn init_logs(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("VFU_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("VFU_LOG={text}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    // A line that can't be written is lost: telling of that on standard error, which it may be about, would panic.
    let logs = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
