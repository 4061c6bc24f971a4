//! What a device does next. Pure: the task in `device.rs` reports events and carries actions out.
//!
//! ```text
//!              Spawn                status
//!   (created) ------> Starting --------------> Serving <--> (status)
//!                      ^  |  \ too late          |
//!                      |  |   `--> Overdue       | exit
//!           pause over |  | exit      | exit     v
//!                   Waiting <---------+------ by policy ----> Failed
//!
//!   A first start that fails is undone:  Starting, Overdue --exit--> Gone
//!
//!   Somebody wants an end, and says what comes after it:
//!     Starting, Serving --> Stopping --too late--> Killed;  both --exit--> what comes after
//!     Waiting, Failed, Stopped --> what comes after
//!
//!     Delete:  Gone      Restart:  Starting      Rest:  Stopped --Wake--> Starting
//!
//!   What can't be removed of a device that is Gone makes it Leaving, and is tried again after a pause.
//!   A wish that comes while an earlier one is being met takes its place; after Delete none does.
//! ```

use std::time::{Duration, Instant};

use super::backoff;
use crate::store::RestartPolicy;

/// This many ends within `BURST_WINDOW` make a device FAILED.
const BURST: usize = 5;
const BURST_WINDOW: Duration = Duration::from_secs(60);

/// Pause before what could not be removed is tried again.
const LEAVE_AGAIN: Duration = Duration::from_secs(5);

/// What can happen to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The process said how it is.
    Status { connected: bool },
    /// The process is no more, or could not be spawned.
    Ended { success: bool },
    /// Time has passed.
    Tick,
    /// Somebody wants the device gone.
    Delete,
    /// Somebody wants another process.
    Restart,
    /// The host's devices are to be shut down.
    Rest,
    /// They are to run again.
    Wake,
    /// Something is left of the device that could not be removed.
    Left,
}

/// What the task has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// Start a process. There is none.
    Spawn,
    /// Ask the process to end; another one may follow.
    Terminate,
    /// End the process.
    Kill,
    /// Remove all that is left of the device. There is no process.
    CleanUp,
}

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A process runs that has not said yet that it serves.
    Starting { deadline: Instant, first: bool },
    /// It did not say so in time and was killed.
    Overdue { first: bool },
    /// The process serves the device.
    Serving { connected: bool },
    /// The process ended; another one starts after a pause.
    Waiting { until: Instant },
    /// The process ended and the agent gave up.
    Failed,
    /// The process was asked to end.
    Stopping { deadline: Instant, then: Then },
    /// It did not, and was killed.
    Killed { then: Then },
    /// The device has no process until it is woken.
    Stopped,
    /// What is left of the device can't be removed; that is tried again.
    Leaving { until: Instant },
    /// Nothing is left but to clean up.
    Gone,
}

/// What comes after the end of a process that was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Another process.
    Restart,
    /// None, until the device is woken.
    Rest,
    /// The end of the device.
    Delete,
}

impl Then {
    fn wished(event: Event) -> Option<Self> {
        match event {
            Event::Delete => Some(Self::Delete),
            Event::Restart => Some(Self::Restart),
            Event::Rest => Some(Self::Rest),
            Event::Status { .. }
            | Event::Ended { .. }
            | Event::Tick
            | Event::Wake
            | Event::Left => None,
        }
    }
}

/// The times a device's machine goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// From spawn to the first status.
    pub(crate) start: Duration,
    /// From SIGTERM to SIGKILL.
    pub(crate) stop: Duration,
}

/// A device's state, and what it takes to decide on the next.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    policy: RestartPolicy,
    pub(crate) timeouts: Timeouts,
    salt: u64,
    ends: Vec<Instant>,
}

impl State {
    /// A device whose process is about to be spawned. When it is the `first` of a device that is
    /// being created, a failure undoes the device instead of being retried.
    pub(crate) fn starting(
        policy: RestartPolicy,
        timeouts: Timeouts,
        salt: u64,
        first: bool,
        now: Instant,
    ) -> Self {
        let deadline = now + timeouts.start;
        Self {
            phase: Phase::Starting { deadline, first },
            policy,
            timeouts,
            salt,
            ends: Vec::new(),
        }
    }

