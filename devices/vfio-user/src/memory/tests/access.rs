//! Maps and access to them.

use std::{
    fs::OpenOptions,
    os::{fd::AsRawFd, unix::fs::FileExt},
    time::Instant,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::ftruncate,
};

use super::*;

#[test]
fn access_spans_adjacent_maps() {
    let mut memory = Memory::default();
    memory.map(0x2000, PAGE, RW, Some((file(1), 0))).unwrap();
    memory.map(0x1000, PAGE, RW, Some((file(3), PAGE))).unwrap();
    let data: Vec<u8> = (0..64).collect();
    write(&mut memory, 0x2000 - 20, &data).unwrap();
    let mut back = [0; 64];
    read(&mut memory, 0x2000 - 20, &mut back).unwrap();
    assert_eq!(back[..], data[..]);
    assert_eq!(
        read(&mut memory, 0x3000 - 1, &mut [0; 2]),
        Err(AccessError::Unmapped { iova: 0x3000 })
    );
    assert_eq!(
        read(&mut memory, 0xfff, &mut [0; 1]),
        Err(AccessError::Unmapped { iova: 0xfff })
    );
    assert_eq!(
        read(&mut memory, u64::MAX, &mut [0; 4]),
        Err(AccessError::Unmapped { iova: u64::MAX })
    );
}

/// Serves the bytes of each address's lowest byte, and remembers what was written.
#[derive(Default)]
struct Client(Vec<(u64, Vec<u8>)>);

impl Remote for Client {
    fn read(&mut self, iova: u64, data: &mut [u8]) -> Result<(), Errno> {
        let bytes = (iova..).map(|iova| iova as u8);
        data.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        Ok(())
    }
    fn write(&mut self, iova: u64, data: &[u8]) -> Result<(), Errno> {
        self.0.push((iova, data.to_vec()));
        Ok(())
    }
}

#[test]
fn access_spans_maps_with_and_without_a_file() {
    let (mut memory, file) = mapped(0, 1);
    memory.map(PAGE, PAGE, RW, None).unwrap();
    map(&mut memory, 2 * PAGE, 1, &file, 0);
    let mut client = Client::default();
    let mut data = vec![9; 4096 + 4];
    memory.read(&mut client, PAGE - 2, &mut data).unwrap();
    let (before, rest) = data.split_at(2);
    let (between, after) = rest.split_at(4096);
    assert_eq!((before, after), (&[0; 2][..], &[0; 2][..]));
    assert!(
        between
            .iter()
            .enumerate()
            .all(|(at, byte)| at as u8 == *byte)
    );
    memory.write(&mut client, PAGE - 2, &[1, 2, 3, 4]).unwrap();
    memory.write(&mut client, 2 * PAGE - 1, &[5, 6]).unwrap();
    let written = [(PAGE, vec![3, 4]), (2 * PAGE - 1, vec![5])];
    assert_eq!(client.0, written);
    let mut word = [0; 2];
    memory.read(&mut client, PAGE - 2, &mut word).unwrap();
    assert_eq!(word, [1, 2]);
}

#[test]
fn access_flags_are_honoured() {
    let mut memory = Memory::default();
    memory
        .map(
            0,
            PAGE,
            Access {
                read: true,
                write: false,
            },
            Some((file(1), 0)),
        )
        .unwrap();
    memory
        .map(
            PAGE,
            PAGE,
            Access {
                read: false,
                write: true,
            },
            Some((file(1), 0)),
        )
        .unwrap();
    memory.map(2 * PAGE, PAGE, RW, None).unwrap();
    assert!(read(&mut memory, 0, &mut [0; 8]).is_ok());
    assert_eq!(
        write(&mut memory, 0, &[0; 8]),
        Err(AccessError::Denied { iova: 0 })
    );
    assert_eq!(
        read(&mut memory, PAGE, &mut [0; 8]),
        Err(AccessError::Denied { iova: PAGE })
    );
    assert_eq!(
        read(&mut memory, 2 * PAGE, &mut [0; 8]),
        Err(AccessError::Remote {
            iova: 2 * PAGE,
            errno: Errno::ENOTCONN
        })
    );
}

