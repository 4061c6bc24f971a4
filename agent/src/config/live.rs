//! The configuration as it is now.

use std::sync::Arc;

use tokio::sync::watch;

use super::Config;

/// The configuration while the agent runs. Clones see the same. What can't change without a restart is as it was at the
/// start; everything else is to be read again each time it is needed.
#[derive(Debug, Clone)]
pub struct Live(watch::Receiver<Arc<Config>>);

impl Live {
    /// A configuration, and where to change it.
    pub(super) fn new(config: Config) -> (watch::Sender<Arc<Config>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(config));
        (sender, Self(receiver))
    }

    /// A configuration that stays as it is.
    pub fn fixed(config: Config) -> Self {
        Self::new(config).1
    }

    /// The configuration now.
    pub fn get(&self) -> Arc<Config> {
        self.0.borrow().clone()
    }

    /// Waits until it is another than the last that was seen by this. It may never be. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
