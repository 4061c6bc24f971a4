//! Sequences of whole messages, most of which make sense.

use std::os::fd::{AsRawFd, RawFd};

use arbitrary::{Arbitrary, Unstructured};

use crate::{
    descriptors::Pool,
    device::COPY,
    leaks::Before,
    run::Run,
    values::{Number, Text},
    wire::{NO_REPLY, VERSION, message, version},
};

/// More steps than this are not taken.
const MAX_STEPS: usize = 256;
const MAX_FDS: usize = 32;

/// Plays what the bytes say, as [`Arbitrary`] reads them.
pub fn messages(data: &[u8]) {
    let before = Before::new(|| _ = Pool::get());
    if let Ok(script) = Script::arbitrary(&mut Unstructured::new(data)) {
        script.play();
    }
    Pool::get().restore();
    before.check();
}

#[derive(Arbitrary, Debug)]
struct Script {
    proposal: Proposal,
    /// How the server's requests are answered.
    manners: [u8; 8],
    steps: Vec<Step>,
}

/// What the client proposes before anything else.
#[derive(Arbitrary, Debug)]
enum Proposal {
    Nothing,
    InBand { max_transfer: u16 },
    Twin,
    Qemu,
}

#[derive(Arbitrary, Debug)]
struct Step {
    request: Request,
    id: u8,
    no_reply: bool,
    /// Sent together with the next.
    glued: bool,
    /// The payload is longer, or shorter.
    wrong_length: Option<i8>,
    /// Passed along, by kind.
    fds: Fds,
}

#[derive(Arbitrary, Debug)]
enum Fds {
    None,
    One(u8),
    Some(u8, u8),
    /// As many of one kind.
    Many(u8, u8),
}

#[derive(Arbitrary, Debug)]
enum Request {
    Version(Text),
    Map {
        flags: u8,
        offset: Number,
        address: Number,
        size: Number,
    },
    Unmap {
        flags: u8,
        address: Number,
        size: Number,
        bitmap: Option<(Number, Number)>,
    },
    DeviceInfo {
        argsz: u8,
    },
    RegionInfo {
        argsz: u8,
        index: u8,
    },
    IoFds {
        argsz: u8,
        index: u8,
        count: u8,
    },
    IrqInfo {
        argsz: u8,
        index: u8,
    },
    SetIrqs {
        flags: u8,
        index: u8,
        start: u8,
        count: u8,
        data: [u8; 4],
    },
    Read {
        offset: Number,
        region: u8,
        count: Number,
    },
    Write {
        offset: Number,
        region: u8,
        count: Number,
        data: [u8; 8],
    },
    WriteMany {
        count: Number,
        writes: [(Number, u8, u8, [u8; 8]); 2],
    },
    /// Lets the device copy guest memory.
    Copy {
        from: Number,
        to: Number,
        count: Number,
    },
    /// Sets the level of the line, or triggers messages.
    Interrupt {
        message: bool,
        value: u8,
    },
    Reset,
    Migrate {
        state: u8,
    },
    StartLog {
        page: Number,
        ranges: Vec<(Number, Number)>,
    },
    ReportLog {
        argsz: Number,
        address: Number,
        size: Number,
        page: Number,
    },
    StopLog,
    Feature {
        argsz: Number,
        flags: u32,
        data: [u8; 8],
    },
    ReadState {
        argsz: Number,
        size: Number,
    },
    WriteState {
        size: Number,
        data: [u8; 16],
        repeat: u8,
    },
    Any {
        command: u8,
        flags: u8,
        payload: [u8; 16],
    },
    /// No message: the client changes the length of a file.
    SetLength {
        file: u8,
        sixteenths: u8,
    },
    /// No message: the replies are not taken for a while.
    Hold,
    /// No message: the session is taken apart and put together again.
    HandOver {
        damage: Option<(u16, u8)>,
    },
}

