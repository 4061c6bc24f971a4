//! Registers behind a BAR: declared once, in a table of data, and kept as 32-bit values.
//!
//! A model lists its registers with [`registers!`](crate::registers), which makes a constant with the offset of each and
//! the table. [`Regs`] keeps the values and applies what the table says of them. What a register *does* stays in the
//! model, which has one `match` on the offset.
//!
//! Accesses have any width and alignment. [`read_words`] and [`write_words`] cut them into the 32-bit words they touch,
//! in ascending order, each word once: a register that clears when read is read once, and an 8-byte access is one of the
//! lower and then one of the upper register. A narrow write comes with the lanes (bits) that it covers; the other bits of
//! the register keep their value, and count as zeros where a one would clear or trigger something.
//!
//! Offsets that no register has read as zero, and writing them does nothing.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::saved::LoadError;

/// A register's declaration, made in a chain that begins with [`Reg::at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg {
    /// The manual's name.
    pub name: &'static str,
    /// Offset in the BAR, a multiple of 4.
    pub offset: u32,
    /// How many there are, if it is an array.
    pub count: u32,
    /// Bytes from one element of the array to the next.
    pub stride: u32,
    /// Other offsets of the register, or of the first of the array.
    pub aliases: &'static [u32],
    /// Value after a reset.
    pub power_on: u32,
    /// Bits that a write sets to what is written.
    pub writable: u32,
    /// Bits that writing a one clears.
    pub write_one_to_clear: u32,
    /// Bits that a read clears, after it returned them.
    pub read_to_clear: u32,
    /// Bits that the device itself sets and clears.
    pub driven: u32,
}

impl Reg {
    /// A read-only register that is zero.
    #[must_use]
    pub const fn at(offset: u32) -> Self {
        Self {
            name: "",
            offset,
            count: 1,
            stride: 4,
            aliases: &[],
            power_on: 0,
            writable: 0,
            write_one_to_clear: 0,
            read_to_clear: 0,
            driven: 0,
        }
    }

    /// Names it; [`registers!`](crate::registers) does.
    #[must_use]
    pub const fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// Makes it an array.
    #[must_use]
    pub const fn array(mut self, count: u32, stride: u32) -> Self {
        self.count = count;
        self.stride = stride;
        self
    }

    /// Gives it other offsets beside its own.
    #[must_use]
    pub const fn aliases(mut self, offsets: &'static [u32]) -> Self {
        self.aliases = offsets;
        self
    }

    /// Sets its value after a reset.
    #[must_use]
    pub const fn power_on(mut self, value: u32) -> Self {
        self.power_on = value;
        self
    }

    /// Lets software write these bits.
    #[must_use]
    pub const fn writable(mut self, bits: u32) -> Self {
        self.writable = bits;
        self
    }

    /// Lets software clear these bits by writing ones.
    #[must_use]
    pub const fn write_one_to_clear(mut self, bits: u32) -> Self {
        self.write_one_to_clear = bits;
        self
    }

    /// Clears these bits when they are read.
    #[must_use]
    pub const fn read_to_clear(mut self, bits: u32) -> Self {
        self.read_to_clear = bits;
        self
    }

    /// Says which bits the device itself sets and clears: a saved state may have any of them.
    #[must_use]
    pub const fn driven(mut self, bits: u32) -> Self {
        self.driven = bits;
        self
    }

    /// Whether the register can have this value.
    fn can_be(&self, value: u32) -> bool {
        (value ^ self.power_on) & !(self.writable | self.driven) == 0
    }
}

