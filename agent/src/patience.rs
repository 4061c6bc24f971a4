//! What an agent that was killed still holds, by a child that it had just forked: until that child has become another
//! program it has every lock and listening socket of its parent.

use std::thread;
use std::time::{Duration, Instant};

/// From fork to exec, on a host that is busy.
const FORKED: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Tries again for a moment while somebody holds it.
pub(crate) fn unless_held<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let deadline = Instant::now() + FORKED;
    loop {
        match attempt() {
            Err(error) if is_held(&error) && Instant::now() < deadline => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_is_had_and_what_is_not_is_refused() {
        let mut times = 0;
        let attempt = || {
            times += 1;
            (times > 3).then_some(times).ok_or("held")
        };
        assert_eq!(unless_held(attempt, |_| true), Ok(4));
        let refused = |result: Result<(), &str>, held| {
            let begun = Instant::now();
            assert_eq!(unless_held(|| result, |_| held), result);
            begun.elapsed()
        };
        assert!(refused(Err("held"), true) >= FORKED);
        assert!(refused(Err("broken"), false) < FORKED);
    }
}
