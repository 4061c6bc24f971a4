//! What becomes of a device's place in a VMM. Pure: the task in `place.rs` reports events and carries actions out.
//!
//! ```text
//!             Plug              took, found                 Unplug
//!   no place ------> Plugging ---------------> Plugged -------------> Unplugging
//!      ^               |  ^                     |   ^                  |   |
//!      |       refused |  | not found, again    |   | the guest keeps  |   |
//!      |               |  | (a few times)       |   `--------it--------'   |
//!      `---------------+--'---------------------+--------------------------'
//!                            let go, not found, the VMM is gone
//! ```
//!
//! One call to the VMM is under way at a time. What a call has led to is not certain when the VMM has not answered, when
//! the device's client goes by itself, and after an agent's death: then the VMM is asked what it has, and what it says counts.

use std::time::{Duration, Instant};

use crate::store::Stage;

/// So often a VMM is given a device that it did not have when it was asked what it has.
const PLUGS: u32 = 3;
/// Pause before a VMM that has not answered is asked again, doubled each time up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_DOUBLINGS: u32 = 5;

/// What can happen to a device's place in a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody wants the device out of the VMM.
    Unplug,
    /// The VMM has taken it.
    Took,
    /// The VMM has not taken it, and will not.
    Refused,
    /// The VMM has let go of it.
    LetGo,
    /// The guest, or the VMM, keeps it.
    Kept,
    /// The VMM has not answered.
    Unknown,
    /// The VMM says whether it has the device.
    Found(bool),
    /// The VMM may have let go of it by itself.
    Doubt,
    /// The VMM has let go of it by itself.
    Gone,
    /// Time has passed.
    Tick,
}

/// What the task has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Ask the VMM to take the device.
    Plug,
    /// Ask the VMM to give it up.
    Unplug,
    /// Ask the VMM whether it has it.
    Find,
    /// The device is in no VMM any more.
    Forget,
}

/// Where a device is between its VMM and none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) stage: Stage,
    /// Whether a call to the VMM is under way.
    is_asking: bool,
    /// Whether what the VMM has is to be looked at after that.
    is_in_doubt: bool,
    /// How often the VMM was asked to take the device.
    plugs: u32,
    /// How often it has not answered in a row, and when it is to be asked again.
    silences: u32,
    again: Option<Instant>,
}

impl State {
    /// A device that the VMM is about to be asked to take.
    pub(super) fn plugging() -> Self {
        Self {
            stage: Stage::Plugging,
            is_asking: true,
            is_in_doubt: false,
            plugs: 1,
            silences: 0,
            again: None,
        }
    }

    /// A device of an agent before this one, of which the VMM is about to be asked whether it has it.
    pub(super) fn found(stage: Stage) -> Self {
        Self {
            stage,
            plugs: 0,
            ..Self::plugging()
        }
    }

    /// When to send the next `Tick`.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    fn ask(self, action: Action) -> (Self, Action) {
        let state = Self {
            is_asking: true,
            is_in_doubt: false,
            again: None,
            plugs: self.plugs + u32::from(action == Action::Plug),
            ..self
        };
        (state, action)
    }

    fn rest(self, stage: Stage) -> (Self, Action) {
        let is_in_doubt = self.is_in_doubt;
        let state = Self { stage, ..self };
        match is_in_doubt {
            true => state.ask(Action::Find),
            false => (state, Action::None),
        }
    }
}

