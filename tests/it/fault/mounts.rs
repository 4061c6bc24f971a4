//! Mounts of a test's own.

use std::path::Path;

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Runs a test where what it mounts is its own, and goes with it.
pub(super) fn in_own_mounts<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    // A thread of its own: the harness may use the one that called for other tests.
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_at("none", "/", "", MsFlags::MS_REC | MsFlags::MS_PRIVATE, "");
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(super) fn mount_at(
    source: &str,
    target: impl AsRef<Path>,
    kind: &str,
    flags: MsFlags,
    options: &str,
) {
    let target = target.as_ref();
    mount(Some(source), target, Some(kind), flags, Some(options)).unwrap();
}