#[test]
fn bad_maps_are_refused() {
    let mut memory = Memory::default();
    assert_eq!(memory.map(0, 0, RW, Some((file(1), 0))), Err(Errno::EINVAL));
    assert_eq!(
        memory.map(u64::MAX, 2, RW, Some((file(1), 0))),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        memory.map(
            0,
            PAGE,
            Access {
                read: false,
                write: false
            },
            None
        ),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        memory.map(0, PAGE, RW, Some((file(1), PAGE))),
        Err(Errno::EINVAL),
        "past the file's end"
    );
    assert_eq!(
        memory.map(0, PAGE, RW, Some((file(2), 100))),
        Err(Errno::EINVAL),
        "offset not aligned"
    );
    assert_eq!(
        memory.map(0, PAGE, RW, Some((file(1), u64::MAX))),
        Err(Errno::EINVAL)
    );
    let (read_end, _write_end) = nix::unistd::pipe().unwrap();
    assert_eq!(
        memory.map(0, PAGE, RW, Some((read_end, 0))),
        Err(Errno::EINVAL),
        "a pipe"
    );
    memory.map(PAGE, PAGE, RW, Some((file(1), 0))).unwrap();
    assert_eq!(
        memory.map(0, PAGE + 1, RW, Some((file(2), 0))),
        Err(Errno::EEXIST)
    );
    assert_eq!(
        memory.map(PAGE * 2 - 1, PAGE, RW, Some((file(2), 0))),
        Err(Errno::EEXIST)
    );
    assert_eq!(memory.maps.len(), 1);
}

#[test]
fn words_are_written_whatever_their_alignment() {
    let mut memory = Memory::default();
    memory.map(0, PAGE, RW, Some((file(1), 0))).unwrap();
    for len in [1, 2, 3, 4, 7, 8, 9] {
        for at in 0..16 {
            let data: Vec<u8> = (0..len).map(|i| (i + at + 1) as u8).collect();
            write(&mut memory, at, &data).unwrap();
            let mut back = vec![0; len as usize];
            read(&mut memory, at, &mut back).unwrap();
            assert_eq!(back, data, "{len} bytes at {at}");
        }
    }
}

#[test]
fn runs_of_words_are_written_whole() {
    let (mut memory, file) = mapped(0, 2);
    for start in [0u64, 8, 12, 4088, 4095] {
        for len in (0..64).chain([504, 512, 513, 520, 1024, 1500]) {
            let data: Vec<u8> = (0..len).map(|at| (at + len + 1) as u8).collect();
            file.write_all_at(&[0; 8192], 0).unwrap();
            write(&mut memory, start, &data).unwrap();
            let mut expected = vec![0; 8192];
            expected[start as usize..][..len].copy_from_slice(&data);
            let mut found = vec![0; 8192];
            file.read_exact_at(&mut found, 0).unwrap();
            assert!(found == expected, "{len} bytes at {start}");
        }
    }
}

#[test]
fn bytes_are_written_where_a_bit_is_set() {
    let (mut memory, file) = mapped(0, 1);
    map(&mut memory, PAGE, 1, &file, 0);
    let places = 1 | 1 << 3 | 1 << 63;
    for (start, stride) in [(12u64, 16usize), (0, 1), (7, 60), (4000, 16)] {
        file.write_all_at(&[0; 4096], 0).unwrap();
        write_each(&mut memory, start, stride, places, 9).unwrap();
        write_each(&mut memory, start, stride, 0, 8).unwrap();
        let mut found = vec![0; 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        for (at, byte) in found.into_iter().enumerate() {
            // The second map shows the same page.
            let is_written = [0, 3, 63]
                .iter()
                .any(|place| (start as usize + place * stride) % 4096 == at);
            assert_eq!(
                byte,
                if is_written { 9 } else { 0 },
                "{start} {stride}: {at}"
            );
        }
    }
    assert_eq!(
        write_each(&mut memory, 2 * PAGE - 1, 1, 7, 1),
        Err(AccessError::Unmapped { iova: 2 * PAGE })
    );
    let read_only = Access { write: false, ..RW };
    memory
        .map(0x10_0000, PAGE, read_only, Some((file.into(), 0)))
        .unwrap();
    assert_eq!(
        write_each(&mut memory, 0x10_0000, 1, 1, 1),
        Err(AccessError::Denied { iova: 0x10_0000 })
    );
}

#[test]
fn bytes_reach_a_client_that_gave_no_file() {
    let mut memory = Memory::default();
    memory.map(0, PAGE, RW, None).unwrap();
    let mut client = Client::default();
    memory.write_each(&mut client, 12, 16, 0b1011, 1).unwrap();
    assert_eq!(client.0, [(12, vec![1]), (28, vec![1]), (60, vec![1])]);
}

#[test]
fn maps_of_one_file_hold_one_descriptor() {
    let (mut memory, file) = mapped(0, 2000);
    let mine = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let held = || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter(|entry| {
                std::fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|path| path == mine)
            })
            .count()
    };
    for index in 1..1000 {
        map(&mut memory, index * 2000 * PAGE, 1, &file, index);
    }
    assert_eq!(held(), 2, "ours and the one");
    write(&mut memory, 999 * 2000 * PAGE, b"x").unwrap();
    memory.unmap_all();
    assert_eq!(held(), 1, "ours");
}

