//! Where a test can have the agent die: the steps between one side effect and the next.
//!
//! Whatever the agent leaves behind when it is killed there, the next one has to finish or clean. A test walks the list
//! and kills an agent at each step. In builds without debug assertions there are no steps, and nothing of this file is
//! in the program.
//!
//! `VFU_DIE_AT=name` kills the agent when it is at that step, `VFU_DIE_AT=name:3` at the third time, and
//! `VFU_DIE_AFTER=100` at the hundredth step, whichever that is. `vfu-agent --steps` prints the names.

#[cfg(debug_assertions)]
pub use self::deadly::ALL;
#[cfg(debug_assertions)]
pub(crate) use self::deadly::reached;

/// Nothing: this build can't be made to die.
#[cfg(not(debug_assertions))]
pub(crate) const fn reached(_step: &str) {}

#[cfg(debug_assertions)]
mod deadly {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    /// Every step by its name: what is done, then how far it is. Who adds a side effect adds its step.
    pub const ALL: &[&str] = &[
        // The agent starts.
        "agent.locked",
        "agent.bound",
        "store.made",
        "store.opened",
        "sweep.removed",
        // Changes are written down.
        "changes.hidden",
        "changes.begun",
        "changes.appended",
        // What happened is written down for people.
        "events.hidden",
        "events.appended",
        "audit.appended",
        // Files and sockets, which come to be under another name first.
        "file.hidden",
        "socket.hidden",
        // A device is made.
        "create.checked",
        "create.recorded",
        "start.directory",
        "start.cgroup",
        "start.bound",
        "start.spawned",
        "start.noted",
        "start.ready",
        // Its process ends by itself.
        "process.ended",
        // It is changed.
        "update.recorded",
        "update.told",
        "update.answered",
        "update.agreed",
        "update.undone",
        // What happened to it is written down: it is started again, or given up.
        "history.recorded",
        // The agent is drained, or not any more.
        "drain.recorded",
        // It is reset.
        "reset.told",
        "reset.answered",
        "reset.recorded",
        // A VMM is to take it, or to give it up.
        "plug.recorded",
        "plug.answered",
        "plug.done",
        "unplug.recorded",
        "unplug.answered",
        "unplug.done",
        // It goes.
        "delete.recorded",
        "delete.terminated",
        "delete.ended",
        "delete.cgroup",
        "delete.removed",
        "delete.forgotten",
        // Another agent finds it.
        "adopt.connected",
        "adopt.answered",
        "adopt.done",
    ];

    static DEATH: LazyLock<Mutex<Death>> = LazyLock::new(|| {
        let asked = |name| std::env::var(name).ok();
        Mutex::new(Death::new(asked("VFU_DIE_AT"), asked("VFU_DIE_AFTER")))
    });

    /// The agent is at this step; if it was asked to die there, it does.
    pub(crate) fn reached(step: &str) {
        let mut death = DEATH.lock().expect("no holder panics");
        if death.comes(step) {
            let killed = kill(Pid::this(), Signal::SIGKILL);
            unreachable!("SIGKILL can't be held off: {killed:?}");
        }
    }

    /// When to die, and how often each step was reached until now.
    struct Death {
        at: Option<(String, u64)>,
        after: Option<u64>,
        counts: HashMap<String, u64>,
        total: u64,
    }

    impl Death {
        fn new(at: Option<String>, after: Option<String>) -> Self {
            let number = |text: &str| text.parse().expect("a number of times to be at a step");
            let at = at.map(|text| match text.split_once(':') {
                Some((step, times)) => (step.to_owned(), number(times)),
                None => (text, 1),
            });
            if let Some((step, _)) = &at {
                assert!(ALL.contains(&&**step), "VFU_DIE_AT={step} is no step");
            }
            Self {
                at,
                after: after.as_deref().map(number),
                counts: HashMap::new(),
                total: 0,
            }
        }

        fn comes(&mut self, step: &str) -> bool {
            assert!(ALL.contains(&step), "{step} is missing in steps::ALL");
            self.total += 1;
            let count = self.counts.entry(step.to_owned()).or_default();
            *count += 1;
            self.after == Some(self.total)
                || self
                    .at
                    .as_ref()
                    .is_some_and(|(at, times)| at == step && times == count)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn death_comes_at_the_step_that_was_asked_for_and_no_other() {
            let mut death = Death::new(Some("create.recorded:2".to_owned()), None);
            for (step, comes) in [
                ("create.recorded", false),
                ("create.checked", false),
                ("create.recorded", true),
                ("create.recorded", false),
            ] {
                assert_eq!(death.comes(step), comes, "{step}");
            }
            let mut death = Death::new(None, Some("3".to_owned()));
            let comes = [(); 4].map(|()| death.comes("create.checked"));
            assert_eq!(comes, [false, false, true, false]);
            let mut never = Death::new(None, None);
            assert!(ALL.iter().all(|step| !never.comes(step)));
        }

        #[test]
        fn no_step_is_listed_twice() {
            for (index, step) in ALL.iter().enumerate() {
                assert!(!ALL[..index].contains(step), "{step}");
            }
        }
    }
}
