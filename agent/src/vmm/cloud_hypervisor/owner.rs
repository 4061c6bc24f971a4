//! Whose process a VMM is.

use super::super::Owner;

/// The owner of the VMM's process, which says that it has the number `told` in its namespace. Who listens at its socket can
/// be another process, that has made the socket and handed it over; then it is not known here which the VMM is.
pub(super) fn of(listener: Owner, told: Option<i64>) -> Owner {
    let is_other = listener.pid.zip(told).is_some_and(|(pid, told)| {
        let innermost = innermost(pid);
        innermost.is_some_and(|it| it != told)
    });
    Owner {
        pid: listener.pid.filter(|_| !is_other),
        ..listener
    }
}

/// The number that this process has in its own namespace.
fn innermost(pid: i32) -> Option<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|it| it.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_made_the_socket_is_not_taken_for_the_vmm() {
        let me = i32::try_from(std::process::id()).unwrap();
        let listener = Owner {
            pid: Some(me),
            uid: 7,
            gid: 8,
        };
        let own = innermost(me).unwrap();
        assert_eq!(of(listener, Some(own)), listener);
        assert_eq!(of(listener, None), listener);
        let other = of(listener, Some(own + 1));
        assert_eq!((other.pid, other.uid, other.gid), (None, 7, 8));
    }
}
