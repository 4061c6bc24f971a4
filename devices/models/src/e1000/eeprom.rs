//! The EEPROM: 64 words behind a Microwire interface (sections 5.3 to 5.6, EECD and EERD).
//!
//! Software reaches it in two ways: EERD names a word and gets it, EECD drives the part's pins. The part on the pins is a
//! 93C46: a start bit, two bits of operation, six of address, then data, each taken on the clock's rising edge while the
//! part is selected. Writes take effect when the part is deselected.

use pci::LoadError;

use super::{
    chip::Board,
    spec::{
        bits::{Eecd, Eerd},
        eeprom::{self as words, InitControl3, Pins},
    },
    state,
};

const WORDS: usize = 64;
/// What all words sum up to, section 5.6.35.
const CHECKSUM: u16 = 0xbaba;

const START_AND_OPCODE_BITS: u32 = 3;
const ADDRESS_BITS: u32 = 6;
const COMMAND_BITS: u32 = START_AND_OPCODE_BITS + ADDRESS_BITS;
const DATA_BITS: u32 = 16;

/// The part and its pins.
#[derive(Debug)]
pub(super) struct Eeprom {
    words: [u16; WORDS],
    write_enabled: bool,
    pins: Eecd,
    /// Bits taken since the start bit, which counts.
    taken: u32,
    shift: u32,
    /// What the part puts out on DO.
    output: bool,
}

/// What a complete command asks of the part.
enum Command {
    Read(usize),
    Write(usize),
    Erase(usize),
    WriteAll,
    EraseAll,
    WriteEnable,
    WriteDisable,
}

