//! Signs of life. A sign is given only after a look at what would not be there in an agent that hangs: that its tasks
//! run is seen by this one running, and the rest is asked for.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::warn;

use super::notify;

/// Tells systemd that the agent lives, twice as often as it wants to hear it, each time that `probe` comes to its end
/// before the next.
pub(crate) async fn watch<F: Future<Output = Result<(), String>>>(
    probe: impl Fn() -> F,
) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|it| !it.is_zero()) else {
        return std::future::pending().await;
    };
    let every = (limit / 2).max(Duration::from_millis(1));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(every, probe()).await {
            Ok(Ok(())) => notify::alive().await,
            Ok(Err(error)) => warn!(error, "no sign of life for systemd"),
            Err(_) => {
                warn!(patience = ?every, "no sign of life for systemd: the agent does not come to an end with a look at itself");
            }
        }
    }
}