/// The state after `event`, and what to do now.
pub(super) fn next(state: &State, event: Event, now: Instant) -> (State, Action) {
    let mut state = state.clone();
    let is_answer = match event {
        Event::Unplug | Event::Doubt | Event::Gone | Event::Tick => false,
        Event::Took
        | Event::Refused
        | Event::LetGo
        | Event::Kept
        | Event::Unknown
        | Event::Found(_) => true,
    };
    if is_answer {
        state.is_asking = false;
        state.silences = match event {
            Event::Unknown => state.silences + 1,
            _ => 0,
        };
    }
    match (state.stage, event) {
        (_, Event::Gone | Event::LetGo) | (Stage::Plugging | Stage::Unplugging, Event::Refused) => {
            (state, Action::Forget)
        }
        (_, Event::Unknown) => {
            let doublings = (state.silences - 1).min(PAUSE_DOUBLINGS);
            state.again = Some(now + PAUSE * 2_u32.pow(doublings));
            (state, Action::None)
        }
        (_, Event::Tick) => match state.again {
            Some(again) if now >= again => state.ask(Action::Find),
            _ => (state, Action::None),
        },

        (Stage::Plugged | Stage::Plugging, Event::Unplug) => {
            state.stage = Stage::Unplugging;
            // What is under way comes to its end first.
            match state.is_asking || state.again.is_some() {
                true => (state, Action::None),
                false => state.ask(Action::Unplug),
            }
        }
        (Stage::Plugged, Event::Doubt) if !state.is_asking => state.ask(Action::Find),
        (_, Event::Doubt) => {
            state.is_in_doubt = true;
            (state, Action::None)
        }

        (Stage::Plugging, Event::Took | Event::Found(true)) => state.rest(Stage::Plugged),
        (Stage::Plugging, Event::Found(false)) if state.plugs < PLUGS => state.ask(Action::Plug),
        (_, Event::Found(false)) => (state, Action::Forget),
        (Stage::Unplugging, Event::Took | Event::Found(true)) => state.ask(Action::Unplug),
        (Stage::Unplugging, Event::Kept) => state.rest(Stage::Plugged),
        (Stage::Plugged, _)
        | (Stage::Plugging, Event::Kept)
        | (Stage::Unplugging, Event::Unplug) => (state, Action::None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(state: State, events: &[Event]) -> (State, Action) {
        let now = Instant::now();
        let fold = |(state, _): (State, Action), event: &Event| next(&state, *event, now);
        events.iter().fold((state, Action::None), fold)
    }

    #[test]
    fn a_device_goes_in_and_out() {
        let (state, action) = after(State::plugging(), &[Event::Took]);
        assert_eq!((state.stage, action), (Stage::Plugged, Action::None));
        let (state, action) = after(state, &[Event::Unplug]);
        assert_eq!((state.stage, action), (Stage::Unplugging, Action::Unplug));
        let (_, action) = after(state.clone(), &[Event::LetGo]);
        assert_eq!(action, Action::Forget);
        let (state, action) = after(state, &[Event::Kept]);
        assert_eq!((state.stage, action), (Stage::Plugged, Action::None));
    }

    #[test]
    fn an_unplug_waits_for_the_plug_that_is_under_way() {
        let (state, action) = after(State::plugging(), &[Event::Unplug]);
        assert_eq!((state.stage, action), (Stage::Unplugging, Action::None));
        assert_eq!(after(state.clone(), &[Event::Took]).1, Action::Unplug);
        assert_eq!(after(state, &[Event::Refused]).1, Action::Forget);
    }

    #[test]
    fn what_is_not_certain_is_asked_for() {
        let now = Instant::now();
        let (state, action) = next(&State::plugging(), Event::Unknown, now);
        assert_eq!(action, Action::None);
        assert_eq!(next(&state, Event::Tick, now).1, Action::None);
        let (state, action) = next(&state, Event::Tick, now + PAUSE);
        assert_eq!(action, Action::Find);
        assert_eq!(
            after(state.clone(), &[Event::Found(true)]).0.stage,
            Stage::Plugged
        );
        // It is given the device again, but not for ever.
        let (state, action) = after(state, &[Event::Found(false)]);
        assert_eq!(action, Action::Plug);
        let again = [Event::Unknown, Event::Found(false)].repeat(PLUGS as usize - 1);
        assert_eq!(after(state, &again).1, Action::Forget);
    }

    #[test]
    fn a_later_agent_goes_on() {
        for (stage, there, action) in [
            (Stage::Plugging, true, Action::None),
            (Stage::Plugging, false, Action::Plug),
            (Stage::Plugged, true, Action::None),
            (Stage::Plugged, false, Action::Forget),
            (Stage::Unplugging, true, Action::Unplug),
            (Stage::Unplugging, false, Action::Forget),
        ] {
            let (_, told) = after(State::found(stage), &[Event::Found(there)]);
            assert_eq!(told, action, "{stage:?} {there}");
        }
    }

    #[test]
    fn a_doubt_during_a_call_is_looked_into_after_it() {
        let (state, action) = after(State::plugging(), &[Event::Doubt, Event::Took]);
        assert_eq!((state.stage, action), (Stage::Plugged, Action::Find));
        let (_, action) = after(state, &[Event::Found(true)]);
        assert_eq!(action, Action::None);
    }

    fn events() -> impl Strategy<Value = (Event, u64)> {
        let event = prop_oneof![
            Just(Event::Unplug),
            Just(Event::Took),
            Just(Event::Refused),
            Just(Event::LetGo),
            Just(Event::Kept),
            Just(Event::Unknown),
            any::<bool>().prop_map(Event::Found),
            Just(Event::Doubt),
            Just(Event::Gone),
            Just(Event::Tick),
        ];
        (event, 0_u64..40_000)
    }

    proptest! {
        /// A VMM that answers what it was asked, in any way and at any time.
        #[test]
        fn one_call_is_under_way_and_no_wish_is_forgotten(
            events in prop::collection::vec(events(), 0..200),
        ) {
            let mut now = Instant::now();
            let mut state = State::plugging();
            let mut asked = Action::Plug;
            let mut wants_out = false;
            for (event, pass_ms) in events {
                now += Duration::from_millis(pass_ms);
                let fits = match event {
                    Event::Took | Event::Refused => asked == Action::Plug,
                    Event::LetGo | Event::Kept => asked == Action::Unplug,
                    Event::Found(_) => asked == Action::Find,
                    Event::Unknown => asked != Action::None,
                    Event::Unplug | Event::Doubt | Event::Gone | Event::Tick => true,
                };
                if !fits {
                    continue;
                }
                if !matches!(event, Event::Unplug | Event::Doubt | Event::Gone | Event::Tick) {
                    asked = Action::None;
                }
                match event {
                    Event::Unplug => wants_out = true,
                    Event::Kept => wants_out = false,
                    _ => {}
                }
                let (after, action) = next(&state, event, now);
                if action == Action::Forget {
                    return Ok(());
                }
                if action != Action::None {
                    prop_assert_eq!(asked, Action::None, "two calls at once");
                    asked = action;
                }
                prop_assert_eq!(after.is_asking, asked != Action::None);
                prop_assert!(!(wants_out && action == Action::Plug && after.stage == Stage::Unplugging));
                prop_assert_eq!(after.stage == Stage::Unplugging, wants_out);
                // Who is neither in nor out waits for the VMM or for the clock.
                let waits = asked != Action::None || after.deadline().is_some();
                prop_assert!(waits || after.stage == Stage::Plugged);
                state = after;
            }
        }
    }
}
