//! `vfu-agent`: flags, logs, runtime, signals. What it does is in the library.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use agent::config::{Args, Config, Error, Live, Loaded, LogFormat, Sources};
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
    let check = args.check_config;
    let loaded = match Sources::new(args).load() {
        Ok(loaded) => loaded,
        Err(Error(problems)) => {
            for problem in problems {
                eprintln!("vfu-agent: {problem}");
            }
            return ExitCode::FAILURE;
        }
    };
    let result = match check {
        true => print(&loaded),
        false => start(loaded),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With all causes in one line, and without a backtrace: it is the operator's to mend.
            eprintln!("vfu-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Shows what the agent would go by.
fn print(loaded: &Loaded) -> anyhow::Result<()> {
    for warning in &loaded.warnings {
        eprintln!("vfu-agent: {warning}");
    }
    let text = toml::to_string(&loaded.config).context("write the configuration as TOML")?;
    println!("ok\n\n{text}");
    Ok(())
}

fn start(loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { config, warnings } = loaded;
    init_logs(&config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
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
    let path = config.listen();
    let listener = agent::bind_api(&path)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %path.display(),
        run_dir = %config.run_dir.display(),
        state_dir = %config.state_dir.display(),
        "starting"
    );
    let result = agent::run(Live::fixed(config), lock, listener, shutdown).await;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "remove the API's socket");
        }
        _ => {}
    }
    Ok(result?)
}

fn init_logs(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("log={}", config.log))?;
    // A line that can't be written is lost: telling of that on standard error, which it may be about, would panic.
    let logs = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
