//! What systemd is told.

use sd_notify::NotifyState;
use tracing::warn;

/// The agent serves.
pub(crate) async fn ready(status: &str) {
    tell(vec![Say::Ready, Say::Status(status.to_owned())]).await;
}

/// The agent reads its configuration again, until it says that it is ready.
pub(crate) async fn reloading() {
    tell(vec![Say::Reloading]).await;
}

/// The agent ends.
pub(crate) async fn stopping() {
    let status = "finishing the calls under way; devices live on";
    tell(vec![Say::Stopping, Say::Status(status.to_owned())]).await;
}

/// The agent lives.
pub(super) async fn alive() {
    tell(vec![Say::Alive]).await;
}

enum Say {
    Ready,
    Reloading,
    Stopping,
    Status(String),
    Alive,
}

/// Systemd may be slow to read, and the agent's threads are not to wait for it.
async fn tell(words: Vec<Say>) {
    let tell = move || {
        let mut states = Vec::new();
        for word in &words {
            match word {
                Say::Ready => states.push(NotifyState::Ready),
                Say::Reloading => {
                    states.push(NotifyState::Reloading);
                    // By this systemd tells an answer to its last signal from one to the signal before.
                    states.push(NotifyState::monotonic_usec_now()?);
                }
                Say::Stopping => states.push(NotifyState::Stopping),
                Say::Status(text) => states.push(NotifyState::Status(text)),
                Say::Alive => states.push(NotifyState::Watchdog),
            }
        }
        sd_notify::notify(&states)
    };
    // It fails to be joined only when the runtime ends before it.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(tell).await {
        warn!(%error, "systemd not told");
    }
}