    /// What happens from the next end of the process on.
    pub(crate) fn set_policy(&mut self, policy: RestartPolicy) {
        self.policy = policy;
    }

    /// The process runs only now: the time it has to become ready begins.
    pub(crate) fn spawned(&mut self, now: Instant) {
        if let Phase::Starting { deadline, .. } = &mut self.phase {
            *deadline = now + self.timeouts.start;
        }
    }

    /// Whether the device is being created still.
    pub(crate) fn is_first(&self) -> bool {
        use Phase::{Overdue, Starting};
        matches!(
            self.phase,
            Starting { first: true, .. } | Overdue { first: true }
        )
    }

    /// When to send the next `Tick`.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting { deadline, .. } | Phase::Stopping { deadline, .. } => Some(deadline),
            Phase::Waiting { until } | Phase::Leaving { until } => Some(until),
            Phase::Overdue { .. }
            | Phase::Serving { .. }
            | Phase::Failed
            | Phase::Killed { .. }
            | Phase::Stopped
            | Phase::Gone => None,
        }
    }

    /// A device whose process is known to be failed, from before this agent.
    pub(crate) fn failed(self) -> Self {
        let phase = Phase::Failed;
        Self { phase, ..self }
    }

    /// A device that is to rest and has no process, from before this agent.
    pub(crate) fn stopped(self) -> Self {
        let phase = Phase::Stopped;
        Self { phase, ..self }
    }

    fn to(self, phase: Phase, action: Action) -> (Self, Action) {
        (Self { phase, ..self }, action)
    }

    fn start(self, now: Instant) -> (Self, Action) {
        let deadline = now + self.timeouts.start;
        let first = false;
        self.to(Phase::Starting { deadline, first }, Action::Spawn)
    }

    /// The device has no process: on to what was wished for.
    fn on(mut self, then: Then, now: Instant) -> (Self, Action) {
        match then {
            Then::Delete => self.to(Phase::Gone, Action::CleanUp),
            Then::Rest => self.to(Phase::Stopped, Action::None),
            Then::Restart => {
                // Whoever asks for another process has seen how the last ones ended.
                self.ends.clear();
                self.start(now)
            }
        }
    }

    fn ended(mut self, success: bool, now: Instant) -> (Self, Action) {
        let give_up = match self.policy {
            RestartPolicy::Always => false,
            RestartPolicy::OnFailure => success,
            RestartPolicy::Never => true,
        };
        self.ends
            .retain(|end| now.saturating_duration_since(*end) < BURST_WINDOW);
        self.ends.push(now);
        if give_up || self.ends.len() >= BURST {
            return self.to(Phase::Failed, Action::None);
        }
        let until = now + backoff::pause(self.ends.len(), self.salt);
        self.to(Phase::Waiting { until }, Action::None)
    }
}

