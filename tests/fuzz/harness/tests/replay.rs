//! The corpus, once more: what was found once is not found again.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::{
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Longer than this the replay of one target does not take, however many inputs are kept.
const LIMIT: Duration = Duration::from_secs(60);

/// What is played counts what the process has open, so that reading the next input would disturb it.
static ALONE: Mutex<()> = Mutex::new(());

fn replay(target: &str, play: fn(&[u8])) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(target);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "no inputs in {}", folder.display());
    let begin = Instant::now();
    for (done, input) in inputs.iter().enumerate() {
        if begin.elapsed() > LIMIT {
            eprintln!(
                "{target}: only {done} of {} inputs within {LIMIT:?}",
                inputs.len()
            );
            break;
        }
        // Where it fails, this is shown.
        println!("{}", input.display());
        play(&fs::read(input).unwrap());
    }
}

#[test]
fn bytes_on_the_socket() {
    replay("socket", harness::socket);
}

#[test]
fn sequences_of_messages() {
    replay("messages", harness::messages);
}

#[test]
fn accesses_to_configuration_space() {
    replay("configuration", harness::configuration);
}

#[test]
fn maps_and_accesses_to_memory() {
    replay("dma", harness::dma);
}
