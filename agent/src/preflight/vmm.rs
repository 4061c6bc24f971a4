//! Whether the VMM can be asked, and is one that can take vfio-user devices.

use std::io;
use std::path::Path;

use super::{Finding, Scene};
use crate::chain::chain;
use crate::vmm::{Error, Facts};

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let Some((endpoint, answer)) = &scene.vmm else {
        return Vec::new();
    };
    let path = endpoint.path();
    match answer {
        Ok(facts) => told(path, facts),
        Err(error) => vec![unasked(path, error)],
    }
}

/// Why it has told nothing.
fn unasked(path: &Path, error: &Error) -> Finding {
    let subject = path.display().to_string();
    let silent =
        "see whether the VMM hangs, and whether another program is connected to that socket";
    match error {
        Error::Unreachable { source, .. } => {
            let cure = match source.kind() {
                io::ErrorKind::NotFound => {
                    "start the VMM with this control socket, or give the path of the one it has"
                }
                io::ErrorKind::ConnectionRefused => {
                    "the VMM that made this socket has ended: start it again"
                }
                io::ErrorKind::PermissionDenied => {
                    "let the agent's user write to the socket and enter its directories"
                }
                _ => "check that the VMM runs, and that this is its control socket",
            };
            let why = format!("it can't be connected to: {source}");
            Finding::error("VMM_UNREACHABLE", subject, why, cure)
        }
        Error::Stranger { expected, why, .. } => Finding::error(
            "VMM_STRANGER",
            subject,
            format!("it does not answer as {expected} does: {why}"),
            format!(
                "give the control socket of a {expected} that no other program is connected to"
            ),
        ),
        Error::TooOld { version, needed } => too_old(&subject, version, needed),
        Error::Unanswered { waited, .. } => Finding::error(
            "VMM_SILENT",
            subject,
            format!("it has not answered within {} s", waited.as_secs()),
            silent,
        ),
        Error::Gone { .. } => Finding::error(
            "VMM_GONE",
            subject,
            "it has ended while it was asked",
            "start it again",
        ),
        Error::NoPlace { why, cure } => Finding::error("VMM_WITHOUT_MACHINE", subject, why, cure),
        error => Finding::error("VMM_REFUSES", subject, chain(error), silent),
    }
}

fn too_old(subject: &str, version: &str, needed: &str) -> Finding {
    Finding::error(
        "VMM_TOO_OLD",
        subject,
        format!("it is {version}, whose vfio-user devices do not work"),
        format!("run the guest on {needed} or newer"),
    )
}

/// What is to be said of what it has told.
fn told(path: &Path, facts: &Facts) -> Vec<Finding> {
    let subject = path.display().to_string();
    let Facts {
        program,
        version,
        machine,
        run_state,
        ..
    } = facts;
    let parts = [program, version.as_str(), machine, run_state];
    let parts: Vec<_> = parts.into_iter().filter(|it| !it.is_empty()).collect();
    let mut found = vec![Finding::ok("VMM_REACHABLE", &subject, parts.join(", "))];
    let name = format!("{program} {version}");
    found.push(match &facts.version_needed {
        Some(needed) => too_old(&subject, &name, &format!("{program} {needed}")),
        None if !facts.takes_vfio_user => Finding::error(
            "VMM_WITHOUT_VFIO_USER",
            &subject,
            format!("this {name} has no vfio-user devices"),
            "run the guest on a build that has them: for QEMU, `-device help` lists vfio-user-pci",
        ),
        None => Finding::ok(
            "VMM_VERSION",
            &subject,
            format!("{name} takes vfio-user devices"),
        ),
    });
    found.extend(memory(&subject, facts));
    if !run_state.is_empty() && !run_state.eq_ignore_ascii_case("running") {
        found.push(Finding::warning(
            "VMM_NOT_RUNNING",
            &subject,
            format!("its guest is {run_state}, and sees no device meanwhile"),
            "let the guest run on",
        ));
    }
    if let Some((path, why)) = &facts.unheard {
        found.push(Finding::warning(
            "VMM_EVENTS_UNREADABLE",
            path.display().to_string(),
            format!(
                "events of the VMM can't be read there: {why}; what becomes of its devices is seen later without them"
            ),
            "give the file of its --event-monitor, and let the agent's user read it",
        ));
    }
    found
}