/// The state after `event`, and what to do now.
pub(crate) fn next(state: &State, event: Event, now: Instant) -> (State, Action) {
    let state = state.clone();
    match (state.phase, event) {
        (Phase::Starting { .. } | Phase::Serving { .. }, Event::Status { connected }) => {
            state.to(Phase::Serving { connected }, Action::None)
        }

        (
            Phase::Starting { first: true, .. } | Phase::Overdue { first: true },
            Event::Ended { .. },
        ) => state.to(Phase::Gone, Action::CleanUp),
        (
            Phase::Starting { .. } | Phase::Overdue { .. } | Phase::Serving { .. },
            Event::Ended { success },
        ) => state.ended(success, now),
        (Phase::Stopping { then, .. } | Phase::Killed { then }, Event::Ended { .. }) => {
            state.on(then, now)
        }

        (Phase::Starting { deadline, first }, Event::Tick) if now >= deadline => {
            state.to(Phase::Overdue { first }, Action::Kill)
        }
        (Phase::Stopping { deadline, then }, Event::Tick) if now >= deadline => {
            state.to(Phase::Killed { then }, Action::Kill)
        }
        (Phase::Waiting { until }, Event::Tick) if now >= until => state.start(now),
        (Phase::Gone, Event::Left) => {
            let until = now + LEAVE_AGAIN;
            state.to(Phase::Leaving { until }, Action::None)
        }
        (Phase::Leaving { .. }, Event::Delete) => state.on(Then::Delete, now),
        (Phase::Leaving { until }, Event::Tick) if now >= until => state.on(Then::Delete, now),
        (Phase::Stopped, Event::Wake) => state.on(Then::Restart, now),
        // It was about to rest.
        (
            Phase::Stopping {
                deadline,
                then: Then::Rest,
            },
            Event::Wake,
        ) => {
            let then = Then::Restart;
            state.to(Phase::Stopping { deadline, then }, Action::None)
        }
        (Phase::Killed { then: Then::Rest }, Event::Wake) => {
            let then = Then::Restart;
            state.to(Phase::Killed { then }, Action::None)
        }

        (phase, event) => match Then::wished(event) {
            Some(then) => wish(state, phase, then, now),
            // A status that was on its way when the process was asked to end, a tick that came early.
            None => (state, Action::None),
        },
    }
}

