//! Files that shrink under a map.

#![expect(unsafe_code, reason = "actions for a signal are set")]

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc::SIGBUS,
    sys::{
        resource::{Resource, setrlimit},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
    },
};
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
        assert_eq!(
            write_each(&mut memory, 0, len, 0b11, 1),
            lost,
            "{len} apart"
        );
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

/// Runs this test binary again, for `test` alone, which ends the process.
fn run_alone(test: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap()
        .status
}

/// Makes sure that the handler is installed, and works; and that the process leaves no core behind.
fn lose_something() {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let (mut memory, file) = mapped(0, 1);
    file.set_len(0).unwrap();
    assert!(read(&mut memory, 0, &mut [0]).is_err());
}

/// Touches a page without a file behind it that belongs to no DMA map.
fn fault_elsewhere() {
    let file = File::from(file(1));
    let shrink = file.try_clone().unwrap();
    let region = MmapRegion::<()>::from_file(FileOffset::new(file, 0), 4096).unwrap();
    shrink.set_len(0).unwrap();
    let mut data = [0; 8];
    let _ = region.as_volatile_slice().read_slice(&mut data, 0);
}

fn set_action(handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the only handler that is passed here does nothing but end the process.
    unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
}

extern "C" fn exit_with_42(_: i32) {
    // SAFETY: it may be called from a handler.
    unsafe { nix::libc::_exit(42) }
}

#[test]
fn a_bus_error_elsewhere_does_what_it_did_before() {
    let alone = |name: &str| run_alone(&format!("memory::tests::lost::alone::{name}"));
    assert_eq!(
        alone("a_fault_with_the_runtimes_handler").signal(),
        Some(SIGBUS)
    );
    assert_eq!(
        alone("a_fault_with_the_default_action").signal(),
        Some(SIGBUS)
    );
    assert_eq!(alone("a_fault_that_was_ignored").signal(), Some(SIGBUS));
    assert_eq!(alone("a_fault_with_a_handler").code(), Some(42));
    assert_eq!(
        alone("a_signal_with_the_default_action").signal(),
        Some(SIGBUS)
    );
    assert_eq!(alone("a_signal_that_was_ignored").code(), Some(0));
    assert_eq!(alone("a_signal_with_a_handler").code(), Some(42));
}

#[test]
fn as_many_mappings_as_there_can_be_are_lost_without_harm() {
    let name = "memory::tests::lost::alone::every_mapping_is_lost";
    assert_eq!(run_alone(name).code(), Some(0));
}

mod alone {
    use super::*;

    #[test]
    #[ignore = "takes all mappings that there are: run by the test above, in a process of its own"]
    fn every_mapping_is_lost() {
        let (mut memory, file) = mapped(0, 2);
        let mut pages = 2;
        // Each map is of a file that is longer than before, so that it shares no mapping.
        let refused = loop {
            file.set_len((pages + 1) * PAGE).unwrap();
            let fd = file.try_clone().unwrap().into();
            match memory.map(pages * PAGE, PAGE, RW, Some((fd, pages * PAGE))) {
                Ok(()) => pages += 1,
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, Errno::ENOMEM);
        file.set_len(PAGE).unwrap();
        for iova in (1..pages).map(|page| page * PAGE) {
            let lost = Err(AccessError::Lost { iova });
            assert_eq!(read(&mut memory, iova, &mut [0]), lost);
        }
    }

    #[test]
    #[ignore = "ends the process: run by the test above"]
    fn a_fault_with_the_runtimes_handler() {
        lose_something();
        let _ = thread::spawn(fault_elsewhere).join();
    }

    #[test]
    #[ignore = "ends the process: run by the test above"]
    fn a_fault_with_the_default_action() {
        set_action(SigHandler::SigDfl);
        lose_something();
        fault_elsewhere();
    }

    #[test]
    #[ignore = "ends the process: run by the test above"]
    fn a_fault_that_was_ignored() {
        set_action(SigHandler::SigIgn);
        lose_something();
        fault_elsewhere();
    }

    #[test]
    #[ignore = "ends the process: run by the test above"]
    fn a_fault_with_a_handler() {
        set_action(SigHandler::Handler(exit_with_42));
        lose_something();
        fault_elsewhere();
    }

    #[test]
    #[ignore = "ends the process: run by the test above"]
    fn a_signal_with_the_default_action() {
        set_action(SigHandler::SigDfl);
        lose_something();
        raise(Signal::SIGBUS).unwrap();
    }

    #[test]
    #[ignore = "run by the test above, in a process of its own"]
    fn a_signal_that_was_ignored() {
        set_action(SigHandler::SigIgn);
        lose_something();
        raise(Signal::SIGBUS).unwrap();
    }

    #[test]
    #[ignore = "ends the process: run by the test above"]
    fn a_signal_with_a_handler() {
        set_action(SigHandler::Handler(exit_with_42));
        lose_something();
        raise(Signal::SIGBUS).unwrap();
    }
}