fn memory(subject: &str, facts: &Facts) -> Vec<Finding> {
    let cure = match facts.program {
        "QEMU" => {
            "start QEMU with -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem"
        }
        _ => "start the VMM with --memory size=SIZE,shared=on",
    };
    if facts.memory.is_empty() {
        let why = "it does not tell what its guest's memory is made of; a device can't reach what is not shared";
        return vec![Finding::warning("VMM_MEMORY_UNKNOWN", subject, why, cure)];
    }
    let private = facts.memory.iter().filter(|it| !it.is_shared);
    let private: Vec<_> = private
        .map(|it| {
            let mib = it.size_bytes >> 20;
            let why = format!(
                "{mib} MiB of the guest's memory are not shared: a device can't reach them"
            );
            let subject = match &*it.id {
                "" => subject,
                id => id,
            };
            Finding::error("VMM_MEMORY_NOT_SHARED", subject, why, cure)
        })
        .collect();
    match private.is_empty() {
        true => vec![Finding::ok(
            "VMM_MEMORY_SHARED",
            subject,
            "the guest's memory is shared with its devices",
        )],
        false => private,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Severity;
    use super::super::tests::{qemu, question, scene, wrong};
    use super::*;

    fn found(answer: Result<Facts, Error>) -> Vec<Finding> {
        findings(&scene(&question(), answer))
    }

    fn changed(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = qemu();
        change(&mut facts);
        found(Ok(facts))
    }

    fn unreachable(kind: io::ErrorKind) -> Vec<Finding> {
        found(Err(Error::Unreachable {
            path: "/q".into(),
            source: kind.into(),
        }))
    }

    #[test]
    fn a_vmm_that_is_not_there_is_told_of_by_cause() {
        for (kind, cure) in [
            (io::ErrorKind::NotFound, "start the VMM"),
            (io::ErrorKind::ConnectionRefused, "has ended"),
            (io::ErrorKind::PermissionDenied, "the agent's user"),
            (io::ErrorKind::Other, "check"),
        ] {
            let found = unreachable(kind);
            assert_eq!(wrong(&found), [("VMM_UNREACHABLE", Severity::Error)]);
            assert!(found[0].cure.contains(cure), "{:?}", found[0]);
        }
    }

    #[test]
    fn a_vmm_that_does_not_tell_is_an_error() {
        let path = || "/q".into();
        for (error, code) in [
            (
                Error::Stranger {
                    path: path(),
                    expected: "QEMU",
                    why: "it sent HTTP".to_owned(),
                },
                "VMM_STRANGER",
            ),
            (
                Error::TooOld {
                    version: "QEMU 9".to_owned(),
                    needed: "QEMU 10.1.1".to_owned(),
                },
                "VMM_TOO_OLD",
            ),
            (
                Error::Unanswered {
                    operation: "x",
                    waited: Duration::from_secs(9),
                },
                "VMM_SILENT",
            ),
            (Error::Gone { path: path() }, "VMM_GONE"),
            (
                Error::Refused {
                    operation: "x",
                    message: "no".to_owned(),
                },
                "VMM_REFUSES",
            ),
            (
                Error::NoPlace {
                    why: "there is no machine".to_owned(),
                    cure: "create one".to_owned(),
                },
                "VMM_WITHOUT_MACHINE",
            ),
        ] {
            assert_eq!(wrong(&found(Err(error))), [(code, Severity::Error)]);
        }
    }

    #[test]
    fn an_old_vmm_is_told_what_it_takes() {
        let found = changed(|it| it.version_needed = Some("10.1.1".to_owned()));
        assert_eq!(wrong(&found), [("VMM_TOO_OLD", Severity::Error)]);
        assert_eq!(found[1].cure, "run the guest on QEMU 10.1.1 or newer");
    }

    #[test]
    fn a_vmm_without_vfio_user_takes_no_device() {
        let found = changed(|it| it.takes_vfio_user = false);
        assert_eq!(wrong(&found), [("VMM_WITHOUT_VFIO_USER", Severity::Error)]);
    }

    #[test]
    fn memory_has_to_be_shared() {
        let private = [("VMM_MEMORY_NOT_SHARED", Severity::Error)];
        let found = changed(|it| it.memory[0].is_shared = false);
        assert_eq!(wrong(&found), private);
        assert_eq!(found[2].subject, "mem");
        assert!(found[2].message.starts_with("256 MiB") && found[2].cure.contains("share=on"));
        let two = changed(|it| {
            let mut more = it.memory[0].clone();
            more.is_shared = false;
            it.memory.push(more);
            it.program = "cloud-hypervisor";
        });
        assert_eq!(wrong(&two), private);
        assert!(two[2].cure.contains("shared=on"));
        let unknown = changed(|it| it.memory.clear());
        assert_eq!(wrong(&unknown), [("VMM_MEMORY_UNKNOWN", Severity::Warning)]);
    }

    #[test]
    fn a_guest_that_stands_still_is_a_warning() {
        let found = changed(|it| it.run_state = "paused".to_owned());
        assert_eq!(wrong(&found), [("VMM_NOT_RUNNING", Severity::Warning)]);
    }

    #[test]
    fn a_vmm_whose_events_are_not_heard_is_a_warning() {
        let why = "permission denied".to_owned();
        let found = changed(|it| it.unheard = Some(("/run/events".into(), why)));
        assert_eq!(
            wrong(&found),
            [("VMM_EVENTS_UNREADABLE", Severity::Warning)]
        );
        assert_eq!(found.last().unwrap().subject, "/run/events");
    }
}
