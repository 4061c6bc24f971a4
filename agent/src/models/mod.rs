//! The catalogue of models: what the device program tells of its own, and what description files add. The agent knows no
//! model itself.

pub(crate) mod model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::Mutex;

use self::model::Model;
use crate::runtimes::{Described, Runtimes};
use crate::systemd;

const PROGRAM: &str = "vfu-device";
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CATALOGUE_BYTES: usize = 16 << 20;

/// Why there is no catalogue.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no device program: looked for {}; install vfu-device there, or name it with \
         --device-program",
        list(looked_at)
    )]
    Missing { looked_at: Vec<PathBuf> },
    #[error(
        "run {} models --json; install vfu-device there, or name it with --device-program",
        program.display()
    )]
    Run {
        program: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("{} models --json did not end within {TIMEOUT:?}", program.display())]
    Late { program: PathBuf },
    #[error("{} models --json: {status}: {stderr}", program.display())]
    Exit {
        program: PathBuf,
        status: std::process::ExitStatus,
        stderr: String,
    },
    #[error("{} models --json printed no catalogue", program.display())]
    Parse {
        program: PathBuf,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error("schema of model {model} from {}: {message}", program.display())]
    Schema {
        program: PathBuf,
        model: String,
        message: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|it| it.display().to_string()).collect();
    paths.join(", ")
}

/// All models by name, and the program they come from.
#[derive(Debug)]
pub(crate) struct Catalogue {
    pub(crate) program: PathBuf,
    pub(crate) models: BTreeMap<String, Model>,
}

/// What tells one build of the program from the next.
type Stamp = (SystemTime, u64);

