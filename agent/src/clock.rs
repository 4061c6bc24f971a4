//! What time it is, for people. A wall clock jumps: it is set, and it may go back. What the agent waits for goes by the
//! monotonic clock; what it tells is from here, and what comes later is never told to have been earlier.
//!
//! In builds with debug assertions `VFU_CLOCK_FILE` names a file with the seconds by which the clock is wrong, so that a
//! test can set it and leave the machine's alone.

use std::time::SystemTime;

/// Now.
pub(crate) fn now() -> SystemTime {
    let now = SystemTime::now();
    #[cfg(debug_assertions)]
    let now = wrong::clock(now);
    now
}

/// Now, or `earlier` when the clock has gone back since.
pub(crate) fn now_after(earlier: SystemTime) -> SystemTime {
    now().max(earlier)
}

#[cfg(debug_assertions)]
mod wrong {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::{Duration, SystemTime};

    static FILE: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("VFU_CLOCK_FILE").map(PathBuf::from));

    /// What a wrong clock shows when a right one shows `time`.
    pub(super) fn clock(time: SystemTime) -> SystemTime {
        let Some(file) = &*FILE else { return time };
        let text = std::fs::read_to_string(file).expect("VFU_CLOCK_FILE can be read");
        let seconds: i64 = text.trim().parse().expect("a number of seconds");
        let error = Duration::from_secs(seconds.unsigned_abs());
        match seconds < 0 {
            true => time - error,
            false => time + error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_comes_later_is_not_told_to_be_earlier() {
        let future = now() + Duration::from_secs(3600);
        assert_eq!(now_after(future), future);
        let past = now() - Duration::from_secs(3600);
        assert!(now_after(past) > past);
    }
}
