//! The agent: one process per host that makes, watches and removes devices for whoever calls its
//! API. It touches no guest and knows no device model; a device is a process of its own, which the
//! agent starts, finds again and ends.

mod access;
mod audit;
mod chain;
mod change;
mod changes;
mod clock;
pub mod config;
mod events;
mod filter;
mod journal;
mod labels;
mod limits;
mod listen;
mod models;
mod mutable;
mod patience;
mod plain;
mod preflight;
mod rpc;
mod runtimes;
mod schema;
mod socket;
mod stats;
mod steps;
mod store;
mod supervisor;
pub mod systemd;
mod vmm;

use std::fs::File;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use proto::v1::agent_service_server::AgentServiceServer;
use proto::v1::device_service_server::DeviceServiceServer;
use proto::v1::model_service_server::ModelServiceServer;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Server;

pub use self::access::{Account, Error as AccessError, Role, Rule, Rules};
pub use self::audit::Error as AuditError;
use self::config::{Config, Live, MAX_REQUEST_BYTES};
pub use self::listen::Error as ListenError;
pub use self::listen::bind_api;
pub use self::socket::Error as SocketError;
#[cfg(debug_assertions)]
pub use self::steps::ALL as STEPS;
pub use self::store::Error as StoreError;

/// How long the answers of the last of them may take to their callers.
const FLUSH: Duration = Duration::from_millis(200);

/// Calls and streams under way on one connection; its client keeps more to itself until one ends.
const STREAMS_OF_CONNECTION: u32 = 128;
/// All headers of one call.
const HEADER_BYTES: u32 = 16 << 10;
/// Calls that a client may take back before the agent has looked at them, and calls that were malformed, before its
/// connection is closed.
const RESET_STREAMS: usize = 128;
const LOCAL_RESETS: usize = 256;
/// How often a client that is silent is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(20);

/// Why the agent can't run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory can't be used.
    #[error("{operation} {}", path.display())]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another agent has the run directory.
    #[error(
        "{} is in use by another agent: stop it, or give this one another --run-dir",
        path.display()
    )]
    Locked {
        /// The run directory.
        path: PathBuf,
    },
    /// The store can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A rule of access names what is not there.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The audit log can't be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Other hosts can't be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Reflection can't be served.
    #[error("read the descriptors of the API")]
    Descriptors(#[from] tonic_reflection::server::Error),
    /// Serving failed.
    #[error("serve the API")]
    Serve(#[from] tonic::transport::Error),
}

/// The run directory, locked: while it is held no other agent uses it.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

/// Makes the run directory and locks it. Comes before the API's socket is made, so that of two
/// agents that start at once one is refused.
pub fn lock(config: &Config) -> Result<RunLock, Error> {
    let is_held = |error: &Error| matches!(error, Error::Locked { .. });
    patience::unless_held(|| try_lock(config), is_held)
}

fn try_lock(config: &Config) -> Result<RunLock, Error> {
    let path = config.run_dir.clone();
    let at = |operation| {
        let path = path.clone();
        move |source| Error::Directory {
            operation,
            path,
            source,
        }
    };
    std::fs::create_dir_all(config.devices_dir()).map_err(at("make"))?;
    let directory = File::open(&path).map_err(at("open"))?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            steps::reached("agent.locked");
            Ok(RunLock(lock))
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Locked { path }),
        Err((_, errno)) => Err(at("lock")(errno.into())),
    }
}

/// Serves the API on `listener` until `shutdown`. Devices live on; the next agent finds them.
pub async fn run(
    live: Live,
    _lock: RunLock,
    listener: UnixListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    limits::raise_open_files();
    let config = live.get();
    let boot_id = boot_id()?;
    let store = store::Store::open(&config.state_dir)?;
    let models = models::Models::new(config.device_program.as_deref(), config.models_dirs.clone());
    let audit = audit::Audit::open(&config.audit_path(), config.audit.max_bytes)?;
    let access = access::Access::new(Rules::new(&config.access)?);
    let calls = rpc::Calls::new(live.clone(), access, audit);
    if let Err(error) = models.get().await {
        tracing::warn!(error = chain::chain(&error), "no devices can be made yet");
    }

    // First no more calls come in and streams end, then what the calls under way need.
    let (end, ending) = watch::channel(false);
    let (stop, stopping) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let (listener, incoming) = listen::Listener::new(listener, &live, &mut tasks, &ending).await?;
    tasks.spawn(calls.clone().follow(ending.clone()));
    let supervisor =
        supervisor::Supervisor::start(live.clone(), store, models, boot_id, rpc::encode, stopping);
    let supervisor = Arc::new(supervisor);
    let service = rpc::Service::new(supervisor.clone(), live.clone(), ending.clone());

    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<DeviceServiceServer<rpc::Service>>()
        .await;
    health
        .set_serving::<ModelServiceServer<rpc::Service>>()
        .await;
    health
        .set_serving::<AgentServiceServer<rpc::Service>>()
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };

    // The layer refuses what is longer than the limit of the moment.
    let devices = DeviceServiceServer::new(service.clone());
    let devices = devices.max_decoding_message_size(MAX_REQUEST_BYTES);
    let models = ModelServiceServer::new(service.clone());
    let models = models.max_decoding_message_size(MAX_REQUEST_BYTES);
    let agent = AgentServiceServer::new(service);
    let agent = agent.max_decoding_message_size(MAX_REQUEST_BYTES);

    let ended = |mut ending: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is as good.
        let _ = ending.wait_for(|it| *it).await;
    };
    tasks.spawn(listener.run(ending.clone()));
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_OF_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .layer(calls.clone())
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        // Python's own reflection knows no other.
        .add_service(reflection().build_v1alpha()?)
        .add_service(devices)
        .add_service(models)
        .add_service(agent)
        .serve_with_incoming_shutdown(incoming, ended(ending.clone()));
    tokio::pin!(server);
    tracing::info!("serving");
    systemd::ready("serving").await;
    let watchdog = systemd::watch(|| supervisor.probe());
    tokio::pin!(watchdog);
    let mut cut = false;
    let result = tokio::select! {
        result = &mut server => result,
        never = &mut watchdog => match never {},
        () = shutdown => {
            tracing::info!("ending; devices live on");
            systemd::stopping().await;
            health.set_not_serving::<DeviceServiceServer<rpc::Service>>().await;
            health.set_not_serving::<ModelServiceServer<rpc::Service>>().await;
            health.set_not_serving::<AgentServiceServer<rpc::Service>>().await;
            health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            calls.close();
            end.send_replace(true);
            let grace = live.get().timeouts.shutdown;
            // Connections without a call may stay open for ever; the agent does not wait for them.
            let quiet = async {
                calls.idle().await;
                tokio::time::sleep(FLUSH).await;
            };
            tokio::select! {
                result = &mut server => result,
                quiet = tokio::time::timeout(grace, quiet) => {
                    cut = quiet.is_err();
                    if cut {
                        tracing::warn!(?grace, "calls cut off: they took longer than timeouts.shutdown");
                    }
                    Ok(())
                }
            }
        }
    };
    end.send_replace(true);
    stop.send_replace(true);
    while tasks.join_next().await.is_some() {}
    supervisor.join().await;
    if cut {
        // Their callers are told so, now that nothing answers them any more.
        let _ = tokio::time::timeout(FLUSH, calls.idle()).await;
        tokio::time::sleep(FLUSH).await;
    }
    Ok(result?)
}

fn boot_id() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|source| Error::Directory {
        operation: "read",
        path: path.into(),
        source,
    })?;
    Ok(text.trim().to_owned())
}
