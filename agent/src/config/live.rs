//! The configuration as it is now.

use std::sync::Arc;

use tokio::sync::watch;

use super::Config;

/// The configuration while the agent runs. Clones see the same. What can't change without a restart is as it was at the
/// start; everything else is to be read again each time it is needed.
#[derive(Debug, Clone)]
pub struct Live(watch::Receiver<Current>);

/// What is in force, and why nothing newer is.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) config: Arc<Config>,
    pub(super) error: Option<Arc<str>>,
}

impl Live {
    /// A configuration, and where to change it.
    pub(super) fn new(config: Config) -> (watch::Sender<Current>, Self) {
        let (sender, receiver) = watch::channel(Current {
            config: Arc::new(config),
            error: None,
        });
        (sender, Self(receiver))
    }

    /// A configuration that stays as it is.
    pub fn fixed(config: Config) -> Self {
        Self::new(config).1
    }

    /// The configuration now.
    pub fn get(&self) -> Arc<Config> {
        self.0.borrow().config.clone()
    }

    /// Why what was read last is not in force, when it is not.
    pub fn error(&self) -> Option<Arc<str>> {
        self.0.borrow().error.clone()
    }

    /// Waits until the configuration has been read again, which it also is when a file that it names has changed: it
    /// may be the same as before. Cancel safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
