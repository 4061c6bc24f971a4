//! What the reply to each command looks like, and what the commands do to region 0 of the device.

use crate::{
    client::Message,
    device::BYTES,
    wire::{DEVICE_GET_INFO, ERROR},
};

const DEVICE_RESET: u16 = 13;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const REGION_WRITE_MULTI: u16 = 15;
const DEVICE_FEATURE: u16 = 16;
const MULTI_WRITE_BYTES: usize = 24;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().unwrap()))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// Offset, region and count at the front.
fn access(bytes: &[u8]) -> Option<(u64, u32, u32)> {
    Some((long(bytes, 0)?, word(bytes, 8)?, word(bytes, 12)?))
}

/// The part of region 0 that an access is for, if it lies in it.
fn within(offset: u64, count: u32) -> Option<std::ops::Range<usize>> {
    let end = offset.checked_add(count.into())?;
    (count > 0 && end <= BYTES as u64).then_some(offset as usize..end as usize)
}

/// Whether the request may set another state of migration, with which region 0 may become anything.
pub(crate) fn moves(command: u16, payload: &[u8]) -> bool {
    const MIG_DEVICE_STATE: u32 = 2;
    command == DEVICE_FEATURE
        && word(payload, 4).is_some_and(|flags| flags & 0xffff == MIG_DEVICE_STATE)
}

/// Whether it is a request for information that is always there.
pub(crate) fn cant_fail(command: u16, payload: &[u8]) -> bool {
    command == DEVICE_GET_INFO && payload.len() >= 16 && word(payload, 0) >= Some(16)
}

/// Does to `bytes` what the request does to region 0, and checks that the reply says so.
pub(crate) fn follow(
    bytes: &mut [u8; BYTES],
    command: u16,
    payload: &[u8],
    reply: Option<&Message>,
) {
    let succeeds = |expected: bool| {
        if let Some(reply) = reply {
            let is_refused = reply.header.flags & ERROR != 0;
            assert_eq!(
                !is_refused, expected,
                "command {command}, {payload:02x?}: {reply:?}"
            );
        }
    };
    match (command, access(payload)) {
        (DEVICE_RESET, _) => {
            *bytes = [0; BYTES];
            succeeds(true);
        }
        (REGION_READ, Some((offset, 0, count))) => {
            let range = within(offset, count);
            succeeds(range.is_some());
            if let (Some(range), Some(reply)) = (range, reply) {
                assert_eq!(reply.payload[16..], bytes[range], "read at {offset:#x}");
            }
        }
        (REGION_WRITE, Some((offset, 0, count))) => {
            let written = write(bytes, offset, count, &payload[16..]);
            succeeds(written);
        }
        (REGION_WRITE_MULTI, _) => write_many(bytes, payload, reply),
        _ => {}
    }
}

fn write(bytes: &mut [u8; BYTES], offset: u64, count: u32, data: &[u8]) -> bool {
    match (within(offset, count), data.get(..count as usize)) {
        (Some(range), Some(data)) => {
            bytes[range].copy_from_slice(data);
            true
        }
        _ => false,
    }
}

/// They are done in order; the first that can't be done ends it.
fn write_many(bytes: &mut [u8; BYTES], payload: &[u8], reply: Option<&Message>) {
    let writes = long(payload, 0)
        .and_then(|count| usize::try_from(count).ok()?.checked_mul(MULTI_WRITE_BYTES))
        .and_then(|size| payload[8..].get(..size));
    let Some(writes) = writes else {
        return;
    };
    let all = writes.len() / MULTI_WRITE_BYTES;
    let done = writes
        .chunks_exact(MULTI_WRITE_BYTES)
        .take_while(|entry| {
            let (offset, region, count) = access(entry).unwrap();
            let data = &entry[16..];
            match region {
                0 => write(bytes, offset, count, data),
                1 => {
                    count > 0
                        && count <= 8
                        && offset
                            .checked_add(count.into())
                            .is_some_and(|end| end <= 0x3000)
                }
                3 => count > 0 && count <= 8 && offset.checked_add(count.into()).is_some(),
                _ => false,
            }
        })
        .count();
    let Some(reply) = reply else {
        return;
    };
    if reply.header.flags & ERROR == 0 {
        assert_eq!(
            long(&reply.payload, 0),
            Some(done as u64),
            "of {all} writes"
        );
    } else {
        assert!(done == 0 && all > 0, "{done} of {all} writes, and an error");
    }
}

/// What the reply to a request has to be, where it is not an error.
pub(crate) fn check_success(command: u16, request: &[u8], reply: &[u8]) {
    let size = reply.len();
    match command {
        1 => {
            assert!(size >= 4 && reply[..2] == [0, 0], "{reply:02x?}");
            if let Some((last, json)) = reply[4..].split_last() {
                assert_eq!(*last, 0);
                let _: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_slice(json).unwrap();
            }
        }
        // DMA_MAP, DEVICE_SET_IRQS, DEVICE_RESET, MIG_DATA_WRITE.
        2 | 8 | DEVICE_RESET | 18 => assert_eq!(size, 0, "command {command}"),
        // DMA_UNMAP, behind which may be a bitmap.
        3 => assert!(size >= 24 && reply[..24] == request[..24]),
        // Five regions, four interrupts.
        DEVICE_GET_INFO => {
            assert_eq!(size, 16);
            assert_eq!((word(reply, 8), word(reply, 12)), (Some(5), Some(4)));
        }
        // DEVICE_GET_REGION_INFO, behind which may be capabilities.
        5 => {
            assert_eq!(word(reply, 8), word(request, 8));
            assert!(size == 32 || word(reply, 0) == Some(size as u32));
        }
        // DEVICE_GET_REGION_IO_FDS.
        6 => assert!(size >= 16 && word(reply, 8) == word(request, 8)),
        // DEVICE_GET_IRQ_INFO.
        7 => assert!(size == 16 && word(reply, 8) == word(request, 8)),
        REGION_READ => {
            let (_, region, count) = access(request).unwrap();
            assert!(region < 3 && size == 16 + count as usize);
            assert_eq!(reply[..16], request[..16]);
        }
        REGION_WRITE => {
            let (_, region, _) = access(request).unwrap();
            assert!([0, 1, 3].contains(&region));
            assert_eq!(reply, &request[..16]);
        }
        REGION_WRITE_MULTI => assert_eq!(size, 8),
        DEVICE_FEATURE => assert!(size >= 8),
        // MIG_DATA_READ: not more than was asked for.
        17 => {
            let given = word(reply, 4).unwrap();
            assert_eq!(size, 8 + given as usize);
            assert!(Some(given) <= word(request, 4));
        }
        _ => panic!("command {command} was served"),
    }
}