#[test]
fn the_number_of_different_files_is_bounded() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut memory = Memory::default();
    for index in 0..512 {
        map(&mut memory, index * PAGE, 1, &File::from(file(1)), 0);
    }
    let more = Some((file(1), 0));
    assert_eq!(memory.map(512 * PAGE, PAGE, RW, more), Err(Errno::ENOSPC));
    memory.unmap(7 * PAGE, PAGE).unwrap();
    map(&mut memory, 7 * PAGE, 1, &File::from(file(1)), 0);
}

#[test]
fn the_mode_a_file_is_open_in_is_honoured() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(PAGE).unwrap();
    let open = |options: &mut OpenOptions| Some((options.open(named.path()).unwrap().into(), 0));
    let read_only = Access {
        read: true,
        write: false,
    };
    let write_only = Access {
        read: false,
        write: true,
    };
    let mut memory = Memory::default();
    let file = || open(OpenOptions::new().read(true));
    assert_eq!(memory.map(0, PAGE, RW, file()), Err(Errno::EACCES));
    assert_eq!(memory.map(0, PAGE, write_only, file()), Err(Errno::EACCES));
    assert_eq!(memory.map(0, PAGE, read_only, file()), Ok(()));
    let file = || open(OpenOptions::new().write(true));
    assert_eq!(memory.map(PAGE, PAGE, RW, file()), Err(Errno::EACCES));
    assert_eq!(
        memory.map(PAGE, PAGE, write_only, file()),
        Err(Errno::EACCES)
    );
    let file = || open(OpenOptions::new().read(true).write(true));
    assert_eq!(memory.map(PAGE, PAGE, RW, file()), Ok(()));
    write(&mut memory, PAGE, b"seen").unwrap();
    let mut back = [0; 4];
    read(&mut memory, 0, &mut back).unwrap();
    assert_eq!(&back, b"seen");
    let denied = Err(AccessError::Denied { iova: 0 });
    assert_eq!(write(&mut memory, 0, b"x"), denied);
}

#[test]
fn a_file_sealed_against_writing_can_be_read() {
    let fd = memfd_create(c"rom", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&fd, PAGE as i64).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let mut memory = Memory::default();
    let sealed = Some((fd.try_clone().unwrap(), 0));
    assert_eq!(memory.map(0, PAGE, RW, sealed), Err(Errno::EPERM));
    let read_only = Access {
        read: true,
        write: false,
    };
    memory.map(0, PAGE, read_only, Some((fd, 0))).unwrap();
    read(&mut memory, 0, &mut [0; 8]).unwrap();
}

#[test]
fn part_of_a_huge_page_can_be_mapped() {
    let fd = match memfd_create(c"huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB) {
        Ok(fd) => fd,
        Err(errno) => return eprintln!("no huge pages in this kernel: {errno}"),
    };
    ftruncate(&fd, 4 << 20).unwrap();
    let mut memory = Memory::default();
    memory.map(0, PAGE, RW, Some((fd, 3 * PAGE))).unwrap();
    // The host may have no huge page to give: then it is as if the file were shorter.
    match write(&mut memory, 8, b"data") {
        Ok(()) => read(&mut memory, 8, &mut [0; 4]).unwrap(),
        Err(error) => assert_eq!(error, AccessError::Lost { iova: 8 }),
    }
    assert_eq!(memory.unmap(0, PAGE), Ok(PAGE));
}

