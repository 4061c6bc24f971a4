//! A PCI function with a model behind it, under a guest that writes anything anywhere.

use std::time::Instant;

use arbitrary::{Arbitrary, Unstructured};
use nix::errno::Errno;
use pci::Function;
use serde_json::Value;
use vfio_user::{Access, Device as _, Lent, Migration as _};

use crate::{
    descriptors::{FILE_BYTES, Pool},
    leaks::Before,
};

/// More steps than this are not taken.
const MAX_STEPS: usize = 256;
/// And the state is not saved and loaded more often: that is slow where every comparison is traced.
const MAX_MOVES: usize = 3;
/// VFIO's number of the region that is configuration space.
const CONFIG: u32 = 7;

type Model = Function<Box<dyn pci::Device>>;

/// Plays what the bytes say, as [`Arbitrary`] reads them.
pub fn configuration(data: &[u8]) {
    let before = Before::new(|| _ = Pool::get());
    if let Ok(script) = Script::arbitrary(&mut Unstructured::new(data)) {
        script.play();
    }
    Pool::get().restore();
    before.check();
}

#[derive(Arbitrary, Debug)]
struct Script {
    loopback: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    ReadConfig {
        at: u16,
        size: u8,
    },
    WriteConfig {
        at: u16,
        size: u8,
        data: [u8; 8],
    },
    /// All ones, and back: how its size is asked for.
    SizeBar {
        bar: u8,
    },
    Read {
        bar: u8,
        at: u32,
        size: u8,
    },
    Write {
        bar: u8,
        at: u32,
        data: u32,
        size: u8,
    },
    /// A register that is most likely there.
    WriteRegister {
        page: u8,
        number: u8,
        data: u32,
    },
    Store {
        at: u16,
        data: [u8; 16],
    },
    Run,
    Reset,
    /// The state moves to another function.
    Move,
    /// The state is loaded with something changed.
    LoadDamaged {
        at: u16,
        with: u8,
        cut: bool,
    },
    SetRunning(bool),
}

fn open(loopback: bool) -> Model {
    let net = if loopback { "loopback" } else { "null" };
    let config = serde_json::json!({"mac": "52:54:00:12:34:56", "net": {net: {}}});
    Function::new(models::open("e1000", config, models::Seed([0; 8])).unwrap())
}

impl Script {
    fn play(self) {
        let mut lent = Lent::default();
        let file = Pool::get().pick(0).try_clone_to_owned().unwrap();
        let access = Access {
            read: true,
            write: true,
        };
        lent.memory_mut()
            .map(0, FILE_BYTES, access, Some((file, 0)))
            .unwrap();
        let mut function = open(self.loopback);
        let identity = identity(&mut function, &mut lent);
        let mut moves = 0;
        for step in self.steps.iter().take(MAX_STEPS) {
            moves += usize::from(matches!(step, Step::Move | Step::LoadDamaged { .. }));
            if moves > MAX_MOVES {
                break;
            }
            step.play(&mut function, &mut lent, self.loopback);
            assert_eq!(
                self::identity(&mut function, &mut lent),
                identity,
                "{step:?}"
            );
        }
        check_pieces(&mut function, &mut lent);
    }
}

/// What no write may change: ids, revision, class, type of header, subsystem, pointer to capabilities, pin.
fn identity(function: &mut Model, lent: &mut Lent) -> [Vec<u8>; 6] {
    [(0, 4), (8, 4), (0xe, 1), (0x2c, 4), (0x34, 1), (0x3d, 1)]
        .map(|(at, size)| read(function, lent, CONFIG, at, size))
}

fn size(function: &Model, region: u32) -> u64 {
    function.regions()[region as usize].size_bytes
}

fn read(function: &mut Model, lent: &mut Lent, region: u32, at: u64, size: usize) -> Vec<u8> {
    let mut data = vec![0xcd; size];
    function.read(lent, region, at, &mut data).unwrap();
    data
}

/// The range, shortened to what a session lets through.
fn clip(function: &Model, region: u32, at: u64, count: usize) -> Option<(u64, usize)> {
    let size = size(function, region);
    let at = at.checked_rem(size)?;
    let count = count.min(usize::try_from(size - at).unwrap_or(usize::MAX));
    (count > 0).then_some((at, count))
}

/// A function that does not run refuses writes; nothing else may fail.
fn check_written(result: Result<(), Errno>, running: bool) {
    assert!(
        result == Ok(()) || !running && result == Err(Errno::EBUSY),
        "{result:?}"
    );
}