impl Script {
    fn play(self) {
        let mut run = Run::new(&self.manners);
        match self.proposal {
            Proposal::Nothing => {}
            Proposal::InBand { max_transfer } => run.negotiate(&format!(
                r#"{{"capabilities":{{"max_msg_fds":16,"max_data_xfer_size":{max_transfer},"write_multiple":true}}}}"#
            )),
            Proposal::Twin => run.negotiate(
                r#"{"capabilities":{"max_msg_fds":16,"twin_socket":{"supported":true},"migration":{"pgsize":4096}}}"#,
            ),
            Proposal::Qemu => run.send(
                &message(1, VERSION, 0, &qemu_version()),
                &[],
            ),
        }
        let mut bytes = Vec::new();
        for step in self.steps.into_iter().take(MAX_STEPS) {
            match step.request {
                Request::SetLength { file, sixteenths } => {
                    run.set_length(file, sixteenths);
                    continue;
                }
                Request::HandOver { damage } => {
                    run.send(&std::mem::take(&mut bytes), &[]);
                    run.hand_over(damage);
                    continue;
                }
                Request::Hold => {
                    run.send(&std::mem::take(&mut bytes), &[]);
                    run.serve();
                    continue;
                }
                _ => {}
            }
            // Descriptors go with the first byte: those of a message that is glued behind another would be the other's.
            let fds = step.fds.numbers();
            if !fds.is_empty() {
                run.send(&std::mem::take(&mut bytes), &[]);
            }
            bytes.extend(step.bytes());
            if !fds.is_empty() || !step.glued {
                run.send(&std::mem::take(&mut bytes), &fds);
            }
            if !step.glued {
                run.settle();
            }
        }
        run.send(&bytes, &[]);
        run.finish();
    }
}

/// As QEMU says it: version 0.0, and migration with a size of bitmaps.
fn qemu_version() -> Vec<u8> {
    let mut payload = version(
        r#"{"capabilities":{"max_msg_fds":16,"migration":{"pgsize":4096,"max_bitmap_size":65536},"write_multiple":true}}"#,
    );
    payload[2] = 0;
    payload
}

impl Fds {
    fn numbers(&self) -> Vec<RawFd> {
        let number = |kind: &u8| Pool::get().pick(*kind).as_raw_fd();
        match self {
            Self::None => Vec::new(),
            Self::One(kind) => vec![number(kind)],
            Self::Some(one, other) => vec![number(one), number(other)],
            Self::Many(count, kind) => vec![number(kind); usize::from(*count) % MAX_FDS],
        }
    }
}

impl Step {
    fn bytes(&self) -> Vec<u8> {
        let flags = if self.no_reply { NO_REPLY } else { 0 };
        let (command, more_flags, mut payload) = self.request.parts();
        if let Some(difference) = self.wrong_length {
            let length = payload.len().saturating_add_signed(difference.into());
            payload.resize(length, 0x5a);
        }
        message(self.id.into(), command, flags | more_flags, &payload)
    }
}

/// Numbers of 32 bits, one after the other.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Numbers of 64 bits, one after the other.
fn longs(longs: &[Number]) -> Vec<u8> {
    longs
        .iter()
        .flat_map(|number| number.long().to_le_bytes())
        .collect()
}

fn access(offset: &Number, region: u8, count: u32) -> Vec<u8> {
    [longs(&[*offset]), words(&[region.into(), count])].concat()
}

/// A request about a feature: `flags` is its number, and what is to be done.
fn feature(argsz: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    [&words(&[argsz, flags]), data].concat()
}

impl Request {
    const GET: u32 = 1 << 16;
    const SET: u32 = 1 << 17;

