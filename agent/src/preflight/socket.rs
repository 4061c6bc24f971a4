//! Whether the VMM's process can connect to the device's socket.
//!
//! Access control lists and security modules may allow or deny what the modes do not: where there is a list, what the modes
//! deny is a warning only.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::files::{Files, Process, Step, Unseen, View};
use super::{Finding, Scene};
use crate::socket::MAX_PATH_BYTES;

/// Permission bits, as those of others.
const WRITE: u32 = 2;
const ENTER: u32 = 1;

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let Some(device) = &scene.question.device else {
        return Vec::new();
    };
    let mut found = vec![length(&device.socket)];
    // Who is connected has found its way, and may have given up since what it took.
    if let Some(files) = scene.files.as_ref().filter(|_| !scene.is_there()) {
        found.extend(access(&device.socket, &device.id, files));
    }
    found
}

fn length(path: &Path) -> Finding {
    let subject = path.display().to_string();
    match path.as_os_str().as_bytes().len() {
        bytes @ ..=MAX_PATH_BYTES => Finding::ok(
            "SOCKET_PATH_LENGTH",
            subject,
            format!("{bytes} of {MAX_PATH_BYTES} bytes"),
        ),
        bytes => Finding::error(
            "SOCKET_PATH_TOO_LONG",
            subject,
            format!("the path has {bytes} bytes, and a UNIX socket's has {MAX_PATH_BYTES} at most"),
            "give the device a shorter id, or the agent a shorter --run-dir",
        ),
    }
}

fn access(socket: &Path, id: &str, files: &Files) -> Vec<Finding> {
    let subject = socket.display().to_string();
    let way = match &files.way {
        Ok(way) => way,
        Err(Unseen::Missing) => {
            let cure = format!(
                "vfuctl restart {id} makes it anew; nobody but the agent should touch its run directory"
            );
            let why = "there is nothing at the path of the device's socket";
            return vec![Finding::error("SOCKET_MISSING", subject, why, cure)];
        }
        Err(Unseen::Other(why)) => {
            let cure = "look at the directories of this path";
            return vec![Finding::warning("SOCKET_UNSEEN", subject, why, cure)];
        }
    };
    let process = match &files.process {
        None => return Vec::new(),
        Some(Ok(process)) => process,
        Some(Err(why)) => {
            let why = format!("whether the VMM may connect is not known: {why}");
            let cure =
                "check that the VMM's user may enter the directories and write to the socket";
            return vec![Finding::warning("VMM_PROCESS_UNKNOWN", subject, why, cure)];
        }
    };
    let who = format!(
        "process {} (user {}, group {})",
        process.pid, process.uid, process.gid
    );
    let elsewhere = |what: &str, cure: &str| {
        let why = format!("{who} has other mounts, and {what}");
        vec![Finding::error("SOCKET_NOT_VISIBLE", &subject, why, cure)]
    };
    let mount = "mount the agent's run directory into the VMM's container at the same path";
    match process.view {
        View::Same => {}
        View::Nothing => return elsewhere("nothing at this path", mount),
        View::Another => return elsewhere("something else at this path", mount),
        View::Hidden => {
            let why = format!(
                "{who} has other mounts or is not the agent's to look at: what it has at this path is not known"
            );
            return vec![Finding::warning("MOUNTS_DIFFER", subject, why, mount)];
        }
    }
    let denied: Vec<_> = way
        .iter()
        .enumerate()
        .filter_map(|(index, step)| {
            let is_socket = index + 1 == way.len();
            deny(step, is_socket, process, &who)
        })
        .collect();
    match denied.is_empty() {
        true => vec![Finding::ok(
            "SOCKET_ACCESS",
            subject,
            format!("{who} may connect"),
        )],
        false => denied,
    }
}

/// What keeps the process here, if anything does.
fn deny(step: &Step, is_socket: bool, process: &Process, who: &str) -> Option<Finding> {
    let bit = if is_socket { WRITE } else { ENTER };
    if process.is_almighty || granted(step, process) & bit != 0 {
        return None;
    }
    let Step { mode, uid, gid, .. } = step;
    let path = step.path.display();
    let (what, cure) = match is_socket {
        true => (
            "write to this socket",
            format!(
                "create the device with --socket-uid {}, or with --socket-gid {} --socket-mode 660",
                process.uid, process.gid
            ),
        ),
        false => (
            "enter this directory",
            format!("chmod o+x {path}, or let its group have it"),
        ),
    };
    let mut why = format!("{who} may not {what}, which has mode {mode:04o} and owner {uid}:{gid}");
    if step.has_acl {
        why.push_str("; its access control list may let it");
        return Some(Finding::warning(
            "SOCKET_DENIED_BY_MODE",
            path.to_string(),
            why,
            cure,
        ));
    }
    Some(Finding::error("SOCKET_DENIED", path.to_string(), why, cure))
}

