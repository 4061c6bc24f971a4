//! Reading the configuration again while the agent runs, when it is asked to or a file has changed.
//!
//! All of what was read is taken over or nothing: a file with a mistake leaves the agent as it is. A change of what takes
//! a restart is told, and waits for one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use toml::{Table, Value};
use tracing::{error, info, warn};

use super::files::Files;
use super::keys::{self, Effect};
use super::live::Current;
use super::load::{get, put};
use super::{Config, Error, Live, Loaded, Sources};
use crate::systemd;

/// Who changes several files, or one in several steps, is given so much time to come to an end.
const SETTLE: Duration = Duration::from_millis(100);

/// Sets the filter of the logs.
pub type SetFilter = Box<dyn Fn(&str) + Send>;

/// Who reads the configuration again.
pub struct Reloader {
    sources: Sources,
    sender: watch::Sender<Current>,
    set_filter: SetFilter,
    /// Keys of which it has been told that they take a restart, with their new values.
    told: BTreeSet<(String, String)>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

impl Reloader {
    /// For a configuration that came from there; and where to see what becomes of it.
    pub fn new(sources: Sources, config: Config, set_filter: SetFilter) -> (Self, Live) {
        let (sender, live) = Live::new(config);
        let told = BTreeSet::new();
        let reloader = Self {
            sources,
            sender,
            set_filter,
            told,
        };
        (reloader, live)
    }

    /// Reads again each time that `asked` says so or a file changes, until `asked` is closed.
    pub async fn run(mut self, mut asked: tokio::sync::mpsc::Receiver<()>) {
        let mut files = Files::new(self.files());
        loop {
            tokio::select! {
                asked = asked.recv() => if asked.is_none() { return },
                () = files.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    if !files.are_others().await {
                        continue;
                    }
                }
            }
            systemd::reloading().await;
            let sources = self.sources.clone();
            let loaded = tokio::task::spawn_blocking(move || sources.load()).await;
            let status = match loaded {
                Ok(loaded) => self.take(loaded),
                // The runtime ends.
                Err(_) => return,
            };
            files.watch(self.files());
            systemd::ready(&status).await;
        }
    }

    /// The file itself, and what it names that may change without it.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.sources.file().0];
        let tcp = self.sender.borrow().config.api.tcp.clone();
        files.extend(
            [tcp.certificate, tcp.key, tcp.client_ca]
                .into_iter()
                .flatten(),
        );
        files
    }

    /// Takes over what was read, and says in a few words how that went.
    fn take(&mut self, loaded: Result<Loaded, Error>) -> String {
        let before = self.sender.borrow().config.clone();
        let merged = loaded.and_then(|loaded| {
            for warning in &loaded.warnings {
                warn!("{warning}");
            }
            self.merge(&before, &loaded.config)
        });
        match merged {
            Ok(config) => {
                if config.log != before.log {
                    (self.set_filter)(&config.log);
                }
                info!("configuration read again");
                self.sender.send_replace(Current {
                    config: Arc::new(config),
                    error: None,
                });
                "serving".to_owned()
            }
            Err(Error(problems)) => {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                for problem in &problems {
                    error!("configuration not changed: {problem}");
                }
                let error = problems.join("; ");
                let status = format!("serving; configuration not changed: {error}");
                self.sender
                    .send_modify(|current| current.error = Some(error.into()));
                status
            }
        }
    }

    /// The new configuration, without what takes a restart.
    fn merge(&mut self, before: &Config, after: &Config) -> Result<Config, Error> {
        let table = |it| Table::try_from(it).expect("a configuration can be written");
        let mut merged = table(after);
        let [old, new] = [before, after].map(|it| Value::Table(table(it)));
        let mut told = BTreeSet::new();
        for (key, effect) in keys::ALL {
            let [from, to] = [&old, &new].map(|it| get(it, key));
            if from == to {
                continue;
            }
            let text = |value: Option<&Value>| value.map_or("unset".to_owned(), Value::to_string);
            let [old, new] = [from, to].map(text);
            match effect {
                Effect::Reload => info!(key, old, new, "configuration changed"),
                Effect::Restart => {
                    put(&mut merged, key, from.cloned());
                    if !self.told.contains(&((*key).to_owned(), new.clone())) {
                        warn!(
                            key,
                            old, new, "configuration will change when the agent is restarted"
                        );
                    }
                    told.insert(((*key).to_owned(), new));
                }
            }
        }
        self.told = told;
        let config = Config::deserialize(Value::Table(merged))
            .expect("each key has a value that it had before or has after");
        let mut bad = Vec::new();
        config.check(&mut bad);
        if bad.is_empty() {
            return Ok(config);
        }
        for problem in &mut bad {
            problem.why += ": this takes a restart of the agent";
        }
        Err(Error(bad))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroup;
    use super::*;

    fn reloader(config: &Config) -> (Reloader, Live) {
        let args = clap::Parser::parse_from(["vfu-agent"]);
        let sources = Sources::with_variables(args, []);
        Reloader::new(sources, config.clone(), Box::new(|_| ()))
    }

    fn loaded(config: &Config) -> Result<Loaded, Error> {
        let config = config.clone();
        let warnings = Vec::new();
        Ok(Loaded { config, warnings })
    }

    #[test]
    fn what_can_change_does_and_the_rest_stays() {
        let mut config = Config::default();
        let (mut reloader, live) = reloader(&config);
        config.limits.devices = 7;
        config.cgroup.path = cgroup::Path::Off;
        config.run_dir = "/elsewhere".into();
        reloader.take(loaded(&config));
        let now = live.get();
        assert_eq!(now.limits.devices, 7);
        assert_eq!(now.cgroup.path, cgroup::Path::Auto);
        assert_eq!(now.run_dir, Config::default().run_dir);
        assert_eq!(reloader.told.len(), 2);
        reloader.take(loaded(&Config::default()));
        assert_eq!(*live.get(), Config::default());
        assert_eq!(reloader.told.len(), 0);
    }

    #[test]
    fn what_is_wrong_changes_nothing_and_is_told_until_it_is_right() {
        let mut config = Config::default();
        let (mut reloader, live) = reloader(&config);
        reloader.take(Err(Error(vec![super::super::Problem::new("log", "no")])));
        assert_eq!(*live.get(), config);
        assert_eq!(live.error().as_deref(), Some("log: no"));
        config.limits.devices = 7;
        reloader.take(loaded(&config));
        assert_eq!(live.error(), None);
        assert_eq!(live.get().limits.devices, 7);
    }

    #[test]
    fn what_would_not_go_together_until_a_restart_waits_for_it() {
        let mut config = Config::default();
        let tcp = &mut config.api.tcp;
        tcp.address = Some("127.0.0.1:1".parse().unwrap());
        tcp.certificate = Some("/c".into());
        tcp.key = Some("/k".into());
        tcp.client_ca = Some("/a".into());
        let (mut reloader, live) = reloader(&config);
        reloader.take(loaded(&Config::default()));
        assert_eq!(*live.get(), config);
        assert!(live.error().unwrap().contains("takes a restart"));
    }
}
