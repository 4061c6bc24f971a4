//! What an input may not leave behind: open descriptors and mapped files.

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Files that a client lends have this in their names.
pub(crate) const NAME: &str = "vfu-lent";

/// Inputs have the process to themselves, because they count what it has open.
static ALONE: Mutex<()> = Mutex::new(());

/// The state of the process before an input.
pub(crate) struct Before {
    descriptors: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Before {
    /// `prepare` makes what stays.
    pub(crate) fn new(prepare: impl FnOnce()) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        prepare();
        Self {
            descriptors: open_descriptors(),
            _alone: alone,
        }
    }

    /// Everything is as it was.
    pub(crate) fn check(&self) {
        assert_eq!(
            open_descriptors(),
            self.descriptors,
            "descriptors are left: {:?}",
            fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
                .collect::<Vec<_>>()
        );
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let left: Vec<&str> = maps.lines().filter(|line| line.contains(NAME)).collect();
        assert!(left.is_empty(), "mappings are left: {left:#?}");
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