#[test]
fn every_map_is_found_in_whatever_order_they_came() {
    const COUNT: u64 = 65_535;
    let (_, file) = mapped(0, COUNT);
    let ascending: Vec<u64> = (0..COUNT).collect();
    let descending = ascending.iter().rev().copied().collect();
    // A number that has no divisor in common with 65,535 reaches every index.
    let scattered = (0..COUNT).map(|index| index * 40_507 % COUNT).collect();
    for order in [ascending, descending, scattered] {
        let began = Instant::now();
        let mut memory = Memory::default();
        for index in &order {
            map(&mut memory, index * 2 * PAGE, 1, &file, *index);
        }
        let took = began.elapsed();
        let fd = file.try_clone().unwrap().into();
        assert_eq!(
            memory.map(1 << 60, PAGE, RW, Some((fd, 0))),
            Err(Errno::ENOSPC)
        );
        let mut data = [0; 8];
        for index in &order {
            write(&mut memory, index * 2 * PAGE, &index.to_le_bytes()).unwrap();
        }
        for index in 0..COUNT {
            read(&mut memory, index * 2 * PAGE, &mut data).unwrap();
            assert_eq!(u64::from_le_bytes(data), index);
            let hole = index * 2 * PAGE + PAGE;
            assert_eq!(
                read(&mut memory, hole, &mut data),
                Err(AccessError::Unmapped { iova: hole })
            );
        }
        for index in &order {
            assert_eq!(memory.unmap(index * 2 * PAGE, PAGE), Ok(PAGE));
        }
        eprintln!(
            "{COUNT} maps in {took:?}, then used and unmapped by {:?}",
            began.elapsed()
        );
        assert_eq!(memory.unmap_all(), 0);
    }
}

#[test]
fn a_map_that_went_between_accesses_is_not_found_again() {
    let (mut memory, file) = mapped(0, 1);
    map(&mut memory, PAGE, 1, &file, 0);
    read(&mut memory, 0, &mut [0; 8]).unwrap();
    memory.unmap(0, PAGE).unwrap();
    let unmapped = Err(AccessError::Unmapped { iova: 0 });
    assert_eq!(read(&mut memory, 0, &mut [0; 8]), unmapped);
    read(&mut memory, PAGE, &mut [0; 8]).unwrap();
    map(&mut memory, 4 * PAGE, 1, &file, 0);
    assert_eq!(
        read(&mut memory, 0, &mut [0; 8]),
        unmapped,
        "another took its place"
    );
    read(&mut memory, 4 * PAGE, &mut [0; 8]).unwrap();
    memory.unmap_all();
    for iova in [PAGE, 4 * PAGE] {
        let unmapped = Err(AccessError::Unmapped { iova });
        assert_eq!(write(&mut memory, iova, &[0; 8]), unmapped);
    }
}

#[test]
fn unmap_takes_whole_maps_only() {
    let mut memory = Memory::default();
    memory.map(PAGE, PAGE, RW, Some((file(1), 0))).unwrap();
    memory.map(2 * PAGE, PAGE, RW, Some((file(1), 0))).unwrap();
    assert_eq!(memory.unmap(PAGE, 10), Err(Errno::EINVAL));
    assert_eq!(memory.unmap(PAGE + 1, 2 * PAGE), Err(Errno::EINVAL));
    assert_eq!(memory.unmap(8 * PAGE, PAGE), Err(Errno::ENOENT));
    assert_eq!(memory.unmap(0, 0), Err(Errno::EINVAL));
    assert_eq!(memory.unmap(PAGE, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(
        read(&mut memory, PAGE, &mut [0; 1]),
        Err(AccessError::Unmapped { iova: PAGE })
    );
    memory.map(0, 0u64.wrapping_sub(PAGE), RW, None).unwrap();
    assert_eq!(memory.unmap_all(), 0u64.wrapping_sub(PAGE));
}

#[test]
fn guest_memory_is_not_for_core_dumps() {
    let file = File::from(memfd_create(c"secret", MFdFlags::empty()).unwrap());
    file.set_len(PAGE).unwrap();
    let mut memory = Memory::default();
    map(&mut memory, 0, 1, &file, 0);
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let is_ours = |line: &&str| line.contains("/memfd:secret");
    let mut lines = maps.lines().skip_while(|line| !is_ours(line));
    let flags = lines
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .unwrap();
    assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
}