/// Somebody wants the process to end, whatever it is doing, and `then` to come.
fn wish(state: State, phase: Phase, then: Then, now: Instant) -> (State, Action) {
    let deadline = now + state.timeouts.stop;
    match phase {
        // What failed stays so, and what rests is at rest.
        Phase::Failed | Phase::Stopped if then == Then::Rest => (state, Action::None),
        Phase::Waiting { .. } | Phase::Failed | Phase::Stopped => state.on(then, now),
        Phase::Starting { .. } | Phase::Serving { .. } => {
            state.to(Phase::Stopping { deadline, then }, Action::Terminate)
        }
        Phase::Overdue { .. } => state.to(Phase::Killed { then }, Action::None),
        // From a deletion there is no way back.
        Phase::Gone
        | Phase::Leaving { .. }
        | Phase::Stopping {
            then: Then::Delete, ..
        }
        | Phase::Killed { then: Then::Delete } => (state, Action::None),
        // The process has its time already.
        Phase::Stopping { deadline, .. } => {
            state.to(Phase::Stopping { deadline, then }, Action::None)
        }
        Phase::Killed { .. } => state.to(Phase::Killed { then }, Action::None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        start: Duration::from_secs(10),
        stop: Duration::from_secs(5),
    };

    fn starting(policy: RestartPolicy, first: bool, now: Instant) -> State {
        State::starting(policy, TIMEOUTS, 7, first, now)
    }

    fn serving(policy: RestartPolicy, now: Instant) -> State {
        let state = starting(policy, true, now);
        next(&state, Event::Status { connected: false }, now).0
    }

    #[test]
    fn a_first_start_that_fails_is_undone() {
        let now = Instant::now();
        for policy in [RestartPolicy::Always, RestartPolicy::Never] {
            let state = starting(policy, true, now);
            let (state, action) = next(&state, Event::Ended { success: false }, now);
            assert_eq!((state.phase, action), (Phase::Gone, Action::CleanUp));
        }
    }

    #[test]
    fn a_first_start_that_takes_too_long_is_killed_and_undone() {
        let now = Instant::now();
        let state = starting(RestartPolicy::Always, true, now);
        assert_eq!(next(&state, Event::Tick, now).1, Action::None);
        let (state, action) = next(&state, Event::Tick, now + TIMEOUTS.start);
        assert_eq!(action, Action::Kill);
        let (state, action) = next(&state, Event::Ended { success: false }, now);
        assert_eq!((state.phase, action), (Phase::Gone, Action::CleanUp));
    }

    #[test]
    fn policies_differ_in_what_they_restart() {
        let now = Instant::now();
        for (policy, success, restarts) in [
            (RestartPolicy::Always, true, true),
            (RestartPolicy::Always, false, true),
            (RestartPolicy::OnFailure, true, false),
            (RestartPolicy::OnFailure, false, true),
            (RestartPolicy::Never, true, false),
            (RestartPolicy::Never, false, false),
        ] {
            let (state, _) = next(&serving(policy, now), Event::Ended { success }, now);
            let waits = matches!(state.phase, Phase::Waiting { .. });
            assert_eq!(waits, restarts, "{policy:?} after success = {success}");
        }
    }

    #[test]
    fn a_burst_of_ends_is_the_last() {
        let mut now = Instant::now();
        let mut state = serving(RestartPolicy::Always, now);
        let mut spawn_count = 0;
        loop {
            state = next(&state, Event::Ended { success: false }, now).0;
            let Some(until) = state.deadline() else { break };
            now = until;
            let (after, action) = next(&state, Event::Tick, now);
            assert_eq!(action, Action::Spawn);
            state = after;
            spawn_count += 1;
        }
        assert_eq!((state.phase, spawn_count), (Phase::Failed, 4));
    }

    #[test]
    fn ends_far_apart_are_no_burst() {
        let mut now = Instant::now();
        let mut state = serving(RestartPolicy::Always, now);
        for _ in 0..50 {
            now += Duration::from_secs(20);
            state = next(&state, Event::Ended { success: false }, now).0;
            now = state.deadline().expect("a restart is due");
            state = next(&state, Event::Tick, now).0;
            state = next(&state, Event::Status { connected: true }, now).0;
        }
        assert_eq!(state.phase, Phase::Serving { connected: true });
    }

    #[test]
    fn delete_asks_then_kills_then_cleans_up() {
        let now = Instant::now();
        let state = serving(RestartPolicy::Always, now);
        let (state, action) = next(&state, Event::Delete, now);
        assert_eq!(action, Action::Terminate);
        let (state, action) = next(&state, Event::Tick, now + TIMEOUTS.stop);
        assert_eq!(action, Action::Kill);
        let (state, action) = next(&state, Event::Ended { success: false }, now);
        assert_eq!((state.phase, action), (Phase::Gone, Action::CleanUp));
    }

    #[test]
    fn restart_ends_the_process_and_starts_another_even_of_a_failed_device() {
        let now = Instant::now();
        let state = serving(RestartPolicy::Never, now);
        let (state, action) = next(&state, Event::Restart, now);
        assert_eq!(action, Action::Terminate);
        let (state, action) = next(&state, Event::Ended { success: true }, now);
        assert_eq!(action, Action::Spawn);
        let (state, _) = next(&state, Event::Status { connected: false }, now);
        assert_eq!(state.phase, Phase::Serving { connected: false });
        let (state, _) = next(&state, Event::Ended { success: false }, now);
        assert_eq!(state.phase, Phase::Failed);
        let (_, action) = next(&state, Event::Restart, now);
        assert_eq!(action, Action::Spawn);
    }

    #[test]
    fn what_cant_be_removed_is_tried_again() {
        let now = Instant::now();
        let state = serving(RestartPolicy::Always, now);
        let (state, _) = next(&state, Event::Delete, now);
        let (state, _) = next(&state, Event::Ended { success: true }, now);
        let (state, action) = next(&state, Event::Left, now);
        assert_eq!(action, Action::None);
        for ignored in [Event::Tick, Event::Restart, Event::Rest, Event::Wake] {
            assert_eq!(next(&state, ignored, now).1, Action::None, "{ignored:?}");
        }
        assert_eq!(next(&state, Event::Delete, now).1, Action::CleanUp);
        let (state, action) = next(&state, Event::Tick, now + LEAVE_AGAIN);
        assert_eq!((state.phase, action), (Phase::Gone, Action::CleanUp));
    }

    #[test]
    fn the_last_wish_holds_except_after_delete() {
        let now = Instant::now();
        let after = |wishes: &[Event]| {
            let mut state = serving(RestartPolicy::Always, now);
            for wish in wishes {
                state = next(&state, *wish, now).0;
            }
            next(&state, Event::Ended { success: true }, now)
        };
        let (state, action) = after(&[Event::Restart, Event::Rest]);
        assert_eq!((state.phase, action), (Phase::Stopped, Action::None));
        assert_eq!(after(&[Event::Rest, Event::Wake]).1, Action::Spawn);
        assert_eq!(after(&[Event::Rest, Event::Restart]).1, Action::Spawn);
        assert_eq!(after(&[Event::Restart, Event::Delete]).1, Action::CleanUp);
        for late in [Event::Restart, Event::Rest, Event::Wake] {
            assert_eq!(after(&[Event::Delete, late]).1, Action::CleanUp, "{late:?}");
        }
        assert_eq!(next(&state, Event::Tick, now).1, Action::None);
        assert_eq!(next(&state, Event::Wake, now).1, Action::Spawn);
        assert_eq!(next(&state, Event::Delete, now).1, Action::CleanUp);
    }

    fn policies() -> impl Strategy<Value = RestartPolicy> {
        prop_oneof![
            Just(RestartPolicy::Always),
            Just(RestartPolicy::OnFailure),
            Just(RestartPolicy::Never),
        ]
    }

    fn events() -> impl Strategy<Value = (Event, u64)> {
        let event = prop_oneof![
            4 => any::<bool>().prop_map(|connected| Event::Status { connected }),
            4 => any::<bool>().prop_map(|success| Event::Ended { success }),
            4 => Just(Event::Tick),
            1 => Just(Event::Restart),
            1 => Just(Event::Rest),
            2 => Just(Event::Wake),
            1 => Just(Event::Delete),
        ];
        (event, 0_u64..20_000)
    }

    proptest! {
        #[test]
        fn any_order_of_events_keeps_one_process_at_most_and_cleans_up_once(
            policy in policies(),
            first in any::<bool>(),
            events in prop::collection::vec(events(), 0..200),
        ) {
            let mut now = Instant::now();
            let mut state = starting(policy, first, now);
            let mut running = true;
            let mut deleted = false;
            let mut cleaned = false;
            let mut rests = false;
            let mut ends: Vec<Instant> = Vec::new();
            for (event, pass_ms) in events {
                now += Duration::from_millis(pass_ms);
                match event {
                    // A process that is not there neither speaks nor ends.
                    Event::Status { .. } | Event::Ended { .. } if !running => continue,
                    Event::Ended { .. } => {
                        running = false;
                        ends.push(now);
                    }
                    Event::Delete => deleted = true,
                    // Whoever asks for a process has seen how the last ones ended.
                    Event::Restart | Event::Wake => {
                        rests = false;
                        ends.clear();
                    }
                    Event::Rest => rests = true,
                    Event::Status { .. } | Event::Tick | Event::Left => {}
                }
                let (after, action) = next(&state, event, now);
                match action {
                    Action::None => {}
                    Action::Spawn => {
                        prop_assert!(!running && !deleted && !cleaned && !rests);
                        running = true;
                        if let [.., first, _, _, _, last] = ends[..] {
                            prop_assert!(last - first >= BURST_WINDOW);
                        }
                    }
                    Action::Terminate | Action::Kill => prop_assert!(running),
                    Action::CleanUp => {
                        prop_assert!(!running && !cleaned);
                        prop_assert_eq!(after.phase, Phase::Gone);
                        cleaned = true;
                    }
                }
                // Whoever waits for the clock says until when; who has no process and is not at
                // an end waits for the clock.
                if !running {
                    let ends = matches!(after.phase, Phase::Failed | Phase::Stopped | Phase::Gone);
                    prop_assert_eq!(after.deadline().is_none(), ends);
                }
                state = after;
            }

            // From everywhere, delete leads to the end.
            let (after, mut action) = next(&state, Event::Delete, now);
            state = after;
            if running {
                (state, action) = next(&state, Event::Ended { success: true }, now);
            }
            prop_assert_eq!(state.phase, Phase::Gone);
            prop_assert_eq!(action == Action::CleanUp, !cleaned);
        }
    }
}
