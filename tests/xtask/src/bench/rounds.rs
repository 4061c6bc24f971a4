//! What every bench does: rounds while there is time, and in the end system calls, where they can be counted.

use std::time::{Duration, Instant};

use ::tests::command::check_interrupted;
use anyhow::Result;

/// Measures up to `count` rounds, of which none begins later than `last`: a machine that is busy with other things can't
/// be waited for. Returns how many there were.
pub(super) fn measure(
    count: u16,
    last: Duration,
    skipped: &mut Vec<String>,
    mut round: impl FnMut(u16) -> Result<()>,
) -> Result<u16> {
    let started = Instant::now();
    for index in 0..count {
        if started.elapsed() > last {
            let left = count - index;
            skipped.push(format!(
                "{left} rounds: the machine is busy, and time was over"
            ));
            eprintln!();
            return Ok(index);
        }
        eprint!("\rround {} of {count} ", index + 1);
        round(index)?;
    }
    eprintln!();
    Ok(count)
}

/// Counts system calls, unless that is not wanted, or can't be done here.
pub(super) fn count_calls(
    skip: bool,
    skipped: &mut Vec<String>,
    count: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if skip {
        skipped.push("system calls: --skip-system-calls".to_owned());
    } else if let Err(error) = crate::setup::program("strace", "strace") {
        skipped.push(format!("system calls: {error:#}"));
    } else if let Err(error) = count() {
        check_interrupted()?;
        skipped.push(format!("system calls: {error:#}"));
    }
    Ok(())
}
