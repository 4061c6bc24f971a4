//! Maps come and go in any order, and are always what a list of them says.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Half pages, so that ranges are also cut where no map begins.
const UNIT: u64 = PAGE / 2;

#[derive(Clone, Debug)]
enum Step {
    Map {
        at: u64,
        units: u64,
        access: Access,
        remote: bool,
    },
    Unmap {
        at: u64,
        units: u64,
    },
    UnmapAll,
    Read {
        iova: u64,
        len: usize,
    },
    Write {
        iova: u64,
        len: usize,
        byte: u8,
    },
    /// Taken apart and put together again.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let access = prop_oneof![
        Just(RW),
        Just(Access {
            read: true,
            write: false
        }),
        Just(Access {
            read: false,
            write: true
        }),
    ];
    prop_oneof![
        4 => (0u64..24, 1u64..6, access, any::<bool>()).prop_map(|(at, units, access, remote)| {
            Step::Map { at, units, access, remote }
        }),
        3 => (0u64..24, 0u64..8).prop_map(|(at, units)| Step::Unmap { at, units }),
        1 => Just(Step::UnmapAll),
        4 => (0..26 * UNIT, 0usize..10_000).prop_map(|(iova, len)| Step::Read { iova, len }),
        4 => (0..26 * UNIT, 0usize..10_000, 1u8..)
            .prop_map(|(iova, len, byte)| Step::Write { iova, len, byte }),
        1 => Just(Step::Move),
    ]
}

/// What a map should be.
#[derive(Debug)]
struct Expected {
    access: Access,
    bytes: Vec<u8>,
}

/// A client's own memory.
struct Client(Vec<u8>);

impl Remote for Client {
    fn read(&mut self, iova: u64, data: &mut [u8]) -> Result<(), Errno> {
        let at = iova as usize;
        data.copy_from_slice(&self.0[at..at + data.len()]);
        Ok(())
    }
    fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        let at = iova as usize;
        self.0[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Visits the bytes of an access until one is refused.
fn access(
    maps: &mut BTreeMap<u64, Expected>,
    iova: u64,
    len: usize,
    allows: impl Fn(Access) -> bool,
    mut visit: impl FnMut(usize, &mut u8),
) -> Result<(), AccessError> {
    for (at, iova) in (iova..).take(len).enumerate() {
        let map = maps
            .range_mut(..=iova)
            .next_back()
            .map(|(start, map)| ((iova - start) as usize, map))
            .filter(|(offset, map)| *offset < map.bytes.len());
        let Some((offset, map)) = map else {
            return Err(AccessError::Unmapped { iova });
        };
        if !allows(map.access) {
            return Err(AccessError::Denied { iova });
        }
        visit(at, &mut map.bytes[offset]);
    }
    Ok(())
}

proptest! {
    #[test]
    fn memory_is_what_a_list_of_maps_says(steps in proptest::collection::vec(step(), 1..60)) {
        let file = File::from(file(1000));
        let mut memory = Memory::default();
        let mut client = Client(vec![0; 1 << 20]);
        let mut maps = BTreeMap::<u64, Expected>::new();
        for (count, step) in (0u64..).zip(steps) {
            match step {
                Step::Map { at, units, access, remote } => {
                    let (iova, size) = (at * UNIT, units * UNIT);
                    let overlaps = maps
                        .iter()
                        .any(|(start, map)| *start < iova + size && iova < start + map.bytes.len() as u64);
                    // A part of the file that no map had before, or memory of the client's that it has cleared.
                    let fd = file.try_clone().unwrap().into();
                    let backing = (!remote).then_some((fd, count * 4 * PAGE));
                    let result = memory.map(iova, size, access, backing);
                    prop_assert_eq!(result, if overlaps { Err(Errno::EEXIST) } else { Ok(()) });
                    if !overlaps {
                        client.0[iova as usize..(iova + size) as usize].fill(0);
                        let bytes = vec![0; size as usize];
                        maps.insert(iova, Expected { access, bytes });
                    }
                }
                Step::Unmap { at, units } => {
                    let (iova, size) = (at * UNIT, units * UNIT);
                    let touched: Vec<(u64, u64)> = maps
                        .iter()
                        .map(|(start, map)| (*start, start + map.bytes.len() as u64))
                        .filter(|(start, end)| *start < iova + size && iova < *end)
                        .collect();
                    let expected = if size == 0 {
                        Err(Errno::EINVAL)
                    } else if touched.is_empty() {
                        Err(Errno::ENOENT)
                    } else if touched.iter().any(|(start, end)| *start < iova || iova + size < *end) {
                        Err(Errno::EINVAL)
                    } else {
                        maps.retain(|start, _| !touched.iter().any(|(gone, _)| gone == start));
                        Ok(touched.iter().map(|(start, end)| end - start).sum())
                    };
                    prop_assert_eq!(memory.unmap(iova, size), expected);
                }
                Step::UnmapAll => {
                    let sum: usize = maps.values().map(|map| map.bytes.len()).sum();
                    prop_assert_eq!(memory.unmap_all(), sum as u64);
                    maps.clear();
                }
                Step::Read { iova, len } => {
                    let mut data = vec![0; len];
                    let result = memory.read(&mut client, iova, &mut data);
                    let mut expected = vec![0; len];
                    let visit = |at: usize, byte: &mut u8| expected[at] = *byte;
                    prop_assert_eq!(result, access(&mut maps, iova, len, |access| access.read, visit));
                    prop_assert_eq!(data, expected);
                }
                Step::Write { iova, len, byte } => {
                    let data = vec![byte; len];
                    let result = memory.write(&mut client, iova, &data);
                    let visit = |_: usize, to: &mut u8| *to = byte;
                    prop_assert_eq!(result, access(&mut maps, iova, len, |access| access.write, visit));
                }
                Step::Move => {
                    let mut fds = Vec::new();
                    let saved = memory.save(&mut fds).unwrap();
                    memory = Memory::restore(saved, &mut fds.into_iter()).unwrap();
                }
            }
        }
    }
}
