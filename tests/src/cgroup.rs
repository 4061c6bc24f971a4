//! What an agent leaves of the cgroups of devices that were not deleted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::command;

const LIMIT: Duration = Duration::from_secs(5);
/// Where the hierarchy of version 2 is on hosts that have it alone, and on those that have both.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Removes what the agent of this run directory left, whose processes are ended or about to be.
pub fn remove(run_dir: &Path) {
    let hash = Sha256::digest(run_dir.as_os_str().as_encoded_bytes());
    let name: String = hash[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    for root in ROOTS {
        let slice = PathBuf::from(root).join("vfu.slice");
        let agent = slice.join(&name);
        let removed = command::wait_to_the_end("the end of cgroups", LIMIT, || {
            for entry in fs::read_dir(&agent).into_iter().flatten() {
                // Files stay, and so does what is in use.
                let _ = fs::remove_dir(entry?.path());
            }
            let _ = fs::remove_dir(&agent);
            Ok((!agent.exists()).then_some(()))
        });
        if let Err(error) = removed {
            eprintln!("{}: {error:#}", agent.display());
        }
        let _ = fs::remove_dir(&slice);
    }
}