impl Eeprom {
    /// An EEPROM as it leaves the factory (table 5-2).
    pub(super) fn new(board: &Board) -> Self {
        let mut words = [0xffff; WORDS];
        for (word, bytes) in words.iter_mut().zip(board.mac.0.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        let pins = Pins::new()
            .with_advertise_d3cold(true)
            .with_manage_phy_power(true);
        // An SMBus address that is not enabled, and no Flash.
        let init_control_3 = InitControl3::new()
            .with_smbus_address(0xc8)
            .with_flash_disable(true);
        for (word, content) in [
            (words::COMPATIBILITY, 0),
            (words::COMPATIBILITY_2, 0),
            (words::COMPATIBILITY_2 + 1, 0),
            (words::COMPATIBILITY_2 + 2, 0),
            (
                words::INIT_CONTROL_1,
                board.chip.init_control_1().into_bits(),
            ),
            (words::SUBSYSTEM_ID, board.subsystem_id),
            (words::SUBSYSTEM_VENDOR_ID, board.subsystem_vendor_id),
            (words::DEVICE_ID, board.chip.device_id()),
            (words::VENDOR_ID, crate::E1000.vendor_id),
            (words::INIT_CONTROL_2, 0x3040),
            (words::PINS, pins.into_bits()),
            (words::CIRCUIT_CONTROL, 0x7061),
            (words::POWER, 0x280c),
            (words::MANAGEMENT_CONTROL, 0),
            (words::INIT_CONTROL_3, init_control_3.into_bits()),
            (words::LEDS, 0x0602),
        ] {
            words[word] = content;
        }
        let mut eeprom = Self {
            words,
            write_enabled: false,
            pins: Eecd::new(),
            taken: 0,
            shift: 0,
            output: true,
        };
        eeprom.fix_checksum();
        eeprom
    }

    fn fix_checksum(&mut self) {
        let sum = self.words[..words::CHECKSUM]
            .iter()
            .fold(0u16, |sum, word| sum.wrapping_add(*word));
        self.words[words::CHECKSUM] = CHECKSUM.wrapping_sub(sum);
    }

    /// A word, as the controller reads it for itself.
    pub(super) fn word(&self, at: usize) -> u16 {
        self.words[at]
    }

    /// The card's address, in the order of the wire.
    pub(super) fn mac(&self) -> [u8; 6] {
        let [a, b, c] = [0, 1, 2].map(|word| self.words[words::ADDRESS + word].to_le_bytes());
        [a[0], a[1], b[0], b[1], c[0], c[1]]
    }

    /// Reads a word through EERD; address bits that the part lacks are ignored.
    pub(super) fn read(&self, command: Eerd) -> Eerd {
        let word = self.words[usize::from(command.address()) % WORDS];
        command.with_start(false).with_done(true).with_data(word)
    }

    /// Software set the pins; returns EECD with what the part answers. They are software's while it has asked for them,
    /// which the controller, whose own reads take no time, grants at once; or always.
    pub(super) fn drive(&mut self, asked: Eecd, always: bool) -> Eecd {
        let eecd = asked.with_select(asked.select() && (asked.request() || always));
        let was = std::mem::replace(&mut self.pins, eecd);
        if !eecd.select() {
            if was.select() {
                self.deselect();
            }
        } else if eecd.clock() && !was.clock() {
            self.clock(eecd.data_in());
        }
        // A part that is not selected leaves the line to its pull-up, and so does one that is ready after a write.
        let output = !eecd.select() || self.output;
        asked
            .with_present(true)
            .with_grant(asked.request())
            .with_data_out(output)
    }

    fn clock(&mut self, bit: bool) {
        if self.taken == 0 && !bit {
            return;
        }
        if self.taken < COMMAND_BITS + DATA_BITS {
            self.taken += 1;
            self.shift = self.shift << 1 | u32::from(bit);
        }
        if self.taken < COMMAND_BITS {
            return;
        }
        if let Some(Command::Read(word)) = self.command() {
            // A zero comes first, with the last bit of the address; then data, and after the last bit the next word's.
            let data_bit = self.taken - COMMAND_BITS;
            self.output = data_bit > 0 && self.words[word] >> (DATA_BITS - data_bit) & 1 == 1;
            if data_bit == DATA_BITS {
                let next = (word + 1) % WORDS;
                self.taken = COMMAND_BITS;
                self.shift = 0b110 << ADDRESS_BITS | next as u32;
            }
        }
    }

    fn deselect(&mut self) {
        let data = (self.shift & 0xffff) as u16;
        let complete = self.taken == COMMAND_BITS + DATA_BITS;
        match self.command() {
            Some(Command::WriteEnable) => self.write_enabled = true,
            Some(Command::WriteDisable) => self.write_enabled = false,
            Some(Command::Write(word)) if complete && self.write_enabled => {
                self.words[word] = data;
            }
            Some(Command::WriteAll) if complete && self.write_enabled => self.words.fill(data),
            Some(Command::Erase(word)) if self.write_enabled => self.words[word] = 0xffff,
            Some(Command::EraseAll) if self.write_enabled => self.words.fill(0xffff),
            _ => {}
        }
        self.taken = 0;
        self.shift = 0;
        self.output = true;
    }

    /// The command, once all its bits are there.
    fn command(&self) -> Option<Command> {
        let command = self.shift >> self.taken.checked_sub(COMMAND_BITS)?;
        let word = command as usize % WORDS;
        Some(match (command >> ADDRESS_BITS & 3, word >> 4) {
            (0b10, _) => Command::Read(word),
            (0b01, _) => Command::Write(word),
            (0b11, _) => Command::Erase(word),
            (_, 0b11) => Command::WriteEnable,
            (_, 0b10) => Command::EraseAll,
            (_, 0b01) => Command::WriteAll,
            (_, _) => Command::WriteDisable,
        })
    }

    pub(super) fn save(&self) -> state::Eeprom {
        let Self {
            words,
            write_enabled,
            pins,
            taken,
            shift,
            output,
        } = self;
        state::Eeprom {
            words: words.to_vec(),
            write_enabled: *write_enabled,
            pins: pins.into_bits(),
            taken: *taken,
            shift: *shift,
            output: *output,
        }
    }

    pub(super) fn restore(saved: &state::Eeprom) -> Result<Self, LoadError> {
        let error = |field, problem: String| Err(LoadError::new(field, problem));
        let state::Eeprom {
            words,
            write_enabled,
            pins,
            taken,
            shift,
            output,
        } = saved;
        let Ok(words) = words.as_slice().try_into() else {
            return error("words", format!("are {}, not {WORDS}", words.len()));
        };
        if pins & !Eecd::USED != 0 {
            return error("pins", format!("can't be {pins:#x}"));
        }
        if *taken > COMMAND_BITS + DATA_BITS {
            return error("taken", format!("{taken} bits are more than a command has"));
        }
        // The start bit is the first.
        if u32::BITS - shift.leading_zeros() != *taken {
            return error("shift", format!("{shift:#x} has not {taken} bits"));
        }
        Ok(Self {
            words,
            write_enabled: *write_enabled,
            pins: Eecd::from_bits(*pins),
            taken: *taken,
            shift: *shift,
            output: *output,
        })
    }

    /// What is not in the words is lost with power: the part forgets that writing was enabled.
    pub(super) fn power_on(&mut self) {
        let Self {
            words: _,
            write_enabled,
            pins,
            taken,
            shift,
            output,
        } = self;
        *write_enabled = false;
        *pins = Eecd::new();
        *taken = 0;
        *shift = 0;
        *output = true;
    }
}