impl Catalogue {
    /// Asks the program.
    async fn load(program: &Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Printed {
            models: Vec<Model>,
        }

        let program = program.to_owned();
        let child = Command::new(&program)
            .env_clear()
            .envs(systemd::environment_of_others())
            .args(["models", "--json"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match tokio::time::timeout(TIMEOUT, child).await {
            Err(_) => return Err(Error::Late { program }),
            Ok(Err(source)) => {
                let source = Arc::new(source);
                return Err(Error::Run { program, source });
            }
            Ok(Ok(output)) => output,
        };
        if !output.status.success() || output.stdout.len() > MAX_CATALOGUE_BYTES {
            let mut stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            stderr.truncate(stderr.floor_char_boundary(1000));
            return Err(Error::Exit {
                program,
                status: output.status,
                stderr,
            });
        }
        let printed: Printed = match serde_json::from_slice(&output.stdout) {
            Ok(printed) => printed,
            Err(source) => {
                let source = Arc::new(source);
                return Err(Error::Parse { program, source });
            }
        };
        let mut models = BTreeMap::new();
        for mut model in printed.models {
            if let Err(message) = model.compile() {
                return Err(Error::Schema {
                    program,
                    model: model.name,
                    message,
                });
            }
            models.insert(model.name.clone(), model);
        }
        Ok(Self { program, models })
    }
}

/// The catalogue as of now: asked for when it is first needed, and again when the program changed.
#[derive(Debug)]
pub(crate) struct Models {
    candidates: Vec<PathBuf>,
    answer: Mutex<Option<Answer>>,
    /// The other programs.
    pub(crate) runtimes: Runtimes,
    joined: Mutex<Option<Joined>>,
}

/// A catalogue, and what it was made of.
#[derive(Debug)]
struct Joined {
    own: Arc<Catalogue>,
    described: Arc<Described>,
    all: Arc<Catalogue>,
}

/// What a program said when it was last asked.
#[derive(Debug)]
struct Answer {
    program: PathBuf,
    stamp: Stamp,
    time: Instant,
    said: Result<Arc<Catalogue>, Error>,
}

impl Answer {
    /// Whether it is of this program, and holds for who asked at this time. A failure is for those who asked before it:
    /// who comes later may find it mended.
    fn holds(&self, program: &Path, stamp: Stamp, asked: Instant) -> bool {
        self.program == program && self.stamp == stamp && (self.said.is_ok() || self.time > asked)
    }
}

impl Models {
    /// A catalogue from `named`, else from the program beside this one, else from PATH, and from the description files in
    /// `folders`.
    pub(crate) fn new(named: Option<&Path>, folders: Vec<PathBuf>) -> Self {
        let candidates = match named {
            Some(path) => vec![path.to_owned()],
            None => {
                let beside = std::env::current_exe()
                    .ok()
                    .and_then(|it| it.parent().map(Path::to_owned));
                let path = std::env::var_os("PATH").unwrap_or_default();
                beside
                    .into_iter()
                    .chain(std::env::split_paths(&path).filter(|it| it.is_absolute()))
                    .map(|directory| directory.join(PROGRAM))
                    .collect()
            }
        };
        Self {
            candidates,
            answer: Mutex::new(None),
            runtimes: Runtimes::new(folders),
            joined: Mutex::new(None),
        }
    }

    /// The catalogue: vfu's own models, and those of other programs under names that are free.
    pub(crate) async fn get(&self) -> Result<Arc<Catalogue>, Error> {
        let own = self.own().await?;
        let described = self.runtimes.get().await;
        let mut joined = self.joined.lock().await;
        if let Some(it) = &*joined
            && Arc::ptr_eq(&it.own, &own)
            && Arc::ptr_eq(&it.described, &described)
        {
            return Ok(it.all.clone());
        }
        let mut models = described.models.clone();
        models.extend(own.models.clone());
        let all = Arc::new(Catalogue {
            program: own.program.clone(),
            models,
        });
        *joined = Some(Joined {
            own,
            described,
            all: all.clone(),
        });
        Ok(all)
    }

    /// The catalogue of vfu's own models.
    pub(crate) async fn own(&self) -> Result<Arc<Catalogue>, Error> {
        let asked = Instant::now();
        let (program, stamp) = self.find()?;
        // Held while the program runs: who comes meanwhile wants the same answer, also when it is none.
        let mut last = self.answer.lock().await;
        if let Some(last) = &*last
            && last.holds(program, stamp, asked)
        {
            return last.said.clone();
        }
        let said = Catalogue::load(program).await.map(Arc::new);
        if let Ok(catalogue) = &said {
            tracing::info!(
                program = %program.display(),
                models = ?catalogue.models.keys().collect::<Vec<_>>(),
                "catalogue loaded"
            );
        }
        *last = Some(Answer {
            program: program.to_owned(),
            stamp,
            time: Instant::now(),
            said: said.clone(),
        });
        said
    }

    fn find(&self) -> Result<(&Path, Stamp), Error> {
        self.candidates
            .iter()
            .find_map(|path| {
                let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
                let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                Some((path.as_path(), (modified, metadata.len())))
            })
            .ok_or_else(|| Error::Missing {
                looked_at: self.candidates.clone(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another process writes it: a file that a fork of this one still has open for writing can't be
    /// run.
    fn write_program(path: &Path, body: &str) {
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 755 "$0""#;
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", write, path.to_str().unwrap(), body])
            .status();
        assert!(status.unwrap().success());
    }

    fn answer(names: &[&str]) -> String {
        let models: Vec<_> = names
            .iter()
            .map(|name| {
                serde_json::json!({
                    "name": name, "description": "a model", "vendor_id": 0x8086,
                    "device_id": 0x100e, "class_code": 0x2_0000, "config_schema": {"type": "object"}
                })
            })
            .collect();
        format!("echo '{}'", serde_json::json!({"models": models}))
    }

    #[tokio::test]
    async fn a_program_that_appears_or_changes_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("vfu-device");
        let models = Models::new(Some(&program), Vec::new());
        let error = models.own().await.unwrap_err();
        assert!(error.to_string().contains(program.to_str().unwrap()));
        assert!(error.to_string().contains("--device-program"));

        write_program(&program, &answer(&["e1000"]));
        let first = models.own().await.unwrap();
        assert!(first.models.contains_key("e1000"));
        assert!(Arc::ptr_eq(&first, &models.own().await.unwrap()));

        write_program(&program, &answer(&["e1000", "nvme"]));
        let second = models.own().await.unwrap();
        assert!(second.models.contains_key("nvme"));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("vfu-device");
        write_program(&program, "echo broken >&2; exit 70");
        let error = Models::new(Some(&program), Vec::new())
            .own()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("exit status: 70: broken"));

        write_program(&program, "echo '{\"models\": 12}'");
        let error = Models::new(Some(&program), Vec::new())
            .own()
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Parse { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn who_comes_while_a_program_is_about_to_fail_does_not_start_it_again() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("vfu-device");
        write_program(&program, "echo x >> \"$0.runs\"; sleep 0.2; exit 70");
        let models = Models::new(Some(&program), Vec::new());
        let runs = || {
            let text = std::fs::read_to_string(program.with_extension("runs"));
            text.unwrap().lines().count()
        };
        let calls = futures_util::future::join_all((0..20).map(|_| models.get())).await;
        assert!(calls.iter().all(Result::is_err), "{calls:?}");
        assert_eq!(runs(), 1);
        // What it failed for may be over.
        models.get().await.unwrap_err();
        assert_eq!(runs(), 2);
    }
}
