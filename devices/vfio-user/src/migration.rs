//! Migration, version 2: the states that a client moves the device through, and the saved state as a stream.
//!
//! ```text
//!   RESUMING <-----> STOP <-----> RUNNING <-----> PRE_COPY
//!                     ^                              |
//!                     v                              |
//!                 STOP_COPY <------------------------+
//! ```
//!
//! An arrow is an arc, on which something is done: the device stops or goes on, and on the way to `STOP_COPY` its state is
//! saved. What was written in `RESUMING` is loaded on the way out. To a state that no arrow leads to, the shortest way is
//! taken that does not pass through `PRE_COPY` or `STOP_COPY`; from `STOP_COPY` to `PRE_COPY` the specification knows none.
//! When an arc fails, the device stays in the state before it, except that a state which can't be loaded leaves it in
//! `ERROR`: nobody should run it by mistake. Only DEVICE_RESET leads out of that, as out of every state, to `RUNNING`.
//!
//! The stream is what the device's own hooks save, which know their format and its version; nothing is added to it. In
//! `PRE_COPY` it is empty, since all of the state is small enough to be moved while the device stands still.

use std::mem;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::{Lent, Migration, MigrationState as State};

/// The longest state that is taken.
const MAX_STATE_BYTES: usize = 64 << 20;

/// Where the device of a session is.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    /// What is still to be read, from `position` on, or what has been written.
    data: Vec<u8>,
    position: usize,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::RUNNING,
            data: Vec::new(),
            position: 0,
        }
    }
}

impl Machine {
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether the device may do anything.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::RUNNING | State::PRE_COPY)
    }

    /// Takes the device to another state.
    ///
    /// # Errors
    /// `EINVAL` for a state to which there is no way, and what the device says, which is then in some state on the way.
    pub(crate) fn go(
        &mut self,
        device: &mut dyn Migration,
        lent: &mut Lent,
        to: State,
    ) -> Result<(), Errno> {
        let path = path(self.state, to).ok_or(Errno::EINVAL)?;
        path.into_iter()
            .try_for_each(|next| self.step(device, lent, next))
    }

    /// Goes along one arc.
    fn step(
        &mut self,
        device: &mut dyn Migration,
        lent: &mut Lent,
        next: State,
    ) -> Result<(), Errno> {
        // Every arc begins or ends a stream, or lies outside of any.
        let received = mem::take(&mut self.data);
        self.position = 0;
        match (self.state, next) {
            (State::RUNNING, State::STOP) => device.set_running(lent, false),
            (State::STOP, State::RUNNING) => device.set_running(lent, true),
            (State::STOP, State::STOP_COPY) => self.data = device.save()?,
            (State::PRE_COPY, State::STOP_COPY) => {
                device.set_running(lent, false);
                match device.save() {
                    Ok(data) => self.data = data,
                    Err(errno) => {
                        device.set_running(lent, true);
                        return Err(errno);
                    }
                }
            }
            (State::RESUMING, State::STOP) => {
                if let Err(errno) = device.load(lent, &received) {
                    self.state = State::ERROR;
                    return Err(errno);
                }
            }
            _ => {}
        }
        self.state = next;
        Ok(())
    }

    /// The next `size` bytes of the saved state; fewer at its end.
    ///
    /// # Errors
    /// `EINVAL` in a state that saves nothing.
    pub(crate) fn read(&mut self, size: usize) -> Result<&[u8], Errno> {
        if !matches!(self.state, State::PRE_COPY | State::STOP_COPY) {
            return Err(Errno::EINVAL);
        }
        let rest = &self.data[self.position..];
        let data = &rest[..size.min(rest.len())];
        self.position += data.len();
        Ok(data)
    }

    /// Takes more of a state that is to be loaded.
    ///
    /// # Errors
    /// `EINVAL` in a state that loads nothing; `ENOMEM`, as the kernel's drivers say it, for a state that is too long.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), Errno> {
        if self.state != State::RESUMING {
            return Err(Errno::EINVAL);
        }
        if data.len() > MAX_STATE_BYTES - self.data.len() {
            return Err(Errno::ENOMEM);
        }
        self.data.extend_from_slice(data);
        Ok(())
    }
}

/// Where the migration of a session's device is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedMigration {
    /// By VFIO's number.
    state: u32,
    /// What is still to be read, or what has been written; in base64.
    data: String,
}

impl Machine {
    pub(crate) fn save(&self) -> SavedMigration {
        SavedMigration {
            state: self.state.0,
            data: BASE64_STANDARD.encode(&self.data[self.position..]),
        }
    }

    /// Goes on where [`Machine::save`] left off. Whoever calls this stops the device unless the machine says that it runs:
    /// a device's own state does not tell.
    ///
    /// # Errors
    /// `EINVAL` for a state that does not exist, or data where there is no stream or too much of it.
    pub(crate) fn restore(saved: &SavedMigration) -> Result<Self, Errno> {
        let state = State(saved.state);
        let has_data = matches!(state, State::STOP_COPY | State::RESUMING);
        // Longer text is not decoded.
        let is_long = saved.data.len() / 4 > MAX_STATE_BYTES / 3 + 1;
        if state != State::ERROR && !is_known(state)
            || is_long
            || !has_data && !saved.data.is_empty()
        {
            return Err(Errno::EINVAL);
        }
        let data = BASE64_STANDARD
            .decode(&saved.data)
            .map_err(|_| Errno::EINVAL)?;
        if data.len() > MAX_STATE_BYTES {
            return Err(Errno::EINVAL);
        }
        Ok(Self {
            state,
            data,
            position: 0,
        })
    }
}

