//! A device's limits as the API has them and as ours.

use proto::v1;

use crate::limits::Limits;
use crate::schema::Violation;

/// The limits that a caller wants; 0 is none.
pub(super) fn limits(limits: Option<v1::ResourceLimits>, bad: &mut Vec<Violation>) -> Limits {
    let limits = limits.unwrap_or_default();
    let limits = Limits {
        memory_bytes: Some(limits.memory_bytes).filter(|it| *it != 0),
        cpu_millis: Some(limits.cpu_millis).filter(|it| *it != 0),
        open_files: Some(limits.open_files).filter(|it| *it != 0),
        log_bytes: Some(limits.log_bytes).filter(|it| *it != 0),
    };
    limits.check(bad);
    limits
}

/// The same as the API has it; nothing when there are none.
pub(super) fn to_proto(limits: Limits) -> Option<v1::ResourceLimits> {
    let Limits {
        memory_bytes,
        cpu_millis,
        open_files,
        log_bytes,
    } = limits;
    (limits != Limits::default()).then(|| v1::ResourceLimits {
        memory_bytes: memory_bytes.unwrap_or_default(),
        cpu_millis: cpu_millis.unwrap_or_default(),
        open_files: open_files.unwrap_or_default(),
        log_bytes: log_bytes.unwrap_or_default(),
    })
}