    /// Command, flags of the header, payload.
    fn parts(&self) -> (u16, u32, Vec<u8>) {
        let (command, payload) = match self {
            Self::Version(text) => (1, text.bytes()),
            Self::Map {
                flags,
                offset,
                address,
                size,
            } => (
                2,
                [
                    words(&[32, u32::from(*flags)]),
                    longs(&[*offset, *address, *size]),
                ]
                .concat(),
            ),
            Self::Unmap {
                flags,
                address,
                size,
                bitmap,
            } => {
                let mut payload = words(&[0x1000, u32::from(flags % 4)]);
                payload.extend(longs(&[*address, *size]));
                if let Some((page, bytes)) = bitmap {
                    payload.extend(longs(&[*page, *bytes]));
                }
                (3, payload)
            }
            Self::DeviceInfo { argsz } => (4, words(&[u32::from(*argsz), 0, 0, 0])),
            Self::RegionInfo { argsz, index } => (
                5,
                words(&[u32::from(*argsz), 0, u32::from(*index), 0, 0, 0, 0, 0]),
            ),
            Self::IoFds {
                argsz,
                index,
                count,
            } => (
                6,
                words(&[u32::from(*argsz), 0, u32::from(*index), u32::from(*count)]),
            ),
            Self::IrqInfo { argsz, index } => {
                (7, words(&[u32::from(*argsz), 0, u32::from(*index), 0]))
            }
            Self::SetIrqs {
                flags,
                index,
                start,
                count,
                data,
            } => {
                let number = |byte: &u8| u32::from(*byte);
                let mut payload = words(&[
                    24,
                    number(flags),
                    number(index),
                    number(start),
                    number(count),
                ]);
                payload.extend(data);
                (8, payload)
            }
            Self::Read {
                offset,
                region,
                count,
            } => (9, access(offset, *region, count.word())),
            Self::Write {
                offset,
                region,
                count,
                data,
            } => (
                10,
                [&access(offset, *region, count.word())[..], data].concat(),
            ),
            Self::WriteMany { count, writes } => {
                let mut payload = longs(&[*count]);
                for (offset, region, count, data) in writes {
                    payload.extend(access(offset, *region, (*count).into()));
                    payload.extend(data);
                }
                (15, payload)
            }
            Self::Copy { from, to, count } => {
                let mut payload = access(&Number::Small(COPY as u8), 0, 20);
                payload.extend(longs(&[*from, *to]));
                payload.extend(words(&[count.word()]));
                (10, payload)
            }
            Self::Interrupt { message, value } => {
                let mut payload = access(&Number::Small((*message).into()), 0, 1);
                payload.push(*value);
                (10, payload)
            }
            Self::Reset => (13, Vec::new()),
            Self::Migrate { state } => (
                16,
                feature(16, Self::SET | 2, &words(&[u32::from(state % 9), u32::MAX])),
            ),
            Self::StartLog { page, ranges } => {
                let mut data = longs(&[*page]);
                data.extend(words(&[ranges.len() as u32, 0]));
                ranges
                    .iter()
                    .for_each(|(start, size)| data.extend(longs(&[*start, *size])));
                (16, feature(0x1000, Self::SET | 6, &data))
            }
            Self::StopLog => (16, feature(8, Self::SET | 7, &[])),
            Self::ReportLog {
                argsz,
                address,
                size,
                page,
            } => (
                16,
                feature(
                    argsz.word(),
                    Self::GET | 8,
                    &longs(&[*address, *size, *page]),
                ),
            ),
            Self::Feature { argsz, flags, data } => (16, feature(argsz.word(), *flags, data)),
            Self::ReadState { argsz, size } => (17, words(&[argsz.word(), size.word()])),
            Self::WriteState { size, data, repeat } => (
                18,
                [
                    words(&[0x1000, size.word()]),
                    data.repeat(usize::from(repeat % 32)),
                ]
                .concat(),
            ),
            Self::Any {
                command,
                flags,
                payload,
            } => {
                return (u16::from(*command), u32::from(*flags), payload.to_vec());
            }
            Self::SetLength { .. } | Self::Hold | Self::HandOver { .. } => {
                unreachable!("no message")
            }
        };
        (command, 0, payload)
    }
}