/// The bits that hold for the process: of the owner, else of the group, else of others.
fn granted(step: &Step, process: &Process) -> u32 {
    if process.uid == step.uid {
        step.mode >> 6
    } else if process.gid == step.gid || process.groups.contains(&step.gid) {
        step.mode >> 3
    } else {
        step.mode
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::tests::{qemu, question, scene, wrong};
    use super::*;

    fn step(path: &str, mode: u32) -> Step {
        Step {
            path: path.into(),
            mode,
            uid: 0,
            gid: 36,
            has_acl: false,
        }
    }

    fn files() -> Files {
        let process = Process {
            pid: 77,
            uid: 107,
            gid: 108,
            groups: vec![36],
            is_almighty: false,
            view: View::Same,
        };
        Files {
            way: Ok(vec![
                step("/", 0o755),
                step("/d", 0o711),
                step("/d/s", 0o660),
            ]),
            process: Some(Ok(process)),
        }
    }

    fn found(change: impl FnOnce(&mut Vec<Step>, &mut Process)) -> Vec<Finding> {
        let mut files = files();
        let (Ok(way), Some(Ok(process))) = (&mut files.way, &mut files.process) else {
            panic!("it was not seen");
        };
        change(way, process);
        access(Path::new("/d/s"), "nic0", &files)
    }

    #[test]
    fn who_may_enter_and_write_may_connect() {
        assert_eq!(found(|_, _| {})[0].code, "SOCKET_ACCESS");
        let almighty = found(|way, process| {
            way[1].mode = 0;
            process.is_almighty = true;
        });
        assert_eq!(wrong(&almighty), []);
        // The owner's bits hold for the owner, whatever others may.
        let owner = found(|way, process| {
            way[2].mode = 0o177;
            process.uid = 0;
        });
        assert_eq!(wrong(&owner), [("SOCKET_DENIED", Severity::Error)]);
    }

    #[test]
    fn each_thing_in_the_way_is_named() {
        let denied = found(|way, process| {
            way[1].mode = 0o700;
            way[2].mode = 0o606;
            process.groups = vec![36];
        });
        let error = ("SOCKET_DENIED", Severity::Error);
        assert_eq!(wrong(&denied), [error, error]);
        assert_eq!([&*denied[0].subject, &*denied[1].subject], ["/d", "/d/s"]);
        assert!(
            denied[0]
                .message
                .contains("(user 107, group 108) may not enter")
        );
        assert!(denied[0].message.contains("mode 0700 and owner 0:36"));
        assert!(denied[1].cure.contains("--socket-uid 107"));
        // By its group alone it could write.
        let others = found(|_, process| process.groups.clear());
        assert_eq!(wrong(&others), [error]);
    }

    #[test]
    fn an_access_control_list_may_let_in_whom_the_mode_does_not() {
        let denied = found(|way, _| {
            way[1].mode = 0o700;
            way[1].has_acl = true;
        });
        assert_eq!(
            wrong(&denied),
            [("SOCKET_DENIED_BY_MODE", Severity::Warning)]
        );
    }

    #[test]
    fn another_view_of_the_files_is_no_way_to_the_socket() {
        for (view, code, severity) in [
            (View::Nothing, "SOCKET_NOT_VISIBLE", Severity::Error),
            (View::Another, "SOCKET_NOT_VISIBLE", Severity::Error),
            (View::Hidden, "MOUNTS_DIFFER", Severity::Warning),
        ] {
            let found = found(|_, process| process.view = view);
            assert_eq!(wrong(&found), [(code, severity)]);
        }
    }

    #[test]
    fn what_was_not_seen_is_told() {
        let look = |files: Files| wrong(&access(Path::new("/d/s"), "nic0", &files));
        let mut unseen = files();
        unseen.way = Err(Unseen::Missing);
        assert_eq!(look(unseen), [("SOCKET_MISSING", Severity::Error)]);
        let late = Files::unseen("late".to_owned());
        assert_eq!(look(late), [("SOCKET_UNSEEN", Severity::Warning)]);
        let mut unknown = files();
        unknown.process = Some(Err("no".to_owned()));
        assert_eq!(look(unknown), [("VMM_PROCESS_UNKNOWN", Severity::Warning)]);
    }

    #[test]
    fn a_path_has_to_fit_into_an_address() {
        let error = [("SOCKET_PATH_TOO_LONG", Severity::Error)];
        let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        let mut long = question();
        long.device.as_mut().unwrap().socket = path(108).into();
        assert_eq!(wrong(&findings(&scene(&long, Ok(qemu())))), error);
        long.device.as_mut().unwrap().socket = path(107).into();
        assert_eq!(wrong(&findings(&scene(&long, Ok(qemu())))), []);
    }

    #[test]
    fn who_is_connected_has_found_its_way() {
        let mut plugged = question();
        let device = plugged.device.as_mut().unwrap();
        device.client = Some((77, String::new()));
        let mut facts = qemu();
        facts.devices.push(crate::vmm::Found {
            id: "nic0".to_owned(),
            device_socket: None,
            placed: crate::vmm::Placed::default(),
        });
        let mut scene = scene(&plugged, Ok(facts));
        let mut files = files();
        files.way = Err(Unseen::Missing);
        scene.files = Some(files);
        assert_eq!(wrong(&findings(&scene)), []);
    }
}