/// The states to go through, the last of them `to`; `None`: there is no way.
fn path(from: State, to: State) -> Option<Vec<State>> {
    if !is_known(from) || !is_known(to) || (from, to) == (State::STOP_COPY, State::PRE_COPY) {
        return None;
    }
    let mut path = Vec::new();
    let mut at = from;
    while at != to {
        at = match (at, to) {
            (State::RUNNING, State::STOP | State::PRE_COPY)
            | (State::STOP, State::RUNNING | State::STOP_COPY | State::RESUMING)
            | (State::STOP_COPY | State::RESUMING, State::STOP)
            | (State::PRE_COPY, State::RUNNING | State::STOP_COPY) => to,
            (State::STOP | State::PRE_COPY, _) => State::RUNNING,
            _ => State::STOP,
        };
        path.push(at);
    }
    Some(path)
}

/// Whether a client may ask for this state.
fn is_known(state: State) -> bool {
    matches!(
        state,
        State::STOP | State::RUNNING | State::STOP_COPY | State::RESUMING | State::PRE_COPY
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Direct State Transitions" in the specification, by number: STOP 1, RUNNING 2, STOP_COPY 3, RESUMING 4, PRE_COPY 6.
    const ARCS: [(u32, u32); 9] = [
        (2, 1),
        (3, 1),
        (4, 1),
        (6, 2),
        (1, 2),
        (2, 6),
        (1, 3),
        (6, 3),
        (1, 4),
    ];

    /// The least number of arcs, with no saving state inside the path.
    fn shortest(from: u32, to: u32) -> Option<usize> {
        let mut reached = vec![from];
        for arcs in 0..8 {
            if reached.contains(&to) {
                return Some(arcs);
            }
            reached = ARCS
                .iter()
                .filter(|(start, _)| {
                    reached.contains(start) && (*start == from || ![3, 6].contains(start))
                })
                .map(|(_, end)| *end)
                .collect();
        }
        None
    }

    #[test]
    fn every_path_is_the_shortest_along_arcs_without_saving_states_inside() {
        for from in 0..9 {
            for to in 0..9 {
                let path = path(State(from), State(to));
                let known = |state| [1, 2, 3, 4, 6].contains(&state);
                if !known(from) || !known(to) || (from, to) == (3, 6) {
                    assert_eq!(path, None, "{from} -> {to}");
                    continue;
                }
                let states: Vec<u32> = path.unwrap().iter().map(|state| state.0).collect();
                assert_eq!(Some(states.len()), shortest(from, to), "{from} -> {to}");
                assert_eq!(*states.last().unwrap_or(&from), to);
                let starts = [&[from], &states[..]].concat();
                for arc in starts.windows(2) {
                    assert!(ARCS.contains(&(arc[0], arc[1])), "{from} -> {to}: {arc:?}");
                }
                let inside = &states[..states.len().saturating_sub(1)];
                assert!(!inside.contains(&3) && !inside.contains(&6));
            }
        }
    }

    /// Through bytes, as on the way to another process.
    fn move_on(machine: &Machine) -> Machine {
        let bytes = serde_json::to_vec(&machine.save()).unwrap();
        Machine::restore(&serde_json::from_slice(&bytes).unwrap()).unwrap()
    }

    #[test]
    fn a_stream_goes_on_where_it_was_left() {
        let mut machine = Machine {
            state: State::STOP_COPY,
            data: b"abcdef".to_vec(),
            position: 0,
        };
        assert_eq!(machine.read(2), Ok(&b"ab"[..]));
        let mut machine = move_on(&machine);
        assert_eq!(machine.read(3), Ok(&b"cde"[..]));
        assert_eq!(move_on(&machine).read(3), Ok(&b"f"[..]));
        let mut machine = Machine {
            state: State::RESUMING,
            ..Machine::default()
        };
        machine.write(b"ab").unwrap();
        let mut machine = move_on(&machine);
        machine.write(b"cd").unwrap();
        assert_eq!(machine.data, b"abcd");
    }

    #[test]
    fn each_state_is_moved() {
        for state in [0, 1, 2, 3, 4, 6] {
            let machine = Machine {
                state: State(state),
                ..Machine::default()
            };
            assert_eq!(move_on(&machine).state, State(state));
        }
    }

    #[test]
    fn saved_migrations_that_can_not_be_are_refused() {
        for (state, data) in [
            (5, ""),
            (7, ""),
            (8, ""),
            (u32::MAX, ""),
            (1, "AAAA"),
            (2, "AAAA"),
            (6, "AAAA"),
            (3, "not base64"),
            (4, &"A".repeat(90 << 20)),
            (4, &"A".repeat(89_478_488)),
        ] {
            let data = data.to_owned();
            let saved = SavedMigration { state, data };
            assert_eq!(Machine::restore(&saved).map(drop), Err(Errno::EINVAL));
        }
    }
}
