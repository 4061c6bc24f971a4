//! What a program has to be able to, as it says itself: not every build of QEMU serves devices.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::{Stamp, stamp};
use crate::systemd;

/// How long a program may take to say what it can do.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of what it says is listened to.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// For how long a program that can't is not asked again: what it failed for may be over.
const MEMORY_OF_FAILURE: Duration = Duration::from_secs(5);
/// So many programs are remembered.
const MAX_REMEMBERED: usize = 64;

/// What a program must print when it is started with these arguments.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Requirement {
    arguments: Vec<String>,
    prints: String,
    /// What helps when it does not.
    cure: String,
}

impl Requirement {
    /// What is wrong with it, if anything.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let has_zero = self.arguments.iter().any(|it| it.contains('\0'));
        match () {
            () if self.prints.is_empty() => Err("prints: must not be empty"),
            () if self.cure.is_empty() => Err("cure: must not be empty"),
            () if has_zero => Err("arguments: must not have a zero byte"),
            () => Ok(()),
        }
    }

    async fn is_met(&self, program: &Path) -> Result<(), String> {
        let told = || format!("{} {}", program.display(), self.arguments.join(" "));
        let output = match tokio::time::timeout(TIMEOUT, output(program, &self.arguments)).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(format!("{}: {error}", told())),
            Err(_) => return Err(format!("{} did not end within {TIMEOUT:?}", told())),
        };
        let wanted = self.prints.as_bytes();
        match output.windows(wanted.len()).any(|it| it == wanted) {
            true => Ok(()),
            false => Err(format!(
                "{} does not print {:?}: {}",
                told(),
                self.prints,
                self.cure
            )),
        }
    }
}

/// What programs have said.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<HashMap<Question, Answer>>);

type Question = (PathBuf, Option<Stamp>, Vec<Requirement>);
type Answer = (Instant, Result<(), String>);

impl Said {
    /// Whether the program, as it is now, can do what it has to; or what it can't, and the cure.
    pub(super) async fn ask(&self, program: &Path, requires: &[Requirement]) -> Result<(), String> {
        let question = (program.to_owned(), stamp(program), requires.to_vec());
        // Held while the program runs: who comes meanwhile wants to know the same.
        let mut said = self.0.lock().await;
        if let Some((time, answer)) = said.get(&question)
            && (answer.is_ok() || time.elapsed() < MEMORY_OF_FAILURE)
        {
            return answer.clone();
        }
        let mut answer = Ok(());
        for requirement in requires {
            answer = requirement.is_met(program).await;
            if answer.is_err() {
                break;
            }
        }
        if said.len() >= MAX_REMEMBERED {
            said.clear();
        }
        said.insert(question, (Instant::now(), answer.clone()));
        answer
    }
}

async fn output(program: &Path, arguments: &[String]) -> std::io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .env_clear()
        .envs(systemd::environment_of_others())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (mut text, more) = tokio::join!(read(out), read(err));
    text.extend(more);
    // Who says more than is listened to waits for ever; it is killed as the child is dropped.
    Ok(text)
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(from) = from {
        // What can't be read was not said.
        let _ = from.take(MAX_OUTPUT_BYTES).read_to_end(&mut text).await;
    }
    text
}