/// Declares registers: a constant with the offset of each, and the table of them all.
///
/// ```
/// use pci::regs::{Reg, Regs};
/// pci::registers! {
///     pub static REGS;
///     /// Device Control.
///     CTRL = Reg::at(0x0000).writable(0xff);
///     /// Multicast Table Array.
///     MTA = Reg::at(0x5200).array(128, 4).writable(0xffff_ffff);
/// }
/// let mut regs = Regs::new(REGS);
/// regs.write(MTA + 4, 7, !0);
/// assert_eq!(regs.get(MTA + 4), 7);
/// ```
#[macro_export]
macro_rules! registers {
    ($vis:vis static $table:ident; $($(#[$doc:meta])* $name:ident = $reg:expr;)*) => {
        $($(#[$doc])* $vis const $name: u32 = $reg.offset;)*
        /// Every register, declared once.
        $vis static $table: &[$crate::regs::Reg] = &[$($reg.named(stringify!($name))),*];
    };
}

/// A register's name for traces, with its index in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    name: &'static str,
    index: Option<u32>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// The values of a table of registers.
#[derive(Debug)]
pub struct Regs {
    values: Box<[Value]>,
    /// For each word of the BAR, up to the last register, the index of its value, or [`NONE`].
    index: Box<[u16]>,
}

#[derive(Debug)]
struct Value {
    now: u32,
    reg: &'static Reg,
    /// Position in the array.
    position: u32,
}

const NONE: u16 = u16::MAX;

/// The values of all registers, by name; those of an array in its order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Saved(BTreeMap<String, Vec<u32>>);

impl Regs {
    /// The registers after power-on.
    ///
    /// # Panics
    /// When the table is not sound: offsets that are not multiples of 4 or are declared twice, or 65 535 registers.
    #[must_use]
    pub fn new(table: &'static [Reg]) -> Self {
        let offsets = |reg: &'static Reg, base: u32| {
            (0..reg.count).map(move |position| (base + position * reg.stride) as usize)
        };
        let words = table
            .iter()
            .flat_map(|reg| {
                std::iter::once(&reg.offset)
                    .chain(reg.aliases)
                    .flat_map(move |base| offsets(reg, *base))
            })
            .max()
            .map_or(0, |last| last / 4 + 1);
        let mut index = vec![NONE; words].into_boxed_slice();
        let mut values = Vec::new();
        for reg in table {
            let first = values.len();
            values.extend((0..reg.count).map(|position| Value {
                now: reg.power_on,
                reg,
                position,
            }));
            assert!(values.len() < usize::from(NONE), "too many registers");
            for base in std::iter::once(&reg.offset).chain(reg.aliases) {
                for (position, offset) in offsets(reg, *base).enumerate() {
                    assert!(offset % 4 == 0, "{} is not aligned", reg.name);
                    let word = &mut index[offset / 4];
                    assert!(*word == NONE, "{} is declared twice", reg.name);
                    *word = (first + position) as u16;
                }
            }
        }
        Self {
            values: values.into_boxed_slice(),
            index,
        }
    }

    /// The values, for a saved state.
    #[must_use]
    pub fn save(&self) -> Saved {
        let Self { values, index: _ } = self;
        let mut saved = BTreeMap::<_, Vec<_>>::new();
        for Value {
            now,
            reg,
            position: _,
        } in values
        {
            saved.entry(reg.name.to_owned()).or_default().push(*now);
        }
        Saved(saved)
    }

    /// The registers with the values that [`Regs::save`] gave.
    ///
    /// # Errors
    /// [`LoadError`], with the register: it is missing or unknown, or can't have that value.
    pub fn restore(table: &'static [Reg], saved: &Saved) -> Result<Self, LoadError> {
        let mut regs = Self::new(table);
        let mut found = 0;
        for value in &mut regs.values {
            let reg = value.reg;
            let error = |problem| LoadError::new(reg.name, problem);
            let values = saved.0.get(reg.name);
            let values = values.ok_or_else(|| error("is missing".into()))?;
            if value.position == 0 {
                found += 1;
                let (has, count) = (values.len(), reg.count);
                if has != count as usize {
                    return Err(error(format!("has {has} values, not {count}")));
                }
            }
            let now = values[value.position as usize];
            if !reg.can_be(now) {
                return Err(error(format!("can't be {now:#x}")));
            }
            value.now = now;
        }
        if found < saved.0.len() {
            let known = |name: &String| table.iter().any(|reg| reg.name == name);
            let unknown = saved.0.keys().find(|name| !known(name));
            let name = unknown.map_or("", String::as_str);
            return Err(LoadError::new(name, "is no register"));
        }
        Ok(regs)
    }

    /// Sets every register to its value after power-on, except those that `keep` is true for.
    pub fn reset(&mut self, keep: impl Fn(u32) -> bool) {
        for value in &mut self.values {
            if !keep(value.reg.offset) {
                value.now = value.reg.power_on;
            }
        }
    }

    /// The offset by which the model knows the register that is at `offset`: the register's own, if this is an alias.
    #[must_use]
    pub fn canonical(&self, offset: u32) -> Option<u32> {
        self.find(offset)
            .map(|value| value.reg.offset + value.position * value.reg.stride)
    }

    /// What traces call the register at `offset`.
    #[must_use]
    pub fn name(&self, offset: u32) -> Name {
        self.find(offset).map_or(
            Name {
                name: "reserved",
                index: None,
            },
            |value| Name {
                name: value.reg.name,
                index: (value.reg.count > 1).then_some(value.position),
            },
        )
    }

    /// The value, without the side effects of a read.
    #[must_use]
    #[inline]
    pub fn get(&self, offset: u32) -> u32 {
        self.find(offset).map_or(0, |value| value.now)
    }

    /// Sets the value, whatever software may write.
    #[inline]
    pub fn set(&mut self, offset: u32, value: u32) {
        if let Some(found) = self.find_mut(offset) {
            found.now = value;
        }
    }

    /// Adds to a counter that stays at its maximum.
    #[inline]
    pub fn count(&mut self, offset: u32, more: u32) {
        if let Some(found) = self.find_mut(offset) {
            found.now = found.now.saturating_add(more);
        }
    }

    /// Software reads the register.
    pub fn read(&mut self, offset: u32) -> u32 {
        self.find_mut(offset).map_or(0, |value| {
            let now = value.now;
            value.now &= !value.reg.read_to_clear;
            now
        })
    }

    /// Software writes those bits of the register that are set in `lanes`. Returns its value then.
    pub fn write(&mut self, offset: u32, data: u32, lanes: u32) -> u32 {
        self.find_mut(offset).map_or(0, |value| {
            let writable = value.reg.writable & lanes;
            let cleared = value.reg.write_one_to_clear & lanes & data;
            value.now = (value.now & !writable | data & writable) & !cleared;
            value.now
        })
    }

    #[inline]
    fn find(&self, offset: u32) -> Option<&Value> {
        let index = *self.index.get(word(offset)?)?;
        self.values.get(usize::from(index))
    }

    #[inline]
    fn find_mut(&mut self, offset: u32) -> Option<&mut Value> {
        let index = *self.index.get(word(offset)?)?;
        self.values.get_mut(usize::from(index))
    }
}

#[inline]
fn word(offset: u32) -> Option<usize> {
    offset.is_multiple_of(4).then_some((offset / 4) as usize)
}

/// Fills `data` from the words that the access touches; `read` is called once for each.
pub fn read_words(offset: u64, data: &mut [u8], mut read: impl FnMut(u32) -> u32) {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let lane = (at % 4) as usize;
        let (now, later) = rest.split_at_mut(rest.len().min(4 - lane));
        // Words past the 32-bit space belong to no register.
        let word = u32::try_from(at - lane as u64).map_or(0, &mut read);
        now.copy_from_slice(&word.to_le_bytes()[lane..lane + now.len()]);
        at = at.wrapping_add(now.len() as u64);
        rest = later;
    }
}

/// Calls `write` with offset, data and lanes of each word that the access touches.
pub fn write_words(offset: u64, data: &[u8], mut write: impl FnMut(u32, u32, u32)) {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let lane = (at % 4) as usize;
        let (now, later) = rest.split_at(rest.len().min(4 - lane));
        let mut word = [0; 4];
        let mut lanes = [0; 4];
        word[lane..lane + now.len()].copy_from_slice(now);
        lanes[lane..lane + now.len()].fill(0xff);
        if let Ok(offset) = u32::try_from(at - lane as u64) {
            write(offset, u32::from_le_bytes(word), u32::from_le_bytes(lanes));
        }
        at = at.wrapping_add(now.len() as u64);
        rest = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::registers! {
        static REGS;
        PLAIN = Reg::at(0x00).power_on(0x1234_5678).writable(0xffff_00ff);
        CLEARS = Reg::at(0x04).power_on(0xf).read_to_clear(!0).write_one_to_clear(!0).driven(0xf);
        TABLE = Reg::at(0x40).array(4, 8).aliases(&[0x100]).writable(!0);
    }

    #[test]
    fn only_writable_bits_change() {
        let mut regs = Regs::new(REGS);
        assert_eq!(regs.write(PLAIN, 0, !0), 0x0000_5600);
        assert_eq!(regs.write(PLAIN, !0, 0xff00_0000), 0xff00_5600);
        regs.reset(|_| false);
        assert_eq!(regs.get(PLAIN), 0x1234_5678);
    }

    #[test]
    fn a_reset_keeps_what_it_is_told_to() {
        let mut regs = Regs::new(REGS);
        regs.set(PLAIN, 1);
        regs.set(TABLE, 2);
        regs.reset(|offset| offset == PLAIN);
        assert_eq!((regs.get(PLAIN), regs.get(TABLE)), (1, 0));
    }

    #[test]
    fn reading_clears_and_ones_clear() {
        let mut regs = Regs::new(REGS);
        assert_eq!(regs.write(CLEARS, 0x3, 0xff), 0xc);
        assert_eq!(regs.read(CLEARS), 0xc);
        assert_eq!(regs.read(CLEARS), 0);
    }

    #[test]
    fn arrays_and_aliases_are_found() {
        let mut regs = Regs::new(REGS);
        regs.write(0x108, 7, !0);
        assert_eq!(regs.get(TABLE + 8), 7);
        assert_eq!(regs.canonical(0x118), Some(0x58));
        assert_eq!(regs.canonical(0x44), None);
        assert_eq!(regs.name(0x58).to_string(), "TABLE[3]");
        assert_eq!(regs.name(PLAIN).to_string(), "PLAIN");
    }

    #[test]
    fn nothing_is_anywhere_else() {
        let mut regs = Regs::new(REGS);
        for offset in (0..0x200).chain(u32::MAX - 8..=u32::MAX) {
            if regs.canonical(offset).is_none() {
                regs.set(offset, 1);
                assert_eq!(regs.write(offset, !0, !0), 0);
                assert_eq!(regs.read(offset), 0);
            }
        }
    }

    #[test]
    fn saved_registers_come_back_and_impossible_ones_are_named() {
        let mut regs = Regs::new(REGS);
        regs.write(PLAIN, !0, !0);
        regs.write(TABLE + 8, 9, !0);
        let saved = serde_json::to_value(regs.save()).unwrap();
        assert_eq!(
            saved,
            serde_json::json!({"PLAIN": [0xffff_56ffu32], "CLEARS": [15], "TABLE": [0, 9, 0, 0]})
        );
        let restore = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut saved = saved.clone();
            change(&mut saved);
            Regs::restore(REGS, &serde_json::from_value(saved).unwrap())
        };
        let again = restore(&|_| ()).unwrap();
        assert_eq!((again.get(PLAIN), again.get(TABLE + 8)), (0xffff_56ff, 9));
        for (problem, change) in [
            ("PLAIN: can't be 0x5700", 0),
            ("CLEARS: can't be 0xf0", 1),
            ("TABLE: has 3 values, not 4", 2),
            ("TABLE: is missing", 3),
            ("OTHER: is no register", 4),
        ] {
            let result = restore(&|saved| match change {
                0 => saved["PLAIN"][0] = 0x5700.into(),
                1 => saved["CLEARS"][0] = 0xf0.into(),
                2 => drop(saved["TABLE"].as_array_mut().unwrap().pop()),
                3 => drop(saved.as_object_mut().unwrap().remove("TABLE")),
                _ => saved["OTHER"] = serde_json::json!([]),
            });
            assert_eq!(result.unwrap_err().to_string(), problem);
        }
    }

    #[test]
    fn counters_stay_at_their_maximum() {
        let mut regs = Regs::new(REGS);
        regs.count(TABLE, u32::MAX - 1);
        regs.count(TABLE, 2);
        assert_eq!(regs.get(TABLE), u32::MAX);
    }

    #[test]
    fn any_access_touches_each_word_once() {
        for offset in 0..12u64 {
            for len in 0..20usize {
                let mut words = Vec::new();
                let mut data = vec![0; len];
                read_words(offset, &mut data, |word| {
                    words.push(word);
                    word * 0x0101_0101 + 0x0302_0100
                });
                let expected: Vec<u8> = (offset..offset + len as u64).map(|at| at as u8).collect();
                assert_eq!(data, expected);
                assert!(words.is_sorted_by(|a, b| b - a == 4));
                let mut memory = [0xee; 32];
                write_words(offset, &data, |word, value, lanes| {
                    for byte in 0..4 {
                        if lanes >> (8 * byte) & 0xff == 0xff {
                            memory[word as usize + byte] = (value >> (8 * byte)) as u8;
                        }
                    }
                });
                let range = offset as usize..offset as usize + len;
                assert_eq!(&memory[range.clone()], &expected);
                assert!(memory[..range.start].iter().all(|byte| *byte == 0xee));
                assert!(memory[range.end..].iter().all(|byte| *byte == 0xee));
            }
        }
    }

    #[test]
    fn the_end_of_the_address_space_is_no_trap() {
        let mut data = [0xff; 16];
        read_words(u64::MAX - 7, &mut data, |_| 0);
        assert_eq!(data, [0; 16]);
        write_words(u64::MAX - 7, &data, |_, _, _| ());
    }
}