impl Step {
    fn play(&self, function: &mut Model, lent: &mut Lent, loopback: bool) {
        let is_running = function.is_running();
        match *self {
            Self::ReadConfig { at, size } => {
                let range = clip(function, CONFIG, at.into(), size.into());
                range
                    .into_iter()
                    .for_each(|(at, size)| _ = read(function, lent, CONFIG, at, size));
            }
            Self::WriteConfig { at, size, data } => {
                if let Some((at, size)) = clip(function, CONFIG, at.into(), usize::from(size % 9)) {
                    function.write(lent, CONFIG, at, &data[..size]).unwrap();
                }
            }
            Self::SizeBar { bar } => check_bar(function, lent, bar % 6),
            Self::Read { bar, at, size } => {
                let bar = u32::from(bar % 6);
                let range = clip(function, bar, at.into(), size.into());
                range
                    .into_iter()
                    .for_each(|(at, size)| _ = read(function, lent, bar, at, size));
            }
            Self::Write {
                bar,
                at,
                data,
                size,
            } => {
                let bar = u32::from(bar % 6);
                if let Some((at, size)) = clip(function, bar, at.into(), usize::from(size % 5)) {
                    let written = function.write(lent, bar, at, &data.to_le_bytes()[..size]);
                    check_written(written, is_running);
                    function.end_batch(lent);
                }
            }
            Self::WriteRegister { page, number, data } => {
                // 82540EM: general, receive and transmit registers begin at these.
                let base = [0, 0x100, 0x2800, 0x3800, 0x400][usize::from(page % 5)];
                let at = base + u64::from(number % 64) * 4;
                let written = function.write(lent, 0, at, &data.to_le_bytes());
                check_written(written, is_running);
                function.end_batch(lent);
            }
            Self::Store { at, data } => lent
                .write(u64::from(at) % (FILE_BYTES - 16), &data)
                .unwrap(),
            Self::Run => function.run(lent, Instant::now()),
            Self::Reset => function.reset(lent),
            Self::Move => move_to_another(function, lent, loopback),
            Self::LoadDamaged { at, with, cut } => {
                load_damaged(function, lent, at.into(), with, cut)
            }
            Self::SetRunning(running) => function.set_running(lent, running),
        }
    }
}

/// A memory or I/O BAR says its size when all ones are written, and keeps its kind.
fn check_bar(function: &mut Model, lent: &mut Lent, bar: u8) {
    let at = 0x10 + 4 * u64::from(bar);
    let word = |data: Vec<u8>| u32::from_le_bytes(data.try_into().unwrap());
    let before = word(read(function, lent, CONFIG, at, 4));
    function
        .write(lent, CONFIG, at, &u32::MAX.to_le_bytes())
        .unwrap();
    let ones = word(read(function, lent, CONFIG, at, 4));
    let bytes = size(function, bar.into());
    if bytes == 0 {
        assert_eq!(ones, 0, "BAR {bar} is not there");
    } else {
        let kind = if ones & 1 == 1 { 0x3 } else { 0xf };
        assert_eq!(u64::from(!(ones & !kind)) + 1, bytes, "BAR {bar}");
        assert_eq!(ones & kind, before & kind);
    }
    function
        .write(lent, CONFIG, at, &before.to_le_bytes())
        .unwrap();
    assert_eq!(word(read(function, lent, CONFIG, at, 4)), before);
}

/// Configuration space is the same in one piece and in many.
fn check_pieces(function: &mut Model, lent: &mut Lent) {
    let count = size(function, CONFIG) as usize;
    let whole = read(function, lent, CONFIG, 0, count);
    let bytes: Vec<u8> = (0..count as u64)
        .flat_map(|at| read(function, lent, CONFIG, at, 1))
        .collect();
    assert_eq!(whole, bytes);
}

/// The other function can't be told from this one.
fn move_to_another(function: &mut Model, lent: &mut Lent, loopback: bool) {
    let was_running = function.is_running();
    function.set_running(lent, false);
    let state = function.save().unwrap();
    let count = size(function, CONFIG) as usize;
    let config = read(function, lent, CONFIG, 0, count);
    let mut other = open(loopback);
    other.set_running(lent, false);
    other.load(lent, &state).unwrap();
    assert_eq!(timeless(&other.save().unwrap()), timeless(&state));
    assert_eq!(read(&mut other, lent, CONFIG, 0, count), config);
    other.set_running(lent, was_running);
    *function = other;
}

/// A state without the times that are left in it: they pass.
fn timeless(state: &[u8]) -> Value {
    fn forget(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    match name.ends_with("_ns") {
                        true => *field = Value::Null,
                        false => forget(field),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(forget),
            _ => {}
        }
    }
    let mut value = serde_json::from_slice(state).unwrap();
    forget(&mut value);
    value
}

/// What can't be loaded changes nothing.
fn load_damaged(function: &mut Model, lent: &mut Lent, at: usize, with: u8, cut: bool) {
    let was_running = function.is_running();
    function.set_running(lent, false);
    let state = function.save().unwrap();
    let mut damaged = state.clone();
    let at = at % damaged.len();
    damaged[at] = with;
    if cut {
        damaged.truncate(at);
    }
    if function.load(lent, &damaged).is_err() {
        assert_eq!(timeless(&function.save().unwrap()), timeless(&state));
    }
    function.set_running(lent, was_running);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(page: u8, number: u8, data: u32) -> Step {
        Step::WriteRegister { page, number, data }
    }

    /// TDLEN, TDT and TCTL: a ring that can't be read is tried again, and how long that takes is in the state.
    #[test]
    fn a_function_that_waits_is_the_same_elsewhere() {
        let mut steps = vec![write(3, 2, 0x80), write(3, 6, 1), write(4, 0, 2)];
        steps.extend((0..3).map(|_| Step::Move));
        steps.push(Step::LoadDamaged {
            at: 0,
            with: b'x',
            cut: false,
        });
        let loopback = false;
        Script { loopback, steps }.play();
    }
}
