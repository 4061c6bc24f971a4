//! `vfu-agent`: flags, logs, runtime, signals. What it does is in the library.

use std::io::{self, IsTerminal};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use agent::config::{Args, Config, Error, Loaded, LogFormat, Reloader, SetFilter, Sources};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

/// How long what may not be interrupted, as a write to a disk, can hold up the end.
const LAST_WRITES: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // First of all, because it goes by the number of a file descriptor.
    let inherited = agent::systemd::api_listener();
    let args = Args::parse();
    #[cfg(debug_assertions)]
    if args.steps {
        println!("{}", agent::STEPS.join("\n"));
        return ExitCode::SUCCESS;
    }
    let check = args.check_config;
    let sources = Sources::new(args);
    let loaded = match sources.load() {
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
        false => inherited
            .context("take the socket that systemd passed")
            .and_then(|inherited| start(sources, loaded, inherited)),
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

fn start(sources: Sources, loaded: Loaded, inherited: Option<UnixListener>) -> anyhow::Result<()> {
    let Loaded { config, warnings } = loaded;
    let set_filter = init_logs(&config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(run(sources, config, set_filter, inherited));
    runtime.shutdown_timeout(LAST_WRITES);
    result
}

async fn run(
    sources: Sources,
    config: Config,
    set_filter: SetFilter,
    inherited: Option<UnixListener>,
) -> anyhow::Result<()> {
    let ends = [
        signal(SignalKind::terminate()).context("watch SIGTERM")?,
        signal(SignalKind::interrupt()).context("watch SIGINT")?,
    ];
    let hangup = signal(SignalKind::hangup()).context("watch SIGHUP")?;

    let lock = agent::lock(&config)?;
    let (listener, listen, made) = match inherited {
        // It is there for the agents after this one, too.
        Some(listener) => {
            let address = listener.local_addr().context("read the API's address")?;
            let path = address.as_pathname().map_or_else(PathBuf::new, Into::into);
            listener
                .set_nonblocking(true)
                .context("prepare the API's socket")?;
            let listener = tokio::net::UnixListener::from_std(listener);
            (listener.context("prepare the API's socket")?, path, false)
        }
        None => (agent::bind_api(&config)?, config.listen(), true),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %listen.display(),
        run_dir = %config.run_dir.display(),
        state_dir = %config.state_dir.display(),
        "starting"
    );

    let (reloader, live) = Reloader::new(sources, config, set_filter);
    let mut tasks = JoinSet::new();
    let (ask, asked) = mpsc::channel(1);
    tasks.spawn(reloader.run(asked));
    tasks.spawn(on_hangup(hangup, ask));
    let (end, ended) = oneshot::channel();
    let shutdown = async {
        // An error means that nobody listens to signals any more.
        let _ = ended.await;
    };
    let result = tokio::select! {
        result = agent::run(live, lock, listener, shutdown) => result.map_err(anyhow::Error::from),
        () = on_end(ends, end) => Err(anyhow::anyhow!("ended at once by a second signal; calls under way were cut off")),
    };
    tasks.shutdown().await;
    if made {
        match std::fs::remove_file(&listen) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %listen.display(), "remove the API's socket");
            }
            _ => {}
        }
    }
    result
}

/// Asks for the configuration to be read again at each SIGHUP.
async fn on_hangup(mut hangup: Signal, ask: mpsc::Sender<()>) {
    while hangup.recv().await.is_some() {
        // When the queue is full, it is about to be read again anyway.
        let _ = ask.try_send(());
    }
}

/// Passes the first signal to end on, and returns at the second.
async fn on_end([mut terminate, mut interrupt]: [Signal; 2], end: oneshot::Sender<()>) {
    let mut end = Some(end);
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        match end.take() {
            // An error means that the agent ends already.
            Some(end) => drop(end.send(())),
            None => return,
        }
    }
}

fn init_logs(config: &Config) -> anyhow::Result<SetFilter> {
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("log={}", config.log))?;
    let (filter, handle) = reload::Layer::new(filter);
    // A line that can't be written is lost: telling of that on standard error, which it may be about, would panic.
    let lines = fmt::layer()
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    let logs = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => logs.with(lines).init(),
        LogFormat::Json => logs.with(lines.json()).init(),
    }
    Ok(Box::new(move |text| {
        let filter = EnvFilter::try_new(text).map_err(anyhow::Error::from);
        if let Err(error) = filter.and_then(|filter| Ok(handle.reload(filter)?)) {
            tracing::error!(error = format!("{error:#}"), "log filter not changed");
        }
    }))
}
