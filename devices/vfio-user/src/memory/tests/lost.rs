//! Files that shrink under a map.

use std::{
    os::unix::process::ExitStatusExt,
    process::Command,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use nix::libc::SIGBUS;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::*;

#[test]
fn what_a_shortened_file_no_longer_has_is_lost_and_the_rest_stays() {
    let (mut memory, file) = mapped(0x10_0000, 4);
    write(&mut memory, 0x10_0000, b"kept").unwrap();
    file.set_len(PAGE).unwrap();
    let lost = Err(AccessError::Lost { iova: 0x10_1000 });
    assert_eq!(read(&mut memory, 0x10_1000, &mut [0; 1]), lost);
    assert_eq!(
        read(&mut memory, 0x10_0ff8, &mut [0; 16]),
        lost,
        "half of it"
    );
    assert_eq!(write(&mut memory, 0x10_0ff8, &[1; 16]), lost);
    let mut back = [0; 4];
    read(&mut memory, 0x10_0000, &mut back).unwrap();
    assert_eq!(&back, b"kept");
}

#[test]
fn a_file_that_shrinks_in_front_of_each_kind_of_access_is_noticed() {
    for len in [1, 2, 4, 8, 9, 4096, 8192] {
        let (mut memory, file) = mapped(0, 4);
        file.set_len(0).unwrap();
        let lost = Err(AccessError::Lost { iova: 0 });
        assert_eq!(write(&mut memory, 0, &vec![1; len]), lost, "{len} written");
        let (mut memory, file) = mapped(0, 4);
        file.set_len(0).unwrap();
        let mut data = vec![1; len];
        assert_eq!(read(&mut memory, 0, &mut data), lost, "{len} read");
    }
}

#[test]
fn an_access_that_begins_in_what_is_left_ends_where_the_file_does() {
    let (mut memory, file) = mapped(0, 4);
    write(&mut memory, 0, &[7; 4 * 4096]).unwrap();
    file.set_len(2 * PAGE).unwrap();
    let mut data = [1; 4 * 4096];
    assert_eq!(
        read(&mut memory, 0, &mut data),
        Err(AccessError::Lost { iova: 2 * PAGE })
    );
    assert_eq!(data[..2 * 4096], [7; 2 * 4096]);
}

#[test]
fn a_file_that_shrinks_during_an_access_is_noticed() {
    let (mut memory, file) = mapped(0, 4096);
    let shrink = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        file.set_len(2048 * PAGE).unwrap();
    });
    let mut data = vec![0; 4096 * 4096];
    let due = Instant::now() + Duration::from_secs(60);
    loop {
        let result = if data[0] & 1 == 0 {
            write(&mut memory, 0, &data)
        } else {
            read(&mut memory, 0, &mut data)
        };
        data[0] ^= 1;
        match result {
            Ok(()) => assert!(Instant::now() < due, "never noticed"),
            Err(AccessError::Lost { iova }) => {
                assert!(iova >= 2048 * PAGE, "{iova:#x} is still there");
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    shrink.join().unwrap();
}

#[test]
fn a_map_stays_lost_until_it_is_mapped_again() {
    let (mut memory, file) = mapped(0, 2);
    file.set_len(0).unwrap();
    let lost = Err(AccessError::Lost { iova: 0 });
    assert_eq!(read(&mut memory, 0, &mut [0; 8]), lost);
    file.set_len(2 * PAGE).unwrap();
    assert_eq!(read(&mut memory, 0, &mut [0; 8]), lost);
    assert!(write(&mut memory, PAGE, &[0; 8]).is_err());
    map(&mut memory, 8 * PAGE, 2, &file, 0);
    write(&mut memory, 8 * PAGE, b"new map").unwrap();
    assert_eq!(memory.unmap(0, 2 * PAGE), Ok(2 * PAGE));
    map(&mut memory, 0, 2, &file, 0);
    let mut back = [0; 7];
    read(&mut memory, 0, &mut back).unwrap();
    assert_eq!(&back, b"new map");
}

#[test]
fn a_terabyte_is_lost_at_once() {
    let file = File::from(
        nix::sys::memfd::memfd_create(c"guest", nix::sys::memfd::MFdFlags::empty()).unwrap(),
    );
    file.set_len(1 << 40).unwrap();
    let mut memory = Memory::default();
    map(&mut memory, 0, (1 << 40) / PAGE, &file, 0);
    write(&mut memory, (1 << 40) - 4, b"last").unwrap();
    file.set_len(PAGE).unwrap();
    let lost = Err(AccessError::Lost { iova: PAGE });
    let mut data = vec![0; 32 << 20];
    assert_eq!(read(&mut memory, 0, &mut data), lost);
    assert_eq!(
        read(&mut memory, (1 << 40) - 4, &mut [0; 4]),
        Err(AccessError::Lost {
            iova: (1 << 40) - 4
        })
    );
}

#[test]
fn threads_lose_only_what_is_theirs() {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut memory, _file) = mapped(0, 16);
            let mut data = vec![0; 16 * 4096];
            while !stop.load(Ordering::Relaxed) {
                read(&mut memory, 0, &mut data).unwrap();
                write(&mut memory, 0, &data).unwrap();
            }
        });
        for round in 0..200 {
            let (mut memory, file) = mapped(0, 16);
            file.set_len(round % 16 * PAGE).unwrap();
            assert_eq!(
                read(&mut memory, 0, &mut [1; 16 * 4096]),
                Err(AccessError::Lost {
                    iova: round % 16 * PAGE
                })
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Runs this test binary again, for `test` alone, and says which signal ended it.
fn signal_that_ends(test: &str) -> Option<i32> {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap()
        .status
        .signal()
}

#[test]
fn a_bus_error_elsewhere_still_ends_the_process() {
    assert_eq!(
        signal_that_ends("memory::tests::lost::bus_error_elsewhere"),
        Some(SIGBUS)
    );
}

#[test]
#[ignore = "ends the process: run by the test above"]
fn bus_error_elsewhere() {
    let (mut memory, file) = mapped(0, 1);
    file.set_len(0).unwrap();
    assert!(read(&mut memory, 0, &mut [0]).is_err());
    let elsewhere = thread::spawn(|| {
        let file = File::from(super::file(1));
        let shrink = file.try_clone().unwrap();
        let region = MmapRegion::<()>::from_file(FileOffset::new(file, 0), 4096).unwrap();
        shrink.set_len(0).unwrap();
        let mut data = [0; 8];
        let _ = region.as_volatile_slice().read_slice(&mut data, 0);
        data
    });
    let _ = elsewhere.join();
}
