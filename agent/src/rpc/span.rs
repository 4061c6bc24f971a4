//! Spans of time that callers give.

use std::time::Duration;

use prost_types::Duration as ProtoDuration;
use tonic::Status;

use super::status::invalid_field;

const NANOS_PER_SECOND: u32 = 1_000_000_000;
/// The longest that anybody waits for a guest or a process.
const MAX_PATIENCE: Duration = Duration::from_secs(3600);

/// A span of time as a caller says it, if it is one. prost's own conversion panics when there is no positive of the
/// seconds.
pub(super) fn duration(asked: &ProtoDuration) -> Option<Duration> {
    let seconds = u64::try_from(asked.seconds).ok()?;
    let nanos = u32::try_from(asked.nanos).ok()?;
    (nanos < NANOS_PER_SECOND).then(|| Duration::new(seconds, nanos))
}

/// How long a guest or a process may take, as a caller says it.
pub(super) fn patience(asked: &ProtoDuration) -> Result<Duration, Status> {
    duration(asked)
        .filter(|it| *it <= MAX_PATIENCE)
        .ok_or_else(|| invalid_field("timeout", "must be from 0 s to 1 h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_from_nothing_to_an_hour() {
        let of = |seconds, nanos| patience(&ProtoDuration { seconds, nanos }).ok();
        assert_eq!(of(0, 0), Some(Duration::ZERO));
        assert_eq!(of(3600, 0), Some(MAX_PATIENCE));
        for (seconds, nanos) in [(3600, 1), (-1, 0), (0, -1), (i64::MIN, 0), (i64::MIN, -1)] {
            assert_eq!(of(seconds, nanos), None, "{seconds} {nanos}");
        }
    }
}
